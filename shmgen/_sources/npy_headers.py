"""What the headers of ``.npy`` files say, and whether the files are as long as that: all that a look at a folder needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shmgen._sources.folder import FolderReader, FolderSource
from shmgen._sources.npy_format import LONGEST, Header, explain, read_header, read_header_of, require_data
from shmgen.errors import FormatError, SampleError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from shmgen._storage.store import Body

START = 512
"""Bytes that are got of a file behind a URL, of whose header nearly all have fewer."""

TEXT = 256
"""Bytes of a row; shape and dtype of an array of numbers take fewer."""


class NpyHeaders(FolderSource):
    """The headers of ``.npy`` files, a row each: shape and dtype as text, filled up with spaces; see `shape_and_dtype`.

    A file that is shorter than its header says is damaged. No more than the header is read.
    """

    def bind(self, ids: Sequence[Any], *, field: str = "X", varies: bool = False) -> NpyHeadersReader:
        """Reads nothing.

        Raises:
            InputError: an id leads out of the folder.
        """
        self._files.prepare(ids, "Npy")
        self._files.disconnect()
        return NpyHeadersReader(self._files)


class NpyHeadersReader(FolderReader):
    """Reads headers."""

    shape, dtype, takes_bytes = (TEXT,), "|u1", True

    def fill(self, keys: Sequence[Any], rows: memoryview, begun: Any, *, io_waits: bool = False) -> None:
        """Read the headers of the files of ``keys``.

        Raises:
            SampleError: a file can't be read, or is no whole ``.npy`` file.
        """
        for begun[0], id in enumerate(keys, 1):
            try:
                text = _text(self._header(id))
            except (OSError, ValueError, FormatError) as error:
                raise SampleError(id, path := self.files.path(id), explain(error, path)) from None
            rows[(begun[0] - 1) * TEXT : begun[0] * TEXT] = text

    def _header(self, id: Any) -> Header:
        if self.files.remote is None:
            return read_header_of(self.files.path(id))[0]
        [name] = self.files.names([id])
        get = self.files.remote.get
        start, total = get(name, _start, 0, START)
        try:
            header, _ = read_header(memoryview(start))
        except FormatError:
            if len(start) < START:
                raise
            start, total = get(name, _start, 0, LONGEST)
            header, _ = read_header(memoryview(start))
        if total is not None:
            require_data(total, header.size + header.data_bytes)
        return header


def _start(body: Body) -> tuple[bytes, int | None]:
    return body.read(LONGEST), body.total


def _text(header: Header) -> bytes:
    import numpy as np

    text = f"{header.shape} {np.lib.format.dtype_to_descr(header.dtype)!r}".encode().ljust(TEXT)
    if len(text) > TEXT:
        raise FormatError(f"expected numbers, found dtype {header.dtype}")
    return text


def shape_and_dtype(text: bytes) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """What a row says."""
    from ast import literal_eval

    import numpy as np

    shape, _, descr = text.decode().partition(") ")
    return literal_eval(f"{shape})"), np.lib.format.descr_to_dtype(literal_eval(descr.strip()))
