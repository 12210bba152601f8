"""Fake workers that follow a script, so that a plain test can try any order of events in the engine.

`FakeWorkers` replaces the pool of workers for `Supervisor` and `Prefetcher`. It has no processes and never waits: while a request
waits, the next step of the test's script is run; a wait that would never end fails at once. The time is that of a `Clock`.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from shmgen import Source
from shmgen._engine import prefetcher, supervisor
from shmgen._engine.batch_planner import BatchPlanner
from shmgen._engine.front_end import FrontEnd
from shmgen._engine.prefetcher import Prefetcher
from shmgen._engine.supervisor import Supervisor
from shmgen._engine.workers import Event, EventKind
from shmgen._memory.layout import Field, Layout
from shmgen._memory.records import EPOCH, POSITION, ROWS, SAMPLES, WAITED_FOR
from shmgen._memory.ring import Ring
from shmgen._plan.activity import Target
from shmgen._plan.autoscaler import Autoscaler
from shmgen._plan.damaged_samples import DamageLog, OnError
from shmgen._plan.meter import TimeSpent
from shmgen._plan.passes import Passes
from shmgen._plan.sampler import BatchId, Sampler, Tail
from shmgen._plan.schedule import Schedule, State, Ticket
from shmgen._sources.base import IDLE, UNKNOWN, row_of
from shmgen._sources.batch_spec import BatchSpec
from shmgen._sources.fields import readings_of
from shmgen._worker.ticket_filler import TicketFiller
from shmgen.errors import ClosedError, FunctionError, SampleError, StartError, WorkerDied

TIMEOUT = 100.0
"""The engine's ``timeout``, in seconds of a `Clock`."""

GARBAGE = -1.0
"""Value of a row that is half read, or written by a worker that was replaced and lives on."""

Place = tuple[int, int]
"""A reader: the number of its worker, and its own number there."""


NO_SAMPLE = -1
"""Replaces a sample in the sheet once its row has been read."""


class Rows(Source):
    """Rows of two float64, which a fake worker fills with the id."""

    shape, dtype = (2,), "f8"
    concurrent = True

    def place(self, id: Any) -> str:
        return f"row {id}"


