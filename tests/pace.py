"""Deadlines in seconds of a quiet machine: they are extended in proportion when other programs use the processors."""

from __future__ import annotations

import time

AT_ONCE, PROMPTLY = 2.0, 6.0
"""Seconds within which must happen what is promised at once, and what takes a few starts of workers."""

PROBE = 0.05
"""Processor time, in seconds, spent on measuring the share of a processor that this process gets."""


def slowness() -> float:
    """Elapsed seconds per second of processor time: 1 on an idle machine."""
    begun, used = time.monotonic(), time.thread_time()
    while (took := time.thread_time() - used) < PROBE:
        pass
    return max(1.0, (time.monotonic() - begun) / took)


class Deadline:
    """A time limit of ``within`` seconds on a quiet machine, counted from when this object is made.

    The machine's load is measured only after that time, so a limit that is kept costs nothing.
    """

    def __init__(self, within: float) -> None:
        self.within = within
        self._begun = time.monotonic()
        self._limit = within

    def __str__(self) -> str:
        return f"{self.within:g} s" + (f", here {self._limit:.1f} s" if self._limit > self.within else "")

    @property
    def passed(self) -> bool:
        """Whether the time is over, given the present load of the machine."""
        while (took := time.monotonic() - self._begun) > self._limit:
            limit = self.within * slowness()
            if limit <= took:
                return True
            self._limit = limit
        return False

    @property
    def left(self) -> float:
        """Seconds to wait before `passed` should be asked again."""
        return max(0.0, self._begun + self._limit - time.monotonic())
