"""What a batch is made of: which fields, from which sources, and how their arrays are nested when they are handed out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from typing import Any

import numpy as np

from shmgen._memory.layout import BatchArrays
from shmgen._samples.casting import holds
from shmgen._samples.ids import as_ints, is_frame
from shmgen._samples.lookup import is_column, is_mapping
from shmgen._samples.sample_spec import ANY, NO_NUMBERS, SampleSpec, are_numbers, dtype_of, dtype_text
from shmgen._sources.base import BuiltinSource, Reader, Source, SourceField
from shmgen._sources.fields import FieldSpec, OneHotKey, OneHotReader
from shmgen._sources.function import Function
from shmgen._sources.values import Labels, Values, Weights
from shmgen.errors import FormatError, InputError, SampleError

NAMES = {"inputs": "X", "targets": "y", "weights": "weights"}
"""What the only field of each role is called."""

FIRST_TRIED = 8
"""How many samples are tried, where damaged ones are no error, until one tells shape and dtype."""


class BatchSpec:
    """The fields of a batch: ``inputs``, ``targets`` and ``weights``, each a source, or a dict, tuple or list of sources.

    If ``is_sample``, inputs may be a source of a tuple of fields that is the whole sample: ``(inputs, targets[, weights])``.
    ``n_classes`` then makes one-hot rows of the targets' ints. If it ``skips_damaged``, the first sample that can be read tells
    shapes and dtypes.
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
        n_classes: int | None = None,
        trims: bool = False,
        skips_damaged: bool = False,
    ) -> None:
        self._ids = ids
        self._trims = trims
        self._skips_damaged = skips_damaged
        # What is cut: the positions of fields, and of the lengths of their samples.
        self._trimmed: list[tuple[int, int]] = []
        # By `id()` of what was given. The values hold that, so no other object gets the same `id()`.
        self._functions: dict[int, Function] = {}
        self._readers: dict[int, tuple[Source, Reader]] = {}
        self._found: list[tuple[str, str, SourceField]] = []
        given = {"inputs": inputs, "targets": targets, "weights": weights}
        if is_sample and isinstance(nest := self._expanded("inputs", "X", inputs), tuple):
            if targets is not None:
                found = f"a tuple of {len(nest)}, which is (x, y) or (x, y, weight)"
                remedy = "leave the labels out, or return a dict of inputs"
                raise InputError(f"source: expected an array or a dict, as there are labels or targets, found {found}; {remedy}")
            if len(nest) not in (2, 3):
                expected = "an array, a dict, (x, y) or (x, y, weight) for each id"
                raise InputError(f"source: expected {expected}, found a tuple of {len(nest)}")
            given |= dict(zip(given, nest, strict=False))
            if n_classes is not None:
                given["targets"] = given["targets"].one_hot(n_classes)
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
        self.names = tuple(names)

    def _add(self, role: str, name: str, part: Any) -> Callable[[BatchArrays], Any]:
        """Add the fields in ``part``. Returns a function that picks their arrays out of a batch's, and nests them alike."""
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
        if not isinstance(part, SourceField) and _is_nest(part, self._ids):
            return part
        field = part if isinstance(part, SourceField) else SourceField(self._source(part, name, weighs=role == "weights"))
        source = field.source
        is_chosen = field.key is not None or field.measure is not None or field.n_classes is not None
        if is_chosen or (isinstance(source, BuiltinSource) and not source.finds_fields):
            return field
        fields = self._bound(source, name).fields
        if fields is None:
            return field
        members = {key: SourceField(source, key) for key in fields}
        return tuple(members.values()) if all(isinstance(key, int) for key in members) else members

    def _source(self, part: Any, name: str, *, weighs: bool) -> Source:
        if isinstance(part, Source):
            return part
        if is_column(part) or is_mapping(part) or is_frame(part):
            return Weights(part, np.float32) if weighs else Values(part)
        if callable(part):
            # A function that is given twice is one source, so that a sample is read once.
            return self._functions.setdefault(id(part), Function(part))
        expected = "a source, such as Npy(folder), a function, or a mapping or list from id to value"
        raise InputError(f"field {name!r}: expected {expected}, found {part!r}")

    def _bound(self, source: Source, name: str, *, varies: bool = False) -> Reader:
        """The reader of a source: the same wherever the source is used, since a sample is read once."""
        if id(source) not in self._readers:
            self._readers[id(source)] = source, self._bind(source, name, varies)
        return self._readers[id(source)][1]

    def _bind(self, source: Source, name: str, varies: bool) -> Reader:
        if not isinstance(source, BuiltinSource):
            return copy(source).bind(self._ids)
        try:
            return source.bind(self._ids, field=name, varies=varies)
        except SampleError:
            if not self._skips_damaged or isinstance(source, Values):  # which needs the values of all
                raise
            for id in self._ids[1:FIRST_TRIED]:
                with suppress(SampleError):
                    return source.bind([id], field=name, varies=varies)
            raise

    def unflatten(self, arrays: BatchArrays) -> tuple[Any, ...]:
        """``(inputs,)``, ``(inputs, targets)`` or ``(inputs, targets, weights)``, each nested as it was given."""
        if self._trimmed:
            arrays = self._cut(arrays)
        return arrays if self._is_flat else tuple([pick(arrays) for pick in self._parts])

    def examples(self, arrays: BatchArrays) -> list[tuple[Any, ...]]:
        """A batch of these arrays, which have no rows; where batches are trimmed, a trimmed one as well."""
        whole = tuple([pick(arrays) for pick in self._parts])
        return [whole, self.unflatten(arrays)] if self._trimmed else [whole]

    def _cut(self, arrays: BatchArrays) -> BatchArrays:
        """The arrays that are handed out; each padded field is cut to the length of its longest sample."""
        cut = list(arrays[: len(self.names)])
        for position, lengths in self._trimmed:
            cut[position] = cut[position][:, : max(1, arrays[lengths].max(initial=0))]
        return tuple(cut)

    @property
    def weights(self) -> list[int]:
        """The positions, among the fields, of those that weigh samples."""
        return [position for position, (role, _, _) in enumerate(self._found) if role == "weights"]

    @property
    def classes(self) -> tuple[Any, ...] | dict[str, tuple[Any, ...]] | None:
        """Names of the target's classes, in the order of their numbers; by field, where there are several fields of classes."""
        found = {name: reader.classes for name, reader in self.readers.items() if reader.classes is not None}
        return found["y"] if found.keys() == {"y"} else found or None

    @property
    def readers(self) -> dict[str, Reader]:
        """What fills each field, by name; once the sources are bound. A reader of several fields is there several times."""
        return {name: self._readers[id(field.source)][1] for name, field in self._fields.items()}

    def measured(self, name: str) -> bool:
        """Whether a field is the length or the mask of another."""
        return self._fields[name].measure is not None

    def bind(self, transformed: Collection[str] = ()) -> list[FieldSpec]:
        """Bind every source; returns a batch's fields, in order. Samples of ``transformed`` ones may have other shapes."""
        varying = {id(field.source) for name, field in self._fields.items() if name in transformed and field.n_classes is None}
        for name, field in self._fields.items():
            is_padded = _given(field.source).pad_value is not None
            self._bound(field.source, name, varies=is_padded or id(field.source) in varying)
        self._add_one_hot()
        specs: dict[str, FieldSpec] = {}
        for name in sorted(self.names, key=self.measured):  # measures last, since they need what they measure
            specs[name] = self._spec(name, specs.values(), is_transformed=name in transformed)
        return [*(specs[name] for name in self.names), *(self._lengths(specs) if self._trims else ())]

    def _lengths(self, specs: Mapping[str, FieldSpec]) -> list[FieldSpec]:
        """More fields, which are not handed out: the lengths of the samples of padded fields."""
        found: dict[str, FieldSpec] = {}
        for position, name in enumerate(self.names):
            spec = specs[name]
            if spec.pad_value is None or spec.measure == "length":
                continue
            of = spec.of or name
            if of not in found:
                found[of] = FieldSpec(f"length of {of}", (), "<i8", 0, 8, spec.key, "length", of=of)
            self._trimmed.append((position, len(self.names) + list(found).index(of)))
        if not found:
            raise InputError("trim: expected a padded field, found none; pass dim and pad_value, which say how rows are padded")
        return list(found.values())

    def _add_one_hot(self) -> None:
        for name, field in self._fields.items():
            source, reader = self._readers[id(field.source)]
            key = _key(field)
            if isinstance(key, OneHotKey) and key not in (reader.fields or ()):
                if reader.in_main_process:
                    raise InputError(f"field {name!r}: n_classes is an argument of Values: Values(..., n_classes=...)")
                self._readers[id(source)] = source, OneHotReader(reader, key)

    def _spec(self, name: str, others: Collection[FieldSpec], *, is_transformed: bool) -> FieldSpec:
        field = self._fields[name]
        given, measure, reader = field.given, field.measure, self._bound(field.source, name)
        shape, dtype = self._kind(name, field)
        varies = reader.varies or (is_transformed and not isinstance(field.source, BuiltinSource))
        if field.n_classes is not None:
            varies = False
        elif given == ANY:
            given = _given(field.source)
        elif reader.fields is None:
            called, remedy = type(field.source).__name__, "describe rows by the source's own arguments"
            raise InputError(f"field {name!r}: expected shaped() of one of several fields, found {called} of one; {remedy}")
        else:
            try:
                row = given.row(shape, dtype, varies=is_transformed or given.pad_value is not None)
            except FormatError as error:
                raise InputError(f"field {name!r}: {error}") from None
            shape, dtype, varies = row.shape, row.numpy_dtype, row.varies or varies
        of = None
        if not reader.in_main_process:
            # The field that is read, if this one is a copy of it, or a measure.
            same = _key(field), shape, dtype_text(dtype), given.pad_value
            read = [other for other in others if other.of is None and self._fields[other.name].source is field.source]
            of = next((o.name for o in read if (o.key, o.shape, o.dtype, o.pad_value) == same), None)
        if measure is not None:
            if given.pad_value is None or given.dim is None:
                raise InputError(f"field {name!r}: expected the {measure} of a source that has a pad_value, found one without")
            if of is None:
                raise InputError(f"field {name!r}: expected the padded field, too, whose {measure} it is")
            varies = False
            if (field.axes or 0) > len(given.dim):
                expected = f"a mask along at most {len(given.dim)} axes, those of dim"
                raise InputError(f"field {name!r}: expected {expected}, found {field.axes}")
            shape = () if measure == "length" else shape[: field.axes or len(given.dim)]
            weighs = self.names.index(name) in self.weights
            dtype = np.dtype(np.int64 if measure == "length" else np.float32 if weighs else np.bool_)
        if not are_numbers(dtype) or 0 in shape:
            raise InputError(f"field {name!r}: expected rows of numbers, found shape {shape} and dtype {dtype}{NO_NUMBERS}")
        if measure is None and given.pad_value is not None and not holds(dtype, given.pad_value):
            raise InputError(f"field {name!r}: expected a pad_value that {dtype} holds, found {given.pad_value}")
        row_bytes = math.prod(shape) * dtype.itemsize
        return FieldSpec(name, shape, dtype_text(dtype), 0, row_bytes, _key(field), measure, varies, given.pad_value, of)

    def _kind(self, name: str, field: SourceField) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
        reader, key, called = self._readers[id(field.source)][1], _key(field), type(field.source).__name__
        if reader.fields is None:
            if key is not None:
                found = f"{called} of one; leave [{key!r}] out"
                raise InputError(f"field {name!r}: expected a source of several fields, found {found}")
            return tuple(reader.shape), dtype_of(reader.dtype)
        if key not in reader.fields:
            known = ", ".join(map(repr, reader.fields))
            raise InputError(f"field {name!r}: expected one of {known}, which {called} has, found {key!r}")
        shape, dtype = reader.fields[key]
        return tuple(shape), dtype_of(dtype)


