"""The workers' part played by a script, so that every order of events above them is a plain test.

`FakeWorkers` is what `Supervisor` and `Prefetcher` see of a pool. It has no process and waits for nothing: while a request waits,
the next step of the test's script happens; where a real wait would not end, it is an error at once. Time is a `Clock`'s.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from shmgen import Source
from shmgen._engine import prefetcher, supervisor
from shmgen._engine.batch_builder import BatchBuilder
from shmgen._engine.pool import Event, EventKind
from shmgen._engine.prefetcher import Prefetcher
from shmgen._engine.supervisor import Supervisor
from shmgen._memory.layout import Layout
from shmgen._memory.ring import Ring
from shmgen._memory.status_page import STATUS_PAGE_BYTES
from shmgen._plan.damage import Damage
from shmgen._plan.passes import Passes
from shmgen._plan.sampler import BatchId, Sampler
from shmgen._plan.schedule import Schedule
from shmgen._sources.base import IDLE, UNKNOWN
from shmgen._sources.batch_spec import BatchSpec
from shmgen._worker.assembler import BatchAssembler, FieldSpec, Task
from shmgen.errors import ClosedError, SampleError, WorkerDied

TIMEOUT = 100.0
"""Seconds of a `Clock`."""

GARBAGE = -1.0
"""What is in a row that nobody has read yet, or that somebody writes who should have been gone."""


class Rows(Source):
    """Rows of two float64, that a fake worker fills with the id."""

    shape, dtype = (2,), "f8"

    def place(self, id: Any) -> str:
        return f"row {id}"


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@dataclass
class FakeWorker:
    """One worker.

    Attributes:
        pid: a number of its own.
        tasks: what it has yet to do.
        at: the word that it would have on the status page.
        lives: whether it has not died.
        hangs: whether it does nothing any more.
        stopped: whether it was stopped from outside, as by SIGSTOP.
        immortal: whether killing it does nothing.
    """

    pid: int
    tasks: deque[Task] = field(default_factory=deque)
    at: int = IDLE
    lives: bool = True
    hangs: bool = False
    stopped: bool = False
    immortal: bool = False


class FakeWorkers:
    """Workers that do what a script says.

    Args:
        count: how many.
        ring: what they fill.
        clock: whose time passes while somebody waits and nothing happens.

    Attributes:
        workers: the workers, by number.
        left: those that were replaced though they live on.
        script: the steps that happen while a request waits, one after the other.
        otherwise: the step that happens when there are none left; returns whether anything happened.
        log: what was asked of the workers: ``"restart 0"``, ``"kill 1"``, ``"add"``, ``"dismiss"``, ``"stop"``.
        cannot_start: the error that starting a worker raises, if any.
        blocks: whether a wait ends by `wake` alone, from another thread.
        begins: whether those that are started say at once that they have begun.
    """

    def __init__(self, count: int, ring: Ring, clock: Clock) -> None:
        self._ring = ring
        self._clock = clock
        self._pid = 100
        self._events: list[Event] = []
        self._woken = threading.Event()
        self.workers: list[FakeWorker] = []
        self.left: list[FakeWorker] = []
        self.script: deque[Callable[[], object]] = deque()
        self.otherwise: Callable[[], bool] = self.work
        self.log: list[str] = []
        self.cannot_start: OSError | None = None
        self.blocks = False
        self.begins = True
        for _ in range(count):
            self._begin(len(self.workers))

    def _begin(self, number: int) -> None:
        if self.cannot_start is not None:
            raise self.cannot_start
        self._pid += 1
        self.workers[number : number + 1] = [FakeWorker(self._pid)]
        if self.begins:
            self._say(number, EventKind.READY)

    # What the engine asks of it.

    @property
    def pids(self) -> list[int]:
        return [worker.pid for worker in self.workers]

    def send(self, worker: int, tasks: list[Task]) -> None:
        assert tasks
        self.workers[worker].tasks.extend(tasks)

    def wait(self, timeout: float | None, only: int | None) -> None:
        if self.blocks:
            self._woken.wait()
            self._woken.clear()
            return
        until = math.inf if timeout is None else self._clock.now + timeout
        while not (self._woken.is_set() or self._heard_of(only)):
            if self.script:
                self.script.popleft()()
            elif not self.otherwise():
                assert until < math.inf, f"a wait without an end, for {'all' if only is None else only}: {self.workers}"
                self._clock.now = max(self._clock.now, until)
                return
        self._woken.clear()

    def _heard_of(self, only: int | None) -> bool:
        return any(only in (None, event.worker) or event.what is EventKind.DIED for event in self._events)

    def wake(self) -> None:
        self._woken.set()

    def poll_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def at(self, worker: int) -> int:
        return self.workers[worker].at

    def use(self) -> tuple[float, float]:
        return 0.0, 0.0

    def is_stopped(self, worker: int) -> bool:
        return self.workers[worker].stopped

    def kill(self, worker: int) -> None:
        self.log.append(f"kill {worker}")
        if not self.workers[worker].immortal:
            self.die(worker)

    def restart(self, worker: int) -> None:
        self.log.append(f"restart {worker}")
        # What the old one said and nobody has heard yet is heard of no more.
        self._events = [event for event in self._events if event.worker != worker]
        if self.workers[worker].lives:
            self.left.append(self.workers[worker])
        self._begin(worker)

    def add(self) -> None:
        self.log.append("add")
        self._begin(len(self.workers))

    def dismiss(self) -> None:
        self.log.append("dismiss")
        assert not self.workers[-1].tasks
        self.workers.pop()
        self._events = [event for event in self._events if event.worker < len(self.workers)]

    def stop(self) -> None:
        self.log.append("stop")
        self.workers.clear()
        self.left.clear()

    # What a test has them do.

    def _say(self, worker: int, what: EventKind, detail: Any = None) -> None:
        self._events.append(Event(worker, what, detail))

    def done(self, worker: int, *, waited: bool = False) -> None:
        """It reads the rows of its oldest task: each becomes the sample's id."""
        task = self.workers[worker].tasks.popleft()
        self.workers[worker].at = IDLE
        self._ring.arrays(task.slot)[0][task.start : task.stop] = np.array(task.ids)[:, None]
        self._say(worker, EventKind.DONE, waited)

    def fail(self, worker: int, row: int, *, known: bool = True) -> None:
        """It fails at a row of its oldest task; with ``known``, it says at which."""
        task = self.workers[worker].tasks.popleft()
        self.workers[worker].at = IDLE
        self._scribble(task)
        error = SampleError(task.ids[row], f"row {task.ids[row]}", "expected a file, found none")
        self._say(worker, EventKind.FAILED, (row if known else None, error))

    def reach(self, worker: int, row: int | None) -> None:
        """It comes to a row of its oldest task; None: to one that it does not name."""
        self.workers[worker].at = UNKNOWN if row is None else row + 1

    def die(self, worker: int, exitcode: int = -9) -> None:
        """It dies where it is, in whatever it had half done."""
        mortal = self.workers[worker]
        if mortal.lives:
            mortal.lives = False
            if mortal.tasks and mortal.at != IDLE:
                self._scribble(mortal.tasks[0])
            self._say(worker, EventKind.DIED, WorkerDied(worker, mortal.pid, exitcode))

    def hang(self, worker: int, *, stopped: bool = False, immortal: bool = False) -> None:
        """It does nothing any more."""
        culprit = self.workers[worker]
        culprit.hangs, culprit.stopped, culprit.immortal = True, stopped, immortal

    def interrupt(self, worker: int) -> None:
        """Ctrl-C reaches it."""
        self._say(worker, EventKind.INTERRUPTED, self._clock.now)

    def drop(self, worker: int) -> None:
        """Its oldest task is interrupted."""
        self._scribble(self.workers[worker].tasks.popleft())
        self._say(worker, EventKind.DROPPED)

    def scribble(self) -> None:
        """Who was left to itself writes into the slot that it was reading into."""
        for worker in self.left:
            for task in list(worker.tasks)[:1]:
                self._scribble(task)

    def _scribble(self, task: Task) -> None:
        self._ring.arrays(task.slot)[0][task.start : task.stop] = GARBAGE

    def able(self) -> list[int]:
        """The workers that can work, and have something to do."""
        return [number for number, worker in enumerate(self.workers) if worker.lives and not worker.hangs and worker.tasks]

    def work(self) -> bool:
        """The first worker that can does its oldest task; whether there was one."""
        able = self.able()
        if able:
            self.done(able[0])
        return bool(able)


