"""Finds the value of each id: in a mapping by key, in a column of pandas by its index, in a list or array by position."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from shmgen._samples.files import some_of
from shmgen._samples.ids import as_ints, column_as_array, first_outside, index_of, is_frame
from shmgen._samples.remedies import variants
from shmgen.errors import InputError

By = Literal["id", "position"]


def is_column(values: object) -> bool:
    """Whether ``values`` are a sequence of values: a list, an array, a column of a table."""
    if isinstance(values, str | bytes | Mapping) or callable(values):
        return False
    return isinstance(values, Sequence) or (hasattr(values, "__array__") and np.ndim(values) > 0)


def is_mapping(values: object) -> bool:
    return isinstance(values, Mapping) or (hasattr(values, "keys") and hasattr(values, "__getitem__") and not is_column(values))


def as_list_or_array(values: Any) -> Sequence[Any] | np.ndarray:
    """A column as a list or an array, without a copy where that is possible."""
    return column_as_array(values) if hasattr(values, "__array__") or isinstance(values, range) else values


class Lookup:
    """Finds the value of each id. A column goes ``by`` id or position; if that is None, ids and index decide."""

    def __init__(self, ids: Sequence[Any], field: str, by: By | None) -> None:
        self._ids = ids
        self._field = field
        self._by = by

    def aligned(self, values: Any) -> Sequence[Any] | np.ndarray:
        """A value for each id, in the order of the ids: a list or an array, possibly the one that was given, or a view of it."""
        if is_frame(values):
            remedy = "pass a column of it, as df['label'], or some as rows: df[['a', 'b']].to_numpy()"
            raise InputError(f"field {self._field!r}: expected a value for each id, found a {type(values).__name__}; {remedy}")
        if is_column(values):
            index = index_of(values)
            if index is None or self._by == "position" or (self._by is None and self._numbers_rows(index)):
                if index is not None and self._by is None:
                    self._check_rows(index)
                return self._of_column(as_list_or_array(values))
            return self._of_labelled(column_as_array(values), index.tolist())
        if is_mapping(values) and self._by != "position":
            return self._of_mapping(values)
        expected = "a mapping from id to value, a function of the id, or a list or array of values"
        if self._by == "position":
            expected = "a list or array of values, as by='position' asks for"
        raise InputError(f"field {self._field!r}: expected {expected}, found one of type {type(values).__name__}")

    def _of_mapping(self, values: Any, called: str = "keys", in_order: str = "") -> list[Any]:
        """The value of each id; an error calls what ids are looked up in ``called``, and may end in a remedy, ``in_order``."""
        if isinstance(values, Mapping) and isinstance(next(iter(values), None), os.PathLike):
            values = {os.fspath(key): value for key, value in values.items()}  # as paths among the ids are
        try:
            return list(map(values.__getitem__, self._ids))
        except LookupError:
            missing = [id for id in self._ids if not _has(values, id)]
            if not missing:
                raise  # from within the user's own mapping
            raise self._missing(missing, values, called, in_order) from None

    def _of_column(self, column: Sequence[Any] | np.ndarray) -> Sequence[Any] | np.ndarray:
        numbers = as_ints(self._ids)
        if self._by == "position" or (self._by is None and (numbers is None or _counts(numbers))):
            if len(column) == len(self._ids):
                return column
            expected = f"a value for each of the {len(self._ids):,} ids, found {len(column):,}"
            remedy = "pass as many, in the order of the ids, Values(values, by='id') where ids number them, or a mapping"
            raise InputError(f"field {self._field!r}: expected {expected}; {remedy}")
        if self._by is None:
            expected = "by='id' or by='position' beside a list or array, since ids are ints, but not 0, 1, 2 and so on"
            remedy = "pass Values(values, by='id') or Values(values, by='position')"
            raise InputError(f"field {self._field!r}: expected {expected}, found neither; {remedy}")
        outside = first_outside(self._ids, len(column))
        if numbers is None or outside is not None:
            expected = f"an int from 0 to {len(column) - 1:,}, since by='id' looks it up in {len(column):,} values"
            remedy = "pass more values, or a mapping from id to value"
            raise InputError(f"id {self._ids[outside or 0]!r}, field {self._field!r}: expected {expected}; {remedy}")
        if isinstance(column, np.ndarray):
            return column[_slice(numbers) if isinstance(numbers, range) else numbers.astype(np.int64)]
        return [column[number] for number in (numbers if isinstance(numbers, range) else numbers.tolist())]

    def _numbers_rows(self, index: Any) -> bool:
        """Whether an index only numbers rows: it has no name, and all ints from 0 on; or any ints, where ids are other texts."""
        if index.name is not None or getattr(index.dtype, "kind", "O") not in "iu":
            return False
        if as_ints(self._ids) is None and not str(self._ids[0]).isdigit():
            return True
        return np.array_equal(np.sort(np.asarray(index)), np.arange(len(index)))

    def _check_rows(self, index: Any) -> None:
        """Refuse a column whose rows are in another order than those of the column of ids."""
        of_ids = getattr(self._ids, "row_index", None)
        if of_ids is not None and not index.equals(of_ids):
            expected = f"rows in the order of the ids' rows, with index {some_of(of_ids)}, found {some_of(index)}"
            remedy = "pass values.loc[ids.index] to match them by index, or values.to_numpy() to go by position"
            raise InputError(f"field {self._field!r}: expected {expected}; {remedy}")

    def _of_labelled(self, column: np.ndarray, labels: list[Any]) -> np.ndarray:
        if labels == list(self._ids):
            return column
        places = {label: place for place, label in enumerate(labels)}
        in_order = ", or pass Values(values, by='position')" if len(column) == len(self._ids) else ""
        if len(places) < len(labels):
            twice = next(label for place, label in enumerate(labels) if places[label] != place)
            found = f"{twice!r} several times; drop duplicates{in_order}"
            raise InputError(f"field {self._field!r}: expected an index that has each id once, found {found}")
        return column[self._of_mapping(places, "labels of the index", in_order)]

    def _missing(self, ids: Sequence[Any], values: Any, called: str, in_order: str) -> InputError:
        """The error for ``ids`` that are no keys of ``values``."""
        text = f"id {ids[0]!r}, field {self._field!r}: expected a value for each of the {len(self._ids):,} ids, found none for "
        if len(ids) < len(self._ids):
            which = "this one" if len(ids) == 1 else f"{len(ids):,} of them, {some_of(ids)}"
            name = "labels" if self._field == "y" else self._field
            remedy = f"leave them out, as [id for id in ids if id in {name}] does, or give them values"
            return InputError(f"{text}{which}; {remedy}{in_order}")
        for other, how in variants(ids[0]):
            if _has(values, other):
                remedy = f"the {called} must be the ids: pass [{how} for id in ids] as ids{in_order}"
                return InputError(f"{text}any, but one for {other!r}; {remedy}")
        return InputError(f"{text}any among the {called}, {some_of(values.keys())}; these must be the ids{in_order}")


def _has(values: Any, id: object) -> bool:
    try:
        values[id]
    except LookupError:
        return False
    return True


def _counts(numbers: range | np.ndarray) -> bool:
    """Whether ids are 0, 1, 2 and so on: by id and by position are then the same."""
    count = len(numbers)
    return numbers == range(count) if isinstance(numbers, range) else bool((numbers == np.arange(count)).all())


def _slice(numbers: range) -> slice:
    return slice(numbers.start, numbers.stop if numbers.stop >= 0 else None, numbers.step)
