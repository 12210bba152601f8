"""The table of ratios, in Markdown, so that it can be put into the README as it is."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

from benchmarks.contest import Plan, Result

TITLES = {"load": "batches only", "fit": "model.fit"}


@dataclass(frozen=True)
class Ratio:
    """Something measured that is no contest.

    Attributes:
        title: what it is.
        unit: behind each value.
        values: round by round.
    """

    title: str
    unit: str
    values: list[float]


def table(results: list[Result], others: list[Ratio], plan: Plan) -> Iterator[str]:
    """The lines to print."""
    yield f"Samples a second, page cache warm, order shuffled: the median of {plan.rounds} rounds."
    yield "Ratios are of the same round: their median, and the lowest and highest."
    for what, title in TITLES.items():
        of_this = [result for result in results if result.what == what]
        if of_this:
            yield ""
            yield from _markdown(_rows(title, of_this))
    if others:
        yield ""
        rows = [["sources and functions", "median (least to most)"]]
        rows += [[other.title, _spread(other.values) + other.unit] for other in others]
        yield from _markdown(iter(rows))
    yield ""
    yield _circumstances()


def _rows(title: str, results: list[Result]) -> Iterator[list[str]]:
    contestants = list(results[0].rates)
    others = [contestant for contestant in reversed(contestants) if contestant != "shmgen"]
    yield [title, "batch", *contestants, *(f"shmgen/{other}" for other in others)]
    for result in results:
        rates = [f"{result.median(contestant):,.0f}" for contestant in contestants]
        ratios = [_spread(result.ratios("shmgen", other)) for other in others]
        yield [result.case.title, str(result.case.batch_size), *rates, *ratios]


def _spread(ratios: list[float]) -> str:
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _markdown(rows: Iterator[list[str]]) -> Iterator[str]:
    head, *body = rows
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    for first, *others in (head, rule, *body):
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        yield f"| {' | '.join(cells)} |"


def _circumstances() -> str:
    """Where, when and on what it was measured."""
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{title} {_version(title.lower())}" for title in ("NumPy", "TensorFlow", "Keras")]
    machine = f"{_processor()}, {len(os.sched_getaffinity(0))} cores, Linux {platform.release()}"
    return f"{machine}; {', '.join(versions)}; {date.today().isoformat()}; {_commit()}."


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"


def _commit() -> str:
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=, changed since", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "no commit"
    return f"commit {found.stdout.strip()}"
