"""The command line: ``shmgen``, or ``python -m shmgen``.

Each command has a function that adds its parser, and one that runs it, imports what it needs, and returns the exit status.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.util import find_spec
from typing import Any, Literal

from shmgen import __version__
from shmgen._samples.sample_spec import SampleSpec
from shmgen._urls import shown
from shmgen.errors import InputError, ShmgenError

GOOD, DAMAGED, UNABLE, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses."""


def main(words: Sequence[str] | None = None, prog: str = "shmgen") -> int:
    """Run a command of these words, by default the process's own, and return its exit status; ``prog`` is the program's name."""
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
        # Without it the table could not be shown at the end.
        if not arguments.json and find_spec("rich") is None:
            raise InputError("the table needs rich: pip install rich; or use --json in place of the table")
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
    option = scan.add_argument
    option("data", metavar="DATA", help="what is to be scanned")
    _describe_samples(scan)
    option("--kind", choices=["npy", "npz", "images"], help="of the files; by default, the kind of most files")
    option("--dataset", metavar="NAME", help="of an HDF5 file: as Hdf5 takes it; by default /, a dataset for each sample")
    full = "read all data, which finds what the disk can't read; NaN and infinite numbers are damage then"
    option("--full", action="store_true", help=full)
    option("--good", metavar="FILE", help="write the ids of all other samples into FILE, a line each, for --ids")
    option("--timeout", type=float, default=60.0, metavar="S", help="seconds after which a sample is given up; 60 by default")
    _add_workers(scan)


def _scan(arguments: argparse.Namespace) -> int:
    from shmgen._samples.ids import as_lines
    from shmgen._tools.listing import samples_in
    from shmgen._tools.output import print_scan, progress_bar, scan_json, write_json
    from shmgen._tools.scan import Scan

    given = SampleSpec.checked(arguments.dim, arguments.n_channels, arguments.dtype)
    source, ids, remarks = samples_in(
        arguments.data, ids=arguments.ids, kind=arguments.kind, dataset=arguments.dataset, given=given
    )
    scan = Scan(source, ids, full=arguments.full, workers=arguments.workers, timeout=arguments.timeout)
    if arguments.good:  # an error after hours would lose the result
        as_lines(ids)
        open(arguments.good, "a").close()
    with suppress(KeyboardInterrupt), progress_bar("samples") as progress:
        scan.run(progress)
    report = scan.report()
    report = replace(report, remarks=(*remarks, *report.remarks))
    if arguments.good and report.complete:
        with open(arguments.good, "wb") as good:
            good.write(as_lines(report.good))
    if arguments.json:
        write_json(scan_json(report, shown(arguments.data), arguments.full))
    else:
        print_scan(report, shown(arguments.data), arguments.full)
    if not report.complete:
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
    from shmgen._tools.output import print_packed, progress_bar, write_json
    from shmgen._tools.pack import pack

    ids = npy_ids(arguments.folder, arguments.ids)
    source = Npy(arguments.folder, arguments.dim, arguments.n_channels, arguments.dtype)
    skip, workers = arguments.skip_damaged, arguments.workers
    with progress_bar("samples") as progress:
        packed = pack(source, ids, arguments.target, skip_damaged=skip, workers=workers, progress=progress)
    if arguments.json:
        damaged = [one._asdict() for one in packed.damaged]
        write_json({"target": arguments.target, **packed._asdict(), "damaged": damaged})
    else:
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
    option = tune.add_argument
    option("--batch-size", type=int, default=32, metavar="N", help="samples in a batch; 32 by default")
    option("--step-ms", type=float, metavar="MS", help="milliseconds that the trainer takes for a batch")
    option("--workers", type=numbers, metavar="0-8", help="numbers of workers to measure, such as 0-4 or 1,2,4; 0-8 by default")
    option("--slots", type=int, metavar="N", help="batches that shared memory has room for")
    option("--seconds", type=float, default=2.0, metavar="S", help="how long each number is measured; 2 by default")
    option("--cold", action="store_true", help="also measure files that are not in the page cache: twice as long")
    option("--plot", metavar="FILE", help="draw the rates into FILE: .png, .svg, .pdf; needs matplotlib")


def _tune(arguments: argparse.Namespace) -> int:
    from shmgen._tools.listing import npy_ids
    from shmgen._tools.output import check_plot, print_tuning, progress_bar, write_json, write_plot
    from shmgen._tools.tune import tune

    ids = npy_ids(arguments.folder, arguments.ids)
    if len(ids) < arguments.batch_size:
        found = f"the number of samples, found {arguments.batch_size}"
        raise InputError(f"--batch-size: expected at most {len(ids)}, {found}; give a smaller one")
    if arguments.plot:
        check_plot(arguments.plot)
    names = {"dim", "n_channels", "dtype", "batch_size", "step_ms", "workers", "slots", "seconds", "cold"}
    options = {name: value for name, value in vars(arguments).items() if name in names and value is not None}
    with progress_bar("measurements") as progress:
        tuning = tune(ids, data_dir=arguments.folder, progress=progress, **options)
    if arguments.json:
        write_json({"data_dir": shown(arguments.folder), **asdict(tuning)})
    else:
        print_tuning(tuning, shown(arguments.folder))
    if arguments.plot:
        write_plot(tuning, arguments.plot)
    return GOOD


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], int], **texts: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **texts
    )
    parser.add_argument("--json", action="store_true", help="print the whole result as JSON, in place of the table")
    parser.set_defaults(run=run, prog=parser.prog)
    return parser


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DATA_DIR", help="folder of the files, or its URL: the loader's data_dir")


def _describe_samples(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    chosen = "only the samples of these ids, all of which must exist: a text file, a line each, such as cats/001 for cats/001.npy"
    option("--ids", metavar="FILE", help=chosen)
    option("--dim", type=shape, metavar="32,32,32", help="shape of a sample without its channels")
    option("--n-channels", type=int, metavar="N", help="size of the last axis; if it is 1, files of shape DIM are good too")
    option("--dtype", metavar="D", help="dtype of a sample, such as float32")


def _add_workers(parser: argparse.ArgumentParser) -> None:
    workers = "processes that read; by default, the number that is fastest"
    parser.add_argument("--workers", type=count, default="auto", metavar="N", help=workers)


def shape(text: str) -> list[int]:
    return list(map(int, text.split(",")))


def count(text: str) -> int | Literal["auto"]:
    return "auto" if text == "auto" else int(text)


def numbers(text: str) -> list[int]:
    """Numbers, or ranges of numbers, separated by commas."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found
