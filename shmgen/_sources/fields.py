"""The fields of a batch, as a worker knows them: where their rows are, which reader fills them, and one-hot rows of ints."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, NamedTuple

from shmgen._samples.sample_spec import dtype_of, write_row
from shmgen._sources.base import Measure, Reader
from shmgen.errors import FormatError, InputError, SampleError

if TYPE_CHECKING:
    from typing import Self

    import numpy as np


class FieldSpec(NamedTuple):
    """Where the rows of one field are, what they are, and how they come from their reader."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int  # of the field in a slot, in bytes
    row_bytes: int
    key: Hashable | None = None
    measure: Measure | None = None
    varies: bool = False  # samples may have other shapes than a row
    pad_value: float | None = None
    of: str | None = None  # the field that this one measures, or has a copy of; None for a field that is read


class Reading(NamedTuple):
    """A reader, the fields that it fills, what errors call it, and the number of the table of its keys; 0 is that of the ids."""

    reader: Reader
    fields: tuple[FieldSpec, ...]
    named: str
    table: int = 0

    @property
    def varies(self) -> bool:
        return any(field.varies for field in self.fields)


def readings_of(fields: Sequence[FieldSpec], readers: Mapping[str, Reader]) -> list[Reading]:
    """What is read to fill ``fields``, each reader once; without what the main process fills. ``readers`` are by field."""
    read: dict[int, list[FieldSpec]] = {}
    for field in fields:
        if field.of is None and not readers[field.name].in_main_process:
            read.setdefault(id(readers[field.name]), []).append(field)
    readings: list[Reading] = []
    table = 0
    for own in read.values():
        reader = readers[own[0].name]
        named = f"source of field{'s' if len(own) > 1 else ''} {', '.join(repr(field.name) for field in own)}"
        table += reader.keys is not None
        readings.append(Reading(reader, tuple(own), named, table if reader.keys is not None else 0))
    return readings


def key_tables(ids: Sequence[Any], readings: Sequence[Reading]) -> list[Sequence[Any]]:
    """What samples are called where rows are filled: their ids first, then the keys of readers that have keys of their own."""
    from shmgen._samples.ids import kept

    return [ids, *(kept(keys) for reading in readings if (keys := reading.reader.keys) is not None)]


class RowsByKey(dict[Any, Any]):
    """The rows that a reader fills, by its keys, or ``count`` rows of each; thrown away for a key that no field asks for."""

    def __init__(self, reader: Reader, rows: Iterable[tuple[FieldSpec, np.ndarray]], count: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.varied = set()  # keys of fields whose samples may be larger than a row
        for field, row in rows:
            self.setdefault(field.key, row)
            if field.varies:
                self.varied.add(field.key)
        self._reader = reader
        self._count = count

    def __missing__(self, key: Any) -> np.ndarray:
        import numpy as np

        assert self._reader.fields is not None
        shape, dtype = self._reader.fields[key]
        row: np.ndarray = np.zeros((*self._count, *shape), dtype_of(dtype))
        self[key] = row
        return row


class OneHotKey(NamedTuple):
    """Stands for one-hot rows, of ``n_classes`` numbers, of the field of ints that has this key in its reader."""

    key: Hashable | None
    n_classes: int


class OneHotReader(Reader):
    """Fills what another reader fills, and one-hot rows of the fields that are wanted so: see `SourceField.one_hot`."""

    def __init__(self, reader: Reader, wanted: Iterable[OneHotKey]) -> None:
        self._reader = reader
        self._wanted = tuple(wanted)
        self.keys, self.user_code = reader.keys, reader.user_code
        self.concurrent, self.draws, self.leaves_out = reader.concurrent, reader.draws, reader.leaves_out
        fields: Mapping[Any, Any] = {None: (reader.shape, reader.dtype)} if reader.fields is None else reader.fields
        self.fields = dict(fields)
        for one in self._wanted:
            if one.key not in fields:
                found = "none of them: say which, source['label'] for instance" if one.key is None else repr(one.key)
                known = ", ".join(map(repr, fields))
                raise InputError(f"n_classes={one.n_classes}: expected one of the fields {known}, found {found}")
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
        import numpy as np

        wanted, read = self._split(rows)
        filled = read[None] if self._reader.fields is None else read
        if self._reader.takes_bytes:
            filled = memoryview(filled.reshape(-1).view(np.uint8))
        self._reader.fill(keys, filled, begun, io_waits=io_waits)
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
        is_only = self._reader.fields is None
        result = self._reader.read(key, read[None] if is_only else read, rng)
        if result is None:
            result = read
        elif is_only:
            result = {None: result}
        parts = dict(result if isinstance(result, Mapping) else enumerate(result))
        for one in wanted:
            ints = read[one.key]
            write_row(ints, parts[one.key])
            if _outside(ints, one.n_classes).any():
                raise FormatError(_wrong(ints, one.n_classes))
            _expand(ints[None], row[one][None])
            parts[one] = row[one]
        return parts

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
    import numpy as np

    rows[...] = 0
    np.put_along_axis(rows, ints.reshape((*rows.shape[:-1], 1)).astype(np.intp), 1, axis=-1)


def _outside(ints: np.ndarray, n_classes: int) -> np.ndarray:
    outside: np.ndarray = (ints < 0) | (ints >= n_classes)
    return outside


def _wrong(ints: np.ndarray, n_classes: int) -> str:
    found = ints[_outside(ints, n_classes)].flat[0]
    return f"expected ints from 0 to {n_classes - 1}, found {found}; with n_classes={n_classes} they are counted from 0"
