"""The worker processes: starts, talks to, and stops them.

One socket a worker, and nothing shared between them but the ring: a worker that dies keeps no lock, and what it held is known.
"""

from __future__ import annotations

import errno
import os
import pickle
import select
import socket
import subprocess
import time
from collections import deque
from contextlib import ExitStack, nullcontext, suppress
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from shmgen._memory.limit_errors import FILES, START, named
from shmgen._memory.ring import Ring
from shmgen._memory.status_page import BUSY, RECORD_WORDS, ROW, USED
from shmgen._sources.base import IDLE, row_of
from shmgen._sources.rng import own_random_state
from shmgen._worker.assembler import BatchAssembler, Task
from shmgen._worker.context import Context, environment, interpreter, places, search_path
from shmgen._worker.log_forwarding import Echo
from shmgen._worker.main import Setup
from shmgen._worker.pickling import dumps
from shmgen._worker.protocol import (
    DONE,
    FAILED,
    INTERRUPTED,
    READY,
    SAID,
    WAITED,
    Unframer,
    frame,
    packed,
    processor_time,
)
from shmgen._worker.signals import undisturbed
from shmgen.errors import WorkerDied

BOOT = "import sys; sys.path.append(sys.argv[1]); from shmgen._worker.main import main; main(*map(int, sys.argv[2:]))"
"""What a worker runs. It is no copy of the parent: neither the caller's ``__main__`` nor ``site`` is imported."""

GRACE = 0.2
"""Seconds that workers have to end by themselves when they are stopped, before they are killed."""


KILL_GRACE = 1.0
"""Seconds that a killed worker has to be gone."""


class EventKind(Enum):
    """What a worker can be heard of."""

    READY = "it has begun"
    DONE = "its oldest task is done: whether lately there were waits, for a disk or a network"
    FAILED = "its oldest task can't be done: the number of the row where that is known, and the error"
    DROPPED = "its oldest task was interrupted, and must be begun anew"
    UNABLE = "it can't begin"
    INTERRUPTED = "Ctrl-C reached it"
    DIED = "it has died"


class Event(NamedTuple):
    """What was heard of a worker, and what goes with it."""

    worker: int
    what: EventKind
    detail: Any = None


class Workers(Protocol):
    """Those who do the tasks, each in the order in which they were given to it."""

    @property
    def pids(self) -> list[int]:
        """Process ids, by worker; none where the tasks are done in the calling process."""

    def send(self, worker: int, tasks: list[Task]) -> None:
        """Give ``tasks`` to ``worker``, without waiting."""

    def wait(self, timeout: float | None, only: int | None) -> None:
        """Wait until a worker says something or dies, `wake` is called, or ``timeout`` seconds have passed.

        Takes nothing in, so that an interrupt loses nothing.

        Args:
            timeout: None waits for ever.
            only: listen to this worker alone; what the others say is kept, their deaths are noticed all the same.
        """

    def wake(self) -> None:
        """End a `wait`, from another thread."""

    def poll_events(self) -> list[Event]:
        """What workers have said since it was last called."""

    def at(self, worker: int) -> int:
        """Which row of its oldest task ``worker`` is at, as `BatchAssembler.open` says it."""

    def use(self) -> tuple[float, float]:
        """Seconds in which workers had tasks, and in which they had a processor or wanted one; of all there have been."""

    def is_stopped(self, worker: int) -> bool:
        """Whether ``worker`` has been stopped, as by SIGSTOP."""

    def kill(self, worker: int) -> None:
        """End ``worker``, whatever it is doing; what comes of it will be heard."""

    def restart(self, worker: int) -> None:
        """Put another in the place of ``worker``, which has died, or can't be killed and is left to itself."""

    def add(self) -> None:
        """Begin one more, with the next number."""

    def dismiss(self) -> None:
        """End the one with the highest number, which has nothing to do."""

    def stop(self) -> None:
        """End them all; may be called again."""


