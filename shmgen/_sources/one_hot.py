"""One-hot rows of ints that another reader reads."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from copy import copy
from typing import Any, NamedTuple, Self

import numpy as np

from shmgen._samples.sample_spec import dtype_of, write_row
from shmgen._sources.base import Reader
from shmgen.errors import FormatError, InputError, SampleError


class OneHotKey(NamedTuple):
    """Stands for the one-hot rows of a field.

    Attributes:
        key: of the field of ints in its reader; None if that has only one.
        n_classes: how many numbers a row has for each int.
    """

    key: Hashable | None
    n_classes: int


class OneHotReader(Reader):
    """Fills what another reader fills, and one-hot rows of some of its fields: see `SourceField.one_hot`.

    Args:
        reader: which reads the ints; a sample is read once.
        wanted: of the one-hot rows.

    Raises:
        InputError: one of the fields has no ints, or their number varies.
    """

    def __init__(self, reader: Reader, wanted: Iterable[OneHotKey]) -> None:
        self._reader = reader
        self._wanted = tuple(wanted)
        self.given, self.keys, self.user_code = reader.given, reader.keys, reader.user_code
        self.concurrent, self.draws, self.leaves_out = reader.concurrent, reader.draws, reader.leaves_out
        fields: Mapping[Any, Any] = {None: (reader.shape, reader.dtype)} if reader.fields is None else reader.fields
        self.fields = dict(fields)
        for one in self._wanted:
            if one.key not in fields:
                found = "none of them: say which, source['label'] for instance" if one.key is None else repr(one.key)
                raise InputError(
                    f"n_classes={one.n_classes}: expected one of the fields {', '.join(map(repr, fields))}, found {found}"
                )
            shape, dtype = fields[one.key]
            if reader.varies or dtype_of(dtype).kind not in "biu":
                found = "samples of several shapes" if reader.varies else f"dtype {dtype_of(dtype)}"
                raise InputError(f"n_classes={one.n_classes}: expected ints, as many in each sample, found {found}")
            self.fields[one] = (*(shape[:-1] if shape[-1:] == (1,) else shape), one.n_classes), "<f4"

    @property
    def reads_one_by_one(self) -> bool:
        return self._reader.reads_one_by_one

    def opened(self, *, in_worker: bool = False) -> Self:
        reader = copy(self)
        reader._reader = self._reader.opened(in_worker=in_worker)
        return reader

    def fill(self, keys: Any, rows: Any, begun: Any, *, io_waits: bool = False) -> list[int] | None:
        wanted, read = self._split(rows)
        if self._reader.fields is not None:
            self._reader.fill(keys, read, begun, io_waits=io_waits)
        elif self._reader.takes_bytes:
            self._reader.fill(keys, memoryview(read[None].reshape(-1).view(np.uint8)), begun, io_waits=io_waits)
        else:
            self._reader.fill(keys, read[None], begun, io_waits=io_waits)
        for one in wanted:
            outside = _outside(read[one.key], one.n_classes)
            if outside.any():
                number = int(outside.reshape(len(keys), -1).any(axis=1).argmax())
                begun[0] = number + 1
                raise SampleError(keys[number], self.place(keys[number]), _wrong(read[one.key][number], one.n_classes))
            _expand(read[one.key], rows[one])
        return None

    def read(self, key: Any, row: Any, rng: np.random.Generator | None = None) -> Any:
        wanted, read = self._split(row)
        if self._reader.fields is None:
            result = self._reader.read(key, read[None], rng)
            if result is not None and result is not read[None]:
                write_row(read[None], result)
            result = None
        else:
            result = self._reader.read(key, read, rng)
        parts = read if result is None else result
        made: dict[Any, np.ndarray] = {}
        for one in wanted:
            ints = np.asarray(parts[one.key])
            if ints.dtype.kind not in "biu":
                raise FormatError(f"expected ints, found dtype {ints.dtype}")
            if _outside(ints, one.n_classes).any():
                raise FormatError(_wrong(ints, one.n_classes))
            made[one] = row[one] if parts is read else np.empty_like(row[one])
            _expand(ints[None], made[one][None])
        if parts is read:
            row |= read  # a source may have put others in place of rows
            return None
        return {**(parts if isinstance(parts, Mapping) else dict(enumerate(parts))), **made}

    def _split(self, rows: Any) -> tuple[list[OneHotKey], Any]:
        """Which one-hot rows are asked for, and the rows that the other reader fills, those of the ints among them."""
        wanted = [one for one in self._wanted if one in rows]
        read = copy(rows)
        for one in wanted:
            read[one.key] = rows[one.key]
            del read[one]
        return wanted, read

    def place(self, id: Any) -> str:
        return self._reader.place(id)


def _expand(ints: np.ndarray, rows: np.ndarray) -> None:
    """Set 1 where the class of each of ``ints`` is, and 0 elsewhere."""
    rows[...] = 0
    np.put_along_axis(rows, ints.reshape((*rows.shape[:-1], 1)).astype(np.intp), 1, axis=-1)


def _outside(ints: np.ndarray, n_classes: int) -> np.ndarray:
    outside: np.ndarray = (ints < 0) | (ints >= n_classes)
    return outside


def _wrong(ints: np.ndarray, n_classes: int) -> str:
    found = ints[_outside(ints, n_classes)].flat[0]
    return f"expected ints from 0 to {n_classes - 1}, found {found}; with n_classes={n_classes} they are counted from 0"
