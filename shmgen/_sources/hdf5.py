"""`Hdf5`: the datasets of an HDF5 file. Needs h5py, which the extra ``hdf5`` installs.

Rows that lie in the file as they are, one after the other, are read as those of an ``.npy`` file, and workers do without h5py.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shmgen._sources.base import BuiltinSource
from shmgen._sources.row_file import RowLayout, RowsReader
from shmgen._storage.local import again
from shmgen.errors import FormatError, InputError, SampleError

if TYPE_CHECKING:
    from shmgen._sources.hdf5_reader import Hdf5Reader


class FlatReader(RowsReader):
    """Reads the rows of a dataset that lie in the file as they are."""

    def __init__(self, file: str, layout: RowLayout, called: str) -> None:
        super().__init__(file, layout, called)
        self._seen = _identity(os.stat(file))

    def _is_the_same(self, fd: int) -> bool:
        return _identity(os.fstat(fd)) == self._seen


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class Hdf5(BuiltinSource):
    """The samples of an HDF5 file: the rows of one dataset, or a dataset for each. Each worker opens the file for itself.

    Args:
        file: the file.
        dataset: the name of a dataset whose rows are the samples; ids are their numbers, from 0. Or that of a group with a
            dataset for each sample; ids are the names of these. Or a name with ``{id}`` in it, ``"{id}/image"`` for instance, by
            which the dataset of each sample is found. By default, the group of all that is in the file.
        swmr: whether another process writes to the file meanwhile, in h5py's mode for a single writer and multiple readers.
            The samples are those that exist when the loader is made.
        allow_unwritten: whether chunks that were never written are read as 0. They are damage otherwise, of a file that was not
            written to its end, unless the dataset was created with a ``fillvalue``, which stands for them then.

    The datasets of samples have the shape of the first, and are cast to its dtype where NumPy calls that "same_kind".

    Raises:
        InputError: h5py is not installed; by `bind`, the file or the dataset can't be read, or has no row of an id's number.
        SampleError: by `bind`, or from a request for a batch: a row can't be read.

    Examples:
        >>> loader = Loader(range(16), batch_size=4, source=Hdf5("all.h5", "images"), shuffle=False)
        >>> (X,) = loader.batch(0)
        >>> X.shape, X[:, 0, 0]
        ((4, 4, 3), array([0., 1., 2., 3.], dtype=float32))

        A dataset for each sample:

        >>> loader = Loader(ids, batch_size=4, source=Hdf5("each.h5", "samples/{id}/image"))
    """

    def __init__(
        self, file: str | os.PathLike[str], dataset: str = "/", *, swmr: bool = False, allow_unwritten: bool = False
    ) -> None:
        try:
            import h5py  # noqa: F401
        except ImportError as error:
            raise InputError(f"Hdf5 needs h5py: pip install 'shmgen[hdf5]' ({error})") from None
        self.file = os.path.abspath(file)
        self.dataset = dataset
        self._swmr = swmr
        self._allow_unwritten = allow_unwritten

    def bind(self, ids: Sequence[Any], *, field: str = "X", varies: bool = False) -> Hdf5Reader | FlatReader:
        from h5py import Group  # late: workers need none of these

        from shmgen._samples.ids import require_numbers
        from shmgen._sources.hdf5_reader import ID, Hdf5Reader, checked, flat_layout, opened, unreadable

        first, name = ids[0], self.dataset
        try:
            with again(lambda: opened(self.file, swmr=self._swmr)) as file:
                if ID not in name and isinstance(file.get(name), Group):
                    name = f"{name.rstrip('/')}/{ID}"
                found = checked(file, name, first, allow_unwritten=self._allow_unwritten)
                has_rows = ID not in name
                count = found.shape[0] if has_rows and found.shape else 0
                if has_rows and not count:
                    single = "a single number; where each sample has one, put '{id}' into the name"
                    raise FormatError(f"expected rows, found {f'shape {found.shape}; write some' if found.shape else single}")
                if has_rows and not self._swmr and (layout := flat_layout(found)) is not None:
                    there = os.path.abspath(found.file.filename)  # another file, where a link leads to one
                    reader: Hdf5Reader | FlatReader = FlatReader(there, layout, f"dataset {name!r} of file {self.file}")
                else:
                    reader = Hdf5Reader(self.file, name, found, swmr=self._swmr, allow_unwritten=self._allow_unwritten)
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"file {self.file}: {unreadable(error)}") from None
        except FormatError as error:
            if ID in name:
                raise SampleError(first, self.file, str(error)) from None
            raise InputError(f"dataset {name!r} of file {self.file}: {error}") from None
        if has_rows:
            require_numbers(ids, count, f"a row's number from 0 to {count - 1}, which dataset {name!r} of {self.file} has")
        return reader
