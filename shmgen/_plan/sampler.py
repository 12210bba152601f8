"""Which samples an epoch's batches hold: a pure function of how many there are, the seed and the epoch."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from shmgen._plan.order import Order, hash_of

Tail: TypeAlias = Literal["drop", "keep"]
"""What becomes of the last batch where the samples don't fill it: it is left out, or shorter than the others."""


class BatchId(NamedTuple):
    """The name of a batch. The same batch has the same samples in every run."""

    epoch: int
    number: int


class Sampler:
    """The samples of any batch.

    Args:
        samples: how many there are.
        batch_size: samples in a batch.
        shuffle: a new order for each epoch; else the order of the ids for all.
        seed: of the orders, together with the epoch.
        tail: what becomes of the last batch where the samples don't fill it: see `Tail`.
    """

    def __init__(self, samples: int, batch_size: int, *, shuffle: bool, seed: int, tail: Tail) -> None:
        self.samples = samples
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.batches = samples // batch_size if tail == "drop" else -(-samples // batch_size)
        # Two, because the next epoch's first batches are read while this one's last are delivered.
        self._order = lru_cache(maxsize=2)(Order)

    def size(self, batch: BatchId) -> int:
        """How many samples ``batch`` holds."""
        return min(self.batch_size, self.samples - batch.number * self.batch_size)

    def __getitem__(self, batch: BatchId) -> np.ndarray:
        """Numbers of the samples in ``batch``: positions in the list of ids."""
        first = batch.number * self.batch_size
        last = first + self.size(batch)
        if not self.shuffle:
            return np.arange(first, last)
        return self._order(self.samples, self.seed, batch.epoch).part(first, last)

    def replacement(self, batch: BatchId, row: int, tried: int) -> int:
        """The number of the sample that replaces the damaged one in ``row`` of ``batch``: another sample of the same epoch.

        Computed from (seed, epoch, position in the epoch, ``tried``), so that it is the same in every run.

        Args:
            batch: in which batch.
            row: in which row of it.
            tried: how many replacements have turned out to be damaged themselves.
        """
        position = batch.number * self.batch_size + row
        dealt = min(self.samples, self.batches * self.batch_size)
        further = 1 + (hash_of(self.seed, batch.epoch, position, tried) * (dealt - 1) >> 64)
        number, row = divmod((position + further) % dealt, self.batch_size)
        return int(self[BatchId(batch.epoch, number)][row])
