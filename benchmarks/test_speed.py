"""The benchmarks: one for each contestant of each contest, and one for each kind of data of `beside`.

pytest-benchmark times one function after another, but contestants must take turns to be comparable. So the first benchmark of a
contest runs the whole contest, and each benchmark replays the times that its contestant's processes measured.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.beside import KINDS, measure
from benchmarks.contest import Plan, Result
from benchmarks.matrix import FIGURES, Contest
from benchmarks.report import Beside


class Replay:
    """A clock that only `advance` moves."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds


REPLAY = Replay()


@pytest.mark.benchmark(timer=REPLAY.now)
def test_contest(result: Result, benchmark: BenchmarkFixture, contest: Contest, contestant: str) -> None:
    """The contest's main figure as a time: of an epoch, of the trainer's wait in one second, or until the first batch."""
    figure = FIGURES[result.main]
    values = result.values[result.main][contestant]
    scale = {"samples/s": 1.0, "ms": 1e-3, "% of its time": 1e-2}[figure.unit]
    seconds = iter([result.case.samples / value if figure.more_is_better else value * scale for value in values])
    what = f"an epoch of {result.case.samples:,} samples" if figure.more_is_better else figure.unit
    benchmark.group = f"{figure.title}: {result.case.title}, {contest.workers} workers: {what}"
    benchmark.extra_info.update({name: result.values[name][contestant] for name in result.contest.figures})
    benchmark.pedantic(lambda: REPLAY.advance(next(seconds)), rounds=len(values))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("kind", KINDS)
def test_beside(kind: str, plan: Plan, beside: list[Beside], benchmark: BenchmarkFixture) -> None:
    """shmgen and the code that users write for this kind of data, in turn."""
    values = measure(kind, plan.root, plan.few_rounds, plan.seconds, plan.cut)
    beside.append(Beside(KINDS[kind].title, values))
    benchmark.extra_info.update(values)
    benchmark.pedantic(lambda: None)  # type: ignore[no-untyped-call]
