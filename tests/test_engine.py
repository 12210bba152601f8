"""The engine with fake workers, so that a plain test can try any order of events."""

from __future__ import annotations

from functools import partial

import pytest
from conftest import Asking
from fakes import engine_of, values
from moments import whole_epoch

from shmgen._plan.sampler import BatchId
from shmgen.errors import ClosedError, SampleError, TooManyDamaged


@pytest.mark.parametrize(("workers", "reads", "slots"), [(1, 1, 5), (1, 3, 2), (2, 3, 5), (3, 1, 2)])
def test_every_sample_is_delivered_once(workers: int, reads: int, slots: int) -> None:
    """Every sample is delivered once, and no worker is replaced."""
    with engine_of(workers=workers, reads=reads, slots=slots) as engine:
        whole_epoch(engine)
        assert engine.workers.log == []
        stats = engine.prefetcher.stats
        assert (stats.restarts, stats.workers, stats.reads) == (0, workers, reads)
        while engine.workers.work():  # batches of the next epoch, read ahead
            engine.prefetcher.read_ahead()
        engine.supervisor.handle(engine.workers.poll_events())
        done = sum(ticket.stop - ticket.start for tickets in engine.workers.given for ticket in tickets)
        assert engine.schedule.rows_done == done - sum(ticket.stop - ticket.start for ticket in engine.workers.queue)


def test_a_slow_reader_does_not_block_others() -> None:
    """While one reader is slow, the others read all tickets but its own."""
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


# Failures

WHERE = [(True, 1, 1), (True, 2, 3), (False, 1, 3), (False, 2, 1)]
"""Whether the failed row is known, the number of workers, and the readers of each."""


# With one reader a ticket has several rows; with three it has one, which is then known to be the failed one.
@pytest.mark.parametrize(("known", "reads"), [(True, 3), (False, 1), (False, 3)])
def test_a_failure_is_the_error_of_its_batch(known: bool, reads: int) -> None:
    """A failed read, with the row known or tried again by itself, is an error that names the sample, and harms no other batch."""
    with engine_of(workers=2, reads=reads) as engine:
        engine.strike(2, partial(engine.workers.fail, known=known), times=1 if known or reads > 1 else 2)
        with pytest.raises(SampleError) as caught:
            engine.fetch(0)
        assert caught.value.id == 2
        whole_epoch(engine)
        assert engine.workers.log == []


@pytest.mark.parametrize(("known", "workers", "reads"), WHERE)
def test_a_failed_sample_is_replaced(known: bool, workers: int, reads: int) -> None:
    """A failed sample is always replaced by the same one, and counted; if its row is unknown, rows are tried one by one."""
    with engine_of(workers=workers, reads=reads, on_error="replace") as engine:
        engine.strike(6, partial(engine.workers.fail, known=known), times=float("inf"))
        assert engine.fetch(0) == engine.expected(0)
        found = engine.fetch(1)
        assert [found[0], found[1], found[3]] == [4, 5, 7]
        assert found[2] == engine.sampler.replacement(BatchId(0, 1), 2, 0)
        assert engine.prefetcher.stats.replaced == 1
        assert engine.damage.found.keys() == {6}


@pytest.mark.parametrize(("known", "workers", "reads"), WHERE)
def test_all_failures_of_a_batch_are_collected(known: bool, workers: int, reads: int, caplog: pytest.LogCaptureFixture) -> None:
    """One request finds all failures of a batch, even if all rows fail; nothing is logged, and all other rows are right."""
    with engine_of(workers=workers, reads=reads, on_error="collect") as engine:
        bad = [1, 4, 6, *range(12, 16)]
        engine.strike(bad[0], partial(engine.workers.fail, known=known), *bad[1:], times=float("inf"))
        for number in range(engine.sampler.batches):
            rows = zip(engine.fetch(number), engine.expected(number), strict=True)
            assert all(found == wanted for found, wanted in rows if wanted not in bad)
        assert sorted(engine.damage.found) == bad
        assert engine.prefetcher.stats.replaced == 0
    assert not caplog.records


