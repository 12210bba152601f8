"""The engine above its workers, which are fakes here: every order of what can happen to workers is a plain test."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from conftest import Asking, wait_until
from fakes import GARBAGE, TIMEOUT, Engine, FakeWorkers, engine_of, values
from hypothesis import given, settings
from hypothesis import strategies as st

from shmgen._engine.supervisor import DEATHS, START_WITHIN, STARTS
from shmgen._plan.sampler import BatchId
from shmgen.errors import ClosedError, SampleError, StartError, TooManyDamaged, WorkerDied


def whole_epoch(engine: Engine) -> None:
    """Every batch of the first epoch is delivered, right in every row."""
    for number in range(engine.sampler.batches):
        assert engine.fetch(number) == engine.expected(number)


# Nothing happens but work.


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("slots", [2, 5])
def test_work_is_delivered(workers: int, slots: int) -> None:
    """Every sample once, with no worker replaced."""
    with engine_of(workers=workers, slots=slots) as engine:
        whole_epoch(engine)
        assert engine.workers.log == []
        assert engine.prefetcher.stats.restarts == 0


def test_workers_may_answer_in_any_order() -> None:
    """The last worker first: what is asked for comes as soon as its last piece does."""
    with engine_of(workers=3) as engine:

        def last_first() -> bool:
            able = engine.workers.able()
            if able:
                engine.workers.done(able[-1])
            return bool(able)

        engine.workers.otherwise = last_first
        whole_epoch(engine)


# Deaths.


def before(engine: Engine, worker: int, row: int) -> None:
    """It has not begun its task."""
    engine.workers.die(worker)


def amid(engine: Engine, worker: int, row: int) -> None:
    """At a row that it names."""
    engine.workers.reach(worker, row)
    engine.workers.die(worker)


def amid_unknown(engine: Engine, worker: int, row: int) -> None:
    """At a row that it does not name."""
    engine.workers.reach(worker, None)
    engine.workers.die(worker)


def after(engine: Engine, worker: int, row: int) -> None:
    """It has said that the task is done, and died before anybody heard of it."""
    engine.workers.done(worker)
    engine.workers.die(worker)


@pytest.mark.parametrize("moment", [before, amid, amid_unknown, after])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("sample", [4, 7, 9])
def test_a_death(moment: Callable[..., None], workers: int, sample: int, caplog: pytest.LogCaptureFixture) -> None:
    """Whenever it comes, all rows are right, the worker is replaced once, and the log says of what it died."""
    with engine_of(workers=workers) as engine:

        def strike_once() -> bool:
            if sample in [id for worker in engine.workers.workers if worker.tasks for id in worker.tasks[0].ids]:
                engine.workers.otherwise = engine.workers.work
                moment(engine, *engine.holding(sample))
                return True
            return engine.workers.work()

        engine.workers.otherwise = strike_once
        whole_epoch(engine)
        assert [word for word in engine.workers.log if word.startswith("restart")] == engine.workers.log
        assert engine.prefetcher.stats.restarts == len(engine.workers.log) == 1
    assert caplog.text.count("was killed by SIGKILL") == 1
    assert (f"sample {sample}, row {sample}" in caplog.text) == (moment is amid)


def test_an_idle_worker_dies(caplog: pytest.LogCaptureFixture) -> None:
    """It is replaced, held nothing, and nothing is read again."""
    with engine_of(workers=2) as engine:
        assert engine.fetch(0) == engine.expected(0)
        while engine.workers.work():
            pass
        engine.workers.die(1)
        assert engine.fetch(1) == engine.expected(1)
        assert engine.workers.log == ["restart 1"]
    assert "held nothing" in caplog.text


def test_a_sample_that_kills_is_named() -> None:
    """After so many workers; and tried as often again where it is asked for again."""
    with engine_of(workers=1) as engine:

        def deadly() -> bool:
            worker = next(iter(engine.workers.able()), None)
            if worker is None:
                return False
            if 6 in engine.workers.workers[0].tasks[0].ids:
                amid(engine, *engine.holding(6))
            else:
                engine.workers.done(0)
            return True

        engine.workers.otherwise = deadly
        assert engine.fetch(0) == engine.expected(0)
        for times in (1, 2):
            with pytest.raises(SampleError, match=rf"sample 6, row 6: .*{DEATHS} workers died"):
                engine.fetch(1)
            assert engine.prefetcher.stats.restarts == times * DEATHS
        assert engine.fetch(2) == engine.expected(2)


def test_workers_that_die_before_they_have_done_anything_end_the_run() -> None:
    """After so many, one after the other: the death is the error, and of all requests from then on."""
    with engine_of(workers=1) as engine:

        def die() -> bool:
            engine.workers.die(0)
            return True

        engine.workers.otherwise = die
        with pytest.raises(WorkerDied):
            engine.fetch(0)
        assert engine.workers.log == ["restart 0"] * (STARTS - 1) + ["stop"]
        with pytest.raises(WorkerDied):
            engine.fetch(1)


def test_a_worker_that_can_not_be_replaced_ends_the_run() -> None:
    """The error says why."""
    with engine_of() as engine:
        engine.workers.cannot_start = OSError("no more processes")
        engine.workers.script.append(lambda: engine.workers.die(0))
        with pytest.raises(StartError, match=r"a worker that has died can't be replaced: no more processes"):
            engine.fetch(0)


# Hangs.


@pytest.mark.parametrize("replaces", [False, True])
def test_a_hang(replaces: bool, caplog: pytest.LogCaptureFixture) -> None:
    """After ``timeout`` seconds of being waited for, no less, the worker is killed, and the sample is named, or replaced."""
    with engine_of(workers=1, replaces=replaces) as engine:
        began = engine.clock.now
        engine.workers.script += [lambda: engine.workers.reach(0, 2), lambda: engine.workers.hang(0)]
        if replaces:
            found = engine.fetch(0)
            assert found[:2] + found[3:] == [0, 1, 3]
            assert found[2] != 2
            assert [damaged.id for damaged in engine.damage.found.values()] == [2]
        else:
            with pytest.raises(SampleError, match=rf"sample 2, row 2: expected an answer, found none for {TIMEOUT:g} seconds"):
                engine.fetch(0)
        assert TIMEOUT <= engine.clock.now - began <= 1.5 * TIMEOUT
        assert engine.workers.log == ["kill 0", "restart 0"]
        assert engine.fetch(1) == engine.expected(1)
    assert "worker 0" in caplog.text


def test_time_between_requests_is_nobodys_fault() -> None:
    """A worker that is slow while nobody waits is given its whole time once somebody does."""
    with engine_of(workers=1) as engine:
        assert engine.fetch(0) == engine.expected(0)
        engine.workers.reach(0, 1)
        engine.clock.now += 100 * TIMEOUT
        began = engine.clock.now
        engine.workers.script += [lambda: engine.workers.hang(0)]
        with pytest.raises(SampleError, match="sample 5"):
            engine.fetch(1)
        assert TIMEOUT <= engine.clock.now - began <= 1.5 * TIMEOUT


def test_a_worker_that_comes_further_is_left_alone() -> None:
    """Each row has ``timeout`` seconds."""
    with engine_of(workers=1) as engine:

        def slowly(row: int) -> None:
            engine.workers.reach(0, row)
            engine.clock.now += 0.4 * TIMEOUT

        engine.workers.script += [partial(slowly, row) for row in (0, 0, 1, 1, 2, 2, 3, 3)]
        engine.workers.otherwise = lambda: False if engine.workers.script else engine.workers.work()
        assert engine.fetch(0) == engine.expected(0)
        assert engine.workers.log == []


def test_a_stopped_worker_blames_no_sample() -> None:
    """It is killed after ``timeout``, and what it held is read again."""
    with engine_of(workers=1) as engine:
        engine.workers.script += [lambda: engine.workers.reach(0, 2), lambda: engine.workers.hang(0, stopped=True)]
        assert engine.fetch(0) == engine.expected(0)
        assert engine.workers.log == ["kill 0", "restart 0"]
        assert engine.damage.found == {}


@pytest.mark.parametrize("row", [1, None])
def test_a_kill_that_does_not_work(row: int | None) -> None:
    """The worker is left to itself, and its slot is never used again, so that what it writes later harms nobody."""
    with engine_of(workers=1, slots=2) as engine:
        engine.workers.script += [lambda: engine.workers.reach(0, row), lambda: engine.workers.hang(0, immortal=True)]
        with pytest.raises(SampleError, match=f"sample {row or 0}, .*expected an answer"):
            engine.fetch(0)
        assert engine.workers.log == ["kill 0", "restart 0"]
        assert repr(engine.schedule).count("lost") == 1
        assert engine.ring.slots == 3
        held: list[Any] = []
        for number in (0, 1, 2, 3):
            array = engine.lease(number)
            engine.workers.scribble()
            assert values(array) == engine.expected(number)
            held = [*held[-1:], (array, number)]
        assert [values(array) for array, _ in held] == [engine.expected(number) for _, number in held]


def test_a_worker_that_never_begins_ends_the_run() -> None:
    """It has the time of a start, where ``timeout`` is shorter."""
    with engine_of(workers=1, timeout=1.0) as engine:
        engine.workers.begins = False
        engine.workers.script += [lambda: engine.workers.die(0)]
        engine.workers.otherwise = lambda: False
        began = engine.clock.now
        with pytest.raises(StartError, match=f"worker 0 has not begun within {START_WITHIN:g} seconds"):
            engine.fetch(0)
        assert START_WITHIN <= engine.clock.now - began <= 1.5 * START_WITHIN


# Failures.


@pytest.mark.parametrize("known", [True, False], ids=["row-known", "row-unknown"])
def test_a_failure_is_the_error_of_its_batch(known: bool) -> None:
    """That names the sample; the batch may be asked for again, and others are not touched."""
    with engine_of(workers=2) as engine:
        engine.workers.script.append(lambda: engine.workers.fail(*engine.holding(2), known=known))
        with pytest.raises(SampleError) as caught:
            engine.fetch(0)
        assert caught.value.id == 2
        whole_epoch(engine)
        assert engine.workers.log == []


@pytest.mark.parametrize("known", [True, False], ids=["row-known", "row-unknown"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_is_replaced(known: bool, workers: int) -> None:
    """Always by the same sample; where the row is not known, its rows are tried one by one. It is counted."""
    with engine_of(workers=workers, replaces=True) as engine:

        def bad() -> bool:
            for number in engine.workers.able():
                ids = engine.workers.workers[number].tasks[0].ids
                if 6 in ids:
                    engine.workers.fail(number, ids.index(6), known=known)
                else:
                    engine.workers.done(number)
                return True
            return False

        engine.workers.otherwise = bad
        assert engine.fetch(0) == engine.expected(0)
        found = engine.fetch(1)
        assert [found[0], found[1], found[3]] == [4, 5, 7]
        assert found[2] == engine.sampler.replacement(BatchId(0, 1), 2, 0)
        assert engine.prefetcher.stats.replaced == 1
        assert engine.damage.found.keys() == {6}


def test_too_many_failures_end_the_run() -> None:
    """Past ``max_damaged``."""
    with engine_of(workers=1, replaces=True, most=0.1) as engine:

        def fail() -> bool:
            engine.workers.fail(0, 0)
            return True

        engine.workers.otherwise = fail
        with pytest.raises(TooManyDamaged):
            engine.fetch(0)
        assert engine.damage.found.keys() >= {0}
        assert len(engine.damage.found) == 3
        assert engine.workers.log == ["stop"]


def test_an_interrupted_task_is_read_anew() -> None:
    """Its whole batch, since what was read of it is not to be trusted."""
    with engine_of(workers=2) as engine:
        engine.workers.script.append(lambda: engine.workers.drop(0))
        whole_epoch(engine)


# Other numbers of workers.


@pytest.mark.parametrize("counts", [(3, 1), (1, 4), (2, 3, 1, 2)], ids=str)
def test_resizes_amid_work(counts: tuple[int, ...]) -> None:
    """More get work at once; fewer end once they have done what they hold; every row is right throughout."""
    with engine_of(workers=2, samples=40) as engine:
        for number in range(engine.sampler.batches):
            if number < len(counts):
                engine.workers.script.append(partial(engine.resize, counts[number]))
            assert engine.fetch(number) == engine.expected(number)
        assert len(engine.workers.workers) == engine.prefetcher.stats.workers == counts[-1]
        assert set(engine.workers.log) <= {"add", "dismiss"}


def test_who_is_to_go_dies_first() -> None:
    """A worker that is to be dismissed, and dies of what it still holds, leaves nothing unread."""
    with engine_of(workers=2) as engine:
        engine.workers.script += [lambda: engine.resize(1), lambda: engine.workers.die(1)]
        whole_epoch(engine)
        assert len(engine.workers.workers) == 1


def test_one_more_can_not_be_started(caplog: pytest.LogCaptureFixture) -> None:
    """It goes on with those that there are, which is said."""
    with engine_of(workers=1) as engine:
        engine.workers.cannot_start = OSError("no more processes")
        assert not engine.resize(3)
        whole_epoch(engine)
        assert engine.prefetcher.stats.workers == 1
    assert "there are 1 workers, since another can't be started: no more processes" in caplog.text


# Slots.


def test_all_slots_are_held() -> None:
    """Copies are handed out after a while, each right; what is held stays right; once it is let go of, there are leases again."""
    with engine_of(slots=2, samples=40) as engine:
        held = [engine.lease(number) for number in range(6)]
        assert engine.prefetcher.stats.grown == 4
        assert [values(array) for array in held] == [engine.expected(number) for number in range(6)]
        held.clear()
        for number in range(6, 10):
            assert engine.fetch(number) == engine.expected(number)
        assert engine.prefetcher.stats.grown == 4


# Interrupts, and ends.


def test_an_interrupt_amid_a_wait_ends_that_request_alone() -> None:
    """KeyboardInterrupt reaches who waits; the next request is served."""
    with engine_of() as engine:

        def interrupt() -> None:
            raise KeyboardInterrupt

        engine.workers.script.append(interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.fetch(0)
        assert engine.prefetcher.state(0).waiting == 0
        whole_epoch(engine)


def test_ctrl_c_that_reached_a_worker_ends_a_wait_elsewhere(asking: type[Asking]) -> None:
    """A thread other than the main one would not hear of it."""
    with engine_of() as engine:

        def step() -> None:
            engine.clock.now += 1
            for worker in range(2):
                engine.workers.interrupt(worker)

        engine.workers.script.append(step)
        assert isinstance(asking(lambda: engine.fetch(0)).outcome(), KeyboardInterrupt)


def test_closed_while_it_waits() -> None:
    """By who is in that wait, as a signal's handler is: ClosedError, and no event is heard of any more."""
    with engine_of() as engine:
        engine.workers.script.append(lambda: engine.prefetcher.close(ClosedError("closed")))
        with pytest.raises(ClosedError, match="closed"):
            engine.fetch(0)
        assert engine.workers.log == ["stop"]
        with pytest.raises(ClosedError):
            engine.fetch(1)
        assert engine.prefetcher.error is None


