"""What a batch is made of: which fields, from which sources, and how their arrays are nested when they are handed out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np

from shmgen._arguments import are_numbers, dtype_of
from shmgen._layout import Arrays, Field
from shmgen._source import Function, Source
from shmgen._values import Values
from shmgen.errors import FunctionError, InputError


class Structure:
    """The fields of a batch.

    Args:
        inputs: a source, or a dict, tuple or list of sources.
        targets: likewise, or None for none.
        weights: likewise, or None for none.

    Attributes:
        sources: what fills each field, by the field's name, in the order of a batch's arrays. Copies: a source may serve others.
            A name that stands twice has the role before it: ``targets.mask``.
        has_one_input: whether there is a single input, without a name of its own.
    """

    def __init__(self, inputs: Any, targets: Any, weights: Any) -> None:
        if targets is None and weights is not None:
            raise InputError("weights weigh the loss of targets, and there are none: give labels or targets too")
        self.has_one_input = not _is_nest(inputs)
        self._found: list[tuple[str, str, Source | Values]] = []
        parts = {"inputs": ("X", inputs), "targets": ("y", targets), "weights": ("weights", weights)}
        self._is_flat = not any(_is_nest(part) for _, part in parts.values())
        self._nests = [self._add(role, name, part) for role, (name, part) in parts.items() if part is not None]
        often = Counter(name for _, name, _ in self._found)
        self.sources = {name if often[name] == 1 else f"{role}.{name}": source for role, name, source in self._found}
        if len(self.sources) < len(self._found):
            raise InputError(f"a field's name stands twice in one of inputs, targets and weights: {sorted(often)}")

    def _add(self, role: str, name: str, part: Any) -> Callable[[Arrays], Any]:
        """Take the sources in ``part``, and return what picks their arrays out of a batch's, nested alike."""
        if _is_nest(part):
            if isinstance(part, Mapping):
                picks = {key: self._add(role, str(key), value) for key, value in part.items()}
                return lambda arrays: {key: pick(arrays) for key, pick in picks.items()}
            members = [self._add(role, f"{name}[{number}]", value) for number, value in enumerate(part)]
            return lambda arrays: tuple(pick(arrays) for pick in members)
        position = len(self._found)
        self._found.append((role, name, _as_source(part, name, weighs=role == "weights")))
        return lambda arrays: arrays[position]

    def nest(self, arrays: Arrays) -> tuple[Any, ...]:
        """``(inputs,)``, ``(inputs, targets)`` or ``(inputs, targets, weights)``, each nested as it was given."""
        return arrays if self._is_flat else tuple([pick(arrays) for pick in self._nests])

    def bind(self, ids: Sequence[Any]) -> tuple[Field, ...]:
        """Bind every source to ``ids``, and say what arrays a batch has."""
        fields = []
        for name, source in self.sources.items():
            if isinstance(source, Values):
                source.bind(ids, name)
            else:
                try:
                    source.bind(ids)
                except FunctionError as error:
                    raise FunctionError(error.id, f"source of field {name!r}", error.reason) from error.__cause__
            shape, dtype = tuple(source.shape), dtype_of(source.dtype)
            if not are_numbers(dtype) or 0 in shape:
                raise InputError(f"field {name!r}: expected rows of numbers, found shape {shape} and dtype {dtype}")
            fields.append(Field(name, shape, dtype))
        return tuple(fields)


def _is_nest(part: Any) -> bool:
    """Whether ``part`` holds sources, not values."""
    members = part.values() if isinstance(part, dict) else part if isinstance(part, list | tuple) else ()
    return any(isinstance(member, Source | Values) or callable(member) or _is_nest(member) for member in members)


def _as_source(part: Any, name: str, *, weighs: bool) -> Source | Values:
    if isinstance(part, Source | Values):
        return copy(part)
    if callable(part):
        return Function(part)
    if isinstance(part, Mapping | Sequence | np.ndarray) or hasattr(part, "keys"):
        return Values(part, dtype=np.float32 if weighs else None)
    raise InputError(f"field {name!r}: expected a source, a function or a mapping from id to value, found {part!r}")