def test_too_many_failures_end_the_run() -> None:
    """More failures than ``max_damaged`` allows end the run."""
    with engine_of(workers=1, on_error="replace", most=0.1) as engine:

        def fail() -> bool:
            engine.workers.fail(0, 0, 0)
            return True

        engine.workers.otherwise = fail
        with pytest.raises(TooManyDamaged):
            engine.fetch(0)
        assert engine.damage.found.keys() >= {0}
        assert len(engine.damage.found) == 3
        assert engine.workers.log == ["stop"]


# Slots


def test_the_ring_grows_while_all_slots_are_held(caplog: pytest.LogCaptureFixture) -> None:
    """While all slots are held, the ring grows, which is logged once; held batches stay right; after that, no slot is added."""
    with engine_of(slots=2, samples=80) as engine, caplog.at_level("INFO", "shmgen"):
        held = [engine.lease(number) for number in range(12)]
        grown = engine.prefetcher.stats.grown
        assert 10 <= grown == engine.ring.slots - 2
        assert [values(array) for array in held] == [engine.expected(number) for number in range(12)]
        held.clear()
        for number in range(12, 20):
            assert engine.fetch(number) == engine.expected(number)
        assert engine.prefetcher.stats.grown == grown
    assert caplog.text.count("all 2 slots are held") == 1


def test_waits_for_new_slots_become_shorter() -> None:
    """A caller that holds all slots waits about a second for the first new slot, and hardly at all for later ones."""
    with engine_of(slots=2, samples=200) as engine:
        held = []
        waits = []
        for number in range(50):
            began = engine.clock.now
            held.append(engine.lease(number))
            waits.append(engine.clock.now - began)
        assert 1 <= max(waits) < 1.1
        assert sum(waits) < 3
        assert sum(wait > 0 for wait in waits) < 20


def test_a_slot_released_during_the_wait_is_used_instead_of_growing() -> None:
    """A wait for a slot ends when another batch is released, and the ring does not grow."""
    with engine_of(slots=2, samples=40) as engine:
        held = [engine.lease(0), engine.lease(1)]
        engine.workers.script += [lambda: None] * 2 + [lambda: held.pop(0)]
        held.append(engine.lease(2))
        assert [values(array) for array in held] == [engine.expected(1), engine.expected(2)]
        assert engine.prefetcher.stats.grown == 0


# Interrupts and ends


def test_an_interrupt_during_a_wait_ends_only_that_request() -> None:
    """KeyboardInterrupt is raised by the waiting request; the next one is served."""
    with engine_of() as engine:

        def interrupt() -> None:
            raise KeyboardInterrupt

        engine.workers.script.append(interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.fetch(0)
        assert engine.prefetcher.state.waiting == 0
        whole_epoch(engine)


def test_ctrl_c_in_a_worker_ends_a_wait_in_another_thread() -> None:
    """Ctrl-C in a worker is raised by a request in another thread, which gets no signals itself."""
    with engine_of() as engine:

        def step() -> None:
            engine.clock.now += 1
            for worker in range(2):
                engine.workers.interrupt(worker)

        engine.workers.script.append(step)
        assert isinstance(Asking(lambda: engine.fetch(0)).outcome(), KeyboardInterrupt)


def test_close_during_a_wait() -> None:
    """If a signal handler closes the loader during a wait, the request and all later ones raise ClosedError."""
    with engine_of() as engine:
        engine.workers.script.append(lambda: engine.prefetcher.close(ClosedError("closed")))
        with pytest.raises(ClosedError, match="closed"):
            engine.fetch(0)
        assert engine.workers.log == ["stop"]
        with pytest.raises(ClosedError):
            engine.fetch(1)
        assert engine.prefetcher.errors.last is None
