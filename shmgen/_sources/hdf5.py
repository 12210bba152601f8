"""`Hdf5`: the datasets of an HDF5 file. Needs h5py, which the extra ``hdf5`` installs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np

from shmgen._samples.ids import first_outside
from shmgen._samples.sample_spec import are_numbers, can_cast
from shmgen._sources.base import BuiltinSource, Reader
from shmgen.errors import FormatError, InputError, SampleError

SHOWN = 5

ID = "{id}"


class Hdf5(BuiltinSource):
    """The samples of an HDF5 file: the rows of one dataset, or a dataset for each. Each worker opens the file for itself.

    Args:
        file: the file.
        dataset: the name of a dataset whose rows are the samples; ids are their numbers, from 0. Or that of a group with a
            dataset for each sample; ids are the names of these. Or a name with ``{id}`` in it, ``"{id}/image"`` for instance, by
            which the dataset of each sample is found. By default, the group of all that is in the file.

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

        >>> loader = Loader(ids, batch_size=4, source=Hdf5("each.h5", "samples/{id}/image"), shuffle=False)
        >>> (X,) = loader.batch(0)
        >>> X.shape, X[:, 0, 0]
        ((4, 4, 3), array([0., 1., 2., 3.], dtype=float32))
    """

    def __init__(self, file: str | os.PathLike[str], dataset: str = "/") -> None:
        try:
            import h5py  # noqa: F401
        except ImportError as error:
            raise InputError(f"Hdf5 needs h5py: pip install 'shmgen[hdf5]' ({error})") from None
        self.file = os.path.abspath(file)
        self.dataset = dataset

    def bind(self, ids: Sequence[Any], *, field: str = "X", varies: bool = False) -> Hdf5Reader:
        import h5py

        first, name = ids[0], self.dataset
        try:
            with h5py.File(self.file, "r") as file:
                if ID not in name and isinstance(file.get(name), h5py.Group):
                    name = f"{name.rstrip('/')}/{ID}"
                found = _checked(file, name, first)
                if ID in name:
                    return Hdf5Reader(self.file, name, found.shape, found.dtype)
                if not found.shape:
                    raise FormatError("expected rows, found a single number; where each sample has one, put '{id}' into the name")
                count, *shape = found.shape
                reader = Hdf5Reader(self.file, name, tuple(shape), found.dtype)
        except (OSError, ValueError) as error:
            raise InputError(f"file {self.file}: expected an HDF5 file that can be read, found: {error}") from None
        except FormatError as error:
            if ID in name:
                raise SampleError(first, self.file, str(error)) from None
            raise InputError(f"dataset {name!r} of file {self.file}: {error}") from None
        wrong = first_outside(ids, count)
        if wrong is not None:
            where = f"dataset {name!r} of {self.file}"
            raise InputError(f"id {ids[wrong]!r}: expected a row's number from 0 to {count - 1}, which {where} has")
        return reader


class Hdf5Reader(Reader):
    """Reads the rows of a dataset, or a dataset for each sample.

    Args:
        file: the path of the file.
        name: of the dataset; with ``{id}`` in it, of the dataset for each sample.
        shape: of a row.
        dtype: of a row.

    Attributes:
        file: see above.
    """

    def __init__(self, file: str, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.file = file
        self.shape, self.dtype = shape, dtype
        self._name = name
        self._has_rows = ID not in name
        self._open: Any = None

    def fill(self, keys: Sequence[Any], rows: np.ndarray, begun: Any, *, io_waits: bool = False) -> None:
        """Read the samples ``keys`` into ``rows``.

        Raises:
            SampleError: one can't be read, or does not fit.
        """
        try:
            opened = self._opened()
            if self._has_rows and list(keys) == list(range(keys[0], keys[0] + len(keys))):
                with suppress(OSError, ValueError):  # then they are read row by row, to know which can't be read
                    opened.read_direct(rows, np.s_[keys[0] : keys[0] + len(keys)])
                    return
            for number, key in enumerate(keys):
                begun[0] = number + 1
                if self._has_rows:
                    opened.read_direct(rows, np.s_[key], np.s_[number])
                else:
                    self._sample(opened, key).read_direct(rows, None, np.s_[number])
        except (OSError, ValueError, FormatError) as error:
            reason = str(error) if isinstance(error, FormatError) else f"expected a readable row, found: {error}"
            raise SampleError(keys[max(0, begun[0] - 1)], self.file, reason) from None

    def _opened(self) -> Any:
        """What samples are read from: the dataset of all, or the file."""
        import h5py

        if self._open is None:
            file = h5py.File(self.file, "r")
            self._open = self._rows(file) if self._has_rows else file
        return self._open

    def place(self, id: Any) -> str:
        if self._has_rows:
            return f"row {id} of dataset {self._name!r} of file {self.file}"
        return f"dataset {_name_of(self._name, id)!r} of file {self.file}"

    def _sample(self, file: Any, id: Any) -> Any:
        """The dataset of sample ``id``."""
        name = _name_of(self._name, id)
        found = _checked(file, self._name, id)
        if found.shape != self.shape or not can_cast(found.dtype, np.dtype(self.dtype)):
            raise FormatError(
                f"dataset {name!r}: expected shape {self.shape} and dtype {self.dtype}, as the first has, found {found.shape} "
                f"and {found.dtype}; of samples of several shapes a function as source makes rows"
            )
        return found

    def _rows(self, file: Any) -> Any:
        """The dataset of all samples, if it is as it was."""
        found = _checked(file, self._name)
        if found.shape[1:] != self.shape or found.dtype != self.dtype:
            raise FormatError(
                f"expected rows of shape {self.shape} and dtype {self.dtype}, found {found.shape[1:]}, {found.dtype}"
            )
        return found


def _name_of(name: str, id: Any) -> str:
    return name.replace(ID, str(id))


def _checked(file: Any, pattern: str, id: Any = "") -> Any:
    """The dataset of this name, or that of sample ``id``.

    Raises:
        FormatError: there is none, or its elements are no numbers.
    """
    import h5py

    name = _name_of(pattern, id)
    found = file.get(name)
    if isinstance(found, h5py.Group):
        member = next(iter(found), None)
        remedy = "" if member is None else f"; write Hdf5(file, {f'{pattern}/{member}'!r})"
        raise FormatError(f"expected a dataset {name!r}, found a group with {_shown(found)}{remedy}")
    if found is None:
        raise FormatError(f"expected a dataset {name!r}, found none{_beside(file, name)}")
    if not isinstance(found, h5py.Dataset) or found.shape is None:
        raise FormatError(f"expected a dataset {name!r} of numbers, found one without any")
    if not are_numbers(found.dtype):
        by_function = "read it by a function as source, or write it as numbers"
        raise FormatError(f"expected numbers, found dtype {found.dtype} in dataset {name!r}; {by_function}")
    return found


def _beside(file: Any, name: str) -> str:
    """What is there in place of a dataset: the members of the nearest group above it that there is."""
    above = name.strip("/")
    while above:
        above = above.rpartition("/")[0]
        group = file.get(above or "/")
        if group is not None and hasattr(group, "keys"):
            return f"; {'the file' if not above else f'group {above!r}'} has {_shown(group)}"
    return ""


def _shown(group: Any) -> str:
    names = [repr(name) for name in islice(group, SHOWN)]
    more = len(group) - len(names)
    return (", ".join(names) + (f" and {more:,} others" if more > 0 else "")) or "nothing in it"
