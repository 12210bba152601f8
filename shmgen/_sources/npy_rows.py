"""`NpyRows`: one ``.npy`` file of all samples.

A worker imports this module, so NumPy is imported only where a file needs more than a plain read: most never do, and a worker
without NumPy starts three times sooner.
"""

from __future__ import annotations

import os
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from shmgen._checks import check_int
from shmgen._samples.sample_spec import check_dtype, check_numbers, dtype_of, dtype_text
from shmgen._sources.base import BuiltinSource, Reader, row_of
from shmgen._sources.npy_format import (
    OPEN_FLAGS,
    Header,
    explain,
    read_header,
    read_header_of,
    read_whole,
    remote_header,
)
from shmgen._sources.windows import Windows, spread
from shmgen.errors import FormatError, InputError, SampleError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Self

    from numpy.typing import DTypeLike

    from shmgen._storage.remote import Place, Remote
    from shmgen._storage.store import Body


class NpyRows(BuiltinSource):
    """One ``.npy`` file of all samples: its rows, or windows of some rows each, as of a series.

    An id is the number of a row, or of a window, from 0; or a text that has a line in a file of ids.

    Args:
        file: the file, in C order. It may be larger than memory. Or its URL, or `Remote` of it: rows are got by themselves,
            neighbours together.
        dtype: of a row, if it is one of ml_dtypes, such as bfloat16, which a file does not name. Rows are not cast.
        window: a sample is so many of the file's rows, one after the other. None: it is one row, without an axis for them.
        stride: rows from the begin of one sample to that of the next: sample k begins at row ``offset + k * stride``.
        offset: the row at which sample 0 begins. With that of what follows a window, the same ids give what is to be forecast.
        ids: a text file of the rows' ids, or its URL, or `Remote` of it: a line each, as `shmgen pack` writes it beside the rows.
            It is read once; workers know the numbers of rows, at no more than 4 bytes an id (8 from 2³² rows on), once for all.

    Attributes:
        file: as it is if it is a URL; else as an absolute path.

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

    def __init__(
        self,
        file: str | os.PathLike[str] | Remote,
        dtype: DTypeLike | None = None,
        *,
        window: int | None = None,
        stride: int = 1,
        offset: int = 0,
        ids: str | os.PathLike[str] | Remote | None = None,
    ) -> None:
        from shmgen._storage.remote import local_or_remote

        self.file, self._remote = local_or_remote(file)
        self._windows = Windows(
            None if window is None else check_int(window, "window", 1),
            check_int(stride, "stride", 1),
            check_int(offset, "offset", 0),
        )
        given = check_dtype(dtype)
        self._given = None if given is None else dtype_text(given)
        if ids is not None and not self._windows.is_plain:
            raise InputError("ids: expected without window, stride and offset, since ids name rows, and windows have numbers")
        self._ids: Place | None = None if ids is None else local_or_remote(ids)

    def bind(self, ids: Sequence[Any], *, field: str = "X", varies: bool = False) -> NpyRowsReader:
        """Read the header, and check that the file has all the rows.

        Raises:
            InputError: the file can't be read, or is of another format, or has no row of an id's number.
        """
        header, version = self._header()
        keys = None
        if self._ids is None:
            self._check_numbers(ids, header.shape[0])
        else:
            from shmgen._samples.row_ids import RowIds  # late: workers look up no ids

            with RowIds(self._ids) as lines:
                keys = lines.rows(ids, header.shape[0])
        file = _File(self.file, self._remote, header, version, self._given)
        return NpyRowsReader(file, self._windows, keys, self._ids)

    def __len__(self) -> int:
        """How many samples the file has: ``range(len(source))`` are the ids of all.

        Raises:
            InputError: as `bind`.
        """
        return self._windows.count(self._header()[0].shape[0])

    def _header(self) -> tuple[Header, object]:
        """The header, read by the main process, and the version of a remote file."""
        version: object = None
        try:
            if self._remote is None:
                header, _ = read_header_of(self.file)
            else:
                self._remote.prepare()
                header, _, version = remote_header(self._remote, "", in_parts=True)
            return _checked(header, self._given), version
        except (OSError, ValueError, FormatError) as error:
            raise InputError(f"{'file ' if self._remote is None else ''}{self.file}: {explain(error)}") from None
        finally:
            if self._remote is not None:
                self._remote.close()

    def _check_numbers(self, ids: Sequence[Any], rows: int) -> None:
        import numpy as np

        from shmgen._samples.ids import as_ints

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


class _File(NamedTuple):
    """The file that rows are in.

    Attributes:
        place: its path, or its URL.
        remote: what it is read from, if it is behind a URL.
        header: its own.
        version: of a remote file.
        dtype: of a row, as given.
    """

    place: str
    remote: Remote | None
    header: Header
    version: object
    dtype: str | None


class NpyRowsReader(Reader):
    """Reads rows of one file.

    Args:
        file: that they are in.
        windows: which of its rows are a sample.
        keys: the numbers of samples, where ids are texts.
        ids: the file of these texts.

    Attributes:
        file: path or URL of the file.
    """

    takes_bytes = True
    concurrent = True

    def __init__(self, file: _File, windows: Windows, keys: Any, ids: Place | None) -> None:
        self.shape = windows.shape(file.header.shape)
        self.dtype = dtype_text(file.header.dtype.newbyteorder("="))
        self.keys = keys
        self.file = file.place
        self._remote, self._version, self._given = file.remote, file.version, file.dtype
        self._header_bytes, self._rows, self._is_native = file.header.size, file.header.shape[0], file.header.dtype.isnative
        self._windows = windows
        self._ids = ids
        self._open: _Open | None = None

    def opened(self) -> Self:
        reader = copy(self)
        reader._open = None
        return reader

    def fill(self, keys: Sequence[int], rows: memoryview, begun: Any, *, io_waits: bool = False) -> None:
        """Read the samples ``keys`` into ``rows``, which are their bytes.

        Raises:
            SampleError: the file can't be read, or is not the one that `NpyRows.bind` saw.
        """
        try:
            if self._remote is None:
                self._read(self._opened(), keys, rows, begun, io_waits)
            else:
                self._fetch(self._remote, keys, rows, begun)
            if not self._is_native:
                import numpy as np

                np.frombuffer(rows, self.dtype).byteswap(inplace=True)
        except (OSError, ValueError, FormatError) as error:
            raise SampleError(keys[row_of(begun[0]) or 0], self.file, explain(error)) from None

    def place(self, id: Any) -> str:
        row = id
        if self._ids is not None:
            from shmgen._samples.row_ids import row_of_id

            row = row_of_id(self._ids, id)
        return f"{self._windows.named(row)} of {'file ' if self._remote is None else ''}{self.file}"

    def _read(self, fd: int, ids: Sequence[int], rows: memoryview, begun: Any, io_waits: bool) -> None:
        row_bytes = len(rows) // len(ids)
        first, step = self._windows.bytes(self._header_bytes, row_bytes)
        for start, stop in _runs(ids, range(len(ids))) if io_waits else ():
            os.posix_fadvise(fd, first + ids[start] * step, (stop - start - 1) * step + row_bytes, os.POSIX_FADV_WILLNEED)
        neighbours = ids[-1] - ids[0] == len(ids) - 1 and list(ids) == list(range(ids[0], ids[-1] + 1))
        # If rows are missing, they are read one by one, to know which is the first.
        if not neighbours or step > row_bytes or not _read_together(fd, first + ids[0] * step, step, rows, row_bytes):
            preadv = os.preadv
            start = 0
            for begun[0], id in enumerate(ids, 1):
                row = rows[start : start + row_bytes]
                start += row_bytes
                if preadv(fd, (row,), first + id * step) != row_bytes:
                    read_whole(fd, row, first + id * step)

    def _fetch(self, remote: Remote, ids: Sequence[int], rows: memoryview, begun: Any) -> None:
        """Get rows, or what is kept of them: by one request those that are neighbours."""
        size = len(rows) // len(ids)
        _, step = self._windows.bytes(0, size)
        missing: Iterable[int] = range(len(ids))
        if remote.keeps:
            missing = [
                number
                for number in missing
                if not remote.read_kept(
                    "", partial(read_whole, data=rows[number * size :][:size], offset=0), self._part(ids[number])
                )
            ]
        for start, stop in _runs(ids, missing) if step <= size else ((number, number + 1) for number in missing):
            begun[0] = start + 1
            run = rows[start * size : stop * size]
            if step == size or stop == start + 1:
                self._get(remote, ids[start], run, size)
            else:
                span = memoryview(bytearray((stop - start - 1) * step + size))
                self._get(remote, ids[start], span, size)
                spread(span, step, run, size)
            if remote.keeps:
                for number in range(start, stop):
                    remote.keep("", rows[number * size :][:size], self._part(ids[number]))

    def _get(self, remote: Remote, id: int, rows: memoryview, sample_bytes: int) -> None:
        """Get the bytes from sample ``id`` on, those of neighbours too."""

        def take(body: Body) -> None:
            if body.version != self._version:
                raise FormatError("expected the file that was there when the loader was made, found another; make another loader")
            if (size := body.readinto(rows)) != len(rows):
                raise FormatError(f"expected {len(rows):,} bytes, found {size:,}: the file is truncated")

        begin, step = self._windows.bytes(self._header_bytes, sample_bytes)
        first = begin + id * step
        remote.get("", take, first, first + len(rows))

    def _part(self, id: int) -> tuple[object, ...]:
        """All that says which bytes of the file a sample is."""
        return self._version, self._header_bytes, self.shape, self.dtype, self._windows.named(id)

    def _opened(self) -> int:
        """The descriptor of the file. It is opened once, and must still be of the form that was seen when the loader was made."""
        if self._open is None:
            file = _Open(self.file)
            header = _checked(read_header(file.fd)[0], self._given)
            found, dtype = self._windows.shape(header.shape), dtype_text(header.dtype.newbyteorder("="))
            if found != self.shape or dtype != self.dtype or header.dtype.isnative != self._is_native:
                raise FormatError(f"expected rows of shape {self.shape} and dtype {self.dtype}, found {found}, {header.dtype}")
            if header.shape[0] < self._rows:
                raise FormatError(f"expected {self._rows:,} rows, found {header.shape[0]:,}")
            self._header_bytes, self._open = header.size, file
        return self._open.fd


def _checked(header: Header, given: str | None) -> Header:
    """The header, with the dtype that was given, if rows can be read from the file."""
    header = header.reinterpreted(given)
    if not header.shape or 0 in header.shape:
        raise FormatError(f"expected an array of rows, found shape {header.shape}")
    if header.fortran and len(header.shape) > 1:
        raise FormatError(
            "expected C order, found Fortran order, in which a row's elements are not next to each other; "
            "write it again as np.save(file, np.ascontiguousarray(array))"
        )
    check_numbers(header.dtype)
    if given is not None and header.dtype.newbyteorder("=") != dtype_of(given):
        raise FormatError(
            f"expected dtype {dtype_of(given)}, found {header.dtype}, and rows are not cast: leave dtype out, or use a transform"
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
