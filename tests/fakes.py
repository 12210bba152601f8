"""The workers' part played by a script, so that every order of events above them is a plain test.

`FakeWorkers` is what `Supervisor` and `Prefetcher` see of a pool. It has no process and waits for nothing: while a request waits,
the next step of the test's script happens; where a real wait would not end, it is an error at once. Time is a `Clock`'s.
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
from shmgen.errors import ClosedError, SampleError, StartError, WorkerDied

TIMEOUT = 100.0
"""Seconds of a `Clock`."""

GARBAGE = -1.0
"""What is in a row that has not been read yet, and what a worker writes that should have been gone."""

Place = tuple[int, int]
"""A reader: the number of its worker, and its own."""


NO_SAMPLE = -1
"""In a sheet, in place of the sample of a row that has been read."""


class Rows(Source):
    """Rows of two float64, that a fake worker fills with the id."""

    shape, dtype = (2,), "f8"
    concurrent = True

    def place(self, id: Any) -> str:
        return f"row {id}"


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@dataclass
class FakeReader:
    """A reader of a worker."""

    ticket: Ticket | None = None  # None while it waits for one
    last: int = 0  # the number of the ticket that it took last, as it would stand on the status page
    at: int = IDLE  # the row that it is at, likewise
    hangs: bool = False
    gone: bool = False  # it has ended, since fewer are wanted

    @property
    def row(self) -> int | None:
        """The row that it is at, if that is known."""
        return row_of(self.at)


@dataclass
class FakeWorker:
    """One worker."""

    pid: int
    reads: int  # how many readers it should have; none when it is to end
    readers: list[FakeReader] = field(default_factory=lambda: [FakeReader()])  # those that it has had
    begun: bool = False  # it takes tickets
    lives: bool = True
    hangs: bool = False  # nothing in it goes on any more
    stopped: bool = False  # as by SIGSTOP
    immortal: bool = False  # killing it does nothing

    @property
    def tickets(self) -> list[Ticket]:
        """What its readers do."""
        return [reader.ticket for reader in self.readers if reader.ticket is not None]


class FakeWorkers:
    """Workers whose readers take tickets from one queue, and do what a script says.

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
        self.left: list[FakeWorker] = []  # those that were replaced though they live on
        # The steps that happen while a request waits; and the one when none is left, which returns whether anything happened.
        self.script: deque[Callable[[], object]] = deque()
        self.otherwise: Callable[[], bool] = self.work
        self.log: list[str] = []  # what was asked of the workers, such as "restart 0"
        self.given: list[list[Ticket]] = []  # the tickets that were put, a list for each time
        self.cannot_start: StartError | None = None  # what starting a worker raises
        self.blocks = False  # a wait ends by `wake` alone, from another thread
        self.begins = True  # those that are started say at once that they have begun
        self.takes = True  # readers that have nothing to do take tickets by themselves, and not when `take` says so
        for number in range(count):
            self._start(number, reads)

    def _start(self, number: int, reads: int) -> None:
        if self.cannot_start is not None:
            raise self.cannot_start
        self._pid += 1
        self.workers[number] = FakeWorker(self._pid, reads)
        if self.begins:
            self.begin(number)

    # What the engine asks of it.

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
        # What it sent itself and has not been received is lost; what is done is reported in one place for all.
        self._events = [event for event in self._events if event.worker != number or event.what is EventKind.DONE]
        if self.workers[number].lives:
            self.left.append(self.workers[number])

    # What a test has them do.

    def _say(self, worker: int, what: EventKind, detail: Any = None) -> None:
        self._events.append(Event(worker, what, detail))

    def begin(self, worker: int) -> None:
        """It says that it has started, and takes tickets."""
        self.workers[worker].begun = True
        self._say(worker, EventKind.READY)
        self._go_on(worker, 0)

    def idle(self) -> list[Place]:
        """The readers that wait for a ticket."""
        return [
            (number, reader)
            for number, worker in self.workers.items()
            if worker.begun and worker.lives and not worker.hangs
            for reader, one in enumerate(worker.readers)
            if one.ticket is None and not one.gone
        ]

    def able(self) -> list[Place]:
        """The readers that have a ticket, and can go on."""
        return [
            (number, reader)
            for number, worker in self.workers.items()
            if worker.lives and not worker.hangs
            for reader, one in enumerate(worker.readers)
            if one.ticket is not None and not one.hangs
        ]

    def take(self, worker: int, reader: int) -> None:
        """It takes the oldest ticket."""
        one = self.workers[worker].readers[reader]
        assert one.ticket is None
        one.ticket = self.queue.popleft()
        one.last = one.ticket.id

    def _take_all(self) -> None:
        if self.takes:
            for place in self.idle()[: len(self.queue)]:
                self.take(*place)

    def _end(self, worker: int, reader: int) -> Ticket:
        """It has nothing more to do with its ticket."""
        one = self.workers[worker].readers[reader]
        assert one.ticket is not None
        ticket, one.ticket, one.at = one.ticket, None, IDLE
        return ticket

    def _go_on(self, worker: int, reader: int) -> None:
        """A reader that has done its ticket sees how many there should be."""
        whose = self.workers[worker]
        if not whose.reads and reader == 0:  # the main thread ends, and the process with it
            self.die(worker, exitcode=0)
        whose.readers[reader].gone = reader >= whose.reads
        for number in range(whose.reads):
            if number == len(whose.readers):
                whose.readers.append(FakeReader())
            whose.readers[number].gone = False
        self._take_all()

    def ids(self, ticket: Ticket) -> list[int]:
        """The samples that are to be read for a ticket, as the sheet of its slot says."""
        sheet = self._ring.sheet(ticket.slot)
        assert sheet[EPOCH] == ticket.batch.epoch
        assert sheet[POSITION] == ticket.batch.number * self._ring.layout.batch_size
        assert sheet[ROWS] >= ticket.stop
        samples = [int(sample) for sample in sheet[SAMPLES + ticket.start : SAMPLES + ticket.stop]]
        assert NO_SAMPLE not in samples
        return samples

    def ticket(self, worker: int, reader: int = 0) -> Ticket:
        """What a reader does."""
        ticket = self.workers[worker].readers[reader].ticket
        assert ticket is not None
        return ticket

    def done(self, worker: int, reader: int = 0, *, waited: bool = False) -> None:
        """It reads the rows of its ticket: each becomes the sample's id."""
        ticket = self._end(worker, reader)
        self._ring.arrays(ticket.slot)[0][ticket.start : ticket.stop] = np.array(self.ids(ticket))[:, None]
        sheet = self._ring.sheet(ticket.slot)
        sheet[SAMPLES + ticket.start : SAMPLES + ticket.stop] = NO_SAMPLE
        self._say(worker, EventKind.DONE, [(ticket.id, worker, waited, 0)])
        if self._eager or (sheet[WAITED_FOR] and (sheet[SAMPLES : SAMPLES + sheet[ROWS]] == NO_SAMPLE).all()):
            self._woken.set()
        self._go_on(worker, reader)

    def fail(self, worker: int, reader: int, row: int, *, known: bool = True) -> None:
        """It fails at a row of its ticket; with ``known``, it says at which."""
        ticket = self._end(worker, reader)
        sample = self.ids(ticket)[row]
        self._scribble(ticket)
        error = SampleError(sample, f"row {sample}", "expected a file, found none")
        self._say(worker, EventKind.FAILED, (ticket.id, row if known else None, error))
        self._go_on(worker, reader)

    def reach(self, worker: int, reader: int, row: int | None) -> None:
        """It comes to a row of its ticket; None: to one that it does not name."""
        self.ticket(worker, reader)
        self.workers[worker].readers[reader].at = UNKNOWN if row is None else row + 1

    def die(self, worker: int, exitcode: int = -9) -> None:
        """It dies where its readers are, in whatever these had half done."""
        mortal = self.workers[worker]
        if mortal.lives:
            mortal.lives = False
            for reader in mortal.readers:
                if reader.ticket is not None and reader.at != IDLE:
                    self._scribble(reader.ticket)
            self._say(worker, EventKind.DIED, WorkerDied(worker, mortal.pid, exitcode))

    def sleep(self, worker: int) -> None:
        """It ends, since it has had nothing to do; though a reader may just have taken a ticket."""
        if self.workers[worker].lives:
            self._say(worker, EventKind.ENDS)
            self.die(worker, exitcode=0)

    def hang(self, worker: int, reader: int, *, immortal: bool = False) -> None:
        """A reader does nothing any more; the others of its worker go on."""
        self.workers[worker].readers[reader].hangs = True
        self.workers[worker].immortal |= immortal

    def halt(self, worker: int) -> None:
        """It is stopped, with all of its readers."""
        self.workers[worker].hangs = self.workers[worker].stopped = True

    def interrupt(self, worker: int) -> None:
        """Ctrl-C reaches it."""
        self._say(worker, EventKind.CTRL_C, self._clock.now)

    def drop(self, worker: int, reader: int = 0) -> None:
        """Its ticket is interrupted."""
        ticket = self._end(worker, reader)
        self._scribble(ticket)
        self._say(worker, EventKind.ABORTED, ticket.id)
        self._go_on(worker, reader)

    def scribble(self) -> None:
        """Those that were left to themselves write into the slots that they were reading into."""
        for worker in self.left:
            for ticket in worker.tickets:
                self._scribble(ticket)

    def _scribble(self, ticket: Ticket) -> None:
        self._ring.arrays(ticket.slot)[0][ticket.start : ticket.stop] = GARBAGE

    def work(self) -> bool:
        """The first reader that can does its ticket; whether there was one."""
        able = self.able()
        if able:
            self.done(*able[0])
        return bool(able)


