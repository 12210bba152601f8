"""The thread in which the user's functions run: a worker's main one, however many threads read.

Connections to databases, `signal.alarm` and `numpy.seterr` belong to a thread; so functions find the same one at each call.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue

_Call = tuple[Callable[[], None], "SimpleQueue[Exception | None]"]


class MainThread:
    """Calls functions for other threads, one at a time."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()

    def call(self, function: Callable[[], None]) -> None:
        """Have ``function`` called there, wait until it has returned, and raise what it raised; for other threads."""
        answer: SimpleQueue[Exception | None] = SimpleQueue()
        self._calls.put((function, answer))
        error = answer.get()
        if error is not None:
            raise error

    def wake(self) -> None:
        """Have `serve` return."""
        self._calls.put(None)

    def serve(self) -> None:
        """Call what other threads ask for, until `wake`. What is no Exception, such as SystemExit, is raised here."""
        while (call := self._calls.get()) is not None:
            function, answer = call
            try:
                function()
            except Exception as error:
                answer.put(error)
            else:
                answer.put(None)
