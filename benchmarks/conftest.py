"""Options of the benchmarks, and the table at their end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.contest import FULL, QUICK, Plan, Result, contests, hold
from benchmarks.machine import CannotDropError
from benchmarks.matrix import Contest
from benchmarks.report import Ratio, Report

RESULTS = pytest.StashKey[dict[Contest, Result | str]]()
RATIOS = pytest.StashKey[list[Ratio]]()
PLAN = pytest.StashKey[Plan]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("shmgen benchmarks")
    group.addoption("--quick", action="store_true", help="fewer files, rounds and contestants: done in two minutes")
    group.addoption("--data", type=Path, metavar="DIR", help="folder of the data sets, about 2.5 GB (default: .bench)")
    group.addoption("--results", type=Path, metavar="DIR", help="folder for the JSON and the plot (default: none is written)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = {}
    config.stash[RATIOS] = []
    plan = QUICK if config.getoption("quick") else FULL
    config.stash[PLAN] = replace(plan, root=config.getoption("data") or plan.root)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A benchmark for each contestant that takes part."""
    if "contestant" in metafunc.fixturenames:
        pairs = list(contests(metafunc.config.stash[PLAN]))
        metafunc.parametrize(("contest", "contestant"), pairs, ids=[f"{contest.name}-{name}" for contest, name in pairs])


@pytest.hookimpl(trylast=True)  # behind pytest-benchmark's own tables
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    results = [result for result in config.stash[RESULTS].values() if isinstance(result, Result)]
    if not results and not config.stash[RATIOS]:
        return
    report = Report(results, config.stash[RATIOS], config.stash[PLAN])
    terminalreporter.section("shmgen and the others")
    for line in report.lines():
        terminalreporter.write_line(line)
    if config.getoption("results"):
        for line in report.write(config.getoption("results")):
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def plan(pytestconfig: pytest.Config) -> Plan:
    """How much is measured."""
    return pytestconfig.stash[PLAN]


@pytest.fixture
def result(pytestconfig: pytest.Config, plan: Plan, contest: Contest) -> Result:
    """Of the contest, which is held when its first contestant's benchmark comes."""
    results = pytestconfig.stash[RESULTS]
    if contest not in results:
        try:
            results[contest] = hold(contest, plan)
        except CannotDropError as error:
            results[contest] = str(error)
    found = results[contest]
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(scope="session")
def ratios(pytestconfig: pytest.Config) -> list[Ratio]:
    """What goes into the table's last part."""
    return pytestconfig.stash[RATIOS]
