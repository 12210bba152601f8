"""`NpyRows`: one ``.npy`` file of all samples."""

from __future__ import annotations

import os
from collections.abc import Iterable
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any

from shmgen._checks import check_int
from shmgen._samples.npy_format import Header, explain, read_header_of, read_whole, remote_header, require_data
from shmgen._samples.sample_spec import check_dtype, check_numbers, dtype_of, dtype_text
from shmgen._sources.base import BuiltinSource
from shmgen._sources.row_file import REPLACED, RowLayout, RowsReader, Windows, runs, spread
from shmgen._storage.local import again
from shmgen.errors import FormatError, InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import DTypeLike

    from shmgen._storage.remote import Place, Remote
    from shmgen._storage.store import Body


class NpyRows(BuiltinSource):
    """One ``.npy`` file of all samples: its rows, or windows of some rows each, as of a series.

    An id is the number of a row, or of a window, from 0; or a text that has a line in a file of ids.

    Args:
        file: the file, in C order. It may be larger than memory. Or its URL, or `Remote` of it: only the rows are fetched,
            neighbours together.
        dtype: of a row, if it is one of ml_dtypes, such as bfloat16, which a file does not name. Rows are not cast.
        columns: which elements of a row's last axis a sample has, in this order, as of a table; an int for one column, without an
            axis for it. None: all.
        window: a sample is this number of the file's rows, one after the other. None: it is one row, without an axis for them.
        stride: rows from the start of one sample to the start of the next: sample k begins at row ``offset + k * stride``.
        offset: the row at which sample 0 begins, in each series.
        step: rows from one row of a window to the next.
        series: how many rows each series has, where the file has several, one after the other. No window lies in two of them;
            samples are numbered through all.
        ids: a text file of the rows' ids, or its URL, or `Remote` of it: a line each, as `shmgen pack` writes it beside the rows.
            It is read once; all workers share the numbers of rows, which take at most 4 bytes an id (8 from 2³² rows on).

    Attributes:
        file: as it is if it is a URL; else as an absolute path.

    Examples:
        >>> loader = Loader(range(16), batch_size=4, source=NpyRows("all.npy"), shuffle=False)
        >>> (X,) = loader.batch(0)
        >>> X.shape, X[:, 0, 0]
        ((4, 4, 3), array([0., 1., 2., 3.], dtype=float32))
        >>> loader = Loader(ids, batch_size=4, source=NpyRows("all.npy", ids="all.ids"), shuffle=False)

        Windows of six rows, and of each the row that follows it, to be forecast:

        >>> past, future = NpyRows("all.npy", window=6, stride=2).forecast()
        >>> loader = Loader(range(len(past)), future, batch_size=4, source=past, shuffle=False)
        >>> X, y = loader.batch(0)
        >>> X.shape, X[1, :, 0, 0], y[1, 0, 0]
        ((4, 6, 4, 3), array([2., 3., 4., 5., 6., 7.], dtype=float32), np.float32(8.0))
    """

    def __init__(
        self,
        file: str | os.PathLike[str] | Remote,
        dtype: DTypeLike | None = None,
        *,
        columns: int | Iterable[int] | None = None,
        window: int | None = None,
        stride: int = 1,
        offset: int = 0,
        step: int = 1,
        series: Iterable[int] | None = None,
        ids: str | os.PathLike[str] | Remote | None = None,
    ) -> None:
        from shmgen._storage.remote import local_or_remote

        self.file, self._remote = local_or_remote(file)
        self._windows = Windows(
            None if window is None else check_int(window, "window", 1),
            check_int(stride, "stride", 1),
            check_int(offset, "offset", 0),
            check_int(step, "step", 1),
            series=None if series is None else [check_int(length, "series", 0) for length in series],
        )
        if window is None and step != 1:
            raise InputError("step: expected with window, since it says which rows a window has")
        self._columns = _checked_columns(columns)
        given = check_dtype(dtype)
        self._given = None if given is None else dtype_text(given)
        if ids is not None and not self._windows.is_plain:
            raise InputError("ids: expected without window, stride, offset and series: ids name rows, and windows have numbers")
        self._ids: Place | None = None if ids is None else local_or_remote(ids)

    def forecast(
        self, rows: int = 1, *, window: int | None = None, columns: int | Iterable[int] | None = None
    ) -> tuple[NpyRows, NpyRows]:
        """Two sources of the same samples: these windows, and what is to be forecast of each; only of windows that have both.

        Args:
            rows: how far ahead: from the last row of a window to the first that is forecast.
            window: rows that are forecast of each; None for one, without an axis for it.
            columns: of these rows; None for all.
        """
        if self._ids is not None:
            raise InputError("forecast: expected a source without ids: ids name rows, and windows have numbers")
        past, future = copy(self), copy(self)
        past._windows, future._windows = self._windows.after(
            check_int(rows, "rows", 1), None if window is None else check_int(window, "window", 1)
        )
        future._columns = _checked_columns(columns)
        return past, future

    def bind(self, ids: Sequence[Any], *, field: str = "X", varies: bool = False) -> NpyRowsReader:
        """Read the header, and check that the file has all the rows.

        Raises:
            InputError: the file can't be read, or is of another format, or has no row of an id's number.
        """
        reader = NpyRowsReader(self.file, *self._header(), self._remote)
        if self._ids is None:
            from shmgen._samples.ids import require_numbers  # late: workers look up no ids

            rows = reader.layout.rows
            expected = f"{self._windows.expected(rows)}, in {self.file}"
            remedy = "; where rows have ids, pass the file of these as ids="
            require_numbers(ids, self._windows.count(rows), expected, remedy)
        else:
            from shmgen._samples.row_ids import rows_of

            reader.keys = rows_of(ids, self._ids, reader.layout.rows)
        return reader

    def __len__(self) -> int:
        """How many samples the file has: ``range(len(source))`` are the ids of all.

        Raises:
            InputError: as `bind`.
        """
        return self._windows.count(self._header()[0].rows)

    def _header(self) -> tuple[RowLayout, bytes, object]:
        """What the header says, read by the main process, its bytes, and the version of a remote file."""
        version: object = None
        try:
            if self._remote is None:
                header, raw = again(lambda: read_header_of(self.file))
            else:
                self._remote.prepare()
                header, raw, version = remote_header(self._remote, "", in_parts=True, must=True)
            return _layout(header, self._given, self._windows, self._columns), raw, version
        except (OSError, ValueError, FormatError) as error:
            raise InputError(f"{'file ' if self._remote is None else ''}{self.file}: {explain(error, self.file)}") from None
        finally:
            if self._remote is not None:
                self._remote.store.close()


