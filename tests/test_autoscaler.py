"""Workers and reads in flight follow what the trainer waits: every case is a made-up machine, and a plain unit test."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from machine import Machine, Run

from shmgen._plan.activity import Counters, Target
from shmgen._plan.autoscaler import LONG, LOOK, PATIENCE, Autoscaler, Backoff
from shmgen._plan.stats import Decision


def limits_of(processors: int) -> Callable[[int, float], Target]:
    """As a loader's: 64 reads in flight at most, and a worker for each processor, or four where workers wait."""

    def limits(workers: int, blocked: float) -> Target:
        return Target(min(32, processors * (4 if blocked > 0.5 else 1)), max(1, min(32, 64 // workers)))

    return limits


def run(machine: Machine, target: Target, seconds: float, *, workers: bool = True, reads: bool = True, seed: int = 1) -> Run:
    """What an autoscaler makes of a machine in ``seconds`` seconds, if it may change workers, and reads."""
    scaled = [number for number, scales in (("workers", workers), ("reads", reads)) if scales]
    autoscaler = Autoscaler(scaled, limits_of(machine.processors), machine.batch)  # type: ignore[arg-type]
    return Run(machine, autoscaler, target, seed=seed).run(seconds)


def decisions(seen: Run) -> list[Decision]:
    """What was decided in a run."""
    assert seen.autoscaler is not None
    return seen.autoscaler.decisions


@dataclass(frozen=True)
class Case:
    """A machine, what there is at first, and what should come of it."""

    name: str
    machine: Machine
    first: Target
    best: Target
    within: float = 3.0  # seconds from the end of the first ticket until 90 % of the best rate is reached
    workers: bool = True  # their number may be changed
    reads: bool = True  # likewise


SLOW = Machine(latency=0.01, slots=32)
SLOW_SHORT = Machine(latency=0.01, slots=8)
HTTP = Machine(latency=0.03, cost=3e-4, slots=32)
FEW_AT_ONCE = Machine(latency=0.03, at_once=8, slots=32)
WARM = Machine(cost=3e-5)
COLD = Machine(latency=0.0012, at_once=8, crowding=0.2, slots=32)
SLEEPS = Machine(latency=0.02, concurrent=False)
COMPUTES = Machine(cost=0.005)

CASES = [
    Case("10 ms a file, 2 workers", SLOW, Target(2, 1), Target(2, 32), 1.0, workers=False),
    Case("10 ms a file, auto, others were busy", SLOW, Target(1, 1), Target(2, 32)),
    Case("HTTP", HTTP, Target(2, 1), Target(2, 32), 1.0, workers=False),
    Case("a server for 8 at once", FEW_AT_ONCE, Target(2, 1), Target(2, 4), 1.0, workers=False),
    Case("warm", WARM, Target(2, 1), Target(2, 1), 0.1),
    Case("cold disk", COLD, Target(2, 1), Target(2, 4), 1.0),
    Case(
        "a transform that sleeps, slow start",
        Machine(latency=0.02, concurrent=False, start=1.0),
        Target(2, 1),
        Target(8, 1),
        reads=False,
    ),
    Case("computes, 2 processors", COMPUTES, Target(1, 1), Target(2, 1)),
    Case("computes, 8 processors, slow start", Machine(cost=0.005, processors=8, start=1.0), Target(1, 1), Target(8, 1)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_quick(case: Case) -> None:
    """What gives 90 % of the best rate is there in time, and kept."""
    seen = run(case.machine, case.first, 12.0, workers=case.workers, reads=case.reads)
    began = next(time for time, rows, _ in seen.history if rows)
    best = case.machine.steady(case.best)
    reached = next(time for time, _, target in seen.history if case.machine.steady(target) >= 0.9 * best)
    assert reached - began <= case.within, seen.decisions
    assert seen.rate(4.0, 12.0) >= 0.85 * best, seen.decisions


def look(
    autoscaler: Autoscaler, seconds: float, rate: float, *, wait: float, busy: float, cpu: float, epoch: int = 0, ready: int = 100
) -> Target:
    """Let ``seconds`` pass, in which the trainer waits, and readers are busy and compute, for these fractions of the time."""
    last = autoscaler._last or Counters(100.0, 0, 0.0, 0.0, 0.0, autoscaler.target, 0)
    return autoscaler.see(
        epoch,
        Counters(
            last.time + seconds,
            last.rows + round(rate * seconds),
            last.waited + wait * seconds,
            last.busy + busy * seconds,
            last.cpu + cpu * seconds,
            autoscaler.target,
            min(autoscaler.target.workers, ready),
        ),
    )


@pytest.mark.parametrize(("scales_workers", "wait"), [(False, 1.0), (True, 0.0), (True, 0.05), (True, 0.3)])
def test_noise_decides_nothing(scales_workers: bool, wait: float) -> None:
    """On a warm machine whose figures vary by 10 %, nothing is changed in more than 1,000 windows, however the trainer waits."""
    dice = random.Random(1)
    autoscaler = Autoscaler(("workers", "reads") if scales_workers else ("reads",), limits_of(2), 64)
    autoscaler.target = Target(2, 1)
    for _ in range(1100):
        noise = [dice.gauss(1, 0.1) for _ in range(4)]
        busy = 1.9 * noise[2]
        look(autoscaler, 1.0, 20_000 * noise[0], wait=wait * noise[1], busy=busy, cpu=min(busy, 1.7 * noise[3]))
    assert autoscaler.decisions == []


@pytest.mark.parametrize("step", [0.05, 0.3])
def test_a_trainer_that_does_not_wait_needs_no_more(step: float) -> None:
    """Nothing is added for it, whatever the storage; a worker whose work the others have time for goes."""
    for machine in (replace(WARM, step=step), replace(COMPUTES, cost=0.0004, step=step)):
        seen = run(machine, Target(2, 1), 30.0)
        assert seen.target == Target(1, 1), seen.decisions
        assert seen.decisions.count("\n") == 0
        assert seen.rate(20.0, 30.0) >= 0.9 * machine.batch / step


def test_it_follows_a_storage_that_changes() -> None:
    """Where files take 10 ms from a moment on, many are read at once within two seconds; one again, when they do not."""
    seen = run(Machine(convoy=0.5, slots=32), Target(2, 1), 10.0)
    assert seen.target == Target(2, 1)
    seen.becomes(latency=0.01)
    seen.run(2.0)
    assert seen.target == Target(2, 32)
    seen.run(10.0)
    seen.becomes(latency=0.0)
    seen.run(4.0)
    assert seen.target.reads <= 2, seen.decisions


@pytest.mark.parametrize(
    ("machine", "best", "reads", "batches"),
    [(SLOW_SHORT, Target(2, 32), True, 2), (SLEEPS, Target(8, 1), False, 2), (COMPUTES, Target(2, 1), False, 10)],
)
def test_short_epochs(machine: Machine, best: Target, reads: bool, batches: int) -> None:
    """What is seen of short epochs adds up, and what lies between them does not count."""
    seen = run(replace(machine, epoch=batches, pause=0.01), Target(1, 1), 10.0, reads=reads)
    assert machine.steady(seen.target) >= 0.9 * machine.steady(best), seen.decisions


def test_a_busy_machine_needs_no_more_reads() -> None:
    """Readers that others keep from a processor are not blocked: more of them would only stand in the same line."""
    seen = run(replace(WARM, others=8), Target(2, 1), 20.0)
    assert seen.target == Target(2, 1), seen.decisions
    assert seen.decisions == ""


@pytest.mark.parametrize(
    ("machine", "step"),
    [(SLOW, 0.3), (SLEEPS, 0.02), (replace(COMPUTES, processors=8), 0.1)],
    ids=["slow-and-a-slow-trainer", "sleeps", "computes"],
)
def test_it_comes_to_rest(machine: Machine, step: float) -> None:
    """The trainer gets what it can use, or the best there is, and after half a minute nothing is changed any more."""
    machine = replace(machine, step=step)
    reads = machine is not SLEEPS and machine.concurrent
    seen = run(machine, Target(2, 1), 45.0, reads=reads)
    most = Target(8, 1) if machine.cost == COMPUTES.cost or not reads else Target(2, 32)
    assert seen.rate(30.0, 45.0) >= 0.93 * machine.steady(most), seen.decisions
    assert len(decisions(seen)) <= 8, seen.decisions
    assert all(decision.at < 30.0 for decision in decisions(seen)), seen.decisions


def test_what_was_refused_is_tried_ever_more_seldom() -> None:
    """Workers for which there is no processor are taken back, and tried again after twice as long each time."""
    autoscaler = Autoscaler(("workers", "reads"), lambda workers, blocked: Target(4, 1), 64)
    seen = Run(COMPUTES, autoscaler, Target(2, 1)).run(120.0)
    tried = [decision.at for decision in decisions(seen) if decision.workers > 2]
    gaps = [later - earlier for earlier, later in itertools.pairwise(tried)]
    assert len(gaps) >= 3
    assert all(later > 1.5 * earlier for earlier, later in itertools.pairwise(gaps)), seen.decisions
    assert all(decision.workers == 2 for decision in decisions(seen)[1::2]), seen.decisions


def test_it_follows_the_trainer() -> None:
    """A trainer that becomes slower needs fewer workers, and one that becomes faster more, later on too."""
    seen = run(replace(COMPUTES, processors=8, step=0.1), Target(1, 1), 30.0)
    assert 4 <= seen.target.workers <= 6, seen.decisions
    seen.becomes(step=1.0)
    seen.run(60.0)
    assert seen.target.workers <= 2, seen.decisions
    seen.becomes(step=0.1)
    seen.run(30.0)
    assert 4 <= seen.target.workers <= 6, seen.decisions


def test_there_is_room() -> None:
    """Never more than there may be, also when that becomes less, and never fewer than one of each."""
    room = Target(5, 7)
    autoscaler = Autoscaler(("workers", "reads"), lambda workers, blocked: room, 64)
    seen = Run(SLOW, autoscaler, Target(2, 1)).run(10.0)
    assert seen.target == Target(5, 7), seen.decisions
    assert max(target.workers for _, _, target in seen.history) <= 5
    for room in (Target(3, 2), Target(0, 0)):
        seen.run(3.0)
        assert seen.target == Target(max(1, room.workers), max(1, room.reads)), seen.decisions
    assert f"there is room for {seen.target} only" in seen.decisions


@pytest.mark.parametrize("room", [Target(1, 1), Target(100, 100)])
def test_what_is_fixed_stays(room: Target) -> None:
    """Numbers that the user gave are kept, whatever there is room for, and whatever would be better."""
    for machine in (SLOW, SLEEPS, COMPUTES, replace(WARM, step=0.3)):
        autoscaler = Autoscaler((), lambda workers, blocked: room, 64)
        autoscaler.look_at = 0.0  # as if there were anything to decide
        seen = Run(machine, autoscaler, Target(3, 2)).run(10.0)
        assert (seen.target, seen.decisions) == (Target(3, 2), "")


def starved(limits: Target) -> Autoscaler:
    """One that has taken a first look, within these limits."""
    autoscaler = Autoscaler(("workers", "reads"), lambda workers, blocked: limits, 64)
    look(autoscaler, 0.0, 0.0, wait=0.0, busy=0.0, cpu=0.0)
    return autoscaler


def test_a_worker_that_starts_is_not_judged() -> None:
    """What is seen before all have started says nothing; the first tickets afterwards neither."""
    autoscaler = starved(Target(2, 1))
    assert look(autoscaler, 1.0, 100.0, wait=1.0, busy=1.0, cpu=1.0) == Target(1, 1)
    assert look(autoscaler, 1.0, 100.0, wait=1.0, busy=1.0, cpu=1.0) == Target(2, 1)
    for _ in range(20):
        assert look(autoscaler, 1.0, 50.0, wait=1.0, busy=1.0, cpu=1.0, ready=1) == Target(2, 1)
    for _ in range(20):
        assert look(autoscaler, 1.0, 200.0, wait=1.0, busy=2.0, cpu=2.0) == Target(2, 1)
    assert len(autoscaler.decisions) == 1


def test_what_lies_between_epochs_does_not_count() -> None:
    """A long pause after each epoch neither makes the trainer look as if it waited, nor as if it did not."""
    patient, starving = starved(Target(4, 1)), starved(Target(4, 1))
    for epoch in range(30):
        # Between the epochs, the one waits for long, and the other does something else.
        look(patient, 100.0, 10.0, wait=1.0, busy=1.0, cpu=1.0, epoch=epoch)
        look(patient, 0.4, 100.0, wait=0.0, busy=0.9, cpu=0.9, epoch=epoch)
        look(starving, 100.0, 10.0, wait=0.0, busy=0.1, cpu=0.1, epoch=epoch)
        look(starving, 0.4, 100.0, wait=1.0, busy=1.0, cpu=1.0, epoch=epoch)
    assert patient.target == Target(1, 1)
    assert [decision.workers for decision in starving.decisions][:1] == [4]


def test_a_slow_first_ticket_is_no_measure() -> None:
    """Where workers were blocked by what they had to load, not by what they read, more reads are taken back."""
    autoscaler = starved(Target(1, 32))
    assert look(autoscaler, 0.5, 32.0, wait=1.0, busy=1.0, cpu=0.2).reads > 1
    for _ in range(20):
        reads = autoscaler.target.reads
        look(autoscaler, 1.0, 20_000.0, wait=1.0, busy=1.0 * reads, cpu=1.0)
    assert autoscaler.target == Target(1, 1)


def test_decisions_say_why(caplog: pytest.LogCaptureFixture) -> None:
    """When, how many of each, and the figures that it is for; each is logged once."""
    autoscaler = starved(Target(3, 8))
    with caplog.at_level(logging.INFO, "shmgen"):
        look(autoscaler, 2.0, 200.0, wait=0.5, busy=1.0, cpu=0.2)
        look(autoscaler, 1.0, 200.0, wait=0.5, busy=5.0, cpu=1.0)
        look(autoscaler, 1.0, 200.0, wait=0.5, busy=5.0, cpu=1.0)
    waited = "the trainer waited 50% of the time, readers were blocked for 80% of theirs"
    assert autoscaler.decisions[0] == Decision(2.0, 1, 5, waited)
    assert autoscaler.decisions[1] == Decision(4.0, 1, 1, "with 1 workers, 5 reads each, 200 rows a second became 200")
    assert len(autoscaler.decisions) == len(caplog.messages) == 2
    assert caplog.messages[0] == f"1 workers, 5 reads each from now on: {waited}"


def test_a_change_shows_after_two_batches() -> None:
    """What is read before, in several looks, is not taken for its effect."""
    autoscaler = starved(Target(3, 8))
    look(autoscaler, 2.0, 200.0, wait=0.5, busy=1.0, cpu=0.2)
    decided = []
    for _ in range(4):  # of 50 rows each, and 128 are two batches
        look(autoscaler, 0.25, 200.0, wait=0.5, busy=5.0, cpu=1.0)
        decided.append(len(autoscaler.decisions))
    assert decided == [1, 1, 1, 2]


def test_time_between_epochs_is_time() -> None:
    """A decision is dated from the first look, whatever lay between epochs."""
    autoscaler = starved(Target(3, 8))
    look(autoscaler, 30.0, 1.0, wait=0.0, busy=0.0, cpu=0.0, epoch=1)
    look(autoscaler, 2.0, 200.0, wait=0.5, busy=1.0, cpu=0.2, epoch=1)
    assert [decision.at for decision in autoscaler.decisions] == [32.0]


def test_a_refusal_ends_where_the_rate_has_changed() -> None:
    """Until then it lasts, each time twice as long as the last time, and longer for what had gained more."""
    backoff = Backoff()
    assert backoff.allows(100.0)
    backoff.refuse(100.0, 2.0)
    assert (backoff.left, backoff.cost) == (2 * PATIENCE, 4 * PATIENCE)
    assert [backoff.allows(rate) for rate in (60.0, 80.0, 100.0, 130.0, 150.0)] == [True, False, False, False, True]


def test_looks_are_cheap() -> None:
    """No look is due while no row has ended, nor twice within a few milliseconds; few while the trainer does not wait."""
    autoscaler = Autoscaler(("workers", "reads"), lambda workers, blocked: Target(4, 4), 64)
    assert autoscaler.is_due(100.0, 0)
    autoscaler.see(0, Counters(100.0, 0, 0.0, 0.0, 0.0, Target(1, 1), 1))
    assert not autoscaler.is_due(200.0, 0)
    assert not autoscaler.is_due(100.0 + 0.9 * LOOK, 10)
    assert autoscaler.is_due(100.0 + LOOK, 10)
    look(autoscaler, 0.1, 100.0, wait=0.0, busy=0.5, cpu=0.5)
    assert autoscaler.look_at == pytest.approx(100.1 + LONG)
