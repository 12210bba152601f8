"""The readers of a worker: threads, each of which takes tickets from the queue and fills their rows.

The first reader is the main thread. Where reading waits for a disk or a network the main process asks for more readers, so that
many reads are in flight; elsewhere they would only compete for the interpreter. While there are several, and the user's functions
are called, the main thread takes no tickets: it calls the functions for all readers.
"""

from __future__ import annotations

import os
import pickle
import resource
import sys
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import NamedTuple

from shmgen._memory.records import (
    BUSY,
    EAGER,
    EPOCH,
    LAST_TICKET,
    POSITION,
    READ_MARK,
    READERS,
    READS,
    REPORT,
    ROW,
    ROWS,
    SAMPLES,
    TICKET,
    WAITED_FOR,
)
from shmgen._memory.segments import Segments
from shmgen._memory.status_page import StatusPage
from shmgen._samples.packed_ids import PackedIds
from shmgen._sources.base import IDLE, row_of
from shmgen._worker.protocol import FAILED, LOGGED, UNABLE
from shmgen._worker.ticket_filler import Task, TicketFiller
from shmgen.errors import StartError

WAITING_TICKETS = 8
"""After a read that had to wait, this number of tickets are read as if they had to wait as well."""

LONG = 5_000_000
"""Nanoseconds; a ticket that took longer wakes the main process, which then sees what reading takes."""

SELDOM = 4 * LONG
"""Nanoseconds until another one does: with many reads in flight there are thousands a second."""


class Descriptors(NamedTuple):
    """The descriptors that a worker inherits, beside those by which it is ended."""

    segment: int  # of the ring's memory
    page: int  # of its own status page
    queue: int  # of the pipe that tickets come from
    reports: int  # of the pipe that done tickets are reported to
    bell: int  # of the eventfd that wakes the main process


