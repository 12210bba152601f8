"""Which batch an index means, which epoch an iteration gets, and which batches will be requested next.

Keras asks for indexes in an order of its own, for some twice, and throws some away. So batches are dealt. With shuffling, an
index that is requested for the first time in a pass is bound to the next batch of the epoch's order, and keeps it for that pass:
whatever the order of the indexes, batches go out in the order in which they are read ahead, each once a pass. Without shuffling,
index i is batch i.

Each iteration is a pass of its own over the next epoch, even if the previous one was left early. So its samples never depend on
how far ahead a framework had asked in an earlier pass. Only a pass that resumes where another process was interrupted
deals no more than the batches that were left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, repeat, takewhile
from typing import NamedTuple

from shmgen._plan.sampler import BatchId

_batch: Callable[[tuple[int, int]], BatchId] = partial(tuple.__new__, BatchId)
"""Makes a `BatchId` without a Python call."""

LAST_EPOCH = 10**15
"""The largest number of an epoch that may be given. Epochs are kept in 64 bits."""


class Position(NamedTuple):
    """Where a pass begins, or has got to."""

    epoch: int
    batch: int  # the number of the epoch's batches before that place


class Pass:
    """One dealing of an epoch's batches to indexes. Index 0 means the batch at ``start``.

    A consumer that ``asks_ahead`` requests batches long before it uses them.
    """

    def __init__(self, start: Position, batches: int, *, shuffle: bool, asks_ahead: bool = False) -> None:
        self.epoch, self.first = start
        self.asks_ahead = asks_ahead
        self._batches = batches
        self._shuffle = shuffle
        # Indexes that were all requested in ascending order, as in a plain loop, are bound to the batches from `first` on, up to
        # this number. Others are bound one by one.
        self._in_order = self.first
        self._bound: dict[int, int] = {}
        self._dealt = self._next = self.first
        # Without shuffling: whether the last two requests were in sequence. If not, nothing is read ahead.
        self._is_in_sequence = True
        # Numbers of dealt batches: those that are waited for, and one whose request failed, until another is handed out.
        self._awaited: set[int] = set()
        self._failed: set[int] = set()

    def deal(self, index: int) -> BatchId:
        """The batch that ``index`` means in this pass; an IndexError if it was resumed, and has fewer batches left."""
        number = self.first + index
        if self._shuffle:
            if self._dealt == number == self._in_order and number < self._batches:
                self._next = self._dealt = self._in_order = number + 1
                return _batch((self.epoch, number))
            bound = number if number < self._in_order else self._bound.get(index)
            if bound is None:
                self._check(self._dealt, index)
                bound = self._bound[index] = self._dealt
                self._next = self._dealt = bound + 1
            return BatchId(self.epoch, bound)
        if number >= self._batches:
            self._check(number, index)
        self._is_in_sequence = number == self._next or (index == 0 and self._next == self._batches)
        self._next = number + 1
        if number >= self._dealt:
            self._dealt = number + 1
        return _batch((self.epoch, number))

    def _check(self, number: int, index: int) -> None:
        if number >= self._batches:
            left = self._batches - self.first
            raise IndexError(f"expected an index below {left}, the batches that are left in epoch {self.epoch}, found {index}")

    def awaits(self, batch: BatchId) -> None:
        """A request begins to wait for ``batch``, which was dealt."""
        self._awaited.add(batch.number)

    def got(self, batch: BatchId) -> None:
        """``batch`` has been handed out."""
        self._failed.clear()
        self._awaited.discard(batch.number)

    def failed(self, batch: BatchId) -> None:
        """The request for ``batch`` ended in an error. Unless another is handed out after it, it counts as still to come."""
        self._failed = {batch.number}
        self._awaited.discard(batch.number)

    @property
    def done(self) -> Position:
        """Where another run resumes: after the batches that have been handed out."""
        return Position(self.epoch, min(self._awaited | self._failed, default=self._dealt))

    def upcoming(self) -> Iterator[BatchId]:
        """The batches that will be dealt next, of this epoch and the next one; none if that can't be foreseen."""
        if not self._is_in_sequence:
            return iter(())
        ahead = zip(repeat(self.epoch), range(self._next, self._batches)), zip(repeat(self.epoch + 1), range(self._batches))
        return map(_batch, chain(*ahead))


class Passes:
    """The passes over a data set: iterations, and requests by hand, outside of any.

    A request by hand is a look at the next epoch, which is not used up until `end` says so. If there ``is_one`` pass alone,
    nothing of the next epoch is read ahead.
    """

    def __init__(self, batches: int, *, shuffle: bool, epoch: int, is_one: bool = False) -> None:
        self._batches = batches
        self._only = epoch if is_one else None
        self._shuffle = shuffle
        # Where the next iteration begins.
        self.next = Position(epoch, 0)
        # The last iteration that has begun, unless a position has been set since.
        self._opened: Pass | None = None
        # The pass that dealt, or began, last; None before the first, and where that was by hand and has ended.
        self.last: Pass | None = None
        self._by_hand: Pass | None = None

    def open(self, *, by_hand: bool = False, asks_ahead: bool = False) -> Pass:
        """Begin an iteration over the next epoch; ``by_hand`` if requests by hand belong to it, until `end`."""
        opened = Pass(self.next, self._batches, shuffle=self._shuffle, asks_ahead=asks_ahead)
        self.next = Position(opened.epoch + 1, 0)
        self._by_hand = opened if by_hand else None
        self.last = self._opened = opened
        return opened

    def go_to(self, position: Position) -> None:
        """Have the next iteration begin at ``position``. Those that have begun are not changed."""
        self.next = position
        self.last = self._opened = self._by_hand = None

    @property
    def position(self) -> Position:
        """Where another run resumes: in the last iteration, if what it requested has been used, else with the next."""
        opened = self._opened
        if opened is None or opened.asks_ahead or self.next != (opened.epoch + 1, 0):
            return self.next
        return opened.done

    def take_back(self, opened: Pass) -> None:
        """The iteration was only a look: if it began last, the next one gets its epoch again."""
        if self.next == (opened.epoch + 1, 0):
            self.go_to(Position(opened.epoch, opened.first))

    def deal(self, index: int, of: Pass | None) -> BatchId:
        """The batch that ``index`` means in an iteration, or by hand."""
        if of is None:
            if self._by_hand is None:
                # Without shuffling, an index is a batch's number.
                start = self.next if self._shuffle else Position(self.next.epoch, 0)
                self._by_hand = Pass(start, self._batches, shuffle=self._shuffle)
            of = self._by_hand
        self.last = of
        return of.deal(index)

    def end(self) -> None:
        """Requests by hand have been used: later ones belong to the next epoch."""
        if self._by_hand is not None:
            self.next = max(self.next, Position(self._by_hand.epoch + 1, 0))
        self.forget()

    def forget(self) -> None:
        """Requests by hand were only a look."""
        if self.last is self._by_hand:
            self.last = None
        self._by_hand = None

    @property
    def epoch(self) -> int:
        """The epoch of `last`; without one, of the next pass."""
        return self.next.epoch if self.last is None else self.last.epoch

    def upcoming(self) -> Iterator[BatchId]:
        """The batches that will be dealt next, as far as can be foreseen."""
        last = self.last or Pass(self.next, self._batches, shuffle=self._shuffle)
        if self._only is None:
            return last.upcoming()
        return takewhile(lambda batch: batch.epoch == self._only, last.upcoming())
