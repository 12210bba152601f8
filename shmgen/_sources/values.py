"""Fields whose rows the main process has in memory: labels, tables, weights. They are checked before the first batch."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from typing import Any, Literal, NoReturn, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from shmgen._checks import check_int
from shmgen._samples.lookup import By, Lookup, all_of, as_list_or_array, is_column, is_mapping, objects
from shmgen._samples.sample_spec import LOSSY_CAST, can_cast, check_dtype
from shmgen._sources.base import BuiltinSource, Reader, function_error
from shmgen._worker.rng import own_random_state
from shmgen.errors import InputError

NAMES_SHOWN = 20

NAN_REMEDY = (
    "; leave such ids out; or, of targets, pass Values(..., dtype='float32') where it is meant, as by a loss that masks it"
)

BLOCK = 1 << 16
"""Numbers that are checked at once."""


class Values(BuiltinSource):
    """A value for each id: an int, a float, the name of a class, or an array of one shape for all.

    Args:
        values: a mapping from id to value; or a list, an array, or a column of pandas, polars and the like; or a function of the
            id, which is called once for each id, in the main process.
        dtype: of a row. Where left out, int64 if all values are whole numbers, else float32. A value may be NaN where a dtype of
            floats is given.
        n_classes: values are ints from 0 to ``n_classes - 1`` and become one-hot float32 rows; or they are such rows already.
        classes: values are names of classes, texts or ints, and become their positions in this list. ``"sorted"``: the list is
            that of all names in ``values``, also those of other ids, in sorted order. So training and validation have the same
            classes if both are given the same mapping; else give both the same list.
        by: whether a list, array or column goes by ``"id"`` or by ``"position"``. By id, a list or array goes as ``values[id]``,
            a pandas column by its index.

    Which value belongs to which id is a rule that never looks at the values. A mapping goes by key. A list or array goes by
    position: it has a value for each id, in their order. Where ids are ints, but not 0, 1, 2 and so on, it could go by id as
    well, and ``by`` has to say which. A pandas column goes by the labels of its index. Where these only number rows, as pandas
    does by itself, the column is taken as a list is: they have no name, and are the ints from 0 on, in any order, or any ints
    beside ids that are texts.

    Attributes:
        classes: the names of classes in the order of their numbers; None where there are none, or they are to be ``"sorted"``.

    Examples:
        >>> ages = {id: 20.5 + number for number, id in enumerate(ids)}
        >>> loader = Loader(ids, inputs=Npy("data"), targets=Values(ages), batch_size=4, shuffle=False)
        >>> X, y = loader.batch(0)
        >>> y
        array([20.5, 21.5, 22.5, 23.5], dtype=float32)
    """

    _must_be_ints = False
    _may_be_nan = True

    def __init__(
        self,
        values: Mapping[Any, Any] | Iterable[Any] | Callable[[Any], Any],
        dtype: DTypeLike | None = None,
        n_classes: int | None = None,
        *,
        classes: Iterable[Any] | Literal["sorted"] | None = None,
        by: By | None = None,
    ) -> None:
        if by not in (None, "id", "position"):
            raise InputError(f"by: expected 'id' or 'position', found {by!r}")
        self._values = values
        self._by = by
        self._given_dtype = check_dtype(dtype)
        self._set_classes(None if n_classes is None else check_int(n_classes, "n_classes", 1), classes)

    def bind(self, ids: Sequence[Any], *, field: str = "X", varies: bool = False) -> ValuesReader:
        """Take the values of ``ids``.

        Raises:
            InputError: an id has no value, or one that is NaN, would be truncated, is outside the classes, or has another shape;
                or it is not clear which value belongs to which id.
            FunctionError: a function failed.
        """
        column = self.aligned(ids, field)
        checked = _Checked(ids, column, field, may_be_nan=self._may_be_nan and self._given_dtype is not None)
        classes = self.classes
        if self._sorts_classes:
            classes = _sorted_names(column if callable(self._values) else self._values) or checked.refuse_names()
            _check_number(classes, self._n_classes)
        rows, dtype = self._checked_rows(checked, classes)
        is_one_hot = self._n_classes is not None and rows.ndim == 1
        dtype = np.dtype(self._given_dtype or np.float32) if is_one_hot else dtype
        return ValuesReader(rows, dtype, classes, self._n_classes if is_one_hot else None)

    def aligned(self, ids: Sequence[Any], field: str) -> Sequence[Any] | np.ndarray:
        """A value for each id, as it was given, in the order of the ids.

        Raises:
            InputError: an id has no value, or it is not clear which.
            FunctionError: a function failed.
        """
        function = self._values
        if not callable(function) or is_mapping(function):
            return Lookup(ids, field, self._by).aligned(function)
        found = []
        with own_random_state():
            for id in ids:
                try:
                    found.append(function(id))
                except Exception as error:
                    raise function_error(id, f"values of field {field!r}", error) from error
        return found

    def _checked_rows(self, checked: _Checked, classes: tuple[Any, ...] | None) -> _Rows:
        """A row for each id; the number of its class where rows are to be one-hot."""
        dtype, n_classes = self._given_dtype, self._n_classes
        if classes is not None:
            return checked.positions_in(classes, None if n_classes is not None else dtype)
        has_rows = checked.axes > 1
        if n_classes is None:
            # A label that is no row must be an int. In rows any numbers are what the user meant.
            return checked.rows(np.dtype(np.int64) if self._must_be_ints and not has_rows else dtype)
        if not has_rows:
            return checked.whole(0, n_classes - 1, f"; with n_classes={n_classes} they are counted from 0")
        rows, dtype = checked.rows(dtype or np.dtype(np.float32))
        if rows.shape[1:] != (n_classes,):
            raise checked.refused(f"ints, or rows of n_classes={n_classes} numbers", f"rows of shape {rows.shape[1:]}")
        return rows, dtype

    def with_classes(self, n_classes: int | None, classes: Iterable[Any] | str | None) -> Values:
        """The values as labels of these classes, as far as they are not None.

        Raises:
            InputError: they have others of their own.
        """
        if n_classes is not None and self._n_classes not in (None, n_classes):
            raise InputError(f"n_classes: expected {self._n_classes}, as the Values given as labels say, found {n_classes}")
        own_classes = "sorted" if self._sorts_classes else self.classes
        if classes is not None and own_classes is not None:
            raise InputError("classes: the Values given as labels have classes of their own; leave out one of the two")
        other = copy(self)
        other._set_classes(n_classes or self._n_classes, own_classes if classes is None else classes)
        return other

    def _set_classes(self, n_classes: int | None, classes: Iterable[Any] | str | None) -> None:
        self._n_classes = n_classes
        self._sorts_classes = isinstance(classes, str) and classes == "sorted"
        self.classes = None if classes is None or self._sorts_classes else _names(classes)
        if self.classes is not None:
            _check_number(self.classes, n_classes)


class Weights(Values):
    """Values that weigh the loss, as float32: numbers, since one that is NaN would make the whole loss NaN."""

    _may_be_nan = False

    def __init__(self, values: Any) -> None:
        super().__init__(values, np.float32)


class Labels(Values):
    """Values that are ints, so that no label is rounded or lost unnoticed. Rows, one-hot ones for example, may be any numbers."""

    _must_be_ints = True


class ValuesReader(Reader):
    """Fills rows from an array in the main process.

    Args:
        rows: one for each id; or the number of its class.
        dtype: that rows are to have.
        classes: names of classes, in the order of their numbers.
        n_classes: where rows are one-hot: how many numbers they have.
    """

    in_main_process = True  # workers hold no list of labels

    def __init__(
        self, rows: np.ndarray, dtype: np.dtype[Any], classes: tuple[Any, ...] | None = None, n_classes: int | None = None
    ) -> None:
        self.shape = rows.shape[1:] if n_classes is None else (n_classes,)
        self.dtype: np.dtype[Any] = dtype
        self.classes = classes
        self._rows = rows
        self._is_one_hot = n_classes is not None

    def fill(self, keys: np.ndarray, rows: np.ndarray, begun: Any, *, io_waits: bool = False) -> None:
        """Write the values of the samples ``keys``, positions in the list of ids, into ``rows``."""
        if self._is_one_hot:
            rows[...] = 0
            rows[np.arange(len(keys)), self._rows[keys]] = 1
        elif self._rows.dtype == rows.dtype:
            self._rows.take(keys, axis=0, out=rows, mode="clip")  # none is out of bounds, and "raise" would copy
        else:
            rows[...] = self._rows[keys]


class Ones(BuiltinSource):
    """Weighs every sample 1: samples that were given no weight, where others weigh 0."""

    def bind(self, ids: Sequence[Any], *, field: str = "X", varies: bool = False) -> Reader:
        return _OnesReader()


class _OnesReader(Reader):
    shape, dtype = (), "float32"
    in_main_process = True

    def fill(self, keys: np.ndarray, rows: np.ndarray, begun: Any, *, io_waits: bool = False) -> None:
        rows[...] = 1


_Rows: TypeAlias = "tuple[np.ndarray, np.dtype[Any]]"
"""A row for each id, and the dtype that rows are to have. They may be kept in the smaller one that their values came in."""


class _Checked:
    """The values of all ids. Each is checked before it is made a row.

    Attributes:
        axes: how many axes the values have as one array, that of the ids included; 0 if their shapes differ.
    """

    def __init__(self, ids: Sequence[Any], column: Sequence[Any] | np.ndarray, field: str, *, may_be_nan: bool = False) -> None:
        self._ids = ids
        self._may_be_nan = may_be_nan
        self._column = column
        self._field = field
        self._array: np.ndarray | None = None

    @property
    def axes(self) -> int:
        return self._together.ndim

    @property
    def _together(self) -> np.ndarray:
        if self._array is None:
            self._array = _together(self._column)
        return self._array

    def whole(self, lowest: int, highest: int, remedy: str = "") -> _Rows:
        """The values as an array of ints, where all are whole numbers within these bounds."""
        together, dtype = self._together, np.dtype(_ints(highest))
        are_ints = together.ndim == 1 and together.dtype.kind in "biu"
        if are_ints and lowest <= int(together.min()) and int(together.max()) <= highest:
            return _kept(together, dtype), dtype
        if together.ndim == 1 and together.dtype.kind == "f" and (missing := np.isnan(together)).any():
            raise self._missing(int(missing.argmax()))
        found = []
        for id, value in zip(self._ids, objects(self._column), strict=True):
            try:
                number = int(value) if isinstance(value, np.bool_) else operator.index(value)
            except TypeError:
                raise self._refused(id, "an int", f"{value!r} of type {type(value).__name__}{_remedy(value)}") from None
            if not lowest <= number <= highest:
                raise self._refused(id, f"an int from {lowest} to {highest}", f"{number}{remedy}")
            found.append(number)
        return np.array(found, dtype), dtype

    def rows(self, given: np.dtype[Any] | None) -> _Rows:
        """The values as one array, a row each, of dtype ``given``, or of the one that they call for."""
        together = self._together
        if given is None:
            # Ints too large for int64 come out as floats.
            are_whole = together.dtype.kind in "biu" or all(isinstance(value, int) for value in objects(self._column))
            given = np.dtype(np.int64) if are_whole else np.dtype(np.float32)
        if together.dtype.kind == "O" and given.kind not in "biu" and all(isinstance(value, int) for value in together.flat):
            together = together.astype(given)  # ints beyond NumPy's own
        with np.errstate(over="ignore", invalid="ignore"):
            if together.dtype.kind in "biufc" and can_cast(together.dtype, given):
                rows = _kept(together, given)
                if not any(self._lost(some, some.astype(given)).any() for some in _blocks(together)):
                    return rows, given
            return self._one_by_one(given), given

    def _one_by_one(self, dtype: np.dtype[Any]) -> np.ndarray:
        """As `rows`, for one value after the other; says which is wrong."""
        if dtype.kind in "iu" and np.ndim(next(objects(self._column))) == 0:
            bounds = np.iinfo(dtype)
            lowest, highest = int(bounds.min), int(bounds.max)
            return self.whole(lowest, highest, "; pass Values(..., dtype=...) with one that holds it")[0].astype(dtype)
        rows: list[np.ndarray] = []
        for id, value in zip(self._ids, objects(self._column), strict=True):
            try:
                array = np.asarray(value)
            except ValueError:  # lists of several lengths
                raise self._refused(id, "an array", repr(value)) from None
            if rows and array.shape != rows[0].shape:
                raise self._refused(id, f"shape {rows[0].shape}, as the first has", str(array.shape))
            if not can_cast(array.dtype, dtype):
                wider = f"; pass Values(..., dtype={array.dtype.name!r})" if array.dtype.kind in "biufc" else _remedy(value)
                raise self._refused(id, f"dtype {dtype}", f"{value!r} of dtype {array.dtype}, {LOSSY_CAST}{wider}")
            rows.append(array.astype(dtype))
            if self._lost(array, rows[-1]).any():
                if np.isnan(array).any():
                    raise self._refused(id, "a number", f"{value!r}{NAN_REMEDY}")
                wider = f"; pass Values(..., dtype={array.dtype.name!r})"
                raise self._refused(id, f"a number that {dtype} holds", f"{value!r}{wider}")
        return np.stack(rows)

    def _lost(self, values: np.ndarray, cast: np.ndarray) -> np.ndarray:
        """Where ``cast`` has lost more than precision of ``values``, or is NaN and must not be."""
        lost: np.ndarray = cast != values
        if cast.dtype.kind not in "biu":  # those of ml_dtypes are of no kind of their own
            lost = np.isinf(cast) & ~np.isinf(values)
            if not self._may_be_nan:
                lost |= np.isnan(cast)
        return lost

    def positions_in(self, names: tuple[Any, ...], dtype: np.dtype[Any] | None) -> _Rows:
        """The values, which are among ``names``, as their positions there, of ``dtype``, or of int64."""
        position = {name: number for number, name in enumerate(names)}
        rows = np.empty(len(self._ids), np.min_scalar_type(len(names)))
        first = 0
        try:
            for some in _blocks(self._column):
                rows[first : first + len(some)] = _positions(some, position)
                first += len(some)
        except (KeyError, TypeError):
            pass
        else:
            return _Checked(self._ids, rows, self._field).rows(dtype or np.dtype(np.int64))
        for id, value in zip(self._ids, objects(self._column), strict=True):
            try:
                position[value]
            except (KeyError, TypeError):
                found = f"{value!r}{_class_remedy(value, names)}"
                raise self._refused(id, f"one of the classes {_shown(names)}", found) from None
        raise AssertionError("values changed while they were checked")

    def refuse_names(self) -> NoReturn:
        """Raise the error that the values are no names."""
        id, value = self._ids[0], next(objects(self._column))
        raise self._refused(id, "the name of a class, a text or an int", f"{value!r} of type {type(value).__name__}")

    def refused(self, expected: str, found: str) -> InputError:
        """That the values together are not what is expected."""
        return InputError(f"field {self._field!r}: expected {expected}, found {found}")

    def _missing(self, position: int) -> InputError:
        return self._refused(self._ids[position], "an int", f"nan: its value is missing{_remedy(math.nan)}")

    def _refused(self, id: object, expected: str, found: str) -> InputError:
        return InputError(f"id {id!r}, field {self._field!r}: expected {expected}, found {found}")


def _together(column: Sequence[Any] | np.ndarray) -> np.ndarray:
    """A column as one array; an array without axes, of dtype object, if the shapes of its values differ."""
    try:
        if not isinstance(column, np.ndarray):
            return np.asarray(column)
        return column if column.dtype.kind != "O" else np.asarray(column.tolist())
    except ValueError:
        return np.asarray(None)


def _kept(rows: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """A copy of ``rows``, as ``dtype`` unless they take less memory as they are."""
    return rows.astype(dtype if rows.dtype.itemsize >= dtype.itemsize or rows.dtype.kind == "b" else rows.dtype)


def _blocks(column: Sequence[Any] | np.ndarray) -> Iterator[Any]:
    """Some values after the other, so that what is made of them takes little memory."""
    step = max(1, BLOCK // max(1, column[:1].size)) if isinstance(column, np.ndarray) else BLOCK
    for first in range(0, len(column), step):
        yield column[first : first + step]


def _positions(values: Sequence[Any] | np.ndarray, position: dict[Any, int]) -> np.ndarray:
    """The positions of values.

    Raises:
        KeyError: one has none.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        distinct, at = np.unique(values, return_inverse=True)
        return np.array([position[value] for value in distinct.tolist()])[at.reshape(-1)]
    return np.fromiter(map(position.__getitem__, objects(values)), np.int64, len(values))


