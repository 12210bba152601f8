"""The passes that Keras's iterations and ``for`` loops make over a `shmgen.Sequence`."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shmgen._engine.feed import Feed
from shmgen._plan.passes import Pass

REPEATED = (
    "all batches were requested by their indexes, and then again without on_epoch_end() in between, so that every epoch has the "
    "same order and the same augmentation: call the Sequence's on_epoch_end() after each epoch"
)

in_use: weakref.WeakSet[Iterations] = weakref.WeakSet()
"""The iterations of all sequences of this process that are alive."""


class Iterations:
    """The iterations over a feed. Each is a pass of its own; a batch that is requested outside of any is a look."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.of_keras: Pass | None = None  # of Keras's last iteration
        self._under_way = _UnderWay()
        self._warned: set[str] = set()
        # Batches that were requested outside of an iteration, and how often all of them have been.
        self._requested: set[int] = set()
        self._rounds = 0
        in_use.add(self)

    def begin(self, *, by_hand: bool = False) -> Pass:
        """Begin an iteration over the next epoch: Keras's, or ``by_hand``, a loop's."""
        with self.feed.passes() as passes:
            begun = passes.open(by_hand=by_hand, asks_ahead=not by_hand)
        if not by_hand:
            self.of_keras = begun
        return begun

    @contextmanager
    def under_way(self, begun: Pass) -> Iterator[None]:
        """Have this thread's requests belong to an iteration meanwhile."""
        before, self._under_way.of = self._under_way.of, begun
        try:
            yield
        finally:
            self._under_way.of = before

    def end(self, *, used: bool = True) -> None:
        """End the epoch of the batches that were requested outside of iterations, if they were used and not only looked at."""
        with self.feed.passes() as passes:
            passes.end() if used else passes.forget()
        self._requested, self._rounds = set(), 0

    def request(self, index: int) -> tuple[Any, ...]:
        """The batch that ``index`` means in the iteration that is under way in this thread, or outside of any."""
        of = self._under_way.of
        if of is None and self.feed.sampler.shuffle:
            self._requested.add(index)
            if len(self._requested) == len(self.feed):
                self._requested.clear()
                self._rounds += 1
                if self._rounds == 2:
                    self.warn(REPEATED)
        return self.feed.batch(index, of)

    def warn(self, text: str) -> None:
        """Give a warning, once."""
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, stacklevel=3)


class _UnderWay(threading.local):
    of: Pass | None = None
