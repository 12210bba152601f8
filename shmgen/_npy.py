"""One ``ID.npy``: its header checked, its data read straight into a row.

A worker imports this module, so NumPy is imported only where a file needs more than a plain read: most never do, and a worker
without NumPy starts three times sooner.
"""

from __future__ import annotations

import math
import os
import struct
from ast import literal_eval
from typing import TYPE_CHECKING, NamedTuple

from shmgen.errors import SampleError

if TYPE_CHECKING:
    from collections.abc import Sequence

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


class Damaged(Exception):
    """A file is not what was expected; the text says in what."""


def read_header(fd: int) -> tuple[Header, bytes]:
    """The header of the ``.npy`` file open at ``fd``, parsed and as it stands in the file.

    Accepts format versions 1 to 3, as `numpy.load` with ``allow_pickle=False`` does.

    Raises:
        Damaged: it is no ``.npy`` file, or one whose elements are Python objects.
    """
    start = _pread(fd, 12, 0)
    if not start:
        raise Damaged("expected an .npy file, found an empty one (0 bytes)")
    if start[:6] != MAGIC:
        raise Damaged(f"expected an .npy file, found one that begins with {start[:6]!r}")
    if len(start) < 10:
        raise Damaged(f"expected an .npy header, found the end of the file after {len(start)} bytes")
    major, minor = start[6], start[7]
    if (major, minor) not in ((1, 0), (2, 0), (3, 0)):
        raise Damaged(f"expected .npy format version 1.0, 2.0 or 3.0, found {major}.{minor}")
    prefix = struct.Struct("<H" if major == 1 else "<I")
    if len(start) < 8 + prefix.size:
        raise Damaged(f"expected an .npy header, found the end of the file after {len(start)} bytes")
    (length,) = prefix.unpack_from(start, 8)
    if length > LONGEST_HEADER:
        raise Damaged(f"expected an .npy header of at most {LONGEST_HEADER:,} characters, found one of {length:,}")
    size = 8 + prefix.size + length
    raw = _pread(fd, size, 0)
    if len(raw) < size:
        raise Damaged(f"expected an .npy header of {size} bytes, found the end of the file after {len(raw)}")
    return Header(*_parse(raw[8 + prefix.size :], "utf-8" if major == 3 else "latin-1"), size), raw


def _parse(text: bytes, encoding: str) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    import numpy as np

    try:
        header = literal_eval(text.decode(encoding))
        if header.keys() != {"descr", "fortran_order", "shape"}:
            raise ValueError
        shape, fortran = header["shape"], header["fortran_order"]
        if not isinstance(shape, tuple) or not all(isinstance(n, int) for n in shape) or not isinstance(fortran, bool):
            raise ValueError
        dtype = np.lib.format.descr_to_dtype(header["descr"])
    except (ValueError, TypeError, SyntaxError, AttributeError, KeyError, IndexError, MemoryError, RecursionError):
        raise Damaged(f"expected an .npy header, found {text[:80]!r}") from None
    if any(n < 0 for n in shape):
        raise Damaged(f"expected a shape of sizes from 0, found {shape}")
    if dtype.hasobject:
        raise Damaged(f"expected numbers, found Python objects (dtype {dtype}), which are never unpickled")
    return shape, fortran, dtype


def _pread(fd: int, size: int, offset: int) -> bytes:
    """``size`` bytes from ``offset``, fewer only where the file ends."""
    data = os.pread(fd, size, offset)
    while 0 < len(data) < size:
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


