"""`Npy`: ``.npy`` files, one a sample.

A worker imports this module, so NumPy is imported only where a file needs more than a plain read: most never do, and a worker
without NumPy starts three times sooner.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from shmgen._checks import check_dtype, check_int, check_shape, dtype_of, dtype_text
from shmgen._sources.base import RawSource, row_of, row_shapes
from shmgen._sources.npy_format import (
    OPEN_FLAGS,
    Header,
    axes_fit,
    explain,
    file_version,
    meant_header,
    read_header,
    read_header_of,
    read_whole,
    require_numbers,
)
from shmgen.errors import FormatError, InputError, SampleError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import DTypeLike


IDS_AT_ONCE = 10_000


class Npy(RawSource):
    """The files ``<folder>/<id>.npy``, one a sample; an id may name a sub-folder, as ``cats/001`` does.

    Args:
        folder: where the files are, and beyond which no id may lead; None where ids are paths, with or without ``.npy``.
        dim: shape of a sample without its channels.
        n_channels: size of the last axis. Where it is 1, a file of shape ``dim`` is taken, too.
        dtype: of a row; files are cast to it where NumPy calls that "same_kind". It must be said where it is one of ml_dtypes,
            bfloat16 for one: of these a file keeps the size alone.

    What is left out is the first file's; with ``dim`` and ``n_channels`` both left out, a row has the file's own shape.

    Attributes:
        folder: as an absolute path, so that a later change of directory does no harm.
        shape: of a row.
        bare_shape: a file of this shape is taken as well; that of a row without its only channel, or the same.
        dtype: of a row, in native byte order; as text, since NumPy itself would be imported to unpickle it.
        row_bytes: bytes of a row.

    Examples:
        >>> loader = Loader(ids, labels, batch_size=4, source=Npy("data", dim=(4, 3), n_channels=1))
        >>> X, y = loader.batch(0)
        >>> X.shape, X.dtype
        ((4, 4, 3, 1), dtype('float32'))
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        dim: int | Iterable[int] | None = None,
        n_channels: int | None = None,
        dtype: DTypeLike | None = None,
    ) -> None:
        self.folder = os.path.abspath(folder or "")
        self._ids_are_paths = folder is None
        given = check_dtype(dtype)
        self._given = (
            check_shape(dim),
            None if n_channels is None else check_int(n_channels, "n_channels", 1),
            None if given is None else dtype_text(given),
        )

    def bind(self, ids: Sequence[object]) -> None:
        """Read the first file's header, for what was left out.

        Raises:
            InputError: an id leads out of the folder.
            SampleError: it can't be read, or contradicts what was given.
        """
        if not self._ids_are_paths:
            _refuse_ways_out(ids, self.folder)
        first = ids[0]
        dim, n_channels, given = self._given
        dtype = None if given is None else dtype_of(given)
        try:
            header, raw = read_header_of(self.path(first))
            header = meant_header(header, dtype)
            self.shape, self.bare_shape = row_shapes(header.shape, dim, n_channels)
            if not axes_fit(1 + len(self.shape)):
                raise FormatError(f"expected axes few enough for a batch to have one more, found {len(self.shape)}")
            if dtype is None:
                require_numbers(header)
            row_dtype = header.dtype.newbyteorder("=") if dtype is None else dtype
            self.dtype = dtype_text(row_dtype)
            self.row_bytes = math.prod(self.shape) * row_dtype.itemsize
            self._check(header)
        except (OSError, ValueError, FormatError) as error:
            raise SampleError(first, self.path(first), explain(error) + self._meant(first, error)) from None
        # What a file begins with whose data are a row's bytes as they stand, once one has been seen.
        self._plain = raw if self._is_plain(header) else None

    def _meant(self, id: object, error: Exception) -> str:
        """What was probably meant by an id whose file is not there."""
        if not isinstance(error, FileNotFoundError):
            return ""
        from shmgen._sources.suggest import for_missing_file

        return for_missing_file(id, self.path, None if self._ids_are_paths else self.folder)

    def path(self, id: object) -> str:
        """The file of sample ``id``."""
        return os.path.join(self.folder, *self._names([id]))

    def _names(self, ids: Sequence[object]) -> list[str]:
        """The files of ``ids``, from the folder."""
        if self._ids_are_paths:
            return [path if path.endswith(".npy") else f"{path}.npy" for path in map(str, ids)]
        return [f"{id}.npy" for id in ids]

    def place(self, id: object) -> str:
        return self.path(id)

    def fill(self, ids: Sequence[object], rows: memoryview) -> None:  # type: ignore[override]
        """Read the samples ``ids`` into ``rows``, which is as many rows' bytes.

        Raises:
            SampleError: one can't be read; it names the file, what was expected and what was found.
        """
        # One open, one preadv, one close and one comparison a sample: this loop is the speed of the whole package.
        row_bytes = self.row_bytes
        plain, found, expected_bytes = self._expected()
        at, opened, preadv, close, flags = self.at, os.open, os.preadv, os.close, OPEN_FLAGS
        start = 0
        folder = -1
        try:
            # The kernel need not look up the folder for every file then.
            folder = opened(self.folder, os.O_PATH | os.O_CLOEXEC)
            for at[0], name in enumerate(self._names(ids), 1):
                row = rows[start : start + row_bytes]
                start += row_bytes
                fd = opened(name, flags, dir_fd=folder)
                try:
                    if preadv(fd, (found, row), 0) != expected_bytes or found != plain:
                        self._read(fd, row)
                        plain, found, expected_bytes = self._expected()
                finally:
                    close(fd)
        except (OSError, ValueError, FormatError) as error:
            id = ids[row_of(at[0]) or 0]
            raise SampleError(id, self.path(id), explain(error)) from None
        finally:
            if folder >= 0:
                close(folder)

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

    def version(self, ids: Sequence[object]) -> object:
        try:
            folder = os.open(self.folder, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return [file_version(name, folder) for name in self._names(ids)]
        finally:
            os.close(folder)

    def _expected(self) -> tuple[bytes, bytearray, int]:
        """The header of a plain file, room for the one that is found, and how many bytes header and row are; -1 if unknown."""
        if self._plain is None:
            return b"", bytearray(), -1
        return self._plain, bytearray(len(self._plain)), len(self._plain) + self.row_bytes

    def _read(self, fd: int, row: memoryview) -> None:
        """Read a file that does not begin as the last plain one did, or did not come whole in one call."""
        before = _written(fd)
        header, raw = read_header(fd)
        header = meant_header(header, dtype_of(self.dtype))
        self._check(header)
        is_plain = self._is_plain(header)
        data = row if is_plain else memoryview(bytearray(header.data_bytes))
        read_whole(fd, data, header.size)
        if _written(fd) != before:
            raise FormatError("expected a file that stays as it is while it is read, found one that was written to meanwhile")
        if is_plain:
            self._plain = raw
            return
        import numpy as np

        array = np.ndarray(header.shape, header.dtype, data, order="F" if header.fortran else "C")
        np.copyto(np.ndarray(self.shape, dtype_of(self.dtype), row), array.reshape(self.shape), casting="same_kind")

    def _is_plain(self, header: Header) -> bool:
        """Whether the file's data are a row's bytes as they stand."""
        return header.dtype == dtype_of(self.dtype) and (not header.fortran or len(header.shape) < 2)

    def _check(self, header: Header) -> None:
        import numpy as np

        if header.shape not in (self.shape, self.bare_shape):
            raise FormatError(
                f"expected shape {self.shape}, found {header.shape}; "
                "dim and n_channels say what is expected, and left out they are the first file's"
            )
        if not np.can_cast(header.dtype, dtype_of(self.dtype), "same_kind"):
            raise FormatError(
                f"expected dtype {dtype_of(self.dtype)}, found {header.dtype}, whose cast would lose more than precision; "
                "pass the dtype that the files have, or convert them"
            )


def _written(fd: int) -> object:
    """What is different of an open file once it has been written to."""
    status = os.fstat(fd)
    return status.st_mtime_ns, status.st_size


def _refuse_ways_out(ids: Sequence[object], folder: str) -> None:
    """Refuse ids that lead out of ``folder``."""
    import numpy as np

    from shmgen._sources.ids import take

    for first in range(0, len(ids), IDS_AT_ONCE):
        some = list(map(str, take(ids, np.arange(first, min(first + IDS_AT_ONCE, len(ids))))))
        # All are searched at once, since one by one a million take a second.
        together = "\0".join(some)
        if ".." not in together and "\0/" not in f"\0{together}":
            continue
        for id in some:
            if id.startswith("/") or ".." in id.split("/"):
                raise InputError(
                    f"id {id!r}: expected one that stays in folder {folder}, found a path out of it; "
                    "pass data_dir=None, or Npy(None), where ids are meant as paths"
                )
