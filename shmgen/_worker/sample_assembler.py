"""What is done sample by sample: reading what is not read at once, the user's transforms, padding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from shmgen._memory.limit_errors import note
from shmgen._sources.base import IDLE, Source, function_error
from shmgen._sources.sample_spec import dtype_of, sample_for, write_row
from shmgen._worker.field_spec import Derived, FieldSpec, Reading
from shmgen.errors import FormatError, SampleError

if TYPE_CHECKING:
    import numpy as np

    Rng = np.random.Generator

TOO_LARGE = "; pass a larger dim, or a transform that crops it"

OF_ANOTHER_SHAPE = (
    "; dim and n_channels say what shape a row has. Where samples are larger or vary in size, give dim, and a transform that "
    "makes rows of them, or a pad_value"
)

OF_ANOTHER_DTYPE = "; pass dtype='{found}', so that rows have that, or return it in the rows' dtype"

NO_ROW = "; return an array of a row's shape, or say by dim and n_channels what shape rows have"

SINGLE = "; where a function returns several arrays, leave its dim, n_channels and dtype out"


class Sample:
    """A sample on its way into its rows.

    Attributes:
        id: of the sample.
        rows: its row in each field, by name.
        loaded: what was read and does not have the shape of its row, by the field's name.
        written: how much of a row is the sample's, along each axis, by name; all of it where nothing is said.
        where: what is being done, as errors call it.
        source: of what is being done; None if that is a transform.
    """

    __slots__ = ("id", "loaded", "rows", "source", "where", "written")

    def __init__(self, id: Any, rows: dict[str, np.ndarray]) -> None:
        self.id = id
        self.rows = rows
        self.loaded: dict[str, np.ndarray] = {}
        self.written: dict[str, tuple[int, ...]] = {}
        self.where = ""
        self.source: Source | None = None

    def error(self, error: Exception) -> SampleError:
        """What to raise where ``error`` was raised."""
        if isinstance(error, FormatError) and self.source is not None and self.source.is_ours:
            return SampleError(self.id, self.source.place(self.id), str(error))
        return function_error(self.id, self.where, error)


class SampleAssembler:
    """Fills the rows of one sample after the other.

    Args:
        fields: of a batch.
        readings: what fills them, as they were opened.
        derived: what is filled from others.
        transforms: functions of a row and a generator, by name of the field.
        sample_transform: a function of the sample, a dict of its rows by name of the field, and a generator.
    """

    def __init__(
        self,
        fields: Sequence[FieldSpec],
        readings: Sequence[Reading],
        derived: Derived,
        transforms: dict[str, Callable[..., Any]],
        sample_transform: Callable[..., Any] | None,
    ) -> None:
        self._fields = {field.name: field for field in fields}
        self._sources = {field.name: reading.source for reading in readings for field in reading.fields}
        self._sources |= {field.name: self._sources[of.name] for field, of in derived.copies}
        self._derived = derived
        self._transforms = transforms
        self._sample_transform = sample_transform

    def fill(
        self,
        ids: Sequence[Any],
        rows: dict[str, np.ndarray],
        before: Sequence[tuple[Reading, Callable[[int], bool]]],
        within: Sequence[tuple[Reading, Callable[[int], bool]]],
        rngs: tuple[Iterator[Rng | None], Iterator[Rng | None]],
        lock: AbstractContextManager[Any],
        rows_begun: Any,
    ) -> None:
        """Fill the rows of ``ids``.

        Args:
            ids: of the samples.
            rows: of all fields, by name.
            before: what is read one by one, and of which samples, while others may do so, too.
            within: the same, for what may be called only by one at a time.
            rngs: generators, one a sample: those for what is read before, and those for all else.
            lock: held while the user's functions are called.
            rows_begun: ``rows_begun[0]`` will say how many samples have been begun.
        """
        reading_rngs, function_rngs = rngs
        # Others are to read while functions are called here; if nothing is read here, nobody waits for the lock in vain.
        with nullcontext() if before else lock:
            for number, id in enumerate(ids):
                sample = Sample(id, {name: array[number, ...] for name, array in rows.items()})
                try:
                    if before:
                        rows_begun[0] = number + 1
                        self._read(sample, (reading for reading, reads in before if reads(number)), next(reading_rngs))
                        rows_begun[0] = IDLE  # no hang is blamed on who waits for the lock
                    with lock if before else nullcontext():
                        rows_begun[0] = number + 1
                        rng = next(function_rngs)
                        self._read(sample, (reading for reading, reads in within if reads(number)), rng)
                        self._copy(sample)
                        self._transform(sample, rng)
                        self._pad(sample)
                except Exception as error:
                    note(error)
                    raise sample.error(error) from error

    def _read(self, sample: Sample, readings: Iterable[Reading], rng: Rng | None) -> None:
        for reading in readings:
            source, fields, sample.where = reading
            sample.source = source
            if source.draws and rng is not None:
                source.rng = rng
            if source.fields is None:
                row: Any = sample.rows[fields[0].name]
                result = source.read(_own(sample.id), row)
                if result is not None and result is not row:
                    self._take(sample, reading, fields[0], result)
                continue
            row = RowsByKey(source, {field.key: sample.rows[field.name] for field in reversed(fields)})
            result = source.read(_own(sample.id), row)
            for field in fields:
                if result is None or result is row:
                    if (filled := row[field.key]) is not sample.rows[field.name]:
                        self._take(sample, reading, field, filled)
                else:
                    self._take(sample, reading, field, _part(result, field.key, source))

    @staticmethod
    def _take(sample: Sample, reading: Reading, field: FieldSpec, value: Any) -> None:
        """Write a sample that was read into its row; or keep it, if it has another shape."""
        import numpy as np

        row = sample.rows[field.name]
        if len(reading.fields) > 1:
            sample.where = f"source of field {field.name!r}"
        if field.varies and (shape := np.shape(value)) != row.shape and (*shape, 1) != row.shape:
            sample.loaded[field.name] = sample_for(row, value, own=reading.source.is_ours, dtype_remedy=OF_ANOTHER_DTYPE)
        else:
            shape_remedy = SINGLE if isinstance(value, Mapping | tuple) else OF_ANOTHER_SHAPE
            write_row(row, value, shape_remedy=shape_remedy, dtype_remedy=OF_ANOTHER_DTYPE)

    def _copy(self, sample: Sample) -> None:
        for field, of in self._derived.copies:
            if of.name in sample.loaded:
                sample.loaded[field.name] = sample.loaded[of.name].copy()
            else:
                sample.rows[field.name][...] = sample.rows[of.name]

    def _transform(self, sample: Sample, rng: Rng | None) -> None:
        for name, function in self._transforms.items():
            sample.where, sample.source = f"transform of field {name!r}", None
            row = sample.rows[name]
            given = sample.loaded.pop(name, row)
            result = function(given, rng)
            if result is None:
                result = given
            if result is not row:
                self._write(sample, name, result, given)
        if self._sample_transform is not None:
            sample.where, sample.source = "transform", None
            self._transform_all(sample, self._sample_transform, rng)

    def _transform_all(self, sample: Sample, function: Callable[..., Any], rng: Rng | None) -> None:
        import numpy as np

        rows = {name: row for name, row in sample.rows.items() if self._fields[name].measure is None}
        given = {**rows, **sample.loaded}
        result = function(changed := dict(given), rng)
        if result is None:
            result = changed
        if not isinstance(result, Mapping):
            raise FormatError(f"expected a dict of rows by field, or None, found {type(result).__name__}")
        for name in result:
            if name not in given:
                raise FormatError(f"expected fields {', '.join(map(repr, given))}, found {name!r}")
        to_write = {}
        for name, before in given.items():
            value = result.get(name, before)
            if value is not rows[name]:
                # Fields may be swapped: what is a view of another's row must be read before that is written.
                shared = any(np.may_share_memory(value, row) for other, row in rows.items() if other != name)
                to_write[name] = np.array(value) if shared else value
        sample.loaded.clear()
        for name, value in to_write.items():
            try:
                self._write(sample, name, value, given[name])
            except FormatError as error:
                raise FormatError(f"field {name!r}: {error}" if sample.source is None else str(error)) from None

    def _write(self, sample: Sample, name: str, value: Any, given: np.ndarray) -> None:
        """Write what a transform made of what it was ``given``."""
        import numpy as np

        row, pad_value = sample.rows[name], self._fields[name].pad_value
        remedy = NO_ROW
        if given is not row and np.shape(value) == given.shape and name in self._sources:
            # It made nothing of it: what is wrong is the sample.
            sample.where, sample.source = f"source of field {name!r}", self._sources[name]
            remedy = TOO_LARGE if pad_value is not None else ", of which the transform has made no row of another shape"
        sample.written[name] = write_row(
            row,
            value,
            pad_value=pad_value,
            shape_remedy=remedy,
            dtype_remedy=OF_ANOTHER_DTYPE,
        )

    def _pad(self, sample: Sample) -> None:
        """Write what was read and not changed, and measure it."""
        for name, value in sample.loaded.items():
            sample.where, sample.source = f"source of field {name!r}", self._sources[name]
            field = self._fields[name]
            remedy = OF_ANOTHER_SHAPE if field.pad_value is None else TOO_LARGE
            sample.written[name] = write_row(sample.rows[name], value, pad_value=field.pad_value, shape_remedy=remedy)
        for field, of in self._derived.measures:
            row, shape = sample.rows[field.name], sample.written.get(of.name, of.shape)
            if field.measure == "length":
                row[...] = shape[0]
            else:
                row[...] = 0
                row[tuple(map(slice, shape[: row.ndim]))] = 1


class RowsByKey(dict[Any, Any]):
    """Rows by key; of a key that nobody asked for, some that are thrown away.

    Args:
        source: which fills them.
        rows: those that were asked for.
        count: ``(n,)`` for n rows of each; ``()`` for one.
    """

    def __init__(self, source: Source, rows: dict[Any, np.ndarray], count: tuple[int, ...] = ()) -> None:
        super().__init__(rows)
        self._source = source
        self._count = count

    def __missing__(self, key: Any) -> np.ndarray:
        import numpy as np

        assert self._source.fields is not None
        shape, dtype = self._source.fields[key]
        self[key] = np.zeros((*self._count, *shape), dtype_of(dtype))
        row: np.ndarray = self[key]
        return row


def _part(result: Any, key: Any, source: Source) -> Any:
    """What a source returned for one of its fields."""
    expected = source.fields or {}
    if isinstance(result, Mapping) and key in result:
        return result[key]
    if isinstance(result, tuple | list) and isinstance(key, int) and len(result) == len(expected):
        return result[key]
    if isinstance(result, Mapping):
        found = f"a dict of {', '.join(map(repr, result)) or 'nothing'}"
    else:
        found = f"a tuple of {len(result)}" if isinstance(result, tuple) else type(result).__name__
    raise FormatError(f"expected {', '.join(map(repr, expected))}, as of the first sample, found {found}")


def _own(id: Any) -> Any:
    """A function may change what it is given, and an id may be a list."""
    return id if isinstance(id, str | int) else deepcopy(id)
