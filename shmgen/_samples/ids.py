"""The ids of all samples, in no more memory than they came in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from shmgen.errors import InputError

BLOCK = 10_000
"""How many elements of an array are made Python objects at once."""

COLUMNS_SHOWN = 8

IDS_AT_ONCE = 10_000
"""How many ids are searched at once for ways out of a folder."""


def kept(ids: Iterable[Any]) -> Sequence[Any]:
    """``ids`` as a sequence of Python objects, which later changes by the caller do not reach; an array of texts is not copied.

    Raises:
        InputError: they are no sequence of ids: a data frame, an array that has not one axis, a single text, a set.
    """
    if isinstance(ids, range | Subset):
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
    # With NumPy's scalars every worker would import NumPy.
    return [id.item() if isinstance(id, np.generic) else id for id in ids]


def take(ids: Sequence[Any], samples: np.ndarray) -> list[Any]:
    """The ids of ``samples``, positions in ``ids``."""
    if isinstance(ids, _ArrayIds | Subset):
        return ids.take(samples)
    return list(map(ids.__getitem__, samples.tolist()))


def int_array(ids: Sequence[Any]) -> np.ndarray | None:
    """The array of ints that ``ids`` are, if they came in one; else None."""
    return ids.array if isinstance(ids, _ArrayIds) and ids.array.dtype.kind in "iu" else None


def as_ints(ids: Sequence[Any]) -> range | np.ndarray | None:
    """``ids`` as a range or an array if all are ints, else None. The array holds Python's ints if one is too large for int64."""
    if isinstance(ids, range):
        return ids
    if isinstance(ids, _ArrayIds):
        return int_array(ids)
    if isinstance(ids, Subset):
        ids = take(ids, np.arange(len(ids)))
    if not all(issubclass(kind, int) for kind in set(map(type, ids))):
        return None
    try:
        return np.array(ids, np.int64)
    except OverflowError:
        return np.array(ids, object)


def first_outside(ids: Sequence[Any], count: int) -> int | None:
    """The position of the first id that is no int from 0 to ``count - 1``, the number of a row say; None if each is one."""
    numbers = as_ints(ids)
    if numbers is None:
        return next(position for position, id in enumerate(ids) if not isinstance(id, int) or not 0 <= id < count)
    if isinstance(numbers, range):
        if not numbers or 0 <= min(numbers[0], numbers[-1]) <= max(numbers[0], numbers[-1]) < count:
            return None
        edge = count - 1 if numbers.step > 0 else 0
        return (edge - numbers[0]) // numbers.step + 1 if 0 <= numbers[0] < count else 0
    outside = (numbers < 0) | (numbers >= count)
    return int(outside.argmax()) if outside.any() else None


def as_array(values: Any) -> np.ndarray:
    """``values``, an array or a column of pandas, polars or pyarrow, as an array."""
    # `np.asarray` asks a column for attributes that pandas searches in the index, for which it makes a table that it keeps.
    return np.asarray(values if index_of(values) is None else values.to_numpy())


def index_of(values: Any) -> Any:
    """The index of a column of pandas, the labels of its rows; None for anything else."""
    index = getattr(values, "index", None)
    return index if hasattr(index, "get_indexer") else None


def is_frame(value: object) -> bool:
    """Whether ``value`` is a table of columns, of pandas, polars or pyarrow."""
    return hasattr(type(value), "columns") and len(getattr(value, "shape", ())) == 2


def columns_of(frame: Any) -> str:
    """The columns of a table as a user would write them, for a remedy."""
    names = list(getattr(frame, "column_names", frame.columns))
    more = f" or one of {len(names) - COLUMNS_SHOWN} others" if len(names) > COLUMNS_SHOWN else ""
    return (" or ".join(f"df[{name!r}]" for name in names[:COLUMNS_SHOWN]) or "it has none") + more


def fingerprint(ids: Sequence[Any]) -> str:
    """A hash of ``ids`` and their order, of 32 hexadecimal digits: the same for equal ids, whatever they come in.

    Of ids that are neither ints nor texts their ``repr`` is hashed.
    """
    hashed = hashlib.blake2b(digest_size=16)
    numbers = as_ints(ids)
    if numbers is None or (isinstance(numbers, np.ndarray) and numbers.dtype.kind == "O"):
        for start in range(0, len(ids), BLOCK):
            block = take(ids, np.arange(start, min(start + BLOCK, len(ids))))
            texts = [id if isinstance(id, str) else f"{type(id).__name__} {id!r}" for id in block]
            are_texts = [isinstance(id, str) for id in block]
            hashed.update(np.array([*map(len, texts), *are_texts], "<i8").tobytes())
            hashed.update("".join(texts).encode("utf-8", "surrogatepass"))
    elif (steps := _as_range(numbers)) is not None:
        hashed.update(repr((steps.start, steps.step, len(steps))).encode())
    else:
        array = np.asarray(numbers)
        hashed.update(np.ascontiguousarray(array, "<i8" if array.dtype.kind == "i" else "<u8").data)
    return hashed.hexdigest()


def _as_range(numbers: range | np.ndarray) -> range | None:
    """``numbers`` as a range, if all steps between them are the same; ranges of the same numbers are made equal in all parts."""
    if len(numbers) < 2:
        return range(int(numbers[0]), int(numbers[0]) + 1) if len(numbers) else range(0)
    first, step = int(numbers[0]), int(numbers[1]) - int(numbers[0])
    if step == 0:
        return None
    steps = range(first, first + len(numbers) * step, step)
    if isinstance(numbers, range):
        return steps
    for start in range(0, len(numbers), BLOCK):
        block = numbers[start : start + BLOCK]
        last = min(len(numbers), start + BLOCK) - 1
        if int(block[0]) != steps[start] or int(block[-1]) != steps[last] or (np.diff(block) != np.diff(block[:2])[:1]).any():
            return None
    return steps


class Subset(Sequence[Any]):
    """Some of all ids, in another order. Values that are looked up by position go by the position among all ids.

    Args:
        all: the ids of all samples, as `kept`.
        samples: the positions of these in ``all``.
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
    """Ids in an array. They are made Python objects only when needed, since these would take more memory than the array.

    Attributes:
        array: the ids.
        rows: the index of the pandas column that the ids came in, or None.
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
    """The elements of an array along its first axis, as Python objects, made a few at a time."""
    for first in range(0, len(array), BLOCK):
        yield from array[first : first + BLOCK].tolist()


def refuse_ways_out(ids: Sequence[object], folder: str, remedy: str) -> None:
    """Refuse ids that lead out of ``folder``.

    Args:
        ids: of all samples.
        folder: that the files are in.
        remedy: what to pass where ids are meant as paths.

    Raises:
        InputError: one does.
    """
    for first in range(0, len(ids), IDS_AT_ONCE):
        some = list(map(str, take(ids, np.arange(first, min(first + IDS_AT_ONCE, len(ids))))))
        # They are searched all at once: one by one, a million ids would take a second.
        together = "\0".join(some)
        if ".." not in together and "\0/" not in f"\0{together}":
            continue
        for id in some:
            if id.startswith("/") or ".." in id.split("/"):
                raise InputError(
                    f"id {id!r}: expected one that stays in folder {folder}, found a path out of it; "
                    f"pass {remedy}, where ids are meant as paths"
                )
