"""Workers hang, are stopped, or can't be killed: only a sample at which a reader hung is named."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import pytest
from fakes import TIMEOUT, engine_of, values
from moments import hang, reads, whole_epoch

from shmgen._engine.supervisor import START_WITHIN
from shmgen._plan.damaged_samples import OnError
from shmgen.errors import SampleError, StartError


@reads
@pytest.mark.parametrize("on_error", get_args(OnError))
def test_a_hang_is_ended_after_the_timeout(on_error: OnError, reads: int, caplog: pytest.LogCaptureFixture) -> None:
    """After a request has waited ``timeout`` seconds, the worker is killed, and the sample is named or replaced."""
    with engine_of(workers=1, reads=reads, on_error=on_error) as engine:
        began = engine.clock.now
        engine.strike(2, partial(hang, engine), times=1)
        if on_error != "raise":
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


@reads
def test_a_hang_at_an_unknown_row(reads: int) -> None:
    """If the row of a hang is unknown, the ticket's rows are tried one by one, and the one that hangs again is named."""
    with engine_of(workers=1, reads=reads, samples=36, batch_size=12) as engine:
        engine.strike(2, lambda worker, reader, row: hang(engine, worker, reader, None), times=2)
        with pytest.raises(SampleError, match=rf"sample 2, row 2: expected an answer, found none for {TIMEOUT:g} seconds"):
            engine.fetch(0)
        assert engine.workers.log == ["kill 0", "restart 0"] * 2
        whole_epoch(engine)


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_begun_after_the_hang_are_not_blamed(workers: int) -> None:
    """When a worker is killed for a hang, rows that its other readers have begun later are not blamed."""
    with engine_of(workers=workers, reads=3, on_error="replace", slots=4) as engine:

        def step() -> bool:
            if not engine.workers.work():
                return False
            for worker, reader in engine.workers.able():
                engine.workers.reach(worker, reader, 0)
            engine.clock.now += TIMEOUT / 10
            return True

        def once() -> bool:
            place = engine.reader_of(2)
            assert place is not None
            hang(engine, *place)
            engine.workers.otherwise = step
            return True

        engine.workers.otherwise = once
        found = engine.fetch(0)
        assert found[2] != 2
        assert engine.damage.found.keys() == {2}
        for number in range(1, 6):
            assert engine.fetch(number) == engine.expected(number)
        assert engine.workers.log.count("kill 0") == 1


def test_one_kill_blames_all_readers_that_hung() -> None:
    """If two readers of a worker have hung for ``timeout`` seconds, one kill names both; a later hang is tried again."""
    with engine_of(workers=1, reads=3, on_error="replace") as engine:
        hung: list[int] = []

        def hang_at_once() -> None:
            for reader in (0, 1):
                hung.append(engine.workers.ids(engine.workers.ticket(0, reader))[0])
                hang(engine, 0, reader, 0)

        later = [partial(engine.pass_time, TIMEOUT / 4)] * 3 + [lambda: hang(engine, 0, 2, 0)]
        engine.workers.script += [hang_at_once, *later]
        for number in range(6):
            engine.fetch(number)
        assert engine.damage.found.keys() == set(hung)
        assert engine.workers.log == ["kill 0", "restart 0"]


def test_only_the_reader_that_holds_the_interpreter_is_blamed() -> None:
    """If one reader stops the others by holding the interpreter, all are tried again alone, and only its sample is blamed."""
    with engine_of(workers=1, reads=3, on_error="replace") as engine:

        def hold(worker: int, reader: int, row: int) -> None:
            for other, one in enumerate(engine.workers.workers[worker].readers):
                if one.ticket is not None:
                    hang(engine, worker, other, row if other == reader else 0)

        engine.strike(2, hold, times=2)
        found = engine.fetch(0)
        assert found[:2] + found[3:] == [0, 1, 3]
        assert engine.damage.found.keys() == {2}
        assert engine.workers.log == ["kill 0", "restart 0"] * 2
        for number in range(1, 6):
            assert engine.fetch(number) == engine.expected(number)


