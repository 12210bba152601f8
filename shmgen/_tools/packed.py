"""One file in place of many, as `pack` writes it and `unpack` reads it::

    all.npy     the rows: an ordinary ``.npy`` file
    all.ids     their ids, in the order of the rows: a line each
    all.sums    an ``.npy`` file of a `RECORD` for each row

While they are written their names end in ``.part``. `all.npy` gets its own name last: where it is, all is whole.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple
from zlib import crc32

import numpy as np

from shmgen._memory.limit_errors import most_file_bytes
from shmgen._sources.npy_format import OPEN_FLAGS, read_header
from shmgen._storage.urls import is_url
from shmgen._tools.scan_report import Damage
from shmgen.errors import FormatError, InputError

RECORD = np.dtype([("crc32", "<u4"), ("version", "<u8")])
"""Of a row: the CRC-32 of its bytes, and a digest of what its file's version was; 0 where the row is not written yet."""

CHECKED_BYTES = 8 << 20
"""So much is read at once to be checked."""

SUFFIX = ".npy"

OTHER_NAME = "remove it, or give another name"


class Progress(NamedTuple):
    """How far a pack or unpack has come.

    Attributes:
        doing: what it does to rows: ``"checked"`` or ``"written"``.
        rows: to how many it has done that.
        total: to how many it is to be done.
        bytes: of those that it has done.
    """

    doing: str
    rows: int
    total: int
    bytes: int


class Outcome(NamedTuple):
    """What a pack or unpack has done.

    Attributes:
        rows: how many there are.
        bytes: of all.
        written: how many rows were written.
        seconds: that it took.
        damaged: files, or rows, that can't be read; if there are any, a pack is not finished.
        remarks: what else is worth saying.
    """

    rows: int
    bytes: int
    written: int
    seconds: float
    damaged: list[Damage]
    remarks: list[str]


class Paths(NamedTuple):
    """Where the three files are.

    Attributes:
        rows: the ``.npy`` file.
        ids: the file of ids.
        sums: the file of checksums.
    """

    rows: str
    ids: str
    sums: str

    @classmethod
    def of(cls, rows: str) -> Paths:
        """Beside the file ``rows``.

        Raises:
            InputError: its name does not end in ``.npy``.
        """
        if not os.path.basename(rows).endswith(SUFFIX) or os.path.basename(rows) == SUFFIX:
            raise InputError(f"{rows}: expected the name of a file that ends in .npy; give one such as all.npy")
        stem = rows[: -len(SUFFIX)]
        return cls(rows, f"{stem}.ids", f"{stem}.sums")

    @property
    def parts(self) -> Paths:
        """Where they are while they are written."""
        return Paths(*(f"{path}.part" for path in self))


