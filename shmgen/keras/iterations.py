"""The passes that Keras's iterations, and loops, are over a `Sequence`."""

from __future__ import annotations

import threading
import warnings
from typing import Any

from shmgen._plan.passes import Pass
from shmgen.loader import Loader

REPEATED = (
    "all batches were requested by their indexes, and then again without on_epoch_end() in between, so that every epoch has the "
    "same order and the same augmentation: call the Sequence's on_epoch_end() after each epoch"
)


class Iterations:
    """The iterations over a loader. Each is a pass of its own; a batch that is requested outside of any is a look.

    Attributes:
        loader: what is iterated over.
        of_keras: the pass of the iteration of Keras's that began last; None before the first.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.of_keras: Pass | None = None
        self._under_way = _UnderWay()
        self._warned: set[str] = set()
        # Batches that were requested outside of an iteration, and how often all of them were.
        self._requested: set[int] = set()
        self._rounds = 0

    def begin(self, *, by_hand: bool = False) -> Pass:
        """Begin an iteration over the next epoch; `by_hand` if it is a loop's and not Keras's."""
        with self.loader.passes() as passes:
            begun = passes.open(by_hand=by_hand, asks_ahead=not by_hand)
        if not by_hand:
            self.of_keras = begun
        return begun

    def take_back(self, begun: Pass) -> None:
        """The iteration was only a look: the next one gets its epoch again."""
        with self.loader.passes() as passes:
            passes.take_back(begun)

    def enter(self, begun: Pass | None) -> Pass | None:
        """What this thread requests from now on belongs to this iteration, or with None to none; returns the one before."""
        before, self._under_way.of = self._under_way.of, begun
        return before

    def forget(self) -> None:
        """What was requested outside of iterations were looks."""
        with self.loader.passes() as passes:
            passes.forget()
        self._requested, self._rounds = set(), 0

    def end(self) -> None:
        """What was requested outside of iterations has been used."""
        self.loader.on_epoch_end()
        self._requested, self._rounds = set(), 0

    def request(self, index: int) -> tuple[Any, ...]:
        """The batch that ``index`` means in the iteration that is under way in this thread, or outside of any."""
        of = self._under_way.of
        if of is None and self.loader.shuffle:
            self._count(index)
        return self.loader.batch(index, of)

    def _count(self, index: int) -> None:
        self._requested.add(index)
        if len(self._requested) == len(self.loader):
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
