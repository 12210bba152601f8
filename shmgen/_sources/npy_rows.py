"""`NpyRows`: one ``.npy`` file of all samples.

A worker imports this module, so NumPy is imported only where a file needs more than a plain read: most never do, and a worker
without NumPy starts three times sooner.
"""

from __future__ import annotations

import operator
import os
from typing import TYPE_CHECKING, Any

from shmgen._sources.base import RawSource, row_of
from shmgen._sources.npy_format import (
    OPEN_FLAGS,
    Header,
    explain,
    file_version,
    read_header,
    read_header_of,
    read_whole,
)
from shmgen._sources.sample_spec import check_dtype, check_numbers, dtype_of, dtype_text
from shmgen.errors import FormatError, InputError, SampleError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import DTypeLike


class NpyRows(RawSource):
    """One ``.npy`` file of all samples; an id is a row's number, from 0.

    Args:
        file: the file, in C order. It may be larger than memory, and may be replaced between epochs.
        dtype: of a row, if it is one of ml_dtypes, such as bfloat16, which a file does not name. Rows are not cast.

    Attributes:
        file: as an absolute path.
        shape: of a row: that of the array without its first axis.
        dtype: of a row, in native byte order, as text.

    Examples:
        >>> loader = Loader(range(16), batch_size=4, source=NpyRows("all.npy"), shuffle=False)
        >>> (X,) = loader.batch(0)
        >>> X.shape, X[:, 0, 0]
        ((4, 4, 3), array([0., 1., 2., 3.], dtype=float32))
    """

    def __init__(self, file: str | os.PathLike[str], dtype: DTypeLike | None = None) -> None:
        self.file = os.path.abspath(file)
        given = check_dtype(dtype)
        self._given = None if given is None else dtype_text(given)
        self._fd = -1
        self._seen: object = None

    def bind(self, ids: Sequence[Any]) -> None:
        """Read the header, and check that the file has all the rows.

        Raises:
            InputError: the file can't be read, or is of another format, or has no row of an id's number.
        """
        try:
            header, _ = read_header_of(self.file)
            header = self._check(header)
        except (OSError, ValueError, FormatError) as error:
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
            SampleError: the file can't be read, or has been replaced by another that does not fit.
        """
        try:
            self._reopen()
            self._read(ids, rows)
        except (OSError, ValueError, FormatError) as error:
            raise SampleError(ids[row_of(self.rows_begun[0]) or 0], self.file, explain(error)) from None

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
        # If rows are missing, they are read one by one, to know which is the first.
        if not neighbours or os.preadv(self._fd, (rows,), first + ids[0] * row_bytes) != len(rows):
            begun, fd, preadv = self.rows_begun, self._fd, os.preadv
            start = 0
            for begun[0], id in enumerate(ids, 1):
                row = rows[start : start + row_bytes]
                start += row_bytes
                if preadv(fd, (row,), first + id * row_bytes) != row_bytes:
                    read_whole(fd, row, first + id * row_bytes)
        if not self._header.dtype.isnative:
            import numpy as np

            np.frombuffer(rows, self.dtype).byteswap(inplace=True)

    def _reopen(self) -> None:
        """Open the file, and open it again if it has been replaced."""
        seen = file_version(self.file)
        if self._fd >= 0 and seen == self._seen:
            return
        self.close()
        self._fd = os.open(self.file, OPEN_FLAGS)
        header, _ = read_header(self._fd)
        header = self._check(header)
        if header.shape[1:] != self.shape or header.dtype != self._header.dtype:
            raise FormatError(
                f"expected rows of shape {self.shape} and dtype {self.dtype}, found {header.shape[1:]}, {header.dtype}"
            )
        if header.shape[0] < self._header.shape[0]:
            raise FormatError(f"expected {self._header.shape[0]:,} rows, found {header.shape[0]:,}")
        self._header = header
        self._seen = seen

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._seen = None  # the next file may not fit, and after it the file that was seen may come back

    def __del__(self) -> None:
        self.close()

    def _check(self, header: Header) -> Header:
        """The header, with the dtype that was given, if rows can be read from the file."""
        header = header.reinterpreted(self._given)
        if not header.shape or 0 in header.shape:
            raise FormatError(f"expected an array of rows, found shape {header.shape}")
        if header.fortran and len(header.shape) > 1:
            raise FormatError(
                "expected C order, found Fortran order, in which a row's elements are not next to each other; "
                "write it again as np.save(file, np.ascontiguousarray(array))"
            )
        check_numbers(header.dtype)
        if self._given is not None and header.dtype.newbyteorder("=") != (given := dtype_of(self._given)):
            raise FormatError(
                f"expected dtype {given}, found {header.dtype}, and rows are not cast: leave dtype out, or use a transform"
            )
        return header
