"""Fields whose rows the main process has in memory: labels, tables, weights. They are checked before the first batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike

from shmgen._checks import check_int
from shmgen._samples.casting import unmasked
from shmgen._samples.checked_values import CheckedValues, Rows, check_number, names_of, sorted_names
from shmgen._samples.ids import kept
from shmgen._samples.lookup import By, Lookup, is_mapping
from shmgen._samples.sample_spec import check_dtype
from shmgen._sources.base import BuiltinSource, Reader, function_error
from shmgen._worker.rng import own_random_state
from shmgen.errors import FormatError, InputError


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
        by: whether a list, array or column goes by ``"id"``, as ``values[id]`` or by a column's index, or by ``"position"``.

    Which value belongs to which id is a rule that never looks at the values. A mapping goes by key. A list or array goes by
    position: it has a value for each id, in their order. Where ids are ints, but not 0, 1, 2 and so on, it could go by id as
    well, and ``by`` has to say which. A pandas column goes by the labels of its index. Where these only number rows, it goes
    as a list does: where they have no name, and are the ints from 0 on in any order, or any ints beside ids that are texts, but
    not digits.

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
        try:
            unmasked(self._values)
        except FormatError as error:
            raise InputError(f"field {field!r}: {error}") from None
        column = self.aligned(ids, field)
        checked = CheckedValues(ids, column, field, may_be_nan=self._may_be_nan and self._given_dtype is not None)
        classes = self.classes
        if self._sorts_classes and (classes := sorted_names(column if callable(self._values) else self._values)):
            check_number(classes, self._n_classes)
        rows, dtype = self._checked_rows(checked, classes)
        is_one_hot = self._n_classes is not None and rows.ndim == 1
        dtype = np.dtype(self._given_dtype or np.float32) if is_one_hot else dtype
        return ValuesReader(rows, dtype, classes, self._n_classes if is_one_hot else None)

    def aligned(self, ids: Sequence[Any], field: str) -> Sequence[Any] | np.ndarray:
        """A value for each id, as it was given, in the order of the ids."""
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

    def _checked_rows(self, checked: CheckedValues, classes: tuple[Any, ...] | None) -> Rows:
        """A row for each id; the number of its class where rows are to be one-hot."""
        dtype, n_classes = self._given_dtype, self._n_classes
        if classes is not None:
            return checked.positions_in(classes, None if n_classes is not None else dtype)
        if n_classes not in (None, 1) and _is_column_of_ints(together := checked.together):
            checked = CheckedValues(checked.ids, together[:, 0], checked.field)
        has_rows = checked.together.ndim > 1
        if n_classes is None:
            # A label that is no row must be an int. In rows any numbers are what the user meant.
            return checked.rows(np.dtype(np.int64) if self._must_be_ints and not has_rows else dtype)
        if not has_rows:
            return checked.whole(0, n_classes - 1, f"; with n_classes={n_classes} they are counted from 0")
        rows, dtype = checked.rows(dtype or np.dtype(np.float32))
        if rows.shape[1:] != (n_classes,):
            expected = f"ints, or rows of n_classes={n_classes} numbers"
            raise InputError(f"field {checked.field!r}: expected {expected}, found rows of shape {rows.shape[1:]}")
        return rows, dtype

    def with_classes(self, n_classes: int | None, classes: Iterable[Any] | str | None) -> Values:
        """A copy with these classes, as far as they are given; an InputError if the values have others of their own."""
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
        self.classes = None if classes is None or self._sorts_classes else names_of(classes)
        if self.classes is not None:
            check_number(self.classes, n_classes)


class Weights(Values):
    """Values that weigh the loss: numbers, since one that is NaN would make the whole loss NaN."""

    _may_be_nan = False


class Labels(Values):
    """Values that are ints, so that no label is rounded or lost unnoticed. Rows, one-hot ones for example, may be any numbers."""

    _must_be_ints = True


class ValuesReader(Reader):
    """Fills rows from an array in the main process, which has a row for each id; or the number of its class, for one-hot rows."""

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
        if self._is_one_hot:
            rows[...] = 0
            rows[np.arange(len(keys)), self._rows[keys]] = 1
        elif self._rows.dtype == rows.dtype:
            self._rows.take(keys, axis=0, out=rows, mode="clip")  # no number is out of bounds; "raise" would copy first
        else:
            rows[...] = self._rows[keys]

    def all_rows(self) -> np.ndarray:
        rows = np.empty((len(self._rows), *self.shape), self.dtype)
        self.fill(np.arange(len(rows)), rows, None)
        return rows


class Ones(BuiltinSource):
    """Weighs every sample 1: samples that were given no weight, where others weigh 0."""

    def bind(self, ids: Sequence[Any], *, field: str = "X", varies: bool = False) -> Reader:
        return ValuesReader(np.broadcast_to(np.uint8(1), len(ids)), np.dtype(np.float32))


def numbers_of(given: Any, ids: Sequence[Any], name: str) -> np.ndarray:
    """A number from 0 for each id, as float64; not all are 0. They are looked up as `Values` are; errors call them ``name``."""
    values = given if isinstance(given, Values) else Values(given, dtype=np.float64)
    reader = values.bind(ids, field=name)
    if reader.shape:
        raise InputError(f"{name}: expected a number for each id, found rows of shape {reader.shape}")
    numbers = reader.all_rows().astype(np.float64)
    wrong = ~((numbers >= 0) & np.isfinite(numbers))
    if wrong.any():
        position = int(wrong.argmax())
        raise InputError(f"id {ids[position]!r}, {name}: expected a finite number from 0, found {numbers[position]}")
    if not numbers.any():
        raise InputError(f"{name}: expected some above 0, found none")
    return numbers


def _is_column_of_ints(values: np.ndarray) -> bool:
    """Whether values are ints of shape ``(n, 1)``, as ``keras.datasets`` has labels."""
    return values.ndim == 2 and values.shape[1] == 1 and values.dtype.kind in "biu"


def class_weights(
    ids: Iterable[Any],
    labels: Mapping[Any, Any] | Iterable[Any] | Callable[[Any], Any],
    *,
    classes: Iterable[Any] | Literal["sorted"] | None = None,
) -> dict[int, float]:
    """Weights with which each class counts the same: for ``fit(..., class_weight=class_weights(ids, labels))``.

    A class has the weight ``len(ids) / (classes * its ids)``, as scikit-learn's ``"balanced"``; their mean over all ids is 1.

    Args:
        ids: of the samples to train on.
        labels: an int for each id, or a one-hot row, or a name of ``classes``, as a loader takes them.
        classes: the names of classes, as a loader takes them.

    Returns:
        The weight of each class that has ids, by the class's number.

    Raises:
        InputError: an id has no label, or one that is no int and none of ``classes``.

    Examples:
        >>> class_weights(["a", "b", "c", "d"], ["cat", "cat", "cat", "dog"], classes="sorted")
        {0: 0.6666666666666666, 1: 2.0}
    """
    every = kept(ids)
    if not every:
        raise InputError("ids: expected at least one, found none; pass those of the samples to train on")
    values = labels if isinstance(labels, Values) else Labels(labels)
    reader = values.with_classes(None, classes).bind(every, field="labels")
    numbers = reader.all_rows()
    if _is_column_of_ints(numbers):
        numbers = numbers[:, 0]
    if numbers.ndim == 2 and ((numbers == 0) | (numbers == 1)).all() and (numbers.sum(axis=1) == 1).all():
        numbers = numbers.argmax(axis=1)
    if numbers.ndim > 1 or numbers.dtype.kind not in "biu":
        raise InputError(f"labels: expected ints, or one-hot rows, found rows of shape {reader.shape} and dtype {reader.dtype}")
    counts = Counter(numbers.tolist())
    return {number: len(every) / (len(counts) * count) for number, count in sorted(counts.items())}