def test_a_reader_that_waits_for_another_has_no_time_limit() -> None:
    """A reader whose ticket waits for another reader, as when functions are called one at a time, has no time limit."""
    with engine_of(workers=1, reads=3) as engine:

        def slowly() -> bool:
            able = engine.workers.able()
            if able:
                engine.workers.reach(*able[-1], 0)
                engine.workers.script += [partial(engine.pass_time, 0.45 * TIMEOUT)] * 2 + [
                    partial(engine.workers.done, *able[-1])
                ]
            return bool(able)

        engine.workers.otherwise = slowly
        began = engine.clock.now
        assert engine.fetch(0) == engine.expected(0)
        assert engine.clock.now > began + 2 * TIMEOUT
        assert engine.workers.log == []


def test_a_reader_that_waits_for_one_that_hangs_is_not_blamed() -> None:
    """Of three readers that hold tickets for ``timeout`` seconds, only the one that has begun is blamed."""
    with engine_of(workers=1, reads=3, on_error="replace") as engine:
        [blamed, *_] = engine.workers.ids(engine.workers.ticket(0, 1))
        for reader in range(3):
            engine.workers.hang(0, reader)
        engine.workers.reach(0, 1, 0)
        for number in range(6):
            engine.fetch(number)
        assert engine.damage.found.keys() == {blamed}
        assert engine.workers.log == ["kill 0", "restart 0"]


def test_readers_that_never_begin_blame_no_sample() -> None:
    """If readers have taken tickets but never begin, their worker is killed, and others read the tickets."""
    with engine_of(workers=2, reads=3) as engine:
        began = engine.clock.now
        for reader in range(3):
            engine.workers.hang(1, reader)
        whole_epoch(engine)
        assert engine.workers.log == ["kill 1", "restart 1"]
        assert TIMEOUT <= engine.clock.now - began <= 1.5 * TIMEOUT


@reads
def test_time_between_requests_does_not_count(reads: int) -> None:
    """The timeout of a slow worker counts only from when a request waits."""
    with engine_of(workers=1, reads=reads) as engine:
        engine.strike(5, partial(hang, engine))
        assert engine.fetch(0) == engine.expected(0)
        while engine.workers.otherwise():
            pass
        engine.clock.now += 100 * TIMEOUT
        began = engine.clock.now
        with pytest.raises(SampleError, match="sample 5"):
            engine.fetch(1)
        assert TIMEOUT <= engine.clock.now - began <= 1.5 * TIMEOUT


@reads
def test_a_worker_that_makes_progress_is_left_alone(reads: int) -> None:
    """A worker that makes progress is left alone: each row has ``timeout`` seconds."""
    with engine_of(workers=1, reads=reads) as engine:

        def slowly() -> bool:
            able = engine.workers.able()
            if not able:
                return False
            steps: list[Callable[[], object]] = []
            for row in range(len(engine.workers.ids(engine.workers.ticket(*able[0])))):
                steps.append(partial(engine.workers.reach, *able[0], row))
                steps += [partial(engine.pass_time, 0.4 * TIMEOUT)] * 2
            engine.workers.script += [*steps, partial(engine.workers.done, *able[0])]
            return True

        engine.workers.otherwise = slowly
        assert engine.fetch(0) == engine.expected(0)
        assert engine.workers.log == []


@reads
def test_a_stopped_worker_blames_no_sample(reads: int) -> None:
    """A stopped worker is killed after ``timeout``, and its tickets are read again."""
    with engine_of(workers=1, reads=reads) as engine:

        def stopped(worker: int, reader: int, row: int) -> None:
            engine.workers.reach(worker, reader, row)
            engine.workers.halt(worker)

        engine.strike(2, stopped)
        assert engine.fetch(0) == engine.expected(0)
        assert engine.workers.log == ["kill 0", "restart 0"]
        assert engine.damage.found == {}


@reads
def test_stopped_workers_without_tickets_are_found(reads: int) -> None:
    """Stopped workers without tickets are found because the tickets in the queue are not taken."""
    with engine_of(workers=2, reads=reads) as engine:
        assert engine.fetch(0) == engine.expected(0)
        while engine.workers.work():
            pass
        assert engine.fetch(1) == engine.expected(1)
        while engine.workers.work():
            pass
        began = engine.clock.now
        for worker in (0, 1):
            engine.workers.halt(worker)
        for number in range(2, 6):
            assert engine.fetch(number) == engine.expected(number)
        assert engine.workers.log == ["kill 0", "kill 1", "restart 0", "restart 1"]
        assert TIMEOUT <= engine.clock.now - began <= 1.5 * TIMEOUT


