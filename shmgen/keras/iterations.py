"""The passes that Keras's iterations and ``for`` loops make over a `shmgen.Sequence`."""

from __future__ import annotations

import threading
import warnings
import weakref
from typing import Any

from shmgen._engine.feed import Feed
from shmgen._plan.passes import Pass

REPEATED = (
    "all batches were requested by their indexes, and then again without on_epoch_end() in between, so that every epoch has the "
    "same order and the same augmentation: call the Sequence's on_epoch_end() after each epoch"
)

in_use: weakref.WeakSet[Iterations] = weakref.WeakSet()
"""Of all sequences of this process that are alive."""


class Iterations:
    """The iterations over a feed. Each is a pass of its own; a batch that is requested outside of any is a look.

    Attributes:
        feed: what is iterated over.
        of_keras: the pass of the iteration of Keras's that began last; None before the first.
    """

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.of_keras: Pass | None = None
        self._under_way = _UnderWay()
        self._warned: set[str] = set()
        # Batches that were requested outside of an iteration, and how often all of them were.
        self._requested: set[int] = set()
        self._rounds = 0
        in_use.add(self)

    def begin(self, *, by_hand: bool = False) -> Pass:
        """Begin an iteration over the next epoch; `by_hand` if it is a loop's and not Keras's."""
        with self.feed.passes() as passes:
            begun = passes.open(by_hand=by_hand, asks_ahead=not by_hand)
        if not by_hand:
            self.of_keras = begun
        return begun

    def take_back(self, begun: Pass) -> None:
        """The iteration was only a look: the next one gets its epoch again."""
        with self.feed.passes() as passes:
            passes.take_back(begun)

    def enter(self, begun: Pass | None) -> Pass | None:
        """What this thread requests from now on belongs to this iteration, or with None to none; returns the one before."""
        before, self._under_way.of = self._under_way.of, begun
        return before

    def end(self, *, used: bool = True) -> None:
        """The batches that were requested outside of iterations have been used, or were only looks."""
        with self.feed.passes() as passes:
            passes.end() if used else passes.forget()
        self._requested, self._rounds = set(), 0

    def request(self, index: int) -> tuple[Any, ...]:
        """The batch that ``index`` means in the iteration that is under way in this thread, or outside of any."""
        of = self._under_way.of
        if of is None and self.feed.sampler.shuffle:
            self._count(index)
        return self.feed.batch(index, of)

    def _count(self, index: int) -> None:
        self._requested.add(index)
        if len(self._requested) == len(self.feed):
            self._requested.clear()
            self._rounds += 1
            if self._rounds == 2:
                self.warn(REPEATED)

    def warn(self, text: str) -> None:
        """Warn of something, once."""
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, stacklevel=3)


class _UnderWay(threading.local):
    of: Pass | None = None
