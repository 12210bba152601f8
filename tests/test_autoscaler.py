"""The autoscaler sets workers and reads in flight by how long the trainer waits; every case is a simulated machine."""

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
    """Limits like a loader's: at most 64 reads in flight, and one worker a processor, or four if workers mostly wait."""

    def limits(workers: int, blocked: float) -> Target:
        return Target(min(32, processors * (4 if blocked > 0.5 else 1)), max(1, min(32, 64 // workers)))

    return limits


def run(machine: Machine, target: Target, seconds: float, *, workers: bool = True, reads: bool = True, seed: int = 1) -> Run:
    """Run a machine for ``seconds`` seconds with an autoscaler, which may change the number of workers, of reads, or both."""
    scaled = [number for number, scales in (("workers", workers), ("reads", reads)) if scales]
    autoscaler = Autoscaler(scaled, limits_of(machine.processors), machine.batch)  # type: ignore[arg-type]
    return Run(machine, autoscaler, target, seed=seed).run(seconds)


def decisions(seen: Run) -> list[Decision]:
    """The autoscaler's decisions in a run."""
    assert seen.autoscaler is not None
    return seen.autoscaler.decisions


@dataclass(frozen=True)
class Case:
    """A machine, the first numbers of workers and reads, and the best ones."""

    name: str
    machine: Machine
    first: Target
    best: Target
    within: float = 3.0  # seconds from the first finished row until 90 % of the best rate is reached
    workers: bool = True  # whether the autoscaler may change the number of workers
    reads: bool = True  # whether it may change the number of reads


ALONE = Target(1, 1)
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
def test_the_best_rate_is_reached_soon_and_kept(case: Case) -> None:
    """The autoscaler reaches 90 % of the best rate in time, and keeps about that rate."""
    seen = run(case.machine, case.first, 12.0, workers=case.workers, reads=case.reads)
    began = next(time for time, rows, _ in seen.history if rows)
    best = case.machine.steady(case.best)
    reached = next(time for time, _, target in seen.history if case.machine.steady(target) >= 0.9 * best)
    assert reached - began <= case.within, seen.decisions
    assert seen.rate(4.0, 12.0) >= 0.85 * best, seen.decisions


def look(
    autoscaler: Autoscaler, seconds: float, rate: float, *, wait: float, busy: float, cpu: float, epoch: int = 0, ready: int = 100
) -> Target:
    """Let ``seconds`` pass; the trainer waits, readers are busy, and readers compute for the given fractions of them."""
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
def test_nothing_changes_by_noise(scales_workers: bool, wait: float) -> None:
    """On a warm machine whose figures vary by 10 %, nothing changes in 1,100 looks, however long the trainer waits."""
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
    """For a trainer that does not wait, nothing is added, and a worker is removed if the other can do its work."""
    for machine in (replace(WARM, step=step), replace(COMPUTES, cost=0.0004, step=step)):
        seen = run(machine, Target(2, 1), 30.0)
        assert seen.target == Target(1, 1), seen.decisions
        assert seen.decisions.count("\n") == 0
        assert seen.rate(20.0, 30.0) >= 0.9 * machine.batch / step


def test_reads_follow_the_speed_of_the_storage() -> None:
    """When files begin to take 10 ms, many are read at once within two seconds; when they become fast again, few are."""
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
def test_measurements_of_short_epochs_are_added_up(machine: Machine, best: Target, reads: bool, batches: int) -> None:
    """Measurements of several short epochs are added up, without the pauses between them."""
    seen = run(replace(machine, epoch=batches, pause=0.01), Target(1, 1), 10.0, reads=reads)
    assert machine.steady(seen.target) >= 0.9 * machine.steady(best), seen.decisions


def test_a_busy_machine_needs_no_more_reads() -> None:
    """Readers that wait for a processor do not count as blocked: more of them would only wait, too."""
    seen = run(replace(WARM, others=8), Target(2, 1), 20.0)
    assert seen.target == Target(2, 1), seen.decisions
    assert seen.decisions == ""


@pytest.mark.parametrize(
    ("machine", "step"),
    [(SLOW, 0.3), (SLEEPS, 0.02), (replace(COMPUTES, processors=8), 0.1)],
    ids=["slow-and-a-slow-trainer", "sleeps", "computes"],
)
def test_changes_come_to_an_end(machine: Machine, step: float) -> None:
    """The trainer gets the rate that it can use, or the best possible one, and after 30 seconds nothing changes."""
    machine = replace(machine, step=step)
    reads = machine is not SLEEPS and machine.concurrent
    seen = run(machine, Target(2, 1), 45.0, reads=reads)
    most = Target(8, 1) if machine.cost == COMPUTES.cost or not reads else Target(2, 32)
    assert seen.rate(30.0, 45.0) >= 0.93 * machine.steady(most), seen.decisions
    assert len(decisions(seen)) <= 8, seen.decisions
    assert all(decision.at < 30.0 for decision in decisions(seen)), seen.decisions


def test_workers_follow_the_speed_of_the_trainer() -> None:
    """When the trainer becomes slower, it gets fewer workers; when it becomes faster again, more."""
    seen = run(replace(COMPUTES, processors=8, step=0.1), Target(1, 1), 30.0)
    assert 4 <= seen.target.workers <= 6, seen.decisions
    seen.becomes(step=1.0)
    seen.run(60.0)
    assert seen.target.workers <= 2, seen.decisions
    seen.becomes(step=0.1)
    seen.run(30.0)
    assert 4 <= seen.target.workers <= 6, seen.decisions


def test_limits_are_kept_also_when_they_become_lower() -> None:
    """Workers and reads stay within the limits, also when these become lower, and there is always one of each."""
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
def test_numbers_that_the_user_gave_are_kept(room: Target) -> None:
    """Numbers that the user gave are kept, whatever the limits are, and whatever would be faster."""
    for machine in (SLOW, SLEEPS, COMPUTES, replace(WARM, step=0.3)):
        autoscaler = Autoscaler((), lambda workers, blocked: room, 64)
        autoscaler.look_at = 0.0  # as if there were something to decide
        seen = Run(machine, autoscaler, Target(3, 2)).run(10.0)
        assert (seen.target, seen.decisions) == (Target(3, 2), "")


def starved(limits: Target, first: Target = ALONE) -> Autoscaler:
    """An autoscaler with these limits that has taken its first look, at the ``first`` numbers of workers and reads."""
    autoscaler = Autoscaler(("workers", "reads"), lambda workers, blocked: limits, 64)
    autoscaler.target = first
    look(autoscaler, 0.0, 0.0, wait=0.0, busy=0.0, cpu=0.0)
    return autoscaler


def steer(
    autoscaler: Autoscaler, looks: int, rates: dict[int, float], *, cpu: float, wait: float = 1.0, seconds: float = 1.0
) -> list[tuple[float, int, int]]:
    """Take looks at the ``rates`` for each number of readers, which are all busy; return time, workers and reads of decisions."""
    for _ in range(looks):
        workers, readers = autoscaler.target.workers, autoscaler.target.readers
        look(autoscaler, seconds, rates[readers], wait=wait, busy=readers, cpu=workers * cpu)
    return [(decision.at, decision.workers, decision.reads) for decision in autoscaler.decisions]


@pytest.mark.parametrize(
    ("busy", "cpu", "room", "after"),
    [
        pytest.param(5.0, 0.4, Target(4, 32), Target(1, 32), id="blocked 92 %: twice the reads"),
        pytest.param(5.0, 0.4, Target(4, 20), Target(1, 20), id="room for a quarter more reads: these"),
        pytest.param(5.0, 0.4, Target(4, 19), Target(1, 16), id="room for less than a quarter more: nothing"),
        pytest.param(4.0, 0.48, Target(4, 32), Target(1, 16), id="blocked 88 %, reads enough for a processor: nothing"),
        pytest.param(4.0, 0.48, Target(4, 16), Target(2, 16), id="blocked 88 %, no room for reads: twice the workers"),
    ],
)
def test_changes_for_a_trainer_that_waits(busy: float, cpu: float, room: Target, after: Target) -> None:
    """More than 16 reads are tried if readers are blocked for most of the time and there is room; if there is none, workers."""
    autoscaler = starved(room, Target(1, 16))
    look(autoscaler, 1.0, 300.0, wait=0.0, busy=busy, cpu=cpu)
    assert look(autoscaler, 1.0, 300.0, wait=0.9, busy=busy, cpu=cpu) == after


@pytest.mark.parametrize(("cpu", "workers"), [(0.7, 6), (0.9, 8)], ids=["storage", "interpreter"])
def test_readers_of_a_saturated_worker_wait_for_its_interpreter(cpu: float, workers: int) -> None:
    """A trainer that waits 7/8 of its time gets 8 workers for one; or the 6 that keep a processor busy, if storage is slow."""
    autoscaler = starved(Target(16, 4), Target(1, 4))
    autoscaler.scaled = ("workers",)
    assert steer(autoscaler, 2, {4: 300.0}, cpu=cpu, wait=0.875) == [(2.0, workers, 4)]


def test_workers_are_not_added_if_they_would_only_share_the_reads() -> None:
    """With 64 reads in flight, the most there may be, four workers would have 16 each in place of two with 32."""
    autoscaler = Autoscaler(("workers", "reads"), limits_of(2), 64)
    autoscaler.target = Target(2, 32)
    assert steer(autoscaler, 3, {64: 300.0}, cpu=0.3) == []


def test_a_change_that_was_refused_is_tried_more_seldom_and_watched_for_longer() -> None:
    """Pauses and trials become twice as long with each refusal, trials up to a second; a change that helps starts anew."""
    autoscaler = starved(Target(3, 1))
    rates = {1: 20_000.0, 2: 20_000.0, 3: 40_000.0}
    steer(autoscaler, 1000, rates, cpu=1.0, wait=0.5, seconds=1 / 32)
    decided = steer(autoscaler, 1200, {**rates, 2: 40_000.0}, cpu=1.0, wait=0.5, seconds=1 / 32)
    assert [workers for _, workers, _ in decided] == [2, 1] * 4 + [2, 3, 2, 3, 2]
    # In looks of 1/32 s, less the one after each change: trials of 5, 10, 20 and 32 looks, pauses of 4, 8, 16 and 32 s.
    gaps = [32 * (later - earlier) - 1 for (earlier, *_), (later, *_) in itertools.pairwise(decided)]
    assert gaps == [5, 4 * 32, 10, 8 * 32, 20, 16 * 32, 32, 32 * 32, 32, 5, 4 * 32, 10]


def test_a_change_that_helped_leaves_refusals_in_place() -> None:
    """Fewer reads were refused for 4 seconds; a second worker then doubles the rate, and does not shorten them."""
    autoscaler, rates = starved(Target(2, 4), Target(1, 4)), {1: 300.0, 4: 400.0, 8: 800.0}
    # The seconds in which two batches are read after a change do not count.
    assert steer(autoscaler, 10, rates, cpu=0.9) == [(2.0, 1, 1), (4.0, 1, 4), (6.0, 2, 4), (10.0, 2, 1)]


@pytest.mark.parametrize("gain", [3.0, 4.0])
def test_the_more_a_change_gained_the_later_the_opposite_is_tried(gain: float) -> None:
    """Five reads are ``gain`` times as fast as one: one is tried again after that many times 4 seconds."""
    autoscaler, rates = starved(Target(1, 32)), {1: 300.0, 5: 300 * gain}
    assert steer(autoscaler, 1, rates, cpu=0.2) == [(1.0, 1, 5)]
    assert steer(autoscaler, 2 + round(PATIENCE * gain), rates, cpu=0.8) == [(1.0, 1, 5), (3 + PATIENCE * gain, 1, 1)]


@pytest.mark.parametrize(("rate", "kept"), [(2400.0, 8), (1200.0, 32)], ids=["as fast", "slower"])
def test_a_gain_of_less_than_half_is_worth_fewer_reads(rate: float, kept: int) -> None:
    """Thirty-two reads are eight times as fast as one: eight are tried, and kept if they are as fast as 32."""
    autoscaler, rates = starved(Target(1, 32)), {1: 300.0, 32: 2400.0, 8: rate}
    assert steer(autoscaler, 3, rates, cpu=0.02) == [(1.0, 1, 32), (3.0, 1, 8)]
    steer(autoscaler, 3, rates, cpu=0.02)
    assert autoscaler.target.reads == kept


@pytest.mark.parametrize(("rate", "kept"), [(1070.0, 11), (1030.0, 10)])
def test_a_worker_is_kept_for_half_of_what_it_could_bring(rate: float, kept: int) -> None:
    """An eleventh worker could bring 10 %: it is kept if it brings 7 %, and removed if it brings 3 %."""
    autoscaler = starved(Target(11, 1), Target(10, 1))
    assert steer(autoscaler, 4, {10: 1000.0, 11: rate}, cpu=1.0, wait=0.08)[0] == (2.0, 11, 1)
    assert autoscaler.target.workers == kept


@pytest.mark.parametrize(("busy", "workers"), [(0.75, [2, 2, 1]), (0.85, [2, 2, 2])])
def test_a_worker_is_removed_if_the_others_have_time_to_spare(busy: float, workers: list[int]) -> None:
    """The second worker goes in the third window in which the first would be busy for less than 80 % of its time."""
    autoscaler = starved(Target(2, 1), Target(2, 1))
    look(autoscaler, 1.0, 300.0, wait=0.0, busy=busy, cpu=busy)
    assert [look(autoscaler, 1.0, 300.0, wait=0.0, busy=busy, cpu=busy).workers for _ in range(3)] == workers


def test_a_worker_that_starts_is_not_judged() -> None:
    """A look before all workers have started decides nothing."""
    autoscaler = starved(Target(2, 1))
    assert look(autoscaler, 1.0, 100.0, wait=1.0, busy=1.0, cpu=1.0) == Target(1, 1)
    assert look(autoscaler, 1.0, 100.0, wait=1.0, busy=1.0, cpu=1.0) == Target(2, 1)
    for _ in range(20):
        assert look(autoscaler, 1.0, 50.0, wait=1.0, busy=1.0, cpu=1.0, ready=1) == Target(2, 1)
    for _ in range(20):
        assert look(autoscaler, 1.0, 200.0, wait=1.0, busy=2.0, cpu=2.0) == Target(2, 1)
    assert len(autoscaler.decisions) == 1


def test_pauses_between_epochs_do_not_count() -> None:
    """Waits or pauses between epochs do not count, whether long waits of the trainer or none."""
    patient, starving = starved(Target(4, 1)), starved(Target(4, 1))
    for epoch in range(30):
        # Between epochs, the patient trainer waits all the time, and the starving one does not.
        look(patient, 100.0, 10.0, wait=1.0, busy=1.0, cpu=1.0, epoch=epoch)
        look(patient, 0.4, 100.0, wait=0.0, busy=0.9, cpu=0.9, epoch=epoch)
        look(starving, 100.0, 10.0, wait=0.0, busy=0.1, cpu=0.1, epoch=epoch)
        look(starving, 0.4, 100.0, wait=1.0, busy=1.0, cpu=1.0, epoch=epoch)
    assert patient.target == Target(1, 1)
    assert [decision.workers for decision in starving.decisions][:1] == [4]


def test_a_slow_first_ticket_is_no_measure() -> None:
    """Reads that were added because the first ticket was slow, as while modules are imported, are taken back."""
    autoscaler = starved(Target(1, 32))
    assert look(autoscaler, 0.5, 32.0, wait=1.0, busy=1.0, cpu=0.2).reads == 5
    steer(autoscaler, 20, {1: 20_000.0, 5: 20_000.0}, cpu=1.0)
    assert autoscaler.target == Target(1, 1)


def test_decisions_say_why(caplog: pytest.LogCaptureFixture) -> None:
    """A decision has its time, the numbers of workers and reads, and the figures it is based on; it is logged once."""
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
    """The effect of a change is judged only after two more batches have been read."""
    autoscaler = starved(Target(3, 8))
    look(autoscaler, 2.0, 200.0, wait=0.5, busy=1.0, cpu=0.2)
    decided = []
    for _ in range(4):  # 50 rows each; two batches are 128 rows
        look(autoscaler, 0.25, 200.0, wait=0.5, busy=5.0, cpu=1.0)
        decided.append(len(autoscaler.decisions))
    assert decided == [1, 1, 1, 2]


def test_the_time_of_a_decision_includes_pauses() -> None:
    """The time of a decision counts from the first look, including the time between epochs."""
    autoscaler = starved(Target(3, 8))
    look(autoscaler, 30.0, 1.0, wait=0.0, busy=0.0, cpu=0.0, epoch=1)
    look(autoscaler, 2.0, 200.0, wait=0.5, busy=1.0, cpu=0.2, epoch=1)
    assert [decision.at for decision in autoscaler.decisions] == [32.0]


def test_a_refusal_ends_where_the_rate_has_changed() -> None:
    """A refusal ends early if the rate changes by half; the next refusal lasts twice as long."""
    backoff = Backoff()
    assert backoff.allows(100.0)
    backoff.refuse(100.0, 2.0)
    assert (backoff.left, backoff.cost) == (2 * PATIENCE, 4 * PATIENCE)
    assert [backoff.allows(rate) for rate in (60.0, 80.0, 100.0, 130.0, 150.0)] == [True, False, False, False, True]


def test_looks_are_cheap() -> None:
    """No look is due without new rows, or soon after the last one; while the trainer does not wait, looks are rare."""
    autoscaler = Autoscaler(("workers", "reads"), lambda workers, blocked: Target(4, 4), 64)
    assert autoscaler.is_due(100.0, 0)
    autoscaler.see(0, Counters(100.0, 0, 0.0, 0.0, 0.0, Target(1, 1), 1))
    assert not autoscaler.is_due(200.0, 0)
    assert not autoscaler.is_due(100.0 + 0.9 * LOOK, 10)
    assert autoscaler.is_due(100.0 + LOOK, 10)
    look(autoscaler, 0.1, 100.0, wait=0.0, busy=0.5, cpu=0.5)
    assert autoscaler.look_at == pytest.approx(100.1 + LONG)
