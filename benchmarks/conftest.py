"""Options and fixtures of the benchmarks, and the report at the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.contest import FULL, OURS, QUICK, Plan, Result, contests, is_bound, run_contest
from benchmarks.machine import UnavailableError
from benchmarks.matrix import CONTESTS, Contest
from benchmarks.report import Beside, Report

RESULTS = pytest.StashKey[dict[Contest, Result | str]]()
BESIDE = pytest.StashKey[list[Beside]]()
PLAN = pytest.StashKey[Plan]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("shmgen benchmarks")
    group.addoption("--quick", action="store_true", help="measure fewer files, rounds and contestants, in two minutes")
    group.addoption("--data", type=Path, metavar="DIR", help="folder for the data sets, about 3 GB (default: .bench)")
    group.addoption(
        "--into", type=Path, metavar="FILE", action="append", default=[], help="Markdown file whose tables are replaced"
    )
    group.addoption("--results", type=Path, metavar="DIR", help="folder for the JSON and the plot (default: neither is written)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = {}
    config.stash[BESIDE] = []
    plan = QUICK if config.getoption("quick") else FULL
    config.stash[PLAN] = replace(plan, root=config.getoption("data") or plan.root)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a benchmark of every contestant in every contest."""
    if "contestant" in metafunc.fixturenames:
        pairs = list(contests(metafunc.config.stash[PLAN]))
        metafunc.parametrize(("contest", "contestant"), pairs, ids=[f"{contest.name}-{name}" for contest, name in pairs])


@pytest.hookimpl(trylast=True)  # after pytest-benchmark's own tables
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash[RESULTS]
    results = [result for result in found.values() if isinstance(result, Result)]
    if not results and not config.stash[BESIDE]:
        return
    left_out = {contest.name: why for contest, why in found.items() if isinstance(why, str)}
    report = Report(results, config.stash[BESIDE], config.stash[PLAN], left_out)
    terminalreporter.section("shmgen and the others")
    for line in report.lines():
        terminalreporter.write_line(line)
    if config.getoption("results"):
        for line in report.write(config.getoption("results")):
            terminalreporter.write_line(line)
    for file in config.getoption("into"):
        if len(found) == len(CONTESTS):
            report.put_into(file)
            terminalreporter.write_line(f"Tables: {file}")
        else:
            terminalreporter.write_line(f"{file} is unchanged: {len(found)} of {len(CONTESTS)} contests were run")


@pytest.fixture(scope="session")
def plan(pytestconfig: pytest.Config) -> Plan:
    """How much is measured."""
    return pytestconfig.stash[PLAN]


@pytest.fixture
def result(pytestconfig: pytest.Config, plan: Plan, contest: Contest, contestant: str) -> Result:
    """The contest's result. The first benchmark of a contest runs it; benchmarks of failed contestants are skipped or fail."""
    results = pytestconfig.stash[RESULTS]
    if contest not in results:
        try:
            results[contest] = run_contest(contest, plan)
        except UnavailableError as error:
            results[contest] = str(error)
    found = results[contest]
    if isinstance(found, str):
        pytest.skip(found)
    if contestant in found.failed:
        leave_out = pytest.fail if contestant in OURS or is_bound(contestant) else pytest.skip
        leave_out(f"{contestant} is left out: {found.failed[contestant]}")
    return found


@pytest.fixture(scope="session")
def beside(pytestconfig: pytest.Config) -> list[Beside]:
    """The results for the report's last table."""
    return pytestconfig.stash[BESIDE]
