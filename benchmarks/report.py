"""What a run ends with: tables in Markdown, which it also puts where they are shown; the JSON; the plot."""

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
from benchmarks.matrix import ALL, COSTS, FIGURES, MAIN

PACKAGES = ("numpy", "tensorflow", "keras", "torch", "grain", "spdl-core", "shmgen")


@dataclass(frozen=True)
class Beside:
    """What `beside.hold` gave for one kind of data.

    Attributes:
        title: of the kind.
        values: samples a second by contestant, round by round.
    """

    title: str
    values: dict[str, list[float]]

    def lines(self) -> Iterator[list[str]]:
        """Of the table: the kind, a contestant, its figure, shmgen's, and the ratio of the two in each round."""
        ours = self.values["shmgen"]
        for name, theirs in self.values.items():
            if name != "shmgen":
                ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
                yield [self.title, name, f"{median(theirs):,.0f}", f"{median(ours):,.0f}", _spread(ratios)]


@dataclass(frozen=True)
class Row:
    """One figure of one contest: a column of a table, and a panel of the plot.

    Attributes:
        result: of the contest.
        figure: of `FIGURES`.
    """

    result: Result
    figure: str

    @property
    def title(self) -> str:
        figure = FIGURES[self.figure]
        return f"{figure.title}, {figure.unit}: {self.result.contest.name}"

    @property
    def table(self) -> str:
        """That it belongs to."""
        return self.result.contest.table if self.figure == self.result.main else COSTS

    @property
    def column(self) -> str:
        """Its head there."""
        figure = FIGURES[self.figure]
        return self.result.contest.column if self.figure == self.result.main else f"{figure.title}, {figure.unit}"

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

    def median(self, contestant: str) -> str:
        """With the setting that was best, if there was a choice."""
        if contestant not in self.values:
            return ""
        setting = self.result.settings.get(contestant)
        value = f"{median(self.values[contestant]):,.{FIGURES[self.figure].digits}f}"
        return f"{value} ({setting})" if setting else value

    def ratio(self, other: str) -> str:
        """Of shmgen's figure to that of another."""
        if other not in self.values or "shmgen" not in self.values:
            return ""
        return _spread(self.result.ratios(self.figure, "shmgen", other))

    def best_peer(self) -> str:
        """With the ratio to it; or its own figure, where that may be 0."""
        name = self.result.best_peer(self.figure)
        if not name or "shmgen" not in self.values:
            return ""
        return f"{name}: {self.ratio(name) if FIGURES[self.figure].has_ratio else self.median(name)}"


