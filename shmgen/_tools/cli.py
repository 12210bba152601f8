"""The command line: ``shmgen``, or ``python -m shmgen``.

Each command has a function that adds its parser, and one that runs it and returns the exit status. What a command needs is
imported when it runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, replace
from typing import IO, Any, Literal

from shmgen import __version__
from shmgen._checks import check_int
from shmgen._samples.sample_spec import SampleSpec, check_dtype, check_shape
from shmgen._urls import shown
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
    if sys.stdout is None or sys.stderr is None:
        nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 # as long as the process lives
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    parser = argparse.ArgumentParser(prog=prog, description="Tools beside the loader.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"shmgen {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (_add_scan, _add_pack, _add_tune):
        add(commands)
    arguments = parser.parse_args(words)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"{arguments.prog}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNABLE
    except (ShmgenError, OSError) as error:
        print(f"{arguments.prog}: {error}", file=sys.stderr)
        return UNABLE
    return status


def _add_scan(commands: Any) -> None:
    scan = _command(
        commands,
        "scan",
        _scan,
        help="find every sample that a loader could not read",
        description="""\
Looks at every sample of DATA, and says which a loader could not read, and why.
DATA is a folder of .npy, .npz or image files, those in sub-folders included, or
the URL of one; or an HDF5 file; or an .npy file whose rows are the samples.

Of .npy files the headers and sizes are looked at; --full reads all their data.
The expected shape and dtype are those of most files, where --dim, --n-channels
and --dtype do not give them. Files of other kinds are read whole, and must have
the arrays of the first one; images only have to be images. Files are cast where
NumPy calls that "same_kind", such as float64 to float32.""",
        epilog="""\
exit status: 0 if all is good, 1 if anything is damaged, 2 if the scan can't be
done, 130 after Ctrl-C, which ends it with what has been found so far""",
    )
    scan.add_argument("data", metavar="DATA", help="what is to be scanned")
    _describe_samples(scan)
    scan.add_argument("--kind", choices=["npy", "npz", "images"], help="of the files; by default, the kind of most files")
    scan.add_argument(
        "--dataset", metavar="NAME", default="/", help="of an HDF5 file: as Hdf5 takes it; by default, all datasets"
    )
    scan.add_argument(
        "--full",
        action="store_true",
        help="read all data, which finds what the disk can't read; NaN and infinite numbers are damage then",
    )
    scan.add_argument("--good", metavar="FILE", help="write the ids of all other samples into FILE, a line each, for --ids")
    scan.add_argument(
        "--timeout",
        type=_above_zero,
        default=60.0,
        metavar="S",
        help="seconds after which a sample is given up that can't be read; %(default)g by default",
    )
    _add_workers(scan)


def _scan(arguments: argparse.Namespace) -> int:
    from shmgen._tools.listing import samples_in
    from shmgen._tools.pack import require_lines
    from shmgen._tools.scan import Scan
    from shmgen._tools.tables import print_scan, progress_bar, scan_json, write_json

    _check_rich(arguments)
    with ExitStack() as stack:
        source, ids, unreadable, remarks = samples_in(
            arguments.data, ids=arguments.ids, kind=arguments.kind, dataset=arguments.dataset, given=_given(arguments)
        )
        scan = Scan(source, ids, full=arguments.full, workers=arguments.workers, timeout=arguments.timeout)
        if arguments.good:
            require_lines(ids)
        # Opened once the arguments are known to be good, but before the scan: an error after hours would lose the result.
        file = stack.enter_context(_opened(arguments.json, "--json")) if arguments.json else None
        good = stack.enter_context(_opened(arguments.good, "--good")) if arguments.good else None
        interrupted = False
        try:
            with progress_bar("samples") as progress:
                scan.run(progress)
        except KeyboardInterrupt:
            interrupted = True
        report = scan.report()
        report = replace(report, damaged=(*unreadable, *report.damaged), remarks=(*remarks, *report.remarks))
        if good and not interrupted:
            good.writelines(f"{id}\n" for id in report.good)
        if file:
            write_json(scan_json(report, shown(arguments.data), arguments.full), file)
        if file is not sys.stdout:
            print_scan(report, shown(arguments.data), arguments.full)
    if interrupted:
        return INTERRUPTED
    return DAMAGED if report.damaged else GOOD


def _add_pack(commands: Any) -> None:
    pack = _command(
        commands,
        "pack",
        _pack,
        help="make one file of a folder of .npy files",
        description="""\
Packs the .npy files of DATA_DIR, those in sub-folders included, into the rows of
TARGET, say all.npy, in the order of their ids, or in that of --ids. Beside it are
the ids, all.ids, a line for each row. A loader reads it as
NpyRows("all.npy", ids="all.ids"): small samples several times as fast.

All headers and sizes are looked at first, as `scan` does: where anything is
damaged it is named, and nothing is packed, unless it is to be left out. Files are
cast as a loader casts them. While it is written it is all.npy.part; killed, the
same command begins anew.""",
        epilog="""\
