"""Packs a folder of ``.npy`` files into one, which is read several times as fast where samples are small.

Files are read by a `Loader`, in order: it has as many reads in flight as pay, casts, and names what can't be read. What is
written is `shmgen._tools.packed`.

A pack that ends early leaves its files with ``.part`` behind their names, and the next goes on there. It takes nothing on trust:
a row counts as written if its bytes have their checksum, and its file is the one that it was read from.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from hashlib import blake2b
from typing import Any

import numpy as np

from shmgen._samples.sample_spec import RowSpec, SampleSpec
from shmgen._sources.npy import Npy
from shmgen._sources.npy_format import OPEN_FLAGS
from shmgen._tools.packed import (
    OTHER_NAME,
    RECORD,
    Outcome,
    Progress,
    Rows,
    begins_with,
    checked_target,
    checksums,
    explain_write,
    header_of,
    holds,
    locked,
    opened,
    refused_ids,
    require_room,
    require_size,
    sums_in,
    write,
)
from shmgen._tools.scan_report import Damage
from shmgen.errors import InputError, SampleError
from shmgen.loader import Loader

BATCH_BYTES, MAX_BATCH = 4 << 20, 4096
"""Files that are read as a batch: so many bytes of them, but no more files than these."""

DISK = "it, or its disk, is damaged"

AT_ONCE = 10_000
"""Files whose versions are asked for at once."""

TRIES = 3
"""A file that was changed while it was read is read so often."""

MAX_DAMAGED = 100
"""After so many files that can't be read, though they could be a moment before, something else is wrong, and the pack ends."""


