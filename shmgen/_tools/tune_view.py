"""How the command line shows a tuning: a progress bar, a table, JSON, a plot."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO

from shmgen._tools.recommend import MARGIN, Measurement
from shmgen._tools.scan_view import WIDTH, has_rich, shown
from shmgen._tools.tune import Progress, Tuning
from shmgen.errors import InputError


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """Show a bar on standard error, if that is a terminal; gives the function to call with the progress."""
    if not (sys.stderr.isatty() and has_rich()):
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    # A thread that draws more often would disturb the measurement.
    with Bar(*columns, console=Console(stderr=True), refresh_per_second=2, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda progress: bar.update(task, completed=progress.done, total=progress.total, description=progress.now)


def write_json(tuning: Tuning, folder: str, file: IO[str]) -> None:
    """Write the tuning as a JSON object on one line."""
    json.dump({"data_dir": folder, **asdict(tuning)}, file)
    file.write("\n")


def print_table(tuning: Tuning, folder: str) -> None:
    """Print the tuning as a table on standard output."""
    from rich import box
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table

    console = Console(markup=False, emoji=False, highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    warm, cold = _by_warmth(tuning)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    titles = ["workers", "samples/s", "MB/s", "ms/batch", "first batch", "CPU s/GB", "memory", "I/O wait"]
    for title in [*titles, *(["cold samples/s", "first batch"] if cold else [])]:
        table.add_column(title, justify="right")
    table.add_column("")
    for one in warm:
        cells = [
            str(one.workers),
            f"{one.samples:,.0f}",
            f"{one.bytes / 1e6:,.0f}",
            f"{1000 / one.rate:,.2f}",
            _milliseconds(one.first_batch),
            f"{one.cpu:,.2f}",
            decimal(one.memory),
            f"{one.io_wait:.0%}",
        ]
        cells += [cell for other in cold if other.workers == one.workers for cell in _cold_cells(other)]
        table.add_row(*cells, "use this" if one.workers == tuning.workers else "")
    with console.capture() as text:
        part = "" if tuning.samples == tuning.of else f" of {tuning.of:,}"
        console.print(
            f"{shown(folder)}: {tuning.samples:,}{part} samples in batches of {tuning.batch_size}, {warm[0].slots} slots, "
            "read again and again"
        )
        console.print(table)
        console.print("I/O wait: the part of the time with something to read in which workers waited for a disk or network")
        for remark in tuning.remarks:
            console.print(remark)
        console.print(f"workers={tuning.workers}: {tuning.reason}")
    for line in text.get().splitlines():
        sys.stdout.write(line.rstrip() + "\n")


def figure_format(name: str) -> str:
    """The format that the name of a plot asks for.

    Raises:
        InputError: there is no matplotlib, or it has no such format.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        raise InputError("--plot needs matplotlib: pip install matplotlib") from None
    formats: dict[str, str] = FigureCanvasBase.get_supported_filetypes()
    format = Path(name).suffix.removeprefix(".").lower()
    if format not in formats:
        raise InputError(f"--plot {name}: expected a name that ends in one of .{', .'.join(sorted(formats))}")
    return format


def write_plot(tuning: Tuning, file: IO[bytes], format: str) -> None:
    """Draw the rates by workers, and the rate that the trainer needs."""
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
    # Beside the lines, which it would hide else.
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(file, format=format)


def _by_warmth(tuning: Tuning) -> tuple[list[Measurement], list[Measurement]]:
    warm = [one for one in tuning.measurements if not one.cold]
    return warm, [one for one in tuning.measurements if one.cold]


def _cold_cells(one: Measurement) -> list[str]:
    return [f"{one.samples:,.0f}", _milliseconds(one.first_batch)]


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms"