class Engine:
    """All that is above workers, on `FakeWorkers`; the ids are numbers from 0, and each row should be its id.

    Attributes:
        clock, ring, workers, schedule, supervisor, passes, sampler, damage, prefetcher: its parts.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        samples: int = 24,
        batch_size: int = 4,
        workers: int = 2,
        slots: int = 3,
        replaces: bool = False,
        most: float = 1.0,
        timeout: float = TIMEOUT,
        shuffle: bool = False,
        ahead: bool = True,
    ) -> None:
        self.clock = clock
        self.sampler = Sampler(samples, batch_size, shuffle=shuffle, seed=0, drop_last=True)
        ids = range(samples)
        spec = BatchSpec(Rows(), None, None, ids)
        layout = Layout(spec.bind(), batch_size)
        fields = [FieldSpec("X", (2,), "<f8", STATUS_PAGE_BYTES, layout.fields[0].row_bytes)]
        assembler = BatchAssembler(fields, spec.sources, layout.slot_bytes, 0, {}, None)
        self.ring = Ring(layout, slots)
        self.workers = FakeWorkers(workers, self.ring, self.clock)
        self.passes = Passes(self.sampler.batches, shuffle=shuffle, epoch=0)
        self._pass = self.passes.open()
        self.damage = Damage(samples, replaces=replaces, max_fraction=most)
        self.builder = BatchBuilder(ids, self.sampler, spec, self.ring, self.passes, assembler, self.damage)
        self.schedule = Schedule(slots, workers, self.sampler.size, in_flight=slots)
        self.supervisor = Supervisor(self.workers, workers, self.schedule, self.builder, self.ring, timeout)
        upcoming = self.passes.upcoming if ahead else _nothing
        self.prefetcher = Prefetcher(
            self.ring, self.workers, self.supervisor, self.schedule, self.builder, upcoming, autoscaler=None
        )

    def fetch(self, number: int) -> list[int]:
        """The samples in a batch of the first epoch as it is delivered, whose slot is let go of at once."""
        return values(self.lease(number))

    def lease(self, number: int) -> np.ndarray:
        """A batch as it is delivered."""
        with self.prefetcher.lock:
            batch = self.passes.deal(number, self._pass)
        [array] = self.prefetcher.fetch(batch)
        return array

    def expected(self, number: int) -> list[int]:
        """The samples that should be in a batch."""
        return [int(sample) for sample in self.sampler[BatchId(0, number)]]

    def resize(self, count: int) -> bool:
        """Have so many workers, as the autoscaler does."""
        with self.prefetcher.lock:
            return self.supervisor.resize(count)

    def holding(self, sample: int) -> tuple[int, int]:
        """The worker whose oldest task has a sample, and the row of it."""
        for number, worker in enumerate(self.workers.workers):
            if worker.tasks and sample in worker.tasks[0].ids:
                return number, worker.tasks[0].ids.index(sample)
        raise AssertionError(f"nobody is to read {sample} next: {self.workers.workers}")


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


def _nothing() -> Iterator[BatchId]:
    return iter(())
