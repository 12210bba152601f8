"""When workers die, their tickets are read again, and a sample that kills workers is found among the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import get_args

import pytest
from fakes import engine_of
from moments import deaths, die_at_row, die_with_all_readers_at_rows, reads, whole_epoch

from shmgen._engine.supervisor import MAX_NAMED, STARTS
from shmgen._plan.damaged_samples import OnError
from shmgen._plan.faults import DEATHS
from shmgen.errors import SampleError, StartError, WorkerDied


@deaths
@pytest.mark.parametrize(("workers", "reads", "sample"), [(1, 1, 4), (2, 1, 24), (1, 3, 24), (2, 3, 35)])
def test_rows_survive_a_death(moment: Callable, workers: int, reads: int, sample: int, caplog: pytest.LogCaptureFixture) -> None:
    """Whenever a worker dies, all rows are right, the worker is replaced once, and the log gives the cause."""
    with engine_of(workers=workers, reads=reads, samples=72, batch_size=24) as engine:
        engine.strike(sample, partial(moment, engine))
        whole_epoch(engine)
        assert [word for word in engine.workers.log if word.startswith("restart")] == engine.workers.log
        assert engine.prefetcher.stats.restarts == len(engine.workers.log) == 1
    assert caplog.text.count("was killed by SIGKILL") == 1
    assert (f"sample {sample}, row {sample}" in caplog.text) == (moment is die_at_row)


@reads
def test_only_tickets_of_the_dead_worker_are_read_again(reads: int) -> None:
    """Only the tickets that the dead worker's readers had taken are read again, before those that no reader had taken."""
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


def test_an_idle_worker_that_dies_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    """A worker that dies without a ticket is replaced, and nothing is read again."""
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


@pytest.mark.parametrize(("workers", "reads", "sample"), [(1, 3, 4), (2, 3, 6), (1, 3, 7), (2, 1, 6)])
@pytest.mark.parametrize("on_error", get_args(OnError))
def test_a_sample_that_kills_workers_is_named_or_replaced(workers: int, reads: int, sample: int, on_error: OnError) -> None:
    """A sample that kills is named after `DEATHS` deaths, for each request anew; or it is replaced, and not tried again.

    Samples read at the same time as it are never blamed, however often the batch is requested, and are delivered.
    """
    with engine_of(workers=workers, reads=reads, on_error=on_error, slots=4) as engine:
        engine.strike(sample, partial(die_with_all_readers_at_rows, engine), times=float("inf"))
        if on_error != "raise":
            found = engine.fetch(1)
            assert [row for row, wanted in zip(found, engine.expected(1), strict=True) if row != wanted] != []
            assert engine.damage.found.keys() == {sample}
            if on_error == "replace":
                assert engine.fetch(1) == found
            assert engine.prefetcher.stats.restarts == DEATHS
        else:
            for times in (1, 2, 3):
                with pytest.raises(SampleError, match=rf"sample {sample}, .*{DEATHS} workers died"):
                    engine.fetch(1)
                assert engine.prefetcher.stats.restarts == times * DEATHS
        for number in (0, 2, 3, 4, 5):
            assert engine.fetch(number) == engine.expected(number)


def test_deaths_are_forgotten_once_a_batch_is_delivered() -> None:
    """Deaths at a row are no longer counted once its batch has been delivered."""
    with engine_of(workers=1) as engine:
        for _ in range(DEATHS + 1):
            engine.strike(2, partial(die_at_row, engine), times=DEATHS - 1)
            assert engine.fetch(0) == engine.expected(0)
        assert engine.prefetcher.stats.restarts == (DEATHS + 1) * (DEATHS - 1)


@pytest.mark.parametrize("reads", [1, 8, 12])
def test_a_warning_names_the_rows_of_the_dead_worker(reads: int, caplog: pytest.LogCaptureFixture) -> None:
    """The warning of a death names the readers' current rows and the rows to read again: the first few, and how many more."""
    with engine_of(workers=1, reads=reads, samples=64, batch_size=32, slots=2, shuffle=False) as engine:
        for reader, one in enumerate(engine.workers.workers[0].readers):
            if one.ticket is not None:
                engine.workers.reach(0, reader, 0)
        tickets = engine.workers.workers[0].tickets
        assert len(tickets) == reads
        at = [ticket.batch.number * 32 + ticket.start for ticket in tickets]
        held = [ticket.batch.number * 32 + row for ticket in tickets for row in range(ticket.start, ticket.stop)]
        engine.workers.die(0)
        whole_epoch(engine)
    [record] = caplog.records
    text = record.getMessage()
    more = f" and {reads - MAX_NAMED} more" if reads > MAX_NAMED else ""
    assert f"it was at {', '.join(f'sample {id}, row {id}' for id in at[:MAX_NAMED])}{more}; " in text
    assert f"{len(held)} rows that it held are read again: " in text
    assert text.endswith(
        ", ".join(map(str, held[:MAX_NAMED])) + (f" and {len(held) - MAX_NAMED} more" if len(held) > MAX_NAMED else "")
    )


def test_a_suspect_is_read_alone() -> None:
    """After two deaths at a row, it is read while no other ticket is out, also if another worker dies meanwhile."""
    with engine_of(workers=2, reads=3, slots=4, batch_size=6) as engine:
        engine.strike(1, partial(die_with_all_readers_at_rows, engine), times=2)
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


@reads
def test_repeated_deaths_before_any_ticket_is_done_end_the_run(reads: int) -> None:
    """After `STARTS` such deaths in a row, this request and all later ones raise the death as their error."""
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


def test_deaths_after_a_finished_ticket_do_not_end_the_run() -> None:
    """Any number of workers may die, if each has finished a ticket."""
    with engine_of(workers=1, samples=80, batch_size=4) as engine:

        def step() -> bool:
            done = engine.workers.work()
            engine.workers.die(0)
            return done

        engine.workers.otherwise = step
        whole_epoch(engine)
        assert engine.prefetcher.stats.restarts > 2 * STARTS


def test_a_worker_that_cannot_be_replaced_ends_the_run() -> None:
    """If no replacement can be started, the run ends with an error that says why."""
    with engine_of() as engine:
        engine.workers.cannot_start = StartError("no more processes")
        engine.workers.script.append(lambda: engine.workers.die(0))
        with pytest.raises(StartError, match=r"no more processes"):
            engine.fetch(0)
