"""What a worker process of a scan runs: it looks at files, and reports which are good and what is wrong with the others.

It imports the standard library only, and NumPy for a header that the main process did not send it, and for floating-point data.
It ends when the main process closes the stream between them or dies. It holds nothing, so it may be killed at any time.
"""

from __future__ import annotations

import os
import pickle
import stat
import sys
import time
import zlib
from ast import literal_eval
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from shmgen._sources.npy_format import OPEN_FLAGS, File, explain, read_header, read_whole
from shmgen._worker.liveness import begin
from shmgen._worker.protocol import Unframer, frame
from shmgen.errors import FormatError

if TYPE_CHECKING:
    import numpy as np

START = 256
"""Bytes read from every file: `numpy.save` writes headers of 128 bytes, and of 192 or 256 for arrays of very many axes."""

BLOCK = 1 << 20
"""Bytes of data read at once: they fit in a processor's cache, and the size of every floating-point item divides them."""

REPORT_EVERY = 64 << 20
"""Bytes of one file after which progress is reported: a file may take minutes."""

FLAGS = OPEN_FLAGS | os.O_NONBLOCK
"""Without O_NONBLOCK, opening a FIFO would wait for ever."""

MAX_FORMATS = 4096
"""The number of headers that a worker remembers."""

SEPARATOR = b"\0"
"""Between ids in a message: the only byte that no path can hold."""

KINDS_OF_FILE = {stat.S_IFDIR: "directory", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}


class Format(NamedTuple):
    """A header, and what it says, in terms that need no NumPy.

    Attributes:
        raw: the bytes of the header.
        shape: of the array.
        descr: of the dtype, as Python text of the header's entry.
        fortran: whether the first axis varies fastest.
        inexact: whether there can be NaN among the data.
        data_bytes: number of bytes of the data.
    """

    raw: bytes
    shape: tuple[int, ...]
    descr: str
    fortran: bool
    inexact: bool
    data_bytes: int


NO_FORMAT = Format(bytes(START + 1), (), "", fortran=False, inexact=False, data_bytes=0)
"""Its header is longer than what is read of a file, so no file begins with it."""


class Setup(NamedTuple):
    """The first message to a worker; the others are ids.

    Attributes:
        path: ``sys.path`` of the main process.
        folder: of the files.
        full: whether to read all data.
        formats: headers that files are likely to have.
        store: where the files are if the folder is a URL, pickled; else empty.
    """

    path: list[str]
    folder: bytes
    full: bool
    formats: list[Format]
    store: bytes


class Tally(NamedTuple):
    """The answer to a message of ids.

    Attributes:
        files: number of ids in the message.
        seconds: time that they took.
        read: bytes of data read, without those that were reported before.
        sound: for each shape and descr the number of whole files, their bytes, and their ids, compressed by `pack`.
        damaged: the ids of the other files, each with what is wrong.
    """

    files: int
    seconds: float
    read: int
    sound: list[tuple[tuple[int, ...], str, int, int, bytes]]
    damaged: list[tuple[bytes, str]]


def pack(ids: Iterable[bytes]) -> bytes:
    """``ids`` in a fraction of the memory: neighbours are similar."""
    return zlib.compress(SEPARATOR.join(ids), 1)


def unpack(packed: bytes) -> list[bytes]:
    """The ids that `pack` packed."""
    return zlib.decompress(packed).split(SEPARATOR)


def read_format(file: File) -> Format:
    """The format of an ``.npy`` file.

    Raises:
        FormatError: as `read_header`.
    """
    import numpy as np

    header, raw = read_header(file)
    descr = repr(np.lib.format.dtype_to_descr(header.dtype))
    return Format(raw, header.shape, descr, header.fortran, header.dtype.kind in "fc", header.data_bytes)


def dtype_of(descr: str) -> np.dtype[np.generic]:
    """The dtype that a `Format` describes."""
    import numpy as np

    return np.lib.format.descr_to_dtype(literal_eval(descr))