def _ints(highest: int) -> type[np.signedinteger[Any] | np.unsignedinteger[Any]]:
    return np.int64 if highest < 1 << 63 else np.uint64


def _remedy(value: object) -> str:
    """What to do about a value that is no int."""
    if isinstance(value, str | bytes):
        return "; where these are names of classes, pass classes=[...], all of them in order, or classes='sorted'"
    if isinstance(value, float | np.floating):
        if math.isnan(value):
            return "; leave such ids out, or give them a value"
        return "; if it is meant, pass Values(..., dtype='float32'), and no n_classes"
    return ""


def _check_number(classes: tuple[Any, ...], n_classes: int | None) -> None:
    if n_classes not in (None, len(classes)):
        raise InputError(f"n_classes: expected {len(classes)}, the number of classes, found {n_classes}; leave it as None")


def _names(classes: Any) -> tuple[Any, ...]:
    """The names of classes, each once."""
    if isinstance(classes, Mapping):
        raise InputError("classes: expected a list of names in order, found a mapping; pass sorted(classes, key=classes.get)")
    if isinstance(classes, str | bytes | set | frozenset) or not isinstance(classes, Iterable):
        remedy = "; pass sorted(classes)" if isinstance(classes, set | frozenset) else ""
        raise InputError(f"classes: expected a list of names in order, or 'sorted', found {classes!r}{remedy}")
    names = tuple(name.item() if isinstance(name, np.generic) else name for name in classes)
    if wrong := [name for name in names if not isinstance(name, str | int)]:
        raise InputError(f"classes: expected names, texts or ints, found {wrong[0]!r}")
    if not names or len(set(names)) < len(names):
        twice = [name for name in set(names) if names.count(name) > 1]
        raise InputError(f"classes: expected each name once, found {f'{twice[0]!r} twice' if twice else 'none'}")
    return names