exit status: 0 if all is packed, 1 if samples are damaged, 2 if it can't be done,
130 after Ctrl-C""",
    )
    _add_folder(pack)
    pack.add_argument("target", metavar="TARGET", help="the .npy file to be made; a file that is there is never changed")
    _describe_samples(pack)
    pack.add_argument("--skip-damaged", action="store_true", help="leave out what is damaged, and name it")
    _add_workers(pack)


def _pack(arguments: argparse.Namespace) -> int:
    from shmgen._sources.npy import Npy
    from shmgen._tools.listing import npy_ids
    from shmgen._tools.pack import check_target, pack
    from shmgen._tools.tables import print_packed, progress_bar, write_json

    _check_rich(arguments)
    with ExitStack() as stack:
        check_target(arguments.folder, arguments.target)
        ids = npy_ids(arguments.folder, arguments.ids)
        source = Npy(arguments.folder, arguments.dim, arguments.n_channels, arguments.dtype)
        file = stack.enter_context(_opened(arguments.json, "--json")) if arguments.json else None
        with progress_bar("samples") as progress:
            packed = pack(
                source,
                ids,
                arguments.target,
                skip_damaged=arguments.skip_damaged,
                workers=arguments.workers,
                progress=progress,
            )
        if file:
            content = {"target": arguments.target, **packed._asdict(), "damaged": [one._asdict() for one in packed.damaged]}
            write_json(content, file)
        if file is not sys.stdout:
            print_packed(packed, arguments.target)
    return DAMAGED if packed.damaged else GOOD


def _add_tune(commands: Any) -> None:
    tune = _command(
        commands,
        "tune",
        _tune,
        help="measure how many workers to use",
        description="""\
Reads batches of the .npy files of DATA_DIR with several numbers of workers, and
says which number to use, and why: the smallest that feeds a trainer whose step
takes --step-ms, with a fifth to spare; without --step-ms, the smallest that is as
fast as any. Nothing else should run meanwhile.

The rates are those of files in the page cache, as from the second epoch on if
all files fit in memory; --cold measures files on the disk too. For a transform,
or other sources: shmgen.tune() takes all arguments of a Loader.""",
        epilog="""\
exit status: 0 if a number was found, 2 if files can't be read or the arguments
can't be used, 130 after Ctrl-C""",
    )
    _add_folder(tune)
    _describe_samples(tune)
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
    from shmgen._tools.listing import npy_ids
    from shmgen._tools.tables import figure_format, print_tuning, progress_bar, write_json, write_plot
    from shmgen._tools.tune import WORKERS, tune

    _check_rich(arguments)
    with ExitStack() as stack:
        ids = npy_ids(arguments.folder, arguments.ids)
        file = stack.enter_context(_opened(arguments.json, "--json")) if arguments.json else None
        plot = None
        if arguments.plot:
            format = figure_format(arguments.plot)
            plot = stack.enter_context(_opened(arguments.plot, "--plot", "wb"))
        with progress_bar("measurements") as progress:
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
        if plot:
            write_plot(tuning, plot, format)
        if file:
            write_json({"data_dir": shown(arguments.folder), **asdict(tuning)}, file)
        if file is not sys.stdout:
            print_tuning(tuning, shown(arguments.folder))
    return GOOD


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], int], **texts: str) -> argparse.ArgumentParser:
    """Add a command, with the arguments that all commands have."""
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


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DATA_DIR", help="folder of the files, or its URL: the loader's data_dir")


def _describe_samples(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ids",
        metavar="FILE",
        help="only the samples of these ids, all of which must exist: a text file, an id a line, such as cats/001 for "
        "cats/001.npy; - for standard input",
    )
    parser.add_argument("--dim", type=_dim, metavar="32,32,32", help="shape of a sample without its channels")
    parser.add_argument(
        "--n-channels", type=_int_from(1), metavar="N", help="size of the last axis; if it is 1, files of shape DIM are good too"
    )
    parser.add_argument("--dtype", type=_dtype, metavar="D", help="dtype of a sample, such as float32")


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", type=_workers, default="auto", metavar="N", help="processes that read; by default as many as pay"
    )


def _given(arguments: argparse.Namespace) -> SampleSpec:
    return SampleSpec.checked(arguments.dim, arguments.n_channels, arguments.dtype)


def _check_rich(arguments: argparse.Namespace) -> None:
    """Refuse to begin if the table can't be shown at the end."""
    from shmgen._tools.tables import has_rich

    if arguments.json != "-" and not has_rich():
        raise InputError("the table needs rich: pip install rich; or use --json without FILE in place of the table")


def _opened(name: str, option: str, mode: Literal["w", "wb"] = "w") -> AbstractContextManager[IO[Any]]:
    """The file that ``option`` names, opened to be written to; ``-`` is standard output.

    `argparse.FileType` would open it while the command line is parsed, and empty it though another argument is wrong.
    """
    if name == "-":
        return nullcontext(sys.stdout)
    try:
        return open(name, mode) if mode == "wb" else open(name, mode, encoding="utf-8", errors="surrogateescape")
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


def _workers(text: str) -> int | str:
    return text if text == "auto" else _int_from(0)(text)


def _dtype(text: str) -> object:
    try:
        return check_dtype(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("dtype: ")) from None


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
