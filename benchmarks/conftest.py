"""Options of the benchmarks, and the table at their end."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.contest import FULL, QUICK, Plan, Result
from benchmarks.report import table

RESULTS = pytest.StashKey[list[Result]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("shmgen benchmarks")
    group.addoption("--quick", action="store_true", help="fewer files and rounds: done in about a minute")
    group.addoption("--data", type=Path, metavar="DIR", help="folder of the data sets, about 2.5 GB (default: .bench)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = []


@pytest.hookimpl(trylast=True)  # behind pytest-benchmark's own tables
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[RESULTS]:
        terminalreporter.section("shmgen and the others")
        for line in table(config.stash[RESULTS], _plan(config)):
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def plan(pytestconfig: pytest.Config) -> Plan:
    """How much is measured."""
    return _plan(pytestconfig)


@pytest.fixture(scope="session")
def results(pytestconfig: pytest.Config) -> list[Result]:
    """What goes into the table."""
    return pytestconfig.stash[RESULTS]


def _plan(config: pytest.Config) -> Plan:
    return QUICK if config.getoption("quick") else FULL
