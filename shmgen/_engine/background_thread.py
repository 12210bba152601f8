"""A thread that does what the trainer's thread need not do itself."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue

IDLE = 1.0
"""Seconds without a request after which the thread ends."""

log = logging.getLogger("shmgen")


class Background:
    """Calls a method in a thread of its own, soon after each request.

    The thread is started by the first request. It ends when it has had no request for a second, when the method says so, or when
    the method's object is gone, which it does not keep alive. The method returns whether there may be more requests.
    """

    def __init__(self, method: Callable[[], bool]) -> None:
        self._method = weakref.WeakMethod(method)
        self._requests: SimpleQueue[None] = SimpleQueue()
        self._runs = False
        self._can_start = True

    def request(self) -> bool:
        """Have the method called, unless a request waits already; False if no thread can be started. For one thread at a time."""
        if self._requests.empty():
            self._requests.put(None)
        if not self._runs and self._can_start:
            try:
                self._runs = True
                threading.Thread(target=self._run, name="shmgen", daemon=True).start()
            except RuntimeError as error:  # this user may have no more threads, or the program is ending
                self._runs = self._can_start = False
                # As text: handlers may keep the record, and with an error's traceback all of the loader.
                log.warning("no thread can be started in the background, so requests for batches read ahead: %s", str(error))
        return self._can_start

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