class Engine:
    """All that is above workers, on `FakeWorkers`; the ids are numbers from 0, and each row should be its id."""

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
        """The samples in a batch of the first epoch as it is delivered, whose slot is let go of at once."""
        return values(self.lease(number))

    def lease(self, number: int) -> np.ndarray:
        """A batch as it is delivered."""
        [array] = self.prefetcher.fetch(number, self._pass)
        return array

    def expected(self, number: int) -> list[int]:
        """The samples that should be in a batch."""
        return [int(sample) for sample in self.sampler[BatchId(0, number)]]

    def resize(self, workers: int, reads: int | None = None) -> bool:
        """Have ``workers`` workers of ``reads`` readers each, as the autoscaler does."""
        with self.prefetcher.lock:
            return self.supervisor.resize(Target(workers, self.supervisor.target.reads if reads is None else reads))

    def reader_of(self, sample: int) -> tuple[int, int, int] | None:
        """The worker and the reader of it that can go on and has a sample, and the row of its ticket; None if there is none."""
        for worker, reader in self.workers.able():
            ids = self.workers.ids(self.workers.ticket(worker, reader))
            if sample in ids:
                return worker, reader, ids.index(sample)
        return None

    def strike(self, sample: int, act: Callable[[int, int, int], object], *others: int, times: float = 1) -> None:
        """Have ``act(worker, reader, row)`` befall a reader that comes to ``sample`` or ``others``, ``times`` times."""

        def step() -> bool:
            nonlocal times
            if times and (place := next(filter(None, map(self.reader_of, (sample, *others))), None)):
                times -= 1
                act(*place)
                return True
            return self.workers.work()

        self.workers.otherwise = step

    def pass_time(self, seconds: float) -> None:
        """Time passes while a request waits; if it is due, the request looks how far the workers are."""
        self.clock.now += seconds
        self.workers.wake()

    def check(self) -> None:
        """Assert what holds between any two events: a slot is written to for the batch that it was given to, and for no other."""
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
            assert self.ring.is_held(number) <= (slot.state is State.LEASED)


def values(array: np.ndarray) -> list[int]:
    """The ids that a batch's rows say, each of which is all of one kind."""
    assert (array == array[:, :1]).all()
    return [int(row) for row in array.reshape(len(array), -1)[:, 0]]


@contextmanager
def engine_of(**options: Any) -> Iterator[Engine]:
    """An `Engine`, whose clock is the engine's modules' meanwhile."""
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
