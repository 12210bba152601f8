"""A simulation of a machine that loads data, for tests of the autoscaler: in time steps, without a clock, and reproducible."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field, replace

from shmgen._plan.activity import Counters, Target
from shmgen._plan.autoscaler import Autoscaler

STEP = 0.002
"""Seconds of a time step."""


@dataclass(frozen=True)
class Machine:
    """The speed of the storage, the workers and the trainer."""

    latency: float = 0.0  # seconds that a row waits for the storage
    cost: float = 1e-4  # seconds of a processor, and of its worker's interpreter, for a row
    processors: int = 2
    at_once: int = 1000  # rows that the storage serves at once; others wait for their turn
    crowding: float = 0.0  # the fraction of its speed that the storage loses when 64 rows wait for it
    convoy: float = 0.0  # the fraction of its speed that a worker loses when 32 readers wait for its interpreter
    others: int = 0  # processes of other programs that compete for the processors
    concurrent: bool = True  # the readers of a worker may read at the same time
    step: float = 0.0  # seconds that the trainer takes for a batch
    batch: int = 64  # rows in a batch; cut into a ticket for each reader, or into 16 until the first ticket is done
    slots: int = 16  # maximum number of batches that are being read, or are read and wait
    start: float = 0.05  # seconds that a worker takes to start
    noise: float = 0.02  # relative spread of the speed, which changes every 50 ms
    spread: float = 0.1  # relative spread of the time for a ticket
    epoch: int = 10**9  # batches in an epoch
    pause: float = 0.0  # seconds after each epoch in which no batch is requested

    def share(self, workers: int) -> float:
        """The fraction of a processor that each of ``workers`` workers gets."""
        return min(1.0, self.processors / (workers + self.others))

    def speed(self, workers: int, busy: int) -> float:
        """Rows a second while ``busy`` readers, of all workers together, have a ticket."""
        if not busy:
            return 0.0
        share = self.share(workers)
        at_once = busy if self.concurrent else min(busy, workers)
        convoy = 1 - self.convoy * max(0, busy / workers - 1) / 31
        speed = min(at_once / (self.latency + self.cost / share), workers * share * convoy / self.cost)
        if self.latency:
            crowd = max(0, min(at_once, 64) - self.at_once) / max(1, 64 - self.at_once)
            speed = min(speed, self.at_once / self.latency * (1 - self.crowding * crowd))
        return speed

    def steady(self, target: Target) -> float:
        """Rows a second that the trainer gets in the long run with ``target``."""
        speed = self.speed(target.workers, target.readers)
        return min(speed, self.batch / self.step) if self.step else speed


@dataclass
class Reader:
    """A reader: the rows of its ticket and how many are done (-1 without a ticket), when it took it, and its relative speed."""

    done: float = -1.0
    rows: int = 0
    since: float = 0.0
    pace: float = 1.0
    leaves: bool = False


@dataclass
class Run:
    """A simulated run of a machine, with an autoscaler if there is one."""

    machine: Machine
    autoscaler: Autoscaler | None
    target: Target
    time: float = 0.0
    rows: int = 0
    waited: float = 0.0
    busy: float = 0.0
    cpu: float = 0.0
    # For each time step: the time, the rows finished until then, and the workers that have started with their readers.
    history: list[tuple[float, int, Target]] = field(default_factory=list)
    seed: int = 1

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._started = [self.machine.start] * self.target.workers
        self._readers: list[list[Reader]] = [[] for _ in range(self.target.workers)]
        self._given = self._taken = 0
        self._tickets: deque[int] = deque()
        self._free_at = self._asleep_until = 0.0
        self._epoch = self._batches = 0
        self._noise = 1.0

    def run(self, seconds: float) -> Run:
        """Continue for ``seconds`` seconds."""
        for _ in range(round(seconds / STEP)):
            self._step()
        return self

    def becomes(self, **changes: float) -> None:
        """Change properties of the machine from now on."""
        self.machine = replace(self.machine, **changes)  # type: ignore[arg-type]

    @property
    def decisions(self) -> str:
        """The autoscaler's decisions, as text for a test that fails."""
        assert self.autoscaler is not None
        return "\n".join(map(str, self.autoscaler.decisions))

    def rate(self, start: float, stop: float) -> float:
        """Rows finished per second between two times."""
        rows = [rows for time, rows, _ in self.history if start <= time <= stop]
        return (rows[-1] - rows[0]) / (stop - start)

    def _step(self) -> None:
        machine, before = self.machine, self.rows
        self.time += STEP
        if round(self.time / STEP) % 25 == 0:
            self._noise = max(0.2, self._random.gauss(1, machine.noise))
        self._train()
        self._read()
        # Reports of workers are read only while a batch is requested.
        if self.autoscaler is not None and self.rows > before and self.time >= self._asleep_until:
            self._steer(self.autoscaler)
        self.history.append((self.time, self.rows, Target(self._ready(), self.target.reads)))

    def _steer(self, autoscaler: Autoscaler) -> None:
        if autoscaler.is_due(self.time, self.rows):
            counters = Counters(self.time, self.rows, self.waited, self.busy, self.cpu, self.target, self._ready())
            self._resize(autoscaler.see(self._epoch, counters))

    def _ready(self) -> int:
        """The number of workers that have started."""
        return sum(start <= self.time for start in self._started)

    def _train(self) -> None:
        machine, budget = self.machine, min(STEP, self.time - max(self._free_at, self._asleep_until))
        while budget > 0:
            if self.rows - self._taken < machine.batch:
                self.waited += budget
                return
            self._taken += machine.batch
            self._batches += 1
            if self._batches % machine.epoch == 0:
                self._asleep_until, self._epoch = self.time + machine.pause, self._epoch + 1
                return
            budget -= machine.step
        self._free_at = max(self._free_at, self.time - budget)

    def _read(self) -> None:
        machine = self.machine
        for start, readers in zip(self._started, self._readers, strict=True):
            if start <= self.time:
                readers += [Reader() for _ in range(len(readers), self.target.reads)]
        active = []
        for readers in self._readers:
            for number, reader in enumerate(list(readers)):
                reader.leaves = number >= self.target.reads
                if reader.done < 0 and reader.leaves:
                    readers.remove(reader)
                elif reader.done >= 0 or self._take(reader, self.time - STEP):
                    reader.done = max(0.0, reader.done)
                    active.append(reader)
        workers = max(1, self._ready())
        speed = machine.speed(workers, len(active)) * self._noise
        for reader in active:
            pace = speed / len(active) * reader.pace
            reader.done += pace * STEP
            while reader.done >= reader.rows:
                self.rows += reader.rows
                reader.done -= reader.rows
                ended = self.time - reader.done / pace
                self.busy += ended - reader.since
                if not self._take(reader, ended):
                    reader.done = -1.0
        self.cpu += min(workers, speed * machine.cost / machine.share(workers)) * STEP

    def _take(self, reader: Reader, time: float) -> bool:
        """Give a reader a ticket, if one is left and the reader is to stay; return whether it got one."""
        machine = self.machine
        if not self._tickets and self._given - self._taken + machine.batch <= machine.slots * machine.batch:
            self._given += machine.batch
            count = min(machine.batch, self.target.readers if self.rows else 16)
            self._tickets += [(part + 1) * machine.batch // count - part * machine.batch // count for part in range(count)]
        if reader.leaves or not self._tickets:
            return False
        reader.rows = self._tickets.popleft()
        reader.since, reader.pace = time, max(0.2, self._random.gauss(1, machine.spread))
        return True

    def _resize(self, target: Target) -> None:
        self._started += [self.time + self.machine.start] * (target.workers - len(self._started))
        self._readers += [[] for _ in range(len(self._readers), target.workers)]
        del self._started[target.workers :]
        for readers in self._readers[target.workers :]:
            self._tickets += [reader.rows for reader in readers if reader.done >= 0]
        del self._readers[target.workers :]
        self.target = target
