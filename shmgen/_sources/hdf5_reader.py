"""Reads samples from an HDF5 file, and finds out which of their data are missing.

HDF5 itself reads missing parts as zeros or a fill value, without an error. A chunk is decoded once for all its rows of a ticket.
"""

from __future__ import annotations

import math
import operator
import os
import zlib
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from itertools import groupby, product
from typing import Any

import h5py
import numpy as np

from shmgen._samples.casting import cast_into
from shmgen._samples.files import some_of
from shmgen._samples.sample_spec import are_numbers, can_cast
from shmgen._sources.folder import FileReader
from shmgen._sources.row_file import RowLayout, Windows
from shmgen._storage.local import refuse_pointer
from shmgen.errors import FormatError, SampleError

ID = "{id}"
"""In the name of a dataset, in place of the id of the sample that it holds."""

MEANT = "; where what is missing is meant to be 0, pass allow_unwritten=True"


class Hdf5Reader(FileReader):
    """Reads the rows of a dataset, or, where its name has ``{id}`` in it, a dataset for each sample, by h5py."""

    concurrent = False
    damage = (OSError, ValueError, RuntimeError, FormatError, zlib.error)

    def __init__(self, file: str, name: str, first: Any, *, swmr: bool, allow_unwritten: bool) -> None:
        self.file = file
        self.shape, self.dtype = first.shape if ID in name else first.shape[1:], first.dtype
        self._name, self._swmr, self._allow_unwritten = name, swmr, allow_unwritten
        self._file: Any = None
        self._rows: Any = None

    def _fill(self, keys: Sequence[Any], rows: np.ndarray, begun: Any, io_waits: bool) -> None:
        begun[0] = 1
        if self._file is None:
            self._file = opened(self.file, swmr=self._swmr)
            if ID not in self._name:
                found = checked(self._file, self._name, allow_unwritten=self._allow_unwritten)
                self._rows = _Rows(found, self.shape, self.dtype, may_lack=self._allow_unwritten or has_fill_value(found))
        if self._rows is not None:
            self._rows.read(keys, rows, begun)
            return
        for number, key in enumerate(keys):
            begun[0] = number + 1
            found = self._sample(key)
            if found.dtype == rows.dtype:
                found.read_direct(rows, None, np.s_[number])
            else:  # HDF5 itself clips numbers that do not fit
                cast_into(rows[number, ...], found[()], "; read it by a function as source, and pass dtype='{found}'")

    def _forget(self) -> None:
        self._file = self._rows = None

    def _damaged(self, key: Any, error: Exception) -> SampleError:
        return SampleError(key, self.file, unreadable(error))

    def _sample(self, id: Any) -> Any:
        found = checked(self._file, self._name, id, allow_unwritten=self._allow_unwritten)
        if found.shape != self.shape or not can_cast(found.dtype, np.dtype(self.dtype)):
            expected = f"shape {self.shape} and dtype {self.dtype}, as the first has, found {found.shape} and {found.dtype}"
            remedy = "of samples of several shapes a function as source makes rows"
            raise FormatError(f"dataset {self._name.replace(ID, str(id))!r}: expected {expected}; {remedy}")
        return found

    def place(self, id: Any) -> str:
        if ID not in self._name:
            return f"row {id} of dataset {self._name!r} of file {self.file}"
        return f"dataset {self._name.replace(ID, str(id))!r} of file {self.file}"