@dataclass(frozen=True)
class Report:
    """Of a run.

    Attributes:
        results: of the contests.
        beside: shmgen beside the line that users write.
        plan: how much was.
        left_out: contests that could not be held, and why.
    """

    results: list[Result]
    beside: list[Beside]
    plan: Plan
    left_out: dict[str, str]

    @property
    def rows(self) -> list[Row]:
        """The figures of the contests, in their order."""
        return [Row(result, figure) for result in self.results for figure in result.values]

    def lines(self) -> Iterator[str]:
        """To print: the main figures, then all."""
        yield from self.main()
        yield ""
        yield from self.all()

    def main(self) -> Iterator[str]:
        """The figures that shmgen is judged by, for its README."""
        yield "Medians (lowest to highest) of the rounds."
        yield ""
        results = {result.contest.name: result for result in self.results}
        table = [["", "samples", "shmgen", "of the other's", "best peer: shmgen's figure by its"]]
        for title, contest, figure, other in MAIN:
            if contest not in results:
                continue
            row = Row(results[contest], figure)
            if "shmgen" in row.values:
                table.append([title, row.case, row.median("shmgen"), row.ratio(other), row.best_peer()])
        yield from _markdown(table)
        yield ""
        yield from self._notes()

    def all(self) -> Iterator[str]:
        """Every contestant's figures."""
        yield f"Medians of {self.plan.rounds} rounds of shmgen and the limits, of {self.plan.few} of the others and where turns"
        yield "take long, in random order. Ratios are shmgen's figure by the other's in the same round: median (lowest"
        yield "to highest)."
        yield "In brackets behind a figure: reads in flight, where several numbers were tried, and this was best."
        yield "↑ more is better, ↓ less is."
        tables: dict[str, list[Row]] = {}
        for row in self.rows:
            tables.setdefault(row.table, []).append(row)
        for title, columns in tables.items():
            yield ""
            yield f"**{title}**"
            yield ""
            yield from _markdown(_table(columns))
        if self.beside:
            yield ""
            yield "**Beside the line that users write, 2 workers, samples/s**"
            yield ""
            lines = [line for kind in self.beside for line in kind.lines()]
            yield from _markdown([["", "the line", "its figure", "shmgen", "shmgen / it"], *lines])
        yield ""
        yield from self._notes()

    def _notes(self) -> Iterator[str]:
        """Where and with what it was measured; what is not there, and why."""
        yield self._circumstances()
        if self.plan.quick:
            yield "A quick run: fewer files, rounds and contestants."
        if absent := missing():
            yield f"Left out, because not installed: {', '.join(absent)}."
        for name, why in self.left_out.items():
            yield f"Left out: {name}: {why}."
        for result in self.results:
            for name, why in result.failed.items():
                yield f"Left out of {result.contest.name}: {name}, which failed: {why.splitlines()[-1]}"

    def put_into(self, file: Path) -> None:
        """Renew what stands in a Markdown file between ``<!-- bench: main -->`` (or ``all``) and ``<!-- end -->``."""
        text = file.read_text()
        for which, lines in (("main", self.main), ("all", self.all)):
            begin, end = f"<!-- bench: {which} -->\n", "<!-- end -->"
            before, found, rest = text.partition(begin)
            if found:
                text = "".join([before, begin, "\n", *(f"{line}\n" for line in lines()), "\n", end, rest.partition(end)[2]])
        file.write_text(text)

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

    def _json(self) -> dict[str, object]:
        return {
            "date": date.today().isoformat(),
            "commit": _commit(),
            "machine": _machine(),
            "versions": {"python": platform.python_version(), **_versions()},
            "plan": {"rounds": self.plan.rounds, "few": self.plan.few, "seconds": self.plan.seconds, "quick": self.plan.quick},
            "not_installed": missing(),
            "failed": {result.contest.name: result.failed for result in self.results if result.failed},
            "left_out": self.left_out,
            "contests": [
                {
                    "contest": row.result.contest.name,
                    "figure": row.figure,
                    "title": row.title,
                    "samples": row.case,
                    "more_is_better": FIGURES[row.figure].more,
                    "best_peer": row.result.best_peer(row.figure),
                    "settings": row.result.settings,
                    "rounds": row.values,
                }
                for row in self.rows
            ],
            "beside": [{"title": kind.title, "rounds": kind.values} for kind in self.beside],
        }

    def _circumstances(self) -> str:
        """Where, when and on what it was measured."""
        versions = ", ".join(f"{name} {found}" for name, found in _versions().items() if name != "shmgen")
        return f"{_machine()}; Python {platform.python_version()}, {versions}; {date.today().isoformat()}; {_commit()}."


def _table(rows: list[Row]) -> list[list[str]]:
    """A line for each contestant, and then the ratios."""
    there = {name for row in rows for name in row.values}
    bounds = list(dict.fromkeys(name for row in rows for name in row.result.bounds(row.figure)))
    table = [["", *(f"{row.arrow} {row.column}" for row in rows)]]
    for name in (*(name for name in ALL if name in there), *bounds):
        table.append([name, *(row.median(name) for row in rows)])
    for name in bounds:
        table.append([f"**shmgen / {name}**", *(row.ratio(name) for row in rows)])
    table.append(["**shmgen / best peer**", *(row.best_peer() for row in rows)])
    return table


def _spread(values: list[float], digits: int = 2) -> str:
    if not values or any(map(math.isnan, values)):
        return ""
    if len(values) == 1:
        return f"{values[0]:,.{digits}f}"
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def _markdown(table: list[list[str]]) -> Iterator[str]:
    """Without columns that are empty."""
    head, *body = (list(cells) for cells in zip(*(column for column in zip(*table, strict=True) if any(column)), strict=True))
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
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
