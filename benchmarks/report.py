"""The report of a run: tables in Markdown, which also go into the READMEs; JSON; and a plot."""

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
    """The result of `beside.measure` for one kind of data.

    Attributes:
        title: name of the kind.
        values: samples a second in each round, by contestant.
    """

    title: str
    values: dict[str, list[float]]

    def lines(self) -> Iterator[list[str]]:
        """Rows of the table: the kind, a contestant, its median, shmgen's median, and their ratios."""
        ours = self.values["shmgen"]
        for name, theirs in self.values.items():
            if name != "shmgen":
                ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
                yield [self.title, name, f"{median(theirs):,.0f}", f"{median(ours):,.0f}", _spread(ratios)]


@dataclass(frozen=True)
class Row:
    """One figure of one contest: a column of a table, and a panel of the plot."""

    result: Result
    figure: str

    @property
    def title(self) -> str:
        figure = FIGURES[self.figure]
        return f"{figure.title}, {figure.unit}: {self.result.contest.name}"

    @property
    def table(self) -> str:
        """Title of the table."""
        return self.result.contest.table if self.figure == self.result.main else COSTS

    @property
    def column(self) -> str:
        """Title of the column."""
        figure = FIGURES[self.figure]
        return self.result.contest.column if self.figure == self.result.main else f"{figure.title}, {figure.unit}"

    @property
    def case(self) -> str:
        size = self.result.case.sample_bytes
        power = min(2, int(math.log(size, 1024)))
        return f"{self.result.case.title} ({size // 1024**power} {('B', 'KiB', 'MiB')[power]})"

    @property
    def arrow(self) -> str:
        """An arrow up if more is better, else down."""
        return "↑" if FIGURES[self.figure].more_is_better else "↓"

    @property
    def values(self) -> dict[str, list[float]]:
        return self.result.values[self.figure]

    def median(self, contestant: str) -> str:
        """A contestant's median, with its best setting if several were tried."""
        if contestant not in self.values:
            return ""
        setting = self.result.settings.get(contestant)
        value = f"{median(self.values[contestant]):,.{FIGURES[self.figure].digits}f}"
        return f"{value} ({setting})" if setting else value

    def ratio(self, other: str) -> str:
        """The ratios of shmgen's values to another contestant's."""
        if other not in self.values or "shmgen" not in self.values:
            return ""
        return _spread(self.result.ratios(self.figure, "shmgen", other))

    def best_peer(self) -> str:
        """The best peer's name with shmgen's ratio to it, or with its own median if the figure has no ratio."""
        name = self.result.best_peer(self.figure)
        if not name or "shmgen" not in self.values:
            return ""
        return f"{name}: {self.ratio(name) if FIGURES[self.figure].has_ratio else self.median(name)}"


