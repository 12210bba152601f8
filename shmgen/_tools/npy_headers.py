"""Reads the headers of ``.npy`` files, and checks the sizes of the files against them, for `scan`."""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from shmgen._samples.npy_format import read_header_of, remote_header
from shmgen._sources.folder import FolderReader, FolderSource
from shmgen.errors import FormatError

TEXT = 256
"""Bytes of a row; the shape and dtype of an array of numbers take fewer."""


class NpyHeaders(FolderSource):
    """The headers of ``.npy`` files, a row each: shape and dtype as text, filled up with spaces. Truncated files are damaged."""

    def bind(self, ids: Sequence[Any], *, field: str = "X", varies: bool = False) -> NpyHeadersReader:
        self.files.prepare(ids, "Npy")
        self.files.disconnect()
        return NpyHeadersReader(self.files)


class NpyHeadersReader(FolderReader):
    shape, dtype, takes_bytes = (TEXT,), "|u1", True

    def _fill(self, keys: Sequence[Any], rows: memoryview, begun: Any, io_waits: bool) -> None:
        for begun[0], id in enumerate(keys, 1):
            rows[(begun[0] - 1) * TEXT : begun[0] * TEXT] = self._row(id)

    def _row(self, id: Any) -> bytes:
        if (remote := self.files.remote) is None:
            header, _ = read_header_of(self.files.path(id))
        else:
            header, _, _ = remote_header(remote, self.files.name(id), in_parts=True)
        return _text(header.shape, header.dtype)


@lru_cache(maxsize=4096)
def _text(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> bytes:
    text = f"{shape} {np.lib.format.dtype_to_descr(dtype)!r}".encode().ljust(TEXT)
    if len(text) > TEXT:
        raise FormatError(f"expected numbers, found dtype {dtype}")
    return text


def shape_and_dtype(text: bytes) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    shape, _, descr = text.decode().partition(") ")
    return literal_eval(f"{shape})"), np.lib.format.descr_to_dtype(literal_eval(descr.strip()))
