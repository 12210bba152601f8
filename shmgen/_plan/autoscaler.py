"""How many workers there should be: given how long the trainer waits, it answers with a number and the reason.

Pure: no process and no clock, so that each decision is a plain unit test.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

from shmgen._plan.stats import Decision, Stats

WAITS = 0.05
"""A trainer that waits for more than this fraction of its time is worth another worker."""

HELPS = 0.05
"""Another worker is kept if the rate of batches grows by this fraction, or more."""

SPARE = 0.8
"""A worker is retired if the others would have work for less than this fraction of the time without it."""

PATIENCE = 4
"""So many windows pass before what did not help is tried again; twice as many each time."""

CALM = 3
"""So many windows in a row must show that one worker less would do."""

SECONDS, BATCHES = 1.0, 8
"""A window lasts for so many seconds and batches, at least."""

log = logging.getLogger("shmgen")


class Window(NamedTuple):
    """What was seen in a stretch of time.

    Attributes:
        rate: batches delivered a second.
        wait: the fraction of the time in which the trainer waited for batches.
        load: how many workers had work, on average.
    """

    rate: float
    wait: float
    load: float


class AutoscalePolicy:
    """Finds the number of workers by trying: one more while the trainer waits and it helps, one less where that changes nothing.

    Args:
        workers: how many there are at first.
        fewest: never fewer.

    Attributes:
        workers: how many there should be now.
    """

    def __init__(self, workers: int, fewest: int = 1) -> None:
        self.workers = workers
        self._fewest = fewest
        # What was seen before the last change, while it is on trial.
        self._before: Window | None = None
        self._change = 0
        self._calm = 0
        # Windows that have yet to pass before one more, or one less, is tried again; and how many the next failure costs.
        self._pause = {1: 0, -1: 0}
        self._penalty = {1: PATIENCE, -1: PATIENCE}

    def see(self, window: Window, most: int) -> str | None:
        """Take in a window; `workers` is right afterwards.

        Args:
            window: what was seen since the last call.
            most: how many workers there may be now.

        Returns:
            Why the number has changed; None if it has not.
        """
        for change in self._pause:
            self._pause[change] = max(0, self._pause[change] - 1)
        if self._before is not None:
            return self._judge(self._before, window)
        if self.workers > max(most, self._fewest):
            return self._to(self.workers - 1, f"there is room for {most} only")
        if window.wait > WAITS:
            self._calm = 0
            if self.workers < most and not self._pause[1]:
                self._before, self._change = window, 1
                return self._to(self.workers + 1, f"the trainer waited {window.wait:.0%} of the time")
            return None
        self._calm = self._calm + 1 if window.load < SPARE * (self.workers - 1) else 0
        if self._calm >= CALM and self.workers > self._fewest and not self._pause[-1]:
            self._before, self._change, self._calm = window, -1, 0
            return self._to(
                self.workers - 1,
                f"{window.load:.1f} of {self.workers} had work, and the trainer waited {window.wait:.0%} of the time",
            )
        return None

    def _judge(self, before: Window, window: Window) -> str | None:
        """Keep the last change if it helped, or at least did no harm; else take it back."""
        self._before = None
        change = self._change
        if change > 0 and window.rate >= before.rate * (1 + HELPS):
            self._penalty[change] = PATIENCE
            return None
        if change < 0 and (window.wait <= WAITS or window.rate >= before.rate):
            return None
        self._pause[change] = self._penalty[change]
        self._penalty[change] *= 2
        if change > 0:
            return self._to(self.workers - 1, f"one more changed {before.rate:.1f} batches a second to {window.rate:.1f}")
        return self._to(self.workers + 1, f"with one less, the trainer waited {window.wait:.0%} of the time")

    def _to(self, workers: int, reason: str) -> str:
        self.workers = workers
        return reason


class Autoscaler:
    """Cuts time into windows, and gives an `AutoscalePolicy` what was measured in them.

    Args:
        policy: decides on the number of workers.
        most: the largest allowed number, given how many there are and the fraction of their work in which they wait for I/O.

    Attributes:
        decisions: the changes so far.
    """

    def __init__(self, policy: AutoscalePolicy, most: Callable[[int, float], int]) -> None:
        self.decisions: list[Decision] = []
        self._policy = policy
        self._most = most
        self._epoch = -1
        self._start = Stats()

    def is_over(self, epoch: int, elapsed: float, batches: int) -> bool:
        """Whether the current window is long enough.

        A window ends with its epoch and is ignored then: nobody knows what the caller does between two epochs.

        Args:
            epoch: whose batches are delivered.
            elapsed: seconds from the first request for a batch to the last delivery.
            batches: delivered so far.
        """
        start = self._start
        return epoch != self._epoch or (elapsed - start.elapsed >= SECONDS and batches - start.batches >= BATCHES)

    def see(self, epoch: int, stats: Stats) -> int:
        """Look at the window that is over, and begin the next.

        Args:
            epoch: whose batches are delivered.
            stats: of all that has been done so far.

        Returns:
            How many workers there should be.
        """
        seen, self._start = stats.since(self._start), stats
        if epoch == self._epoch:
            window = Window(seen.rate, seen.batch_wait / seen.elapsed, seen.busy_workers)
            if reason := self._policy.see(window, self._most(self._policy.workers, seen.io_wait)):
                self.decisions.append(Decision(stats.elapsed, self._policy.workers, reason))
                log.info("%d workers from now on: %s", self._policy.workers, reason)
        self._epoch = epoch
        return self._policy.workers
