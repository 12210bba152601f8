"""Options of the benchmarks, and the table at their end."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.contest import FULL, QUICK, Plan, Result
from benchmarks.report import Ratio, table

RESULTS = pytest.StashKey[list[Result]]()
RATIOS = pytest.StashKey[list[Ratio]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("shmgen benchmarks")
    group.addoption("--quick", action="store_true", help="fewer files and rounds: done in about a minute")
    group.addoption("--data", type=Path, metavar="DIR", help="folder of the data sets, about 2.5 GB (default: .bench)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = []
    config.stash[RATIOS] = []


@pytest.hookimpl(trylast=True)  # behind pytest-benchmark's own tables
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[RESULTS] or config.stash[RATIOS]:
        terminalreporter.section("shmgen and the others")
        for line in table(config.stash[RESULTS], config.stash[RATIOS], _plan(config)):
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def plan(pytestconfig: pytest.Config) -> Plan:
    """How much is measured."""
    return _plan(pytestconfig)


@pytest.fixture(scope="session")
def results(pytestconfig: pytest.Config) -> list[Result]:
    """What goes into the table."""
    return pytestconfig.stash[RESULTS]


@pytest.fixture(scope="session")
def ratios(pytestconfig: pytest.Config) -> list[Ratio]:
    """What goes into the table's last part."""
    return pytestconfig.stash[RATIOS]


def _plan(config: pytest.Config) -> Plan:
    return QUICK if config.getoption("quick") else FULL
