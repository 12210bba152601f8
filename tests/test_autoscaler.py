"""The number of workers follows what the trainer waits: every case is a made-up machine, and a plain unit test."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from shmgen._plan.autoscaler import BATCHES, SECONDS, AutoscalePolicy, Autoscaler, Window
from shmgen._plan.stats import Stats


def machine(*, step: float, read: float, processors: float = 64.0) -> Callable[[int], Window]:
    """What is seen with so many workers where a batch takes ``step`` seconds to train on, and a worker ``read`` to read."""

    def window(workers: int) -> Window:
        rate = min(1 / step, min(workers, processors) / read)
        return Window(rate, 1 - rate * step, rate * read)

    return window


def run(policy: AutoscalePolicy, seen: Callable[[int], Window], windows: int = 60, most: int = 16) -> list[int]:
    """How many workers there were in each window."""
    history = []
    for _ in range(windows):
        history.append(policy.workers)
        policy.see(seen(policy.workers), most)
    return history


@pytest.mark.parametrize("start", [1, 4, 12])
@pytest.mark.parametrize(("read", "enough"), [(0.05, 1), (0.35, 4), (0.75, 8)])
def test_it_finds_what_the_trainer_needs(start: int, read: float, enough: int) -> None:
    """As many workers as keep up with a step of 100 ms, and at most two more, from wherever it starts."""
    history = run(AutoscalePolicy(start), machine(step=0.1, read=read))
    assert all(enough <= workers <= enough + 2 for workers in history[-10:]), history


def test_workers_that_gain_nothing_are_retired() -> None:
    """Where the disk, or the processors, give no more, another worker is tried and taken back, ever more seldom."""
    history = run(AutoscalePolicy(2), machine(step=0.01, read=0.1, processors=3), windows=200)
    tried = [window for window, workers in enumerate(history) if workers > 3]
    assert set(history[3:]) == {3, 4}
    assert len(tried) <= 8
    gaps = [later - earlier for earlier, later in itertools.pairwise(tried)]
    assert gaps == sorted(gaps)


def test_it_does_not_oscillate() -> None:
    """In a steady state, the number changes a few times at most, however long it is watched."""
    history = run(AutoscalePolicy(3), machine(step=0.1, read=0.29), windows=300)
    changes = sum(one != other for one, other in itertools.pairwise(history))
    assert changes <= 14, history


def test_it_stays_within_what_there_is_room_for() -> None:
    """Never more than the most that there may be, also when that falls, and never fewer than one."""
    policy = AutoscalePolicy(2)
    assert max(run(policy, machine(step=0.01, read=1.0), most=5)) == 5
    assert run(policy, machine(step=0.01, read=1.0), most=3)[-1] == 3
    assert run(policy, machine(step=1.0, read=0.001), most=0)[-1] == 1


def test_it_follows_a_change() -> None:
    """A trainer that becomes slower needs fewer workers, and one that becomes faster more, later on too."""
    policy = AutoscalePolicy(1)
    assert run(policy, machine(step=0.1, read=0.45))[-1] >= 5
    assert run(policy, machine(step=1.0, read=0.45), windows=120)[-1] <= 3
    assert run(policy, machine(step=0.1, read=0.45), windows=120)[-1] >= 5


def test_reasons_are_given() -> None:
    """Each change says why; where nothing changes there is nothing to say."""
    policy = AutoscalePolicy(1)
    assert policy.see(Window(1.0, 0.5, 1.0), 4) == "the trainer waited 50% of the time"
    assert policy.see(Window(1.0, 0.5, 1.0), 4) == "one more changed 1.0 batches a second to 1.0"
    assert policy.see(Window(1.0, 0.0, 1.0), 4) is None


def test_a_window_is_what_was_done_in_it() -> None:
    """What came before it has no part in its rate, in the trainer's waiting, or in the workers' load and waiting."""
    seen: list[Window] = []
    waits: list[tuple[int, float]] = []

    class Seeing(AutoscalePolicy):
        def see(self, window: Window, most: int) -> str | None:
            seen.append(window)
            return None

    def most(workers: int, io_wait: float) -> int:
        waits.append((workers, io_wait))
        return 8

    autoscaler = Autoscaler(Seeing(3), most)
    autoscaler.see(0, Stats(batches=100, elapsed=50.0, batch_wait=40.0, slot_wait=5.0, busy=150.0, cpu=150.0))
    autoscaler.see(0, Stats(batches=120, elapsed=60.0, batch_wait=41.0, slot_wait=9.0, busy=170.0, cpu=155.0))

    assert seen == [Window(rate=2.0, wait=0.1, load=2.0)]
    assert waits == [(3, 0.75)]


def test_a_window_ends_with_its_epoch() -> None:
    """One that holds parts of two epochs is not looked at; one in the same epoch is, once it is long enough."""
    autoscaler = Autoscaler(AutoscalePolicy(1), lambda workers, io_wait: 8)
    assert autoscaler.is_over(0, 0.0, 1)
    assert autoscaler.see(0, Stats(batches=1)) == 1
    assert not autoscaler.is_over(0, SECONDS, BATCHES)
    assert not autoscaler.is_over(0, SECONDS / 2, 1 + BATCHES)
    assert autoscaler.is_over(0, SECONDS, 1 + BATCHES)
    assert autoscaler.is_over(1, 0.0, 2)

    starved = Stats(batches=20, elapsed=2.0, batch_wait=2.0, busy=2.0, cpu=2.0)
    assert autoscaler.see(1, starved) == 1
    assert autoscaler.see(1, Stats(batches=40, elapsed=4.0, batch_wait=4.0, busy=4.0, cpu=4.0)) == 2
    assert [(decision.at, decision.workers) for decision in autoscaler.decisions] == [(4.0, 2)]
