"""How the command line shows a scan: a progress bar, a table, JSON."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import IO, Any, TypeVar

from shmgen._tools.scan import Progress
from shmgen._tools.scan_report import Damage, Kind, Report

ProgressT = TypeVar("ProgressT")

MAX_ROWS = 20
"""The most rows of a table: a folder may have as many shapes, or reasons, as files."""

MAX_NAMED = 3
"""The most ids that are named for one reason."""

WIDTH = 120
"""Columns of a table if standard output is no terminal."""


def has_rich() -> bool:
    """Whether rich is installed, which shows bars and tables."""
    try:
        import rich  # noqa: F401  # only to know whether it is installed
    except ImportError:
        return False
    return True


@contextmanager
def live_bar(described: Callable[[ProgressT], tuple[int, int | None, str]]) -> Iterator[Callable[[ProgressT], None]]:
    """Show a bar on standard error, if that is a terminal; gives the function to call with the progress.

    Args:
        described: of a progress: how much is done, of how much, if that is known, and in words.
    """
    if not (sys.stderr.isatty() and has_rich()):
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), refresh_per_second=5, transient=True) as bar:
        task = bar.add_task("", total=None)

        def progress(progress: ProgressT) -> None:
            done, total, words = described(progress)
            bar.update(task, completed=done, total=total, description=words)

        yield progress


def progress_bar() -> AbstractContextManager[Callable[[Progress], None]]:
    """A `live_bar` of a scan."""
    return live_bar(_described)


def _described(progress: Progress) -> tuple[int, int | None, str]:
    from rich.filesize import decimal

    words = f"{progress.files:,} of {progress.listed:,}{'' if progress.all_listed else ' or more'} files"
    if progress.read:
        words += f", {decimal(progress.read)}"
    if progress.damaged:
        words += f", {progress.damaged:,} damaged"
    return progress.files, progress.listed if progress.all_listed else None, words


def write_json(report: Report, file: IO[str]) -> None:
    """Write the report as a JSON object on one line."""
    expected = report.expected and {"shapes": sorted(set(report.expected.shapes)), "dtype": str(report.expected.numpy_dtype)}
    head: dict[str, Any] = {
        "data_dir": report.folder,
        "full": report.full,
        "complete": report.complete,
        "files": report.files,
        "bytes": report.bytes,
        "seconds": round(report.seconds, 3),
        "expected": expected,
        "kinds": [{**kind._asdict(), "dtype": str(kind.dtype)} for kind in report.kinds],
        "remarks": report.remarks,
        "damaged": [damage._asdict() for damage in report.damaged],
    }
    json.dump(head, file)
    file.write("\n")


def print_table(report: Report) -> None:
    """Print the report as tables on standard output."""
    looked = "all bytes" if report.full else "headers and sizes"
    with printed() as console:
        console.print(f"{shown(report.folder)}: {looked} of {counted(report.files)} checked in {report.seconds:,.1f} s")
        if report.kinds:
            console.print(_kinds(report.kinds))
        if report.damaged:
            console.print(damaged_table(report.damaged))
        for remark in report.remarks:
            console.print(remark)
        if not report.complete:
            console.print("interrupted: not all files were checked")
        console.print(f"damaged: {len(report.damaged):,} of {counted(report.files)}")


@contextmanager
def printed() -> Iterator[Any]:
    """A console, all that is printed on which goes to standard output at the end."""
    from rich.console import Console

    # A name may be anything: it is no markup, letters that the encoding lacks are escaped, and `shown` escapes controls.
    console = Console(markup=False, emoji=False, highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    with console.capture() as text:
        yield console
    for line in text.get().splitlines():
        sys.stdout.write(line.rstrip() + "\n")


def _kinds(kinds: list[Kind]) -> Any:
    from rich.filesize import decimal

    table = _table()
    table.add_column("shape", overflow="fold")
    table.add_column("dtype", overflow="fold")
    table.add_column("files", justify="right", no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("")
    for kind in kinds[:MAX_ROWS]:
        verdict = "damaged" if kind.reason else "good"
        table.add_row(str(kind.shape), str(kind.dtype), f"{kind.files:,}", decimal(kind.bytes), verdict)
    if rest := kinds[MAX_ROWS:]:
        files, size = sum(kind.files for kind in rest), sum(kind.bytes for kind in rest)
        table.add_row(f"and {len(rest):,} others", "", f"{files:,}", decimal(size), "")
    return table


def damaged_table(damaged: list[Damage]) -> Any:
    """What is damaged, and why: a line for each reason, with some ids."""
    by_reason: dict[str, list[Damage]] = {}
    for damage in damaged:
        by_reason.setdefault(damage.reason, []).append(damage)
    table = _table()
    table.add_column("files", justify="right", no_wrap=True)
    table.add_column("damaged", overflow="fold")
    table.add_column("ids", overflow="fold")
    groups = sorted(by_reason.items(), key=lambda group: -len(group[1]))
    for reason, group in groups[:MAX_ROWS]:
        ids = ", ".join(shown(damage.id) for damage in group[:MAX_NAMED])
        more = f" and {len(group) - MAX_NAMED:,} more" if len(group) > MAX_NAMED else ""
        table.add_row(f"{len(group):,}", reason, ids + more)
    if rest := groups[MAX_ROWS:]:
        table.add_row(f"{sum(len(group) for _, group in rest):,}", f"{len(rest):,} other reasons", "--json names all")
    return table


def _table() -> Any:
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, pad_edge=False)


def counted(files: int) -> str:
    return f"{files:,} {'file' if files == 1 else 'files'}"


def shown(name: str) -> str:
    """``name``, or its `repr` if it holds what can't be printed."""
    return name if name.isprintable() else repr(name)
