"""The output of the command line: a progress bar, tables, JSON, a plot.

A file's name is never taken for markup. Characters that the stream can't encode, or that control a terminal, are escaped.
"""

from __future__ import annotations

import io
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from shmgen._tools.recommend import MARGIN, counted
from shmgen.errors import InputError

if TYPE_CHECKING:
    from shmgen._plan.damaged_samples import Damaged
    from shmgen._tools.pack import Packed
    from shmgen._tools.recommend import Measurement
    from shmgen._tools.scan import ScanReport
    from shmgen._tools.tune import Tuning

MAX_ROWS = 20
"""The most rows of a table: a folder may have as many shapes, or reasons, as files."""

WIDTH = 120
"""Columns of a table if standard output is no terminal."""


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show a bar on standard error, if that is a terminal; gives the function to call with the progress in counting ``what``."""
    if not (sys.stderr.isatty() and find_spec("rich")):
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (BarColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn(), TimeRemainingColumn())
    # A thread that draws more often would disturb a measurement.
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=2, transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(done: int, total: int, now: str) -> None:
            words = f"{done:,} of {total:,} {what}{now and f', {now}'}"
            bar.update(task, completed=done, total=total, description=words)

        yield show


@contextmanager
def printed() -> Iterator[Any]:
    from rich.console import Console

    console = Console(markup=False, emoji=False, highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    with console.capture() as text:
        yield console
    for line in text.get().splitlines():
        sys.stdout.write(line.rstrip() + "\n")


def table(titles: Iterable[tuple[str, str]], rows: Sequence[Sequence[str]]) -> Any:
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, (title, side) in enumerate(titles):
        # Titles may be broken into lines, but not numbers.
        widest = max(len(row[place]) for row in rows) if side == "right" else None
        made.add_column(title, justify=side, min_width=widest, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        made.add_row(*row)
    return made


def damaged_table(damaged: Iterable[Damaged]) -> Any:
    by_reason = defaultdict(list)
    for one in damaged:
        by_reason[one.reason].append(escaped(str(one.id)))
    groups = sorted(by_reason.items(), key=lambda group: -len(group[1]))
    rows = []
    for reason, ids in groups[:MAX_ROWS]:
        more = f" and {len(ids) - 3:,} more" if len(ids) > 3 else ""
        rows.append([f"{len(ids):,}", escaped(reason), ", ".join(ids[:3]) + more])
    if rest := groups[MAX_ROWS:]:
        rows.append([f"{sum(len(ids) for _, ids in rest):,}", f"{len(rest):,} other reasons", "--json names all"])
    return table([("samples", "right"), ("damaged", "left"), ("ids", "left")], rows)


def escaped(name: str) -> str:
    """``name``, or its `repr` if it has control characters."""
    return name if name.isprintable() else repr(name)


def write_json(content: dict[str, Any]) -> None:
    sys.stdout.write(f"{json.dumps(content)}\n")


def print_scan(report: ScanReport, data: str, full: bool) -> None:
    from rich.filesize import decimal as size

    what = "headers and sizes" if report.kinds and not full else "all data"
    kinds = [
        [str(kind.shape), str(kind.dtype), f"{kind.files:,}", size(kind.bytes), "damaged" if kind.reason else "good"]
        for kind in report.kinds[:MAX_ROWS]
    ]
    if rest := report.kinds[MAX_ROWS:]:
        files, total = sum(kind.files for kind in rest), sum(kind.bytes for kind in rest)
        kinds.append([f"and {len(rest):,} others", "", f"{files:,}", size(total), ""])
    with printed() as console:
        console.print(f"{escaped(data)}: {what} of {counted(report.samples, 'sample')} checked in {report.seconds:,.1f} s")
        if kinds:
            titles = [("shape", "left"), ("dtype", "left"), ("files", "right"), ("bytes", "right"), ("", "left")]
            console.print(table(titles, kinds))
        if report.damaged:
            console.print(damaged_table(report.damaged))
        for remark in report.remarks:
            console.print(remark)
        if not report.complete:
            console.print("interrupted: not all samples were checked")
        console.print(f"damaged: {len(report.damaged):,} of {counted(report.samples, 'sample')}")


def scan_json(report: ScanReport, data: str, full: bool) -> dict[str, Any]:
    expected = report.expected
    return {
        "data": data,
        "full": full,
        "complete": report.complete,
        "samples": report.samples,
        "seconds": round(report.seconds, 3),
        "expected": expected and {"shapes": sorted(set(expected.shapes)), "dtype": str(expected.numpy_dtype)},
        "kinds": [{**kind._asdict(), "dtype": str(kind.dtype)} for kind in report.kinds],
        "remarks": report.remarks,
        "damaged": [one._asdict() for one in report.damaged],
    }


def print_packed(packed: Packed, target: str) -> None:
    with printed() as console:
        if packed.damaged:
            console.print(damaged_table(packed.damaged))
            console.print(f"damaged: {len(packed.damaged):,} of {counted(packed.samples, 'sample')}")
        if packed.rows:
            words = f"{packed.rows:,} rows of shape {packed.shape}, {packed.dtype}, in {packed.seconds:,.1f} s"
        else:
            words = "not packed: repair the files, leave their ids out of --ids, or give --skip-damaged"
        console.print(f"{escaped(target)}: {words}", soft_wrap=True)
        for remark in packed.remarks:
            console.print(remark, soft_wrap=True)


def print_tuning(tuning: Tuning, folder: str) -> None:
    from rich.filesize import decimal as size

    warm, cold = _by_warmth(tuning)
    titles = ["workers", "samples/s", "MB/s", "ms/batch", "first batch", "CPU s/GB", "memory", "I/O wait"]
    titles += ["cold samples/s", "first batch"] if cold else []
    rows = [
        [
            str(one.workers),
            f"{one.samples:,.0f}",
            f"{one.bytes / 1e6:,.0f}",
            f"{1000 / one.rate:,.2f}",
            f"{1000 * one.first_batch:,.0f} ms",
            f"{one.cpu:,.2f}",
            size(one.memory),
            f"{one.io_wait:.0%}",
            *([f"{cold[place].samples:,.0f}", f"{1000 * cold[place].first_batch:,.0f} ms"] if cold else []),
            "use this" if one.workers == tuning.workers else "",
        ]
        for place, one in enumerate(warm)
    ]
    with printed() as console:
        part = "" if tuning.samples == tuning.of else f" of {tuning.of:,}"
        console.print(
            f"{escaped(folder)}: {tuning.samples:,}{part} samples in batches of {tuning.batch_size}, {warm[0].slots} slots, "
            "read again and again"
        )
        console.print(table([(title, "right") for title in (*titles, "")], rows))
        console.print("I/O wait: the part of the time with something to read in which workers waited for a disk or network")
        for remark in tuning.remarks:
            console.print(remark)
        console.print(f"workers={tuning.workers}: {tuning.reason}")


def check_plot(name: str) -> None:
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        raise InputError("--plot needs matplotlib: pip install matplotlib") from None
    formats = FigureCanvasBase.get_supported_filetypes()
    if PurePath(name).suffix[1:].lower() not in formats:
        raise InputError(f"--plot {name}: expected a name that ends in one of .{', .'.join(sorted(formats))}")


def write_plot(tuning: Tuning, name: str) -> None:
    # Without pyplot, a figure needs no display, and nothing stays open.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for measurements, label in zip(_by_warmth(tuning), ("files in memory", "files not in memory"), strict=True):
        if measurements:
            axes.plot([one.workers for one in measurements], [one.rate for one in measurements], marker="o", label=label)
    if tuning.step_ms is not None:
        needed = 1000 / tuning.step_ms
        axes.axhline(needed, color="black", linewidth=1, label=f"a {tuning.step_ms:g} ms step")
        axes.axhline(MARGIN * needed, color="black", linewidth=1, linestyle=":", label=f"{MARGIN:g} x that")
    axes.axvline(tuning.workers, color="grey", linewidth=1, linestyle="--", label=f"workers={tuning.workers}")
    axes.set(xlabel="workers", ylabel=f"batches of {tuning.batch_size} a second", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(tuning.reason, fontsize="medium", wrap=True)
    figure.legend(loc="outside lower center", ncols=3)  # within the axes it would hide lines
    figure.savefig(name)


def _by_warmth(tuning: Tuning) -> tuple[list[Measurement], list[Measurement]]:
    warm = [one for one in tuning.measurements if not one.cold]
    return warm, [one for one in tuning.measurements if one.cold]
