"""The body of a worker process: reads the rows it is told to into the ring, and says so.

It imports the standard library only, NumPy where a row needs it, and what the user's functions import; it holds no list of ids.
It ends when its parent closes the stream between them or dies, whatever it is doing.
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
from shmgen._sources.base import IDLE, row_of, told
from shmgen._worker.assembler import BatchAssembler, Task
from shmgen._worker.liveness import begin, end_with_parent
from shmgen._worker.protocol import (
    DONE,
    FAILED,
    INTERRUPTED,
    READY,
    SAID,
    UNABLE,
    WAITED,
    Unframer,
    frame,
    processor_time,
    unpacked,
)
from shmgen.errors import StartError

WAITING_PIECES = 8
"""Pieces for which the kernel goes on being asked to read ahead after the last read that had to wait."""


_one_at_a_time = threading.RLock()
"""Held by the thread that sends a message: the user's functions may have others, which log."""


class Setup(NamedTuple):
    """The first message to a worker; the others are lists of tasks.

    Attributes:
        parent: process id of the parent.
        path: ``sys.path`` of the parent.
        word: the first of this worker's on the board.
        draws: whether functions of the user's are called, which may draw random numbers.
        assembler: does the tasks; pickled apart because ``path`` may be needed to load it.
        context: what user's code is to find here, the fields of a `Context`; None if there is no such code.
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
    # The parent blocks Ctrl-C around our birth. It is the parent's to act on; but where its main thread waits inside a framework
    # for a batch that a stuck read holds up, word from here is all that can end that wait.
    signal.signal(signal.SIGINT, lambda *_: _tell_aside(stream, INTERRUPTED + repr(time.monotonic()).encode()))
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
        _tell(stream, UNABLE + pickle.dumps(error))
        return
    except Exception as error:
        note(error)
        _tell(stream, UNABLE + pickle.dumps(StartError(f"a worker can't begin: {told(error)}")))
        return
    status_page[USED] = processor_time("self")
    _tell(stream, READY)
    _serve(inbox, stream, assembler, memory, segment, status_page)


def _assembler(stream: int, setup: Setup) -> BatchAssembler:
    if setup.context is None:
        return pickle.loads(setup.assembler)  # type: ignore[no-any-return]
    from shmgen._worker.context import Context  # late, as all that few workers need: imports are most of a worker's start

    context = Context(*setup.context)
    context.enter(lambda message: _tell(stream, SAID + message))
    from shmgen._worker.pickling import loads

    assembler: BatchAssembler = loads(setup.assembler)
    context.heed_warnings()
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
                _tell(stream, UNABLE + pickle.dumps(error))
                return
        # Files in the page cache are read without a wait, and hints would only cost time.
        if waiting:
            if fields is not hinted:
                _hint(assembler, task)
            if (hinted := inbox.following()) is not None:
                _hint(assembler, _task(hinted))
        waits, start = _waits(), time.monotonic_ns()
        failed = b""
        try:
            assembler.fill(memory, task)
        except Exception as error:
            failed = FAILED + pickle.dumps((row_of(status_page[ROW]), error))
            status_page[ROW] = IDLE
        if assembler.calls_functions and sys.stdout is not None:
            sys.stdout.flush()  # what functions print would be lost when this process is ended
        waiting = WAITING_PIECES if _waits() > waits else max(0, waiting - 1)
        status_page[BUSY] += time.monotonic_ns() - start
        if not _tell(stream, failed or (WAITED if waiting else DONE)):
            return


def _mapped(segment: int) -> memoryview:
    """The ring, as far as it has grown."""
    try:
        with named(MAPPING):
            return memoryview(mmap.mmap(segment, 0))
    except OSError as error:
        raise StartError(f"the ring can't be mapped: {error}") from None


def _hint(assembler: BatchAssembler, task: Task) -> None:
    with suppress(Exception):  # a hint is no more; reading will tell
        assembler.hint(task)


def _task(fields: tuple[Any, ...]) -> Task:
    *numbers, ids = fields
    return Task._make([*numbers, unpacked(ids)])


class _Inbox:
    """What the parent has sent: messages are lists of things to be taken in turn."""

    def __init__(self, stream: int) -> None:
        self._stream = stream
        self._unframer = Unframer()
        # Unpickled in their turn: until the setup has been heeded, what tasks are made of can't be imported.
        self._messages: deque[bytes] = deque()
        self._things: deque[Any] = deque()

    def next(self) -> Any:
        """The next thing, waited for; None once the parent has gone."""
        while not self._unpickle():
            if not self._receive():
                return None
        return self._things.popleft()

    def following(self) -> Any:
        """What `next` will return, if it has come."""
        while select.select([self._stream], [], [], 0)[0] and self._receive():
            pass
        return self._things[0] if self._unpickle() else None

    def _unpickle(self) -> bool:
        """Whether there is a thing to take."""
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


def _tell(stream: int, message: bytes) -> bool:
    """Send ``message`` to the parent; False once it has gone."""
    data = frame(message)
    try:
        with _one_at_a_time:
            while data:  # a signal may cut short what is long
                data = data[os.write(stream, data) :]
    except (BrokenPipeError, ConnectionResetError):
        return False
    return True


def _tell_aside(stream: int, message: bytes) -> None:
    """Send ``message`` from a signal handler, which may have struck amid another."""
    threading.Thread(target=_tell, args=(stream, message), daemon=True).start()


def _waits() -> int:
    """How often this thread has had to wait for something, a disk for instance, since it began."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
