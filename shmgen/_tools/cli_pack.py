"""The commands `pack` and `unpack` of the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from shmgen._samples.sample_spec import SampleSpec
from shmgen._tools.arguments import DAMAGED, GOOD, add_command, add_folder_command, check_rich, int_from, open_file
from shmgen.errors import ShmgenError


def add_pack(commands: Any) -> None:
    pack = add_folder_command(
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
    pack.add_argument("--workers", type=int_from(1), metavar="N", help="processes that read; by default as many as pay")


def _pack(arguments: argparse.Namespace) -> int:
    from shmgen._tools.pack import Pack
    from shmgen._tools.pack_view import print_outcome, progress_bar, write_json
    from shmgen._tools.packed import Outcome, checked_target
    from shmgen._tools.scan import Scan
    from shmgen._tools.scan_ids import BLOCK, ids_in
    from shmgen._tools.scan_view import progress_bar as scan_bar

    check_rich(arguments)
    with ExitStack() as stack:
        checked_target(arguments.folder, arguments.target)
        ids: list[bytes] = []
        if arguments.ids is not None:
            lines = stack.enter_context(open_file(arguments.ids, "rb", "--ids"))
            ids = [id for block in ids_in(lines, arguments.ids) for id in block]
        blocks = (ids[first : first + BLOCK] for first in range(0, len(ids), BLOCK)) if arguments.ids is not None else None
        given = SampleSpec.checked(arguments.dim, arguments.n_channels, arguments.dtype)
        scan = Scan(arguments.folder, blocks, given, workers=arguments.workers)
        file = stack.enter_context(open_file(arguments.json, "w", "--json")) if arguments.json else None
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


def add_unpack(commands: Any) -> None:
    unpack = add_command(
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

    check_rich(arguments)
    with ExitStack() as stack:
        ids = None if arguments.ids is None else stack.enter_context(open_file(arguments.ids, "rb", "--ids"))
        unpack = Unpack(arguments.target, arguments.folder, ids)
        file = stack.enter_context(open_file(arguments.json, "w", "--json")) if arguments.json else None
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
