"""Random faults in the engine's fake workers: in any order of events, every row is right or blamed in an error."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, get_args

import numpy as np
import pytest
from conftest import Asking, wait_until
from fakes import GARBAGE, Engine, Place, engine_of, values

from shmgen._engine.supervisor import STARTS
from shmgen._plan.damaged_samples import OnError
from shmgen._plan.faults import DEATHS
from shmgen._plan.sampler import BatchId
from shmgen._sources.base import IDLE
from shmgen.errors import SampleError

T = TypeVar("T")


class Chance:
    """Random choices, determined by a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def choose(self, options: Sequence[T]) -> T:
        """One of ``options``."""
        return self._random.choice(options)


class History:
    """A random sequence of events in workers while batches are requested."""

    FAULTS = (
        "fail",
        "fail-at-unknown-row",
        "die",
        "die-at-unknown-row",
        "die-idle",
        "die-after",
        "hang",
        "stop",
        "immortal",
        "drop",
        "sleep",
    )

    def __init__(self, engine: Engine, chance: Chance, *, faults: int) -> None:
        self.engine = engine
        self.chance = chance
        self.failed: set[int] = set()  # samples at which a read failed
        self.hung: set[int] = set()  # samples at which a reader hung, if its row was known
        # First samples of tickets in which a reader hung at an unknown row: blamed if the worker can't be killed.
        self.before: set[int] = set()
        self.deaths: Counter[int] = Counter()  # deaths of workers while a reader was at the sample
        self.alone: set[int] = set()  # samples at which a worker died while its other readers were at none
        # The batch of a worker that can't be killed may raise an error, since trying each row could lose more slots.
        self.immortal = False
        self._faults = faults
        self._idle_deaths = STARTS - 1
        engine.workers.takes = False

    def step(self) -> bool:
        """Let the next event happen; return whether any was possible."""
        workers = self.engine.workers
        self.engine.check()
        workers.scribble()
        able, idle = workers.able(), workers.idle() if workers.queue else []
        if not able + idle:
            return False
        place = self.chance.choose(able + idle)
        if self._faults and self.chance.choose((False, False, True)):
            self._faults -= 1
            self._strike(place, self.chance.choose((*self.FAULTS, "resize")))
        elif place in idle:
            workers.take(*place)
        elif self.chance.choose((False, True)):
            workers.reach(*place, self._row(place))
        else:
            workers.done(*place)
        return True

    def _row(self, place: Place) -> int | None:
        ticket = self.engine.workers.ticket(*place)
        return self.chance.choose((None, *range(ticket.stop - ticket.start)))

    def _strike(self, place: Place, what: str) -> None:
        workers = self.engine.workers
        worker, reader = place
        if what == "resize":
            self.engine.resize(self.chance.choose((1, 2, 3, 4)), self.chance.choose((1, 2, 3)))
            return
        if what == "sleep":
            if all(one.at == IDLE and not one.hangs for one in workers.workers[worker].readers):
                workers.sleep(worker)
            return
        if what == "die-idle" or workers.workers[worker].readers[reader].ticket is None:
            self._die(worker)
            return
        ids = workers.ids(workers.ticket(*place))
        row = self.chance.choose(range(len(ids)))
        named = what != "die-at-unknown-row" and self.chance.choose((False, True))
        if what.startswith("fail"):
            self.failed.add(ids[row])
            workers.fail(*place, row, known=what == "fail")
        elif what == "drop":
            workers.drop(*place)
        elif what == "die-after":
            workers.done(*place)
            self._die(worker)
        elif what.startswith("die"):
            workers.reach(*place, row if named else None)
            self._die(worker)
        else:
            workers.reach(*place, row if named else None)
            if what == "stop":
                workers.halt(worker)
                return
            if named or len(ids) == 1:
                self.hung.add(ids[row])
            else:
                self.before.add(ids[0])
            self.immortal |= what == "immortal"
            workers.hang(*place, immortal=what == "immortal")

    def _die(self, worker: int) -> None:
        workers = self.engine.workers
        begun = [one for one in workers.workers[worker].readers if one.ticket is not None and one.at != IDLE]
        if not begun:
            if not self._idle_deaths:
                return
            self._idle_deaths -= 1
        for one in begun:
            assert one.ticket is not None
            ids = workers.ids(one.ticket)
            row = 0 if len(ids) == 1 else one.row
            if row is not None:
                self.deaths[ids[row]] += 1
                if len(begun) == 1:
                    self.alone.add(ids[row])
        workers.die(worker)

    def may_blame(self, sample: int) -> bool:
        """Whether ``sample`` may be blamed as unreadable."""
        hung = self.hung | self.before if self.immortal else self.hung
        return sample in self.failed | hung or (self.deaths[sample] >= DEATHS and sample in self.alone)