def header_of(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> bytes:
    """The header of an ``.npy`` file, as `numpy.save` writes it."""
    file = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": descr})
    return file.getvalue()


class Rows:
    """The rows of an open file.

    Args:
        fd: descriptor of the file.
        first: where the first row begins, in bytes.
        row_bytes: bytes of a row.
    """

    def __init__(self, fd: int, first: int, row_bytes: int) -> None:
        self.fd = fd
        self.first = first
        self.row_bytes = row_bytes

    def write(self, number: int, data: memoryview) -> None:
        """Write rows from row ``number`` on."""
        write(self.fd, data, self.first + number * self.row_bytes)

    def blocks(self, count: int) -> Iterator[tuple[int, memoryview]]:
        """All of ``count`` rows, some at a time: the number of the first, and their bytes, fewer where the file ends before."""
        at_once = max(1, CHECKED_BYTES // self.row_bytes)
        buffer = memoryview(bytearray(min(at_once, count) * self.row_bytes))
        for number in range(0, count, at_once):
            wanted = buffer[: min(at_once, count - number) * self.row_bytes]
            filled = 0
            while filled < len(wanted) and (
                size := os.preadv(self.fd, (wanted[filled:],), self.first + number * self.row_bytes + filled)
            ):
                filled += size
            yield number, wanted[:filled]

    def wrong(self, sums: np.ndarray, checked: Callable[[int], object]) -> list[int]:
        """The numbers of the rows that are written, as ``sums`` says, and have another checksum.

        Args:
            sums: a `RECORD` for each row.
            checked: called with the number of rows that have been looked at.
        """
        wrong: list[int] = []
        expected, written, size = sums["crc32"].tolist(), sums["version"] != 0, self.row_bytes
        (last,) = np.flatnonzero(written)[-1:].tolist() or [-1]
        for first, data in self.blocks(last + 1):
            for number in range(first, min(last + 1, first + max(1, CHECKED_BYTES // size))):
                row = data[(number - first) * size :][:size]
                if written[number] and (len(row) < size or crc32(row) != expected[number]):
                    wrong.append(number)
            checked(min(last + 1, first + max(1, CHECKED_BYTES // size)))
        return wrong


def checksums(data: memoryview, row_bytes: int) -> list[int]:
    """The checksum of each row of ``data``."""
    return [crc32(data[first : first + row_bytes]) for first in range(0, len(data), row_bytes)]


def sums_in(path: str, count: int) -> np.ndarray | None:
    """A `RECORD` for each of ``count`` rows, from a file; None if it holds none, or of another number of rows."""
    try:
        with open(path, "rb") as file:
            header = read_header(file.fileno())[0]
            if header.shape != (count,) or header.dtype != RECORD:
                return None
            file.seek(header.size)
            data = file.read(count * RECORD.itemsize)
    except (OSError, FormatError):
        return None
    return np.frombuffer(bytearray(data), RECORD) if len(data) == count * RECORD.itemsize else None


def begins_with(path: str, data: bytes) -> bool:
    """Whether the file at ``path`` begins with these bytes."""
    return _start(path, len(data)) == data


def holds(path: str, data: bytes) -> bool:
    """Whether the file at ``path`` holds these bytes, and no others."""
    return _start(path, len(data) + 1) == data


def _start(path: str, size: int) -> bytes:
    """The first bytes of a file; none if it can't be read."""
    try:
        with open(os.open(path, OPEN_FLAGS | os.O_NONBLOCK), "rb") as file:  # an ordinary open of a FIFO would wait for ever
            return file.read(size) or b""
    except OSError:
        return b""


def write(fd: int, data: bytes | memoryview, place: int) -> None:
    """Write all of ``data`` from byte ``place`` on."""
    left = memoryview(data)
    while left:
        written = os.pwrite(fd, left, place)
        left, place = left[written:], place + written


def require_room(folder: str, needed: int, files: int = 0) -> None:
    """Make sure that a folder has room for so many more bytes, and files.

    Raises:
        InputError: it has not.
    """
    system = os.statvfs(folder)
    free = system.f_bavail * system.f_frsize
    if free < needed:
        raise InputError(
            f"{folder}: expected {needed:,} bytes of free disk, found {free:,}; make room for {needed - free:,} more, or give a "
            "place on another disk"
        )
    if system.f_files and system.f_favail < files:
        raise InputError(
            f"{folder}: expected room for {files:,} files, found {system.f_favail:,} free inodes; give a place on another disk"
        )


def require_size(path: str, size: int) -> None:
    """Make sure that this process may write a file of so many bytes.

    Raises:
        InputError: it may not.
    """
    most = most_file_bytes()
    if most is not None and size > most:
        raise InputError(
            f"{path}: expected to write {size:,} bytes, found that files may have {most:,}; raise the limit (ulimit -f)"
        )


def explain_write(error: OSError) -> str:
    """Why something can't be written, and what to do."""
    remedy = {
        errno.ENOSPC: "the disk is full: make room",
        errno.EDQUOT: "your share of the disk is full: make room",
        errno.EFBIG: "files may not be so large (ulimit -f)",
        errno.EROFS: "give a place that can be written to",
        errno.EACCES: "give a place that you may write to",
        errno.ENOENT: "give a folder that is there",
        errno.ENOTDIR: "give a folder that is one",
    }.get(error.errno or 0, "see to it")
    return f"expected to write, found: {error.strerror} (errno {error.errno}); {remedy}"


def refused_ids(ids: Sequence[bytes], place: Callable[[bytes], str]) -> list[Damage]:
    """Ids that no line of a file can hold, or that are there twice.

    Args:
        ids: all of them.
        place: the file of an id.
    """
    refused = []
    for id in ids:
        reason = ""
        if b"\n" in id or id.endswith(b"\r"):
            reason = "expected an id that fits on a line, found one with a line break"
        elif not id:
            reason = "expected an id, found a file that has no name before .npy"
        elif id.startswith(b"\xef\xbb\xbf"):
            reason = "expected an id that a line may begin with, found one that begins with a byte order mark"
        if reason:
            refused.append(Damage(os.fsdecode(id), place(id), f"{reason}; rename the file"))
    if len(set(ids)) < len(ids):
        twice = [id for id, times in Counter(ids).items() if times > 1]
        refused += [Damage(os.fsdecode(id), place(id), "expected each id once, found it several times") for id in twice]
    return refused


def checked_target(folder: str, target: str) -> Paths:
    """Where a pack of the files of ``folder`` is to be.

    Raises:
        InputError: it can't be there.
    """
    paths = Paths.of(os.path.abspath(target))
    within = os.path.realpath(os.path.dirname(paths.rows))
    if not os.path.isdir(within):
        raise InputError(f"{target}: expected a folder that is there, found none at {os.path.dirname(paths.rows)}; make it first")
    if not is_url(folder) and os.path.commonpath([within, os.path.realpath(folder)]) == os.path.realpath(folder):
        raise InputError(
            f"{target}: expected a place outside of {folder}, where each .npy file is a sample, found one in it; give another"
        )
    return paths


def locked(path: str) -> int:
    """A descriptor of the file at ``path``, made if it is not there, which no other pack has."""
    while True:
        fd = opened(path)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{path}: another pack is writing it; wait for that, or give another target") from None
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(fd)):
                    return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # another pack has finished meanwhile


def opened(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
