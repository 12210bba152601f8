"""What rows weigh where an epoch's last batch is filled up with samples that are not to count."""

from __future__ import annotations

import numpy as np


class Padding:
    """Weighs rows by their position in the epoch: a row behind the last sample weighs nothing.

    Keras divides a batch's loss by its number of rows, whatever they weigh. So the others weigh the more: their weights add up to
    the number of all rows, and the mean over an epoch is that over its samples.

    Args:
        samples: in an epoch.
        rows: in all of its batches.
    """

    def __init__(self, samples: int, rows: int) -> None:
        self._samples = samples
        self._factor = rows / samples

    def weigh(self, weights: np.ndarray, first: int) -> None:
        """Change, in place, the ``weights`` of the rows at position ``first`` and behind it."""
        if self._factor != 1:
            weights *= self._factor
            weights[max(0, self._samples - first) :] = 0
