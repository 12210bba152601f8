"""Rows of one file: which of them are a sample, and how they get from the file into a batch.

Neighbours are read by one call. Other samples are copied from a mapping, by one call of NumPy, where they lie in memory; if not,
the system is told of all reads before the first. Workers import this module, so NumPy is imported only once a mapping pays.
"""

from __future__ import annotations

import mmap
import os
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from shmgen._memory.limits import available
from shmgen._samples.npy_format import OPEN_FLAGS, explain, read_whole, refuse_change, written
from shmgen._samples.sample_spec import dtype_of, dtype_text
from shmgen._sources.folder import FileReader
from shmgen.errors import FormatError, SampleError

if TYPE_CHECKING:
    from typing import Self

    import numpy as np

REPLACED = "expected the file that was there when the loader was made, found another; make another loader"

UNMAPPED = 8
"""Tickets that are read without NumPy, which takes a worker longer to import than to read these."""


class Windows:
    """Which rows are a sample: one, or a window of ``length``; the other arguments are those of `NpyRows`."""

    def __init__(
        self,
        length: int | None = None,
        stride: int = 1,
        offset: int = 0,
        step: int = 1,
        *,
        reach: int = 1,  # rows that the file, or series, must have from the start of a sample on
        series: Sequence[int] | None = None,
    ) -> None:
        self.length = length
        self.stride = stride
        self.offset = offset
        self.step = step
        self.span = ((length or 1) - 1) * step + 1
        self.series = series
        self._reach = max(reach, self.span)
        # The first row of each series, and how many samples are before it.
        self._rows = list(accumulate(series or (), initial=0))
        self._samples = list(accumulate(map(self._in_one, series or ()), initial=0))

    @property
    def is_plain(self) -> bool:
        return (self.length, self.stride, self.offset, self._reach, self.series) == (None, 1, 0, 1, None)

    def count(self, rows: int) -> int:
        return self._in_one(rows) if self.series is None else self._samples[-1]

    def _in_one(self, rows: int) -> int:
        return max(0, (rows - self.offset - self._reach) // self.stride + 1)

    def first(self, id: int) -> int:
        if self.series is None:
            return self.offset + id * self.stride
        number = bisect_right(self._samples, id) - 1
        return self._rows[number] + self.offset + (id - self._samples[number]) * self.stride

    def firsts(self, ids: Sequence[int]) -> Sequence[int]:
        if self.series is not None:
            return list(map(self.first, ids))
        return ids if (self.offset, self.stride) == (0, 1) else [self.offset + id * self.stride for id in ids]

    def after(self, rows: int, length: int | None) -> tuple[Windows, Windows]:
        """These windows, and others of ``length`` rows (None: one row), which begin ``rows`` rows after the last row of each."""
        begin = self.span - 1 + rows
        reach = max(self._reach, begin + ((length or 1) - 1) * self.step + 1)
        own = Windows(self.length, self.stride, self.offset, self.step, reach=reach, series=self.series)
        later = Windows(length, self.stride, self.offset + begin, self.step, reach=reach - begin, series=self.series)
        return own, later

    def expected(self, rows: int) -> str:
        """What an id should be, for errors, where a file has this number of rows."""
        if count := self.count(rows):
            return f"a {'row' if self.is_plain else 'window'}'s number from 0 to {count - 1}, of {rows:,} rows"
        return f"at least {self.offset + self._reach:,} rows for a window of {self.span}, found {rows:,}"


class RowLayout(NamedTuple):
    """Where the rows of a file lie, and what a sample takes of them."""

    begin: int  # byte at which the first row begins
    rows: int
    shape: tuple[int, ...]  # of a row in the file, as are dtype and row_bytes
    dtype: str
    row_bytes: int
    windows: Windows
    columns: int | tuple[int, ...] | None = None

    @property
    def end(self) -> int:
        return self.begin + self.rows * self.row_bytes

    @property
    def sample_shape(self) -> tuple[int, ...]:
        shape = self.shape if self.windows.length is None else (self.windows.length, *self.shape)
        if self.columns is None:
            return shape
        return shape[:-1] if isinstance(self.columns, int) else (*shape[:-1], len(self.columns))

    @property
    def is_whole(self) -> bool:
        """Whether the bytes of a sample are those that lie in the file, from its first row to its last."""
        return self.windows.step == 1 and self.columns is None and self.dtype[:1] != FOREIGN

    @property
    def numpy_dtype(self) -> np.dtype[np.generic]:
        import numpy as np

        return np.dtype(self.dtype) if self.dtype[:1] == FOREIGN else dtype_of(self.dtype)

    def fill(self, read: Callable[[memoryview], None], count: int, data: memoryview) -> None:
        """Have ``read`` read the rows that samples span, side by side, and write what samples take of them into ``data``."""
        if self.is_whole:
            read(data)
            return
        import numpy as np

        spans = memoryview(bytearray(count * self.windows.span * self.row_bytes))
        read(spans)
        rows = np.ndarray((count, self.windows.span, *self.shape), self.numpy_dtype, spans)
        self.write(self.samples_of(rows), data)

    def samples_of(self, spans: np.ndarray) -> np.ndarray:
        """The samples, as a view of the rows that they span, which have the shape ``(samples, span, *shape)``."""
        return spans[:, 0] if self.windows.length is None else spans[:, :: self.windows.step]

    def write(self, samples: np.ndarray, data: memoryview) -> None:
        """Write the columns of samples that are wanted into ``data``, in native byte order."""
        import numpy as np

        if self.columns is not None:
            samples = samples[..., self.columns]
        np.ndarray(samples.shape, samples.dtype.newbyteorder("="), data)[...] = samples


FOREIGN = ">" if sys.byteorder == "little" else "<"
"""The first character of the dtype of numbers in the other byte order."""


class RowFile:
    """A file of rows, open for one thread.

    Only a worker may copy from a mapping: a file that is truncated after its size was checked ends the process by SIGBUS.
    """

    def __init__(self, path: str, layout: RowLayout, *, may_map: bool) -> None:
        self.fd = -1
        self._layout = layout
        self._may_map = may_map
        self._filled = 0
        self._mapped: np.ndarray | None = None
        self.fd = os.open(path, OPEN_FLAGS)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)

    def fill(self, firsts: Sequence[int], data: memoryview, begun: Any, *, io_waits: bool) -> None:
        """Fill ``data``, the bytes of samples' rows in a batch, with the samples that begin at these rows."""
        self._filled += 1
        layout = self._layout
        before = written(self.fd)
        is_there = before[1] >= layout.end
        together = self._are_neighbours(firsts)
        if self._may_map and not (io_waits or together) and is_there and (self._mapped is not None or self._maps()):
            self._copy(firsts, data)
        else:
            layout.fill(lambda rows: self._read(firsts, rows, begun, io_waits, together), len(firsts), data)
        refuse_change(self.fd, before)

    def _are_neighbours(self, firsts: Sequence[int]) -> bool:
        """Whether one read takes all samples, with no other rows between them; then it is as fast as a copy from a mapping."""
        windows = self._layout.windows
        neighbours = range(firsts[0], firsts[0] + len(firsts) * windows.stride, windows.stride)
        return windows.stride <= windows.span and firsts[-1] == neighbours[-1] and list(firsts) == list(neighbours)

    def _maps(self) -> bool:
        if self._filled <= UNMAPPED and "numpy" not in sys.modules:
            return False
        import numpy as np

        layout = self._layout
        try:
            memory = mmap.mmap(self.fd, layout.end, prot=mmap.PROT_READ)
            if layout.end > available():  # what the system reads around a row would push other rows out of memory
                memory.madvise(mmap.MADV_RANDOM)
        except (OSError, ValueError):  # too little address space
            self._may_map = False
            return False
        if layout.is_whole and layout.windows.length is None:
            self._mapped = np.ndarray((layout.rows, layout.row_bytes), np.uint8, memory, layout.begin)
        else:
            rows = np.ndarray((layout.rows, *layout.shape), layout.numpy_dtype, memory, layout.begin)
            spans = np.lib.stride_tricks.sliding_window_view(rows, layout.windows.span, axis=0)
            self._mapped = layout.samples_of(np.moveaxis(spans, -1, 1))
        return True

    def _copy(self, firsts: Sequence[int], data: memoryview) -> None:
        import numpy as np

        mapped, layout = self._mapped, self._layout
        assert mapped is not None
        if layout.is_whole and layout.windows.length is None:
            rows = np.frombuffer(data, np.uint8).reshape(len(firsts), layout.row_bytes)
            mapped.take(firsts, axis=0, out=rows, mode="clip")  # no number is out of bounds; "raise" would copy first
        else:
            # `take` would copy the whole of a view whose samples overlap.
            layout.write(mapped[np.asarray(firsts)], data)

    def _read(self, firsts: Sequence[int], data: memoryview, begun: Any, io_waits: bool, together: bool) -> None:
        begin, row_bytes, distance = self._layout.begin, self._layout.row_bytes, self._layout.windows.stride
        size, apart = self._layout.windows.span * row_bytes, distance * row_bytes
        if io_waits:
            for start, stop in runs(firsts, range(len(firsts)), distance):
                length = (stop - start - 1) * apart + size
                os.posix_fadvise(self.fd, begin + firsts[start] * row_bytes, length, os.POSIX_FADV_WILLNEED)
        # If rows are missing, they are read one by one, to know which is the first.
        if together and self._read_together(begin + firsts[0] * row_bytes, apart, size, data):
            return
        preadv, fd = os.preadv, self.fd
        start = 0
        for begun[0], first in enumerate(firsts, 1):
            sample = data[start : start + size]
            start += size
            if preadv(fd, (sample,), begin + first * row_bytes) != size:
                read_whole(fd, sample, begin + first * row_bytes)

    def _read_together(self, first: int, apart: int, size: int, data: memoryview) -> bool:
        """Read neighbours, which begin at byte ``first``, by one call; False if any bytes are missing."""
        if apart == size:
            return os.preadv(self.fd, (data,), first) == len(data)
        span = bytearray(len(data) // size * apart - apart + size)
        if os.preadv(self.fd, (span,), first) != len(span):
            return False
        spread(span, apart, data, size)
        return True


class RowsReader(FileReader):
    """Reads samples from the rows of one file, which each thread opens for itself."""

    takes_bytes = True

    def __init__(self, file: str, layout: RowLayout, called: str) -> None:
        self.file = file
        self.layout = layout
        self._called = called  # in errors and warnings
        self.shape, self.dtype = layout.sample_shape, dtype_text(dtype_of(layout.dtype))
        self._in_worker = False
        self._open: RowFile | None = None

    def opened(self, *, in_worker: bool = False) -> Self:
        reader = copy(self)
        reader._open, reader._in_worker = None, in_worker
        return reader

    def _fill(self, keys: Sequence[int], rows: memoryview, begun: Any, io_waits: bool) -> None:
        if self._open is None:
            opened = RowFile(self.file, self.layout, may_map=self._in_worker)
            if not self._is_the_same(opened.fd):
                raise FormatError(REPLACED)
            self._open = opened
        self._open.fill(self.layout.windows.firsts(keys), rows, begun, io_waits=io_waits)

    def place(self, id: Any) -> str:
        return f"{'row' if self.layout.windows.is_plain else 'window'} {id} of {self._called}"

    def _is_the_same(self, fd: int) -> bool:
        """Whether the file that was opened has the form that `Source.bind` saw."""
        raise NotImplementedError

    def _forget(self) -> None:
        self._open = None

    def _damaged(self, key: int, error: Exception) -> SampleError:
        return SampleError(key, self.file, explain(error))


def spread(span: bytes | bytearray, apart: int, data: memoryview, size: int) -> None:
    """Copy overlapping samples, which lie ``apart`` bytes apart in ``span``, into ``data``, where they lie side by side."""
    start = 0
    for first in range(0, len(data), size):
        data[first : first + size] = span[start : start + size]
        start += apart


def runs(firsts: Sequence[int], numbers: Iterable[int], distance: int) -> Iterator[tuple[int, int]]:
    """Runs of neighbours among ``numbers``, which are positions in ``firsts``: the first of each, and one past its last."""
    start = stop = -1
    for number in numbers:
        if number != stop or firsts[number] != firsts[number - 1] + distance:
            if start >= 0:
                yield start, stop
            start = number
        stop = number + 1
    if start >= 0:
        yield start, stop
