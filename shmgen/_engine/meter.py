"""Counts what is delivered, and what is waited for meanwhile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from shmgen._engine.workers import Use
from shmgen._plan.stats import Stats


class Meter:
    """Counts what one prefetcher delivers. To be called with its lock held.

    Args:
        now: the time, in seconds.
        workers: how many workers have started; 1 if all is done in the main process.
        sample_bytes: bytes of a sample in all arrays.

    Attributes:
        batch_wait: seconds in which a batch that was asked for had not been read yet.
        slot_wait: seconds in which all slots were held.
        late_wait: seconds of ``batch_wait`` for batches that could not be read ahead.
        grown: slots that were added.
        epoch: whose batch was asked for last.
        last: when the last batch was delivered; 0 before the first.
    """

    def __init__(self, now: float, workers: int, sample_bytes: int) -> None:
        self.batch_wait = self.slot_wait = self.late_wait = 0.0
        self.grown = 0
        self.epoch: int | None = None
        self._batches = self._samples = self._replaced = 0
        # When the first batch was asked for, when it was delivered, and when the last was; 0 if that has not happened.
        self._asked = self._first = self.last = 0.0
        # What had been waited for and done by the first delivery: it belongs to the start.
        self._at_first = Stats()
        # All, as it was when the present epoch began; None in the first.
        self._before_epoch: Stats | None = None
        self._workers = workers
        self._sample_bytes = sample_bytes
        self._resized = now
        self._worked = 0.0

    def resized(self, now: float, workers: int) -> None:
        """From now on this number of workers have started, and have not ended."""
        self._worked, self._resized, self._workers = self._capacity(now), now, workers

    def _capacity(self, now: float) -> float:
        """Seconds in which there have been workers, summed over them."""
        return self._worked + self._workers * max(0.0, now - self._resized)

    def begin_epoch(self, epoch: int, now: float, stats: Stats) -> None:
        """The first batch of another epoch is asked for; ``stats`` is what has been done so far."""
        self.epoch = epoch
        if not self._asked:
            self._asked = now
        elif self._first:
            capacity = self._capacity(now) - self._at_first.capacity
            self._before_epoch = replace(stats, elapsed=now - self._first, capacity=capacity, epoch=None)

    def count(self, samples: int, replaced: int, now: float) -> bool:
        """Count a batch that is handed out. Returns whether it is the first: then `start` is to be called.

        Args:
            samples: its rows.
            replaced: how many of these another sample replaces.
            now: the time.
        """
        self._batches += 1
        self._samples += samples
        self._replaced += replaced
        self.last = now
        return not self._first

    def start(self, use: Use) -> None:
        """From here on all is counted."""
        self._first = self.last
        self._at_first = self._totals(use)

    def _totals(self, use: Use) -> Stats:
        return Stats(
            batch_wait=self.batch_wait,
            slot_wait=self.slot_wait,
            late_wait=self.late_wait,
            capacity=self._capacity(self.last),
            busy=use.busy,
            cpu=use.cpu,
            function=use.function,
            function_wait=use.function_wait,
        )

    def stats(self, use: Use, **known: Any) -> Stats:
        """What has been done so far.

        Args:
            use: what workers have done with their time.
            known: fields of `Stats` that others know.
        """
        if not self._first:
            return Stats(grown=self.grown, **known)
        stats = replace(
            self._totals(use).since(self._at_first),
            batches=self._batches,
            samples=self._samples,
            bytes=self._samples * self._sample_bytes,
            elapsed=self.last - self._first,
            startup=self._first - self._asked,
            grown=self.grown,
            replaced=self._replaced,
            **known,
        )
        before = self._before_epoch
        return stats if before is None else replace(stats, epoch=stats.since(before))
