"""Which value belongs to which id: values are looked up by id, or by position in the list of ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice, repeat
from typing import Any, Literal

import numpy as np

from shmgen._samples.ids import as_array, as_ints, columns_of, elements, first_outside, index_of, is_frame
from shmgen._sources.base import function_error
from shmgen._worker.rng import own_random_state
from shmgen.errors import InputError

By = Literal["id", "position"]

COMPARED_BYTES = 1 << 20
"""How much of an array is compared at once."""

KEYS_SHOWN = 3


def is_column(values: object) -> bool:
    """Whether ``values`` are a sequence of values: a list, an array, a column of a table."""
    if isinstance(values, str | bytes | Mapping) or callable(values):
        return False
    return isinstance(values, Sequence) or (hasattr(values, "__array__") and np.ndim(values) > 0)


def is_mapping(values: object) -> bool:
    """Whether ``values`` are looked up by key, so that ids may be of any kind."""
    return isinstance(values, Mapping) or (hasattr(values, "keys") and hasattr(values, "__getitem__") and not is_column(values))


def all_of(values: Any) -> Iterator[Any]:
    """All values, also those of other ids."""
    if is_column(values):
        return objects(as_list_or_array(values))
    return iter(values.values()) if isinstance(values, Mapping) else (values[key] for key in values.keys())  # noqa: SIM118


def objects(values: Sequence[Any] | np.ndarray) -> Iterator[Any]:
    """Values as Python objects, made a few at a time."""
    return elements(values) if isinstance(values, np.ndarray) else iter(values)


def as_list_or_array(values: Any) -> Sequence[Any] | np.ndarray:
    """A column as a list or an array, whichever takes no further memory."""
    return as_array(values) if hasattr(values, "__array__") or isinstance(values, range) else values


class Lookup:
    """Finds the value of each id.

    Args:
        ids: of all samples.
        field: what errors call the values.
        by: how values without keys are looked up. None: in the way that is possible; it is an error if both are, and differ.
    """

    def __init__(self, ids: Sequence[Any], field: str, by: By | None) -> None:
        self._ids = ids
        self._field = field
        self._by = by

    def aligned(self, values: Any) -> Sequence[Any] | np.ndarray:
        """A value for each id, in the order of the ids: a list or an array, possibly the one that was given, or a view of it.

        Raises:
            InputError: an id has no value, or it is not clear which; or these are no values.
        """
        if is_frame(values):
            raise InputError(
                f"field {self._field!r}: expected a value for each id, found a {type(values).__name__}; pass a column of it, "
                f"{columns_of(values)}, or some as rows: df[[...]].to_numpy()"
            )
        if is_column(values):
            index = index_of(values)
            if index is not None:
                return self._of_labelled(as_array(values), index)
            return self._of_column(as_list_or_array(values))
        if self._by == "position":
            raise self._no_values("a list or array of values, as by='position' asks for", values)
        if is_mapping(values):
            return self._of_mapping(values)
        if callable(values):
            return list(self._of_function(values))
        raise self._no_values("a mapping from id to value, a function of the id, or a list or array of values", values)

    def _of_function(self, function: Callable[[Any], Any]) -> Iterator[Any]:
        with own_random_state():
            for id in self._ids:
                try:
                    yield function(id)
                except Exception as error:
                    raise function_error(id, f"values of field {self._field!r}", error) from error

    def _of_mapping(self, values: Any) -> list[Any]:
        try:
            return list(map(values.__getitem__, self._ids))
        except (LookupError, TypeError):
            pass
        for id in self._ids:
            try:
                values[id]
            except (LookupError, TypeError):
                raise self._missing(id, _near(id, values)) from None
        raise AssertionError("a mapping changed while its values were looked up")

    def _of_column(self, column: Sequence[Any] | np.ndarray) -> Sequence[Any] | np.ndarray:
        """From a list or an array, whose elements have nothing but a position."""
        numbers = as_ints(self._ids)
        if numbers is None and self._by == "id":
            id = next(id for id in self._ids if not isinstance(id, int))
            raise self._refused(
                id, "an int, which by='id' looks up in a list or array", repr(id), "pass a mapping from id to value"
            )
        if numbers is None or self._by == "position":
            return self._in_order(column)
        count = len(column)
        may_be_in_order = self._by is None and count == len(self._ids)
        outside = first_outside(self._ids, count)
        if outside is not None:
            remedy = "; pass Values(values, by='position') where they are in the order of the ids" if may_be_in_order else ""
            raise self._missing(self._ids[outside], f": there are {count:,}, of ids 0 to {count - 1:,}{remedy}")
        return self._if_unambiguous(column, numbers) if may_be_in_order else _picked(column, numbers)

    def _of_labelled(self, column: np.ndarray, index: Any) -> Sequence[Any] | np.ndarray:
        """From a column whose elements have labels, those of an index of pandas."""
        if self._by == "position":
            return self._in_order(column)
        may_be_in_order = self._by is None and len(column) == len(self._ids)
        are_ints = getattr(index.dtype, "kind", "O") in "iu"
        labels = np.asarray(index)
        numbers = as_ints(self._ids) if are_ints else None
        # No id is among the labels, or each has its own.
        if may_be_in_order and are_ints and (numbers is None or _are_equal(labels, numbers)):
            return column
        found, is_unique = _found_ints(labels, numbers) if _are_words(labels, numbers) else _found(labels, self._ids)
        missing = found < 0
        if missing.all() and self._by is None:
            return self._in_order(column, outside=self._ids[0])
        if may_be_in_order:
            # pandas numbers rows itself. An index that was made of ids has a name, or labels that are no ints.
            numbers_rows = are_ints and index.name is None
            has_no_ids = numbers_rows and (missing.any() or not is_unique)
            if has_no_ids or (not are_ints and labels.tolist() == list(self._ids)):
                return column
            if numbers_rows and (_is_every_number(index) or index.equals(getattr(self._ids, "rows", None))):
                return self._if_unambiguous(column, found)
        if missing.any():
            raise self._missing(self._ids[int(missing.argmax())], f" in the index{_among(labels[: KEYS_SHOWN + 1].tolist())}")
        if not is_unique:
            raise InputError(
                f"field {self._field!r}: expected an index that has each id once, found {_twice(labels)!r} several times; drop "
                "duplicates, or pass Values(values, by='position') where there is a value for each id in their order"
            )
        return _picked(column, found)

    def _in_order(self, column: Sequence[Any] | np.ndarray, outside: Any = None) -> Sequence[Any] | np.ndarray:
        """``column``, whose values are looked up by position; ``outside`` is an id for which there is none by id."""
        if len(column) == len(self._ids):
            return column
        more = "" if outside is None else f", and none for id {outside!r} where they are looked up by id"
        raise InputError(
            f"field {self._field!r}: expected a value for each of the {len(self._ids):,} ids, found {len(column):,}{more}; "
            "pass as many, in the order of the ids, or a mapping from id to value"
        )

    def _if_unambiguous(self, column: Sequence[Any] | np.ndarray, numbers: range | np.ndarray) -> Sequence[Any] | np.ndarray:
        """``column``, if its values by position are also those by id, which are at ``numbers``."""
        position = _first_difference(column, numbers)
        if position is None:
            return column
        by_id, in_order = _short(column[numbers[position]]), _short(column[position])
        raise self._refused(
            self._ids[position],
            "one meaning of values for int ids",
            f"two that differ: by id it has {by_id}, and by position, {position:,}, {in_order}",
            "say which: Values(values, by='id') or Values(values, by='position')",
        )

    def _no_values(self, expected: str, values: object) -> InputError:
        in_order = isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping | set | frozenset)
        return InputError(
            f"field {self._field!r}: expected {expected}, found {_short(values)} of type {type(values).__name__}"
            + ("; pass list(values)" if in_order else "")
        )

    def _missing(self, id: object, among: str) -> InputError:
        return InputError(
            f"id {id!r}, field {self._field!r}: expected a value, as for each of the {len(self._ids):,} ids, found none{among}"
        )

    def _refused(self, id: object, expected: str, found: str, remedy: str) -> InputError:
        return InputError(f"id {id!r}, field {self._field!r}: expected {expected}, found {found}; {remedy}")


def _picked(column: Sequence[Any] | np.ndarray, numbers: range | np.ndarray) -> Sequence[Any] | np.ndarray:
    """The elements of these numbers."""
    if isinstance(column, np.ndarray):
        return column[_slice(numbers) if isinstance(numbers, range) else numbers.astype(np.int64)]
    return [column[number] for number in (numbers if isinstance(numbers, range) else numbers.tolist())]


def _slice(numbers: range) -> slice:
    return slice(numbers.start, numbers.stop if numbers.stop >= 0 else None, numbers.step)


def _first_difference(column: Sequence[Any] | np.ndarray, numbers: range | np.ndarray) -> int | None:
    """The first position whose element is not the one of its number; None if there is none."""
    count = len(column)
    if numbers == range(count) if isinstance(numbers, range) else bool((numbers == np.arange(count)).all()):
        return None
    row_bytes = max(1, column.nbytes // count) if isinstance(column, np.ndarray) else 8
    for first in range(0, count, step := max(1, COMPARED_BYTES // row_bytes)):
        last = min(first + step, count)
        here, there = column[first:last], _picked(column, numbers[first:last])
        if not _all_equal(here, there):
            for position, (one, other) in enumerate(zip(here, there, strict=True), first):
                if not _equal(one, other):
                    return position
    return None


def _all_equal(some: Sequence[Any] | np.ndarray, others: Sequence[Any] | np.ndarray) -> bool:
    if isinstance(some, np.ndarray):
        return _equal(some, others)
    try:
        return list(some) == list(others)
    except ValueError:  # arrays among them
        return all(map(_equal, some, others))


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(np.array_equal(one, other, equal_nan=True))
    except TypeError:  # only numbers can be tested for NaN
        return bool(np.array_equal(one, other))


def _are_equal(labels: np.ndarray, numbers: range | np.ndarray) -> bool:
    """Whether labels, which are ints, are these numbers."""
    for first in range(0, len(labels), COMPARED_BYTES):
        some = numbers[first : first + COMPARED_BYTES]
        if not np.array_equal(labels[first : first + COMPARED_BYTES], np.array(some) if isinstance(some, range) else some):
            return False
    return True


def _are_words(labels: np.ndarray, numbers: range | np.ndarray | None) -> bool:
    """Whether all of these are ints that NumPy can compare without making floats of them."""
    if isinstance(numbers, range):
        return labels.dtype.kind == np.array([numbers[0], numbers[-1]]).dtype.kind == "i"
    return numbers is not None and labels.dtype.kind == numbers.dtype.kind and numbers.dtype.kind in "iu"


def _found_ints(labels: np.ndarray, numbers: Any) -> tuple[np.ndarray, bool]:
    """As `_found`, where labels and ids are ints."""
    if not labels.size:
        return np.full(len(numbers), -1), True
    order = np.argsort(labels, kind="stable")
    labels = labels[order]
    ids = np.arange(numbers.start, numbers.stop, numbers.step) if isinstance(numbers, range) else numbers
    at = np.searchsorted(labels, ids, side="right") - 1
    found = np.where((at >= 0) & (labels[at] == ids), order[at], -1)
    return found, not (labels[1:] == labels[:-1]).any()


def _found(labels: np.ndarray, ids: Sequence[Any]) -> tuple[np.ndarray, bool]:
    """The position of each id among ``labels``, the last of several, -1 where there is none; and whether all labels differ."""
    # pandas has such a table of its own, but keeps it as long as the index.
    position = dict(zip(labels.tolist(), range(len(labels)), strict=True))
    try:
        hash(ids[0])
    except TypeError:
        return np.full(len(ids), -1), len(position) == len(labels)
    return np.fromiter(map(position.get, ids, repeat(-1)), np.int64, len(ids)), len(position) == len(labels)


def _twice(labels: np.ndarray) -> Any:
    """A label that is there several times: the first that comes again later."""
    position = dict(zip(labels.tolist(), range(len(labels)), strict=True))
    return next(label for number, label in enumerate(labels.tolist()) if position[label] != number)


def _is_every_number(index: Any) -> bool:
    """Whether the labels of an index, which are all different, are the ints from 0 on, in any order."""
    return int(index.min()) == 0 and int(index.max()) == len(index) - 1


def _short(value: object) -> str:
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _near(id: object, values: Any) -> str:
    """Which keys a mapping has, where ``id`` is not among them."""
    from shmgen._samples.suggest import alternatives

    keys = values.keys()
    for other, how in alternatives(id):
        if other in keys:
            return f", but one for {other!r}: the keys must be the ids, as [{how} for id in ids] are"
    return _among(keys)


def _among(keys: Iterable[Any]) -> str:
    some = list(islice(keys, KEYS_SHOWN + 1))
    return f" among {', '.join(map(repr, some[:KEYS_SHOWN]))}{' and others' if some[KEYS_SHOWN:] else ''}" if some else ""
