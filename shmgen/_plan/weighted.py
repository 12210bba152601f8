"""Which samples an epoch draws where some are drawn more often than others: a pure function of weights, seed and epoch.

All weights are laid side by side and cut into as many equal parts as the epoch has samples. A random point of each part says
which sample is drawn for it; then the parts are shuffled. So each sample comes as often as its weight says, apart from chance at
the edges of parts. Samples of equal weight, such as those of a class, lie together, and come as often as their summed weights
say. With equal weights each sample is a part, and the order is that without weights. (Stratified sampling, as in Douc, Cappé and
Moulines, Comparison of resampling schemes for particle filtering, 2005.)

As in `order`, all is computed with 64-bit integers, and never changes.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

from shmgen._plan.order import BLOCK_POSITIONS, Order, Positions, hash_of, hashes

BITS = 61
"""All weights together are an integer below 2 to this power."""

JITTER = 1 << 32
"""Hashed beside seed and epoch, so that points and shuffling use different random numbers."""

HALF, LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


class WeightTable:
    """The weights of all samples, in 16 bytes a sample: finite floats from 0, not all 0; fewer than 2³² of them.

    For a million samples they are rounded to about one part in 10¹² of the largest; none above 0 becomes 0.
    """

    def __init__(self, weights: np.ndarray) -> None:
        self.samples = len(weights)
        self._by_weight = np.argsort(weights, kind="stable")
        weights = weights[self._by_weight]
        exponent = int(np.frexp(weights[-1])[1])
        parts = np.ldexp(weights, BITS - self.samples.bit_length() - exponent)  # exact, unlike a division
        ends = np.where(weights > 0, np.maximum(parts, 1), 0).astype(np.uint64)
        self._ends = np.cumsum(ends, out=ends)
        self.total = int(ends[-1])

    def fingerprint(self) -> str:
        """A hash of all weights, of 32 hexadecimal digits: with the same, the same samples are drawn."""
        hashed = blake2b(self._by_weight.astype("<i8").data, digest_size=16)
        hashed.update(self._ends.astype("<u8").data)
        return hashed.hexdigest()

    def at(self, points: np.ndarray) -> np.ndarray:
        """The samples at these points of all weights, laid side by side: ints from 0 to `total` - 1, as uint64."""
        return self._by_weight[np.searchsorted(self._ends, points, side="right")]


class WeightedOrder(Positions):
    """The samples that one epoch draws, by the weights in ``table``; ``seed`` is an int from 0, of any size."""

    def __init__(self, table: WeightTable, seed: int, epoch: int) -> None:
        super().__init__(table.samples, BLOCK_POSITIONS)
        self._table = table
        self._order = Order(table.samples, seed, epoch)
        self._key = hash_of(seed, epoch, JITTER)

    def _computed(self, first: int, last: int) -> np.ndarray:
        numbers = self._order.part(first, last).view(np.uint64)
        start = self._start(numbers)
        point = start + _scaled(hashes(numbers, self._key), self._start(numbers + np.uint64(1)) - start)
        return self._table.at(point)

    def _start(self, numbers: np.ndarray) -> np.ndarray:
        """Where these parts begin: ``numbers * total // samples``, of which the product would not fit in 64 bits."""
        samples = self._table.samples
        whole, rest = divmod(self._table.total, samples)
        start: np.ndarray = numbers * np.uint64(whole) + numbers * np.uint64(rest) // np.uint64(samples)
        return start


def _scaled(words: np.ndarray, below: np.ndarray) -> np.ndarray:
    """The upper 64 bits of ``words * below``: random words give random ints from 0 to below - 1."""
    high, low = words >> HALF, words & LOW
    other_high, other_low = below >> HALF, below & LOW
    middle = high * other_low + (low * other_low >> HALF)
    other_middle = low * other_high + (middle & LOW)
    scaled: np.ndarray = high * other_high + (middle >> HALF) + (other_middle >> HALF)
    return scaled
