"""`Npz`: ``.npz`` files, one a sample, of several arrays."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar
from zipfile import BadZipFile, ZipFile, ZipInfo

import numpy as np

from shmgen._samples.npy_format import LARGEST_ELEMENT, LONGEST, read_header
from shmgen._sources.folder import Files, FolderReader, FolderSource
from shmgen._storage.local import refuse_pointer
from shmgen.errors import FormatError, SampleError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from shmgen._sources.fields import RowsByKey
    from shmgen._storage.remote import Remote

T = TypeVar("T")

DAMAGED = (OSError, ValueError, FormatError, BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
"""Errors of reading a file that is no whole ``.npz`` file."""


class Npz(FolderSource):
    """The files ``<folder>/<id>.npz``, one a sample, as `numpy.savez` and `numpy.savez_compressed` write them.

    Each array is a field: ``npz["image"]``, or ``npz["image"].shaped(dim=..., dtype=...)`` where rows are not as the first file's
    array. ``npz`` itself is all of them, a dict. However many are used, a file is opened once a sample; only the arrays that are
    used are read, and checked against their checksums.

    Args:
        folder: where the files are, or its URL, as for `Npy`; None where ids are paths, with or without ``.npz``.

    Raises:
        SampleError: by `bind`, or from a request for a batch: a file can't be read. It names the file and the fault.

    Examples:
        >>> for id in ids:
        ...     np.savez_compressed(f"data/{id}.npz", image=np.load(f"data/{id}.npy"), label=labels[id])
        >>> npz = Npz("data")
        >>> loader = Loader(ids, inputs=npz["image"], targets=npz["label"], batch_size=4, shuffle=False)
        >>> X, y = loader.batch(1)
        >>> X.shape, X[:, 0, 0], y
        ((4, 4, 3), array([4., 5., 6., 7.], dtype=float32), array([0, 1, 2, 3]))
    """

    finds_fields = True

    def __init__(self, folder: str | os.PathLike[str] | Remote | None) -> None:
        super().__init__(Files(folder, ".npz"))

    def _reader(self, files: Files, first: object, varies: bool) -> NpzReader:
        try:
            fields = _read(files, first, lambda archive: {key: _kind(archive, info) for key, info in _members(archive).items()})
        except DAMAGED as error:
            raise _explained(error) from None
        if not fields:
            raise FormatError("expected arrays, found an .npz file without any")
        return NpzReader(files, fields)


class NpzReader(FolderReader):
    """Reads ``.npz`` files; ``fields`` are the arrays in the first."""

    reads_one_by_one = True
    damage = DAMAGED

    def __init__(self, files: Files, fields: dict[str, tuple[tuple[int, ...], DTypeLike]]) -> None:
        super().__init__(files)
        self.fields = fields

    def _read(self, key: object, row: RowsByKey) -> dict[str, np.ndarray]:
        return _read(self.files, key, lambda archive: _arrays(archive, row))

    def _damaged(self, key: object, error: Exception) -> SampleError:
        return self.files.unreadable(key, _explained(error))


def _read(files: Files, id: object, take: Callable[[ZipFile], T]) -> T:
    """What ``take`` makes of the archive of sample ``id``."""

    def opened(file: int | bytes) -> T:
        with open(file, "rb", closefd=False) if isinstance(file, int) else io.BytesIO(file) as stream:
            refuse_pointer(stream.read(16))
            with ZipFile(stream) as archive:
                return take(archive)

    return files.read(id, opened)


def _arrays(archive: ZipFile, rows: RowsByKey) -> dict[str, np.ndarray]:
    members = _members(archive)
    arrays = {}
    for key, row in rows.items():
        if key not in members:
            raise FormatError(f"expected an array {key!r}, found {', '.join(map(repr, members)) or 'none'}")
        arrays[key] = _array(archive, members[key], None if key in rows.varied else row)
    return arrays


def _members(archive: ZipFile) -> dict[str, ZipInfo]:
    return {info.filename.removesuffix(".npy"): info for info in archive.infolist() if info.filename.endswith(".npy")}


def _kind(archive: ZipFile, info: ZipInfo) -> tuple[tuple[int, ...], DTypeLike]:
    """Shape and dtype of an array; dtype object of one that can't be read."""
    with archive.open(info) as member:
        start = member.read(LONGEST)
    try:
        header, _ = read_header(memoryview(start))
    except FormatError:
        return (), np.dtype(object)
    return header.shape, header.dtype.newbyteorder("=")


def _array(archive: ZipFile, info: ZipInfo, row: np.ndarray | None) -> np.ndarray:
    """The array of a member; of one that is too large for ``row``, an array of its shape that takes no memory."""
    try:
        with archive.open(info) as member:
            data = member.read(LONGEST)
            header, _ = read_header(memoryview(data))
            if header.size + header.data_bytes != info.file_size:
                raise FormatError(f"expected {header.size + header.data_bytes:,} bytes, found {info.file_size:,}")
            if row is not None and header.data_bytes > LARGEST_ELEMENT * row.size:
                return np.broadcast_to(np.empty((), header.dtype), header.shape)
            data += member.read()  # which checks the checksum
    except FormatError as error:
        raise FormatError(f"array {info.filename.removesuffix('.npy')!r}: {error}") from None
    return np.ndarray(header.shape, header.dtype, data, header.size, order="F" if header.fortran else "C")


def _explained(error: Exception) -> Exception:
    """An error of an archive, worded as those of other files."""
    if isinstance(error, OSError | FormatError) or "null byte" in str(error):  # in an id that can't be a path
        return error
    text = str(error) or type(error).__name__
    return FormatError(f"expected an .npz file, found one that is truncated, damaged or of another format: {text}")
