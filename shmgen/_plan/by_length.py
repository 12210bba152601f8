"""Orders whose batches hold samples of similar length: a pure function of lengths, batch size, seed and epoch.

The epoch's order is cut into windows of fifty batches. The samples of a window are sorted by length and cut into batches. Then
the batches of the window are shuffled. The rows within each batch are shuffled too, so that ranks, each of which gets a part of
every batch, have equal work.
Every sample comes as often as without lengths, and in the same window.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

from shmgen._plan.order import Positions, hash_of, hashes

WINDOW = 50
"""Batches whose samples are sorted together: a batch then has a fiftieth of the range of lengths, and epochs still differ."""

BATCHES, ROWS = 1 << 33, 1 << 34
"""Hashed beside seed and epoch, so that batches, rows and samples are shuffled by different random numbers."""


def fingerprint(lengths: np.ndarray, batch_size: int) -> str:
    """A hash of lengths and batch size, of 32 hexadecimal digits: with the same, batches are the same."""
    hashed = blake2b(np.ascontiguousarray(lengths, "<f8").data, digest_size=16)
    hashed.update(b"%d" % batch_size)
    return hashed.hexdigest()


class ByLength(Positions):
    """The samples of an epoch's ``order`` in batches, of all ranks together, of similar ``lengths``."""

    def __init__(self, order: Positions, lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> None:
        super().__init__(order.samples, WINDOW * batch_size)
        self._order, self._lengths, self._batch_size = order, lengths, batch_size
        self._seed, self._epoch = seed, epoch

    def _computed(self, first: int, last: int) -> np.ndarray:
        samples = self._order.part(first, last)
        # A last batch that samples do not fill is left unsorted: else it would have the longest samples in every epoch.
        whole = len(samples) // self._batch_size * self._batch_size
        by_length = samples[:whole][np.argsort(self._lengths[samples[:whole]], kind="stable")]
        batches = by_length.reshape(-1, self._batch_size)
        batches = batches[np.argsort(self._hashes(len(batches), BATCHES, first), kind="stable")]
        rows = self._hashes(whole, ROWS, first).reshape(batches.shape)
        batches = np.take_along_axis(batches, np.argsort(rows, axis=1, kind="stable"), axis=1)
        return np.concatenate([batches.reshape(-1), samples[whole:]])

    def _hashes(self, count: int, what: int, first: int) -> np.ndarray:
        return hashes(np.arange(count, dtype=np.uint64), hash_of(self._seed, self._epoch, what, first))
