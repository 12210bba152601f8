"""What a batch is made of: which fields, from which sources, and how their arrays are nested when they are handed out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from shmgen._memory.layout import Arrays, Field
from shmgen._samples.ids import Subset, int_array, is_frame
from shmgen._samples.lookup import is_column, is_mapping
from shmgen._samples.sample_spec import ANY, are_numbers, dtype_of
from shmgen._sources.base import NO_CLASSES, Source
from shmgen._sources.function import Function
from shmgen._sources.source_field import Measure, SourceField
from shmgen._sources.values import Labels, Values
from shmgen.errors import FormatError, InputError

NAMES = {"inputs": "X", "targets": "y", "weights": "weights"}
"""What the only field of each role is called."""


class RowField(NamedTuple):
    """How the rows of a field come from its source.

    Attributes:
        key: of the field in the source; None if the source has only one.
        measure: what is measured of rows of that key, in place of these; None for the rows themselves.
        varies: whether samples may have other shapes than a row.
        pad_value: what fills the rest of a row where a sample is smaller.
    """

    key: Hashable | None
    measure: Measure | None
    varies: bool
    pad_value: float | None


class BatchSpec:
    """The fields of a batch.

    Args:
        inputs: a source, or a dict, tuple or list of sources.
        targets: likewise, or None for none.
        weights: likewise, or None for none.
        ids: of all samples. By them a mapping from id to value is distinguished from a dict of fields.
        is_sample: whether ``inputs``, where that is a source of a tuple, and there are no targets, are ``(inputs, targets)`` or
            ``(inputs, targets, weights)``.
        default_weights: where there are targets, and no weights.

    Attributes:
        sources: what fills each field, by the field's name, in the order of a batch's arrays; a source of several fields is there
            several times. They are copies, since a source may be given to several loaders. Where two fields have the same name,
            the role comes before it: ``targets.mask``.
        rows: how the rows of each field come from its source, by name; set by `bind`.
        has_one_input: whether there is a single input, which has no name of its own.
    """

    def __init__(
        self,
        inputs: Any,
        targets: Any,
        weights: Any,
        ids: Sequence[Any],
        *,
        is_sample: bool = False,
        default_weights: Source | None = None,
    ) -> None:
        self._ids = ids
        self._copies: dict[int, tuple[object, Source]] = {}
        self._found: list[tuple[str, str, SourceField]] = []
        given = {"inputs": inputs, "targets": targets, "weights": weights}
        if is_sample and targets is None and isinstance(nest := self._expanded("inputs", "X", inputs), tuple):
            given |= dict(zip(given, _roles(nest), strict=False))
        if given["targets"] is None and given["weights"] is not None:
            raise InputError("weights weigh the loss of targets, and there are none: give labels or targets too")
        if given["targets"] is not None and given["weights"] is None:
            given["weights"] = default_weights
        parts = {role: self._expanded(role, NAMES[role], part) for role, part in given.items() if part is not None}
        self.has_one_input = isinstance(parts["inputs"], SourceField)
        self._is_flat = all(isinstance(part, SourceField) for part in parts.values())
        self._parts = [self._add(role, NAMES[role], part) for role, part in parts.items()]
        count = Counter(name for _, name, _ in self._found)
        names = [name if count[name] == 1 else f"{role}.{name}" for role, name, _ in self._found]
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            raise InputError(f"expected another name for each field, found {twice[0]!r} twice; change one of the keys")
        self._fields = {name: field for name, (_, _, field) in zip(names, self._found, strict=True)}
        self._weights = {name for name, (role, _, _) in zip(names, self._found, strict=True) if role == "weights"}
        self.sources = {name: field.source for name, field in self._fields.items()}
        self.rows: dict[str, RowField] = {}

    def _add(self, role: str, name: str, part: Any) -> Callable[[Arrays], Any]:
        """Add the fields in ``part``, as `_expanded` gives it. Returns a function that picks their arrays out of a batch's, and
        nests them alike."""
        if isinstance(part, SourceField):
            position = len(self._found)
            self._found.append((role, name, part))
            return lambda arrays: arrays[position]
        is_mapping = isinstance(part, Mapping)
        named = [(str(key), part[key]) for key in part] if is_mapping else [(f"{name}[{n}]", one) for n, one in enumerate(part)]
        picks = [self._add(role, name, self._expanded(role, name, member)) for name, member in named]
        if is_mapping:
            return lambda arrays: {key: pick(arrays) for key, pick in zip(part, picks, strict=True)}
        return lambda arrays: tuple([pick(arrays) for pick in picks])

    def _expanded(self, role: str, name: str, part: Any) -> Any:
        """``part`` as a field, or as a dict or tuple of parts."""
        if not isinstance(part, SourceField) and _is_nest(part, self._ids):
            return part
        field = part if isinstance(part, SourceField) else SourceField(_as_source(part, name, weighs=role == "weights"))
        source = self._copy(field.source, part if callable(part) else field.source)
        field = replace(field, source=source)
        if field.key is not None or field.measure is not None:
            return field
        source.field_name = name
        source.find_fields(self._ids)
        if source.fields is None:
            return field
        fields = {key: source[key] for key in source.fields}
        return tuple(fields.values()) if all(isinstance(key, int) for key in fields) else fields

    def _copy(self, source: Source, given: object) -> Source:
        """A copy of ``source`` for this loader: the same for the same object that was given, since a sample is read once; but
        another each time where the main process fills the rows."""
        if source.in_main_process:
            return copy(source)
        if id(given) not in self._copies:
            made = copy(source)
            # What was given is kept, so that its id remains its own.
            self._copies[id(given)] = self._copies[id(made)] = given, made
        return self._copies[id(given)][1]

    def unflatten(self, arrays: Arrays) -> tuple[Any, ...]:
        """``(inputs,)``, ``(inputs, targets)`` or ``(inputs, targets, weights)``, each nested as it was given."""
        return arrays if self._is_flat else tuple([pick(arrays) for pick in self._parts])

    @property
    def weights(self) -> list[int]:
        """The positions, among the fields, of those that weigh samples."""
        return [position for position, (role, _, _) in enumerate(self._found) if role == "weights"]

    @property
    def classes(self) -> tuple[Any, ...] | dict[str, tuple[Any, ...]] | None:
        """Names of the target's classes, in the order of their numbers; by field, where there are several fields of classes."""
        found = {name: source.classes for name, source in self.sources.items() if source.classes is not None}
        return found["y"] if found.keys() == {"y"} else found or None

    @property
    def read_sources(self) -> list[Source]:
        """The sources that workers read from, each once."""
        return list({id(source): source for source in self.sources.values() if not source.in_main_process}.values())

    def measured(self, name: str) -> bool:
        """Whether a field says how much of another's rows is the sample's."""
        return self._fields[name].measure is not None

    def bind(self, transformed: Collection[str] = ()) -> tuple[Field, ...]:
        """Bind every source to the ids. Returns the arrays that a batch has.

        Args:
            transformed: the fields whose rows a transform may make of samples of other shapes.
        """
        first_names: dict[int, str] = {}
        for name, field in self._fields.items():
            source = field.source
            first_names.setdefault(id(source), name)
            if name in transformed or source.given.pad_value is not None:
                source.varies = True
        for name, source in self.sources.items():
            if first_names[id(source)] == name:
                source.field_name = name
                source.bind(self._ids)
        return tuple([self._bound(name, field, is_transformed=name in transformed) for name, field in self._fields.items()])

    def _bound(self, name: str, field: SourceField, *, is_transformed: bool) -> Field:
        source, given, measure = field.source, field.given, field.measure
        shape, dtype = self._kind(name, field)
        varies = source.varies
        if given == ANY:
            given = source.given
        else:
            try:
                row = given.row(shape, dtype, varies=is_transformed or given.pad_value is not None)
            except FormatError as error:
                raise InputError(f"field {name!r}: {error}") from None
            shape, dtype, varies = row.shape, row.numpy_dtype, row.varies or varies
        if measure is not None:
            if given.pad_value is None or given.dim is None:
                raise InputError(f"field {name!r}: expected the {measure} of a source that has a pad_value, found one without")
            measured = replace(field, measure=None)
            if measured not in self._fields.values():
                raise InputError(f"field {name!r}: expected the padded field, too, whose {measure} it is")
            shape = () if measure == "length" else shape[: len(given.dim)]
            dtype = np.dtype(np.int64 if measure == "length" else np.float32 if name in self._weights else np.bool_)
        if not are_numbers(dtype) or 0 in shape:
            raise InputError(f"field {name!r}: expected rows of numbers, found shape {shape} and dtype {dtype}")
        if measure is None:
            _check_padding(name, given.pad_value, dtype)
        self.rows[name] = RowField(field.key, measure, varies and measure is None, given.pad_value)
        return Field(name, shape, dtype)

    @staticmethod
    def _kind(name: str, field: SourceField) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
        """Shape and dtype of a field's rows, as its source says."""
        source, key = field.source, field.key
        if source.fields is None:
            if key is not None:
                raise InputError(
                    f"field {name!r}: expected a source of several fields, found {type(source).__name__} of one; "
                    f"leave [{key!r}] out"
                )
            return tuple(source.shape), dtype_of(source.dtype)
        if key not in source.fields:
            known = ", ".join(map(repr, source.fields))
            raise InputError(f"field {name!r}: expected one of {known}, which {type(source).__name__} has, found {key!r}")
        shape, dtype = source.fields[key]
        return tuple(shape), dtype_of(dtype)


