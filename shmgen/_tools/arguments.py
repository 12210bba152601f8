"""What the commands of the command line share: exit statuses, arguments, files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import IO, Any

from shmgen._checks import check_int
from shmgen._samples.sample_spec import check_dtype, check_shape
from shmgen.errors import InputError

GOOD, DAMAGED, UNABLE, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses."""


def add_command(commands: Any, name: str, run: Callable[[argparse.Namespace], int], **texts: str) -> argparse.ArgumentParser:
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


def add_folder_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], **texts: str
) -> argparse.ArgumentParser:
    """Add a command that reads a folder, with the arguments that all of these have."""
    parser = add_command(commands, name, run, **texts)
    parser.add_argument("folder", metavar="DATA_DIR", help="folder of the files, or its URL: the loader's data_dir")
    parser.add_argument(
        "--ids",
        metavar="FILE",
        help="only the files of these ids, all of which must exist: a text file, an id a line, such as cats/001 for "
        "DATA_DIR/cats/001.npy; - for standard input",
    )
    parser.add_argument("--dim", type=dim_of, metavar="32,32,32", help="shape of a sample without its channels")
    parser.add_argument(
        "--n-channels", type=int_from(1), metavar="N", help="size of the last axis; if it is 1, files of shape DIM are good too"
    )
    parser.add_argument("--dtype", type=dtype_in, metavar="D", help="dtype of a sample, such as float32")
    return parser


def check_rich(arguments: argparse.Namespace) -> None:
    """Refuse to begin if the table can't be shown at the end."""
    from shmgen._tools.scan_view import has_rich

    if arguments.json != "-" and not has_rich():
        raise InputError("the table needs rich: pip install rich; or use --json without FILE in place of the table")


def open_file(name: str, mode: str, option: str) -> AbstractContextManager[IO[Any]]:
    """The file that ``option`` names, opened; ``-`` is standard input or output.

    `argparse.FileType` would open it while the command line is parsed, and empty it though another argument is wrong.
    """
    if name == "-":
        return nullcontext(sys.stdin.buffer if mode == "rb" else sys.stdout)
    try:
        return open(name, mode, encoding=None if "b" in mode else "utf-8")
    except OSError as error:
        raise InputError(f"{option} {name}: {error.strerror} (errno {error.errno}); give a file that can be opened") from None


def dim_of(text: str) -> tuple[int, ...]:
    try:
        return check_shape([int(size) for size in text.split(",")]) or ()
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected ints from 1, separated by commas, found {text!r}") from None


def int_from(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            return check_int(int(text), "", least)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected an int from {least}, found {text!r}") from None

    return parse


def dtype_in(text: str) -> object:
    try:
        return check_dtype(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("dtype: ")) from None
