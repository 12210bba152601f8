"""Reads the headers of ``.npy`` files, and checks the sizes of the files against them, for `scan`.

A worker imports this module, so NumPy is imported only for a header that is not among those that the main process has read.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from shmgen._samples.npy_format import LONGEST, OPEN_FLAGS, Header, explain, read_header, require_data
from shmgen._sources.folder import Files, FolderReader, FolderSource
from shmgen.errors import FormatError, SampleError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from shmgen._storage.store import Body

START = 512
"""Bytes to read of a file for its header; nearly all headers have fewer."""

FIRST = 8
"""Files whose headers the main process reads."""

MAX_KNOWN = 4096
"""Headers that are remembered."""

TEXT = 256
"""Bytes of a row; shape and dtype of an array of numbers take fewer."""


class NpyHeaders(FolderSource):
    """The headers of ``.npy`` files, a row each: shape and dtype as text, filled up with spaces; see `shape_and_dtype`.

    A file that is shorter than its header says is damaged. No more than the header is read.
    """

    def bind(self, ids: Sequence[Any], *, field: str = "X", varies: bool = False) -> NpyHeadersReader:
        """Reads the headers of the first files, which others are likely to have too.

        Raises:
            InputError: an id leads out of the folder.
        """
        self.files.prepare(ids, "Npy")
        reader = NpyHeadersReader(self.files)
        for id in ids[: FIRST if self.files.remote is None else 0]:
            with suppress(OSError, ValueError, FormatError):
                reader.row(id)
        self.files.disconnect()
        return reader


class NpyHeadersReader(FolderReader):
    """Reads headers."""

    shape, dtype, takes_bytes = (TEXT,), "|u1", True

    def __init__(self, files: Files) -> None:
        super().__init__(files)
        # By header: how many bytes such a file has, and its row.
        self._known: dict[bytes, tuple[int, bytes]] = {}

    def _fill(self, keys: Sequence[Any], rows: memoryview, begun: Any, io_waits: bool) -> None:
        for begun[0], id in enumerate(keys, 1):
            rows[(begun[0] - 1) * TEXT : begun[0] * TEXT] = self.row(id)

    def _damaged(self, key: Any, error: Exception) -> SampleError:
        return SampleError(key, path := self.files.path(key), explain(error, path))

    def row(self, id: Any) -> bytes:
        """The row of one file."""
        if self.files.remote is not None:
            return self._remote_row(id)
        fd = os.open(self.files.path(id), OPEN_FLAGS | os.O_NONBLOCK)  # an ordinary open of a FIFO would wait for ever
        try:
            start = os.read(fd, START)
            found = self._known.get(start[: 10 + int.from_bytes(start[8:10], "little")])  # of format version 1.0
            if found is None:
                found = self._remembered(*read_header(fd))
            require_data(os.lseek(fd, 0, os.SEEK_END), found[0])
            return found[1]
        finally:
            os.close(fd)

    def _remote_row(self, id: Any) -> bytes:
        assert self.files.remote is not None
        [name] = self.files.names([id])
        start, total = self.files.remote.get(name, _start, 0, START)
        try:
            header = read_header(memoryview(start))
        except FormatError:
            if len(start) < START:
                raise
            start, total = self.files.remote.get(name, _start, 0, LONGEST)
            header = read_header(memoryview(start))
        size, text = self._remembered(*header)
        if total is not None:
            require_data(total, size)
        return text

    def _remembered(self, header: Header, raw: bytes) -> tuple[int, bytes]:
        import numpy as np

        text = f"{header.shape} {np.lib.format.dtype_to_descr(header.dtype)!r}".encode().ljust(TEXT)
        if len(text) > TEXT:
            raise FormatError(f"expected numbers, found dtype {header.dtype}")
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[raw] = found = header.size + header.data_bytes, text
        return found


def _start(body: Body) -> tuple[bytes, int | None]:
    return body.read(LONGEST), body.total


def shape_and_dtype(text: bytes) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """What a row says."""
    from ast import literal_eval

    import numpy as np

    shape, _, descr = text.decode().partition(") ")
    return literal_eval(f"{shape})"), np.lib.format.descr_to_dtype(literal_eval(descr.strip()))
