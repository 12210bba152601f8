"""What a batch is made of: which fields, from which sources, and how their arrays are nested when they are handed out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np

from shmgen._memory.layout import Arrays, Field
from shmgen._sources.base import NO_CLASSES, Source
from shmgen._sources.function import Function
from shmgen._sources.ids import Subset, int_array, is_frame
from shmgen._sources.lookup import is_column, is_mapping
from shmgen._sources.sample_spec import are_numbers, dtype_of
from shmgen._sources.values import Labels, Values
from shmgen.errors import InputError


class BatchSpec:
    """The fields of a batch.

    Args:
        inputs: a source, or a dict, tuple or list of sources.
        targets: likewise, or None for none.
        weights: likewise, or None for none.
        ids: of all samples. By them a mapping from id to value is distinguished from a dict of fields.

    Attributes:
        sources: what fills each field, by the field's name, in the order of a batch's arrays. They are copies, since a source may
            be given to several loaders. Where two fields have the same name, the role comes before it: ``targets.mask``.
        has_one_input: whether there is a single input, which has no name of its own.
    """

    def __init__(self, inputs: Any, targets: Any, weights: Any, ids: Sequence[Any]) -> None:
        if targets is None and weights is not None:
            raise InputError("weights weigh the loss of targets, and there are none: give labels or targets too")
        self._ids = ids
        self.has_one_input = not _is_nest(inputs, ids)
        self._found: list[tuple[str, str, Source]] = []
        parts = {"inputs": ("X", inputs), "targets": ("y", targets), "weights": ("weights", weights)}
        self._is_flat = not any(_is_nest(part, ids) for _, part in parts.values())
        self._parts = [self._add(role, name, part) for role, (name, part) in parts.items() if part is not None]
        count = Counter(name for _, name, _ in self._found)
        names = [name if count[name] == 1 else f"{role}.{name}" for role, name, _ in self._found]
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            raise InputError(f"expected another name for each field, found {twice[0]!r} twice; change one of the keys")
        self.sources = {name: source for name, (_, _, source) in zip(names, self._found, strict=True)}

    def _add(self, role: str, name: str, part: Any) -> Callable[[Arrays], Any]:
        """Add the sources in ``part``. Returns a function that picks their arrays out of a batch's, and nests them alike."""
        if _is_nest(part, self._ids):
            if isinstance(part, Mapping):
                picks = {key: self._add(role, str(key), value) for key, value in part.items()}
                return lambda arrays: {key: pick(arrays) for key, pick in picks.items()}
            members = [self._add(role, f"{name}[{number}]", value) for number, value in enumerate(part)]
            return lambda arrays: tuple(pick(arrays) for pick in members)
        position = len(self._found)
        self._found.append((role, name, _as_source(part, name, weighs=role == "weights")))
        return lambda arrays: arrays[position]

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

    def bind(self) -> tuple[Field, ...]:
        """Bind every source to the ids. Returns the arrays that a batch has."""
        fields = []
        for name, source in self.sources.items():
            source.field_name = name
            source.bind(self._ids)
            shape, dtype = tuple(source.shape), dtype_of(source.dtype)
            if not are_numbers(dtype) or 0 in shape:
                raise InputError(f"field {name!r}: expected rows of numbers, found shape {shape} and dtype {dtype}")
            fields.append(Field(name, shape, dtype))
        return tuple(fields)


def target(labels: Any, n_classes: int | None, classes: Any, ids: Sequence[Any]) -> Any:
    """``labels`` as targets: values that must be ints, or whatever else targets may be.

    Raises:
        InputError: ``n_classes`` or ``classes`` are given, and the labels are no values.
    """
    if isinstance(labels, Source):
        return labels.with_classes(n_classes, classes)
    has_classes = n_classes is not None or classes is not None
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
    if any(isinstance(member, Source) or callable(member) for member in members):
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
        return copy(part)
    if is_column(part) or is_mapping(part) or is_frame(part):
        return Values(part, dtype=np.float32 if weighs else None)
    if callable(part):
        return Function(part)
    raise InputError(
        f"field {name!r}: expected a source, a function, or a mapping or list from id to value, found {part!r}; "
        "of a folder of .npy files the source is Npy(folder)"
    )
