"""`FrontEnd`: what the engine needs to know of the framework that gets the batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


class FrontEnd:
    """What depends on the framework. This class is for loops without one; each subclass is beside its framework's import."""

    hides_errors = False  # whether the framework raises an exception of its own in place of ours

    def release(self) -> None:
        """Make the framework release batches that it no longer needs; called again and again while all slots are held.

        A framework that releases them at a garbage collection, as JAX does, needs nothing here: one follows.
        """

    def hand_over(self, batch: Any) -> Any:
        """``batch``, however nested, with each array in the form that the framework takes without a copy."""
        return batch


def map_arrays(convert: Callable[[np.ndarray], Any], batch: Any) -> Any:
    """``batch`` with each array in it converted; dicts, tuples, lists and everything else stay what they are."""
    if isinstance(batch, np.ndarray):
        return convert(batch)
    if type(batch) is dict:
        return {key: map_arrays(convert, part) for key, part in batch.items()}
    if type(batch) in (tuple, list):
        return type(batch)([map_arrays(convert, part) for part in batch])
    return batch