@pytest.mark.parametrize("threads", [1, 3])
def test_closed_while_other_threads_wait(asking: type[Asking], threads: int) -> None:
    """All that wait are woken, and get ClosedError."""
    with engine_of(ahead=False) as engine:
        engine.workers.blocks = True
        waiting = [asking(partial(engine.fetch, number)) for number in range(threads)]
        wait_until(lambda: state(engine).waiting == threads, "all wait")
        engine.prefetcher.close(ClosedError("closed"))
        assert [type(thread.outcome()) for thread in waiting] == [ClosedError] * threads
        assert engine.workers.log == ["stop"]


def test_several_threads_wait(asking: type[Asking]) -> None:
    """For the same batch and for others: each gets its own when the workers have answered, in whatever order."""
    with engine_of(slots=4, ahead=False) as engine:
        engine.workers.blocks = True
        threads = [asking(partial(engine.fetch, number)) for number in (0, 1, 0)]
        wait_until(lambda: state(engine).waiting == 3, "all wait")

        def progress() -> bool:
            with engine.prefetcher.lock:
                engine.workers.work()
            engine.workers.wake()
            return not any(thread.is_alive() for thread in threads)

        wait_until(progress, "all are served")
        assert [thread.outcome() for thread in threads] == [engine.expected(number) for number in (0, 1, 0)]