class Npy:
    """The files ``<folder>/<id>.npy``, one a sample.

    Attributes:
        folder: where the files are; absolute, so that a later change of directory does no harm.
        shape: of a row.
        bare_shape: a file of this shape is taken as well; that of a row without its only channel, or the same.
        typestr: dtype of a row, in native byte order, as text: NumPy itself would be imported to unpickle it.
        row_bytes: bytes of a row.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        first: object,
        *,
        dim: tuple[int, ...] | None,
        n_channels: int | None,
        dtype: np.dtype[np.generic] | None,
    ) -> None:
        """Reads from the header of sample ``first`` whatever of ``dim``, ``n_channels`` and ``dtype`` is None.

        Raises:
            SampleError: it can't be read, or contradicts what is given.
        """
        self.folder = os.path.abspath(folder)
        try:
            # A FIFO would keep an ordinary open waiting for ever.
            fd = os.open(self.path(first), OPEN_FLAGS | os.O_NONBLOCK)
            try:
                header, raw = read_header(fd)
            finally:
                os.close(fd)
            self.shape, self.bare_shape = _row_shapes(header.shape, dim, n_channels)
            row_dtype = dtype or header.dtype.newbyteorder("=")
            self.typestr = row_dtype.str
            self.row_bytes = math.prod(self.shape) * row_dtype.itemsize
            self._check(header)
        except (OSError, ValueError, Damaged) as error:
            raise SampleError(first, self.path(first), _reason(error)) from None
        # What a file begins with whose data are a row's bytes as they stand; no file begins with the other.
        self._plain = raw if self._is_plain(header) else b"\0"

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Of a row."""
        import numpy as np

        return np.dtype(self.typestr)

    def path(self, id: object) -> str:
        """The file of sample ``id``."""
        return f"{self.folder}/{id}.npy"

    def fill(self, ids: Sequence[object], rows: memoryview) -> None:
        """Read the samples ``ids`` into ``rows``, which is as many rows' bytes.

        Raises:
            SampleError: one can't be read; it names the file, what was expected and what was found.
        """
        # One open, one preadv, one close and one comparison a sample: this loop is the speed of the whole package.
        row_bytes = self.row_bytes
        plain = self._plain
        found = bytearray(len(plain))
        expected_bytes = len(plain) + row_bytes
        opened, preadv, close, flags = os.open, os.preadv, os.close, OPEN_FLAGS
        prefix = self.folder + "/"
        start = 0
        for id in ids:
            row = rows[start : start + row_bytes]
            start += row_bytes
            try:
                fd = opened(f"{prefix}{id}.npy", flags)
                try:
                    if preadv(fd, (found, row), 0) != expected_bytes or found != plain:
                        self._read(fd, row)
                        if self._plain is not plain:
                            plain = self._plain
                            found = bytearray(len(plain))
                            expected_bytes = len(plain) + row_bytes
                finally:
                    close(fd)
            except (OSError, ValueError, Damaged) as error:
                raise SampleError(id, self.path(id), _reason(error)) from None

    def hint(self, ids: Sequence[object]) -> None:
        """Ask the kernel to read the files of ``ids`` ahead, without waiting for them."""
        for id in ids:
            try:
                fd = os.open(self.path(id), OPEN_FLAGS | os.O_NONBLOCK)
            except (OSError, ValueError):
                continue  # the read itself will say what is wrong
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
            except OSError:
                pass
            finally:
                os.close(fd)

    def _read(self, fd: int, row: memoryview) -> None:
        """Read a file that does not begin as the last plain one did, or did not come whole in one call."""
        header, raw = read_header(fd)
        self._check(header)
        if self._is_plain(header):
            self._plain = raw
            _read_whole(fd, row, header)
            return
        import numpy as np

        data = bytearray(header.data_bytes)
        _read_whole(fd, memoryview(data), header)
        array = np.ndarray(header.shape, header.dtype, data, order="F" if header.fortran else "C")
        np.copyto(np.ndarray(self.shape, self.dtype, row), array.reshape(self.shape), casting="same_kind")

    def _is_plain(self, header: Header) -> bool:
        """Whether the file's data are a row's bytes as they stand."""
        return header.dtype == self.dtype and (not header.fortran or len(header.shape) < 2)

    def _check(self, header: Header) -> None:
        import numpy as np

        if header.shape not in (self.shape, self.bare_shape):
            raise Damaged(
                f"expected shape {self.shape}, found {header.shape}; "
                "dim and n_channels say what is expected, and left out they are the first file's"
            )
        if not np.can_cast(header.dtype, self.dtype, "same_kind"):
            raise Damaged(
                f"expected dtype {self.dtype}, found {header.dtype}, whose cast would lose more than precision; "
                "pass the dtype that the files have, or convert them"
            )


def _row_shapes(
    found: tuple[int, ...], dim: tuple[int, ...] | None, n_channels: int | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape of a row, and the other shape that a file may have, where the first file's is ``found``."""
    if 0 in found:
        raise Damaged(f"expected a sample of at least one element, found shape {found}")
    if dim is None:
        if n_channels is None or found[-1:] == (n_channels,):
            return found, found
        dim = found
        if n_channels != 1:
            raise Damaged(f"expected a last axis of n_channels={n_channels}, found shape {found}")
    elif n_channels is None:
        if found != dim and found[:-1] != dim:
            raise Damaged(f"expected shape {dim}, with or without channels behind it, found {found}")
        n_channels = 1 if found == dim else found[-1]
    shape = (*dim, n_channels)
    return shape, dim if n_channels == 1 else shape


def _read_whole(fd: int, data: memoryview, header: Header) -> None:
    """Fill ``data`` with what follows the header, in as many calls as it takes."""
    filled = 0
    while filled < len(data):
        size = os.preadv(fd, (data[filled:],), header.size + filled)
        if not size:
            raise Damaged(f"expected {header.size + len(data):,} bytes, found {os.fstat(fd).st_size:,}: the file is truncated")
        filled += size


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "expected a file, found none; data_dir and the id make its path"
    if isinstance(error, OSError):
        return f"expected a readable file, found: {error.strerror} (errno {error.errno})"
    return str(error)
