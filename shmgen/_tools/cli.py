"""The command line: ``shmgen``, or ``python -m shmgen``.

Each command has a function that adds its parser, and one that runs it and returns the exit status. What a command needs is
imported when it runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from shmgen import __version__
from shmgen._checks import check_int
from shmgen._samples.sample_spec import SampleSpec
from shmgen._tools.arguments import (
    DAMAGED,
    GOOD,
    INTERRUPTED,
    UNABLE,
    add_folder_command,
    check_rich,
    int_from,
    open_file,
)
from shmgen._tools.cli_pack import add_pack, add_unpack
from shmgen.errors import InputError, ShmgenError

MAX_WORKERS = 256
"""A larger number of workers is taken for a typing error."""


def main(words: Sequence[str] | None = None, prog: str = "shmgen") -> int:
    """Run a command, and return its exit status.

    Args:
        words: of the command line, without the program's name; by default those that the process was started with.
        prog: the program's name, for usage and errors.
    """
    parser = argparse.ArgumentParser(prog=prog, description="Tools beside the loader.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"shmgen {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_scan(commands)
    _add_tune(commands)
    add_pack(commands)
    add_unpack(commands)
    arguments = parser.parse_args(words)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except ShmgenError as error:
        print(f"{arguments.prog}: {error}", file=sys.stderr)
        return UNABLE
    except KeyboardInterrupt:
        print(f"{arguments.prog}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNABLE
    return status


def _add_scan(commands: Any) -> None:
    scan = add_folder_command(
        commands,
        "scan",
        _scan,
        help="check a folder of .npy files before days of training",
        description="""\
Checks the .npy files under DATA_DIR, those in sub-folders too, and says which
of them a loader could not read: files that are truncated, empty, no .npy files,
can't be opened, hold Python objects, or have an unexpected shape or dtype.

The expected shape and dtype are those of most files, where --dim, --n-channels
and --dtype do not give them. As for the loader, files may be in Fortran order
or of another byte order, and are cast where NumPy calls that "same_kind", such
as float64 to float32.""",
        epilog="""\
exit status: 0 if all is good, 1 if anything is damaged, 2 if the scan can't be
done, 130 after Ctrl-C, which ends it with what has been found so far""",
    )
    scan.add_argument(
        "--full",
        action="store_true",
        help="read every byte, which finds what the disk can't read; NaN and infinite numbers are damage then",
    )
    scan.add_argument(
        "--workers", type=int_from(1), metavar="N", help="processes; by default one for each available processor, at most 8"
    )


def _scan(arguments: argparse.Namespace) -> int:
    from shmgen._tools.scan import Scan
    from shmgen._tools.scan_ids import ids_in
    from shmgen._tools.scan_view import print_table, progress_bar, write_json

    check_rich(arguments)
    with ExitStack() as stack:
        blocks = None
        if arguments.ids is not None:
            blocks = ids_in(stack.enter_context(open_file(arguments.ids, "rb", "--ids")), arguments.ids)
        given = SampleSpec.checked(arguments.dim, arguments.n_channels, arguments.dtype)
        scan = Scan(arguments.folder, blocks, given, full=arguments.full, workers=arguments.workers)
        # Opened once the arguments are known to be good, but before the scan: an error after hours would lose the result.
        file = stack.enter_context(open_file(arguments.json, "w", "--json")) if arguments.json else None
        interrupted = False
        try:
            with progress_bar() as progress:
                scan.run(progress)
        except KeyboardInterrupt:
            interrupted = True
        report = scan.report()
        if file:
            write_json(report, file)
        if file is not sys.stdout:
            print_table(report)
    if interrupted:
        return INTERRUPTED
    return DAMAGED if report.damaged else GOOD


def _add_tune(commands: Any) -> None:
    tune = add_folder_command(
        commands,
        "tune",
        _tune,
        help="measure how many workers to use",
        description="""\
Reads batches of the .npy files under DATA_DIR with several numbers of workers,
and says which number to use, and why: the smallest that feeds a trainer whose
step takes --step-ms, with a fifth to spare; without --step-ms, the smallest that
is as fast as any. Nothing else should run meanwhile.

The rates are those of files in the page cache, as from the second epoch on if
all files fit in memory; --cold measures files on the disk too. For a transform,
or other sources: shmgen.tune() takes all arguments of a Loader.""",
        epilog="""\
exit status: 0 if a number was found, 2 if files can't be read or the arguments
can't be used, 130 after Ctrl-C""",
    )
    tune.add_argument(
        "--batch-size", type=int_from(1), default=32, metavar="N", help="samples in a batch; %(default)s by default"
    )
    tune.add_argument("--step-ms", type=_above_zero, metavar="MS", help="milliseconds that the trainer takes for a batch")
    tune.add_argument(
        "--workers",
        type=_counts,
        metavar="0-8",
        help="numbers of workers to measure, 0-8 by default: numbers, or ranges of numbers, separated by commas",
    )
    tune.add_argument("--slots", type=int_from(2), metavar="N", help="batches that shared memory has room for")
    tune.add_argument(
        "--seconds",
        type=_above_zero,
        default=2.0,
        metavar="S",
        help="how long each number of workers is measured; %(default)g by default",
    )
    tune.add_argument("--cold", action="store_true", help="also measure files that are not in the page cache: twice as long")
    tune.add_argument("--plot", metavar="FILE", help="draw the rates into FILE: .png, .svg, .pdf; needs matplotlib")


def _tune(arguments: argparse.Namespace) -> int:
    from shmgen._tools.scan_ids import ids_in, ids_under
    from shmgen._tools.tune import WORKERS, tune
    from shmgen._tools.tune_view import figure_format, print_table, progress_bar, write_json, write_plot

    check_rich(arguments)
    with ExitStack() as stack:
        if arguments.ids is None:
            blocks = ids_under(arguments.folder)
        else:
            blocks = ids_in(stack.enter_context(open_file(arguments.ids, "rb", "--ids")), arguments.ids)
        ids = [os.fsdecode(id) for block in blocks for id in block]
        # Opened once the arguments are known to be good, but before the measurements: an error later would lose the result.
        file = stack.enter_context(open_file(arguments.json, "w", "--json")) if arguments.json else None
        plot = None
        if arguments.plot:
            format = figure_format(arguments.plot)
            plot = stack.enter_context(open_file(arguments.plot, "wb", "--plot"))
        try:
            with progress_bar() as progress:
                tuning = tune(
                    ids,
                    batch_size=arguments.batch_size,
                    data_dir=arguments.folder,
                    dim=arguments.dim,
                    n_channels=arguments.n_channels,
                    dtype=arguments.dtype,
                    slots=arguments.slots,
                    workers=arguments.workers or WORKERS,
                    step_ms=arguments.step_ms,
                    seconds=arguments.seconds,
                    cold=arguments.cold,
                    progress=progress,
                )
        except OSError as error:
            raise InputError(f"{error}; give a smaller --batch-size, or fewer --slots or --workers") from None
        if plot:
            write_plot(tuning, plot, format)
        if file:
            write_json(tuning, arguments.folder, file)
        if file is not sys.stdout:
            print_table(tuning, arguments.folder)
    return GOOD


def _above_zero(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text!r}")
    return number


def _counts(text: str) -> list[int]:
    counts: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            span = range(check_int(int(first), "", 0), int(last or first) + 1)
            counts += span
            if not span or span[-1] > MAX_WORKERS:
                raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected ints from 0 to {MAX_WORKERS}, such as 0-8 or 1,2,4, found {text!r}") from None
    return counts
