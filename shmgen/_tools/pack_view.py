"""How the command line shows a pack or an unpack: a progress bar, and what came of it, as text or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import IO

from shmgen._tools.packed import Outcome, Progress
from shmgen._tools.scan_view import counted, damaged_table, live_bar, printed, shown


def progress_bar() -> AbstractContextManager[Callable[[Progress], None]]:
    """A `live_bar` of a pack or an unpack."""
    return live_bar(_described)


def _described(progress: Progress) -> tuple[int, int | None, str]:
    from rich.filesize import decimal

    words = f"{progress.rows:,} of {progress.total:,} rows {progress.doing}, {decimal(progress.bytes)}"
    return progress.rows, progress.total, words


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
