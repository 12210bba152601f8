"""The worker processes: how they are started, given tasks, listened to, and stopped.

Each worker has a socket of its own, and shares nothing with the others but the ring: a worker that dies holds no lock, and it is
known which tasks it had.
"""

from __future__ import annotations

import errno
import os
import pickle
import select
from collections import deque
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, Protocol

from shmgen._memory.limit_errors import FILES, named
from shmgen._memory.ring import Ring
from shmgen._memory.status_page import BUSY, RECORD_WORDS, ROW, USED
from shmgen._sources.base import IDLE, row_of
from shmgen._sources.rng import own_random_state
from shmgen._worker.assembler import BatchAssembler, Task
from shmgen._worker.context import Context, environment, places, search_path
from shmgen._worker.launch import Child, Launcher, end
from shmgen._worker.log_forwarding import ForwardedLogs
from shmgen._worker.main import Setup
from shmgen._worker.pickling import dumps
from shmgen._worker.protocol import (
    DONE,
    FAILED,
    INTERRUPTED,
    LOGGED,
    READY,
    WAITED,
    packed,
    processor_time,
)
from shmgen._worker.signals import deferred_signals
from shmgen.errors import WorkerDied

GRACE = 0.2
"""Seconds that workers have to end by themselves at a stop, before they are killed."""


class EventKind(Enum):
    """What can happen to a worker; the event's detail is what follows a colon."""

    READY = "it has started"
    DONE = "its oldest task is done: whether reads had to wait lately, for a disk or a network"
    FAILED = "its oldest task failed: the number of the row, None if not known, and the error"
    DROPPED = "its oldest task was interrupted, and must be done again"
    UNABLE = "it can't start, or can't go on: the error"
    INTERRUPTED = "Ctrl-C reached it: the time, of time.monotonic"
    DIED = "it has died: the error to raise"


class Event(NamedTuple):
    """What has happened to a worker."""

    worker: int
    what: EventKind
    detail: Any = None


class Workers(Protocol):
    """Workers, each of which does its tasks in the order in which it got them."""

    @property
    def pids(self) -> list[int]:
        """Process ids, by worker; none if the tasks are done in the main process."""

    def send(self, worker: int, tasks: list[Task]) -> None:
        """Give ``tasks`` to ``worker``, without waiting."""

    def wait(self, timeout: float | None, only: int | None) -> None:
        """Wait until a worker sends something or dies, `wake` is called, or ``timeout`` seconds have passed.

        Nothing is received here, so that an interrupt loses nothing.

        Args:
            timeout: None waits for ever.
            only: the only worker whose messages end the wait; the death of any worker ends it too.
        """

    def wake(self) -> None:
        """End a `wait`; to be called from another thread."""

    def poll_events(self) -> list[Event]:
        """What has happened since the last call."""

    def at(self, worker: int) -> int:
        """Which row of its oldest task ``worker`` is at, as `BatchAssembler.open` defines it."""

    def use(self) -> tuple[float, float]:
        """Seconds in which workers had tasks, and in which they ran or were ready to run; summed over all there have been."""

    def is_stopped(self, worker: int) -> bool:
        """Whether ``worker`` has been stopped, as by SIGSTOP."""

    def kill(self, worker: int) -> None:
        """Kill ``worker``, whatever it is doing; its death is an event."""

    def restart(self, worker: int) -> None:
        """Start a replacement for ``worker``, which has died, or can't be killed and is left alone."""

    def add(self) -> None:
        """Start one more worker, with the next number."""

    def dismiss(self) -> None:
        """End the worker with the highest number, which has no tasks."""

    def stop(self) -> None:
        """End all workers; may be called again."""