class Pack:
    """Packs files.

    Args:
        folder: of the files, or its URL.
        target: the ``.npy`` file to be made.
        ids: of the files, in the order of the rows.
        given: the shape and dtype that the user expects.
        row: what each row is, as a scan has found.
        full: read all back from the disk at the end, and compare checksums.
        workers: processes that read; as many as pay by default.

    Attributes:
        written: how many rows this run has written.

    Raises:
        InputError: there can be no such target.
    """

    def __init__(
        self,
        folder: str,
        target: str,
        ids: list[bytes],
        given: SampleSpec,
        row: RowSpec,
        *,
        full: bool = False,
        workers: int | None = None,
    ) -> None:
        self._ids = ids
        self._row = row
        self._full = full
        self._workers: Any = "auto" if workers is None else workers
        self._source = Npy(folder, given.dim, given.n_channels, row.dtype)
        self._paths = checked_target(folder, target)
        self._parts = self._paths.parts
        self._header = header_of((len(ids), *row.shape), row.numpy_dtype)
        self._lines = b"".join([id + b"\n" for id in ids])
        self._sums_header = header_of((len(ids),), RECORD)
        self._sums = np.zeros(len(ids), RECORD)
        self._versions = np.zeros(len(ids), np.uint64)
        self._tries = np.zeros(len(ids), np.uint8)
        self._damaged: dict[int, str] = {}
        self._remarks: list[str] = []
        self._rows = Rows(-1, len(self._header), row.row_bytes)
        self._sums_fd = -1
        self.written = 0

    @property
    def kept(self) -> str:
        """What a pack that ended early has left, for whoever wants to go on."""
        count = int(np.count_nonzero(self._sums["version"]))
        return f"{count:,} of {len(self._ids):,} rows are in {self._parts.rows}; the same command goes on there" if count else ""

    def run(self, progress: Callable[[Progress], None] = lambda _: None) -> Outcome:
        """Pack all that is not packed yet. May be called once.

        Args:
            progress: called whenever there is progress.

        Raises:
            InputError: it can't be done: the target is there and holds something else, the disk is full, another pack is at it.
        """
        begun = time.monotonic()
        size = len(self._ids) * self._row.row_bytes
        if refused := refused_ids(self._ids, lambda id: self._source.path(os.fsdecode(id))):
            return Outcome(len(self._ids), size, 0, time.monotonic() - begun, refused, [])
        try:
            with ExitStack() as stack:
                self._run(stack, progress)
        except OSError as error:
            raise InputError(f"{error.filename or self._parts.rows}: {explain_write(error)}") from None
        damaged = [Damage(self._name(n), self._place(n), reason) for n, reason in sorted(self._damaged.items())]
        return Outcome(len(self._ids), size, self.written, time.monotonic() - begun, damaged, self._remarks)

    def _run(self, stack: ExitStack, progress: Callable[[Progress], None]) -> None:
        self._rows.fd = fd = locked(self._parts.rows)
        stack.callback(os.close, fd)
        stack.callback(_remove_empty, fd, self._parts.rows)
        if os.path.lexists(self._paths.rows):
            self._look_at_target(progress)
            return
        if os.path.lexists(self._paths.ids) and not holds(self._paths.ids, self._lines):
            raise InputError(f"{self._paths.ids}: expected no file there, or these ids, found others; {OTHER_NAME}")
        self._begin(progress)
        self._sums_fd = opened(self._parts.sums)
        stack.callback(os.close, self._sums_fd)
        self._find_versions(range(len(self._ids)))
        while (left := self._left()).size and len(self._damaged) < MAX_DAMAGED:
            self._copy(left, progress)
            self._find_versions(left.tolist())  # a file that was changed meanwhile is read again
            for number in np.flatnonzero(self._tries >= TRIES).tolist():
                if self._sums["version"][number] != self._versions[number]:
                    self._damaged[number] = "expected a file that does not change while it is read, found one that does"
        if not self._damaged and self._full:
            self._check_all(progress)
        if not self._damaged:
            self._finish()

    def _look_at_target(self, progress: Callable[[Progress], None]) -> None:
        """There is a file under the target's name: it must be what would be packed, or it is left alone."""
        rows, ids, sums = self._paths
        why = ""
        found = sums_in(sums, len(self._ids))
        if not begins_with(rows, self._header):
            why = "that does not hold as many rows of this shape and dtype"
        elif (size := os.stat(rows).st_size) < (whole := len(self._header) + len(self._ids) * self._row.row_bytes):
            why = f"of {size:,} bytes in place of {whole:,}: it is truncated"
        elif not holds(ids, self._lines):
            why = f"whose ids, in {ids}, are not these"
        elif found is None:
            why = f"that has no checksums in {sums}"
        else:
            self._find_versions(range(len(self._ids)))
            changed = np.flatnonzero(found["version"] != self._versions)
            if changed.size:
                why = (
                    f"but {changed.size:,} of the {len(self._ids):,} files have changed since, such as {self._name(changed[0])!r}"
                )
        if found is None or why:
            raise InputError(f"{rows}: expected no file there, found one {why}; {OTHER_NAME}")
        self._remarks.append("it was there already, and holds these files as they are")
        self._sums = found
        if self._full:
            fd = os.open(rows, OPEN_FLAGS)
            try:
                self._rows = Rows(fd, len(self._header), self._row.row_bytes)
                self._check_all(progress)
            finally:
                os.close(fd)

    def _begin(self, progress: Callable[[Progress], None]) -> None:
        """Find out what is written already, and make room for the rest."""
        part, ids, sums = self._parts
        files = len(self._header) + len(self._ids) * self._row.row_bytes, len(self._lines), self._sums_header_bytes
        taken = sum(os.stat(path).st_blocks * 512 for path in self._parts if os.path.exists(path))
        require_room(os.path.dirname(part), sum(files) - taken)
        require_size(part, files[0])
        # They have their own names already if a pack was killed before the rows got theirs.
        for path, own in ((ids, self._paths.ids), (sums, self._paths.sums)):
            if not os.path.lexists(path) and os.path.lexists(own):
                os.rename(own, path)
        found = sums_in(sums, len(self._ids))
        size = os.fstat(self._rows.fd).st_size
        if found is not None and begins_with(part, self._header) and holds(ids, self._lines):
            self._sums = found
            wrong = self._rows.wrong(self._sums, lambda rows: progress(self._progress("checked", rows)))
            self._sums["version"][wrong] = 0
            return
        if size:
            self._remarks.append(f"{part} was of other files, or another shape or dtype: it was begun anew")
        os.ftruncate(self._rows.fd, 0)
        write(self._rows.fd, self._header, 0)
        for path, data in ((ids, self._lines), (sums, self._sums_header + self._sums.tobytes())):
            fd = opened(path)
            try:
                os.ftruncate(fd, 0)
                write(fd, data, 0)
                os.fsync(fd)
            finally:
                os.close(fd)

    @property
    def _sums_header_bytes(self) -> int:
        return len(self._sums_header) + self._sums.nbytes

    def _find_versions(self, numbers: Sequence[int]) -> None:
        """Look at which version each of these files is."""
        for first in range(0, len(numbers), AT_ONCE):
            some = numbers[first : first + AT_ONCE]
            self._versions[some] = [_digest(_version(self._source.path(self._name(number)))) for number in some]

    def _left(self) -> np.ndarray:
        """The numbers of the rows that are yet to be written."""
        left = self._sums["version"] != self._versions
        left[list(self._damaged)] = False
        return np.flatnonzero(left)

    def _copy(self, numbers: np.ndarray, progress: Callable[[Progress], None]) -> None:
        """Write these rows."""
        size = max(1, min(MAX_BATCH, BATCH_BYTES // self._row.row_bytes, len(numbers)))
        ids = [self._name(number) for number in numbers.tolist()]
        try:
            loader = Loader(ids, None, size, shuffle=False, tail="keep", source=self._source, workers=self._workers)
        except SampleError as error:  # the first file
            self._damaged[int(numbers[0])] = error.reason
            return
        except OSError as error:  # nothing was written: there is too little memory
            raise InputError(str(error)) from None
        done = len(self._ids) - len(numbers)
        with loader:
            batches = iter(loader)
            for first in range(0, len(numbers), size):
                some = numbers[first : first + size]
                try:
                    (X,) = next(batches)
                except SampleError as error:
                    # The others of its batch are read once more.
                    self._damaged[int(some[ids[first : first + size].index(str(error.id))])] = error.reason
                    if len(self._damaged) >= MAX_DAMAGED:
                        return
                    continue
                self._write(some, memoryview(X.reshape(-1).view(np.uint8)))
                done += len(some)
                progress(self._progress("written", done))

    def _write(self, numbers: np.ndarray, data: memoryview) -> None:
        """Write rows: first their bytes, then that they are written."""
        size = self._row.row_bytes
        self._sums["version"][numbers] = 0
        for start, stop in _runs(numbers):
            self._rows.write(int(numbers[start]), data[start * size : stop * size])
        self._sums["crc32"][numbers] = checksums(data, size)
        self._sums["version"][numbers] = self._versions[numbers]
        for start, stop in _runs(numbers):
            first, last = int(numbers[start]), int(numbers[stop - 1]) + 1
            write(self._sums_fd, self._sums[first:last].tobytes(), len(self._sums_header) + first * RECORD.itemsize)
        self._tries[numbers] += 1
        self.written += len(numbers)

    def _check_all(self, progress: Callable[[Progress], None]) -> None:
        """Read all rows back, from the disk where the system lets go of what it has of them in memory."""
        os.fsync(self._rows.fd)
        os.posix_fadvise(self._rows.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        wrong = self._rows.wrong(self._sums, lambda rows: progress(self._progress("checked", rows)))
        for number in wrong:
            self._damaged[number] = f"expected row {number} of {self._paths.rows} as it was written, found other bytes: {DISK}"
        if self._sums_fd >= 0 and wrong:
            self._sums["version"][wrong] = 0
            write(self._sums_fd, self._sums.tobytes(), len(self._sums_header))

    def _finish(self) -> None:
        """Give the files their names."""
        os.fsync(self._rows.fd)
        os.fsync(self._sums_fd)
        if os.path.lexists(self._paths.rows):
            raise InputError(f"{self._paths.rows}: expected no file there, found one that was not there before; {OTHER_NAME}")
        for part, path in (*zip(self._parts[1:], self._paths[1:], strict=True), (self._parts.rows, self._paths.rows)):
            os.rename(part, path)
        folder = os.open(os.path.dirname(self._paths.rows), os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _progress(self, doing: str, rows: int) -> Progress:
        return Progress(doing, rows, len(self._ids), rows * self._row.row_bytes)

    def _name(self, number: int) -> str:
        return os.fsdecode(self._ids[number])

    def _place(self, number: int) -> str:
        return self._source.path(self._name(number))


def _remove_empty(fd: int, path: str) -> None:
    """Remove the file that is locked if nothing was written to it."""
    with suppress(OSError):
        if not os.fstat(fd).st_size:
            os.unlink(path)


def _version(path: str) -> object:
    """Anything that is different once a file has been replaced, or written to."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    # A writer can set the time of modification (mtime), but not the time of change (ctime).
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def _digest(version: object) -> int:
    """A number for a file's version, never 0."""
    return int.from_bytes(blake2b(repr(version).encode(), digest_size=8).digest(), "little") or 1


def _runs(numbers: np.ndarray) -> Iterator[tuple[int, int]]:
    """The stretches of ``numbers`` in which each is one more than the one before: the first position, and one past the last."""
    edges = np.flatnonzero(np.diff(numbers) != 1) + 1
    yield from zip([0, *edges.tolist()], [*edges.tolist(), len(numbers)], strict=True)
