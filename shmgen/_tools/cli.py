"""The command line: ``shmgen``, or ``python -m shmgen``.

Each command has a function that adds its parser, and one that runs it and returns the exit status. What a command needs is
imported when it runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import IO, Any

from shmgen import __version__
from shmgen._checks import check_int
from shmgen._sources.sample_spec import SampleSpec, check_dtype, check_shape
from shmgen.errors import InputError, ShmgenError

GOOD, DAMAGED, UNABLE, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses."""

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
    _add_pack(commands)
    _add_unpack(commands)
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


def _parser(commands: Any, name: str, run: Callable[[argparse.Namespace], int], **texts: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **texts
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write the whole result as JSON into FILE; without FILE to standard output, in place of the table",
    )
    parser.set_defaults(run=run, prog=parser.prog)
    return parser


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], int], **texts: str) -> argparse.ArgumentParser:
    """Adds a command that reads a folder, with the arguments that all of these have."""
    parser = _parser(commands, name, run, **texts)
    parser.add_argument("folder", metavar="DATA_DIR", help="folder of the files, or its URL: the loader's data_dir")
    parser.add_argument(
        "--ids",
        metavar="FILE",
        help="only the files of these ids, all of which must exist: a text file, an id a line, such as cats/001 for "
        "DATA_DIR/cats/001.npy; - for standard input",
    )
    parser.add_argument("--dim", type=_dim, metavar="32,32,32", help="shape of a sample without its channels")
    parser.add_argument(
        "--n-channels", type=_int_from(1), metavar="N", help="size of the last axis; if it is 1, files of shape DIM are good too"
    )
    parser.add_argument("--dtype", type=_dtype, metavar="D", help="dtype of a sample, such as float32")
    return parser


def _add_scan(commands: Any) -> None:
    scan = _command(
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
        "--workers", type=_int_from(1), metavar="N", help="processes; by default one for each available processor, at most 8"
    )


def _scan(arguments: argparse.Namespace) -> int:
    from shmgen._tools.scan import Scan
    from shmgen._tools.scan_ids import ids_in
    from shmgen._tools.scan_view import print_table, progress_bar, write_json

    _check_rich(arguments)
    with ExitStack() as stack:
        blocks = None
        if arguments.ids is not None:
            blocks = ids_in(stack.enter_context(_file(arguments.ids, "rb", "--ids")), arguments.ids)
        given = SampleSpec.checked(arguments.dim, arguments.n_channels, arguments.dtype)
        scan = Scan(arguments.folder, blocks, given, full=arguments.full, workers=arguments.workers)
        # Opened once the arguments are known to be good, but before the scan: an error after hours would lose the result.
        file = stack.enter_context(_file(arguments.json, "w", "--json")) if arguments.json else None
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
    tune = _command(
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
        "--batch-size", type=_int_from(1), default=32, metavar="N", help="samples in a batch; %(default)s by default"
    )
    tune.add_argument("--step-ms", type=_above_zero, metavar="MS", help="milliseconds that the trainer takes for a batch")
    tune.add_argument(
        "--workers",
        type=_counts,
        metavar="0-8",
        help="numbers of workers to measure, 0-8 by default: numbers, or ranges of numbers, separated by commas",
    )
    tune.add_argument("--slots", type=_int_from(2), metavar="N", help="batches that shared memory has room for")
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

    _check_rich(arguments)
    with ExitStack() as stack:
        if arguments.ids is None:
            blocks = ids_under(arguments.folder)
        else:
            blocks = ids_in(stack.enter_context(_file(arguments.ids, "rb", "--ids")), arguments.ids)
        ids = [os.fsdecode(id) for block in blocks for id in block]
        # Opened once the arguments are known to be good, but before the measurements: an error later would lose the result.
        file = stack.enter_context(_file(arguments.json, "w", "--json")) if arguments.json else None
        plot = None
        if arguments.plot:
            format = figure_format(arguments.plot)
            plot = stack.enter_context(_file(arguments.plot, "wb", "--plot"))
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


def _add_pack(commands: Any) -> None:
    pack = _command(
        commands,
        "pack",
        _pack,
        help="make one file of a folder of .npy files",
        description="""\
Packs the .npy files under DATA_DIR, those in sub-folders too, into the rows of
TARGET, say all.npy, in the order of their ids, or in that of --ids. Beside it are
the ids, all.ids, a line for each row, and checksums, all.sums. A loader reads it
as NpyRows("all.npy", ids="all.ids"): small samples several times as fast.

All headers and sizes are checked first, as `scan` does: where anything is damaged
it is named, and nothing is packed. Files are cast as a loader casts them.

While it is written it is all.npy.part. Killed or interrupted, the same command
goes on where it was; files that have changed since are read again.""",
        epilog="""\
exit status: 0 if all is packed, 1 if files are damaged, 2 if it can't be done,
130 after Ctrl-C""",
    )
    pack.add_argument("target", metavar="TARGET", help="the .npy file to be made; a file that is there is never changed")
    pack.add_argument(
        "--full",
        action="store_true",
        help="read all rows back from the disk at the end, and compare checksums; where TARGET is there already, do that alone",
    )
    pack.add_argument("--workers", type=_int_from(1), metavar="N", help="processes that read; by default as many as pay")


