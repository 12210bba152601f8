"""The worker processes: how they are started, given tickets, listened to, and stopped.

All workers share the ring and two pipes, one for tickets and one for reports. Each has a socket and a status page of its own. A
worker that dies holds no lock, and its status page says which tickets it had.
"""

from __future__ import annotations

import os
import pickle
import select
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from shmgen._engine.workers import Event, EventKind, Wakeup
from shmgen._memory.limit_errors import named
from shmgen._memory.records import BUSY, EAGER, FUNCTION, LAST_TICKET, READERS, READS, REPORT, ROW, TICKET, TURN, USED
from shmgen._memory.ring import Ring
from shmgen._memory.status_page import StatusPage
from shmgen._plan.meter import TimeSpent
from shmgen._plan.schedule import Ticket
from shmgen._samples.packed_ids import PackedIds
from shmgen._worker import protocol
from shmgen._worker.context import Context, ForwardedLogs
from shmgen._worker.launch import ONE_PROCESSOR, Child, command, deferred_signals, end
from shmgen._worker.main import Start
from shmgen._worker.pickling import dumps
from shmgen._worker.protocol import ATOMIC, processor_times
from shmgen._worker.reader_threads import Descriptors
from shmgen._worker.ticket_filler import TicketFiller
from shmgen.errors import StartError, WorkerDied

GRACE = 0.2
"""Seconds that workers have to end by themselves at a stop, before they are killed."""

IDLE_AFTER = 60.0
"""Seconds without work after which a worker ends. It is started again when there is work."""