@dataclass(frozen=True)
class Report:
    """The report of a run.

    Attributes:
        results: results of the contests.
        beside: results for each kind of data, against the line that users write.
        plan: the plan of the run.
        left_out: contests that could not be run, with the reasons.
    """

    results: list[Result]
    beside: list[Beside]
    plan: Plan
    left_out: dict[str, str]

    @property
    def rows(self) -> list[Row]:
        """All figures of all contests, in order."""
        return [Row(result, figure) for result in self.results for figure in result.values]

    def lines(self) -> Iterator[str]:
        """The printed report: the main figures, then all."""
        yield from self.main()
        yield ""
        yield from self.all()

    def fit(self) -> Iterator[str]:
        """The figures of ``fit`` in a sentence, for the top of the project's README."""
        for row in self.rows:
            if row.result.contest.name == row.figure == "fit" and {"naive", "shmgen"} <= row.values.keys():
                yield f"`fit` of a small model on files of 128 KiB, two processors: **{row.median('shmgen')} samples a second**;"
                yield f"with the blog's generator {row.median('naive')}. (`make bench`)"

    def main(self) -> Iterator[str]:
        """The main figures, for the project's README."""
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
        """The figures of every contestant, for the benchmarks' README."""
        few_rounds = self.plan.few_rounds
        yield f"Medians of {self.plan.rounds} rounds of shmgen and the bounds, and of {few_rounds} rounds of the others;"
        yield f"where turns take long, {few_rounds} rounds of all. Ratios are shmgen's figure divided by the other's"
        yield "in the same round: median (lowest to highest)."
        yield "In brackets after a figure: the number of reads in flight, where several were tried and this was best."
        yield "↑ more is better, ↓ less is better."
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
        """Machine and versions; then what is left out, and why."""
        yield self._environment()
        if self.plan.quick:
            yield "A quick run, with fewer files, rounds and contestants."
        if absent := missing():
            yield f"Left out, because not installed: {', '.join(absent)}."
        for name, why in self.left_out.items():
            yield f"Left out: {name}: {why}."
        for result in self.results:
            for name, why in result.failed.items():
                yield f"Left out of {result.contest.name}: {name}, which failed: {why.splitlines()[-1]}"

    def put_into(self, file: Path) -> None:
        """Replace the text between ``<!-- bench: fit -->`` (or ``main``, ``all``) and ``<!-- end -->`` in a Markdown file."""
        text = file.read_text()
        for which, lines in (("fit", self.fit), ("main", self.main), ("all", self.all)):
            begin, end = f"<!-- bench: {which} -->\n", "<!-- end -->"
            before, found, rest = text.partition(begin)
            if found:
                text = "".join([before, begin, "\n", *(f"{line}\n" for line in lines()), "\n", end, rest.partition(end)[2]])
        file.write_text(text)

    def write(self, folder: Path) -> Iterator[str]:
        """Write the JSON and the plot, and yield a line about each."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "bench.json").write_text(json.dumps(self._json(), indent=1, ensure_ascii=False) + "\n")
        yield f"Figures of all rounds: {folder / 'bench.json'}"
        try:
            from benchmarks.plot import plot
        except ImportError as error:
            yield f"No plot: {error}"
        else:
            if self.rows:
                plot(self.rows, folder / "bench.png", self._environment())
                yield f"Plot: {folder / 'bench.png'}"

    def _json(self) -> dict[str, object]:
        return {
            "date": date.today().isoformat(),
            "commit": _commit(),
            "machine": _machine(),
            "versions": {"python": platform.python_version(), **_versions()},
            "plan": {
                "rounds": self.plan.rounds,
                "few_rounds": self.plan.few_rounds,
                "seconds": self.plan.seconds,
                "quick": self.plan.quick,
            },
            "not_installed": missing(),
            "failed": {result.contest.name: result.failed for result in self.results if result.failed},
            "left_out": self.left_out,
            "contests": [
                {
                    "contest": row.result.contest.name,
                    "figure": row.figure,
                    "title": row.title,
                    "samples": row.case,
                    "more_is_better": FIGURES[row.figure].more_is_better,
                    "best_peer": row.result.best_peer(row.figure),
                    "settings": row.result.settings,
                    "rounds": row.values,
                }
                for row in self.rows
            ],
            "beside": [{"title": kind.title, "rounds": kind.values} for kind in self.beside],
        }

    def _environment(self) -> str:
        """Machine, versions, date and commit."""
        versions = ", ".join(f"{name} {found}" for name, found in _versions().items() if name != "shmgen")
        return f"{_machine()}; Python {platform.python_version()}, {versions}; {date.today().isoformat()}; {_commit()}."


def _table(rows: list[Row]) -> list[list[str]]:
    """A row for each contestant, followed by rows of ratios."""
    present = {name for row in rows for name in row.values}
    bounds = list(dict.fromkeys(name for row in rows for name in row.result.bounds(row.figure)))
    table = [["", *(f"{row.arrow} {row.column}" for row in rows)]]
    for name in (*(name for name in ALL if name in present), *bounds):
        table.append([name, *(row.median(name) for row in rows)])
    for name in bounds:
        table.append([f"**shmgen / {name}**", *(row.ratio(name) for row in rows)])
    table.append(["**shmgen / best peer**", *(row.best_peer() for row in rows)])
    return table


def _spread(values: list[float]) -> str:
    """The median with the lowest and highest value."""
    if not values or any(map(math.isnan, values)):
        return ""
    if len(values) == 1:
        return f"{values[0]:,.2f}"
    return f"{median(values):,.2f} ({min(values):,.2f} to {max(values):,.2f})"


def _markdown(table: list[list[str]]) -> Iterator[str]:
    """A Markdown table, without empty columns."""
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
