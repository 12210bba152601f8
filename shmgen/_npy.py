"""The ``.npy`` format: headers checked, data read whole.

A worker imports this module, so NumPy is imported only where a file needs more than a plain read: most never do, and a worker
without NumPy starts three times sooner.
"""

from __future__ import annotations

import math
import os
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from shmgen._limits import FILES, reached
from shmgen.errors import Misfit

if TYPE_CHECKING:
    import numpy as np

MAGIC = b"\x93NUMPY"
LONGEST_HEADER = 10_000
"""Characters; `numpy.load` refuses longer ones too, since parsing them can exhaust memory."""

ENCODINGS = {1: "latin-1", 2: "latin-1", 3: "utf-8"}
"""Of a header's text, by the format's major version."""

UNREADABLE = {"<f1": "|V1", "<W4": "|V4"}
"""What NumPy writes, and can't read, of dtypes of ml_dtypes whose kind is not that of bare bytes: float8_e5m2, complex32."""

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

    Accepts format versions 1 to 3, as `numpy.load` with ``allow_pickle=False`` does. The data need not be there: `require_data`.

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
    if major not in ENCODINGS or minor:
        raise Misfit(f"expected .npy format version 1.0, 2.0 or 3.0, found {major}.{minor}")
    prefix = struct.Struct("<H" if major == 1 else "<I")
    if len(start) < 8 + prefix.size:
        raise Misfit(f"expected an .npy header, found the end of the file after {len(start)} bytes")
    (length,) = prefix.unpack_from(start, 8)
    if length > 4 * LONGEST_HEADER:  # the most bytes that so many characters take
        raise _too_long(length)
    size = 8 + prefix.size + length
    raw = _pread(fd, size, 0)
    if len(raw) < size:
        raise Misfit(f"expected an .npy header of {size} bytes, found the end of the file after {len(raw)}")
    return Header(*_parse(raw[8 + prefix.size :], ENCODINGS[major]), size), raw


def _parse(raw: bytes, encoding: str) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    import numpy as np

    try:
        text = raw.decode(encoding)
        if len(text) > LONGEST_HEADER:
            raise _too_long(len(text))
        header = _literal(text, from_python_2=encoding == "latin-1")
        if header.keys() != {"descr", "fortran_order", "shape"}:
            raise ValueError
        shape, fortran = header["shape"], header["fortran_order"]
        # No bools, and no number of so many digits that an error could not show it.
        if not isinstance(shape, tuple) or not all(type(n) is int and n.bit_length() < 64 for n in shape):
            raise ValueError
        if not isinstance(fortran, bool) or not axes_fit(len(shape)):
            raise ValueError
        descr = header["descr"]
        dtype = np.lib.format.descr_to_dtype(UNREADABLE.get(descr, descr) if isinstance(descr, str) else descr)  # type: ignore[arg-type]
    except Misfit:
        raise
    except Exception:  # literal_eval, tokenize and numpy.dtype raise whatever they happen upon
        raise Misfit(f"expected an .npy header, found {raw[:80]!r}") from None
    if any(n < 0 for n in shape):
        raise Misfit(f"expected a shape of sizes from 0, found {shape}")
    if dtype.hasobject:
        raise Misfit(f"expected numbers, found Python objects (dtype {dtype}), which are never unpickled")
    return shape, fortran, dtype


def _too_long(length: int) -> Misfit:
    return Misfit(f"expected an .npy header of at most {LONGEST_HEADER:,} characters, found one of {length:,}")


def axes_fit(number: int) -> bool:
    """Whether NumPy has arrays of so many axes: 64 of them at most, and 32 before NumPy 2."""
    import numpy as np

    try:
        np.empty((0,) * number)
    except ValueError:
        return False
    return True


def _literal(text: str, *, from_python_2: bool) -> Any:
    from ast import literal_eval

    try:
        return literal_eval(text)
    except SyntaxError:
        if not from_python_2:
            raise
        return literal_eval(_without_long_suffixes(text))


def _without_long_suffixes(text: str) -> str:
    """``text`` less the L that Python 2 wrote behind its long integers; where `numpy.load` would strike it, and nowhere else."""
    from io import StringIO
    from tokenize import NAME, NUMBER, generate_tokens, untokenize

    kept = []
    behind_number = False
    for token in generate_tokens(StringIO(text).readline):
        if not (behind_number and token.type == NAME and token.string == "L"):
            kept.append(token)
            behind_number = token.type == NUMBER
    return untokenize(kept)


def read_header_of(path: str) -> tuple[Header, bytes]:
    """As `read_header`, of the file at ``path``, which has all the data that it promises."""
    # A FIFO would keep an ordinary open waiting for ever.
    fd = os.open(path, OPEN_FLAGS | os.O_NONBLOCK)
    try:
        header, raw = read_header(fd)
        require_data(fd, header)
        return header, raw
    finally:
        os.close(fd)


def require_data(fd: int, header: Header) -> None:
    """Make sure that the file is long enough, before memory is set aside for what its header promises, terabytes perhaps.

    Raises:
        Misfit: it is too short.
    """
    if os.fstat(fd).st_size < header.size + header.data_bytes:
        raise _truncated(fd, header.size + header.data_bytes)


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
            raise _truncated(fd, offset + len(data))
        filled += size


def _truncated(fd: int, expected: int) -> Misfit:
    return Misfit(f"expected {expected:,} bytes, found {os.fstat(fd).st_size:,}: the file is truncated")


def explain(error: Exception) -> str:
    """Why a file can't be read: what was expected and what was found."""
    if isinstance(error, FileNotFoundError):
        return "expected a file, found none at this path"
    if isinstance(error, ValueError):
        return f"expected an id that makes a path, found one that does not: {error}"
    if isinstance(error, OSError):
        limit = reached(error, FILES)
        return f"expected a readable file, found: {error.strerror} (errno {error.errno}){limit and f'; {limit}'}"
    return str(error)