class Pool:
    """Worker processes that fill a ring.

    Args:
        workers: how many.
        ring: what they fill.
        assembler: how they fill it.

    Raises:
        InputError: something in ``assembler`` can't be sent to them, or this program can't start any.
    """

    def __init__(self, workers: int, ring: Ring, assembler: BatchAssembler) -> None:
        self._owner = os.getpid()
        self._ring = ring
        self._draws = assembler.calls_functions
        self._command = [*interpreter(), "-c", BOOT, str(Path(__file__).parents[2])]
        self._environ, corrections = environment(assembler.seed)
        self._path = search_path()
        self._context: tuple[Any, ...] | None = None
        if assembler.is_ours:
            self._assembler = pickle.dumps(assembler)
        else:
            placed = places()
            self._assembler, sources = dumps(assembler, placed)
            self._context = tuple(Context.here(corrections, placed, sources))
        self._echo = Echo()
        with named(FILES), ExitStack() as undo:
            self._wakeup = Wakeup()
            undo.callback(self._wakeup.close)
            self._poll = select.epoll()
            undo.pop_all()
        self._workers: list[_Process] = []
        self._left: list[_Process] = []
        # Nanoseconds of those that are no more.
        self._busy = self._cpu = 0
        self._by_fd: dict[int, int] = {}
        self._only: dict[int, select.poll] = {}
        self._poll.register(self._wakeup.fd, select.EPOLLIN)
        try:
            with undisturbed():
                # All are under way before the first is told what to do.
                for _ in range(workers):
                    self._workers.append(self._start())
                for number in range(workers):
                    self._introduce(number)
        except BaseException:
            self.stop()
            raise

    def __repr__(self) -> str:
        return f"{len(self._workers)} workers"

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.process.pid for worker in self._workers]

    def _start(self) -> _Process:
        # No word serves two: whoever can't be killed may write to its own yet.
        taken = {worker.word for worker in self._workers + self._left}
        free = [word for word in range(0, len(self._ring.status_page), RECORD_WORDS) if word not in taken]
        if not free:
            raise OSError(errno.EAGAIN, f"there is no room on the board for more than {len(taken)} workers")
        with named(START):
            return _Process(self._command, self._environ, self._ring.fd, free[0])

    def _introduce(self, number: int) -> None:
        """Tell a worker that has been started what it will have to do."""
        worker = self._workers[number]
        self._only.clear()
        for fd in worker.fds:
            self._by_fd[fd] = number
            self._poll.register(fd, select.EPOLLIN)
        for word in range(RECORD_WORDS):
            self._ring.status_page[worker.word + word] = 0
        setup = Setup(os.getpid(), self._path, worker.word, self._draws, self._assembler, self._context)
        self._send(number, pickle.dumps([tuple(setup)]))

    def send(self, worker: int, tasks: list[Task]) -> None:
        self._send(worker, pickle.dumps([(*task[:-1], packed(task.ids)) for task in tasks]))

    def _send(self, number: int, message: bytes) -> None:
        worker = self._workers[number]
        if not worker.send(frame(message)) and worker.socket.fileno() in self._by_fd:
            self._poll.modify(worker.socket, select.EPOLLIN | select.EPOLLOUT)

    def wait(self, timeout: float | None, only: int | None) -> None:
        if only is None or any(worker.has_more for worker in self._workers):  # to tell them, as soon as they take more
            self._poll.poll(timeout)
        else:
            self._listening_to(only).poll(None if timeout is None else 1000 * timeout)

    def _listening_to(self, number: int) -> select.poll:
        if number not in self._only:
            self._only[number] = poll = select.poll()
            poll.register(self._wakeup.fd, select.POLLIN)
            for fd, worker in self._by_fd.items():
                if worker == number or fd != self._workers[worker].socket.fileno():
                    poll.register(fd, select.POLLIN)
        return self._only[number]

    def wake(self) -> None:
        self._wakeup.ring()

    def poll_events(self) -> list[Event]:
        events = []
        for fd, what in self._poll.poll(0):
            if fd == self._wakeup.fd:
                self._wakeup.silence()
            elif fd in self._by_fd:
                number = self._by_fd[fd]
                worker = self._workers[number]
                if what & select.EPOLLOUT and worker.send(b""):
                    self._poll.modify(worker.socket, select.EPOLLIN)
                # Whichever descriptor told of a death, what the worker said before it counts.
                alive, messages = worker.receive()
                for message in messages:
                    if message[:1] == SAID:
                        self._echo.handle(worker.process.pid, message[1:])
                    else:
                        events.append(_understood(number, message))
                if not alive or fd != worker.socket.fileno():
                    self._forget(number)
                    _reap(worker.process, time.monotonic() + GRACE)
                    events.append(
                        Event(number, EventKind.DIED, WorkerDied(number, worker.process.pid, worker.process.returncode))
                    )
        return events

    def at(self, worker: int) -> int:
        return self._ring.status_page[self._workers[worker].word + ROW]

    def use(self) -> tuple[float, float]:
        if self._ring.status_page:  # it is still open
            for worker in self._workers:
                worker.busy = self._ring.status_page[worker.word + BUSY]
                # Of one that has died it is not known any more.
                if worker.busy and (used := processor_time(worker.process.pid)):
                    worker.cpu = used - self._ring.status_page[worker.word + USED]
        busy = self._busy + sum(worker.busy for worker in self._workers)
        return busy / 1e9, (self._cpu + sum(worker.cpu for worker in self._workers)) / 1e9

    def is_stopped(self, worker: int) -> bool:
        try:
            status = Path(f"/proc/{self._workers[worker].process.pid}/stat").read_text()
        except OSError:
            return False
        return status.rpartition(")")[2].split()[0] in "Tt"

    def kill(self, worker: int) -> None:
        self._workers[worker].process.kill()

    def restart(self, worker: int) -> None:
        self._part_with(worker)
        with undisturbed():
            self._workers[worker] = self._start()
            self._introduce(worker)

    def add(self) -> None:
        with undisturbed():
            self._workers.append(self._start())
            self._introduce(len(self._workers) - 1)

    def dismiss(self) -> None:
        self._part_with(len(self._workers) - 1)
        self._workers.pop()

    def _part_with(self, number: int) -> None:
        """Leave a worker to itself: it has died, or ends when it finds that nobody talks to it any more, or hangs."""
        self.use()
        self._forget(number)
        worker = self._workers[number]
        self._busy += worker.busy
        self._cpu += worker.cpu
        worker.shutdown()
        self._left.append(worker)
        for left in self._left:
            if left.process.poll() is not None:
                left.close()
        self._left = [left for left in self._left if left.process.returncode is None]

    def _forget(self, number: int) -> None:
        """Listen to a worker no more."""
        self._only.clear()
        for fd in self._workers[number].fds:
            if self._by_fd.pop(fd, None) is not None:
                self._poll.unregister(fd)

    def stop(self) -> None:
        self._workers += self._left
        self._left = []
        if os.getpid() == self._owner:
            deadline = time.monotonic() + GRACE
            for worker in self._workers:
                worker.shutdown()
            for worker in self._workers:
                _reap(worker.process, deadline)
        else:
            for worker in self._workers:
                worker.process.returncode = 0  # they are the parent's, and no child's to wait for
        for worker in self._workers:
            worker.close()
        self._poll.close()
        self._wakeup.close()