class Clock:
    """A clock that only the test moves on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@dataclass
class FakeReader:
    """A reader of a worker."""

    ticket: Ticket | None = None  # None while it waits for one
    last: int = 0  # the number of its latest ticket, as on the status page
    at: int = IDLE  # its current row, as on the status page
    hangs: bool = False
    gone: bool = False  # it has ended, because fewer readers are wanted

    @property
    def row(self) -> int | None:
        """Its current row, if that is known."""
        return row_of(self.at)


@dataclass
class FakeWorker:
    """A worker."""

    pid: int
    reads: int  # the number of readers that it should have; 0 if it should end
    readers: list[FakeReader] = field(default_factory=lambda: [FakeReader()])  # including those that have ended
    begun: bool = False  # it takes tickets
    lives: bool = True
    hangs: bool = False  # none of its readers goes on
    stopped: bool = False  # as if by SIGSTOP
    immortal: bool = False  # killing it has no effect

    @property
    def tickets(self) -> list[Ticket]:
        """The tickets that its readers are working on."""
        return [reader.ticket for reader in self.readers if reader.ticket is not None]


class FakeWorkers:
    """Workers whose readers take tickets from one queue and follow a script.

    While a request waits and nothing happens, time passes on ``clock``.
    """

    def __init__(self, count: int, reads: int, ring: Ring, clock: Clock) -> None:
        self._ring = ring
        self._clock = clock
        self._pid = 100
        self._events: list[Event] = []
        self._eager = False
        self._woken = threading.Event()
        self.workers: dict[int, FakeWorker] = {}
        self.queue: deque[Ticket] = deque()
        self.left: list[FakeWorker] = []  # workers that were replaced but are still alive
        # The steps to run while a request waits; and the step once none is left, which returns whether anything happened.
        self.script: deque[Callable[[], object]] = deque()
        self.otherwise: Callable[[], bool] = self.work
        self.log: list[str] = []  # the engine's calls, such as "restart 0"
        self.given: list[list[Ticket]] = []  # the tickets of each call of `put`
        self.cannot_start: StartError | None = None  # the error to raise when a worker is started
        self.blocks = False  # `wait` returns only after another thread calls `wake`
        self.begins = True  # a worker that is started reports at once that it is ready
        self.takes = True  # idle readers take tickets by themselves; otherwise, a test calls `take`
        for number in range(count):
            self._start(number, reads)

    def _start(self, number: int, reads: int) -> None:
        if self.cannot_start is not None:
            raise self.cannot_start
        self._pid += 1
        self.workers[number] = FakeWorker(self._pid, reads)
        if self.begins:
            self.begin(number)

    # Called by the engine.

    @property
    def pids(self) -> dict[int, int]:
        return {number: worker.pid for number, worker in self.workers.items()}

    def put(self, tickets: Sequence[Ticket]) -> None:
        assert tickets
        self.given.append(list(tickets))
        self.queue.extend(tickets)
        self._take_all()

    def take_back(self) -> list[int]:
        tickets = [ticket.id for ticket in self.queue]
        self.queue.clear()
        return tickets

    def wait(self, timeout: float | None) -> None:
        if self.blocks:
            self._woken.wait()
            self._woken.clear()
            return
        until = math.inf if timeout is None else self._clock.now + timeout
        while not (self._woken.is_set() or any(event.what is not EventKind.DONE for event in self._events)):
            if self.script:
                self.script.popleft()()
            elif not self.otherwise():
                assert until < math.inf, f"a wait without an end: {self.workers}, {self.queue}"
                self._clock.now = max(self._clock.now, until)
                return
        self._woken.clear()

    def wake(self) -> None:
        self._woken.set()

    def poll_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def poll_reports(self) -> list[Event]:
        done = [event for event in self._events if event.what is EventKind.DONE]
        self._events = [event for event in self._events if event.what is not EventKind.DONE]
        return done

    def claims(self, worker: int) -> dict[int, tuple[int, int]]:
        return {number: (reader.last, reader.at) for number, reader in enumerate(self.workers[worker].readers)}

    def time_spent(self) -> TimeSpent:
        return TimeSpent()

    def is_stopped(self, worker: int) -> bool:
        return self.workers[worker].stopped

    def kill(self, worker: int) -> None:
        self.log.append(f"kill {worker}")
        if self.workers[worker].immortal:
            self.workers[worker].hangs = True
        else:
            self.die(worker)

    def restart(self, worker: int, reads: int) -> None:
        self.log.append(f"restart {worker}")
        self._let_go(worker)
        self._start(worker, reads)

    def add(self, reads: int) -> int:
        number = next(number for number in range(len(self.workers) + 1) if number not in self.workers)
        self._start(number, reads)
        self.log.append(f"add {number}")
        return number

    def retire(self, worker: int) -> None:
        self.log.append(f"retire {worker}")
        self.workers[worker].reads = 0

    def remove(self, worker: int) -> None:
        self.log.append(f"remove {worker}")
        self._let_go(worker)
        del self.workers[worker]

    def set_reads(self, count: int) -> None:
        for worker in self.workers.values():
            if worker.reads:
                worker.reads = count

    def set_eager(self, eager: bool) -> None:
        self._eager = eager
        self._woken.set()

    def stop(self) -> None:
        self.log.append("stop")
        self.workers.clear()
        self.left.clear()
        self.queue.clear()

    def _let_go(self, number: int) -> None:
        # Its events that the engine has not received are lost, but not its reports: all workers share one queue for these.
        self._events = [event for event in self._events if event.worker != number or event.what is EventKind.DONE]
        if self.workers[number].lives:
            self.left.append(self.workers[number])

    # Called by tests.

    def _say(self, worker: int, what: EventKind, detail: Any = None) -> None:
        self._events.append(Event(worker, what, detail))

    def begin(self, worker: int) -> None:
        """The worker reports that it is ready, and takes tickets."""
        self.workers[worker].begun = True
        self._say(worker, EventKind.READY)
        self._go_on(worker, 0)

    def idle(self) -> list[Place]:
        """The readers that are waiting for a ticket."""
        return [
            (number, reader)
            for number, worker in self.workers.items()
            if worker.begun and worker.lives and not worker.hangs
            for reader, one in enumerate(worker.readers)
            if one.ticket is None and not one.gone
        ]

    def able(self) -> list[Place]:
        """The readers that have a ticket and can continue with it."""
        return [
            (number, reader)
            for number, worker in self.workers.items()
            if worker.lives and not worker.hangs
            for reader, one in enumerate(worker.readers)
            if one.ticket is not None and not one.hangs
        ]

    def take(self, worker: int, reader: int) -> None:
        """The reader takes the oldest ticket."""
        one = self.workers[worker].readers[reader]
        assert one.ticket is None
        one.ticket = self.queue.popleft()
        one.last = one.ticket.id

    def _take_all(self) -> None:
        if self.takes:
            for place in self.idle()[: len(self.queue)]:
                self.take(*place)

    def _end(self, worker: int, reader: int) -> Ticket:
        """The reader gives up its ticket, which is returned."""
        one = self.workers[worker].readers[reader]
        assert one.ticket is not None
        ticket, one.ticket, one.at = one.ticket, None, IDLE
        return ticket

    def _go_on(self, worker: int, reader: int) -> None:
        """A reader that has ended a ticket starts and ends readers of its worker, until there are as many as wanted."""
        owner = self.workers[worker]
        if not owner.reads and reader == 0:  # its main thread ends, and with it the process
            self.die(worker, exitcode=0)
        owner.readers[reader].gone = reader >= owner.reads
        for number in range(owner.reads):
            if number == len(owner.readers):
                owner.readers.append(FakeReader())
            owner.readers[number].gone = False
        self._take_all()

    def ids(self, ticket: Ticket) -> list[int]:
        """The samples of a ticket that are still to be read, according to the sheet of its slot."""
        sheet = self._ring.sheets[ticket.slot]
        assert sheet[EPOCH] == ticket.batch.epoch
        assert sheet[POSITION] == ticket.batch.number * self._ring.layout.batch_size
        assert sheet[ROWS] >= ticket.stop
        samples = [int(sample) for sample in sheet[SAMPLES + ticket.start : SAMPLES + ticket.stop]]
        assert NO_SAMPLE not in samples
        return samples

    def ticket(self, worker: int, reader: int = 0) -> Ticket:
        """The ticket that a reader is working on."""
        ticket = self.workers[worker].readers[reader].ticket
        assert ticket is not None
        return ticket

    def done(self, worker: int, reader: int = 0, *, waited: bool = False) -> None:
        """The reader reads the rows of its ticket: it fills each with the sample's id."""
        ticket = self._end(worker, reader)
        self._ring.arrays[ticket.slot][0][ticket.start : ticket.stop] = np.array(self.ids(ticket))[:, None]
        sheet = self._ring.sheets[ticket.slot]
        sheet[SAMPLES + ticket.start : SAMPLES + ticket.stop] = NO_SAMPLE
        self._say(worker, EventKind.DONE, [(ticket.id, worker, waited, 0)])
        if self._eager or (sheet[WAITED_FOR] and (sheet[SAMPLES : SAMPLES + sheet[ROWS]] == NO_SAMPLE).all()):
            self._woken.set()
        self._go_on(worker, reader)

    def fail(self, worker: int, reader: int, row: int, *, known: bool = True) -> None:
        """The reader fails at a row of its ticket; with ``known``, it reports which, else a user's function has failed."""
        ticket = self._end(worker, reader)
        sample = self.ids(ticket)[row]
        self._scribble(ticket)
        error = (SampleError if known else FunctionError)(sample, f"row {sample}", "expected a file, found none")
        self._say(worker, EventKind.FAILED, (ticket.id, row if known else None, error))
        self._go_on(worker, reader)

    def reach(self, worker: int, reader: int, row: int | None) -> None:
        """The reader starts to read a row of its ticket; with None, its status does not say which."""
        self.ticket(worker, reader)
        self.workers[worker].readers[reader].at = UNKNOWN if row is None else row + 1

    def die(self, worker: int, exitcode: int = -9) -> None:
        """The worker dies, and leaves the rows half read that its readers were reading."""
        mortal = self.workers[worker]
        if mortal.lives:
            mortal.lives = False
            for reader in mortal.readers:
                if reader.ticket is not None and reader.at != IDLE:
                    self._scribble(reader.ticket)
            self._say(worker, EventKind.DIED, WorkerDied(worker, mortal.pid, exitcode))

    def sleep(self, worker: int) -> None:
        """The worker ends because it was idle, although a reader may just have taken a ticket."""
        if self.workers[worker].lives:
            self._say(worker, EventKind.ENDS)
            self.die(worker, exitcode=0)

    def hang(self, worker: int, reader: int, *, immortal: bool = False) -> None:
        """A reader hangs; the other readers of its worker go on."""
        self.workers[worker].readers[reader].hangs = True
        self.workers[worker].immortal |= immortal

    def halt(self, worker: int) -> None:
        """The worker is stopped, with all its readers."""
        self.workers[worker].hangs = self.workers[worker].stopped = True

    def interrupt(self, worker: int) -> None:
        """The worker receives Ctrl-C."""
        self._say(worker, EventKind.CTRL_C, self._clock.now)

    def drop(self, worker: int, reader: int = 0) -> None:
        """The reader's ticket is interrupted."""
        ticket = self._end(worker, reader)
        self._scribble(ticket)
        self._say(worker, EventKind.ABORTED, ticket.id)
        self._go_on(worker, reader)

    def scribble(self) -> None:
        """Replaced workers that are still alive write into the slots of their tickets."""
        for worker in self.left:
            for ticket in worker.tickets:
                self._scribble(ticket)

    def _scribble(self, ticket: Ticket) -> None:
        self._ring.arrays[ticket.slot][0][ticket.start : ticket.stop] = GARBAGE

    def work(self) -> bool:
        """The first reader that can continue finishes its ticket; return whether there was one."""
        able = self.able()
        if able:
            self.done(*able[0])
        return bool(able)


