"""The number of workers follows what the trainer waits: every case is a made-up machine, and a plain unit test."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from shmgen._plan.autoscaler import AutoscalePolicy, Window


def machine(*, step: float, read: float, processors: float = 64.0) -> Callable[[int], Window]:
    """What is seen with so many workers where a batch takes ``step`` seconds to train on, and a worker ``read`` to read."""

    def window(workers: int) -> Window:
        rate = min(1 / step, min(workers, processors) / read)
        return Window(rate, 1 - rate * step, rate * read)

    return window


def run(crew: AutoscalePolicy, seen: Callable[[int], Window], windows: int = 60, most: int = 16) -> list[int]:
    """How many workers there were in each window."""
    history = []
    for _ in range(windows):
        history.append(crew.workers)
        crew.see(seen(crew.workers), most)
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
    crew = AutoscalePolicy(2)
    assert max(run(crew, machine(step=0.01, read=1.0), most=5)) == 5
    assert run(crew, machine(step=0.01, read=1.0), most=3)[-1] == 3
    assert run(crew, machine(step=1.0, read=0.001), most=0)[-1] == 1


def test_it_follows_a_change() -> None:
    """A trainer that becomes slower needs fewer workers, and one that becomes faster more, later on too."""
    crew = AutoscalePolicy(1)
    assert run(crew, machine(step=0.1, read=0.45))[-1] >= 5
    assert run(crew, machine(step=1.0, read=0.45), windows=120)[-1] <= 3
    assert run(crew, machine(step=0.1, read=0.45), windows=120)[-1] >= 5


def test_reasons_are_given() -> None:
    """Each change says why; where nothing changes there is nothing to say."""
    crew = AutoscalePolicy(1)
    assert crew.see(Window(1.0, 0.5, 1.0), 4) == "the trainer waited 50% of the time"
    assert crew.see(Window(1.0, 0.5, 1.0), 4) == "one more changed 1.0 batches a second to 1.0"
    assert crew.see(Window(1.0, 0.0, 1.0), 4) is None
