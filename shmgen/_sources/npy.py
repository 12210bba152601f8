"""`Npy`: ``.npy`` files, one a sample."""

from __future__ import annotations

import math
import os
import resource
from collections import deque
from contextlib import closing, suppress
from functools import partial
from threading import Semaphore
from typing import TYPE_CHECKING, Any

from shmgen._samples.casting import cast_into
from shmgen._samples.npy_format import (
    LARGEST_ELEMENT,
    LONGEST,
    OPEN_FLAGS,
    File,
    Header,
    read_header,
    read_header_of,
    read_whole,
    refuse_change,
    remote_header,
    require_data,
    written,
)
from shmgen._samples.sample_spec import OF_ANOTHER_SHAPE, RowSpec, SampleSpec
from shmgen._sources.folder import Files, FolderReader, FolderSource

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    import numpy as np
    from numpy.typing import DTypeLike

    from shmgen._storage.remote import Remote


FILES_AHEAD = 16
"""Files that a reader opens ahead, at most."""

ONE_BY_ONE = 64
"""After a file of another shape than its row, this number of files is read one by one."""

_spare = Semaphore(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
"""Files that all readers of this process may hold open ahead; descriptors are left for the files that are being read."""


class Npy(FolderSource):
    """The files ``<folder>/<id>.npy``, one a sample; an id may name a sub-folder, as ``cats/001`` does.

    Args:
        folder: the folder of the files, out of which no id may lead; or a URL, ``https://``, ``s3://``, ``gs://``, or any other
            that fsspec knows, or `Remote` of one. None where ids are paths, with or without ``.npy``.
        dim: shape of a sample without its channels; or its whole shape, where ``n_channels`` is left out.
        n_channels: size of the last axis. Where it is 1, a file of shape ``dim`` is taken, too, and gets that axis.
        dtype: of a row; files are cast to it where NumPy calls that "same_kind". It must be given if it is one of ml_dtypes, such
            as bfloat16: a file only says how many bytes these have.
        pad_value: what fills the rest of a row where a file's array is smaller along any axis: sequences of several lengths, for
            example. ``dim`` must be given, and is the whole shape of a row if ``n_channels`` is left out. ``length``, ``mask``
            and ``mask_along`` are then fields that say how much of a row is the file's.

    Files may have other shapes than ``dim`` says if the field has a transform that makes rows of them, by a random crop, say.

    What is left out is taken from the first file. With ``dim`` and ``n_channels`` both left out, a row has the file's own shape.

    Attributes:
        folder: as it is if it is a URL; else as an absolute path, so that a later change of directory does no harm.

    Examples:
        >>> loader = Loader(ids, labels, batch_size=4, source=Npy("data", dim=(4, 3), n_channels=1))
        >>> X, y = loader.batch(0)
        >>> X.shape, X.dtype
        ((4, 4, 3, 1), dtype('float32'))

        Padded, and how much of each row is not padding:

        >>> padded = Npy("data", dim=(6, 3), pad_value=-1)
        >>> loader = Loader(ids, inputs={"x": padded, "length": padded.length}, batch_size=4)
        >>> (inputs,) = loader.batch(0)
        >>> inputs["x"].shape, inputs["length"]
        ((4, 6, 3), array([4, 4, 4, 4]))
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | Remote | None,
        dim: int | Iterable[int] | None = None,
        n_channels: int | None = None,
        dtype: DTypeLike | None = None,
        *,
        pad_value: float | None = None,
    ) -> None:
        super().__init__(Files(folder, ".npy"))
        self.given = SampleSpec.checked(dim, n_channels, dtype, pad_value)

    def _reader(self, files: Files, first: object, varies: bool) -> NpyReader:
        if files.remote is None:
            header, raw = read_header_of(files.path(first))
        else:
            header, raw, _ = remote_header(files.remote, files.name(first))
        header = header.reinterpreted(self.given.dtype)
        return NpyReader(files, self.given.row(header.shape, header.dtype, varies=varies), header, raw)


class NpyReader(FolderReader):
    """Reads ``.npy`` files; ``header`` and ``raw`` are those of the first, which must fit."""

    takes_bytes = True

    def __init__(self, files: Files, row: RowSpec, header: Header, raw: bytes) -> None:
        super().__init__(files)
        self.shape, self.dtype, self.varies, self.row_bytes = row.shape, row.dtype, row.varies, row.row_bytes
        self._row = row
        self._check(header)
        self._singly = 0 if self._fits(header) else ONE_BY_ONE
        # The header of files whose data are a row's bytes, unchanged; None until there was such a file.
        self._plain = raw if self._fits(header) and self._is_plain(header) else None

    @property
    def reads_one_by_one(self) -> bool:
        # If one file did not fit its row, others probably won't either. Read singly, each is opened once and held alone.
        return self._singly > 0

    def _read(self, key: object, row: np.ndarray) -> np.ndarray:
        """The array of sample ``key``, of its own shape and dtype."""
        return self.files.read(key, lambda file: self._sample(file if isinstance(file, int) else memoryview(file)))

    def _fill(self, keys: Sequence[object], rows: memoryview, begun: Any, io_waits: bool) -> list[int] | None:
        """Read the files of ``keys`` into ``rows``, which are their rows' bytes; returns the numbers of those of other shapes."""
        self._left: list[int] = []
        self._begun = begun
        files = self.files
        names = list(map(files.name, keys))
        if files.remote is not None:
            self._fetch(files.remote, names, rows)
            return self._left
        # With its descriptor the kernel need not look up the folder for every file.
        folder = os.open(files.folder, os.O_PATH | os.O_CLOEXEC)
        try:
            self._read_files(names, folder, rows, io_waits)
        finally:
            os.close(folder)
        return self._left

    def _read_files(self, names: list[str], folder: int, rows: memoryview, io_waits: bool) -> None:
        # One open, one preadv, one close and one comparison a sample. The speed of the whole package depends on this loop.
        row_bytes = self.row_bytes
        plain, found, expected_bytes = self._expected()
        preadv, close = os.preadv, os.close
        start = 0
        with closing(self._opened(names, folder, io_waits)) as fds:
            for fd in fds:
                row = rows[start : start + row_bytes]
                start += row_bytes
                try:
                    if preadv(fd, (found, row), 0) != expected_bytes or found != plain:
                        self._read_file(fd, row)
                        plain, found, expected_bytes = self._expected()
                finally:
                    close(fd)

    def _opened(self, names: list[str], folder: int, io_waits: bool) -> Generator[int]:
        """Open each file in its turn, once; if ``io_waits``, the next ones before, which the kernel is asked to read."""
        begun, opened, flags = self._begun, os.open, OPEN_FLAGS
        ahead: deque[int] = deque()
        until = len(names) if io_waits else 0
        try:
            for number, name in enumerate(names):
                # An open may hang; the supervisor must see at which file.
                for begun[0] in range(number + len(ahead) + 1, min(number + FILES_AHEAD, until) + 1) if until else ():
                    if not _open_ahead(names[begun[0] - 1], folder, ahead):
                        until = 0
                        break
                begun[0] = number + 1
                yield _next(ahead) if ahead else opened(name, flags, dir_fd=folder)
        finally:
            while ahead:
                os.close(_next(ahead))

    def _fetch(self, remote: Remote, names: list[str], rows: memoryview) -> None:
        """As `_read_files`, of remote files, or of what is kept of them."""
        most = LONGEST + LARGEST_ELEMENT * math.prod(self.shape)  # no file is larger whose array fits a row
        start = 0
        for self._begun[0], name in enumerate(names, 1):
            remote.load(name, partial(self._read_got, row=rows[start : start + self.row_bytes]), most)
            start += self.row_bytes

    def _read_got(self, file: int | bytes, row: memoryview) -> None:
        """Read a file from its bytes, or from what is kept of it on a local disk."""
        plain, found, size = self._expected()
        if isinstance(file, int):
            is_plain = os.preadv(file, (found, row), 0) == size and found == plain
        elif is_plain := bool(plain) and len(file) >= size and file.startswith(plain):
            row[:] = memoryview(file)[len(plain) : size]  # without NumPy, which a worker then need not import
        if not is_plain:
            self._read_file(file if isinstance(file, int) else memoryview(file), row)

    def _expected(self) -> tuple[bytes, bytearray, int]:
        """The header of a plain file, room for the header that is found, and the bytes of header and row; -1 if not known."""
        if self._plain is None:
            return b"", bytearray(), -1
        return self._plain, bytearray(len(self._plain)), len(self._plain) + self.row_bytes

    def _read_file(self, file: File, row: memoryview) -> None:
        """Read a file whose header is not that of the last plain file, or that one call did not read whole."""
        before = written(file)
        header, raw = self._header(file)
        if not self._fits(header):
            self._left.append(self._begun[0] - 1)
            self._singly = ONE_BY_ONE
            return
        if self._is_plain(header):
            read_whole(file, row, header.size)
            self._plain = raw
        else:
            import numpy as np

            array = _array(file, header)
            cast_into(np.ndarray(self.shape, self._row.numpy_dtype, row), array.reshape(self.shape))
        refuse_change(file, before)

    def _sample(self, file: File) -> np.ndarray:
        """The array of a file, of its own shape and dtype."""
        before = written(file)
        header, _ = self._header(file)
        self._singly = self._singly - 1 if self._fits(header) else ONE_BY_ONE
        array = _array(file, header)
        refuse_change(file, before)
        return array

    def _header(self, file: File) -> tuple[Header, bytes]:
        """The header of a file, whose array may become a row, and its bytes."""
        header, raw = read_header(file)
        header = header.reinterpreted(self._row.dtype)
        self._check(header)
        return header, raw

    def _fits(self, header: Header) -> bool:
        """Whether the file's array has the shape of a row."""
        return header.shape in self._row.shapes

    def _is_plain(self, header: Header) -> bool:
        """Whether the file's data are a row's bytes, unchanged."""
        return header.dtype == self._row.numpy_dtype and (not header.fortran or len(header.shape) < 2)

    def _check(self, header: Header) -> None:
        dtype_remedy = "; pass the dtype that the files have, or convert them"
        self._row.check(header.shape, header.dtype, shape_remedy=OF_ANOTHER_SHAPE, dtype_remedy=dtype_remedy)


def _open_ahead(name: str, folder: int, ahead: deque[int]) -> bool:
    """Open a file, put its descriptor at the end of ``ahead``, and have the kernel read it; False if that can't be done."""
    if not _spare.acquire(blocking=False):
        return False
    try:
        ahead.append(os.open(name, OPEN_FLAGS, dir_fd=folder))
    except (OSError, ValueError):
        _spare.release()
        return False  # the error is raised when it is this file's turn
    with suppress(OSError):
        os.posix_fadvise(ahead[-1], 0, 0, os.POSIX_FADV_WILLNEED)
    return True


def _next(ahead: deque[int]) -> int:
    """The descriptor that was opened ahead first. The caller closes it."""
    _spare.release()
    return ahead.popleft()


def _array(file: File, header: Header) -> np.ndarray:
    import numpy as np

    require_data(written(file)[1], header.size + header.data_bytes)
    data = np.empty(header.data_bytes, np.uint8)
    read_whole(file, data.data, header.size)
    return np.ndarray(header.shape, header.dtype, data, order="F" if header.fortran else "C")
