"""Fields whose rows the calling process knows: labels, tables, weights. Checked before the first batch."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from shmgen.errors import InputError


class Values:
    """A value for each id, from a mapping or an array: an int, a float, or an array of one shape for all.

    Args:
        values: a mapping from id to value; or an array or list, which is looked up by id where ids are ints, and else has a value
            for each id in their order.
        dtype: of a row. Where left out, int64 if all values are whole numbers, else float32.
        n_classes: values are ints from 0 to ``n_classes - 1`` and become one-hot float32 rows.

    Attributes:
        shape: of a row; set by `bind`.
        dtype: of a row; set by `bind`.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __init__(
        self,
        values: Mapping[Any, Any] | Sequence[Any] | np.ndarray,
        dtype: DTypeLike | None = None,
        n_classes: int | None = None,
    ) -> None:
        self._values = values
        self._given = dtype
        self._n_classes = n_classes
        self._rows = np.zeros(0)

    def bind(self, ids: Sequence[Any], field: str = "values") -> None:
        """Take the values of ``ids``.

        Args:
            ids: the samples' ids.
            field: what errors call the values.

        Raises:
            InputError: an id has no value, or one that is NaN, would be truncated, is outside the classes, or has another shape.
        """
        checked = _Checked(ids, self._values, field)
        if self._n_classes is None:
            self._rows = checked.rows(self._given)
            self.shape, self.dtype = self._rows.shape[1:], self._rows.dtype
        else:
            self._rows = checked.whole(0, self._n_classes - 1)
            self.shape, self.dtype = (self._n_classes,), np.dtype(self._given or np.float32)

    def fill(self, samples: np.ndarray, rows: np.ndarray) -> None:
        """Write the values of ``samples``, positions in the list of ids, into ``rows``."""
        if self._n_classes is None:
            np.take(self._rows, samples, axis=0, out=rows, mode="clip")  # none is out of bounds, and "raise" would copy
        else:
            rows[...] = 0
            rows[np.arange(len(samples)), self._rows[samples]] = 1


class _Checked:
    """The values of ids, each looked at before it is taken."""

    def __init__(self, ids: Sequence[Any], values: Any, field: str) -> None:
        self._ids = ids
        self._values = values
        self._field = field
        if isinstance(values, list | tuple | np.ndarray) and not _are_ints(ids):
            if len(values) != len(ids):
                raise InputError(f"field {field!r}: expected a value for each of the {len(ids):,} ids, found {len(values):,}")
            self._in_order = True
        else:
            self._in_order = False

    def __iter__(self) -> Iterator[Any]:
        if self._in_order:
            yield from self._values
            return
        values = self._values
        for id in self._ids:
            try:
                if isinstance(id, int) and id < 0 and isinstance(values, list | tuple | np.ndarray):
                    raise IndexError
                value = values[id]
            except (LookupError, TypeError):
                raise self._refused(id, f"a value, as for each of the {len(self._ids):,} ids", "none") from None
            yield value

    def whole(self, lowest: int = -(2**63), highest: int = 2**63 - 1) -> np.ndarray:
        """The values as int64, where all are whole numbers within these bounds."""
        return np.fromiter(self._whole(lowest, highest), np.int64, len(self._ids))

    def _whole(self, lowest: int, highest: int) -> Iterator[int]:
        for id, value in zip(self._ids, self, strict=True):
            try:
                number = int(value) if isinstance(value, np.bool_) else operator.index(value)
            except TypeError:
                raise self._refused(
                    id, "an int", f"{value!r} of type {type(value).__name__}; if it is meant, pass Values(..., dtype='float32')"
                ) from None
            if not lowest <= number <= highest:
                raise self._refused(id, f"an int from {lowest} to {highest}", str(number))
            yield number

    def rows(self, given: DTypeLike | None) -> np.ndarray:
        """The values as one array, a row each, of dtype ``given``, or of the one that they call for."""
        values = list(self)
        try:
            together = np.asarray(values)
        except ValueError:  # their shapes differ
            together = np.asarray(None)
        if given is None:
            # Ints too large for int64 come out as floats.
            are_whole = together.dtype.kind in "biu" or all(isinstance(value, int) for value in values)
            given = np.int64 if are_whole else np.float32
        dtype = np.dtype(given).newbyteorder("=")
        with np.errstate(over="ignore", invalid="ignore"):
            if together.dtype.kind in "biufc" and np.can_cast(together.dtype, dtype, "same_kind"):
                rows = together.astype(dtype)
                if not _lost(together, rows).any():
                    return rows
            return self._one_by_one(dtype)

    def _one_by_one(self, dtype: np.dtype[Any]) -> np.ndarray:
        """As `rows`; looks at each, and says which is wrong."""
        if dtype.kind in "iu" and np.ndim(next(iter(self))) == 0:
            bounds = np.iinfo(dtype)
            return self.whole(int(bounds.min), int(bounds.max)).astype(dtype)
        rows: list[np.ndarray] = []
        for id, value in zip(self._ids, self, strict=True):
            array = np.asarray(value)
            if rows and array.shape != rows[0].shape:
                raise self._refused(id, f"shape {rows[0].shape}, as the first has", str(array.shape))
            if not np.can_cast(array.dtype, dtype, "same_kind"):
                raise self._refused(
                    id, f"dtype {dtype}", f"{value!r} of dtype {array.dtype}, whose cast would lose more than precision"
                )
            rows.append(array.astype(dtype))
            if _lost(array, rows[-1]).any():
                raise self._refused(id, "a number" if np.isnan(array).any() else f"a number that {dtype} holds", repr(value))
        return np.stack(rows)

    def _refused(self, id: object, expected: str, found: str) -> InputError:
        return InputError(f"id {id!r}, field {self._field!r}: expected {expected}, found {found}")


def _lost(values: np.ndarray, cast: np.ndarray) -> np.ndarray:
    """Where ``cast`` is NaN, or lost more than precision of ``values``."""
    lost: np.ndarray = cast != values
    if cast.dtype.kind in "fc":
        lost = np.isnan(cast) | (np.isinf(cast) & ~np.isinf(values))
    return lost


def _are_ints(ids: Sequence[Any]) -> bool:
    return isinstance(ids, range) or all(isinstance(id, int) for id in ids)