def state(engine: Engine) -> Any:
    """What the loader would say of itself."""
    with engine.prefetcher.lock:
        return engine.prefetcher.state(0)


# Any order of events.


class History:
    """What happens to workers while batches are asked for, as hypothesis chooses it.

    Attributes:
        hit: the samples that a fault may be blamed on: those of the tasks in which one struck.
        immortal: whether a worker can't be killed, which may cost its batch an error, since each of its rows might cost a slot.
    """

    FAULTS = ("fail", "fail-somewhere", "die", "die-somewhere", "die-idle", "die-after", "hang", "stop", "immortal", "drop")

    def __init__(self, engine: Engine, data: st.DataObject) -> None:
        self.engine = engine
        self.hit: set[int] = set()
        self.immortal = False
        self._data = data
        self._faults = data.draw(st.integers(0, 12), "faults")
        self._idle_deaths = STARTS - 1

    def step(self) -> bool:
        """The next that happens; whether anything can."""
        workers = self.engine.workers
        workers.scribble()
        able = workers.able()
        if not able:
            return False
        number = self._data.draw(st.sampled_from(able), "worker")
        what = "done"
        if self._faults and self._data.draw(st.booleans(), "strikes"):
            what = self._data.draw(st.sampled_from((*self.FAULTS, "resize")), "fault")
            self._faults -= 1
        if what == "done" or (what == "die-idle" and not self._idle_deaths):
            workers.done(number)
        elif what == "resize":
            self.engine.resize(self._data.draw(st.integers(1, 4), "count"))
        else:
            self._strike(workers, number, what)
        return True

    def _strike(self, workers: FakeWorkers, number: int, what: str) -> None:
        ids = workers.workers[number].tasks[0].ids
        row = self._data.draw(st.integers(0, len(ids) - 1), "row")
        self.hit.update(ids)
        if what.startswith("fail"):
            workers.fail(number, row, known=what == "fail")
        elif what == "drop":
            workers.drop(number)
        elif what == "die-after":
            workers.done(number)
            self._idle_deaths -= 1
            workers.die(number)
        elif what == "die-idle":
            self._idle_deaths -= 1
            workers.die(number)
        else:
            workers.reach(number, None if what == "die-somewhere" or self._data.draw(st.booleans(), "unnamed") else row)
            if what.startswith("die"):
                workers.die(number)
            else:
                self.immortal = self.immortal or what == "immortal"
                workers.hang(number, stopped=what == "stop", immortal=what == "immortal")


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_history_ends_with_every_row_right_or_named(data: st.DataObject) -> None:
    """Whatever happens to workers: each row is its sample, or a named one's replacement, or the error names the sample."""
    replaces = data.draw(st.booleans(), "replaces")
    options = {
        "workers": data.draw(st.integers(1, 3), "workers"),
        "slots": data.draw(st.integers(2, 4), "slots"),
        "shuffle": data.draw(st.booleans(), "shuffle"),
    }
    with engine_of(replaces=replaces, **options) as engine:
        history = History(engine, data)
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
            found = values(array)
            for row, (sample, wanted) in enumerate(zip(found, engine.expected(number), strict=True)):
                if sample != wanted:
                    replaced += 1
                    assert replaces
                    assert wanted in engine.damage.found
                    assert wanted in history.hit
                    assert sample in {engine.sampler.replacement(BatchId(0, number), row, tried) for tried in range(30)}
            assert GARBAGE not in found
            held.append((array, array.copy()))
            if data.draw(st.booleans(), "lets go"):
                held.clear()
            del array
        engine.workers.scribble()
        for array, then in held:
            np.testing.assert_array_equal(array, then)
        assert engine.prefetcher.stats.replaced == replaced
        assert not (replaces and named) or history.immortal
        assert {sample for sample, _ in named} <= history.hit
        assert replaces or all(sample in engine.expected(number) for sample, number in named)
