"""Deadlines in seconds of a quiet machine: where others take the processors, there is more time, and no more than they take."""

from __future__ import annotations

import time

PROBE = 0.05
"""Seconds of a processor that are taken to see what share of one the machine gives."""


def slowness() -> float:
    """Seconds that pass here while a process gets a second of a processor: 1 on an idle machine."""
    begun, used = time.monotonic(), time.thread_time()
    while (took := time.thread_time() - used) < PROBE:
        pass
    return max(1.0, (time.monotonic() - begun) / took)


class Deadline:
    """A time limit of ``within`` seconds on a quiet machine, which begins when it is made.

    The machine is looked at only once that time is over, so a limit that is kept costs nothing.
    """

    def __init__(self, within: float) -> None:
        self.within = within
        self._begun = time.monotonic()
        self._limit = within

    def __str__(self) -> str:
        return f"{self.within:g} s" + (f", here {self._limit:.1f} s" if self._limit > self.within else "")

    @property
    def passed(self) -> bool:
        """Whether the time is over, at what the machine gives at this moment."""
        while (took := time.monotonic() - self._begun) > self._limit:
            limit = self.within * slowness()
            if limit <= took:
                return True
            self._limit = limit
        return False

    @property
    def left(self) -> float:
        """Seconds to wait before `passed` is asked again."""
        return max(0.0, self._begun + self._limit - time.monotonic())