def engine_by(chance: Chance, *, shuffles: Sequence[bool] = (False, True)) -> Any:
    """An engine of random size and options."""
    return engine_of(
        on_error=chance.choose(get_args(OnError)),
        workers=chance.choose((1, 2, 3)),
        reads=chance.choose((1, 2, 3)),
        slots=chance.choose((2, 3, 4)),
        batch_size=chance.choose((4, 6, 12)),
        shuffle=chance.choose(shuffles),
    )


@pytest.mark.parametrize("seed", range(24))
def test_every_row_is_right_or_named(seed: int) -> None:
    """Whatever happens to workers, each row is its sample or a blamed sample's replacement, or an error names a blamed sample."""
    chance = Chance(seed)
    with engine_by(chance) as engine:
        history = History(engine, chance, faults=chance.choose(range(16)))
        engine.workers.otherwise = history.step
        held: list[tuple[np.ndarray, np.ndarray]] = []
        named: list[tuple[Any, int]] = []
        replaced = 0
        for number in range(engine.sampler.batches):
            while True:
                try:
                    array = engine.lease(number)
                    break
                except SampleError as error:
                    named.append((error.id, number))
            replaced += check(engine, history, number, values(array))
            held.append((array, array.copy()))
            if chance.choose((False, True)):
                held.clear()
            del array
        engine.workers.scribble()
        for array, then in held:
            np.testing.assert_array_equal(array, then)
        assert engine.prefetcher.stats.replaced == replaced
        tolerates = engine.damage.on_error != "raise"
        assert not (tolerates and named) or history.immortal
        assert all(history.may_blame(sample) for sample, _ in named)
        assert tolerates or all(sample in engine.expected(number) for sample, number in named)
        assert all(history.may_blame(damaged.id) for damaged in engine.damage.found.values())
        assert engine.schedule.rows_done >= engine.sampler.samples - engine.sampler.batch_size * len(named)


def check(engine: Engine, history: History, number: int, found: Sequence[int]) -> int:
    """Assert that each row is its sample, or that its sample may be blamed and is replaced; return the replacements' number."""
    replaced = 0
    collects = engine.damage.on_error == "collect"
    for row, (sample, wanted) in enumerate(zip(found, engine.expected(number), strict=True)):
        if collects and wanted in engine.damage.found:
            continue  # the row may have any content
        assert sample != GARBAGE
        if sample != wanted:
            replaced += 1
            assert not collects
            assert wanted in engine.damage.found
            assert history.may_blame(wanted)
            assert sample in {engine.sampler.replacement(BatchId(0, number), row, tried) for tried in range(30)}
    return replaced


@contextmanager
def switching() -> Iterator[None]:
    """Make Python switch between threads as often as possible."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("seed", range(6))
def test_concurrent_requests_under_faults(seed: int) -> None:
    """Threads that request batches at once each get theirs, all right or blamed in an error, whatever happens to workers."""
    chance = Chance(seed)
    with engine_by(chance, shuffles=[False]) as engine, switching():  # with shuffling, an index depends on the order of requests
        engine.workers.blocks = True
        history = History(engine, chance, faults=chance.choose(range(16)))
        named: list[Any] = []

        def ask(order: Sequence[int]) -> None:
            for number in order:
                while True:
                    try:
                        found = engine.fetch(number)
                        break
                    except SampleError as error:
                        named.append(error.id)
                with engine.prefetcher.lock:
                    check(engine, history, number, found)

        def progress() -> bool:
            with engine.prefetcher.lock:
                if not history.step():
                    engine.clock.now = max(engine.clock.now + 0.002, min(engine.supervisor.next_deadline, engine.clock.now + 10))
            engine.workers.wake()
            return not any(thread.is_alive() for thread in threads)

        numbers = range(engine.sampler.batches)
        orders = [list(numbers), list(reversed(numbers)), [chance.choose(numbers) for _ in numbers]]
        threads = [Asking(partial(ask, order)) for order in orders]
        wait_until(progress, "all threads have their batches")
        assert [thread.outcome() for thread in threads] == [None] * 3
        assert all(history.may_blame(sample) for sample in named)
