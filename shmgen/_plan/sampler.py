"""Which samples an epoch's batches hold: a pure function of how many there are, the seed, the epoch, and the rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from enum import Enum
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from shmgen._plan.by_length import ByLength
from shmgen._plan.order import Order, Positions, hash_of
from shmgen._plan.weighted import WeightedOrder, WeightTable


class Tail(Enum):
    """What becomes of an epoch's last batch if the samples do not fill it."""

    DROP = "drop"  # it is left out
    KEEP = "keep"  # it is shorter than the others
    WRAP = "wrap"  # the epoch's first samples fill it up
    PAD = "pad"  # likewise, but the rows that they fill weigh 0

    def batches(self, samples: int, batch_size: int) -> int:
        return samples // batch_size if self is Tail.DROP else -(-samples // batch_size)


class BatchId(NamedTuple):
    """The name of a batch. The same batch has the same samples in every run."""

    epoch: int
    number: int


class Shard(NamedTuple):
    """The part of each batch that belongs to one of several processes that train together."""

    rank: int  # of the process, from 0
    world: int  # how many processes there are


ALONE = Shard(0, 1)


@dataclass(eq=False)
class Sampler:
    """The samples of any batch.

    A batch of all ranks holds the samples at ``batch_size`` successive positions of the epoch's order, and each rank has its part
    of them, from ``offset`` on. So a batch of all ranks is the same at any number of ranks.
    """

    samples: int
    batch_size: int
    _: KW_ONLY
    shuffle: bool
    seed: int
    tail: Tail
    shard: Shard = ALONE
    weights: WeightTable | None = None
    lengths: np.ndarray | None = None  # of all samples

    def __post_init__(self) -> None:
        self.batches = self.tail.batches(self.samples, self.batch_size)
        self.rows = self.batch_size // self.shard.world
        self.offset = self.shard.rank * self.rows
        # Two, because the next epoch's first batches are read while this one's last are delivered.
        settings = self.samples, self.batch_size, self.seed, self.weights, self.lengths
        self._order = lru_cache(maxsize=2)(partial(_order, *settings))

    def first(self, batch: BatchId) -> int:
        """The position in the epoch of this rank's first row. Positions past the last sample wrap around to the first."""
        return batch.number * self.batch_size + self.offset

    def size(self, batch: BatchId) -> int:
        """How many rows ``batch`` has."""
        return min(self.rows, self.samples - self.first(batch)) if self.tail is Tail.KEEP else self.rows

    def samples_of(self, batches: Sequence[BatchId]) -> list[np.ndarray]:
        """As ``[sampler[batch] for batch in batches]``; successive batches of one epoch by one computation."""
        (epoch, first), (last_epoch, last) = batches[0], batches[-1]
        end = (last + 1) * self.batch_size
        if epoch != last_epoch or last - first != len(batches) - 1 or end > self.samples or self.shard.world > 1:
            return [self[batch] for batch in batches]
        return list(self._at(epoch, first * self.batch_size, end).reshape(len(batches), self.batch_size))

    def __getitem__(self, batch: BatchId) -> np.ndarray:
        """Numbers of the samples in ``batch``: positions in the list of ids."""
        first = self.first(batch)
        return self._at(batch.epoch, first, first + self.size(batch))

    def _at(self, epoch: int, first: int, last: int) -> np.ndarray:
        """The samples at positions ``first`` to ``last - 1`` of an epoch."""
        if last > self.samples:
            positions = np.arange(first, last) % self.samples
            parts = np.split(positions, np.flatnonzero(positions == 0))
            return np.concatenate([self._at(epoch, int(part[0]), int(part[-1]) + 1) for part in parts if len(part)])
        if not self.shuffle:
            return np.arange(first, last)
        return self._order(epoch).part(first, last)

    def weigh(self, weights: np.ndarray, batch: BatchId) -> None:
        """With ``tail="pad"``, change the ``weights`` of the rows of ``batch`` in place: rows behind the last sample weigh 0.

        Keras divides a batch's loss by its number of rows, whatever they weigh. So the weights of the other rows are raised until
        all add up to the number of rows: the mean over an epoch is then that over its samples.
        """
        if self.samples % self.batch_size:
            weights *= self.batches * self.batch_size / self.samples
            weights[max(0, self.samples - self.first(batch)) :] = 0

    def replacement(self, batch: BatchId, row: int, tried: int) -> int:
        """The number of the sample that replaces the damaged one in ``row`` of ``batch``: another sample of the same epoch.

        It follows from (seed, epoch, position in the epoch, ``tried``): the same in every run, at any number of ranks. ``tried``
        is how many replacements have been damaged themselves.
        """
        position = self.first(batch) + row
        dealt = min(self.samples, self.batches * self.batch_size)
        further = 1 + (hash_of(self.seed, batch.epoch, position, tried) * (dealt - 1) >> 64)
        place = (position + further) % dealt
        return int(self._at(batch.epoch, place, place + 1)[0])


def _order(
    samples: int, batch_size: int, seed: int, weights: WeightTable | None, lengths: np.ndarray | None, epoch: int
) -> Positions:
    """A sample for each position of an epoch."""
    order = Order(samples, seed, epoch) if weights is None else WeightedOrder(weights, seed, epoch)
    return order if lengths is None else ByLength(order, lengths, batch_size, seed, epoch)
