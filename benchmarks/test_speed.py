"""The contests, and every contestant's part in them as a benchmark of its own.

pytest-benchmark times one function after another, but contestants that are to be compared must take turns. So a contest is held
as a whole, before the first benchmark of its data set, and each benchmark replays what its contestant's processes measured.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.cases import CASES, Case
from benchmarks.contest import Plan, Result, hold
from benchmarks.contestant import DATASETS, LOADERS


class Replay:
    """A clock that only `pass_by` moves."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        return self._now

    def pass_by(self, seconds: float) -> None:
        self._now += seconds


REPLAY = Replay()
pytestmark = pytest.mark.benchmark(timer=REPLAY.now)


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def loading(request: pytest.FixtureRequest, plan: Plan, results: list[Result]) -> Result:
    """All loaders on one data set."""
    results.append(hold("load", _made(request.param, plan, request.config), list(LOADERS), plan))
    return results[-1]


@pytest.fixture(scope="module")
def fitting(pytestconfig: pytest.Config, plan: Plan, results: list[Result]) -> Result:
    """``model.fit`` on each dataset; an epoch is long, because Keras itself takes a tenth of a second to begin one."""
    case = replace(CASES["volume-32"], repeats=8)
    results.append(hold("fit", _made(case, plan, pytestconfig), list(DATASETS), plan))
    return results[-1]


@pytest.mark.parametrize("contestant", LOADERS)
def test_loading(benchmark: BenchmarkFixture, loading: Result, contestant: str) -> None:
    """The time of an epoch's batches."""
    _replay(benchmark, loading, contestant)


@pytest.mark.parametrize("contestant", DATASETS)
def test_fit(benchmark: BenchmarkFixture, fitting: Result, contestant: str) -> None:
    """The time of an epoch of training."""
    _replay(benchmark, fitting, contestant)


def _made(case: Case, plan: Plan, config: pytest.Config) -> Case:
    case = replace(case, files=case.files // plan.cut, root=config.getoption("data") or case.root)
    case.make()
    return case


def _replay(benchmark: BenchmarkFixture, result: Result, contestant: str) -> None:
    epochs = iter([result.case.samples / rate for rate in result.rates[contestant]])
    benchmark.group = f"{result.what} {result.case.title}: an epoch of {result.case.samples:,} samples"
    benchmark.extra_info["samples_per_second"] = result.rates[contestant]
    benchmark.pedantic(lambda: REPLAY.pass_by(next(epochs)), rounds=len(result.rates[contestant]))
