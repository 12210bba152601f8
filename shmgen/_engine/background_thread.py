"""A thread that does what the trainer's thread need not do itself."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue

IDLE = 1.0
"""Seconds without a request after which the thread ends."""


class Background:
    """Calls a method in a thread of its own, soon after each request.

    The thread is started by the first request. It ends when it has had no request for a second, when the method says so, or when
    the method's object is gone, which it does not keep alive. The method returns whether there may be more requests.
    """

    def __init__(self, method: Callable[[], bool]) -> None:
        self._method = weakref.WeakMethod(method)
        self._requests: SimpleQueue[None] = SimpleQueue()
        self._runs = False

    def request(self) -> None:
        """Have the method called, unless a request waits already. Not to be called by two threads at once."""
        if self._requests.empty():
            self._requests.put(None)
        if not self._runs:
            self._runs = True
            threading.Thread(target=self._run, name="shmgen", daemon=True).start()

    def end(self) -> None:
        """Wake the thread, if there is one, so that it calls the method once more and ends if that returns False."""
        if self._runs:
            self._requests.put(None)

    def _run(self) -> None:
        # A request made between the timeout and the last line is served by the thread that the next request starts.
        try:
            while self._is_wanted():
                pass
        finally:
            self._runs = False

    def _is_wanted(self) -> bool:
        try:
            self._requests.get(timeout=IDLE)
        except Empty:
            return False
        method = self._method()
        return method is not None and method()