class Examiner:
    """Looks at files.

    Args:
        folder: of the files.
        full: whether to read all data.
        formats: headers that files are likely to have.
        progress: called now and then, within a long file, with the number of bytes read since the last call.
    """

    def __init__(self, folder: bytes, *, full: bool, formats: Iterable[Format], progress: Callable[[int], None]) -> None:
        self._prefix = folder + b"/"
        self._full = full
        self._formats = {format.raw: format for format in formats}
        self._short: dict[Format, _Short | None] = {}
        self._progress = progress
        self._read = 0
        self._buffer = memoryview(bytearray(BLOCK if full else 0))

    def examine(self, ids: list[bytes]) -> Tally:
        """Look at the files of ``ids``."""
        # A file costs one open, read, lseek, close and comparison; if a short file is read whole, one preadv in place of read
        # and lseek. This loop decides how fast a scan is.
        begun = time.monotonic()
        opened, read, seek, preadv, close, flags, end = os.open, os.read, os.lseek, os.preadv, os.close, FLAGS, os.SEEK_END
        prefix, full = self._prefix, self._full
        sound: dict[Format, list[bytes]] = {}
        damaged = []
        format, held = NO_FORMAT, []
        raw, least, short = format.raw, 0, None
        for id in ids:
            path = b"%b%b.npy" % (prefix, id)
            try:
                fd = opened(path, flags)
                try:
                    if short and preadv(fd, short.buffers, 0) == least and short.found == raw and short.is_finite():
                        self._read += format.data_bytes
                    else:
                        start = read(fd, START)
                        if not start.startswith(raw):
                            format = self._format(fd, start)
                            raw, least, short = format.raw, len(format.raw) + format.data_bytes, self._short.get(format)
                            held = sound.setdefault(format, [])
                        size = seek(fd, 0, end)
                        if size < least:
                            raise FormatError(f"expected {least:,} bytes, found {size:,}: the file is truncated")
                        if full:
                            self._look(fd, format)
                finally:
                    close(fd)
            except (OSError, ValueError, FormatError) as error:
                damaged.append((id, reason(path, error)))
            else:
                held.append(id)
        read_since, self._read = self._read, 0
        kinds = [
            (format.shape, format.descr, len(held), len(held) * (len(format.raw) + format.data_bytes), pack(held))
            for format, held in sound.items()
            if held
        ]
        return Tally(len(ids), time.monotonic() - begun, read_since, kinds, damaged)

    def _format(self, fd: int, start: bytes) -> Format:
        """The format of the file open at ``fd``, which begins with ``start``. A header is parsed when it is met first."""
        format = None
        if len(start) >= 10:
            format = self._formats.get(start[: 10 + start[8] + (start[9] << 8)])  # where version 1.0 has the length of the header
        if format is None:
            format = read_format(fd)
            if len(self._formats) >= MAX_FORMATS:
                self._formats.clear()
                self._short.clear()
            self._formats[format.raw] = format
        if self._full and format not in self._short:
            self._short[format] = _Short(format, self._buffer) if format.data_bytes <= BLOCK else None
        return format

    def _look(self, fd: int, format: Format) -> None:
        """Read all data, and check that numbers are finite."""
        offset, left = len(format.raw), format.data_bytes
        found = NotFinite(format) if format.inexact else None
        while left:
            part = self._buffer[: min(left, BLOCK)]
            read_whole(fd, part, offset)
            if found:
                found.look(part)
            offset += len(part)
            left -= len(part)
            self._read += len(part)
            if self._read >= REPORT_EVERY:
                self._progress(self._read)
                self._read = 0
        if found:
            found.check()


class _Short:
    """Buffers for files of a format whose data fit in a block.

    Attributes:
        buffers: for header and data, filled by one call.
        found: the one for the header.
    """

    def __init__(self, format: Format, buffer: memoryview) -> None:
        self.found = bytearray(len(format.raw))
        data = buffer[: format.data_bytes]
        self.buffers = self.found, data
        self._values = None
        if format.inexact and data:
            import numpy as np

            self._values = np.frombuffer(data, dtype_of(format.descr))
            self._isfinite = np.isfinite

    def is_finite(self) -> bool:
        """Whether all numbers that were read are finite."""
        return self._values is None or bool(self._isfinite(self._values).all())


class NotFinite:
    """Counts the numbers of a file that are not finite."""

    def __init__(self, format: Format) -> None:
        import numpy as np

        self._np = np
        self._format = format
        self._dtype = dtype_of(format.descr)
        self._seen = self._nan = self._infinite = 0
        self._first = -1

    def look(self, part: memoryview) -> None:
        np = self._np
        values = np.frombuffer(part, self._dtype)
        finite = np.isfinite(values)
        if not finite.all():
            if self._first < 0:
                self._first = self._seen + int(finite.argmin())
            nan = int(np.count_nonzero(np.isnan(values)))
            self._nan += nan
            self._infinite += int(np.count_nonzero(~finite)) - nan
        self._seen += len(values)

    def check(self) -> None:
        if self._first < 0:
            return
        index = self._np.unravel_index(self._first, self._format.shape, "F" if self._format.fortran else "C")
        counts = [f"{count:,} {what}" for count, what in ((self._nan, "NaN"), (self._infinite, "infinite")) if count]
        raise FormatError(f"expected finite numbers, found {' and '.join(counts)}, the first at index {tuple(map(int, index))}")


def reason(path: bytes, error: Exception) -> str:
    """What was expected of the file at ``path``, and what was found."""
    if isinstance(error, FileNotFoundError):
        with suppress(OSError):
            return f"expected a file, found a link to {os.fsdecode(os.readlink(path))!r}, which does not exist"
        if path.endswith(b".npy.npy"):
            return f"{explain(error)}; an id is what stands before .npy"
    elif isinstance(error, OSError):
        with suppress(OSError):
            mode = os.stat(path).st_mode
            if not stat.S_ISREG(mode):
                return f"expected a file, found a {KINDS_OF_FILE.get(stat.S_IFMT(mode), 'device')}"
    return explain(error)


def main(stream: int, liveness: int) -> None:
    """Serve the main process at the other end of ``stream`` until it closes it.

    Args:
        stream: descriptor of a connected socket.
        liveness: descriptor of a pipe that the main process holds open as long as it lives.
    """
    begin(liveness, stream)
    messages = _messages(stream)
    with suppress(BrokenPipeError, ConnectionResetError, StopIteration):
        setup: Setup = pickle.loads(next(messages))
        sys.path[:] = setup.path
        examine = _examine(setup, lambda read: _send(stream, read))
        for message in messages:
            _send(stream, examine(message.split(SEPARATOR)))


def _examine(setup: Setup, progress: Callable[[int], None]) -> Callable[[list[bytes]], Tally]:
    """What looks at files."""
    if not setup.store:
        return Examiner(setup.folder, full=setup.full, formats=setup.formats, progress=progress).examine
    from shmgen._tools.scan_remote import RemoteExaminer  # late: few scans need it

    return RemoteExaminer(pickle.loads(setup.store), full=setup.full).examine


def _messages(stream: int) -> Iterator[bytes]:
    unframer = Unframer()
    while data := os.read(stream, 1 << 16):
        yield from unframer.feed(data)


def _send(stream: int, answer: Tally | int) -> None:
    data = memoryview(frame(pickle.dumps(answer)))
    while data:
        data = data[os.write(stream, data) :]
