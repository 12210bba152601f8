"""The weights with which samples are drawn: checked, and in the order of the ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shmgen._sources.values import Values
from shmgen.errors import InputError


def weights_of(given: Any, ids: Sequence[Any]) -> np.ndarray:
    """A weight for each id, as float64.

    Args:
        given: what `Values` takes, or such; it is looked up in the same way.
        ids: of all samples.

    Raises:
        InputError: an id has none, or one that is no number from 0 on; or all are 0.
    """
    values = given if isinstance(given, Values) else Values(given, dtype=np.float64)
    reader = values.bind(ids, field="sampling_weights")
    if reader.shape:
        raise InputError(f"sampling_weights: expected a number for each id, found rows of shape {reader.shape}")
    weights = np.empty(len(ids), reader.dtype)
    reader.fill(np.arange(len(ids)), weights, None)
    weights = weights.astype(np.float64)
    wrong = ~((weights >= 0) & np.isfinite(weights))
    if wrong.any():
        position = int(wrong.argmax())
        raise InputError(f"id {ids[position]!r}, sampling_weights: expected a finite number from 0, found {weights[position]}")
    if not weights.any():
        raise InputError("sampling_weights: expected some above 0, found none: nothing could be drawn")
    return weights
