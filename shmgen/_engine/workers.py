"""What the engine asks of workers, and the events that they report. `Pool` has processes, `InProcess` has none."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from enum import Enum
from typing import Any, NamedTuple, Protocol

from shmgen._plan.meter import TimeSpent
from shmgen._plan.schedule import Ticket
from shmgen._worker import protocol


class EventKind(Enum):
    """What can happen. The detail of a worker's message is what is pickled in it; other events name theirs after the colon."""

    READY = protocol.READY  # this and the next ones are the words that a worker's messages begin with
    FAILED = protocol.FAILED
    UNABLE = protocol.UNABLE
    ENDS = protocol.ENDS
    CTRL_C = protocol.CTRL_C
    DONE = (
        "tickets are done, by any workers: for each its number, the worker, whether reads have waited for I/O lately, and the "
        "microseconds it took"
    )
    ABORTED = "a ticket was interrupted, and its batch must be read anew: its number"
    DIED = "a worker has died: the error to raise"


class Event(NamedTuple):
    """What has happened, and to which worker."""

    worker: int
    what: EventKind
    detail: Any = None


class Workers(Protocol):
    """Workers by number; their readers take tickets in the order in which these were put."""

    @property
    def pids(self) -> Mapping[int, int]:
        """Process ids, by worker; none if the main process reads."""

    def put(self, tickets: Sequence[Ticket]) -> None:
        """Have ``tickets`` done, without waiting."""

    def take_back(self) -> list[int]:
        """Empty the queue of tickets; the numbers of those that were in it, in order."""

    def wait(self, timeout: float | None) -> None:
        """Wait until something happens, `wake` is called, or ``timeout`` seconds have passed; None: without limit.

        Nothing is received here, so that an interrupt loses nothing.
        """

    def wake(self) -> None:
        """End a `wait`; to be called from another thread."""

    def poll_events(self) -> list[Event]:
        """What has happened since the last call."""

    def poll_reports(self) -> list[Event]:
        """The `EventKind.DONE` events since the last call; others are left to `poll_events`."""

    def claims(self, worker: int) -> Mapping[int, tuple[int, int]]:
        """By reader of ``worker``: the ticket that it took last, and the row that it is at, as a source marks it."""

    def time_spent(self) -> TimeSpent:
        """What workers have spent their time on."""

    def is_stopped(self, worker: int) -> bool:
        """Whether ``worker`` has been stopped, as by SIGSTOP."""

    def kill(self, worker: int) -> None:
        """Kill ``worker``; its death is an event."""

    def restart(self, worker: int, reads: int) -> None:
        """Start a replacement, with ``reads`` readers, for ``worker``, which has died or can't be killed."""

    def add(self, reads: int) -> int:
        """Start one more worker, with ``reads`` readers; its number."""

    def retire(self, worker: int) -> None:
        """Have ``worker`` end when it has done the next ticket; its death is an event."""

    def remove(self, worker: int) -> None:
        """Forget ``worker``, which has died."""

    def set_reads(self, count: int) -> None:
        """From now on each worker has ``count`` readers."""

    def set_eager(self, eager: bool) -> None:
        """With ``eager``, every ticket that is done ends a `wait`; without, a batch's last one, or one that took long."""

    def stop(self) -> None:
        """End all workers; may be called again."""


class Wakeup:
    """A descriptor that any thread or process makes readable, to end a wait."""

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
