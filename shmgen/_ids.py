"""The ids of all samples, kept in as little memory as they came in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def kept(ids: Iterable[Any]) -> Sequence[Any]:
    """``ids`` as Python objects, out of reach of later changes by the caller; but an array of strings is not copied."""
    if isinstance(ids, range):
        return ids
    if isinstance(ids, np.ndarray) and ids.ndim == 1 and ids.dtype.kind in "USiu":
        return _ArrayIds(ids if ids.dtype.kind in "US" else ids.copy())
    # NumPy's own scalars would have every worker import NumPy.
    return [id.item() if isinstance(id, np.generic) else id for id in ids]


def take(ids: Sequence[Any], samples: np.ndarray) -> list[Any]:
    """The ids of ``samples``, positions in ``ids``."""
    if isinstance(ids, _ArrayIds):
        return ids.take(samples)
    return list(map(ids.__getitem__, samples.tolist()))


class _ArrayIds(Sequence[Any]):
    """Ids in an array, made Python objects when they are needed: those would take more memory than the array."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, position: Any) -> Any:
        return self._array[position].item()

    def take(self, samples: np.ndarray) -> list[Any]:
        """The ids at these positions."""
        taken: list[Any] = self._array[samples].tolist()
        return taken
