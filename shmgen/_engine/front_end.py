"""What a framework that batches go to has to be told, and to be given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


class FrontEnd:
    """Knows a framework; this one knows none. To be subclassed beside the framework's import.

    Attributes:
        hides_errors: whether an exception that a request for a batch raises does not reach the user as it is.
    """

    hides_errors = False

    def release(self) -> None:
        """Make the framework let go of batches that it no longer needs; called again and again while all slots are held.

        What is let go of when garbage is collected needs nothing here, as JAX does: that is done anyway.
        """

    def hand_over(self, batch: Any) -> Any:
        """A ``batch``, nested in any way, with each array as the framework takes it without a copy."""
        return batch


NO_FRAMEWORK = FrontEnd()
"""For whoever uses batches without any."""


def map_arrays(convert: Callable[[np.ndarray], Any], batch: Any) -> Any:
    """``batch`` with each array in it converted; dicts, tuples and lists stay what they are, and so does all else."""
    if isinstance(batch, np.ndarray):
        return convert(batch)
    if type(batch) is dict:
        return {key: map_arrays(convert, part) for key, part in batch.items()}
    if type(batch) in (tuple, list):
        return type(batch)([map_arrays(convert, part) for part in batch])
    return batch
