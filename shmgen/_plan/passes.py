"""Which batch an index asked for means, which epoch an iteration gets, and which batches will be asked for next.

Keras asks for indexes in an order of its own, for some twice, and throws some away. So batches are dealt: with shuffling,
an index asked for the first time in a pass is bound to the next batch of the epoch's order, and keeps it for that pass.
Whatever order the indexes come in, batches go out in the order in which they are read ahead, each once a pass. Without
shuffling, index i is batch i.

Each iteration is a pass of its own, and gets the next epoch: also when the one before was left early. So which samples it
gets never depends on how many batches of another a framework had asked for ahead.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from shmgen._plan.sampler import BatchId

READ_BEFORE_AN_EPOCH = 2
"""Batches of an epoch that are read before it begins; no more, because their files are looked at again when it does."""

PAGE = 256
"""Indexes, one after the other, for which memory is taken together."""


class Pass:
    """One dealing of an epoch's batches to indexes.

    Attributes:
        epoch: whose batches are dealt.
        is_begun: whether any index has been asked for.
        misses: how many requests were not the one expected; with shuffling, none ever is.
    """

    def __init__(self, epoch: int, batches: int, *, shuffle: bool) -> None:
        self.epoch = epoch
        self.is_begun = False
        self.misses = 0
        self._batches = batches
        self._shuffle = shuffle
        self._bound = _Numbers()
        self._dealt = 0
        self._next: int | None = 0
        self._last = -1

    def deal(self, index: int) -> BatchId:
        """The batch that ``index`` means in this pass."""
        self.is_begun = True
        if self._shuffle:
            number = self._bound[index]
            if number is None:
                number = self._bound[index] = self._dealt
                self._next = self._dealt = number + 1
            return BatchId(self.epoch, number)
        if index == (self._last + 1) % self._batches:
            self._next = index + 1
        else:
            # Two in sequence again, and reading ahead is worth its while again.
            self._next = None
            self.misses += 1
        self._last = index
        return BatchId(self.epoch, index)

    def upcoming(self) -> Iterator[BatchId]:
        """The batches that will be dealt next, this epoch's and then the next one's; none if that can't be foreseen."""
        if self._next is None:
            return
        if not self.is_begun:
            yield from _first(self.epoch, self._batches)
            return
        for number in range(self._next, self._batches):
            yield BatchId(self.epoch, number)
        yield from _first(self.epoch + 1, self._batches)


class Passes:
    """The passes over a data set: iterations, and what is asked for by hand, outside of any.

    What is asked for by hand is a look at the next epoch, and costs nothing until `end` says that it was used.

    Args:
        batches: in an epoch.
        shuffle: whether an index means the next batch in the epoch's order; else the batch of this number.
        epoch: of the first pass.
    """

    def __init__(self, batches: int, *, shuffle: bool, epoch: int) -> None:
        self._batches = batches
        self._shuffle = shuffle
        self._next_epoch = epoch
        self._last: Pass | None = None
        self._by_hand: Pass | None = None

    def open(self, *, by_hand: bool = False) -> Pass:
        """Begin an iteration over the next epoch.

        Args:
            by_hand: what is asked for by hand meanwhile, and until `end`, belongs to it.
        """
        opened = self._pass()
        self._next_epoch += 1
        self._by_hand = opened if by_hand else None
        self._last = opened
        return opened

    def take_back(self, opened: Pass) -> None:
        """The iteration was only a look: if it was the last to begin, the next one gets its epoch again."""
        if self._next_epoch == opened.epoch + 1:
            self._next_epoch = opened.epoch
            self._last = None

    def deal(self, index: int, of: Pass | None) -> BatchId:
        """The batch that ``index`` means in an iteration, or by hand."""
        if of is None:
            of = self._by_hand = self._by_hand or self._pass()
        self._last = of
        return of.deal(index)

    def end(self) -> None:
        """What was asked for by hand has been used: what is asked for from now on belongs to the next epoch."""
        if self._by_hand is not None and self._by_hand.is_begun:
            self._next_epoch = max(self._next_epoch, self._by_hand.epoch + 1)
        self.forget()

    def forget(self) -> None:
        """What was asked for by hand was only a look."""
        if self._last is self._by_hand:
            self._last = None
        self._by_hand = None

    @property
    def last(self) -> Pass | None:
        """The pass that was asked last, or began since; None before the first, and where that was by hand and is over."""
        return self._last

    @property
    def epoch(self) -> int:
        """The epoch of the pass that was asked last; where there is none, that of the next."""
        return self._next_epoch if self._last is None else self._last.epoch

    def upcoming(self) -> Iterator[BatchId]:
        """The batches that will be dealt next, as far as can be foreseen."""
        return _first(self._next_epoch, self._batches) if self._last is None else self._last.upcoming()

    def _pass(self) -> Pass:
        return Pass(self._next_epoch, self._batches, shuffle=self._shuffle)


class _Numbers:
    """The numbers of batches by the indexes that they are bound to.

    Of indexes that are bound in their own order, as a plain loop does, only the count is kept; of others 8 bytes, and of those
    around them. So a pass over any number of batches costs nothing at its start.
    """

    def __init__(self) -> None:
        self._in_order = 0
        self._pages: dict[int, array[int]] = {}

    def __getitem__(self, index: int) -> int | None:
        if index < self._in_order:
            return index
        page = self._pages.get(index // PAGE)
        number = -1 if page is None else page[index % PAGE]
        return None if number < 0 else number

    def __setitem__(self, index: int, number: int) -> None:
        if index == number == self._in_order:
            self._in_order += 1
            return
        page = self._pages.get(index // PAGE)
        if page is None:
            page = self._pages[index // PAGE] = array("q", [-1]) * PAGE
        page[index % PAGE] = number


def _first(epoch: int, batches: int) -> Iterator[BatchId]:
    for number in range(min(batches, READ_BEFORE_AN_EPOCH)):
        yield BatchId(epoch, number)
