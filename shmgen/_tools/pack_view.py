"""How the command line shows a pack or an unpack: a progress bar, and what came of it, as text or JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from shmgen._tools.packed import Outcome, Progress
from shmgen._tools.scan_view import counted, damaged_table, has_rich, printed, shown


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """Show a bar on standard error, if that is a terminal; gives the function to call with the progress."""
    if not (sys.stderr.isatty() and has_rich()):
        yield lambda _: None
        return
    from rich.console import Console
    from rich.filesize import decimal
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), refresh_per_second=5, transient=True) as bar:
        task = bar.add_task("", total=None)

        def progress(progress: Progress) -> None:
            words = f"{progress.rows:,} of {progress.total:,} rows {progress.doing}, {decimal(progress.bytes)}"
            bar.update(task, completed=progress.rows, total=progress.total, description=words)

        yield progress


def write_json(outcome: Outcome, target: str, file: IO[str]) -> None:
    """Write what came of it as a JSON object on one line."""
    json.dump({"target": target, **outcome._asdict(), "damaged": [damage._asdict() for damage in outcome.damaged]}, file)
    file.write("\n")


def print_outcome(outcome: Outcome, target: str, what: str, undone: str) -> None:
    """Print what came of it on standard output.

    Args:
        outcome: what came of it.
        target: the file or folder that was to be made.
        what: what a row of it is.
        undone: what to say in place of that if anything is damaged.
    """
    from rich.filesize import decimal

    before = outcome.rows - outcome.written - len(outcome.damaged)
    there = f", {before:,} of which were there already" if before else ""
    done = f"{outcome.rows:,} {what}, {decimal(outcome.bytes)}, in {outcome.seconds:,.1f} s{there}"
    with printed() as console:
        if outcome.damaged:
            console.print(damaged_table(outcome.damaged))
            console.print(f"damaged: {len(outcome.damaged):,} of {counted(outcome.rows)}")
        console.print(f"{shown(target)}: {undone if outcome.damaged else done}", soft_wrap=True)
        for remark in outcome.remarks:
            console.print(remark, soft_wrap=True)