class InProcess:
    """Does the tasks in the calling process, where a debugger stops in them.

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
        if self._events:  # by whoever was interrupted before it could take it in
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
            self._wakeup.silence()

    def wake(self) -> None:
        self._wakeup.ring()

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


def _understood(worker: int, message: bytes) -> Event:
    word, rest = message[:1], message[1:]
    if word in (DONE, WAITED):
        return Event(worker, EventKind.DONE, word == WAITED)
    if word == READY:
        return Event(worker, EventKind.READY)
    if word == INTERRUPTED:
        return Event(worker, EventKind.INTERRUPTED, float(rest))
    return Event(worker, EventKind.FAILED if word == FAILED else EventKind.UNABLE, pickle.loads(rest))


class _Process:
    """The parent's side of one worker, whose words on the board begin at ``word``."""

    def __init__(self, command: list[str], environ: dict[str, str], segment: int, word: int) -> None:
        self.word = word
        # Nanoseconds, as they were when somebody last asked.
        self.busy = self.cpu = 0
        self._pidfd = self._liveness = -1
        self._unframer = Unframer()
        self._unsent = bytearray()
        with ExitStack() as theirs:
            self.socket, stream = socket.socketpair()
            theirs.callback(stream.close)
            try:
                # The kernel ends the worker when nobody holds our end of it any more.
                liveness, self._liveness = os.pipe()
                theirs.callback(os.close, liveness)
                fds = stream.fileno(), segment, liveness
                self.process = subprocess.Popen(
                    [*command, *map(str, fds)],
                    stdin=subprocess.DEVNULL,
                    env=environ,
                    pass_fds=fds,
                )
            except BaseException:
                self.close()
                raise
        with suppress(OSError):  # a kernel older than 5.3; the end of the stream tells of a death, unless a child keeps it open
            self._pidfd = os.pidfd_open(self.process.pid)

    @property
    def fds(self) -> list[int]:
        """What becomes readable when the worker speaks or dies."""
        return [fd for fd in (self.socket.fileno(), self._pidfd) if fd >= 0]

    @property
    def has_more(self) -> bool:
        """Whether there is something to send for which there was no room yet."""
        return bool(self._unsent)

    def send(self, data: bytes) -> bool:
        """Send ``data`` behind what is still unsent; whether all of it is on its way."""
        self._unsent += data
        try:
            sent = self.socket.send(self._unsent, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError):
            sent = len(self._unsent)  # it has died, which `wait` will tell
        del self._unsent[:sent]
        return not self._unsent

    def receive(self) -> tuple[bool, list[bytes]]:
        """Whether the stream is still open, and the messages that have come."""
        messages: list[bytes] = []
        while True:
            try:
                data = self.socket.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return True, messages
            except ConnectionResetError:
                return False, messages
            messages += self._unframer.feed(data)
            if not data:
                return False, messages
            if len(data) < 1 << 16:
                return True, messages

    def shutdown(self) -> None:
        """End the stream, also where a fork keeps it open: for the worker that is the end."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def close(self) -> None:
        """Give up the descriptors."""
        self.socket.close()
        for fd in (self._pidfd, self._liveness):
            if fd >= 0:
                os.close(fd)
        self._pidfd = self._liveness = -1


class Wakeup:
    """Ends a wait from another thread."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def ring(self) -> None:
        if self.fd >= 0:
            os.eventfd_write(self.fd, 1)

    def silence(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self.fd)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _reap(process: subprocess.Popen[bytes], deadline: float) -> None:
    """Wait until ``process`` has ended, and kill it at ``deadline``."""
    try:
        process.wait(max(0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        with suppress(subprocess.TimeoutExpired):  # one that hangs in the kernel is left to it
            process.wait(KILL_GRACE)