class Pool:
    """Worker processes that fill a ring.

    Args:
        workers: how many.
        ring: what they fill.
        assembler: how they fill it.

    Raises:
        InputError: something in ``assembler`` can't be sent to workers, or this program can't start any.
    """

    def __init__(self, workers: int, ring: Ring, assembler: BatchAssembler) -> None:
        self._ring = ring
        self._draws = assembler.calls_functions
        variables, corrections = environment(assembler.seed)
        self._launcher = Launcher("shmgen._worker.main", variables)
        self._path = search_path()
        self._context: tuple[Any, ...] | None = None
        if assembler.is_ours:
            self._assembler = pickle.dumps(assembler)
        else:
            placed = places()
            self._assembler, sources = dumps(assembler, placed)
            self._context = tuple(Context.capture(corrections, placed, sources))
        self._forwarded_logs = ForwardedLogs()
        with named(FILES), ExitStack() as undo:
            self._wakeup = Wakeup()
            undo.callback(self._wakeup.close)
            self._poll = select.epoll()
            undo.pop_all()
        self._workers: list[_Worker] = []
        self._left: list[_Worker] = []
        # Nanoseconds of workers that have ended.
        self._busy = self._cpu = 0
        self._by_fd: dict[int, int] = {}
        self._only: dict[int, select.poll] = {}
        self._poll.register(self._wakeup.fd, select.EPOLLIN)
        try:
            with deferred_signals():
                # All are started before the first gets its setup, so that they start at the same time.
                for _ in range(workers):
                    self._workers.append(self._start())
                for number in range(workers):
                    self._set_up(number)
        except BaseException:
            self.stop()
            raise

    def __repr__(self) -> str:
        return f"{len(self._workers)} workers"

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.child.pid for worker in self._workers]

    def _start(self) -> _Worker:
        # No record is used by two: a worker that can't be killed may still write to its own.
        taken = {worker.word for worker in self._workers + self._left}
        free = [word for word in range(0, len(self._ring.status_page), RECORD_WORDS) if word not in taken]
        if not free:
            raise OSError(errno.EAGAIN, f"there is no room on the status page for more than {len(taken)} workers")
        return _Worker(self._launcher.start(self._ring.fd), free[0])

    def _set_up(self, number: int) -> None:
        """Send its setup to a worker that has been started, and listen to it."""
        worker = self._workers[number]
        self._only.clear()
        for fd, events in worker.child.events.items():
            self._by_fd[fd] = number
            self._poll.register(fd, events)
        for word in range(RECORD_WORDS):
            self._ring.status_page[worker.word + word] = 0
        setup = Setup(os.getpid(), self._path, worker.word, self._draws, self._assembler, self._context)
        self._send(number, pickle.dumps([tuple(setup)]))

    def send(self, worker: int, tasks: list[Task]) -> None:
        self._send(worker, pickle.dumps([(*task[:-1], packed(task.ids)) for task in tasks]))

    def _send(self, number: int, message: bytes) -> None:
        child = self._workers[number].child
        child.send(message)
        if child.has_unsent and child.stream in self._by_fd:
            self._poll.modify(child.stream, child.events[child.stream])

    def wait(self, timeout: float | None, only: int | None) -> None:
        if only is None or any(worker.child.has_unsent for worker in self._workers):
            self._poll.poll(timeout)
        else:
            self._poll_of(only).poll(None if timeout is None else 1000 * timeout)

    def _poll_of(self, number: int) -> select.poll:
        if number not in self._only:
            self._only[number] = poll = select.poll()
            poll.register(self._wakeup.fd, select.POLLIN)
            for fd, worker in self._by_fd.items():
                if worker == number or fd != self._workers[worker].child.stream:
                    poll.register(fd, select.POLLIN)
        return self._only[number]

    def wake(self) -> None:
        self._wakeup.set()

    def poll_events(self) -> list[Event]:
        events = []
        for fd, what in self._poll.poll(0):
            if fd == self._wakeup.fd:
                self._wakeup.clear()
            elif fd in self._by_fd:
                number = self._by_fd[fd]
                child = self._workers[number].child
                if what & select.EPOLLOUT:
                    child.flush()
                    self._poll.modify(fd, child.events[fd])
                messages, ended = child.receive(fd)
                for message in messages:
                    if message[:1] == LOGGED:
                        self._forwarded_logs.handle(child.pid, message[1:])
                    else:
                        events.append(_event(number, message))
                if ended:
                    self._forget(number)
                    events.append(Event(number, EventKind.DIED, WorkerDied(number, child.pid, child.join(GRACE))))
        return events

    def at(self, worker: int) -> int:
        return self._ring.status_page[self._workers[worker].word + ROW]

    def use(self) -> tuple[float, float]:
        if self._ring.status_page:  # not closed yet
            for worker in self._workers:
                worker.busy = self._ring.status_page[worker.word + BUSY]
                # The kernel no longer knows it of a worker that has died.
                if worker.busy and (used := processor_time(worker.child.pid)):
                    worker.cpu = used - self._ring.status_page[worker.word + USED]
        busy = self._busy + sum(worker.busy for worker in self._workers)
        return busy / 1e9, (self._cpu + sum(worker.cpu for worker in self._workers)) / 1e9

    def is_stopped(self, worker: int) -> bool:
        try:
            import psutil  # late, since the first batch need not wait for it

            status = psutil.Process(self._workers[worker].child.pid).status()
        except (ImportError, OSError):  # this process can open no more files
            return False
        except psutil.Error:  # it has died
            return False
        return status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)

    def kill(self, worker: int) -> None:
        self._workers[worker].child.kill()

    def restart(self, worker: int) -> None:
        self._let_go(worker)
        with deferred_signals():
            self._workers[worker] = self._start()
            self._set_up(worker)

    def add(self) -> None:
        with deferred_signals():
            self._workers.append(self._start())
            self._set_up(len(self._workers) - 1)

    def dismiss(self) -> None:
        self._let_go(len(self._workers) - 1)
        self._workers.pop()

    def _let_go(self, number: int) -> None:
        """Give up a worker: it has died, ends when it notices the end of its stream, or hangs."""
        self.use()
        self._forget(number)
        worker = self._workers[number]
        self._busy += worker.busy
        self._cpu += worker.cpu
        worker.child.shutdown()
        self._left.append(worker)
        for left in self._left:
            if left.child.process.poll() is not None:
                left.child.close()
        self._left = [left for left in self._left if left.child.process.returncode is None]

    def _forget(self, number: int) -> None:
        """Stop listening to a worker."""
        self._only.clear()
        for fd in self._workers[number].child.events:
            if self._by_fd.pop(fd, None) is not None:
                self._poll.unregister(fd)

    def stop(self) -> None:
        self._workers += self._left
        self._left = []
        end([worker.child for worker in self._workers], GRACE)
        self._poll.close()
        self._wakeup.close()