def _pack(arguments: argparse.Namespace) -> int:
    from shmgen._tools.pack import Pack
    from shmgen._tools.pack_view import print_outcome, progress_bar, write_json
    from shmgen._tools.packed import Outcome, checked_target
    from shmgen._tools.scan import Scan
    from shmgen._tools.scan_ids import BLOCK, ids_in
    from shmgen._tools.scan_view import progress_bar as scan_bar

    _check_rich(arguments)
    with ExitStack() as stack:
        checked_target(arguments.folder, arguments.target)
        ids: list[bytes] = []
        if arguments.ids is not None:
            lines = stack.enter_context(_file(arguments.ids, "rb", "--ids"))
            ids = [id for block in ids_in(lines, arguments.ids) for id in block]
        blocks = (ids[first : first + BLOCK] for first in range(0, len(ids), BLOCK)) if arguments.ids is not None else None
        given = SampleSpec.checked(arguments.dim, arguments.n_channels, arguments.dtype)
        scan = Scan(arguments.folder, blocks, given, workers=arguments.workers)
        file = stack.enter_context(_file(arguments.json, "w", "--json")) if arguments.json else None
        with scan_bar() as progress:
            scan.run(progress)
        report = scan.report()
        what = "files"
        if report.damaged or report.expected is None:
            outcome = Outcome(report.files, report.bytes, 0, report.seconds, report.damaged, report.remarks)
        else:
            row = report.expected
            pack = Pack(
                arguments.folder,
                arguments.target,
                ids or sorted(scan.whole()),
                given,
                row,
                full=arguments.full,
                workers=arguments.workers,
            )
            what = f"rows of shape {row.shape}, {row.numpy_dtype}"
            with _saying_what_is_kept(pack, arguments.prog), progress_bar() as show:
                outcome = pack.run(show)
            if len({kind.dtype for kind in report.kinds}) > 1:
                outcome.remarks.append(f"files of other dtypes were cast to {row.numpy_dtype}: --dtype says to which")
        if file:
            write_json(outcome, arguments.target, file)
        if file is not sys.stdout:
            print_outcome(outcome, arguments.target, what, "not packed: mend the files, or leave them out with --ids")
    return DAMAGED if outcome.damaged else GOOD


def _add_unpack(commands: Any) -> None:
    unpack = _parser(
        commands,
        "unpack",
        _unpack,
        help="make a folder of .npy files of one",
        description="""\
Writes each row of TARGET, say all.npy, into a file of its own under DATA_DIR,
named after its id: `pack` the other way. The ids are those in all.ids, or in
--ids; rows whose checksum is not the one in all.sums are named, and left out.

A file that is there must hold its row already, or nothing is written. So the same
command goes on where it was killed or interrupted.""",
        epilog="""\
exit status: 0 if all is unpacked, 1 if rows are damaged, 2 if it can't be done,
130 after Ctrl-C""",
    )
    unpack.add_argument("target", metavar="TARGET", help="the .npy file of all rows")
    unpack.add_argument("folder", metavar="DATA_DIR", help="folder of the files to be made")
    unpack.add_argument("--ids", metavar="FILE", help="a text file of the ids, a line for each row; - for standard input")


def _unpack(arguments: argparse.Namespace) -> int:
    from shmgen._tools.pack_view import print_outcome, progress_bar, write_json
    from shmgen._tools.unpack import Unpack

    _check_rich(arguments)
    with ExitStack() as stack:
        ids = None if arguments.ids is None else stack.enter_context(_file(arguments.ids, "rb", "--ids"))
        unpack = Unpack(arguments.target, arguments.folder, ids)
        file = stack.enter_context(_file(arguments.json, "w", "--json")) if arguments.json else None
        with _saying_what_is_kept(unpack, arguments.prog), progress_bar() as progress:
            outcome = unpack.run(progress)
        if file:
            write_json(outcome, arguments.folder, file)
        if file is not sys.stdout:
            print_outcome(outcome, arguments.folder, "files", f"all are unpacked but {len(outcome.damaged):,}")
    return DAMAGED if outcome.damaged else GOOD


@contextmanager
def _saying_what_is_kept(work: Any, prog: str) -> Iterator[None]:
    """Say what an end before the time leaves."""
    try:
        yield
    except (KeyboardInterrupt, ShmgenError):
        if work.kept:
            print(f"{prog}: {work.kept}", file=sys.stderr)
        raise


def _check_rich(arguments: argparse.Namespace) -> None:
    """Refuse to begin if the table can't be shown at the end."""
    from shmgen._tools.scan_view import has_rich

    if arguments.json != "-" and not has_rich():
        raise InputError("the table needs rich: pip install rich; or use --json without FILE in place of the table")


def _file(name: str, mode: str, option: str) -> AbstractContextManager[IO[Any]]:
    """The file that ``option`` names, opened; ``-`` is standard input or output.

    `argparse.FileType` would open it while the command line is parsed, and empty it though another argument is wrong.
    """
    if name == "-":
        return nullcontext(sys.stdin.buffer if mode == "rb" else sys.stdout)
    try:
        return open(name, mode, encoding=None if "b" in mode else "utf-8")
    except OSError as error:
        raise InputError(f"{option} {name}: {error.strerror} (errno {error.errno}); give a file that can be opened") from None


def _dim(text: str) -> tuple[int, ...]:
    try:
        return check_shape([int(size) for size in text.split(",")]) or ()
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected ints from 1, separated by commas, found {text!r}") from None


def _int_from(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            return check_int(int(text), "", least)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected an int from {least}, found {text!r}") from None

    return parse


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