class _Rows:
    """A dataset of rows, as one thread reads it: by chunk, so that none is decoded twice for a ticket."""

    def __init__(self, dataset: Any, shape: tuple[int, ...], dtype: Any, *, may_lack: bool) -> None:
        self._dataset = found = dataset
        self._may_lack = may_lack  # chunks that were never written are then rows of the fill value
        if found.shape[1:] != shape or found.dtype != dtype:
            raise FormatError(f"expected rows of shape {shape} and dtype {dtype}, found {found.shape[1:]}, {found.dtype}")
        self._length = found.chunks[0] if found.chunks else 0
        # Where gzip is the only filter of chunks of whole rows, these are unpacked only up to the last row that is wanted.
        is_gzip = found.compression == "gzip" and found.id.get_create_plist().get_nfilters() == 1
        self._zlib = is_gzip and found.chunks[1:] == shape and found.dtype.isnative and is_native(found)
        self._has_holes = bool(found.chunks) and found.id.get_num_chunks() < count_chunks(found)
        self._row_bytes = math.prod(shape) * found.dtype.itemsize

    def read(self, keys: Sequence[int], rows: np.ndarray, begun: Any) -> None:
        order = sorted(range(len(keys)), key=keys.__getitem__)
        # Without chunks, neighbours are read together.
        groups = [keys[number] // self._length if self._length else keys[number] - place for place, number in enumerate(order)]
        for group, members in groupby(zip(groups, order, strict=True), key=operator.itemgetter(0)):
            numbers = [number for _, number in members]
            begun[0] = numbers[0] + 1
            first, last = keys[numbers[0]], keys[numbers[-1]]
            unwritten = self._unwritten(group * self._length) if self._has_holes else None
            if unwritten is not None and not self._may_lack:
                raise FormatError(f"expected a row that was written, found that nothing was, to the chunk at {unwritten}{MEANT}")
            if self._zlib and unwritten is None and (block := self._unpacked(group * self._length, last)) is not None:
                first = group * self._length
            else:
                block = np.empty((last - first + 1, *rows.shape[1:]), rows.dtype)
                self._dataset.read_direct(block, np.s_[first : last + 1])
            for number in numbers:
                rows[number] = block[keys[number] - first]

    def _unpacked(self, begin: int, last: int) -> np.ndarray | None:
        """The rows of the chunk that begins at row ``begin``, up to ``last``; None if it is not packed.

        The checksum at the end of the chunk is compared only if its last row is wanted, as it is once in an epoch or a scan.
        """
        mask, raw = self._dataset.id.read_direct_chunk((begin, *[0] * (self._dataset.ndim - 1)))
        if mask:
            return None
        to_end = last + 1 == min(begin + self._length, len(self._dataset))
        size = (self._length if to_end else last - begin + 1) * self._row_bytes
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(raw, size + to_end)  # one more byte, which is not there, has zlib read the checksum
        if len(data) < size or (to_end and not unpacker.eof):
            raise FormatError(f"expected {size:,} bytes in the chunk of row {last}, found {len(data):,}: it is damaged")
        return np.frombuffer(data, self._dataset.dtype).reshape(-1, *self._dataset.shape[1:])

    def _unwritten(self, begin: int) -> tuple[int, ...] | None:
        """The first corner of a chunk that begins at a row and was never written; None if all were."""
        dataset = self._dataset
        others = [range(0, size, chunk) for size, chunk in zip(dataset.shape[1:], dataset.chunks[1:], strict=True)]
        corners = product([begin], *others)
        return next((corner for corner in corners if dataset.id.get_chunk_info_by_coord(corner).byte_offset is None), None)


def opened(path: str, *, swmr: bool) -> Any:
    try:
        return h5py.File(path, "r", swmr=swmr, libver="latest" if swmr else None)
    except OSError:
        with suppress(OSError), open(path, "rb") as file:
            refuse_pointer(file.read(16))
        raise


def unreadable(error: Exception) -> str:
    """Why a file, or a row of it, can't be read."""
    if isinstance(error, FormatError):
        return str(error)
    found = f": {error}"
    if isinstance(error, BlockingIOError) or "already open for write" in found:
        found = f" one that a process has open to write ({error}); close it there, or, if it is in swmr mode, pass swmr=True"
    return f"expected an HDF5 file that can be read, found{found}"


def flat_layout(dataset: Any) -> RowLayout | None:
    """Where the rows of a dataset lie, if they do so as they are, one after the other."""
    offset = dataset.id.get_offset()
    if offset is None or dataset.chunks or dataset.external or not is_native(dataset) or 0 in dataset.shape:
        return None
    count, *shape = dataset.shape
    return RowLayout(offset, count, tuple(shape), dataset.dtype.str, math.prod(shape) * dataset.dtype.itemsize, Windows())


def is_native(dataset: Any) -> bool:
    """Whether the numbers in the file are those of NumPy's dtype, bit by bit."""
    return bool(dataset.id.get_type().equal(h5py.h5t.py_create(dataset.dtype)))


def count_chunks(dataset: Any) -> int:
    """How many chunks a dataset has, written or not."""
    return math.prod(-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True))


def has_fill_value(dataset: Any) -> bool:
    """Whether a dataset was created with a fill value, as of sparse data, which stands for all that was never written."""
    return bool(dataset.id.get_create_plist().fill_value_defined() == h5py.h5d.FILL_VALUE_USER_DEFINED)


