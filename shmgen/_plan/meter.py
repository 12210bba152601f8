"""Counts the batches of one loader, and what it waits for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from shmgen._plan.stats import Stats


class TimeSpent(NamedTuple):
    """What workers have spent their time on: seconds, summed over all workers that there have been."""

    busy: float = 0.0  # readers had tickets
    cpu: float = 0.0  # they ran, or were ready to run
    function: float = 0.0  # functions and sources of the user's own ran
    function_wait: float = 0.0  # readers waited for their turn to call these


class Meter:
    """Counts what one prefetcher delivers, with this number of workers that have started, or 1 if the main process reads."""

    def __init__(self, now: float, workers: int, sample_bytes: int) -> None:
        # As in `Stats`; to be added to.
        self.batch_wait = self.slot_wait = self.late_wait = 0.0
        # Of the batch that was requested last.
        self.epoch: int | None = None
        self._batches = self._samples = self._replaced = 0
        # When the first batch was requested, and delivered; 0 until then.
        self._requested = self._first = 0.0
        # When the last batch was delivered; until then, when the loader was made.
        self.last = now
        # What had been waited for and done at the first delivery: it belongs to the start.
        self._at_first = Stats()
        # All, as it was when the present epoch began; None in the first epoch.
        self._before_epoch: Stats | None = None
        self._workers = workers
        self._sample_bytes = sample_bytes
        # Worker-seconds until the number of workers changed last, and when that was.
        self._capacity_until, self._changed = 0.0, now

    def set_workers(self, now: float, workers: int) -> None:
        """From now on there are this many workers that have started and not ended."""
        self._capacity_until, self._changed, self._workers = self._capacity(now), now, workers

    def _capacity(self, now: float) -> float:
        """Seconds in which there have been workers, summed over them."""
        return self._capacity_until + self._workers * max(0.0, now - self._changed)

    def begin_epoch(self, epoch: int, now: float, stats: Stats) -> None:
        """The first batch of another epoch is requested; ``stats`` is what has been done so far."""
        self.epoch = epoch
        if not self._requested:
            self._requested = now
        elif self._first:
            capacity = self._capacity(now) - self._at_first.capacity
            self._before_epoch = replace(stats, elapsed=now - self._first, capacity=capacity, epoch=None)

    def count_batch(self, rows: int, replaced: int, now: float, spent: Callable[[], TimeSpent]) -> None:
        """Count a batch that is handed out, ``replaced`` of whose rows hold a replacement; the start ends with the first one."""
        self._batches += 1
        self._samples += rows
        self._replaced += replaced
        self.last = now
        if not self._first:
            self._first = now
            self._at_first = self._totals(spent())

    def _totals(self, spent: TimeSpent) -> Stats:
        waits: dict[str, Any] = {"batch_wait": self.batch_wait, "slot_wait": self.slot_wait, "late_wait": self.late_wait}
        return Stats(**waits, capacity=self._capacity(self.last), **spent._asdict())

    def stats(self, spent: TimeSpent, **known: Any) -> Stats:
        """What has been done so far; ``known`` are the fields of `Stats` that are counted elsewhere."""
        if not self._first:
            return Stats(**known)
        stats = replace(
            self._totals(spent).since(self._at_first),
            batches=self._batches,
            samples=self._samples,
            bytes=self._samples * self._sample_bytes,
            elapsed=self.last - self._first,
            startup=self._first - self._requested,
            replaced=self._replaced,
            **known,
        )
        before = self._before_epoch
        return stats if before is None else replace(stats, epoch=stats.since(before))