def _roles(nest: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs, targets and weights of a source that is the whole sample."""
    if len(nest) not in (2, 3):
        raise InputError(f"source: expected an array, a dict, (x, y) or (x, y, weight) for each id, found a tuple of {len(nest)}")
    return nest


def _check_padding(name: str, pad_value: float | None, dtype: np.dtype[np.generic]) -> None:
    """Make sure that rows can hold what they are padded with."""
    if pad_value is None or dtype.kind not in "biu":
        return
    low, high = (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype.str).min), int(np.iinfo(dtype.str).max))
    if not low <= pad_value <= high or pad_value != int(pad_value):
        raise InputError(f"field {name!r}: expected a pad_value that {dtype} holds, found {pad_value}")


def target(labels: Any, n_classes: int | None, classes: Any, ids: Sequence[Any]) -> Any:
    """``labels`` as targets: values that must be ints, or whatever else targets may be.

    Raises:
        InputError: ``n_classes`` or ``classes`` are given, and the labels are no values.
    """
    if isinstance(labels, Source):
        return labels.with_classes(n_classes, classes)
    has_classes = n_classes is not None or classes is not None
    if isinstance(labels, SourceField):
        if has_classes:
            raise InputError(NO_CLASSES)
        return labels
    if _is_nest(labels, ids):
        if has_classes:
            raise InputError(NO_CLASSES)
        return labels
    if callable(labels) and not is_mapping(labels) and not has_classes:
        return labels
    return Labels(labels, n_classes=n_classes, classes=classes)


def _is_nest(part: Any, ids: Sequence[Any]) -> bool:
    """Whether ``part`` holds fields, not values."""
    if not isinstance(part, dict | list | tuple):
        return False
    members = part.values() if isinstance(part, dict) else part
    if any(isinstance(member, Source | SourceField) or callable(member) for member in members):
        return True
    return _holds_columns(part, ids) or any(_is_nest(member, ids) for member in members)


def _holds_columns(part: dict[Any, Any] | Sequence[Any], ids: Sequence[Any]) -> bool:
    """Whether ``part`` holds the values of several fields, each for all ids, and not a value for each id."""
    ids = ids.all if isinstance(ids, Subset) else ids
    # As many members as ids would be a value for each.
    if not 0 < len(part) < len(ids):
        return False
    members = list(part.values()) if isinstance(part, dict) else part
    if not all(is_column(member) or isinstance(member, Mapping) for member in members):
        return False
    if isinstance(part, dict):
        if not all(isinstance(key, str) for key in part):
            return False  # its keys are ids
        # No int is a text: then there is no need to look at all ids.
        if not isinstance(ids, range) and int_array(ids) is None and any(_has(part, id) for id in ids):
            return False
    return any(len(member) == len(ids) or (isinstance(member, Mapping) and _has(member, ids[0])) for member in members)


def _has(mapping: Mapping[Any, Any], id: object) -> bool:
    try:
        return id in mapping
    except TypeError:  # an id that can't be a key
        return False


def _as_source(part: Any, name: str, *, weighs: bool) -> Source:
    if isinstance(part, Source):
        return part
    if is_column(part) or is_mapping(part) or is_frame(part):
        return Values(part, dtype=np.float32 if weighs else None)
    if callable(part):
        return Function(part)
    raise InputError(
        f"field {name!r}: expected a source, a function, or a mapping or list from id to value, found {part!r}; "
        "of a folder of .npy files the source is Npy(folder)"
    )