class Engine:
    """The engine on `FakeWorkers`; the ids are numbers from 0, and each row should be filled with its id."""

    def __init__(
        self,
        clock: Clock,
        *,
        samples: int = 24,
        batch_size: int = 4,
        workers: int = 2,
        reads: int = 1,
        slots: int = 3,
        on_error: OnError = "raise",
        most: float = 1.0,
        timeout: float = TIMEOUT,
        shuffle: bool = False,
        ahead: bool = True,
    ) -> None:
        self.clock = clock
        self.sampler = Sampler(samples, batch_size, shuffle=shuffle, seed=0, tail=Tail.DROP)
        ids = range(samples)
        spec = BatchSpec(Rows(), None, None, ids)
        fields = spec.bind()
        layout = Layout((Field("X", (2,), np.dtype("f8")),), batch_size)
        assembler = TicketFiller(fields, readings_of(fields, spec.readers), layout.sheet_offset, 0, {})
        self.ring = Ring(layout, slots)
        self.workers = FakeWorkers(workers, reads, self.ring, self.clock)
        self.passes = Passes(self.sampler.batches, shuffle=shuffle, epoch=0)
        self._pass = self.passes.open()
        self.damage = DamageLog(samples, on_error, max_fraction=most)
        self.schedule = Schedule(slots, self.sampler.size, in_flight=slots, is_read=self.ring.is_read)
        self.planner = BatchPlanner(ids, self.sampler, spec, self.ring, self.schedule, assembler, self.damage)
        self.supervisor = Supervisor(self.workers, Target(workers, reads), self.schedule, self.planner, self.ring, timeout)
        scaler = Autoscaler((), lambda workers, blocked: Target(workers, reads), batch_size)
        self.prefetcher = Prefetcher(
            self.ring,
            self.workers,
            self.supervisor,
            self.schedule,
            self.planner,
            self.passes,
            scaler,
            FrontEnd(),
            reads_ahead=ahead,
        )

    def fetch(self, number: int) -> list[int]:
        """The samples in a batch of the first epoch, as delivered; its slot is released at once."""
        return values(self.lease(number))

    def lease(self, number: int) -> np.ndarray:
        """A batch as delivered; its slot stays leased while the array lives."""
        [array] = self.prefetcher.fetch(number, self._pass)
        return array

    def expected(self, number: int) -> list[int]:
        """The samples that belong in a batch."""
        return [int(sample) for sample in self.sampler[BatchId(0, number)]]

    def resize(self, workers: int, reads: int | None = None) -> bool:
        """Have ``workers`` workers of ``reads`` readers each, as the autoscaler does."""
        with self.prefetcher.lock:
            return self.supervisor.resize(Target(workers, self.supervisor.target.reads if reads is None else reads))

    def reader_of(self, sample: int) -> tuple[int, int, int] | None:
        """The worker, and its reader that can continue and has ``sample`` in its ticket, and the row there; None without one."""
        for worker, reader in self.workers.able():
            ids = self.workers.ids(self.workers.ticket(worker, reader))
            if sample in ids:
                return worker, reader, ids.index(sample)
        return None

    def strike(self, sample: int, act: Callable[[int, int, int], object], *others: int, times: float = 1) -> None:
        """Call ``act(worker, reader, row)``, up to ``times`` times, for a reader that has ``sample`` or ``others`` to read."""

        def step() -> bool:
            nonlocal times
            if times and (place := next(filter(None, map(self.reader_of, (sample, *others))), None)):
                times -= 1
                act(*place)
                return True
            return self.workers.work()

        self.workers.otherwise = step

    def pass_time(self, seconds: float) -> None:
        """Let time pass while a request waits, and wake the request, which looks at the workers if that is due."""
        self.clock.now += seconds
        self.workers.wake()

    def check(self) -> None:
        """Assert what holds between any two events: workers write into a slot only for the batch that it was given to."""
        workers, schedule = self.workers, self.schedule
        taken = [ticket for worker in workers.workers.values() for ticket in worker.tickets]
        for ticket in [*workers.queue, *taken]:
            slot = schedule.slots[ticket.slot]
            assert slot.state is State.FILLING or slot.state is State.LOST
            assert slot.batch in (None, ticket.batch)
        for worker in workers.left:
            for ticket in worker.tickets:
                assert schedule.slots[ticket.slot].state is State.LOST
                assert schedule.ticket(ticket.id) is None
        for number, slot in enumerate(schedule.slots):
            lease = self.ring._leases.get(number)
            assert slot.state is State.LEASED or lease is None or lease() is None


def values(array: np.ndarray) -> list[int]:
    """The ids in the rows of a batch; all elements of a row must be the same."""
    assert (array == array[:, :1]).all()
    return [int(row) for row in array.reshape(len(array), -1)[:, 0]]


@contextmanager
def engine_of(**options: Any) -> Iterator[Engine]:
    """An `Engine`; meanwhile, the engine's modules use its clock."""
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        for module in (prefetcher, supervisor):
            patch.setattr(module, "time", clock)
        made = Engine(clock, **options)
        try:
            made.prefetcher.read_ahead()
            yield made
        finally:
            made.prefetcher.close(ClosedError("the test is over"))
