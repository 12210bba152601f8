"""Which batch an index asked for means, and which batches will be asked for next.

Keras asks for indexes in an order of its own, for some twice, and throws some away. So batches are dealt: with shuffling,
an index asked for the first time in a pass is bound to the next batch of the epoch's order, and keeps it for that pass.
Whatever order the indexes come in, batches go out in the order in which they are read ahead, each once a pass. Without
shuffling, index i is batch i.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from shmgen._order import Batch

READ_BEFORE_AN_EPOCH = 2
"""Batches of an epoch that are read before it begins; no more, because their files are looked at again when it does."""


class Pass:
    """One dealing of an epoch's batches to indexes.

    Attributes:
        epoch: whose batches are dealt.
        misses: how many requests were not the one expected; with shuffling, none ever is.
    """

    def __init__(self, epoch: int, batches: int, *, shuffle: bool) -> None:
        self.epoch = epoch
        self.misses = 0
        self._shuffle = shuffle
        self._bound = np.full(batches, -1, np.int32)
        self._dealt = 0
        self._next: int | None = 0
        self._last = -1

    @property
    def is_begun(self) -> bool:
        """Whether any index has been asked for."""
        return self._dealt > 0

    @property
    def is_whole(self) -> bool:
        """Whether every index has been asked for."""
        return self._dealt == len(self._bound)

    def deal(self, index: int) -> Batch:
        """The batch that ``index`` means in this pass."""
        number = int(self._bound[index])
        if number < 0:
            number = self._dealt if self._shuffle else index
            self._bound[index] = number
            self._dealt += 1
        if self._shuffle:
            self._next = self._dealt
        elif number == (self._last + 1) % len(self._bound):
            self._next = number + 1
        else:
            # Two in sequence again, and reading ahead is worth its while again.
            self._next = None
            self.misses += 1
        self._last = number
        return Batch(self.epoch, number)

    def upcoming(self) -> Iterator[Batch]:
        """The batches that will be dealt next, this epoch's and then the next one's; none if that can't be foreseen."""
        if self._next is None:
            return
        if not self.is_begun:
            yield from _first(self.epoch, len(self._bound))
            return
        for number in range(self._next, len(self._bound)):
            yield Batch(self.epoch, number)
        yield from _first(self.epoch + 1, len(self._bound))


class Dealer:
    """Opens the passes: each deals the next epoch if the one before was dealt whole, else the same epoch again."""

    def __init__(self, batches: int, *, shuffle: bool) -> None:
        self._batches = batches
        self._shuffle = shuffle
        self._pass = Pass(0, batches, shuffle=shuffle)
        self._begin = False

    def open(self) -> Pass:
        """Begin a new pass at once."""
        self._pass = Pass(self._next_epoch, self._batches, shuffle=self._shuffle)
        self._begin = False
        return self._pass

    def begin(self) -> None:
        """The next request is the first of a new iteration."""
        self._begin = True

    def epoch_boundary(self) -> None:
        """Somebody says that an epoch ends or begins: true only if all of this one has been dealt."""
        if self._pass.is_whole:
            self._begin = True

    @property
    def current(self) -> Pass:
        """The pass that a request belongs to, unless a new one is due."""
        return self._pass

    @property
    def is_due(self) -> bool:
        """Whether the next request is to open a new pass."""
        return self._begin

    def upcoming(self) -> Iterator[Batch]:
        """The batches that will be dealt next, as far as can be foreseen."""
        if self._begin:
            return _first(self._next_epoch, self._batches)
        return self._pass.upcoming()

    @property
    def _next_epoch(self) -> int:
        return self._pass.epoch + self._pass.is_whole


def _first(epoch: int, batches: int) -> Iterator[Batch]:
    for number in range(min(batches, READ_BEFORE_AN_EPOCH)):
        yield Batch(epoch, number)
