"""The ``.npy`` format: headers are parsed and checked, data is read whole.

Headers are parsed here, not by NumPy's public functions: none of them reads version 3.0, they refuse float8_e5m2, and they warn
of what Python 2 wrote. Where warnings are errors, that would refuse the file, and threads can't silence a warning safely.
"""

from __future__ import annotations

import math
import os
import stat
import struct
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from shmgen._memory.limit_errors import reached
from shmgen._samples.sample_spec import dtype_of, reinterpreted
from shmgen._storage.local import refuse_pointer
from shmgen.errors import FormatError

if TYPE_CHECKING:
    import numpy as np

    from shmgen._storage.remote import Remote
    from shmgen._storage.store import Body

KINDS_OF_FILE = {stat.S_IFDIR: "directory", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}

MAGIC = b"\x93NUMPY"
MAX_HEADER = 10_000
"""Characters. `numpy.load` refuses longer headers, too, since parsing them can exhaust memory."""

MOST_AXES = 31
"""Of an array. NumPy 1 has arrays of 32 axes at most, and a batch has one axis more."""

ENCODINGS = {1: "latin-1", 2: "latin-1", 3: "utf-8"}
"""Of a header's text, by the format's major version."""

UNREADABLE = {"<f1": "|V1", "<W4": "|V4"}
"""How NumPy writes float8_e5m2 and complex32 of ml_dtypes, which it can't read; and bare bytes of the same size, which it can."""

LONGEST = 12 + 4 * MAX_HEADER
"""Bytes of the longest header: a character takes up to four."""

LARGEST_ELEMENT = 32
"""Bytes of the largest number that NumPy knows."""

File = int | memoryview
"""A file: its descriptor, or all its bytes."""

OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC


class Header(NamedTuple):
    """What the header of an ``.npy`` file says; ``size`` is the number of bytes before the data."""

    shape: tuple[int, ...]
    fortran: bool  # the first axis varies fastest
    dtype: np.dtype[np.generic]
    size: int

    @property
    def data_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def reinterpreted(self, dtype: str | None) -> Header:
        """The header as it is read where ``dtype`` is expected: NumPy stores elements of ml_dtypes as bare bytes."""
        return self if dtype is None else self._replace(dtype=reinterpreted(self.dtype, dtype_of(dtype)))


def read_header(file: File) -> tuple[Header, bytes]:
    """The header of an ``.npy`` file, of format version 1 to 3, parsed, and its bytes; all else is a FormatError."""
    start = _pread(file, 12, 0)
    if not start:
        raise FormatError("expected an .npy file, found an empty one (0 bytes)")
    if start[:6] != MAGIC:
        refuse_pointer(start)
        raise FormatError(f"expected an .npy file, found one that begins with {start[:6]!r}")
    if len(start) < 12:
        raise FormatError(f"expected an .npy header, found the end of the file after {len(start)} bytes")
    major, minor = start[6], start[7]
    if major not in ENCODINGS or minor:
        raise FormatError(f"expected .npy format version 1.0, 2.0 or 3.0, found {major}.{minor}")
    prefix = struct.Struct("<H" if major == 1 else "<I")
    (length,) = prefix.unpack_from(start, 8)
    if 8 + prefix.size + length > LONGEST:
        raise _too_long(length)
    size = 8 + prefix.size + length
    raw = _pread(file, size, 0)
    if len(raw) < size:
        raise FormatError(f"expected an .npy header of {size} bytes, found the end of the file after {len(raw)}")
    return Header(*_parse(raw[8 + prefix.size :], ENCODINGS[major]), size), raw


@lru_cache(maxsize=256)  # files of one size have one header, and parsing is most of what a small file costs
def _parse(raw: bytes, encoding: str) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    import re
    from ast import literal_eval

    import numpy as np

    try:
        text = raw.decode(encoding)
        if len(text) > MAX_HEADER:
            raise _too_long(len(text))
        try:
            header = literal_eval(text)
        except SyntaxError:
            if encoding == "utf-8":
                raise
            header = literal_eval(re.sub(r"(?<=\d)\s*L\b", "", text))  # Python 2 wrote an L behind long integers
        if header.keys() != {"descr", "fortran_order", "shape"}:
            raise ValueError
        shape, fortran = header["shape"], header["fortran_order"]
        # No bools, and no number that has more digits than Python prints.
        if not isinstance(shape, tuple) or not all(type(n) is int and n.bit_length() < 64 for n in shape):
            raise ValueError
        if not isinstance(fortran, bool) or len(shape) > MOST_AXES:
            raise ValueError
        descr = header["descr"]
        dtype = np.lib.format.descr_to_dtype(UNREADABLE.get(descr, descr) if isinstance(descr, str) else descr)  # type: ignore[arg-type]
    except FormatError:
        raise
    except Exception:  # literal_eval, tokenize and numpy.dtype raise all kinds of errors
        raise FormatError(f"expected an .npy header, found {raw[:80]!r}") from None
    if any(n < 0 for n in shape):
        raise FormatError(f"expected a shape of sizes from 0, found {shape}")
    if dtype.hasobject:
        raise FormatError(f"expected numbers, found Python objects (dtype {dtype}), which are never unpickled")
    return shape, fortran, dtype


