"""Sources that read ``.npy`` files: one a sample, or one for all.

A worker imports this module, so NumPy is imported only where a file needs more than a plain read: most never do, and a worker
without NumPy starts three times sooner.
"""

from __future__ import annotations

import math
import operator
import os
from typing import TYPE_CHECKING, Any

from shmgen._arguments import are_numbers, dtype_of, dtype_text, meant, numbers, sizes, what_bytes_may_be, whole
from shmgen._npy import OPEN_FLAGS, Header, axes_fit, explain, read_header, read_header_of, read_whole
from shmgen._source import RawSource, row_of, row_shapes
from shmgen.errors import InputError, Misfit, SampleError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
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
        given = numbers(dtype)
        self._given = (
            sizes(dim),
            None if n_channels is None else whole(n_channels, "n_channels", 1),
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
            header = _meant(header, dtype)
            self.shape, self.bare_shape = row_shapes(header.shape, dim, n_channels)
            if not axes_fit(1 + len(self.shape)):
                raise Misfit(f"expected axes few enough for a batch to have one more, found {len(self.shape)}")
            if dtype is None:
                _require_numbers(header)
            row_dtype = header.dtype.newbyteorder("=") if dtype is None else dtype
            self.dtype = dtype_text(row_dtype)
            self.row_bytes = math.prod(self.shape) * row_dtype.itemsize
            self._check(header)
        except (OSError, ValueError, Misfit) as error:
            raise SampleError(first, self.path(first), explain(error) + self._meant(first, error)) from None
        # What a file begins with whose data are a row's bytes as they stand, once one has been seen.
        self._plain = raw if self._is_plain(header) else None

    def _meant(self, id: object, error: Exception) -> str:
        """What was probably meant by an id whose file is not there."""
        if not isinstance(error, FileNotFoundError):
            return ""
        from shmgen._suggest import for_missing_file

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
        except (OSError, ValueError, Misfit) as error:
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
        header = _meant(header, dtype_of(self.dtype))
        self._check(header)
        is_plain = self._is_plain(header)
        data = row if is_plain else memoryview(bytearray(header.data_bytes))
        read_whole(fd, data, header.size)
        if _written(fd) != before:
            raise Misfit("expected a file that stays as it is while it is read, found one that was written to meanwhile")
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
            raise Misfit(
                f"expected shape {self.shape}, found {header.shape}; "
                "dim and n_channels say what is expected, and left out they are the first file's"
            )
        if not np.can_cast(header.dtype, dtype_of(self.dtype), "same_kind"):
            raise Misfit(
                f"expected dtype {dtype_of(self.dtype)}, found {header.dtype}, whose cast would lose more than precision; "
                "pass the dtype that the files have, or convert them"
            )


class NpyRows(RawSource):
    """One ``.npy`` file of all samples; an id is a row's number, from 0.

    Args:
        file: the file; in C order. It may be larger than memory, and be replaced while no epoch is under way.
        dtype: of a row, where the file does not say, since it is one of ml_dtypes: bfloat16 for one. Rows are not cast.

    Attributes:
        file: as an absolute path.
        shape: of a row: that of the array without its first axis.
        dtype: of a row, in native byte order, as text.
    """

    def __init__(self, file: str | os.PathLike[str], dtype: DTypeLike | None = None) -> None:
        self.file = os.path.abspath(file)
        given = numbers(dtype)
        self._given = None if given is None else dtype_text(given)
        self._fd = -1
        self._seen: object = None

    def bind(self, ids: Sequence[Any]) -> None:
        """Read the header, and check that it has all the rows.

        Raises:
            InputError: the file can't serve, or has no row of an id's number.
        """
        try:
            header, _ = read_header_of(self.file)
            header = self._check(header)
        except (OSError, ValueError, Misfit) as error:
            raise InputError(f"file {self.file}: {explain(error)}") from None
        self.shape = header.shape[1:]
        self.dtype = dtype_text(header.dtype.newbyteorder("="))
        self._header = header
        for id in ids:
            try:
                number = operator.index(id)
            except TypeError:
                raise InputError(f"id {id!r}: expected the number of a row of {self.file}") from None
            if not 0 <= number < header.shape[0]:
                raise InputError(f"id {id!r}: expected a row's number from 0 to {header.shape[0] - 1}, which {self.file} has")

    def fill(self, ids: Sequence[int], rows: memoryview) -> None:  # type: ignore[override]
        """Read the rows ``ids`` into ``rows``, which is as many rows' bytes.

        Raises:
            SampleError: the file can't be read, or has been replaced by one that does not fit.
        """
        try:
            self._reopen()
            self._read(ids, rows)
        except (OSError, ValueError, Misfit) as error:
            raise SampleError(ids[row_of(self.at[0]) or 0], self.file, explain(error)) from None

    def place(self, id: int) -> str:
        return f"row {id} of file {self.file}"

    def hint(self, ids: Sequence[int]) -> None:
        if self._fd >= 0:
            row_bytes = self._header.data_bytes // self._header.shape[0]
            for id in ids:
                os.posix_fadvise(self._fd, self._header.size + id * row_bytes, row_bytes, os.POSIX_FADV_WILLNEED)

    def version(self, ids: Sequence[int]) -> object:
        return file_version(self.file)

    def _read(self, ids: Sequence[int], rows: memoryview) -> None:
        first, row_bytes = self._header.size, len(rows) // len(ids)
        neighbours = ids[-1] - ids[0] == len(ids) - 1 and list(ids) == list(range(ids[0], ids[-1] + 1))
        # What is not there whole is read row by row, to know which is the first that is missing.
        if not neighbours or os.preadv(self._fd, (rows,), first + ids[0] * row_bytes) != len(rows):
            at, fd, preadv = self.at, self._fd, os.preadv
            start = 0
            for at[0], id in enumerate(ids, 1):
                row = rows[start : start + row_bytes]
                start += row_bytes
                if preadv(fd, (row,), first + id * row_bytes) != row_bytes:
                    read_whole(fd, row, first + id * row_bytes)
        if not self._header.dtype.isnative:
            import numpy as np

            np.frombuffer(rows, self.dtype).byteswap(inplace=True)

    def _reopen(self) -> None:
        """Open the file, anew if another stands in its place."""
        seen = file_version(self.file)
        if self._fd >= 0 and seen == self._seen:
            return
        self.close()
        self._fd = os.open(self.file, OPEN_FLAGS)
        header, _ = read_header(self._fd)
        header = self._check(header)
        if header.shape[1:] != self.shape or header.dtype != self._header.dtype:
            raise Misfit(f"expected rows of shape {self.shape} and dtype {self.dtype}, found {header.shape[1:]}, {header.dtype}")
        if header.shape[0] < self._header.shape[0]:
            raise Misfit(f"expected {self._header.shape[0]:,} rows, found {header.shape[0]:,}")
        self._header = header
        self._seen = seen

    def close(self) -> None:
        """Give up the descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._seen = None  # what is opened next may not serve, and the one that was seen come back

    def __del__(self) -> None:
        self.close()

    def _check(self, header: Header) -> Header:
        """The header as it is meant, if the file can serve."""
        given = None if self._given is None else dtype_of(self._given)
        header = _meant(header, given)
        if not header.shape or 0 in header.shape:
            raise Misfit(f"expected an array of rows, found shape {header.shape}")
        if header.fortran and len(header.shape) > 1:
            raise Misfit(
                "expected C order, found Fortran order, in which a row's elements lie apart; "
                "write it again as np.save(file, np.ascontiguousarray(array))"
            )
        _require_numbers(header)
        if given is not None and header.dtype.newbyteorder("=") != given:
            raise Misfit(
                f"expected dtype {given}, found {header.dtype}, and rows are not cast: leave dtype out, or use a transform"
            )
        return header


def _meant(header: Header, dtype: np.dtype[np.generic] | None) -> Header:
    """``header``, with the dtype that its elements have where ``dtype`` is expected."""
    return header if dtype is None else header._replace(dtype=meant(header.dtype, dtype))


def _require_numbers(header: Header) -> None:
    if not are_numbers(header.dtype):
        raise Misfit(f"expected numbers, found dtype {header.dtype}{what_bytes_may_be(header.dtype)}")


def file_version(path: str, folder: int | None = None) -> object:
    """What tells a file from another that has taken its place, or from itself once it has been written to.

    Args:
        path: of the file.
        folder: descriptor of the folder that ``path`` begins at; else the current one.
    """
    try:
        status = os.stat(path, dir_fd=folder)
    except (OSError, ValueError):
        return None
    # Whoever writes a file may set its time of modification, but not that of its last change.
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def _written(fd: int) -> object:
    """What is different of an open file once it has been written to."""
    status = os.fstat(fd)
    return status.st_mtime_ns, status.st_size


def _refuse_ways_out(ids: Sequence[object], folder: str) -> None:
    """Refuse ids that lead out of ``folder``."""
    import numpy as np

    from shmgen._ids import take

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
