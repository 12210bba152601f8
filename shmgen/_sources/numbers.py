"""Numbers of the samples that decide which of them make a batch: how often each is drawn, how long it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shmgen._sources.values import Values
from shmgen.errors import InputError


def numbers_of(given: Any, ids: Sequence[Any], name: str) -> np.ndarray:
    """A number from 0 for each id, as float64; not all are 0.

    Args:
        given: what `Values` takes, or such; it is looked up in the same way.
        ids: of all samples.
        name: what errors call the numbers.

    Raises:
        InputError: an id has none, or one that is no number from 0 on; or all are 0.
    """
    values = given if isinstance(given, Values) else Values(given, dtype=np.float64)
    reader = values.bind(ids, field=name)
    if reader.shape:
        raise InputError(f"{name}: expected a number for each id, found rows of shape {reader.shape}")
    numbers = np.empty(len(ids), reader.dtype)
    reader.fill(np.arange(len(ids)), numbers, None)
    numbers = numbers.astype(np.float64)
    wrong = ~((numbers >= 0) & np.isfinite(numbers))
    if wrong.any():
        position = int(wrong.argmax())
        raise InputError(f"id {ids[position]!r}, {name}: expected a finite number from 0, found {numbers[position]}")
    if not numbers.any():
        raise InputError(f"{name}: expected some above 0, found none")
    return numbers
