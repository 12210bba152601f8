"""The engine above its workers, which are fakes here: every order of what can happen to workers is a plain test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from conftest import Asking, wait_until
from fakes import TIMEOUT, Engine, engine_of, values

from shmgen._engine.supervisor import START_WITHIN, STARTS
from shmgen._plan.faults import DEATHS
from shmgen._plan.sampler import BatchId
from shmgen._plan.schedule import MAX_OUT
from shmgen.errors import ClosedError, SampleError, StartError, TooManyDamaged, WorkerDied

reads = pytest.mark.parametrize("reads", [1, 3])
"""With one reader a worker, and with several."""


def whole_epoch(engine: Engine) -> None:
    """Every batch of the first epoch is delivered, right in every row."""
    for number in range(engine.sampler.batches):
        assert engine.fetch(number) == engine.expected(number)
        engine.check()


# Nothing happens but work.


@reads
@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("slots", [2, 5])
def test_work_is_delivered(workers: int, reads: int, slots: int) -> None:
    """Every sample once, with no worker replaced."""
    with engine_of(workers=workers, reads=reads, slots=slots) as engine:
        whole_epoch(engine)
        assert engine.workers.log == []
        stats = engine.prefetcher.stats
        assert (stats.restarts, stats.workers, stats.reads) == (0, workers, reads)


@reads
def test_readers_may_be_done_in_any_order(reads: int) -> None:
    """The last reader first: what is asked for comes as soon as its last ticket does."""
    with engine_of(workers=3, reads=reads) as engine:

        def last_first() -> bool:
            able = engine.workers.able()
            if able:
                engine.workers.done(*able[-1])
            return bool(able)

        engine.workers.otherwise = last_first
        whole_epoch(engine)


def test_a_slow_reader_holds_up_nobody() -> None:
    """One reader of one worker does nothing for a while: the others do all tickets but its own."""
    with engine_of(workers=2, reads=2, slots=4) as engine:
        [slow] = [place for place in engine.workers.able() if place == (1, 1)]
        ticket = engine.workers.ticket(*slow)

        def others() -> bool:
            able = [place for place in engine.workers.able() if place != slow]
            if able:
                engine.workers.done(*able[0])
            return bool(able)

        engine.workers.otherwise = others
        for number in range(1, 6):
            assert engine.fetch(number) == engine.expected(number)
        assert engine.workers.ticket(*slow) == ticket
        engine.workers.otherwise = engine.workers.work
        assert engine.fetch(0) == engine.expected(0)


# Deaths.


def before(engine: Engine, worker: int, reader: int, row: int) -> None:
    """It has not begun its ticket."""
    engine.workers.die(worker)


def amid(engine: Engine, worker: int, reader: int, row: int) -> None:
    """At a row that it names."""
    engine.workers.reach(worker, reader, row)
    engine.workers.die(worker)


def amid_unknown(engine: Engine, worker: int, reader: int, row: int) -> None:
    """At a row that it does not name."""
    engine.workers.reach(worker, reader, None)
    engine.workers.die(worker)


def after(engine: Engine, worker: int, reader: int, row: int) -> None:
    """It has said that the ticket is done, and died before anybody heard of it."""
    engine.workers.done(worker, reader)
    engine.workers.die(worker)


@pytest.mark.parametrize("moment", [before, amid, amid_unknown, after])
@reads
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("sample", [4, 24, 35])
def test_a_death(moment: Callable[..., None], workers: int, reads: int, sample: int, caplog: pytest.LogCaptureFixture) -> None:
    """Whenever it comes, all rows are right, the worker is replaced once, and the log says of what it died."""
    with engine_of(workers=workers, reads=reads, samples=72, batch_size=24) as engine:
        engine.strike(sample, partial(moment, engine))
        whole_epoch(engine)
        assert [word for word in engine.workers.log if word.startswith("restart")] == engine.workers.log
        assert engine.prefetcher.stats.restarts == len(engine.workers.log) == 1
    assert caplog.text.count("was killed by SIGKILL") == 1
    assert (f"sample {sample}, row {sample}" in caplog.text) == (moment is amid)


@reads
def test_exactly_what_the_dead_worker_held_is_read_again(reads: int) -> None:
    """The tickets that its readers had taken and not done, and those first: what nobody had taken yet is put behind them."""
    with engine_of(workers=2, reads=reads, slots=5) as engine:
        held = engine.workers.workers[1].tickets
        assert len(held) == reads
        queued = [ticket.id for ticket in engine.workers.queue]
        engine.workers.script.append(lambda: engine.workers.die(1))
        whole_epoch(engine)
        given = Counter(ticket[1:] for ticket in {ticket for tickets in engine.workers.given for ticket in tickets})
        assert {what for what, times in given.items() if times > 1} == {ticket[1:] for ticket in held}
        assert given.most_common(1)[0][1] == 2
        again = next(tickets for tickets in engine.workers.given[1:] if tickets[0][1:] in [ticket[1:] for ticket in held])
        assert sorted(ticket[1:] for ticket in again[:reads]) == sorted(ticket[1:] for ticket in held)
        assert [ticket.id for ticket in again[reads:]][: len(queued)] == queued


def test_an_idle_worker_dies(caplog: pytest.LogCaptureFixture) -> None:
    """It is replaced, held nothing, and nothing is read again."""
    with engine_of(workers=2) as engine:
        assert engine.fetch(0) == engine.expected(0)
        while engine.workers.work():
            pass
        given = len(engine.workers.given)
        engine.workers.die(1)
        assert engine.fetch(1) == engine.expected(1)
        assert engine.workers.log == ["restart 1"]
        assert not any(ticket.batch.number < 3 for tickets in engine.workers.given[given:] for ticket in tickets)
    assert "held nothing" in caplog.text


@reads
@pytest.mark.parametrize("workers", [1, 2])
def test_a_sample_that_kills_is_named(workers: int, reads: int) -> None:
    """After so many deaths; and tried as often again where it is asked for again. No other is blamed."""
    with engine_of(workers=workers, reads=reads) as engine:
        engine.strike(6, partial(amid, engine), times=float("inf"))
        assert engine.fetch(0) == engine.expected(0)
        for times in (1, 2, 3):
            with pytest.raises(SampleError, match=rf"sample 6, row 6: .*{DEATHS} workers died"):
                engine.fetch(1)
            assert engine.prefetcher.stats.restarts == times * DEATHS
        assert engine.fetch(2) == engine.expected(2)


def all_amid(engine: Engine, worker: int, reader: int, row: int) -> None:
    """It dies at a row that it names, while all its other readers are at one as well."""
    for other, one in enumerate(engine.workers.workers[worker].readers):
        if one.ticket is not None:
            engine.workers.reach(worker, other, 0)
    amid(engine, worker, reader, row)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("sample", [4, 6, 7])
@pytest.mark.parametrize("replaces", [False, True])
def test_a_sample_that_kills_among_others(workers: int, sample: int, replaces: bool) -> None:
    """What was read beside it each time is never blamed, however often its batch is asked for, and is read."""
    with engine_of(workers=workers, reads=3, replaces=replaces, slots=4) as engine:
        engine.strike(sample, partial(all_amid, engine), times=float("inf"))
        if replaces:
            found = engine.fetch(1)
            assert [row for row, wanted in zip(found, engine.expected(1), strict=True) if row != wanted] != []
            assert engine.damage.found.keys() == {sample}
            assert engine.prefetcher.stats.restarts == DEATHS
        else:
            for times in (1, 2, 3):
                with pytest.raises(SampleError, match=rf"sample {sample}, .*{DEATHS} workers died"):
                    engine.fetch(1)
                assert engine.prefetcher.stats.restarts == times * DEATHS
        for number in (0, 2, 3, 4, 5):
            assert engine.fetch(number) == engine.expected(number)


def test_a_suspect_is_read_alone() -> None:
    """After two deaths at a row, it is read while nothing else is out, whatever else happens meanwhile."""
    with engine_of(workers=2, reads=3, slots=4, batch_size=6) as engine:
        engine.strike(1, partial(all_amid, engine), times=2)
        work = engine.workers.otherwise
        out: list[int] = []

        def look() -> bool:
            place = engine.reader_of(1) if engine.supervisor.restarts >= 2 and len(out) < 3 else None
            if place is None:
                return work()
            out.append(engine.schedule.out)
            engine.workers.die(1 - place[0])
            return True

        engine.workers.otherwise = look
        assert engine.fetch(0) == engine.expected(0)
        assert out == [1, 1, 1]
        whole_epoch(engine)


@pytest.mark.parametrize("seed", range(20))
def test_kills_from_outside_blame_nobody(seed: int) -> None:
    """Workers are killed again and again at whatever they are at: no sample that was not read alone is blamed."""
    chance = np.random.default_rng(seed)
    with engine_of(workers=2, reads=3, samples=60, batch_size=6, slots=4) as engine:
        killed: dict[int, int] = {}

        def step() -> bool:
            able = engine.workers.able()
            # Nobody is that unlucky by chance alone: of the one that is read by itself.
            if engine.schedule.out > 1 and chance.random() < 0.4:
                worker = int(chance.choice([worker for worker, _ in able]))
                for other, one in enumerate(engine.workers.workers[worker].readers):
                    if one.ticket is not None:
                        engine.workers.reach(worker, other, 0)
                        sample = engine.workers.ids(one.ticket)[0]
                        killed[sample] = killed.get(sample, 0) + 1
                engine.workers.die(worker)
            elif able:
                engine.workers.done(*able[chance.integers(len(able))])
            return bool(able)

        engine.workers.otherwise = step
        whole_epoch(engine)
        assert engine.prefetcher.stats.restarts > DEATHS
        assert max(killed.values()) >= DEATHS - 1


@reads
def test_workers_that_die_before_they_have_done_anything_end_the_run(reads: int) -> None:
    """After so many, one after the other: the death is the error, and of all requests from then on."""
    with engine_of(workers=1, reads=reads) as engine:

        def die() -> bool:
            engine.workers.die(0)
            return True

        engine.workers.otherwise = die
        with pytest.raises(WorkerDied):
            engine.fetch(0)
        assert engine.workers.log == ["restart 0"] * (STARTS - 1) + ["stop"]
        with pytest.raises(WorkerDied):
            engine.fetch(1)


def test_deaths_of_workers_that_have_done_something_do_not_end_the_run() -> None:
    """However many, if each has done a ticket."""
    with engine_of(workers=1, samples=80, batch_size=4) as engine:

        def step() -> bool:
            done = engine.workers.work()
            engine.workers.die(0)
            return done

        engine.workers.otherwise = step
        whole_epoch(engine)
        assert engine.prefetcher.stats.restarts > 2 * STARTS


def test_a_worker_that_can_not_be_replaced_ends_the_run() -> None:
    """The error says why."""
    with engine_of() as engine:
        engine.workers.cannot_start = OSError("no more processes")
        engine.workers.script.append(lambda: engine.workers.die(0))
        with pytest.raises(StartError, match=r"a worker that has died can't be replaced: no more processes"):
            engine.fetch(0)


# Hangs.


def hang(engine: Engine, worker: int, reader: int, row: int | None, **how: Any) -> None:
    """A reader hangs at a row."""
    engine.workers.reach(worker, reader, row)
    engine.workers.hang(worker, reader, **how)


@reads
@pytest.mark.parametrize("replaces", [False, True])
def test_a_hang(replaces: bool, reads: int, caplog: pytest.LogCaptureFixture) -> None:
    """After ``timeout`` seconds of being waited for, no less, the worker is killed, and the sample is named, or replaced."""
    with engine_of(workers=1, reads=reads, replaces=replaces) as engine:
        began = engine.clock.now
        engine.strike(2, partial(hang, engine), times=1)
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


@reads
def test_a_hang_at_a_row_that_is_not_known(reads: int) -> None:
    """The rows of that ticket are tried one by one, and the one that hangs again is named."""
    with engine_of(workers=1, reads=reads, samples=36, batch_size=12) as engine:
        engine.strike(2, lambda worker, reader, row: hang(engine, worker, reader, None), times=2)
        with pytest.raises(SampleError, match=rf"sample 2, row 2: expected an answer, found none for {TIMEOUT:g} seconds"):
            engine.fetch(0)
        assert engine.workers.log == ["kill 0", "restart 0"] * 2
        whole_epoch(engine)


@pytest.mark.parametrize("workers", [1, 2])
def test_only_what_hung_is_blamed(workers: int) -> None:
    """Other readers of the same worker are at rows as well when it is killed: they have not been there for so long."""
    with engine_of(workers=workers, reads=3, replaces=True, slots=4) as engine:

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


def test_all_that_hung_is_blamed_at_once() -> None:
    """Two readers of a worker have hung for ``timeout`` seconds: one kill names both; one that came later is tried again."""
    with engine_of(workers=1, reads=3, replaces=True) as engine:
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


def test_a_reader_that_waits_for_another_is_given_time() -> None:
    """It has taken a ticket and not begun, as while functions are called one at a time: no limit of its own is set to that."""
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
    """Of three that have tickets for ``timeout`` seconds, one has begun."""
    with engine_of(workers=1, reads=3, replaces=True) as engine:
        [blamed, *_] = engine.workers.ids(engine.workers.ticket(0, 1))
        for reader in range(3):
            engine.workers.hang(0, reader)
        engine.workers.reach(0, 1, 0)
        for number in range(6):
            engine.fetch(number)
        assert engine.damage.found.keys() == {blamed}
        assert engine.workers.log == ["kill 0", "restart 0"]


def test_readers_that_never_begin_blame_nobody() -> None:
    """They have taken tickets, and their worker does nothing more: it is killed, and others read these."""
    with engine_of(workers=2, reads=3) as engine:
        began = engine.clock.now
        for reader in range(3):
            engine.workers.hang(1, reader)
        whole_epoch(engine)
        assert engine.workers.log == ["kill 1", "restart 1"]
        assert TIMEOUT <= engine.clock.now - began <= 1.5 * TIMEOUT


@reads
def test_time_between_requests_is_nobodys_fault(reads: int) -> None:
    """A worker that is slow while nobody waits is given its whole time once somebody does."""
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
def test_a_worker_that_comes_further_is_left_alone(reads: int) -> None:
    """Each row has ``timeout`` seconds."""
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
    """It is killed after ``timeout``, and what it held is read again."""
    with engine_of(workers=1, reads=reads) as engine:

        def stopped(worker: int, reader: int, row: int) -> None:
            engine.workers.reach(worker, reader, row)
            engine.workers.halt(worker)

        engine.strike(2, stopped)
        assert engine.fetch(0) == engine.expected(0)
        assert engine.workers.log == ["kill 0", "restart 0"]
        assert engine.damage.found == {}


@reads
def test_stopped_workers_that_hold_nothing_are_found(reads: int) -> None:
    """All of them, while tickets wait in the queue: somebody must take these."""
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


def test_an_idle_worker_is_no_stopped_one() -> None:
    """While another is slow and nothing waits in the queue, those that hold nothing are left alone, however long."""
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


def test_a_process_that_was_stopped_itself_blames_nobody() -> None:
    """It wakes long after it should have: its workers may have been stopped with it, and are given their whole time anew."""
    with engine_of(workers=1, reads=3) as engine:

        def oversleep() -> None:
            engine.workers.reach(0, 0, 0)
            engine.pass_time(50 * TIMEOUT)

        engine.workers.script += [oversleep, lambda: None]
        whole_epoch(engine)
        assert engine.workers.log == []


@reads
@pytest.mark.parametrize("known", [True, False], ids=["row-known", "row-unknown"])
def test_a_kill_that_does_not_work(known: bool, reads: int) -> None:
    """The worker is left to itself, and its slots are never used again, so that what it writes later harms nobody."""
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


@reads
def test_a_worker_that_never_begins_ends_the_run(reads: int) -> None:
    """It has the time of a start, where ``timeout`` is shorter."""
    with engine_of(workers=1, reads=reads, timeout=1.0) as engine:
        engine.workers.begins = False
        engine.workers.script += [lambda: engine.workers.die(0)]
        engine.workers.otherwise = lambda: False
        began = engine.clock.now
        with pytest.raises(StartError, match=f"worker 0 has not begun within {START_WITHIN:g} seconds"):
            engine.fetch(0)
        assert START_WITHIN <= engine.clock.now - began <= 1.5 * START_WITHIN


# Failures.


@reads
@pytest.mark.parametrize("known", [True, False], ids=["row-known", "row-unknown"])
def test_a_failure_is_the_error_of_its_batch(known: bool, reads: int) -> None:
    """That names the sample; the batch may be asked for again, and others are not touched."""
    with engine_of(workers=2, reads=reads) as engine:
        engine.strike(2, partial(engine.workers.fail, known=known))
        with pytest.raises(SampleError) as caught:
            engine.fetch(0)
        assert caught.value.id == 2
        whole_epoch(engine)
        assert engine.workers.log == []


@reads
@pytest.mark.parametrize("known", [True, False], ids=["row-known", "row-unknown"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_is_replaced(known: bool, workers: int, reads: int) -> None:
    """Always by the same sample; where the row is not known, its rows are tried one by one. It is counted."""
    with engine_of(workers=workers, reads=reads, replaces=True) as engine:
        engine.strike(6, partial(engine.workers.fail, known=known), times=float("inf"))
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
            engine.workers.fail(0, 0, 0)
            return True

        engine.workers.otherwise = fail
        with pytest.raises(TooManyDamaged):
            engine.fetch(0)
        assert engine.damage.found.keys() >= {0}
        assert len(engine.damage.found) == 3
        assert engine.workers.log == ["stop"]


@reads
def test_an_interrupted_ticket_is_read_anew(reads: int) -> None:
    """Its whole batch, since what was read of it is not to be trusted."""
    with engine_of(workers=2, reads=reads) as engine:
        engine.workers.script.append(lambda: engine.workers.drop(0))
        whole_epoch(engine)


@pytest.mark.parametrize("fault", ["fail", "hang"])
def test_no_more_tickets_are_out_than_the_queue_holds(fault: str) -> None:
    """Also where batches of thousands of rows are tried row by row, each row in a ticket of its own."""
    with engine_of(workers=1, reads=3, samples=24_000, batch_size=8_000, slots=2, replaces=True) as engine:
        most = 0

        def befall(worker: int, reader: int, row: int) -> None:
            if fault == "fail":
                engine.workers.fail(worker, reader, row, known=False)
            else:
                hang(engine, worker, reader, None)

        def look(step: Callable[[], bool]) -> bool:
            nonlocal most
            most = max(most, engine.schedule.out)
            return step()

        engine.strike(17_234, befall, times=2)
        engine.workers.otherwise = partial(look, engine.workers.otherwise)
        for number in (0, 1):
            assert engine.fetch(number) == engine.expected(number)
        found = engine.fetch(2)
        assert [sample for sample, read in zip(engine.expected(2), found, strict=True) if sample != read] == [17_234]
        assert most == MAX_OUT


# Other numbers of workers, and of reads.


@reads
@pytest.mark.parametrize("counts", [(3, 1), (1, 4), (2, 3, 1, 2)], ids=str)
def test_resizes_amid_work(counts: tuple[int, ...], reads: int) -> None:
    """More get work at once; fewer end once they have done a ticket more; every row is right throughout."""
    with engine_of(workers=2, reads=reads, samples=80) as engine:
        for number in range(engine.sampler.batches):
            if number < len(counts):
                engine.workers.script.append(partial(engine.resize, counts[number]))
            assert engine.fetch(number) == engine.expected(number)
            engine.check()
        assert len(engine.workers.workers) == engine.prefetcher.stats.workers == counts[-1]
        assert {word.split()[0] for word in engine.workers.log} <= {"add", "retire", "remove"}
        assert engine.prefetcher.stats.restarts == 0
        assert engine.damage.found == {}


@pytest.mark.parametrize("counts", [(3, 1), (1, 4), (5, 2, 3)], ids=str)
def test_other_numbers_of_reads_amid_work(counts: tuple[int, ...]) -> None:
    """As many tickets are in flight as there are readers, in workers that come later as well; and batches are cut for them."""
    with engine_of(workers=2, reads=2, samples=160, batch_size=16, slots=4) as engine:
        for number in range(engine.sampler.batches):
            if number < len(counts):
                engine.workers.script.append(partial(engine.resize, 2, counts[number]))
            assert engine.fetch(number) == engine.expected(number)
        assert engine.prefetcher.stats.reads == counts[-1]
        assert engine.schedule.readers == 2 * counts[-1]
        for worker in engine.workers.workers.values():
            assert sum(not reader.gone for reader in worker.readers) == counts[-1]
        engine.resize(3)
        assert engine.schedule.readers == 3 * counts[-1]
        assert engine.workers.workers[2].reads == counts[-1]
        assert engine.workers.log == ["add 2"]


def test_a_replacement_has_as_many_readers() -> None:
    """As there should be by then."""
    with engine_of(workers=1, reads=2) as engine:
        engine.resize(1, 5)
        engine.workers.script.append(lambda: engine.workers.die(0))
        whole_epoch(engine)
        assert engine.workers.log == ["restart 0"]
        assert engine.workers.workers[0].reads == len(engine.workers.workers[0].readers) == 5


@reads
@pytest.mark.parametrize("moment", [before, amid, amid_unknown, after])
def test_who_is_to_go_dies_first(moment: Callable[..., None], reads: int, caplog: pytest.LogCaptureFixture) -> None:
    """A worker that is to end, and dies of what it still holds, leaves nothing unread, is not replaced, and worries nobody."""
    with engine_of(workers=2, reads=reads) as engine:
        engine.workers.script += [lambda: engine.resize(1), lambda: moment(engine, 1, 0, 0)]
        whole_epoch(engine)
        assert engine.workers.workers.keys() == {0}
        assert engine.workers.log == ["retire 1", "remove 1"]
        assert engine.prefetcher.stats.restarts == 0
    assert caplog.text == ""


def test_who_is_to_go_ends_while_its_other_readers_are_at_work() -> None:
    """The main thread's end is the process's: what the others had is read by other workers, and nobody is blamed."""
    with engine_of(workers=2, reads=3) as engine:

        def end() -> None:
            for reader in range(3):
                engine.workers.reach(1, reader, 0)
            engine.workers.done(1, 0)

        for _ in range(2):
            engine.workers.script += [lambda: engine.resize(1), end, lambda: engine.resize(2)]
        whole_epoch(engine)
        assert engine.workers.log == ["retire 1", "remove 1", "add 1"] * 2


@reads
def test_who_is_to_go_hangs(reads: int) -> None:
    """It is killed after ``timeout``; the sample is named as any other, and no other takes its place."""
    with engine_of(workers=2, reads=reads, replaces=True) as engine:
        began = engine.clock.now
        [blamed, *_] = engine.workers.ids(engine.workers.ticket(1, reads - 1))
        engine.resize(1)
        hang(engine, 1, reads - 1, 0)
        if reads > 1:
            engine.workers.hang(1, 0)
        for number in range(6):
            engine.fetch(number)
        assert engine.damage.found.keys() == {blamed}
        assert engine.workers.log == ["retire 1", "kill 1", "remove 1"]
        assert TIMEOUT <= engine.clock.now - began <= 1.5 * TIMEOUT


def test_who_is_to_go_can_not_be_killed() -> None:
    """It is left to itself, in slots that are never used again."""
    with engine_of(workers=2, reads=3) as engine:
        engine.resize(1)
        hang(engine, 1, 0, 0, immortal=True)
        [sample, *_] = engine.workers.ids(engine.workers.ticket(1, 0))
        with pytest.raises(SampleError, match=f"sample {sample}, "):
            whole_epoch(engine)
        assert engine.workers.log == ["retire 1", "kill 1", "remove 1"]
        assert "lost" in repr(engine.schedule)
        for number in range(6):
            array = engine.lease(number)
            engine.workers.scribble()
            assert values(array) == engine.expected(number)
            del array


def test_one_more_can_not_be_started(caplog: pytest.LogCaptureFixture) -> None:
    """It goes on with those that there are, which is said."""
    with engine_of(workers=1) as engine:
        engine.workers.cannot_start = OSError("no more processes")
        assert not engine.resize(3)
        whole_epoch(engine)
        assert engine.prefetcher.stats.workers == 1
    assert "there are 1 workers, since another can't be started: no more processes" in caplog.text


# Slots.


@reads
def test_all_slots_are_held(reads: int, caplog: pytest.LogCaptureFixture) -> None:
    """The ring grows after a while; what is held stays right; once it is let go of, nothing grows any more."""
    caplog.set_level("INFO", "shmgen")
    with engine_of(slots=2, samples=80, reads=reads) as engine:
        held = [engine.lease(number) for number in range(12)]
        grown = engine.prefetcher.stats.grown
        assert 10 <= grown == engine.ring.slots - 2
        assert [values(array) for array in held] == [engine.expected(number) for number in range(12)]
        held.clear()
        for number in range(12, 20):
            assert engine.fetch(number) == engine.expected(number)
        assert engine.prefetcher.stats.grown == grown
    assert caplog.text.count("all 2 slots are held") == 1


def test_who_holds_all_slots_waits_ever_less() -> None:
    """For the first slot a second or so; soon hardly at all."""
    with engine_of(slots=2, samples=400) as engine:
        held = []
        waits = []
        for number in range(100):
            began = engine.clock.now
            held.append(engine.lease(number))
            waits.append(engine.clock.now - began)
        assert 1 <= max(waits) < 1.1
        assert sum(waits) < 3
        assert sum(wait > 0 for wait in waits) < 20


def test_a_slot_that_is_let_go_of_in_time_saves_growing() -> None:
    """A wait for a slot ends with the lease of another batch."""
    with engine_of(slots=2, samples=40) as engine:
        held = [engine.lease(0), engine.lease(1)]
        engine.workers.script += [lambda: None] * 2 + [lambda: held.pop(0)]
        held.append(engine.lease(2))
        assert [values(array) for array in held] == [engine.expected(1), engine.expected(2)]
        assert engine.prefetcher.stats.grown == 0


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
