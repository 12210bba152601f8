"""What a worker process runs: it fills rows of the ring as its tasks say, and reports each task that is done.

It imports the standard library, NumPy if a row needs it, and what the user's functions import. It holds no list of ids. It ends
when the main process closes the stream between them or dies, whatever it is doing.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import resource
import select
import signal
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any, NamedTuple

from shmgen._memory.limit_errors import MAPPING, named, note
from shmgen._memory.status_page import BUSY, RECORD_WORDS, ROW, USED
from shmgen._sources.base import IDLE, error_text, row_of
from shmgen._worker.assembler import BatchAssembler, Task
from shmgen._worker.liveness import begin, end_with_parent
from shmgen._worker.protocol import (
    DONE,
    FAILED,
    INTERRUPTED,
    LOGGED,
    READY,
    UNABLE,
    WAITED,
    Unframer,
    frame,
    processor_time,
    unpacked,
)
from shmgen.errors import StartError

WAITING_PIECES = 8
"""After a read that had to wait, the kernel is asked to read ahead for so many tasks."""

_sending = threading.RLock()
"""Held while a message is sent: the user's functions may have threads of their own, which log."""


class Setup(NamedTuple):
    """The first message to a worker; the others are lists of tasks.

    Attributes:
        parent: process id of the main process.
        path: ``sys.path`` of the main process.
        word: index of the first word of this worker's record on the status page.
        draws: whether functions of the user's are called, which may draw random numbers.
        assembler: does the tasks. It is pickled apart from the rest because ``path`` may be needed to load it.
        context: what the user's code has to find here, the fields of a `Context`; None if there is no such code.
    """

    parent: int
    path: list[str]
    word: int
    draws: bool
    assembler: bytes
    context: tuple[Any, ...] | None


def main(stream: int, liveness: int, segment: int) -> None:
    """Serve the main process at the other end of ``stream`` until it closes it.

    Args:
        stream: descriptor of a connected socket.
        liveness: descriptor of a pipe that the main process holds open as long as it lives.
        segment: descriptor of the ring's shared memory.
    """
    begin(liveness, stream, segment)
    inbox = _Inbox(stream)
    first = inbox.next()
    if first is None:
        return
    setup = Setup(*first)
    threading.Thread(target=end_with_parent, args=(stream, setup.parent), daemon=True).start()
    # The main process has blocked Ctrl-C while it started this one. It handles Ctrl-C itself; but if its main thread waits inside
    # a framework for a batch, and the read of that batch hangs, only a message from a worker can end the wait.
    signal.signal(signal.SIGINT, lambda *_: _send_from_handler(stream, INTERRUPTED + repr(time.monotonic()).encode()))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    sys.path[:] = setup.path
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    try:
        memory = _mapped(segment)
        status_page = memory[8 * setup.word : 8 * (setup.word + RECORD_WORDS)].cast("Q")
        if setup.draws:
            from shmgen._sources.rng import seed_late

            seed_late()
        assembler = _assembler(stream, setup)
        assembler.open(status_page)
    except StartError as error:
        _send(stream, UNABLE + pickle.dumps(error))
        return
    except Exception as error:
        note(error)
        _send(stream, UNABLE + pickle.dumps(StartError(f"a worker can't start: {error_text(error)}")))
        return
    status_page[USED] = processor_time("self")
    _send(stream, READY)
    _serve(inbox, stream, assembler, memory, segment, status_page)


def _assembler(stream: int, setup: Setup) -> BatchAssembler:
    if setup.context is None:
        return pickle.loads(setup.assembler)  # type: ignore[no-any-return]
    from shmgen._worker.context import Context  # late: imports are most of a worker's start, and few workers need it

    context = Context(*setup.context)
    context.enter(lambda message: _send(stream, LOGGED + message))
    from shmgen._worker.pickling import loads

    assembler: BatchAssembler = loads(setup.assembler)
    context.filter_warnings()
    return assembler


def _serve(
    inbox: _Inbox, stream: int, assembler: BatchAssembler, memory: memoryview, segment: int, status_page: memoryview
) -> None:
    waiting = 0
    hinted = None
    while (fields := inbox.next()) is not None:
        task = _task(fields)
        if not assembler.fits(memory, task):  # the ring has grown
            try:
                memory = _mapped(segment)
            except StartError as error:
                _send(stream, UNABLE + pickle.dumps(error))
                return
        # Files in the page cache are read without a wait: hints would only cost time.
        if waiting:
            if fields is not hinted:
                _hint(assembler, task)
            if (hinted := inbox.peek()) is not None:
                _hint(assembler, _task(hinted))
        waits, start = _waits(), time.monotonic_ns()
        failed = b""
        try:
            assembler.fill(memory, task)
        except Exception as error:
            failed = FAILED + pickle.dumps((row_of(status_page[ROW]), error))
            status_page[ROW] = IDLE
        if assembler.calls_functions and sys.stdout is not None:
            sys.stdout.flush()  # what functions have printed would be lost when this process is killed
        waiting = WAITING_PIECES if _waits() > waits else max(0, waiting - 1)
        status_page[BUSY] += time.monotonic_ns() - start
        if not _send(stream, failed or (WAITED if waiting else DONE)):
            return


def _mapped(segment: int) -> memoryview:
    """The ring in its present size."""
    try:
        with named(MAPPING):
            return memoryview(mmap.mmap(segment, 0))
    except OSError as error:
        raise StartError(f"the ring can't be mapped: {error}") from None


def _hint(assembler: BatchAssembler, task: Task) -> None:
    with suppress(Exception):  # reading will raise the same error
        assembler.hint(task)


def _task(fields: tuple[Any, ...]) -> Task:
    *numbers, ids = fields
    return Task._make([*numbers, unpacked(ids)])


class _Inbox:
    """What the main process has sent: each message is a pickled list of things."""

    def __init__(self, stream: int) -> None:
        self._stream = stream
        self._unframer = Unframer()
        # Each is unpickled when it is needed: classes in tasks may be importable only after the setup.
        self._messages: deque[bytes] = deque()
        self._things: deque[Any] = deque()

    def next(self) -> Any:
        """Wait for the next thing, and return it; None if the main process has gone."""
        while not self._unpickle():
            if not self._receive():
                return None
        return self._things.popleft()

    def peek(self) -> Any:
        """What `next` will return; None if it has not come yet."""
        while select.select([self._stream], [], [], 0)[0] and self._receive():
            pass
        return self._things[0] if self._unpickle() else None

    def _unpickle(self) -> bool:
        """Whether there is a thing to return."""
        while self._messages and not self._things:
            self._things.extend(pickle.loads(self._messages.popleft()))
        return bool(self._things)

    def _receive(self) -> bool:
        try:
            data = os.read(self._stream, 1 << 16)
        except ConnectionResetError:
            return False
        self._messages.extend(self._unframer.feed(data))
        return bool(data)


def _send(stream: int, message: bytes) -> bool:
    """Send ``message`` to the main process; False if that has gone."""
    data = frame(message)
    try:
        with _sending:
            while data:  # a signal may interrupt a long write
                data = data[os.write(stream, data) :]
    except (BrokenPipeError, ConnectionResetError):
        return False
    return True


def _send_from_handler(stream: int, message: bytes) -> None:
    """Send ``message`` from a signal handler, which may have interrupted `_send` itself."""
    threading.Thread(target=_send, args=(stream, message), daemon=True).start()


def _waits() -> int:
    """How often this thread has had to wait for something, such as a disk, since it started."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