def _too_long(length: int) -> FormatError:
    return FormatError(f"expected an .npy header of at most {MAX_HEADER:,} characters, found one of {length:,}")


def read_header_of(path: str) -> tuple[Header, bytes]:
    """As `read_header`, of the file at ``path``. Checks that the file has all the data that its header promises."""
    fd = os.open(path, OPEN_FLAGS | os.O_NONBLOCK)  # an ordinary open of a FIFO would wait for ever
    try:
        header, raw = read_header(fd)
        require_data(os.fstat(fd).st_size, header.size + header.data_bytes)
        return header, raw
    finally:
        os.close(fd)


def remote_header(remote: Remote, name: str, *, in_parts: bool = False, must: bool = False) -> tuple[Header, bytes, object]:
    """The header of a remote file, its bytes, and the file's version.

    With ``in_parts``, only the first bytes are requested; where they ``must`` be, a server that sends a whole file is an error.
    """
    from shmgen._storage.store import NO_PARTS  # late: only few workers know a network

    def take(body: Body) -> tuple[Header, bytes, object]:
        if must and body.is_whole and (body.total is None or body.total > LONGEST):
            raise FormatError(NO_PARTS)
        header, raw = read_header(memoryview(body.read(LONGEST)))
        if body.total is not None:
            require_data(body.total, header.size + header.data_bytes)
        return header, raw, body.version

    return remote.store.get(name, take, 0, LONGEST if in_parts else None)


def require_data(size: int, expected: int) -> None:
    """Make sure that a file of ``size`` bytes has what its header promises, perhaps terabytes, before memory is allocated."""
    if size < expected:
        raise _truncated(size, expected)


def _pread(file: File, size: int, offset: int) -> bytes:
    """``size`` bytes from ``offset``; fewer only if the file ends before."""
    if not isinstance(file, int):
        return bytes(file[offset : offset + size])
    data = os.pread(file, size, offset)
    while 0 < len(data) < size:
        more = os.pread(file, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def read_whole(file: File, data: memoryview, offset: int) -> None:
    """Fill ``data`` with the file's bytes from ``offset`` on, in as many calls as it takes."""
    if not isinstance(file, int):
        if len(file) < offset + len(data):
            raise _truncated(len(file), offset + len(data))
        data[:] = file[offset : offset + len(data)]
        return
    filled = 0
    while filled < len(data):
        size = os.preadv(file, (data[filled:],), offset + filled)
        if not size:
            raise _truncated(os.fstat(file).st_size, offset + len(data))
        filled += size


def written(file: File) -> tuple[int, int]:
    """When a file was last written to, in nanoseconds, and its size: what differs once it is written to again."""
    if not isinstance(file, int):
        return 0, len(file)
    status = os.fstat(file)
    return status.st_mtime_ns, status.st_size


def refuse_change(file: File, before: tuple[int, int]) -> None:
    """Make sure that a file has not been written to since `written` gave ``before``."""
    if written(file) != before:
        raise FormatError("expected a file that does not change while it is read, found one that was written to meanwhile")


def _truncated(size: int, expected: int) -> FormatError:
    return FormatError(f"expected {expected:,} bytes, found {size:,}: the file is truncated")


def explain(error: Exception, path: str = "") -> str:
    """Why the file at ``path`` can't be read: what was expected, and what was found there."""
    if isinstance(error, FileNotFoundError):
        with suppress(OSError):
            return f"expected a file, found a link to {os.readlink(path)!r}, which does not exist"
        return "expected a file, found none at this path"
    if isinstance(error, ValueError):
        return f"expected an id that makes a path, found one that does not: {error}"
    if isinstance(error, OSError):
        with suppress(OSError):
            if not stat.S_ISREG(mode := os.stat(path).st_mode):
                return f"expected a file, found a {KINDS_OF_FILE.get(stat.S_IFMT(mode), 'device')}"
        limit = reached(error)
        return f"expected a readable file, found: {error.strerror} (errno {error.errno}){limit and f'; {limit}'}"
    return str(error)
