"""The readers of a worker: threads, each of which takes tickets from the queue and fills their rows.

The first is the main thread. Where reading waits for a disk or a network the main process asks for more, so that many reads are
in flight; where it does not, more than one would only fight for the interpreter.
"""

from __future__ import annotations

import os
import pickle
import resource
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from shmgen._memory.segments import Segments
from shmgen._memory.status_page import BUSY, EAGER, READERS, READS, ROW, StatusPage
from shmgen._samples.packed_ids import PackedIds
from shmgen._sources.base import IDLE, row_of
from shmgen._worker.assembler import BatchAssembler, Task
from shmgen._worker.protocol import FAILED, LOGGED, REPORT, TICKET, UNABLE
from shmgen.errors import StartError

WAITING_TICKETS = 8
"""After a read that had to wait, so many tickets more are read as if they had to wait as well."""

EPOCH, POSITION, ROWS, SAMPLES = range(4)
"""The words of a sheet: the epoch, the position of the batch's first row in it, how many rows it has; then the sample of each row
that is yet to be read."""

READ = b"\xff" * 8
"""In place of a sample: the row has been read."""

LONG = 5_000_000
"""Nanoseconds; the main process is woken for a ticket that took longer, to see what reading takes."""

SELDOM = 4 * LONG
"""But not again within so many nanoseconds: with many reads in flight there are thousands of such tickets a second."""


class Descriptors(NamedTuple):
    """What a worker inherits, beside the stream and the pipe that end it: descriptors.

    Attributes:
        segment: of the ring's memory.
        page: of its own status page.
        queue: of the pipe that tickets come from.
        reports: of the pipe that tells which are done.
        bell: of the eventfd that wakes the main process.
    """

    segment: int
    page: int
    queue: int
    reports: int
    bell: int


class Readers:
    """The readers of this process.

    Args:
        number: of the worker.
        fds: what it has inherited.
        segments: the ring.
        tables: of keys of all samples, their ids first; see `key_tables`.
        page: this worker's status page.
        assembler: fills the rows of a ticket.
        send: sends the main process a message; False if that has gone.
    """

    def __init__(
        self,
        number: int,
        fds: Descriptors,
        segments: Segments,
        tables: Sequence[PackedIds],
        page: StatusPage,
        assembler: BatchAssembler,
        send: Callable[[bytes], bool],
    ) -> None:
        self._number = number
        self._fds = fds
        self._segments = segments
        self._tables = [table.take for table in tables]
        self._page = page
        self._assembler = assembler
        self._send = send
        self._prints = not assembler.is_ours
        self._one_at_a_time = threading.Lock()
        self._changing = threading.Lock()
        self._running = {0}
        self._rang = 0

    def run(self, first: BatchAssembler) -> None:
        """Take tickets until the main process ends; with as many readers as it asks for."""
        self._run(0, first)

    def opened(self, number: int) -> BatchAssembler:
        """What the reader of this number fills rows with.

        Raises:
            StartError: a source can't be opened.
        """
        return self._assembler.opened(self._page.records[number][ROW:], self._one_at_a_time, in_worker=True)

    def _run_further(self, number: int) -> None:
        """Be a further reader, in a thread of its own. If it can't be, the others do the work."""
        try:
            try:
                opened = self.opened(number)
            except StartError as error:
                self._warn(str(error))
            else:
                self._run(number, opened)
        except BaseException as end:
            # It ends the process, as in the main thread: else this thread alone would end, and its ticket be waited for in vain.
            if isinstance(end, SystemExit):
                os._exit(end.code if isinstance(end.code, int) else 1)
            sys.excepthook(type(end), end, end.__traceback__)
            os._exit(1)

    def _warn(self, reason: str) -> None:
        text = f"worker {self._number} has fewer reads in flight than are wanted: {reason}"
        self._send(LOGGED + pickle.dumps({"name": "shmgen", "levelno": 30, "levelname": "WARNING", "msg": text}))

    def _run(self, number: int, assembler: BatchAssembler) -> None:
        wanted, ticket, record = self._page.words, self._page.tickets[number], self._page.records[number]
        queue, buffers, now = self._fds.queue, [ticket], time.monotonic_ns
        waiting = 0
        while self._stays(number) if wanted[READS] != len(self._running) else True:
            if not os.readv(queue, buffers):
                return
            id, slot, start, stop, _ = TICKET.unpack(ticket)
            waits, began = _waits(), now()
            failed = b""
            try:
                sheet = self._fill(assembler, slot, start, stop, io_waits=waiting > 0)
            except StartError as error:
                self._send(UNABLE + pickle.dumps(error))
                return
            except Exception as error:
                failed = FAILED + pickle.dumps((id, row_of(record[ROW]), error))
                record[ROW] = IDLE
            if self._prints and sys.stdout is not None:
                sys.stdout.flush()  # what functions have printed would be lost when this process is killed
            waiting = WAITING_TICKETS if _waits() > waits else max(0, waiting - 1)
            took = now() - began
            record[BUSY] += took
            if failed:
                if not self._send(failed):
                    return
                continue
            try:
                os.write(self._fds.reports, REPORT.pack(id, self._number, waiting > 0))
                # Who writes last sees what the others have marked: the pipe's lock is between.
                if wanted[EAGER] or _is_read(sheet) or (took > LONG and began + took > self._rang + SELDOM):
                    self._rang = began + took
                    os.eventfd_write(self._fds.bell, 1)
            except BrokenPipeError:
                return

    def _fill(self, assembler: BatchAssembler, slot: int, start: int, stop: int, *, io_waits: bool) -> memoryview:
        """Fill the rows of a ticket, and mark them as read; the slot's sheet."""
        try:
            memory = self._segments[slot]
        except OSError as error:  # the ring has grown
            raise StartError(f"the ring can't be mapped: {error}") from None
        sheet = memory[assembler.sheet_offset :]
        words = sheet.cast("q")
        samples = words[SAMPLES + start : SAMPLES + stop].tolist()
        try:
            assembler.fill(memory, Task(start, words[EPOCH], words[POSITION] + start, samples, self._tables), io_waits=io_waits)
        finally:  # also if it failed: whoever reads the last rows of the batch is to wake the main process
            sheet[8 * (SAMPLES + start) : 8 * (SAMPLES + stop)] = READ * (stop - start)
        return sheet

    def _stays(self, number: int) -> bool:
        """Start the readers that are wanted and not there; whether the reader of this number is wanted itself."""
        with self._changing:
            wanted = self._page.words[READS]
            for other in range(wanted):
                if other not in self._running:
                    self._running.add(other)  # also if it can't start, so that it is not tried again and again
                    # At once, since a ticket on a record that nobody looks at would be lost at a death.
                    self._page.words[READERS] = max(self._page.words[READERS], other + 1)
                    try:
                        threading.Thread(target=self._run_further, args=(other,), daemon=True).start()
                    except RuntimeError as error:
                        self._warn(str(error))
            if number >= wanted:
                self._running.discard(number)
            return number < wanted


def _is_read(sheet: memoryview) -> bool:
    """Whether all rows of a batch have been read."""
    size = 8 * int.from_bytes(sheet[8 * ROWS : 8 * SAMPLES], sys.byteorder)
    return sheet[8 * SAMPLES : 8 * SAMPLES + size].tobytes() == b"\xff" * size


def _waits() -> int:
    """How often this thread has had to wait for something, such as a disk, since it started."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