def _sorted_names(values: Any) -> tuple[Any, ...]:
    """The texts among ``values``, or else the ints, each once, sorted."""
    column = as_list_or_array(values) if is_column(values) else None
    try:
        if isinstance(column, np.ndarray) and column.dtype.kind in "iu" and column.ndim == 1:
            found = {name for some in _blocks(column) for name in _distinct(some)}
        else:
            found = set(all_of(values))
    except TypeError:  # one that is no name
        return ()
    texts = sorted(str(name) for name in found if isinstance(name, str))
    return tuple(texts) or tuple(sorted(int(name) for name in found if isinstance(name, int | np.integer)))


def _distinct(values: np.ndarray) -> list[Any]:
    ordered = np.sort(values)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])].tolist()  # type: ignore[no-any-return]


def _shown(names: tuple[Any, ...]) -> str:
    more = f" and {len(names) - NAMES_SHOWN:,} others" if len(names) > NAMES_SHOWN else ""
    return ", ".join(map(repr, names[:NAMES_SHOWN])) + more


def _class_remedy(value: object, names: tuple[Any, ...]) -> str:
    """What to do about a value that is none of the classes."""
    if isinstance(value, int | np.integer) and 0 <= value < len(names):
        return "; leave classes out where values are the numbers of classes already"
    if isinstance(value, str):
        return "; add it to the classes, in the same order for training and validation, or pass classes='sorted'"
    return "; leave such ids out, or give them one" if value is None or isinstance(value, float) else ""
