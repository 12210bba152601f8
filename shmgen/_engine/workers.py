"""What the engine asks of workers, and what it hears of them; `Pool` has processes, `InProcess` does all in the main process."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from enum import Enum
from typing import Any, NamedTuple, Protocol

from shmgen._plan.meter import Use
from shmgen._plan.schedule import Ticket


class EventKind(Enum):
    """What can happen; the event's detail is what follows a colon."""

    READY = "a worker has started"
    DONE = "tickets are done, by any workers: for each its number, the worker, and whether reads had to wait for I/O lately"
    FAILED = "a ticket failed: its number, the number of the row, None if not known, and the error"
    DROPPED = "a ticket was interrupted, and must be done again: its number"
    UNABLE = "a worker can't start, or can't go on: the error"
    ENDS = "a worker ends, since it has had nothing to do; its death follows"
    INTERRUPTED = "Ctrl-C reached a worker: the time, of time.monotonic"
    DIED = "a worker has died: the error to raise"


class Event(NamedTuple):
    """What has happened, and to which worker."""

    worker: int
    what: EventKind
    detail: Any = None


class Workers(Protocol):
    """Workers, each of which has a number; their readers take tickets in the order in which these were put.

    Attributes:
        are_processes: whether they are; else all is done in the main process.
    """

    are_processes: bool

    @property
    def pids(self) -> Mapping[int, int]:
        """Process ids, by worker; none if the tickets are done in the main process."""

    def put(self, tickets: Sequence[Ticket]) -> None:
        """Have ``tickets`` done, without waiting."""

    def take_back(self) -> list[int]:
        """Take back the tickets that nobody has taken yet; their numbers, in the order in which they were put."""

    def wait(self, timeout: float | None) -> None:
        """Wait until something happens, `wake` is called, or ``timeout`` seconds have passed; None waits for ever.

        Nothing is received here, so that an interrupt loses nothing.
        """

    def wake(self) -> None:
        """End a `wait`; to be called from another thread."""

    def poll_events(self) -> list[Event]:
        """What has happened since the last call."""

    def poll_reports(self) -> list[Event]:
        """Which tickets have been done since the last call, and nothing else that has happened."""

    def claims(self, worker: int) -> Mapping[int, tuple[int, int]]:
        """By reader of ``worker``: the ticket that it took last, and the row that it is at, as a source says it."""

    def use(self) -> Use:
        """What they have done with their time."""

    def is_stopped(self, worker: int) -> bool:
        """Whether ``worker`` has been stopped, as by SIGSTOP."""

    def kill(self, worker: int) -> None:
        """Kill ``worker``, whatever it is doing; its death is an event."""

    def restart(self, worker: int) -> None:
        """Start a replacement for ``worker``, which has died, or can't be killed and is left alone."""

    def add(self) -> int:
        """Start one more worker; its number."""

    def retire(self, worker: int) -> None:
        """Have ``worker`` end when it has done the next ticket; its death is an event."""

    def remove(self, worker: int) -> None:
        """Forget ``worker``, which has died."""

    def set_reads(self, count: int) -> None:
        """From now on each worker has so many readers."""

    def set_eager(self, eager: bool) -> None:
        """Whether each ticket that is done ends a `wait`, and not only the last of a batch, or one that took long."""

    def stop(self) -> None:
        """End all workers; may be called again."""


class Wakeup:
    """Ends a wait from another thread or process: makes a descriptor readable."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def set(self) -> None:
        if self.fd >= 0:
            os.eventfd_write(self.fd, 1)

    def clear(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self.fd)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