class Pool:
    """Worker processes, each with ``reads`` readers, that fill a ring; ``tables`` are those of `key_tables`, and closed here."""

    def __init__(self, workers: int, reads: int, ring: Ring, tables: Sequence[PackedIds], filler: TicketFiller) -> None:
        self._ring = ring
        self._tables = tables
        self._eager = False
        self._command = command("shmgen._worker.main", site=not filler.is_ours)
        one_processor = {} if "OMP_NUM_THREADS" in os.environ else ONE_PROCESSOR
        # All workers hash texts alike: rows may depend on hashes, or on the order of a set, but not on the worker.
        self._environment = {"PYTHONHASHSEED": "0", **one_processor, **os.environ}
        context: tuple[Any, ...] | None = None
        if filler.is_ours:
            pickled = pickle.dumps(filler)
        else:
            pickled, sources = dumps(filler)
            context = tuple(Context.capture(sources))
        self._start_message = Start(
            os.getpid(),
            0,
            list(sys.path),
            filler.calls_functions,
            ring.layout.slot_bytes,
            pickle.dumps(tables),
            pickled,
            context,
            IDLE_AFTER / 2,  # it ends if it has had nothing to do between two looks
        )
        self._forwarded_logs = ForwardedLogs()
        with named(), ExitStack() as undo:
            self._wakeup = Wakeup()
            undo.callback(self._wakeup.close)
            self._poll = select.epoll()
            undo.callback(self._poll.close)
            # Both ends of both pipes are kept: a worker that is started later needs those that this process does not use.
            self._tickets_out, self._tickets_in = os.pipe()
            undo.callback(os.close, self._tickets_out)
            undo.callback(os.close, self._tickets_in)
            self._reports_out, self._reports_in = os.pipe()
            self._open = undo.pop_all()
            self._open.callback(os.close, self._reports_out)
            self._open.callback(os.close, self._reports_in)
        os.set_blocking(self._tickets_in, False)
        os.set_blocking(self._reports_out, False)
        # Packed tickets for which the queue has no room yet.
        self._overflow = bytearray()
        self._ready: list[tuple[int, int]] = []
        self._workers: dict[int, _Worker] = {}
        self._left: list[_Worker] = []  # they have been replaced, or retired, and may still live
        self._of_ended = TimeSpent()  # of workers that are no longer in use
        self._by_fd: dict[int, int] = {}
        self._poll.register(self._wakeup.fd, select.EPOLLIN)
        # A full queue that has room again ends a wait, so that the overflow is written.
        self._poll.register(self._tickets_in, select.EPOLLOUT | select.EPOLLET)
        try:
            # All are started before the first is told what to do, so that they start at once. Ctrl-C takes effect between two.
            for number in range(workers):
                with deferred_signals():
                    self._workers[number] = self._start(reads)
            for number in range(workers):
                with deferred_signals():
                    self._set_up(number)
        except BaseException:
            self.stop()
            raise

    @property
    def pids(self) -> Mapping[int, int]:
        return {number: worker.child.pid for number, worker in self._workers.items()}

    def _start(self, reads: int) -> _Worker:
        with named():
            fd = StatusPage.create()
            try:
                page = StatusPage(fd)
                page.words[READS], page.words[EAGER] = reads, self._eager
                fds = Descriptors(self._ring.fd, fd, self._tickets_out, self._reports_in, self._wakeup.fd)
                return _Worker(Child(self._command, self._environment, [*fds, *(table.fd for table in self._tables)]), page)
            finally:
                os.close(fd)

    def _set_up(self, number: int) -> None:
        """Tell a worker that has been started what to do, and listen to it."""
        child = self._workers[number].child
        child.send(pickle.dumps(tuple(self._start_message._replace(number=number))))
        for fd, events in child.events.items():
            self._by_fd[fd] = number
            self._poll.register(fd, events)

    def put(self, tickets: Sequence[Ticket]) -> None:
        pack, packed = TICKET.pack, self._overflow
        for id, slot, _, start, stop in tickets:
            packed += pack(id, slot, start, stop, 0)
        self._flush()

    def _flush(self) -> None:
        """Write as many tickets as the queue has room for."""
        most = ATOMIC - ATOMIC % TICKET.size
        while self._overflow:
            try:
                written = os.write(self._tickets_in, self._overflow[:most])
            except BlockingIOError:
                return
            del self._overflow[:written]

    def take_back(self) -> list[int]:
        tickets = bytearray()
        # A separate descriptor, which does not block: the queue's own must block for the workers, which share it.
        with suppress(OSError):  # this process can open no more files
            fd = os.open(f"/proc/self/fd/{self._tickets_out}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                with suppress(BlockingIOError):
                    while True:
                        tickets += os.read(fd, 1 << 16)
            finally:
                os.close(fd)
        tickets += self._overflow
        self._overflow.clear()
        return [id for id, *_ in TICKET.iter_unpack(tickets)]

    def wait(self, timeout: float | None) -> None:
        try:
            self._ready = self._poll.poll(timeout)
        except (OSError, ValueError):
            if not self._poll.closed:  # by a signal's handler during the wait
                raise

    def wake(self) -> None:
        self._wakeup.set()

    def poll_events(self) -> list[Event]:
        ready, self._ready = self._ready or self._poll.poll(0), []
        # A worker writes its report before it rings; so clear the bell first, then read.
        for fd, _ in ready:
            if fd == self._wakeup.fd:
                self._wakeup.clear()
        # Reports that a worker wrote before its death are handled before its death.
        events = self.poll_reports()
        for fd, what in ready:
            if fd in self._by_fd:
                events += self._receive(fd, what)
        if self._overflow:
            self._flush()
        return events

    def poll_reports(self) -> list[Event]:
        reports: list[tuple[Any, ...]] = []
        while True:
            try:
                data = os.read(self._reports_out, 1 << 16)
            except BlockingIOError:
                break
            reports += REPORT.iter_unpack(data)
            if len(data) < 1 << 16:
                break
        return [Event(-1, EventKind.DONE, reports)] if reports else []

    def _receive(self, fd: int, what: int) -> list[Event]:
        """The events to read from a worker's descriptor."""
        number = self._by_fd[fd]
        child = self._workers[number].child
        if what & select.EPOLLOUT:
            child.flush()
            self._poll.modify(fd, child.events[fd])
        messages, ended = child.receive(fd)
        events = []
        for message in messages:
            if message[:1] == protocol.LOGGED:
                self._forwarded_logs.handle(child.pid, message[1:])
            else:
                events.append(Event(number, EventKind(message[:1]), pickle.loads(message[1:]) if message[1:] else None))
        if ended:
            self._unlisten(number)
            death = WorkerDied(number, child.pid, child.join(GRACE))
            events = [*self.poll_reports(), *events, Event(number, EventKind.DIED, death)]
        return events

    def claims(self, worker: int) -> Mapping[int, tuple[int, int]]:
        page = self._workers[worker].page
        records = page.records[: page.words[READERS]]
        return {reader: (record[LAST_TICKET], record[ROW]) for reader, record in enumerate(records)}

    def time_spent(self) -> TimeSpent:
        return _total(self._of_ended, *(worker.time_spent() for worker in self._workers.values()))

    def is_stopped(self, worker: int) -> bool:
        try:
            with open(f"/proc/{self._workers[worker].child.pid}/stat") as file:
                state = file.read().rpartition(") ")[2][0]
        except OSError:  # it has died, or this process can open no more files
            return False
        return state in "Tt"  # stopped, or traced

    def kill(self, worker: int) -> None:
        self._workers[worker].child.process.kill()

    def restart(self, worker: int, reads: int) -> None:
        self._let_go(worker)
        self._start_one(worker, reads)

    def add(self, reads: int) -> int:
        number = next(number for number in count() if number not in self._workers)
        self._start_one(number, reads)
        return number

    def _start_one(self, number: int, reads: int) -> None:
        with deferred_signals():
            # What a signal's handler raises may be an OSError, too, and is no failure to start.
            try:
                self._workers[number] = self._start(reads)
                self._set_up(number)
            except OSError as failure:
                raise StartError(f"a worker can't be started: {failure}") from failure

    def retire(self, worker: int) -> None:
        self._workers[worker].page.words[READS] = 0

    def remove(self, worker: int) -> None:
        self._let_go(worker)
        del self._workers[worker]

    def set_reads(self, count: int) -> None:
        for worker in self._workers.values():
            if worker.page.words[READS]:  # it does not retire
                worker.page.words[READS] = count

    def set_eager(self, eager: bool) -> None:
        self._eager = eager
        for worker in self._workers.values():
            worker.page.words[EAGER] = eager
        self.wake()  # for reports that were written before

    def _let_go(self, number: int) -> None:
        """Give up a worker: it has died, or hangs."""
        self._unlisten(number)
        worker = self._workers[number]
        worker.page.words[READS] = 0  # if it hangs, it takes no ticket when it goes on
        self._of_ended = _total(self._of_ended, worker.time_spent())
        worker.child.shutdown()
        self._left.append(worker)
        for left in self._left:
            if left.child.process.poll() is not None:
                left.child.close()
        self._left = [left for left in self._left if left.child.process.returncode is None]

    def _unlisten(self, number: int) -> None:
        for fd in self._workers[number].child.events:
            if self._by_fd.pop(fd, None) is not None:
                self._poll.unregister(fd)

    def stop(self) -> None:
        self._of_ended = self.time_spent()
        self._left += self._workers.values()
        self._workers = {}
        end([worker.child for worker in self._left], GRACE)
        self._left.clear()
        self._open.close()
        # Their numbers may soon be those of other files.
        self._tickets_out = self._tickets_in = self._reports_out = self._reports_in = -1
        for table in self._tables:
            table.close()


@dataclass
class _Worker:
    child: Child
    page: StatusPage
    times: dict[str, int] = field(default_factory=dict)  # as last read: nanoseconds of each thread, also of those that have ended

    def time_spent(self) -> TimeSpent:
        busy = self.page.total(BUSY)
        if busy:
            self.times |= processor_times(self.child.pid)
        used = max(0, sum(self.times.values()) - self.page.words[USED])
        return TimeSpent(*(time / 1e9 for time in (busy, used, self.page.total(FUNCTION), self.page.total(TURN))))


def _total(*spent: TimeSpent) -> TimeSpent:
    return TimeSpent(*map(sum, zip(*spent, strict=True)))