class MainThread:
    """Calls the user's functions for all readers, one at a time, in the thread that runs `serve`.

    Connections to databases, `signal.alarm` and `numpy.seterr` belong to a thread; so functions find the same one at each call.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], None], SimpleQueue[Exception | None]] | None] = SimpleQueue()

    def call(self, function: Callable[[], None]) -> None:
        """Have ``function`` called there, wait until it has returned, and raise what it raised; for other threads."""
        answer: SimpleQueue[Exception | None] = SimpleQueue()
        self._calls.put((function, answer))
        if (error := answer.get()) is not None:
            raise error

    def wake(self) -> None:
        """Have `serve` return."""
        self._calls.put(None)

    def serve(self) -> None:
        """Call functions until `wake`. What is no Exception, such as SystemExit, is raised here."""
        while (call := self._calls.get()) is not None:
            function, answer = call
            try:
                function()
                answer.put(None)
            except Exception as error:
                answer.put(error)


class Readers:
    """The readers of worker ``number``; ``send`` sends the main process a message, and returns False if that has gone."""

    def __init__(
        self,
        number: int,
        fds: Descriptors,
        segments: Segments,
        tables: Sequence[PackedIds],
        page: StatusPage,
        filler: TicketFiller,
        send: Callable[[bytes], bool],
    ) -> None:
        self._number = number
        self._fds = fds
        self._segments = segments
        self._tables = [table.take for table in tables]
        self._page = page
        self._filler = filler
        self._send = send
        self._prints = not filler.is_ours
        self._main = MainThread()
        self._changing = threading.Lock()
        # The numbers of readers that take tickets, or are about to; and of those that could not be started.
        self._running: set[int] = set()
        self._failed: set[int] = set()
        self._ended = False
        # The number of each thread's waits for its turn to call functions, which are no waits for a disk.
        self._turns = threading.local()
        # The readers that have a ticket; and the last ticket of each reader at the last call of `were_idle`.
        self._at_work: set[int] = set()
        self._seen: list[int] | None = None
        self._rang = 0

    def run(self, first: TicketFiller) -> None:
        """Take tickets until the main process ends, with as many readers as it asks for; in the main thread."""
        while self._start_others() and not self._ended:
            if self._begins(0):
                self._run(0, first)
            elif self._filler.calls_functions:
                self._main.serve()

    def opened(self, number: int) -> TicketFiller:
        """What the reader of this number fills rows with; see `TicketFiller.opened`."""
        return self._filler.opened(self._page.records[number][ROW:], self._in_turn if number else None, in_worker=True)

    def _in_turn(self, function: Callable[[], None]) -> None:
        """Have the main thread call ``function``, for another reader."""
        before = _waits()
        try:
            self._main.call(function)
        finally:
            self._turns.waits = getattr(self._turns, "waits", 0) + _waits() - before

    def _wanted(self) -> set[int]:
        count = self._page.words[READS]
        if self._filler.calls_functions and count > 1 and (others := {*range(1, count + 1)} - self._failed):
            return others
        return {*range(count)} - self._failed

    def _start_others(self) -> bool:
        """Start the missing readers, except the main thread. Returns whether readers are wanted, or some are still running."""
        with self._changing:
            wanted = self._wanted()
            for number in sorted(wanted - self._running - {0}):
                self._running.add(number)
                # Set before the reader takes a ticket: the main process looks at this number of records if the worker dies.
                self._page.words[READERS] = max(self._page.words[READERS], number + 1)
                try:
                    threading.Thread(target=self._run_in_thread, args=(number,), daemon=True).start()
                except RuntimeError as error:
                    self._fail(number, str(error))
            return bool(wanted or (self._filler.calls_functions and self._running))

    def _begins(self, number: int) -> bool:
        """Whether the reader of this number may begin to take tickets."""
        with self._changing:
            # The main thread calls functions until the last of the others has left.
            begins = number in self._wanted() and not (self._filler.calls_functions and self._running)
            if begins:
                self._running.add(number)
            return begins

    def _stays(self, number: int) -> bool:
        """Whether the reader of this number goes on to take tickets, now that another number of readers may be wanted."""
        if number and self._filler.calls_functions:
            self._main.wake()  # it starts the others
        else:
            self._start_others()
        with self._changing:
            if number not in self._wanted():
                self._running.discard(number)
            return number in self._running

    def _run_in_thread(self, number: int) -> None:
        """Run a reader other than the main thread. If it can't be opened, the others do the work."""
        try:
            try:
                opened = self.opened(number)
            except StartError as error:
                with self._changing:
                    self._fail(number, str(error))
            else:
                self._run(number, opened)
        except BaseException as end:
            # End the process, as in the main thread. If this thread alone ended, its ticket would be waited for in vain.
            if isinstance(end, SystemExit):
                os._exit(end.code if isinstance(end.code, int) else 1)
            sys.excepthook(type(end), end, end.__traceback__)
            os._exit(1)
        finally:
            self._main.wake()

    def _fail(self, number: int, reason: str) -> None:
        """Record, and warn, that a reader could not be started; no further attempt is made."""
        self._running.discard(number)
        self._failed.add(number)
        text = f"worker {self._number} has fewer reads in flight than are wanted: {reason}"
        self._send(LOGGED + pickle.dumps({"name": "shmgen", "levelno": 30, "levelname": "WARNING", "msg": text}))

    def were_idle(self) -> bool:
        """Whether no reader has had a ticket since the last call of this."""
        seen, self._seen = self._seen, [record[LAST_TICKET] for record in self._page.records]
        return seen == self._seen and not self._at_work

    def _run(self, number: int, filler: TicketFiller) -> None:
        wanted, ticket, record = self._page.words, self._page.tickets[number], self._page.records[number]
        queue, buffers, now = self._fds.queue, [ticket], time.monotonic_ns
        waiting, seen = 0, -1
        while True:
            if wanted[READS] != seen:
                seen = wanted[READS]
                if not self._stays(number):
                    return
            if not os.readv(queue, buffers):
                self._ended = True
                return
            self._at_work.add(number)
            id, slot, start, stop, _ = TICKET.unpack(ticket)
            waits, began = self._disk_waits(), now()
            failed = b""
            try:
                words = self._fill(filler, slot, start, stop, io_waits=waiting > 0)
            except StartError as error:
                self._send(UNABLE + pickle.dumps(error))
                self._ended = True
                return
            except Exception as error:
                failed = FAILED + pickle.dumps((id, row_of(record[ROW]), error))
                record[ROW] = IDLE
            if self._prints and sys.stdout is not None:
                sys.stdout.flush()  # what functions have printed would be lost when this process is killed
            waiting = WAITING_TICKETS if self._disk_waits() > waits else max(0, waiting - 1)
            took = now() - began
            record[BUSY] += took
            self._at_work.discard(number)
            if failed:
                if not self._send(failed):
                    self._ended = True
                    return
                continue
            try:
                os.write(self._fds.reports, REPORT.pack(id, self._number, waiting > 0, min(took // 1000, 0xFFFF)))
                # The main process sets WAITED_FOR, reads the reports, and sleeps. A reader marks its rows, writes its report, and
                # looks at WAITED_FOR and all marks. The pipe's lock orders the two: either the main process reads the last
                # report, or the reader that wrote it sees WAITED_FOR and all marks, and rings.
                rings = wanted[EAGER] or (words[WAITED_FOR] and _is_read(words))
                if rings or (took > LONG and began + took > self._rang + SELDOM):
                    self._rang = began + took
                    os.eventfd_write(self._fds.bell, 1)
            except BrokenPipeError:
                self._ended = True
                return

    def _disk_waits(self) -> int:
        """The number of this thread's waits, those for its turn to call functions aside."""
        return _waits() - getattr(self._turns, "waits", 0)

    def _fill(self, filler: TicketFiller, slot: int, start: int, stop: int, *, io_waits: bool) -> memoryview:
        """Fill the rows of a ticket, and mark them as read. Returns the words of the slot's sheet."""
        mapped = self._segments.mapped
        if slot >= len(mapped):  # the ring has grown
            try:
                self._segments.map_new()
            except OSError as error:
                raise StartError(f"the ring can't be mapped: {error}") from None
        memory = mapped[slot]
        sheet = memory[filler.sheet_offset :]
        words = sheet.cast("q")
        samples = words[SAMPLES + start : SAMPLES + stop]
        filler.fill(memory, Task(start, words[EPOCH], words[POSITION] + start, samples, self._tables), io_waits=io_waits)
        # The main process hands out a batch as soon as all of its rows are marked, so mark them after all is written.
        sheet[8 * (SAMPLES + start) : 8 * (SAMPLES + stop)] = READ_MARK * (stop - start)
        return words


def _is_read(words: memoryview) -> bool:
    """Whether all rows are marked in a sheet."""
    rows = words[ROWS]
    return words[SAMPLES : SAMPLES + rows].tobytes() == READ_MARK * rows


def _waits() -> int:
    """The number of this thread's waits for something, such as a disk, since it started."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