def test_idle_workers_are_not_taken_for_stopped() -> None:
    """While another worker is slow and the queue is empty, idle workers are left alone for any time."""
    with engine_of(workers=3, slots=2, samples=8, batch_size=4) as engine:
        place = engine.workers.able()[0]

        def slowly() -> bool:
            able = [other for other in engine.workers.able() if other != place]
            if able:
                engine.workers.done(*able[0])
                return True
            engine.workers.reach(*place, 0)
            engine.workers.script += [partial(engine.pass_time, 0.3 * TIMEOUT)] * 3 + [partial(engine.workers.done, *place)]
            engine.workers.otherwise = engine.workers.work
            return True

        engine.workers.otherwise = slowly
        whole_epoch(engine)
        assert engine.workers.log == []


def test_a_stop_of_the_main_process_blames_no_sample() -> None:
    """If the main process was stopped, its workers may have been stopped, too, so their time starts anew."""
    with engine_of(workers=1, reads=3) as engine:

        def oversleep() -> None:
            engine.workers.reach(0, 0, 0)
            engine.pass_time(50 * TIMEOUT)

        engine.workers.script += [oversleep, lambda: None]
        whole_epoch(engine)
        assert engine.workers.log == []


def test_a_killed_worker_gets_time_anew_after_a_stop() -> None:
    """If the main process was stopped right after it killed a worker, the worker gets time anew to end."""
    with engine_of(workers=1) as engine:
        engine.strike(1, partial(hang, engine, immortal=True))
        work = engine.workers.otherwise
        steps = iter([partial(engine.pass_time, 50 * TIMEOUT), partial(engine.workers.die, 0)])

        def sleep_then_die() -> bool:
            if engine.workers.log != ["kill 0"]:
                return work()
            next(steps)()
            return True

        engine.workers.otherwise = sleep_then_die
        with pytest.raises(SampleError, match="sample 1, "):
            engine.fetch(0)
        assert next(steps, None) is None
        assert "lost" not in repr(engine.schedule)


@reads
@pytest.mark.parametrize("known", [True, False], ids=["row-known", "row-unknown"])
def test_a_worker_that_cannot_be_killed_is_given_up(known: bool, reads: int) -> None:
    """A worker that can't be killed is given up, and its slots are never used again, so that its later writes do no harm."""
    with engine_of(workers=1, reads=reads, slots=2, samples=120, batch_size=24) as engine:
        engine.strike(1, lambda worker, reader, row: hang(engine, worker, reader, row if known else None, immortal=True))
        with pytest.raises(SampleError, match=f"sample {1 if known else 0}, .*expected an answer"):
            engine.fetch(0)
        assert engine.workers.log == ["kill 0", "restart 0"]
        lost = repr(engine.schedule).count("lost")
        assert 1 <= lost <= 2
        assert engine.ring.slots == 2 + lost
        held: list[Any] = []
        for number in (0, 1, 2, 3):
            array = engine.lease(number)
            engine.workers.scribble()
            assert values(array) == engine.expected(number)
            held = [*held[-1:], (array, number)]
        assert [values(array) for array, _ in held] == [engine.expected(number) for _, number in held]


def test_a_lost_slot_without_memory_for_a_replacement(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a lost slot can't be replaced, the request raises that error, and later ones use the slots that are left."""
    with engine_of(workers=1, reads=3, slots=3) as engine:
        grow = engine.ring.grow

        def refuses(count: int = 1) -> int:
            raise OSError("no memory")

        monkeypatch.setattr(engine.ring, "grow", refuses)
        engine.strike(1, lambda worker, reader, row: hang(engine, worker, reader, row, immortal=True))
        with pytest.raises(OSError, match="no memory"):
            engine.fetch(0)
        for _ in range(2):
            whole_epoch(engine)
        assert engine.workers.log == ["kill 0", "restart 0"]
        monkeypatch.setattr(engine.ring, "grow", grow)


@reads
def test_a_worker_that_never_begins_ends_the_run(reads: int) -> None:
    """A worker that never begins ends the run after `START_WITHIN` seconds, even if ``timeout`` is shorter."""
    with engine_of(workers=1, reads=reads, timeout=1.0) as engine:
        engine.workers.begins = False
        engine.workers.script += [lambda: engine.workers.die(0)]
        engine.workers.otherwise = lambda: False
        began = engine.clock.now
        with pytest.raises(StartError, match=f"worker 0 has not begun within {START_WITHIN:g} seconds"):
            engine.fetch(0)
        assert START_WITHIN <= engine.clock.now - began <= 1.5 * START_WITHIN
