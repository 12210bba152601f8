"""Which rows of a file are a sample: one, or a window of some, one after the other.

A worker imports this module, so it imports nothing but the standard library.
"""

from __future__ import annotations

from typing import NamedTuple


class Windows(NamedTuple):
    """Where the samples of a file of rows are.

    Attributes:
        length: rows of a sample; None for one row, without an axis for them.
        stride: rows from the begin of one sample to that of the next.
        offset: the row at which sample 0 begins.
    """

    length: int | None = None
    stride: int = 1
    offset: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether samples are simply the rows."""
        return self == Windows()

    @property
    def rows(self) -> int:
        """Rows of a sample."""
        return self.length or 1

    def count(self, rows: int) -> int:
        """How many samples a file of so many rows has."""
        return max(0, (rows - self.offset - self.rows) // self.stride + 1)

    def first(self, id: int) -> int:
        """The first row of sample ``id``."""
        return self.offset + id * self.stride

    def shape(self, file: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a sample, where that of the file's array is ``file``."""
        return file[1:] if self.length is None else (self.length, *file[1:])

    def bytes(self, header: int, sample_bytes: int) -> tuple[int, int]:
        """Where sample 0 begins in a file, and how far from there the next does.

        Args:
            header: bytes of the file's header.
            sample_bytes: bytes of a sample.
        """
        row_bytes = sample_bytes // self.rows
        return header + self.offset * row_bytes, self.stride * row_bytes

    def named(self, id: object) -> str:
        """What errors call sample ``id``."""
        if self.is_plain or not isinstance(id, int):
            return f"row {id}"
        first = self.first(id)
        return f"row {first}" if self.length is None else f"rows {first} to {first + self.length - 1}"

    def expected(self, file: str, rows: int) -> str:
        """What an id should be, for errors."""
        count = self.count(rows)
        if self.is_plain:
            return f"a row's number from 0 to {count - 1}, which {file} has"
        what = f"windows of {self.rows} rows, {self.stride} apart, from row {self.offset} on"
        if not count:
            return f"at least {self.offset + self.rows:,} rows in {file}, for {what}, found {rows:,}"
        return f"a window's number from 0 to {count - 1}: the {rows:,} rows of {file} have {count:,} {what}"


def spread(span: memoryview | bytearray, step: int, rows: memoryview, row_bytes: int) -> None:
    """Copy overlapping samples, which lie ``step`` bytes apart in ``span``, into ``rows``, where they lie side by side."""
    start = 0
    for first in range(0, len(rows), row_bytes):
        rows[first : first + row_bytes] = span[start : start + row_bytes]
        start += step
