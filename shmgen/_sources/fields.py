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
    """What readers get for the samples: the ids, then the keys of each reader that has keys of its own."""
    from shmgen._samples.ids import kept

    return [ids, *(kept(keys) for reading in readings if (keys := reading.reader.keys) is not None)]


class RowsByKey(dict[Any, Any]):
    """The rows that a reader fills, by key; for a key that no field asks for, rows that are thrown away."""

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
    """Fills what another reader fills, and one-hot rows of one of its fields: see `SourceField.one_hot`."""

    def __init__(self, reader: Reader, wanted: OneHotKey) -> None:
        self._reader, self._wanted = reader, wanted
        self.keys, self.user_code = reader.keys, reader.user_code
        self.concurrent, self.draws, self.leaves_out = reader.concurrent, reader.draws, reader.leaves_out
        fields: Mapping[Any, Any] = {None: (reader.shape, reader.dtype)} if reader.fields is None else reader.fields
        key, n_classes = wanted
        if key not in fields:
            found = "none of them: say which, source['label'] for instance" if key is None else repr(key)
            raise InputError(f"n_classes={n_classes}: expected one of the fields {', '.join(map(repr, fields))}, found {found}")
        shape, dtype = fields[key]
        if reader.varies or dtype_of(dtype).kind not in "biu":
            found = "samples of several shapes" if reader.varies else f"dtype {dtype_of(dtype)}"
            raise InputError(f"n_classes={n_classes}: expected ints, as many in each sample, found {found}")
        self.fields = {**fields, wanted: ((*(shape[:-1] if shape[-1:] == (1,) else shape), n_classes), "<f4")}

    @property
    def reads_one_by_one(self) -> bool:
        return self._reader.reads_one_by_one

    def opened(self, *, in_worker: bool = False) -> Self:
        reader = copy(self)
        reader._reader = self._reader.opened(in_worker=in_worker)
        return reader

    def fill(self, keys: Any, rows: Any, begun: Any, *, io_waits: bool = False) -> list[int] | None:
        import numpy as np

        read, ints, one_hot = self._split(rows)
        filled = ints.reshape(-1).view(np.uint8).data if self._reader.takes_bytes else read
        left = self._reader.fill(keys, filled, begun, io_waits=io_waits)
        try:
            self._expand(ints, one_hot)
        except FormatError:
            # Row by row, to find the sample that it is about.
            for begun[0], key in enumerate(keys, 1):
                try:
                    self._expand(ints[begun[0] - 1], one_hot[begun[0] - 1])
                except FormatError as error:
                    raise SampleError(key, self.place(key), str(error)) from None
        return left

    def read(self, key: Any, row: Any, rng: np.random.Generator | None = None) -> Any:
        read, ints, one_hot = self._split(row)
        result = self._reader.read(key, read, rng)
        if result is None:
            result = read
        if self._reader.fields is None:
            result = {None: result}
        parts = dict(result if isinstance(result, Mapping) else enumerate(result))
        write_row(ints, parts[self._wanted.key])
        self._expand(ints, one_hot)
        parts[self._wanted] = one_hot
        return parts

    def _split(self, rows: Any) -> tuple[Any, np.ndarray, np.ndarray]:
        """What the other reader fills, the ints among it, and the one-hot rows."""
        read = copy(rows)
        one_hot = read.pop(self._wanted)
        ints = read[self._wanted.key]
        return ints if self._reader.fields is None else read, ints, one_hot

    def _expand(self, ints: np.ndarray, rows: np.ndarray) -> None:
        """Set 1 where the class of each of ``ints`` is, and 0 elsewhere."""
        import numpy as np

        n_classes = self._wanted.n_classes
        outside = (ints < 0) | (ints >= n_classes)
        if outside.any():
            remedy = f"with n_classes={n_classes} they are counted from 0"
            raise FormatError(f"expected ints from 0 to {n_classes - 1}, found {ints[outside].flat[0]}; {remedy}")
        rows[...] = 0
        np.put_along_axis(rows, ints.reshape((*rows.shape[:-1], 1)).astype(np.intp), 1, axis=-1)

    def place(self, id: Any) -> str:
        return self._reader.place(id)
