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

from shmgen._arguments import numbers, sizes, whole
from shmgen.errors import InputError, ShmgenError

GOOD, DAMAGED, UNABLE, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses."""


def main(words: Sequence[str] | None = None) -> int:
    """Do what ``words`` say, by default those of the command line, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m shmgen", description="Tools beside the loader.", allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_scan(commands)
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
    from shmgen._scan import Scan
    from shmgen._scan_ids import ids_in
    from shmgen._scan_report import Given
    from shmgen._scan_view import has_rich, print_table, progress_bar, write_json

    if arguments.json != "-" and not has_rich():
        raise InputError("the table needs rich: pip install rich; or have --json, without FILE, in its place")
    with ExitStack() as stack:
        blocks = None
        if arguments.ids is not None:
            blocks = ids_in(stack.enter_context(_ids_file(arguments.ids)), arguments.ids)
        given = Given(arguments.dim, arguments.n_channels, arguments.dtype)
        scan = Scan(arguments.folder, blocks, given, full=arguments.full, workers=arguments.workers)
        # Opened now, since it would be a pity to learn after hours that it can't be.
        file = stack.enter_context(_json_file(arguments.json)) if arguments.json else None
        interrupted = False
        try:
            with progress_bar() as tell:
                scan.run(tell)
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
        return sizes([int(size) for size in text.split(",")]) or ()
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected ints from 1, with commas between them, found {text!r}") from None


def _from_one(text: str) -> int:
    try:
        return whole(int(text), "", 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an int from 1, found {text!r}") from None


def _dtype(text: str) -> object:
    try:
        return numbers(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("dtype: ")) from None


if __name__ == "__main__":
    sys.exit(main())
