"""What has been done since a loader began, in a stretch of time, and what there is to do it with.

Pure: whoever has the counters makes `Progress` of them.
"""

from __future__ import annotations

from typing import NamedTuple


class Progress(NamedTuple):
    """What has been done since the loader began.

    Attributes:
        time: seconds, of a monotonic clock.
        rows: rows that workers have finished.
        waited: seconds in which the trainer waited for a batch; a wait that lasts is included.
        busy: seconds in which readers had a ticket, summed over them. A ticket is added when it ends.
        cpu: seconds in which workers' threads had a processor or wanted one, summed.
        workers: how many workers there are.
        ready: how many of these have started.
        reads: readers of each.
    """

    time: float
    rows: int
    waited: float
    busy: float
    cpu: float
    workers: int
    ready: int
    reads: int


class Target(NamedTuple):
    """How many workers there should be, and how many readers each should have."""

    workers: int
    reads: int

    @property
    def readers(self) -> int:
        """Reads in flight, over all workers."""
        return self.workers * self.reads

    def __str__(self) -> str:
        return f"{self.workers} workers, {self.reads} reads each"


class Limits(NamedTuple):
    """How many workers there may be, and how many readers each may have."""

    workers: int
    reads: int


class Window(NamedTuple):
    """What was done in a stretch of time; the fields are those of `Progress`.

    Attributes:
        readers: how many there were at the end.
    """

    seconds: float = 0.0
    rows: int = 0
    waited: float = 0.0
    busy: float = 0.0
    cpu: float = 0.0
    readers: int = 0

    def plus(self, start: Progress, end: Progress) -> Window:
        """With what was done between two looks."""
        return Window(
            self.seconds + end.time - start.time,
            self.rows + end.rows - start.rows,
            self.waited + end.waited - start.waited,
            self.busy + end.busy - start.busy,
            self.cpu + end.cpu - start.cpu,
            end.workers * end.reads,
        )

    @property
    def rate(self) -> float:
        """Rows a second."""
        return self.rows / self.seconds if self.seconds else 0.0

    @property
    def pace(self) -> float:
        """Rows a second that the readers do, if they always have a ticket.

        In a short window this is exact, while `rate` errs by the tickets that the window's ends cut through. But where many
        readers have no ticket, it says too much: so it is `rate` and a quarter of it at most.
        """
        return min(1.25 * self.rate, self.readers * self.rows / self.busy) if self.busy else 0.0

    @property
    def cover(self) -> float:
        """The part of the readers' time that tickets took which ended. It is near 1 in a window that is long beside tickets."""
        return self.busy / (self.readers * self.seconds) if self.seconds else 0.0

    @property
    def wait(self) -> float:
        """The fraction of the time in which the trainer waited, from 0 to 1."""
        return min(1.0, self.waited / self.seconds) if self.seconds else 0.0

    @property
    def blocked(self) -> float:
        """The fraction of their busy time in which readers waited for what they read, from 0 to 1."""
        return max(0.0, 1 - self.cpu / self.busy) if self.busy else 0.0

    @property
    def fill(self) -> float:
        """How many such readers keep a processor busy."""
        return 1 / max(1e-6, 1 - self.blocked)
