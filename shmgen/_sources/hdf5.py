"""`Hdf5`: one dataset of an HDF5 file. Needs h5py, which the extra ``hdf5`` installs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from shmgen._sources.base import Source
from shmgen._sources.ids import first_outside
from shmgen.errors import InputError, SampleError


class Hdf5(Source):
    """One dataset of all samples in an HDF5 file; an id is a row's number, from 0. Each worker opens the file for itself.

    Args:
        file: the file.
        dataset: the dataset's name in it.

    Raises:
        InputError: by `bind`, the file or the dataset can't be read, or has no row of an id's number.
        SampleError: by `fill`, a row can't be read.

    Examples:
        >>> loader = Loader(range(16), batch_size=4, source=Hdf5("all.h5", "images"), shuffle=False)
        >>> (X,) = loader.batch(0)
        >>> X.shape, X[:, 0, 0]
        ((4, 4, 3), array([0., 1., 2., 3.], dtype=float32))
    """

    def __init__(self, file: str | os.PathLike[str], dataset: str) -> None:
        self.file = os.path.abspath(file)
        self.dataset = dataset
        self._rows: Any = None

    def bind(self, ids: Sequence[Any]) -> None:
        import h5py

        try:
            with h5py.File(self.file, "r") as file:
                count, *shape = file[self.dataset].shape
                self.shape, self.dtype = tuple(shape), file[self.dataset].dtype
        except (OSError, KeyError, ValueError, AttributeError) as error:
            raise InputError(f"dataset {self.dataset!r} of file {self.file}: expected rows, found: {error}") from None
        wrong = first_outside(ids, count)
        if wrong is not None:
            raise InputError(f"id {ids[wrong]!r}: expected a row's number from 0 to {count - 1}, which {self.file} has")

    def open(self) -> None:
        import h5py

        self._rows = h5py.File(self.file, "r")[self.dataset]

    def fill(self, ids: Sequence[int], rows: np.ndarray) -> None:
        if list(ids) == list(range(ids[0], ids[0] + len(ids))):
            with suppress(OSError, ValueError):  # then they are read row by row, to know which can't be read
                self._rows.read_direct(rows, np.s_[ids[0] : ids[0] + len(ids)])
                return
        for number, id in enumerate(ids):
            self.rows_begun[0] = number + 1
            try:
                self._rows.read_direct(rows, np.s_[id], np.s_[number])
            except (OSError, ValueError) as error:
                raise SampleError(id, self.file, f"expected a readable row, found: {error}") from None

    def place(self, id: int) -> str:
        return f"row {id} of dataset {self.dataset!r} of file {self.file}"
