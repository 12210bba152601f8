"""What workers and the trainer did in a stretch of time, as the autoscaler sees it."""

from __future__ import annotations

from typing import NamedTuple


class Target(NamedTuple):
    """How many workers there should be, and how many readers each should have."""

    workers: int
    reads: int

    @property
    def readers(self) -> int:
        """Readers of all workers: the reads in flight."""
        return self.workers * self.reads

    def __str__(self) -> str:
        return f"{self.workers} workers, {self.reads} reads each"


class Counters(NamedTuple):
    """What has been done since the loader was made, and the workers and readers there are to do it."""

    time: float  # seconds, of a monotonic clock
    rows: int  # that have been read
    waited: float  # seconds the trainer waited for batches, up to now if it is waiting
    busy: float  # seconds readers had a ticket, summed over readers; counted when a ticket ends
    cpu: float  # seconds workers' threads ran or were ready to run, summed over threads
    target: Target  # how many workers and readers are wanted
    started: int  # how many of the workers have started


class Window(NamedTuple):
    """What was done in a stretch of time; fields as in `Counters`, with the number of readers at its end."""

    seconds: float = 0.0
    rows: int = 0
    waited: float = 0.0
    busy: float = 0.0
    cpu: float = 0.0
    readers: int = 0

    def plus(self, start: Counters, end: Counters) -> Window:
        """This window, extended by the time between two looks."""
        return Window(
            self.seconds + end.time - start.time,
            self.rows + end.rows - start.rows,
            self.waited + end.waited - start.waited,
            self.busy + end.busy - start.busy,
            self.cpu + end.cpu - start.cpu,
            end.target.readers,
        )

    @property
    def pace(self) -> float:
        """Rows a second the readers would read if each always had a ticket; at most 1.25 times the rows a second they did read.

        In a short window the latter is off by the tickets that the window's ends cut through; this is not. It is too high where
        many readers have no ticket, hence the bound.
        """
        did_read = self.rows / self.seconds if self.seconds else 0.0
        return min(1.25 * did_read, self.readers * self.rows / self.busy) if self.busy else 0.0

    @property
    def cover(self) -> float:
        """Time of the tickets that ended, as a fraction of the readers' time: near 1 in a window much longer than a ticket."""
        return self.busy / (self.readers * self.seconds) if self.seconds else 0.0

    @property
    def wait(self) -> float:
        """The fraction of the time the trainer waited, from 0 to 1."""
        return min(1.0, self.waited / self.seconds) if self.seconds else 0.0

    @property
    def blocked(self) -> float:
        """The fraction of their busy time readers waited for what they read, from 0 to 1."""
        return max(0.0, 1 - self.cpu / self.busy) if self.busy else 0.0

    @property
    def fill(self) -> float:
        """How many such readers keep a processor busy."""
        return 1 / max(1e-6, 1 - self.blocked)