def checked(file: Any, pattern: str, id: Any = "", *, allow_unwritten: bool) -> Any:
    """The dataset of this name, or of sample ``id``; a FormatError if it, or a part of it, is missing, or holds no numbers."""
    name = pattern.replace(ID, str(id))
    found = file.get(name)
    if isinstance(found, h5py.Group):
        raise FormatError(f"expected a dataset {name!r}, found a group with {some_of(found)}; add the name of one")
    if found is None:
        group = name
        while not isinstance(there := file.get(group), h5py.Group):
            group = os.path.dirname(group) or "/"
        found = _dangling(file, name) or f"none; group {group!r} has {some_of(there)}"
        raise FormatError(f"expected a dataset {name!r}, found {found}")
    if not isinstance(found, h5py.Dataset) or found.shape is None:
        raise FormatError(f"expected a dataset {name!r} of numbers, found one without any")
    if not are_numbers(found.dtype):
        by_function = "read it by a function as source, or write it as numbers"
        raise FormatError(f"expected numbers, found dtype {found.dtype} in dataset {name!r}; {by_function}")
    may_lack = allow_unwritten or has_fill_value(found)
    _require_data(found, may_lack=may_lack)
    if ID in pattern and not may_lack and found.chunks and (written := found.id.get_num_chunks()) < count_chunks(found):
        found_chunks = f"{count_chunks(found):,} chunks, found that {written:,} were written{MEANT}"
        raise FormatError(f"dataset {name!r}: expected {found_chunks}")
    return found


def _require_data(dataset: Any, *, may_lack: bool) -> None:
    """Refuse a dataset if a part of its data is known to be missing, in place of which HDF5 would read zeros."""
    if dataset.id.get_offset() is not None:  # it lies in the file
        return
    found = f"dataset {dataset.name!r} of {dataset.file.filename}: expected all of its data, found that"
    if dataset.is_virtual:
        for part in dataset.virtual_sources():
            if "%" not in part.file_name + part.dset_name:  # that stands for numbers, of as many parts as there are
                _require_part(dataset, part, found, may_lack=may_lack)
        return
    missing = dataset.size * dataset.dtype.itemsize
    for name, offset, most in dataset.external or ():
        path = os.path.join(os.environ.get("HDF5_EXTFILE_PREFIX", ""), os.fsdecode(name))
        size = min(most, missing)
        missing -= size
        if not os.path.exists(path) or os.path.getsize(path) < offset + size:
            raise FormatError(f"{found} the file of its raw data, {path}, is missing or shorter than {offset + size:,} bytes")
    if dataset.size and not dataset.id.get_storage_size() and not may_lack:
        raise FormatError(f"{found} nothing was ever written to it{MEANT}")


def _require_part(dataset: Any, part: Any, found: str, *, may_lack: bool) -> None:
    """As `_require_data`, of a part of a virtual dataset."""
    own = os.path.dirname(dataset.file.filename)
    prefix = os.environ.get("HDF5_VDS_PREFIX", "").replace("${ORIGIN}", own)
    paths = [os.path.join(folder, part.file_name) for folder in (prefix, own, "")]
    path = next(filter(os.path.exists, paths), paths[1])
    try:
        with nullcontext(dataset.file) if part.file_name == "." else h5py.File(path, "r") as file:
            there = file.get(part.dset_name)
            if not isinstance(there, h5py.Dataset):
                raise FormatError(f"{found} its part {file.filename} has no dataset {part.dset_name!r}")
            if _is_short(there, part):
                raise FormatError(f"{found} its part {part.dset_name!r} of {file.filename} has only shape {there.shape}")
            _require_data(there, may_lack=may_lack or has_fill_value(there))
    except OSError as error:
        raise FormatError(f"{found} its part {path} can't be read: {error}") from None


def _is_short(there: Any, part: Any) -> bool:
    """Whether a dataset has fewer elements than it had when a virtual dataset was made of it."""
    space = part.src_space
    try:
        last = space.get_select_bounds()[1] if space.shape else ()  # without a shape it is all of the dataset
        return bool(part.vspace.get_select_npoints() > (there.size or 0) or any(map(operator.ge, last, there.shape)))
    except RuntimeError:  # the part is unlimited: as many rows as there are
        return False


def _dangling(file: Any, name: str) -> str:
    """What is said of a name that is a link to what is not there; else an empty text."""
    with suppress(KeyError):
        link = file.get(name, getlink=True)
        if isinstance(link, h5py.SoftLink | h5py.ExternalLink):
            return f"a dangling link, to {link.path!r} in {getattr(link, 'filename', 'this file')}"
    return ""
