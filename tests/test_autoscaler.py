"""Workers and reads in flight follow what the trainer waits: every case is a made-up machine, and a plain unit test."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from machine import Machine, Run

from shmgen._plan.autoscaler import Autoscaler, Limits, Progress, Target


def limits_of(processors: int) -> Callable[[int, float], Limits]:
    """As a loader's: 64 reads in flight at most, and a worker for each processor, or four where workers wait."""

    def limits(workers: int, blocked: float) -> Limits:
        return Limits(min(32, processors * (4 if blocked > 0.5 else 1)), max(1, min(32, 64 // workers)))

    return limits


def run(machine: Machine, target: Target, seconds: float, *, workers: bool = True, reads: bool = True, seed: int = 1) -> Run:
    """What an autoscaler makes of a machine in so many seconds, if it may change workers, and reads."""
    autoscaler = Autoscaler(
        target,
        scales_workers=workers,
        scales_reads=reads,
        limits=limits_of(machine.processors),
        ticket_rows=machine.ticket,
    )
    return Run(machine, autoscaler, target, seed=seed).run(seconds)


@dataclass(frozen=True)
class Case:
    """A machine, what there is at first, and what should come of it.

    Attributes:
        best: the numbers that are best there.
        within: seconds from the end of the first ticket until 90 % of the best rate is reached.
        workers, reads: whether they may be changed.
    """

    name: str
    machine: Machine
    first: Target
    best: Target
    within: float = 3.0
    workers: bool = True
    reads: bool = True


SLOW = Machine(latency=0.01, slots=32)
SLOW_SHORT = Machine(latency=0.01, slots=8, ticket=4)
HTTP = Machine(latency=0.03, cost=3e-4, slots=32, ticket=4)
FEW_AT_ONCE = Machine(latency=0.03, at_once=8, slots=32, ticket=4)
WARM = Machine(cost=3e-5)
COLD = Machine(latency=0.0012, at_once=8, crowding=0.2, slots=32)
SLEEPS = Machine(latency=0.02, concurrent=False)
COMPUTES = Machine(cost=0.005)

CASES = [
    Case("10 ms a file, 2 workers", SLOW, Target(2, 1), Target(2, 32), 1.0, workers=False),
    Case("10 ms a file, auto", SLOW, Target(2, 1), Target(2, 32), 1.0),
    Case("10 ms a file, auto, others were busy", SLOW, Target(1, 1), Target(2, 32)),
    Case("HTTP", HTTP, Target(2, 1), Target(2, 32), 1.0, workers=False),
    Case("a server for 8 at once", FEW_AT_ONCE, Target(2, 1), Target(2, 4), 1.0, workers=False),
    Case("warm", WARM, Target(2, 1), Target(2, 1), 0.1),
    Case("cold disk", COLD, Target(2, 1), Target(2, 4), 1.0),
    Case("a transform that sleeps", SLEEPS, Target(2, 1), Target(8, 1), reads=False),
    Case(
        "a transform that sleeps, slow start",
        Machine(latency=0.02, concurrent=False, start=1.0),
        Target(2, 1),
        Target(8, 1),
        reads=False,
    ),
    Case("computes, 2 processors", COMPUTES, Target(1, 1), Target(2, 1)),
    Case("computes, 8 processors", Machine(cost=0.005, processors=8), Target(1, 1), Target(8, 1)),
    Case("computes, 8 processors, slow start", Machine(cost=0.005, processors=8, start=1.0), Target(1, 1), Target(8, 1)),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_quick(case: Case, seed: int) -> None:
    """90 % of the best rate is reached in time, and kept."""
    seen = run(case.machine, case.first, 20.0, workers=case.workers, reads=case.reads, seed=seed)
    began = next(time for time, rows, _ in seen.history if rows)
    best = case.machine.steady(case.best)
    reached = next(time for time, _, target in seen.history if case.machine.steady(target) >= 0.9 * best)
    starts = case.machine.start if reached > case.machine.start + 0.1 and case.best.workers > case.first.workers else 0.0
    assert reached + starts - began <= case.within, seen.decisions
    assert seen.rate(10.0, 20.0) >= 0.85 * best, seen.decisions


def look(autoscaler: Autoscaler, seconds: float, rate: float, *, wait: float, busy: float, cpu: float, epoch: int = 0) -> Target:
    """Let so many seconds pass, in which the trainer waits, and readers are busy and compute, for these fractions of the time."""
    last = autoscaler._last or Progress(100.0, 0, 0.0, 0.0, 0.0, 0, 0, 0)
    workers, reads = autoscaler.target
    return autoscaler.see(
        epoch,
        Progress(
            last.time + seconds,
            last.rows + round(rate * seconds),
            last.waited + wait * seconds,
            last.busy + busy * seconds,
            last.cpu + cpu * seconds,
            workers,
            workers,
            reads,
        ),
    )


@pytest.mark.parametrize("scales_workers", [False, True])
@pytest.mark.parametrize("wait", [0.0, 0.05, 0.3, 1.0])
def test_noise_decides_nothing(scales_workers: bool, wait: float) -> None:
    """On a warm machine whose figures vary by 10 %, nothing is changed in more than 1,000 windows, however the trainer waits."""
    dice = random.Random(1)
    autoscaler = Autoscaler(Target(2, 1), scales_workers=scales_workers, scales_reads=True, limits=limits_of(2))
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


@pytest.mark.parametrize("convoy", [0.0, 0.5])
def test_it_follows_a_storage_that_changes(convoy: float) -> None:
    """Where files take 10 ms from a moment on, many are read at once within two seconds; one again, when they do not."""
    seen = run(Machine(convoy=convoy, slots=32), Target(2, 1), 10.0)
    assert seen.target == Target(2, 1)
    seen.becomes(latency=0.01)
    seen.run(2.0)
    assert seen.target == Target(2, 32)
    seen.run(10.0)
    seen.becomes(latency=0.0)
    seen.run(4.0)
    assert seen.target.reads <= 2, seen.decisions


@pytest.mark.parametrize(
    ("machine", "best", "reads"),
    [(SLOW_SHORT, Target(2, 32), True), (SLEEPS, Target(8, 1), False), (COMPUTES, Target(2, 1), False)],
)
@pytest.mark.parametrize("batches", [2, 10])
def test_short_epochs(machine: Machine, best: Target, reads: bool, batches: int) -> None:
    """What is seen of short epochs adds up, and what lies between them does not count."""
    seen = run(replace(machine, epoch=batches, pause=0.01), Target(1, 1), 10.0, reads=reads)
    assert machine.steady(seen.target) >= 0.9 * machine.steady(best), seen.decisions
