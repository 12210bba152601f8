"""What a run ends with: the table, in Markdown, so that it can be put into the README as it is; the JSON; the plot."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

from benchmarks.contest import Plan, Result, missing
from benchmarks.matrix import ALL, FIGURES

PACKAGES = ("numpy", "tensorflow", "keras", "torch", "grain", "spdl-core", "shmgen")


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


@dataclass(frozen=True)
class Row:
    """One figure of one contest.

    Attributes:
        result: of the contest.
        figure: of `FIGURES`.
    """

    result: Result
    figure: str

    @property
    def title(self) -> str:
        figure, contest = FIGURES[self.figure], self.result.contest
        return f"{figure.title}, {figure.unit}, {contest.workers} worker{'s' * (contest.workers > 1)}"

    @property
    def case(self) -> str:
        size = self.result.case.sample_bytes
        power = min(2, int(math.log(size, 1024)))
        return f"{self.result.case.title} ({size // 1024**power} {('B', 'KiB', 'MiB')[power]})"

    @property
    def arrow(self) -> str:
        """Where better is."""
        return "↑" if FIGURES[self.figure].more else "↓"

    @property
    def values(self) -> dict[str, list[float]]:
        return self.result.values[self.figure]

    def median(self, contestant: str | None) -> str:
        if contestant not in self.values:
            return "-"
        return f"{median(self.values[contestant]):,.{FIGURES[self.figure].digits}f}"

    def ratio(self, other: str | None) -> str:
        if other not in self.values or "shmgen" not in self.values:
            return "-"
        return _spread(self.result.ratios(self.figure, "shmgen", other))


@dataclass(frozen=True)
class Report:
    """Of a run.

    Attributes:
        results: of the contests.
        others: what was measured besides.
        plan: how much was.
    """

    results: list[Result]
    others: list[Ratio]
    plan: Plan

    @property
    def rows(self) -> list[Row]:
        """The figures in their order, each on all data sets."""
        return [Row(result, figure) for figure in FIGURES for result in self.results if figure in result.values]

    def lines(self) -> Iterator[str]:
        """To print."""
        yield f"Medians of {self.plan.rounds} rounds ({self.plan.few} of those that take long), order shuffled; ↑ more is better,"
        yield "↓ less is. Ratios are shmgen's figure by the other's in the same round: median (lowest to highest)."
        if self.rows:
            yield ""
            yield from _markdown(self._table())
        if self.others:
            yield ""
            rows = [["sources and functions", "median (least to most)"]]
            rows += [[other.title, _spread(other.values) + other.unit] for other in self.others]
            yield from _markdown(iter(rows))
        yield ""
        yield self._circumstances()
        if absent := missing():
            yield f"Left out, because not installed: {', '.join(absent)}."
        for result in self.results:
            for name, why in result.failed.items():
                yield f"Left out of {result.contest.name}: {name}, which failed: {why}"

    def write(self, folder: Path) -> Iterator[str]:
        """The JSON and the plot; says where they are."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "bench.json").write_text(json.dumps(self._json(), indent=1, ensure_ascii=False) + "\n")
        yield f"Figures of all rounds: {folder / 'bench.json'}"
        try:
            from benchmarks.plot import plot
        except ImportError as error:
            yield f"No plot: {error}"
        else:
            if self.rows:
                plot(self.rows, folder / "bench.png", self._circumstances())
                yield f"Plot: {folder / 'bench.png'}"

    def _table(self) -> Iterator[list[str]]:
        yield ["", "samples", *ALL, "limit", "shmgen/limit", "shmgen/limit-held", "shmgen/best peer"]
        for row in self.rows:
            limit, peer = row.result.limit(row.figure), row.result.best_peer(row.figure)
            best = f"{peer} {row.ratio(peer)}" if peer else "-"
            values = [row.median(name) for name in (*ALL, limit)]
            yield [f"{row.arrow} {row.title}", row.case, *values, row.ratio(limit), row.ratio("limit-held"), best]

    def _json(self) -> dict[str, object]:
        return {
            "date": date.today().isoformat(),
            "commit": _commit(),
            "machine": _machine(),
            "versions": {"python": platform.python_version(), **_versions()},
            "plan": {"rounds": self.plan.rounds, "few": self.plan.few, "seconds": self.plan.seconds, "quick": self.plan.quick},
            "not_installed": missing(),
            "failed": {result.contest.name: result.failed for result in self.results if result.failed},
            "contests": [
                {
                    "contest": row.result.contest.name,
                    "figure": row.figure,
                    "title": row.title,
                    "samples": row.case,
                    "more_is_better": FIGURES[row.figure].more,
                    "limit": row.result.limit(row.figure),
                    "best_peer": row.result.best_peer(row.figure),
                    "rounds": row.values,
                }
                for row in self.rows
            ],
            "others": [{"title": other.title, "unit": other.unit, "rounds": other.values} for other in self.others],
        }

    def _circumstances(self) -> str:
        """Where, when and on what it was measured."""
        versions = ", ".join(f"{name} {found}" for name, found in _versions().items() if name != "shmgen")
        return f"{_machine()}; Python {platform.python_version()}, {versions}; {date.today().isoformat()}; {_commit()}."


def _spread(ratios: list[float]) -> str:
    if any(map(math.isnan, ratios)):
        return "-"
    if len(ratios) == 1:
        return f"{ratios[0]:.2f}"
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _markdown(rows: Iterator[list[str]]) -> Iterator[str]:
    head, *body = rows
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    rule = ["-" * widths[0], "-" * widths[1], *("-" * (width - 1) + ":" for width in widths[2:])]
    for first, *others in (head, rule, *body):
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        yield f"| {' | '.join(cells)} |"


def _machine() -> str:
    return f"{_processor()}, {len(os.sched_getaffinity(0))} cores, Linux {platform.release()}"


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


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
