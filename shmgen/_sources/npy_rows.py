"""`NpyRows`: one ``.npy`` file of all samples.

A worker imports this module, so NumPy is imported only where a file needs more than a plain read: most never do, and a worker
without NumPy starts three times sooner.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from shmgen._checks import check_int
from shmgen._samples.sample_spec import check_dtype, check_numbers, dtype_of, dtype_text
from shmgen._sources.base import RawSource, row_of
from shmgen._sources.npy_format import (
    OPEN_FLAGS,
    Header,
    explain,
    read_header,
    read_header_of,
    read_whole,
)
from shmgen._sources.windows import Windows, spread
from shmgen.errors import FormatError, InputError, SampleError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import DTypeLike

    from shmgen._storage.remote import Body, Remote


class NpyRows(RawSource):
    """One ``.npy`` file of all samples: its rows, or windows of some rows each, as of a series.

    An id is the number of a row, or of a window, from 0; or a text that has a line in a file of ids.

    Args:
        file: the file, in C order. It may be larger than memory. Or its URL, as for `Npy`:
            rows are got by themselves, neighbours together.
        dtype: of a row, if it is one of ml_dtypes, such as bfloat16, which a file does not name. Rows are not cast.
        window: a sample is so many of the file's rows, one after the other. None: it is one row, without an axis for them.
        stride: rows from the begin of one sample to that of the next: sample k begins at row ``offset + k * stride``.
        offset: the row at which sample 0 begins. With that of what follows a window, the same ids give what is to be forecast.
        ids: a text file of the rows' ids, or its URL: a line each, as `shmgen pack` writes it beside the rows. It is read once;
            workers know the numbers of rows, at no more than 4 bytes an id (8 from 2³² rows on), once for all of them.
        storage_options: of a URL; see `Npy`.
        cache: of a URL: a folder on a local disk, in which rows are kept, a file each.
        cache_bytes: that rows take there, at most; those that were not used for the longest time go first.

    Attributes:
        file: as it is if it is a URL; else as an absolute path.
        shape: of a sample: that of the array without its first axis, or with that of the window in its place.
        dtype: of a row, in native byte order, as text.

    Examples:
        >>> loader = Loader(range(16), batch_size=4, source=NpyRows("all.npy"), shuffle=False)
        >>> (X,) = loader.batch(0)
        >>> X.shape, X[:, 0, 0]
        ((4, 4, 3), array([0., 1., 2., 3.], dtype=float32))
        >>> loader = Loader(ids, batch_size=4, source=NpyRows("all.npy", ids="all.ids"), shuffle=False)

        Six rows, every other one, and the two that follow them:

        >>> past, future = NpyRows("all.npy", window=6, stride=2), NpyRows("all.npy", window=2, stride=2, offset=6)
        >>> loader = Loader(range(len(future)), future, batch_size=4, source=past, shuffle=False)
        >>> X, y = loader.batch(0)
        >>> X.shape, X[1, :, 0, 0], y[1, :, 0, 0]
        ((4, 6, 4, 3), array([2., 3., 4., 5., 6., 7.], dtype=float32), array([8., 9.], dtype=float32))
    """

    concurrent = True

    def __init__(
        self,
        file: str | os.PathLike[str],
        dtype: DTypeLike | None = None,
        *,
        window: int | None = None,
        stride: int = 1,
        offset: int = 0,
        ids: str | os.PathLike[str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        cache: str | os.PathLike[str] | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        from shmgen._storage.remote import is_url, remote

        self._remote = remote(file, storage_options, cache, cache_bytes)
        self.file = os.path.abspath(file) if self._remote is None else self._remote.store.place("")
        self._windows = Windows(
            None if window is None else check_int(window, "window", 1),
            check_int(stride, "stride", 1),
            check_int(offset, "offset", 0),
        )
        given = check_dtype(dtype)
        self._given = None if given is None else dtype_text(given)
        if ids is not None and not self._windows.is_plain:
            raise InputError("ids: expected without window, stride and offset, since ids name rows, and windows have numbers")
        self._ids = None if ids is None else str(ids) if is_url(ids) else os.path.abspath(ids)
        self._ids_options = storage_options if is_url(ids) else None
        self._file: _Open | None = None
        self._seen: object = None

    def bind(self, ids: Sequence[Any]) -> None:
        """Read the header, and check that the file has all the rows.

        Raises:
            InputError: the file can't be read, or is of another format, or has no row of an id's number.
        """
        self._header = header = self._bound_header()
        self.shape = self._windows.shape(header.shape)
        self.dtype = dtype_text(header.dtype.newbyteorder("="))
        if self._ids is None:
            self._check_numbers(ids)
        else:
            from shmgen._samples.row_ids import RowIds  # late: workers look up no ids

            with RowIds(self._ids, self._ids_options) as lines:
                self.keys = lines.rows(ids, header.shape[0])

    def __len__(self) -> int:
        """How many samples the file has: ``range(len(source))`` are the ids of all.

        Raises:
            InputError: as `bind`.
        """
        return self._windows.count(self._bound_header().shape[0])

    def _bound_header(self) -> Header:
        """The header, read by the main process."""
        if self._remote is not None:
            self._remote.prepare()
        try:
            return self._check(self._first_header())
        except (OSError, ValueError, FormatError) as error:
            raise InputError(f"{'file ' if self._remote is None else ''}{self.file}: {explain(error)}") from None
        finally:
            if self._remote is not None:
                self._remote.store.close()

    def open(self) -> None:
        if self._remote is not None:
            self._remote = self._remote.for_reader()

    def _first_header(self) -> Header:
        if self._remote is None:
            return read_header_of(self.file)[0]
        header, _, self._seen = self._remote.header("", in_parts=True)
        return header

    def _check_numbers(self, ids: Sequence[Any]) -> None:
        import numpy as np

        from shmgen._samples.ids import as_ints

        rows = self._header.shape[0]
        numbers, count = as_ints(ids), self._windows.count(rows)
        if numbers is None:
            id = next(id for id in ids if not isinstance(id, int))
            raise InputError(
                f"id {id!r}: expected the number of a row of {self.file}; where rows have ids, pass the file of these as ids="
            )
        if isinstance(numbers, range):  # its ends say it all, however long it is
            numbers = np.array(numbers[:: max(1, len(numbers) - 1)], object)
        wrong = np.flatnonzero((numbers < 0) | (numbers >= count))
        if wrong.size:
            id = numbers[wrong[0]]
            raise InputError(f"id {id}: expected {self._windows.expected(self.file, rows)}")

    def fill(self, ids: Sequence[int], rows: memoryview) -> None:
        """Read the rows ``ids`` into ``rows``, which is as many rows' bytes.

        Raises:
            SampleError: the file can't be read, or is not the one that `bind` saw.
        """
        try:
            if self._remote is None:
                self._read(self._opened(), ids, rows)
            else:
                self._fetch(self._remote, ids, rows)
            if not self._header.dtype.isnative:
                import numpy as np

                np.frombuffer(rows, self.dtype).byteswap(inplace=True)
        except (OSError, ValueError, FormatError) as error:
            raise SampleError(ids[row_of(self.rows_begun[0]) or 0], self.file, explain(error)) from None

    def place(self, id: Any) -> str:
        row = id
        if self._ids is not None:
            from shmgen._samples.row_ids import row_of_id

            row = row_of_id(self._ids, self._ids_options, id)
        return f"{self._windows.named(row)} of {'file ' if self._remote is None else ''}{self.file}"

    def _read(self, fd: int, ids: Sequence[int], rows: memoryview) -> None:
        row_bytes = len(rows) // len(ids)
        first, step = self._windows.bytes(self._header.size, row_bytes)
        for start, stop in _runs(ids, range(len(ids))) if self.io_waits else ():
            os.posix_fadvise(fd, first + ids[start] * step, (stop - start - 1) * step + row_bytes, os.POSIX_FADV_WILLNEED)
        neighbours = ids[-1] - ids[0] == len(ids) - 1 and list(ids) == list(range(ids[0], ids[-1] + 1))
        # If rows are missing, they are read one by one, to know which is the first.
        if not neighbours or step > row_bytes or not _read_together(fd, first + ids[0] * step, step, rows, row_bytes):
            begun, preadv = self.rows_begun, os.preadv
            start = 0
            for begun[0], id in enumerate(ids, 1):
                row = rows[start : start + row_bytes]
                start += row_bytes
                if preadv(fd, (row,), first + id * step) != row_bytes:
                    read_whole(fd, row, first + id * step)

    def _fetch(self, remote: Remote, ids: Sequence[int], rows: memoryview) -> None:
        """Get rows, or what is kept of them: by one request those that are neighbours."""
        size = len(rows) // len(ids)
        _, step = self._windows.bytes(0, size)
        missing: Iterable[int] = range(len(ids))
        if remote.cache is not None:
            cache = remote.cache
            missing = [
                number
                for number in missing
                if not cache.read(self._key(ids[number]), partial(read_whole, data=rows[number * size :][:size], offset=0))
            ]
        for start, stop in _runs(ids, missing) if step <= size else ((number, number + 1) for number in missing):
            self.rows_begun[0] = start + 1
            run = rows[start * size : stop * size]
            if step == size or stop == start + 1:
                self._get(remote, ids[start], run, size)
            else:
                span = memoryview(bytearray((stop - start - 1) * step + size))
                self._get(remote, ids[start], span, size)
                spread(span, step, run, size)
            if remote.cache is not None:
                for number in range(start, stop):
                    remote.cache.keep(self._key(ids[number]), rows[number * size :][:size])

    def _get(self, remote: Remote, id: int, rows: memoryview, sample_bytes: int) -> None:
        """Get the bytes from sample ``id`` on, those of neighbours too."""

        def take(body: Body) -> None:
            if body.version != self._seen:
                raise FormatError("expected the file that was there when the loader was made, found another; make another loader")
            if (size := body.readinto(rows)) != len(rows):
                raise FormatError(f"expected {len(rows):,} bytes, found {size:,}: the file is truncated")

        begin, step = self._windows.bytes(self._header.size, sample_bytes)
        first = begin + id * step
        remote.store.get("", take, first, first + len(rows))

    def _key(self, id: int) -> str:
        return f"{self.file} {self._seen} {self._header} {self._windows.named(id)}"

    def _opened(self) -> int:
        """The descriptor of the file. It is opened once, and must still be of the form that `bind` saw."""
        if self._file is None:
            file = _Open(self.file)
            header = self._check(read_header(file.fd)[0])
            found, rows = self._windows.shape(header.shape), self._header.shape[0]
            if found != self.shape or header.dtype != self._header.dtype:
                raise FormatError(f"expected rows of shape {self.shape} and dtype {self.dtype}, found {found}, {header.dtype}")
            if header.shape[0] < rows:
                raise FormatError(f"expected {rows:,} rows, found {header.shape[0]:,}")
            self._header, self._file = header, file
        return self._file.fd

    def close(self) -> None:
        """Let go of the file, which is closed when the copies of this source have let go of it, too."""
        self._file = None

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


def _read_together(fd: int, first: int, step: int, rows: memoryview, row_bytes: int) -> bool:
    """Read neighbours, which begin at byte ``first`` and lie ``step`` bytes apart, by one call; False if any are missing."""
    if step == row_bytes:
        return os.preadv(fd, (rows,), first) == len(rows)
    span = bytearray((len(rows) // row_bytes - 1) * step + row_bytes)
    if os.preadv(fd, (span,), first) != len(span):
        return False
    spread(span, step, rows, row_bytes)
    return True


class _Open:
    """An open file: it is closed when nobody has it any more."""

    def __init__(self, path: str) -> None:
        self.fd = -1
        self.fd = os.open(path, OPEN_FLAGS)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


def _runs(ids: Sequence[int], numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Those of ``numbers``, positions in ``ids``, that lie together, and whose rows do: the first, and one past the last."""
    start = stop = -1
    for number in numbers:
        if number != stop or ids[number] != ids[number - 1] + 1:
            if start >= 0:
                yield start, stop
            start = number
        stop = number + 1
    if start >= 0:
        yield start, stop