def _given(source: Source) -> SampleSpec:
    return source.given if isinstance(source, BuiltinSource) else ANY


def _key(field: SourceField) -> Hashable | None:
    return field.key if field.n_classes is None else OneHotKey(field.key, field.n_classes)


def target(labels: Any, n_classes: int | None, classes: Any, ids: Sequence[Any]) -> Any:
    """``labels`` as targets: values become `Labels`, which must be ints; all else stays as it is, and has no ``classes``."""
    has_classes = n_classes is not None or classes is not None
    if isinstance(labels, Values) and has_classes:
        return labels.with_classes(n_classes, classes)
    if isinstance(labels, Source | SourceField) or _is_nest(labels, ids):
        if not has_classes:
            return labels
        if classes is not None or not isinstance(labels, Source | SourceField):
            remedy = "Values(..., classes=..., n_classes=...), or, of ints that are read, npz['label'].one_hot(n_classes)"
            raise InputError(f"n_classes and classes are for labels of one field; give them to each field: {remedy}")
        field = labels if isinstance(labels, SourceField) else SourceField(labels)
        return field if n_classes is None else field.one_hot(n_classes)
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
    if isinstance(part, dict):
        # Ints are never among keys that are texts, so not every id need be looked up; as many keys as ids may be meant as these.
        may_be_ids = as_ints(ids) is None or len(part) >= len(ids)
        if not all(isinstance(key, str) for key in part) or (may_be_ids and any(id in part or str(id) in part for id in ids)):
            return False
    elif len(part) >= len(ids) and not isinstance(part[0], Mapping):
        if len(part) == len(ids) and all(hasattr(one, "__array__") and np.shape(one)[:1] == (len(ids),) for one in part):
            expected = f"a row for each of the {len(ids):,} ids, or columns of fields"
            remedy = "pass np.stack(rows), or, of fields, [Values(column), Values(other), ...]"
            raise InputError(f"expected {expected}, found a list of as many arrays of as many values; {remedy}")
        return False
    members = list(part.values()) if isinstance(part, dict) else part
    if not members or not all(is_column(member) or isinstance(member, Mapping) for member in members):
        return False
    return any(len(member) == len(ids) or (isinstance(member, Mapping) and ids[0] in member) for member in members)
