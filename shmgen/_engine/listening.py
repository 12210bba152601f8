"""Lets several threads wait for workers: one of them listens, the others sleep until it has returned."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from shmgen._engine.workers import Workers

LEAVE_WITHIN = 1.0
"""Seconds that a listening thread has to return at the end."""

LONGEST_WAIT = 86_400.0
"""Seconds; the kernel counts milliseconds in 31 bits."""

RaisedT = TypeVar("RaisedT", bound=BaseException)


class Listening:
    """A prefetcher's lock, and waiting with the lock free. All but `lock` is used with the lock held."""

    def __init__(self, workers: Workers) -> None:
        self.lock = threading.RLock()
        # The last exception that left the state consistent, such as an interrupt of a wait.
        self.clean_error: BaseException | None = None
        self._workers = workers
        self._returned = threading.Condition(self.lock)
        self.listener: int | None = None  # the thread that listens

    def clean(self, error: RaisedT) -> RaisedT:
        """Mark ``error``, which the caller raises, as one that leaves the state consistent; returns it."""
        self.clean_error = error
        return error

    def unlocked(self, act: Callable[[], None]) -> None:
        """Call ``act`` with the lock released. What it raises counts as clean, since nothing is half done then."""
        try:
            self.lock.release()
            act()
        except BaseException as error:
            self.clean_error = error
            raise
        finally:
            if not self.lock._is_owned():  # type: ignore[attr-defined] # an interrupt may strike on either side of the release
                self.lock.acquire()

    def wake(self) -> None:
        """Have the listening thread return."""
        if self.listener is not None:
            self._workers.wake()

    def listen(self, seconds: float) -> None:
        """Wait for the workers, at most this long; then wake the threads that sleep."""
        limit = None if seconds == math.inf else min(seconds, LONGEST_WAIT)
        try:
            self.listener = threading.get_ident()
            self.unlocked(lambda: self._workers.wait(limit))
        finally:
            self.listener = None
            self._returned.notify_all()

    def sleep(self, seconds: float) -> None:
        """Wait until the listening thread has returned, at most this long."""
        try:
            self._returned.wait(min(seconds, LONGEST_WAIT))
        except BaseException as error:
            self.clean_error = error
            raise

    def end(self) -> None:
        """Have all threads return, and wait until the listening one has, unless it is this one, in a signal's handler."""
        self._returned.notify_all()
        self._workers.wake()
        deadline = time.monotonic() + LEAVE_WITHIN
        while self.listener not in (None, threading.get_ident()) and time.monotonic() < deadline:
            self._returned.wait(deadline - time.monotonic())
