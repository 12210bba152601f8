"""Reads the headers of ``.npy`` files, and checks the sizes of the files against them, for `scan`.

A worker imports this module, so NumPy is imported only where a header is parsed.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from shmgen._samples.npy_format import LONGEST, OPEN_FLAGS, explain, read_header, require_data
from shmgen._sources.folder import FolderReader, FolderSource
from shmgen.errors import FormatError, SampleError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

START = 512
"""Bytes to read of a file for its header; nearly all headers have fewer."""

TEXT = 256
"""Bytes of a row; shape and dtype of an array of numbers take fewer."""


class NpyHeaders(FolderSource):
    """The headers of ``.npy`` files, a row each: shape and dtype as text, filled up with spaces; see `shape_and_dtype`.

    A file that is shorter than its header says is damaged. No more than the header is read.
    """

    def bind(self, ids: Sequence[Any], *, field: str = "X", varies: bool = False) -> NpyHeadersReader:
        self.files.prepare(ids, "Npy")
        self.files.disconnect()
        return NpyHeadersReader(self.files)


class NpyHeadersReader(FolderReader):
    """Reads headers."""

    shape, dtype, takes_bytes = (TEXT,), "|u1", True

    def _fill(self, keys: Sequence[Any], rows: memoryview, begun: Any, io_waits: bool) -> None:
        for begun[0], id in enumerate(keys, 1):
            rows[(begun[0] - 1) * TEXT : begun[0] * TEXT] = self._row(id)

    def _damaged(self, key: Any, error: Exception) -> SampleError:
        return SampleError(key, path := self.files.path(key), explain(error, path))

    def _row(self, id: Any) -> bytes:
        for most in (START, LONGEST):
            start, total = self._start(id, most)
            # Of format version 1.0, which nearly all have, the header alone: most files have the same one.
            header = start[: 10 + int.from_bytes(start[8:10], "little")] if start[6:7] == b"\1" else start
            try:
                size, text = _parsed(header)
                break
            except FormatError:
                if len(start) < most or most == LONGEST:
                    raise
        if total is not None:
            require_data(total, size)
        return text

    def _start(self, id: Any, most: int) -> tuple[bytes, int | None]:
        """The first bytes of a file, and its size, if that is known."""
        if self.files.remote is not None:
            [name] = self.files.names([id])
            return self.files.remote.store.get(name, lambda body: (body.read(LONGEST), body.total), 0, most)
        fd = os.open(self.files.path(id), OPEN_FLAGS | os.O_NONBLOCK)  # an ordinary open of a FIFO would wait for ever
        try:
            return os.pread(fd, most, 0), os.lseek(fd, 0, os.SEEK_END)
        finally:
            os.close(fd)


@lru_cache(maxsize=4096)
def _parsed(raw: bytes) -> tuple[int, bytes]:
    """How many bytes a file with this header has, and its row."""
    import numpy as np

    header, _ = read_header(memoryview(raw))
    text = f"{header.shape} {np.lib.format.dtype_to_descr(header.dtype)!r}".encode().ljust(TEXT)
    if len(text) > TEXT:
        raise FormatError(f"expected numbers, found dtype {header.dtype}")
    return header.size + header.data_bytes, text


def shape_and_dtype(text: bytes) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """What a row says."""
    from ast import literal_eval

    import numpy as np

    shape, _, descr = text.decode().partition(") ")
    return literal_eval(f"{shape})"), np.lib.format.descr_to_dtype(literal_eval(descr.strip()))
