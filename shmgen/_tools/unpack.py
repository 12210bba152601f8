"""Makes a file of each row of one: what `shmgen._tools.pack` has packed, or any other ``.npy`` file whose rows have ids."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import IO

from shmgen._samples.ids import refuse_ways_out
from shmgen._sources.npy_format import OPEN_FLAGS, explain, read_header_of
from shmgen._tools.packed import (
    Outcome,
    Paths,
    Progress,
    Rows,
    explain_write,
    header_of,
    opened,
    refused_ids,
    require_room,
    sums_in,
    write,
)
from shmgen._tools.scan_ids import ids_in
from shmgen._tools.scan_report import Damage
from shmgen.errors import FormatError, InputError

THREADS = 16
"""Files that are written at once: on a network each takes its time."""

DISK_BLOCK = 4096
"""Bytes that files are rounded up to."""

MAX_NAMED = 3


class Unpack:
    """Unpacks rows.

    Args:
        rows: the ``.npy`` file.
        folder: of the files to be made; made itself if it is not there.
        ids: an open file of ids, a line each, in the order of the rows; None for the one beside ``rows``.

    Attributes:
        written: how many files this run has written.

    Raises:
        InputError: there are no such rows or ids.
    """

    def __init__(self, rows: str, folder: str, ids: IO[bytes] | None = None) -> None:
        self._paths = Paths.of(os.path.abspath(rows))
        self._folder = os.path.abspath(folder)
        try:
            header = read_header_of(self._paths.rows)[0]
            if not header.shape or 0 in header.shape or (header.fortran and len(header.shape) > 1):
                raise FormatError(f"expected rows in C order, found shape {header.shape}{' in Fortran order' * header.fortran}")
        except (OSError, FormatError) as error:
            raise InputError(f"{rows}: {explain(error)}") from None
        self._count = header.shape[0]
        self._size = header.data_bytes // self._count
        self._first = header.size
        self._header = header_of(header.shape[1:], header.dtype)
        self._ids = self._found(ids)
        self._damaged: dict[int, Damage] = {}
        self.written = 0

    def _found(self, file: IO[bytes] | None) -> list[str]:
        name = self._paths.ids if file is None else file.name
        with ExitStack() as stack:
            if file is None:
                try:
                    file = stack.enter_context(open(name, "rb"))
                except OSError as error:
                    raise InputError(
                        f"{name}: {explain(error)}; give a text file of the ids, a line for each row, as --ids FILE"
                    ) from None
            ids = [id for block in ids_in(file, name) for id in block]
        if len(ids) != self._count:
            raise InputError(f"{name}: expected {self._count:,} ids, one for each row of {self._paths.rows}, found {len(ids):,}")
        for damage in refused_ids(ids, lambda _: name):
            raise InputError(f"{name}, id {damage.id!r}: {damage.reason}")
        names = list(map(os.fsdecode, ids))
        refuse_ways_out(names, self._folder, "other ids")
        return names

    @property
    def kept(self) -> str:
        """What an unpack that ended early has left, for whoever wants to go on."""
        return f"{self.written:,} files are written in {self._folder}; the same command goes on" if self.written else ""

    def run(self, progress: Callable[[Progress], None] = lambda _: None) -> Outcome:
        """Write all files that are not there. May be called once.

        Args:
            progress: called whenever there is progress.

        Raises:
            InputError: it can't be done: a file is there and holds something else, the disk is full, another unpack is at it.
        """
        begun = time.monotonic()
        try:
            with ExitStack() as stack:
                remarks = self._run(stack, progress)
        except OSError as error:
            raise InputError(f"{error.filename or self._folder}: {explain_write(error)}") from None
        damaged = [damage for _, damage in sorted(self._damaged.items())]
        seconds = time.monotonic() - begun
        return Outcome(self._count, self._count * self._size, self.written, seconds, damaged, remarks)

    def _run(self, stack: ExitStack, progress: Callable[[Progress], None]) -> list[str]:
        os.makedirs(self._folder, exist_ok=True)
        folder = os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, folder)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{self._folder}: another unpack is writing to it; wait for that, or give another folder") from None
        fd = os.open(self._paths.rows, OPEN_FLAGS)
        stack.callback(os.close, fd)
        rows = Rows(fd, self._first, self._size)
        there = [os.path.lexists(self._path(number)) for number in range(self._count)]
        self._compare(rows, there)
        missing = there.count(False)
        each = -(-(len(self._header) + self._size) // DISK_BLOCK) * DISK_BLOCK
        require_room(self._folder, missing * each, missing)
        sums = sums_in(self._paths.sums, self._count)
        wrong = set() if sums is None else set(rows.wrong(sums, lambda n: progress(self._progress("checked", n))))
        for number in wrong:
            reason = f"expected row {number} of {self._paths.rows} to have the checksum in {self._paths.sums}, found another"
            self._damaged[number] = Damage(self._ids[number], self._path(number), f"{reason}: pack it again, or get another copy")
        threads = stack.enter_context(ThreadPoolExecutor(THREADS))
        for first, data in rows.blocks(self._count):
            numbers = range(first, first + len(data) // self._size)
            left = [number for number in numbers if not there[number] and number not in wrong]
            for folder_name in {os.path.dirname(self._path(number)) for number in left}:
                os.makedirs(folder_name, exist_ok=True)
            some = -(-len(left) // THREADS)
            parts = [left[start : start + some] for start in range(0, len(left), some or 1)]
            for _ in threads.map(lambda part, data=data, first=first: self._write(part, first, data), parts):
                pass
            progress(self._progress("written", numbers.stop))
        return ["there are no checksums beside it: rows were taken as they are"] if sums is None else []

    def _compare(self, rows: Rows, there: list[bool]) -> None:
        """Make sure that the files that are there hold what they would be written with."""
        if not any(there):
            return
        differ = []
        for first, data in rows.blocks(self._count):
            for number in range(first, first + len(data) // self._size):
                if there[number]:
                    row = data[(number - first) * self._size :][: self._size]
                    if not _holds(self._path(number), self._header, row):
                        differ.append(self._path(number))
        if differ:
            raise InputError(
                f"{self._folder}: expected no other files of these ids, found {len(differ):,} that hold something else, such as "
                f"{', '.join(differ[:MAX_NAMED])}; remove them, or give another folder"
            )

    def _write(self, numbers: list[int], first: int, data: memoryview) -> None:
        for number in numbers:
            path = self._path(number)
            fd = opened(f"{path}.part")
            try:
                os.ftruncate(fd, 0)
                row = data[(number - first) * self._size :][: self._size]
                if os.writev(fd, (self._header, row)) != len(self._header) + len(row):
                    write(fd, b"".join((self._header, row)), 0)
            except BaseException:
                with suppress(OSError):
                    os.unlink(f"{path}.part")
                raise
            finally:
                os.close(fd)
            os.rename(f"{path}.part", path)
            self.written += 1

    def _path(self, number: int) -> str:
        return f"{self._folder}/{self._ids[number]}.npy"

    def _progress(self, doing: str, rows: int) -> Progress:
        return Progress(doing, rows, self._count, rows * self._size)


def _holds(path: str, header: bytes, row: memoryview) -> bool:
    try:
        fd = os.open(path, OPEN_FLAGS | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        size = len(header) + len(row)
        return os.fstat(fd).st_size == size and os.pread(fd, size, 0) == header + row.tobytes()
    except OSError:
        return False
    finally:
        os.close(fd)
