"""What a worker process runs: it sets itself up as the main process says, and then its readers take tickets.

It imports the standard library, NumPy if a row needs it, and what the user's functions import. It holds no list of ids. It ends
when the main process ends the queue, closes the stream between them or dies, whatever it is doing.
"""

from __future__ import annotations

import io
import os
import pickle
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any, NamedTuple

from shmgen._memory.limit_errors import named, note
from shmgen._memory.records import READERS, USED
from shmgen._memory.segments import Segments
from shmgen._memory.status_page import StatusPage
from shmgen._samples.packed_ids import PackedIds
from shmgen._sources.base import error_text
from shmgen._worker.liveness import begin, end_in_time
from shmgen._worker.protocol import CTRL_C, ENDS, LENGTH_BYTES, LOGGED, READY, UNABLE, frame, processor_times
from shmgen._worker.reader_threads import Descriptors, Readers
from shmgen._worker.ticket_filler import TicketFiller
from shmgen.errors import StartError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of mallopt(3)."""

KEPT = 32 << 20
"""Bytes of free memory that a thread keeps, at most; by default 128 KiB."""

_sending = threading.RLock()
"""Held while a message is sent: readers send, and threads of the user's functions log."""


class Start(NamedTuple):
    """The only message to a worker. ``keys`` and ``filler`` are pickled, since unpickling may need ``path``."""

    parent: int  # process id of the main process
    number: int  # of the worker
    path: list[str]  # sys.path of the main process
    draws: bool  # functions of the user's are called, which may draw random numbers
    slot_bytes: int
    keys: bytes  # the `PackedIds` of each table of keys
    filler: bytes  # the `TicketFiller`
    context: tuple[Any, ...] | None  # what the user's code is to find here, the fields of a `Context`; None without such code
    idle: float  # seconds between checks; a worker that has had nothing to do since the last check ends


def main(stream: int, liveness: int, *inherited: int) -> None:
    """Serve the main process at the other end of ``stream``, a connected socket, until it ends; ``liveness`` is as in `begin`.

    The descriptors ``inherited`` are those of `Descriptors`; then, for each table of keys, that of its memory, -1 without one.
    """
    count = len(Descriptors._fields)
    fds, stored = Descriptors(*inherited[:count]), inherited[count:]
    begin(liveness, stream, *inherited)
    if os.sched_getscheduler(0) == os.SCHED_OTHER:
        # A worker that gets a ticket waits for its turn. Otherwise it may take the processor from the trainer's thread, which has
        # just put the ticket and is about to go on: that doubled the time until a trainer had a batch that was ready.
        with suppress(OSError):  # a sandbox may forbid it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    start = _receive(stream)
    if start is None:
        return
    readers: Readers | None = None

    def ends() -> bool:
        # A ticket that is taken at this moment is not lost: the main process finds it on the status page of the ended worker.
        return readers is not None and readers.were_idle() and _send(stream, ENDS)

    threading.Thread(target=end_in_time, args=(stream, start.parent, start.idle, ends), daemon=True).start()

    # The main process blocked Ctrl-C while it started this one. It handles Ctrl-C itself, except while its main thread waits
    # inside a framework for a batch whose read hangs: then only a message from a worker can end the wait.
    def send_ctrl_c(*_: object) -> None:
        # In a thread, since it may have interrupted `_send` itself.
        threading.Thread(target=_send, args=(stream, CTRL_C + pickle.dumps(time.monotonic())), daemon=True).start()

    signal.signal(signal.SIGINT, send_ctrl_c)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    sys.path[:] = start.path
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    try:
        with named():
            page, segments = StatusPage(fds.page), Segments(fds.segment, start.slot_bytes)
        if start.draws:
            from shmgen._worker.rng import seed_late

            seed_late()
        filler = _filler(stream, start)
        if "numpy" in sys.modules:
            _keep_freed_memory()
        tables: list[PackedIds] = pickle.loads(start.keys)
        for table, fd in zip(tables, stored, strict=True):
            if fd >= 0:
                table.attach(fd)
        starting = Readers(start.number, fds, segments, tables, page, filler, lambda message: _send(stream, message))
        filler.set_up()
        opened = starting.opened(0)
    except Exception as error:
        note(error)
        failure = error if isinstance(error, StartError) else StartError(f"a worker can't start: {error_text(error)}")
        _send(stream, UNABLE + pickle.dumps(failure))
        return
    page.words[READERS] = 1
    page.words[USED] = sum(processor_times("self").values())
    _send(stream, READY)
    readers = starting  # from now on the worker ends if it is idle: a long setup, or a source that opens slowly, is no idleness
    readers.run(opened)


def _keep_freed_memory() -> None:
    """Have the C library reuse the memory of dropped arrays.

    By default it takes the memory of each array of 128 KiB or more from the system, and returns it. The kernel then clears the
    pages of a photo three times while it is decoded: 0.6 of 1.5 ms for 500 x 375 pixels (measured with `ImageDecoder.decode`).
    """
    import ctypes

    with suppress(AttributeError):  # a C library without mallopt
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, KEPT // 2)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT)


def _filler(stream: int, start: Start) -> TicketFiller:
    if start.context is None:
        ours: TicketFiller = pickle.loads(start.filler)
        if "logging" in sys.modules:  # a source of remote files has it, and may have something to say
            from shmgen._worker.context import forward

            forward(lambda message: _send(stream, LOGGED + message), {}, 0)
        return ours
    # Late: imports are most of a worker's start, and few workers need it.
    from shmgen._worker.context import Context, warning_of_frameworks

    context = Context(*start.context)
    context.enter(lambda message: _send(stream, LOGGED + message))
    try:
        with warning_of_frameworks():
            filler: TicketFiller = pickle.loads(start.filler)
    except Exception as error:
        raise StartError(
            "a worker can't import what functions of yours need: make it importable in a process that does not run your script, "
            f"define what you need of it in the script itself, or use workers=0; {error_text(error)}"
        ) from error
    context.filter_warnings()
    return filler


def _receive(stream: int) -> Start | None:
    """Wait for the `Start`; None if the main process has gone."""
    try:
        with open(stream, "rb", closefd=False) as file:
            file.read(LENGTH_BYTES)
            return Start(*pickle.load(file))
    except (ConnectionResetError, EOFError, pickle.UnpicklingError):
        return None


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