@dataclass
class _Worker:
    """A worker.

    Attributes:
        child: its process.
        word: index of the first word of its record on the status page.
        busy, cpu: nanoseconds in which it had tasks, and in which it ran or was ready to run, when these were last read.
    """

    child: Child
    word: int
    busy: int = 0
    cpu: int = 0


class InProcess:
    """Does the tasks in the main process, where a debugger can stop in them.

    Args:
        ring: what is filled.
        assembler: how it is filled.
    """

    def __init__(self, ring: Ring, assembler: BatchAssembler) -> None:
        self._at = [IDLE]
        assembler.open(self._at)
        with named(FILES):
            self._wakeup = Wakeup()
        self._ring = ring
        self._assembler = assembler
        self._tasks: deque[Task] = deque()
        self._events: list[Event] = []

    def __repr__(self) -> str:
        return "0 workers"

    @property
    def pids(self) -> list[int]:
        return []

    def send(self, worker: int, tasks: list[Task]) -> None:
        self._tasks.extend(tasks)

    def wait(self, timeout: float | None, only: int | None) -> None:
        if self._events:  # an earlier caller was interrupted before it could handle them
            return
        if self._tasks:
            events = Event(0, EventKind.DROPPED)
            try:
                with own_random_state() if self._assembler.calls_functions else nullcontext():
                    self._assembler.fill(self._ring.memory, self._tasks[0])
                events = Event(0, EventKind.DONE, False)
            except Exception as error:
                events = Event(0, EventKind.FAILED, (row_of(self._at[0]), error))
            finally:
                self._events.append(events)
                self._tasks.popleft()
        else:
            select.select([self._wakeup.fd], [], [], timeout)
            self._wakeup.clear()

    def wake(self) -> None:
        self._wakeup.set()

    def poll_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def at(self, worker: int) -> int:
        return self._at[0]

    def use(self) -> tuple[float, float]:
        return 0.0, 0.0

    def is_stopped(self, worker: int) -> bool:
        return False

    def kill(self, worker: int) -> None:
        raise NotImplementedError

    restart = kill

    def add(self) -> None:
        raise NotImplementedError

    dismiss = add

    def stop(self) -> None:
        self._tasks.clear()
        self._wakeup.close()


def _event(worker: int, message: bytes) -> Event:
    word, rest = message[:1], message[1:]
    if word in (DONE, WAITED):
        return Event(worker, EventKind.DONE, word == WAITED)
    if word == READY:
        return Event(worker, EventKind.READY)
    if word == INTERRUPTED:
        return Event(worker, EventKind.INTERRUPTED, float(rest))
    return Event(worker, EventKind.FAILED if word == FAILED else EventKind.UNABLE, pickle.loads(rest))


class Wakeup:
    """Ends a wait from another thread: makes a descriptor readable."""

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
