"""The command line: ``python -m shmgen``.

Each command is a function that adds its parser, and one that does it and returns the exit status. What a command needs is
imported when it runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, Any

from shmgen._checks import check_int
from shmgen._sources.sample_spec import SampleSpec, check_dtype, check_shape
from shmgen.errors import InputError, ShmgenError

GOOD, DAMAGED, UNABLE, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses."""

MAX_WORKERS = 256
"""More are a slip of the finger."""


def main(words: Sequence[str] | None = None) -> int:
    """Do what ``words`` say, by default those of the command line, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m shmgen", description="Tools beside the loader.", allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_scan(commands)
    _add_tune(commands)
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
    except BrokenPipeError:  # who reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNABLE
    return status


def _add_scan(commands: Any) -> None:
    scan = commands.add_parser(
        "scan",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        help="check a folder of .npy files before days of training",
        description="""\
Checks the .npy files under DATA_DIR, those in sub-folders too, and says which
of them a loader could not read: that are truncated, empty, no .npy files, not
to be opened, of Python objects, or of a shape or dtype other than expected.

What is expected, and not said by --dim, --n-channels and --dtype, is what most
files have. As for the loader, files may be in Fortran order or of another byte
order, and are cast where NumPy calls that "same_kind": float64 to float32, say.""",
        epilog="""\
exit status: 0 if all is good, 1 if anything is damaged, 2 if the scan can't be
done, 130 after Ctrl-C, which ends it with what has been found so far""",
    )
    scan.add_argument("folder", metavar="DATA_DIR", help="folder of the files, the loader's data_dir")
    scan.add_argument(
        "--ids",
        metavar="FILE",
        help="check the files of these ids alone, all of which must be there: a text file, an id a line, such as cats/001 "
        "for DATA_DIR/cats/001.npy; - for standard input",
    )
    scan.add_argument("--dim", type=_dim, metavar="32,32,32", help="shape of a sample without its channels")
    scan.add_argument(
        "--n-channels",
        type=_from_one,
        metavar="N",
        help="size of the last axis; where it is 1, files of shape DIM are good, too",
    )
    scan.add_argument("--dtype", type=_dtype, metavar="D", help="dtype of a sample, such as float32")
    scan.add_argument(
        "--full",
        action="store_true",
        help="read every byte, which finds what the disk can't read; NaN and infinite numbers are damage then",
    )
    scan.add_argument(
        "--workers", type=_from_one, metavar="N", help="processes; by default one for each available processor, at most 8"
    )
    scan.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write the result, with every damaged file, as JSON into FILE; without FILE to standard output, without the table",
    )
    scan.set_defaults(run=_scan, prog=scan.prog)


def _scan(arguments: argparse.Namespace) -> int:
    from shmgen._tools.scan import Scan
    from shmgen._tools.scan_ids import ids_in
    from shmgen._tools.scan_view import has_rich, print_table, progress_bar, write_json

    if arguments.json != "-" and not has_rich():
        raise InputError("the table needs rich: pip install rich; or have --json, without FILE, in its place")
    with ExitStack() as stack:
        blocks = None
        if arguments.ids is not None:
            blocks = ids_in(stack.enter_context(_ids_file(arguments.ids)), arguments.ids)
        given = SampleSpec.checked(arguments.dim, arguments.n_channels, arguments.dtype)
        scan = Scan(arguments.folder, blocks, given, full=arguments.full, workers=arguments.workers)
        # Opened now, since it would be a pity to learn after hours that it can't be.
        file = stack.enter_context(_json_file(arguments.json)) if arguments.json else None
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
    tune = commands.add_parser(
        "tune",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        help="measure how many workers to use",
        description="""\
Reads batches of the .npy files under DATA_DIR with several numbers of workers,
and says which to use, and why: the smallest that feeds a trainer whose step
takes --step-ms, with a fifth to spare; without it, the smallest that is as fast
as any. Nothing else should run meanwhile.

The rates are those of files in the page cache, as from the second epoch on
where all fit in memory; --cold measures the others, too. A transform, or other
sources: shmgen.tune() takes all arguments of a Loader.""",
        epilog="""\