class NpyRowsReader(RowsReader):
    """Reads rows of one ``.npy`` file: ``raw`` are the bytes of its header; a remote file has a version."""

    def __init__(self, file: str, layout: RowLayout, raw: bytes, version: object, remote: Remote | None) -> None:
        super().__init__(file, layout, file if remote is not None else f"file {file}")
        self._remote, self._raw, self._version = remote, raw, version

    def _fill(self, keys: Sequence[int], rows: memoryview, begun: Any, io_waits: bool) -> None:
        if (remote := self._remote) is None:
            super()._fill(keys, rows, begun, io_waits)
        else:
            firsts = self.layout.windows.firsts(keys)
            self.layout.fill(lambda data: self._fetch(remote, firsts, data, begun), len(firsts), rows)

    def _is_the_same(self, fd: int) -> bool:
        return os.pread(fd, len(self._raw), 0) == self._raw

    def _fetch(self, remote: Remote, firsts: Sequence[int], data: memoryview, begun: Any) -> None:
        """Get the rows that samples span, from the cache, or by one request for each run of neighbours."""
        layout = self.layout
        size, apart = layout.windows.span * layout.row_bytes, layout.windows.stride * layout.row_bytes
        missing = [
            number
            for number, first in enumerate(firsts)
            if not remote.read_kept("", partial(read_whole, data=data[number * size :][:size], offset=0), self._part(first))
        ]
        together = runs(firsts, missing, layout.windows.stride) if apart <= size else ((number, number + 1) for number in missing)
        for start, stop in together:
            begun[0] = start + 1
            span = self._get(remote, firsts[start], (stop - start - 1) * apart + size)
            spread(span, apart, data[start * size : stop * size], size)
            for number in range(start, stop):
                remote.keep("", data[number * size :][:size], self._part(firsts[number]))

    def _get(self, remote: Remote, first: int, size: int) -> bytes:
        """The bytes from a row on."""

        def take(body: Body) -> bytes:
            if body.version != self._version:
                raise FormatError(REPLACED)
            data = body.read(size)
            require_data(len(data), size)
            return data

        begin = self.layout.begin + first * self.layout.row_bytes
        return remote.store.get("", take, begin, begin + size)

    def _part(self, first: int) -> tuple[object, ...]:
        """What tells the bytes of a sample from all others in the cache."""
        return self._version, self.layout.begin, self.layout.windows.span * self.layout.row_bytes, first


def _checked_columns(columns: int | Iterable[int] | None) -> int | tuple[int, ...] | None:
    if columns is None:
        return None
    if not isinstance(columns, Iterable):
        return check_int(columns, "columns", 0)
    found = tuple(check_int(column, "columns", 0) for column in columns)
    if not found:
        raise InputError("columns: expected numbers of columns, found none")
    return found


def _layout(header: Header, given: str | None, windows: Windows, columns: int | tuple[int, ...] | None) -> RowLayout:
    """Where the rows of a file with this header lie. If they are not as the source describes them, that is a FormatError."""
    header = header.reinterpreted(given)
    count, *shape = header.shape or (0,)
    if 0 in header.shape or not count:
        raise FormatError(f"expected an array of rows, found shape {header.shape}")
    if header.fortran and shape:
        raise FormatError("expected C order, found Fortran order; write it by np.save(file, np.ascontiguousarray(array))")
    check_numbers(header.dtype)
    if given is not None and header.dtype.newbyteorder("=") != dtype_of(given):
        remedy = "rows are not cast: leave dtype out, or use a transform"
        raise FormatError(f"expected dtype {dtype_of(given)}, found {header.dtype}; {remedy}")
    if windows.series is not None and sum(windows.series) != count:
        raise FormatError(f"expected series of {count:,} rows together, found {sum(windows.series):,}")
    if columns is not None:
        most = max([columns] if isinstance(columns, int) else columns)
        if not shape or most >= shape[-1]:
            found = f"rows of {shape[-1]} columns" if shape else "rows of a single number"
            raise FormatError(f"expected rows that have column {most}, counted from 0, found {found}")
    return RowLayout(header.size, count, tuple(shape), dtype_text(header.dtype), header.data_bytes // count, windows, columns)
