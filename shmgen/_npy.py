"""The ``.npy`` format: headers checked, data read whole.

A worker imports this module, so NumPy is imported only where a file needs more than a plain read: most never do, and a worker
without NumPy starts three times sooner.
"""

from __future__ import annotations

import math
import os
import re
import struct
from ast import literal_eval
from typing import TYPE_CHECKING, Any, NamedTuple

from shmgen.errors import Misfit

if TYPE_CHECKING:
    import numpy as np

MAGIC = b"\x93NUMPY"
LONGEST_HEADER = 10_000
"""Characters; `numpy.load` refuses longer ones too, since parsing them can exhaust memory."""

OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC


class Header(NamedTuple):
    """What the header of an ``.npy`` file says.

    Attributes:
        shape: of the array.
        fortran: whether its first axis varies fastest.
        dtype: of its elements, byte order included.
        size: bytes before the data.
    """

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[np.generic]
    size: int

    @property
    def data_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(fd: int) -> tuple[Header, bytes]:
    """The header of the ``.npy`` file open at ``fd``, parsed and as it stands in the file.

    Accepts format versions 1 to 3, as `numpy.load` with ``allow_pickle=False`` does.

    Raises:
        Misfit: it is no ``.npy`` file, or one whose elements are Python objects.
    """
    start = _pread(fd, 12, 0)
    if not start:
        raise Misfit("expected an .npy file, found an empty one (0 bytes)")
    if start[:6] != MAGIC:
        raise Misfit(f"expected an .npy file, found one that begins with {start[:6]!r}")
    if len(start) < 10:
        raise Misfit(f"expected an .npy header, found the end of the file after {len(start)} bytes")
    major, minor = start[6], start[7]
    if (major, minor) not in ((1, 0), (2, 0), (3, 0)):
        raise Misfit(f"expected .npy format version 1.0, 2.0 or 3.0, found {major}.{minor}")
    prefix = struct.Struct("<H" if major == 1 else "<I")
    if len(start) < 8 + prefix.size:
        raise Misfit(f"expected an .npy header, found the end of the file after {len(start)} bytes")
    (length,) = prefix.unpack_from(start, 8)
    if length > LONGEST_HEADER:
        raise Misfit(f"expected an .npy header of at most {LONGEST_HEADER:,} characters, found one of {length:,}")
    size = 8 + prefix.size + length
    raw = _pread(fd, size, 0)
    if len(raw) < size:
        raise Misfit(f"expected an .npy header of {size} bytes, found the end of the file after {len(raw)}")
    return Header(*_parse(raw[8 + prefix.size :], "utf-8" if major == 3 else "latin-1"), size), raw


def _parse(text: bytes, encoding: str) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    import numpy as np

    try:
        header = _dict(text.decode(encoding), from_python_2=encoding == "latin-1")
        if header.keys() != {"descr", "fortran_order", "shape"}:
            raise ValueError
        shape, fortran = header["shape"], header["fortran_order"]
        if not isinstance(shape, tuple) or not all(isinstance(n, int) for n in shape) or not isinstance(fortran, bool):
            raise ValueError
        dtype = np.lib.format.descr_to_dtype(header["descr"])
        np.empty((0,) * (1 + len(shape)))  # which raises where a batch would have more axes than NumPy knows
    except (ValueError, TypeError, SyntaxError, AttributeError, KeyError, IndexError, MemoryError, RecursionError):
        raise Misfit(f"expected an .npy header, found {text[:80]!r}") from None
    if any(n < 0 for n in shape):
        raise Misfit(f"expected a shape of sizes from 0, found {shape}")
    if dtype.hasobject:
        raise Misfit(f"expected numbers, found Python objects (dtype {dtype}), which are never unpickled")
    return shape, fortran, dtype


def _dict(text: str, *, from_python_2: bool) -> Any:
    try:
        return literal_eval(text)
    except SyntaxError:
        if not from_python_2:
            raise
        # Python 2 wrote its long integers as 3L.
        return literal_eval(re.sub(r"(?<=\d)L\b", "", text))


def read_header_of(path: str) -> tuple[Header, bytes]:
    """As `read_header`, of the file at ``path``, which is no shorter than its header says.

    Raises:
        Misfit: it is; a header that was damaged may ask for any amount of memory.
    """
    # A FIFO would keep an ordinary open waiting for ever.
    fd = os.open(path, OPEN_FLAGS | os.O_NONBLOCK)
    try:
        header, raw = read_header(fd)
        expected, found = header.size + header.data_bytes, os.fstat(fd).st_size
        if found < expected:
            raise Misfit(f"expected {expected:,} bytes, found {found:,}: the file is truncated")
        return header, raw
    finally:
        os.close(fd)


def _pread(fd: int, size: int, offset: int) -> bytes:
    """``size`` bytes from ``offset``, fewer only where the file ends."""
    data = os.pread(fd, size, offset)
    while 0 < len(data) < size:
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def read_whole(fd: int, data: memoryview, offset: int) -> None:
    """Fill ``data`` with what the file holds from ``offset`` on, in as many calls as it takes."""
    filled = 0
    while filled < len(data):
        size = os.preadv(fd, (data[filled:],), offset + filled)
        if not size:
            raise Misfit(f"expected {offset + len(data):,} bytes, found {os.fstat(fd).st_size:,}: the file is truncated")
        filled += size


def explain(error: Exception) -> str:
    """Why a file can't be read: what was expected and what was found."""
    if isinstance(error, FileNotFoundError):
        return "expected a file, found none at this path"
    if isinstance(error, ValueError):
        return f"expected an id that makes a path, found one that does not: {error}"
    if isinstance(error, OSError):
        return f"expected a readable file, found: {error.strerror} (errno {error.errno})"
    return str(error)
