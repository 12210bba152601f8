"""The ids of all samples, kept in as little memory as they came in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from shmgen.errors import InputError

BLOCK = 10_000
"""So many elements of an array are Python objects at once."""

COLUMNS_SHOWN = 8


def kept(ids: Iterable[Any]) -> Sequence[Any]:
    """``ids`` as Python objects, out of reach of later changes by the caller; but an array of strings is not copied.

    Raises:
        InputError: they are no ids in an order: a data frame, an array of another number of axes than 1, a text, a set.
    """
    if isinstance(ids, range | Some):
        return ids
    if is_frame(ids):
        raise InputError(f"list_IDs: expected ids, found a {type(ids).__name__}; pass its column of ids: {columns_of(ids)}")
    if isinstance(ids, str | bytes | set | frozenset) or not isinstance(ids, Iterable):
        found = f"a {type(ids).__name__}" if isinstance(ids, set | frozenset) else repr(ids)
        remedy = "sorted(ids)" if isinstance(ids, set | frozenset) else "[id] for a single one"
        raise InputError(f"list_IDs: expected a list or array of ids, in an order, found {found}; pass {remedy}")
    if hasattr(ids, "__array__"):  # arrays, and columns of pandas, polars, pyarrow
        array = as_array(ids)
        if array.ndim != 1:
            remedy = "[id] for a single one" if array.ndim == 0 else "one axis of it, ids[:, 0] say, or ids.ravel() for all"
            raise InputError(f"list_IDs: expected an array of one axis, found one of shape {array.shape}; pass {remedy}")
        if array.dtype.kind in "USiu":
            return _ArrayIds(array if array.dtype.kind in "US" else array.copy(), index_of(ids))
        ids = array.tolist()
    # NumPy's own scalars would have every worker import NumPy.
    return [id.item() if isinstance(id, np.generic) else id for id in ids]


def take(ids: Sequence[Any], samples: np.ndarray) -> list[Any]:
    """The ids of ``samples``, positions in ``ids``."""
    if isinstance(ids, _ArrayIds | Some):
        return ids.take(samples)
    return list(map(ids.__getitem__, samples.tolist()))


def as_ints(ids: Sequence[Any]) -> range | np.ndarray | None:
    """``ids`` as a range or an array, where all are ints; else None. Of Python's ints, where one is too large for NumPy's."""
    if isinstance(ids, range):
        return ids
    if isinstance(ids, _ArrayIds):
        return ids.array if ids.array.dtype.kind in "iu" else None
    if not all(issubclass(kind, int) for kind in set(map(type, ids))):
        return None
    try:
        return np.array(ids, np.int64)
    except OverflowError:
        return np.array(ids, object)


def as_array(values: Any) -> np.ndarray:
    """``values``, an array or a column of pandas, polars or pyarrow, as an array."""
    # Asked for what it has not, a column of pandas searches its index, and keeps what it made for that; `np.asarray` does ask.
    return np.asarray(values if index_of(values) is None else values.to_numpy())


def index_of(values: Any) -> Any:
    """The index of a column of pandas, its rows' labels; None of whatever else."""
    index = getattr(values, "index", None)
    return index if hasattr(index, "get_indexer") else None


def is_frame(value: object) -> bool:
    """Whether ``value`` is a table of columns, of pandas, polars or pyarrow."""
    return hasattr(type(value), "columns") and len(getattr(value, "shape", ())) == 2


def columns_of(frame: Any) -> str:
    """How to write the columns of a table, as advice."""
    names = list(getattr(frame, "column_names", frame.columns))
    more = f" or one of {len(names) - COLUMNS_SHOWN} others" if len(names) > COLUMNS_SHOWN else ""
    return (" or ".join(f"df[{name!r}]" for name in names[:COLUMNS_SHOWN]) or "it has none") + more


class Some(Sequence[Any]):
    """Some of all ids, in an order of their own; values that are given by position go by that among all.

    Args:
        all: the ids of all samples, as `kept`.
        samples: the positions in ``all`` of these.
    """

    def __init__(self, all: Sequence[Any], samples: np.ndarray) -> None:
        self.all = all
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: Any) -> Any:
        return self.all[int(self.samples[position])]

    def take(self, samples: np.ndarray) -> list[Any]:
        """The ids at these positions."""
        return take(self.all, self.samples[samples])


class _ArrayIds(Sequence[Any]):
    """Ids in an array, made Python objects when they are needed: those would take more memory than the array.

    Attributes:
        array: the ids.
        rows: the index that they had as a column of pandas.
    """

    def __init__(self, array: np.ndarray, rows: Any = None) -> None:
        self.array = array
        self.rows = rows

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, position: Any) -> Any:
        return self.array[position].item()

    def __iter__(self) -> Iterator[Any]:
        return elements(self.array)

    def take(self, samples: np.ndarray) -> list[Any]:
        """The ids at these positions."""
        taken: list[Any] = self.array[samples].tolist()
        return taken


def elements(array: np.ndarray) -> Iterator[Any]:
    """The elements of an array along its first axis, as Python objects, of which few are there at once."""
    for first in range(0, len(array), BLOCK):
        yield from array[first : first + BLOCK].tolist()
