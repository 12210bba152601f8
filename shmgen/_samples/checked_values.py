"""The user's values for all samples, checked before they become rows; and names of classes."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias, TypeVar

import numpy as np

from shmgen._samples.casting import cast, unmasked
from shmgen._samples.files import some_of
from shmgen._samples.ids import BLOCK, blocks, is_missing, objects
from shmgen._samples.lookup import as_list_or_array, is_column
from shmgen._samples.sample_spec import LOSSY_CAST, can_cast
from shmgen.errors import FormatError, InputError

T = TypeVar("T")

Rows: TypeAlias = "tuple[np.ndarray, np.dtype[Any]]"
"""A row for each id, and the dtype of the rows of a batch; those here may be kept in the smaller dtype of the values."""

DECODE = "; decode names that are bytes: [name.decode() for name in names]"


class CheckedValues:
    """The values of all ids. Each is checked before it is made a row."""

    def __init__(self, ids: Sequence[Any], column: Sequence[Any] | np.ndarray, field: str, *, may_be_nan: bool = False) -> None:
        self.ids = ids
        self._may_be_nan = may_be_nan
        self._column = column
        self.field = field

    @cached_property
    def together(self) -> np.ndarray:
        """All values as one array; an array without axes, of dtype object, if their shapes differ."""
        column = self._column
        if not isinstance(column, np.ndarray) and np.ma.MaskedArray in set(map(type, column)):
            list(self._each(unmasked))  # NumPy would drop the masks of a list of arrays
        try:
            return np.asarray(column.tolist() if isinstance(column, np.ndarray) and column.dtype.kind == "O" else column)
        except ValueError:
            return np.asarray(None)

    def whole(self, lowest: int, highest: int, remedy: str = "") -> Rows:
        """The values as an array of ints, where all are whole numbers within these bounds."""
        together, dtype = self.together, np.dtype(np.int64 if highest < 1 << 63 else np.uint64)
        are_ints = together.ndim == 1 and together.dtype.kind in "biu"
        if are_ints and lowest <= int(together.min()) and int(together.max()) <= highest:
            return _stored(together, dtype), dtype
        self._refuse_missing(together, "an int")

        def number_of(value: Any) -> int:
            try:
                number = int(value) if isinstance(value, np.bool_) else operator.index(value)
            except TypeError:
                raise FormatError(f"expected an int, found {value!r} of type {type(value).__name__}{_remedy(value)}") from None
            if not lowest <= number <= highest:
                raise FormatError(f"expected an int from {lowest} to {highest}, found {number}{remedy}")
            return number

        return np.array(list(self._each(number_of)), dtype), dtype

    def _refuse_missing(self, values: np.ndarray, expected: str) -> None:
        """Name the first NaN among floats: a column of ints becomes one of floats where a value is missing."""
        if values.ndim == 1 and values.dtype.kind == "f" and (missing := np.isnan(values)).any():
            found = f"nan: its value is missing{_remedy(math.nan)}"
            raise InputError(f"id {self.ids[int(missing.argmax())]!r}, field {self.field!r}: expected {expected}, found {found}")

    def rows(self, given: np.dtype[Any] | None) -> Rows:
        """The values as one array, a row each, of dtype ``given``, or of the one that they call for."""
        together = self.together
        if given is None:
            # Ints too large for int64 come out as floats.
            are_whole = together.dtype.kind in "biu" or all(isinstance(value, int) for value in objects(self._column))
            given = np.dtype(np.int64) if are_whole else np.dtype(np.float32)
        if together.dtype.kind == "O" and given.kind not in "biu" and all(isinstance(value, int) for value in together.flat):
            together = together.astype(given)  # ints beyond NumPy's own
        if together.dtype.kind in "biufc" and can_cast(together.dtype, given):
            try:
                for some in _blocks(together):
                    self._cast(some, given)
            except FormatError:
                pass
            else:
                return _stored(together, given), given
        return self._one_by_one(given), given

    def _one_by_one(self, dtype: np.dtype[Any]) -> np.ndarray:
        """As `rows`, for one value after the other; says which is wrong."""
        if dtype.kind in "iu" and np.ndim(next(objects(self._column))) == 0:
            bounds = np.iinfo(dtype)
            return self.whole(bounds.min, bounds.max, "; pass Values(..., dtype=...) with one that holds it")[0].astype(dtype)
        rows: list[np.ndarray] = []

        def row_of(value: Any) -> np.ndarray:
            try:
                array = np.asarray(value)
            except ValueError:  # lists of several lengths
                raise FormatError(f"expected an array, found {value!r}") from None
            if rows and array.shape != rows[0].shape:
                raise FormatError(f"expected shape {rows[0].shape}, as the first has, found {array.shape}")
            if not can_cast(array.dtype, dtype):
                wider = f"; pass dtype={array.dtype.name!r}" if array.dtype.kind in "biufc" else _remedy(value)
                raise FormatError(f"expected dtype {dtype}, found {value!r} of dtype {array.dtype}, {LOSSY_CAST}{wider}")
            return self._cast(array, dtype)

        for row in self._each(row_of):
            rows.append(row)  # each is compared with the first
        return np.stack(rows)

    def _cast(self, values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
        """Values as ``dtype``; refused if that loses more than precision, or if one is NaN and must not be."""
        rows = cast(values, dtype)
        if not self._may_be_nan and (values != values).any():  # noqa: PLR0124 # NaN
            remedy = "leave such ids out, or, where a loss masks them, pass Values(..., dtype='float32')"
            raise FormatError(f"expected a number, found {values.tolist()}; {remedy}")
        return rows

    def _each(self, convert: Callable[[Any], T]) -> Iterator[T]:
        """What ``convert`` makes of each value; its `FormatError` becomes one that names the id."""
        for id, value in zip(self.ids, objects(self._column), strict=True):
            try:
                yield convert(value)
            except FormatError as error:
                raise InputError(f"id {id!r}, field {self.field!r}: {error}") from None

    def positions_in(self, names: tuple[Any, ...], dtype: np.dtype[Any] | None) -> Rows:
        numbers = {name: number for number, name in enumerate(names)}
        if isinstance(self._column, np.ndarray):
            self._refuse_missing(self._column, "the name of a class")

        def position_of(value: Any) -> int:
            try:
                return numbers[value]
            except (KeyError, TypeError):
                leave = "; leave such ids out, give them such a name, or pass classes=[...], all names in order"
                remedy = DECODE if isinstance(value, bytes) else leave
                expected = f"one of the classes {some_of(names, 20)}" if names else "the name of a class, a text or an int"
                raise FormatError(f"expected {expected}, found {value!r}{remedy}") from None

        small, distinct = np.min_scalar_type(len(names)), _distinct_ints(self._column)
        if distinct.size and set(distinct.tolist()) <= numbers.keys():  # a million ints take no loop over them
            table = np.array([numbers[name] for name in distinct.tolist()], small)
            rows = np.concatenate([table[np.searchsorted(distinct, some)] for some in _blocks(np.asarray(self._column))])
        else:
            rows = np.fromiter(self._each(position_of), small, len(self.ids))
        return CheckedValues(self.ids, rows, self.field).rows(dtype or np.dtype(np.int64))


def _stored(rows: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """A copy of ``rows``, as ``dtype`` unless they take less memory as they are."""
    return rows.astype(dtype if rows.dtype.itemsize >= dtype.itemsize or rows.dtype.kind == "b" else rows.dtype)


def _blocks(values: np.ndarray) -> Iterator[np.ndarray]:
    """Slices of the values of `BLOCK` numbers each."""
    return blocks(values, max(1, BLOCK // max(1, values[:1].size)))


def _distinct_ints(column: Any) -> np.ndarray:
    """The ints in an array of them, sorted; none if it is something else."""
    are_ints = isinstance(column, np.ndarray) and column.dtype.kind in "iu" and column.ndim == 1
    return np.unique(np.concatenate([np.unique(some) for some in _blocks(column)])) if are_ints else np.empty(0, np.int64)


def _remedy(value: object) -> str:
    if isinstance(value, str | bytes):
        return "; where these are names of classes, pass classes=[...], all of them in order, or classes='sorted'"
    if is_missing(value):
        return "; leave such ids out, or give them a value"
    if isinstance(value, float | np.floating):
        return "; if it is meant, pass Values(..., dtype='float32'), and no n_classes"
    return ""


def check_number(classes: tuple[Any, ...], n_classes: int | None) -> None:
    if n_classes not in (None, len(classes)):
        raise InputError(f"n_classes: expected {len(classes)}, the number of classes, found {n_classes}; leave it as None")


def names_of(classes: Any) -> tuple[Any, ...]:
    if isinstance(classes, str | bytes | set | frozenset | Mapping) or not isinstance(classes, Iterable):
        raise InputError(f"classes: expected a list of names in order, or 'sorted', found {classes!r}")
    names = tuple(name.item() if isinstance(name, np.generic) else name for name in classes)
    if wrong := [name for name in names if not isinstance(name, str | int)]:
        remedy = DECODE if isinstance(wrong[0], bytes) else ""
        raise InputError(f"classes: expected names, texts or ints, found {wrong[0]!r}{remedy}")
    if not names or len(set(names)) < len(names):
        twice = [name for name in set(names) if names.count(name) > 1]
        raise InputError(f"classes: expected each name once, found {f'{twice[0]!r} twice' if twice else 'none'}")
    return names


def sorted_names(values: Any) -> tuple[Any, ...]:
    """The texts among ``values``, or else the ints, each once, sorted."""
    column = as_list_or_array(values) if is_column(values) else [values[key] for key in values.keys()]  # noqa: SIM118
    found = set(_distinct_ints(column).tolist()) or {one for one in objects(column) if isinstance(one, str | int | np.integer)}
    texts = sorted(str(name) for name in found if isinstance(name, str))
    return tuple(texts) or tuple(sorted(map(int, found)))