exit status: 0 if a number was found, 2 if files can't be read or the arguments
can't be used, 130 after Ctrl-C""",
    )
    tune.add_argument("folder", metavar="DATA_DIR", help="folder of the files, the loader's data_dir")
    tune.add_argument("--batch-size", type=_from_one, default=32, metavar="N", help="samples in a batch; 32 by default")
    tune.add_argument("--step-ms", type=_above_zero, metavar="MS", help="milliseconds that the trainer takes for a batch")
    tune.add_argument(
        "--workers",
        type=_counts,
        metavar="0-8",
        help="numbers of workers to measure, 0-8 by default: numbers, or ranges of them, with commas between them",
    )
    tune.add_argument("--slots", type=_from_two, metavar="N", help="batches that shared memory has room for")
    tune.add_argument("--seconds", type=_above_zero, default=2.0, metavar="S", help="for which each is measured; 2 by default")
    tune.add_argument(
        "--cold",
        action="store_true",
        help="measure files that are not in the page cache, too: twice as long",
    )
    tune.add_argument(
        "--ids", metavar="FILE", help="read the files of these ids alone: a text file, an id a line; - for standard input"
    )
    tune.add_argument("--dim", type=_dim, metavar="32,32,32", help="shape of a sample without its channels")
    tune.add_argument("--n-channels", type=_from_one, metavar="N", help="size of the last axis")
    tune.add_argument("--dtype", type=_dtype, metavar="D", help="dtype of X, such as float32")
    tune.add_argument("--plot", metavar="FILE", help="draw the rates into FILE: .png, .svg, .pdf; needs matplotlib")
    tune.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write the result as JSON into FILE; without FILE to standard output, without the table",
    )
    tune.set_defaults(run=_tune, prog=tune.prog)


def _tune(arguments: argparse.Namespace) -> int:
    from shmgen._tools.scan_ids import ids_in, ids_under
    from shmgen._tools.scan_view import has_rich
    from shmgen._tools.tune import WORKERS, tune
    from shmgen._tools.tune_view import figure_format, print_table, progress_bar, write_json, write_plot

    if arguments.json != "-" and not has_rich():
        raise InputError("the table needs rich: pip install rich; or have --json, without FILE, in its place")
    with ExitStack() as stack:
        if arguments.ids is None:
            blocks = ids_under(arguments.folder)
        else:
            blocks = ids_in(stack.enter_context(_ids_file(arguments.ids)), arguments.ids)
        # Opened now, since it would be a pity to learn after the measurements that it can't be.
        file = stack.enter_context(_json_file(arguments.json)) if arguments.json else None
        plot = None
        if arguments.plot:
            format = figure_format(arguments.plot)
            plot = stack.enter_context(_opened(arguments.plot, "wb", "--plot"))
        ids = [os.fsdecode(id) for block in blocks for id in block]
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


@contextmanager
def _ids_file(name: str) -> Iterator[IO[bytes]]:
    if name == "-":
        yield sys.stdin.buffer
        return
    with _opened(name, "rb", "--ids") as file:
        yield file


@contextmanager
def _json_file(name: str) -> Iterator[IO[str]]:
    if name == "-":
        yield sys.stdout
        return
    with _opened(name, "w", "--json") as file:
        yield file


def _opened(name: str, mode: str, option: str) -> IO[Any]:
    try:
        return open(name, mode, encoding=None if "b" in mode else "utf-8")
    except OSError as error:
        raise InputError(f"{option} {name}: {error.strerror} (errno {error.errno}); give a file that can be opened") from None


def _dim(text: str) -> tuple[int, ...]:
    try:
        return check_shape([int(size) for size in text.split(",")]) or ()
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected ints from 1, with commas between them, found {text!r}") from None


def _from_one(text: str) -> int:
    try:
        return check_int(int(text), "", 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an int from 1, found {text!r}") from None


def _from_two(text: str) -> int:
    try:
        return check_int(int(text), "", 2)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an int from 2, found {text!r}") from None


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


def _dtype(text: str) -> object:
    try:
        return check_dtype(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("dtype: ")) from None
