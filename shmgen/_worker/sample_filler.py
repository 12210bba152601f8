"""Fills rows sample by sample: reads what is not read at once, calls the user's transforms, pads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Any, TypeAlias

from shmgen._memory.limit_errors import note
from shmgen._memory.records import FUNCTION, TURN
from shmgen._samples.sample_spec import OF_ANOTHER_SHAPE, ShapeError, dtype_for, sample_for, write_row
from shmgen._sources.base import IDLE, Reader, function_error
from shmgen._sources.fields import FieldSpec, Reading, RowsByKey
from shmgen._worker.transform import NAME_THE_INPUTS, Transform, transform_named
from shmgen.errors import FormatError, SampleError

if TYPE_CHECKING:
    import numpy as np

    from shmgen._worker.rng import SampleRng

    Rng = np.random.Generator

TOO_LARGE = "; pass a larger dim, or a transform that crops it"

OF_ANOTHER_DTYPE = "; pass dtype='{found}', so that rows have that, or return numbers that fit the rows' dtype, cast to it"

FIELD_OF_ANOTHER_DTYPE = "; pass source[key].shaped(dtype='{found}'), so that the field's rows have that"
"""As `OF_ANOTHER_DTYPE`, of a field of shmgen's own sources of several fields: `Npz`."""

ONE_ROW = f"with one input that has no name, a transform gets and returns its row alone{NAME_THE_INPUTS}"

NO_ROW = "; return an array of a row's shape, or say by dim and n_channels what shape rows have"

FIRST_ROWS = 64
"""Rows after which a transform that has returned None, and changed nothing, is taken to have forgotten its return."""

SINGLE = "; where a function returns several arrays, leave its dim, n_channels and dtype out"

Step: TypeAlias = "tuple[Reading, Sequence[Any], frozenset[int] | None]"
"""What is read sample by sample: a reading, the samples' keys in its table, and the row numbers to read (None for all)."""


class Sample:
    """The sample that is being written into its rows; ``arrays`` are the rows of all samples, by the field's name."""

    __slots__ = ("_arrays", "epoch", "loaded", "number", "reading", "varied", "where", "written")

    def __init__(self, arrays: dict[str, np.ndarray], epoch: int) -> None:
        self._arrays = arrays
        self.epoch = epoch
        self.number = 0  # of its row
        # By field: what was read, until it is written, if its shape is not the row's; that shape; and how much of the row is the
        # sample's, along each axis, all of it unless set.
        self.loaded: dict[str, np.ndarray] = {}
        self.varied: dict[str, tuple[int, ...]] = {}
        self.written: dict[str, tuple[int, ...]] = {}
        self.where = ""  # what is being done, in errors' words
        self.reading: Reading | None = None  # that is being done; None in a transform

    def row(self, name: str) -> np.ndarray:
        row: np.ndarray = self._arrays[name][self.number, ...]
        return row


class SampleFiller:
    """Fills the rows of one sample after the other, for a `TicketFiller` whose sources are opened.

    ``rngs`` are random numbers for what is read by several readers at once; and for all else. ``count`` is `TicketFiller._count`.
    """

    def __init__(
        self,
        fields: Sequence[FieldSpec],
        readings: Sequence[Reading],
        transforms: dict[str | None, Transform],
        rngs: tuple[SampleRng | None, SampleRng | None],
        in_turn: Callable[[Callable[[], None]], None],
        rows_begun: Any,
        count: Callable[[int, int], int],
    ) -> None:
        self._fields = {field.name: field for field in fields}
        self._readings = {field.name: reading for reading in readings for field in reading.fields}
        derived = [field for field in fields if field.of is not None]
        self._readings |= {field.name: self._readings[field.of] for field in derived if field.of is not None}
        self._copies = [field for field in derived if field.measure is None]
        self._measures = [field for field in derived if field.measure is not None]
        self._transforms = transforms
        self._reading_rng, self._rng = rngs
        self._in_turn, self._rows_begun, self._count = in_turn, rows_begun, count
        # By transform, in errors' words: on how many rows it has had no effect; FIRST_ROWS once it had any, or was warned of.
        self._without_effect: dict[str, int] = {}

    def fill(
        self, epoch: int, position: int, ids: Callable[[], Sequence[Any]], rows: dict[str, np.ndarray], steps: Sequence[Step]
    ) -> None:
        """Fill rows, which are given by the field's name, from this position in an epoch on; ``ids`` returns their ids."""
        # What is read first, while other readers may do the same; and what is read in the thread of the user's functions.
        before = [step for step in steps if step[0].reader.concurrent]
        within = [step for step in steps if not step[0].reader.concurrent]
        count = len(next(iter(rows.values())))
        place = epoch, position, count
        reading_rngs: Iterator[Rng | None] = self._reading_rng.for_samples(*place) if self._reading_rng else repeat(None)
        function_rngs: Iterator[Rng | None] = self._rng.for_samples(*place) if self._rng else repeat(None)
        rows_begun, in_turn = self._rows_begun, self._in_turn
        sample = Sample(rows, epoch)
        numbers, waited = range(0), 0

        def call() -> None:
            began = self._count(TURN, waited) if self._rng else 0
            for sample.number in numbers:
                rows_begun[0] = sample.number + 1
                self._call(sample, within, next(function_rngs))
                sample.varied.clear()
            rows_begun[0] = IDLE  # before another reader has its turn
            if self._rng:
                self._count(FUNCTION, began)

        try:
            if not before:
                numbers, waited = range(count), time.monotonic_ns()
                in_turn(call)
                return
            for number in range(count):
                # Sample by sample, so that other readers read while functions are called for this sample.
                sample.number, rows_begun[0] = number, number + 1
                self._read_all(sample, before, next(reading_rngs))
                rows_begun[0] = IDLE  # no hang is blamed on a sample that waits for its turn
                numbers, waited = range(number, number + 1), time.monotonic_ns()
                in_turn(call)
        except Exception as error:
            note(error)
            raise self._error(sample, ids()[sample.number], error) from error

    def _error(self, sample: Sample, id: Any, error: Exception) -> SampleError:
        reading = sample.reading
        if isinstance(error, FormatError) and reading is not None and reading.reader.user_code is None:
            return SampleError(id, reading.reader.place(id), str(error))
        if isinstance(error, SampleError) and reading is not None and reading.table:
            return SampleError(id, error.path, error.reason)
        if reading is None and not isinstance(error, FormatError):
            for name, shape in sample.varied.items():
                where = self._readings[name].reader.place(id)
                error.add_note(f"(the sample has shape {shape} in field {name!r}, {where})")
        if sample.where.startswith("transform of") and isinstance(error, IndexError) and "only integers" in str(error):
            error.add_note(f"({ONE_ROW})")  # a row was taken for a dict
        found = getattr(error, "from_", None)
        if reading is None and found is not None and type(error).__qualname__ == "_UFuncOutputCastingError":
            # NumPy's own, as of x /= 255 where rows are ints.
            error.add_note(f"({OF_ANOTHER_DTYPE.removeprefix('; ').format(found=dtype_for(found))})")
        return function_error(id, sample.where, error)

    def _read_all(self, sample: Sample, steps: Sequence[Step], rng: Rng | None) -> None:
        """Read what other readers may read at the same time."""
        for reading, keys, numbers in steps:
            if numbers is None or sample.number in numbers:
                began = time.monotonic_ns()
                self._read(sample, reading, keys, rng)
                if reading.reader.user_code is not None:
                    self._count(FUNCTION, began)

    def _call(self, sample: Sample, within: Sequence[Step], rng: Rng | None) -> None:
        """Do what only one reader does at a time: read, and call the transforms."""
        for reading, keys, numbers in within:
            if numbers is None or sample.number in numbers:
                self._read(sample, reading, keys, rng)
        if self._copies:
            self._copy(sample)
        for name, transform in self._transforms.items():
            sample.where, sample.reading = transform_named(name), None
            if name is None:
                self._transform_sample(sample, transform, rng)
            else:
                self._transform_row(sample, name, transform, rng)
        if sample.loaded:
            self._pad(sample)
        if self._measures:
            self._measure(sample)

    def _read(self, sample: Sample, reading: Reading, keys: Sequence[Any], rng: Rng | None) -> None:
        reader, fields, sample.where, _ = reading
        sample.reading, key = reading, keys[sample.number]
        if reader.fields is None:
            row = sample.row(fields[0].name)
            result = reader.read(key, row, rng)
            if result is not None and result is not row:
                self._take(sample, reading, fields[0], row, result)
            return
        rows = {field.name: sample.row(field.name) for field in fields}
        by_key = RowsByKey(reader, [(field, rows[field.name]) for field in fields])
        result = reader.read(key, by_key, rng)
        for field in fields:
            row = rows[field.name]
            if result is not None and result is not by_key:
                self._take(sample, reading, field, row, _part(result, field.key, reader))
            elif (filled := by_key[field.key]) is not row:
                self._take(sample, reading, field, row, filled)

    @staticmethod
    def _take(sample: Sample, reading: Reading, field: FieldSpec, row: np.ndarray, value: Any) -> None:
        """Write what was read into its row, or keep it in ``loaded`` if it has another shape."""
        import numpy as np

        if len(reading.fields) > 1:
            sample.where = f"source of field {field.name!r}"
        own = reading.reader.user_code is None
        dtype_remedy = FIELD_OF_ANOTHER_DTYPE if own else OF_ANOTHER_DTYPE
        if field.varies and (shape := np.shape(value)) != row.shape and (*shape, 1) != row.shape:
            sample.varied[field.name] = shape
            sample.loaded[field.name] = sample_for(row, value, own=own, dtype_remedy=dtype_remedy)
        else:
            shape_remedy = SINGLE if isinstance(value, Mapping | tuple) else OF_ANOTHER_SHAPE
            write_row(row, value, shape_remedy=shape_remedy, dtype_remedy=dtype_remedy)

    def _copy(self, sample: Sample) -> None:
        for field in self._copies:
            if field.of in sample.loaded:
                sample.loaded[field.name] = sample.loaded[field.of].copy()
            else:
                sample.row(field.name)[...] = sample.row(field.of or "")

    def _transform_row(self, sample: Sample, name: str, transform: Transform, rng: Rng | None) -> None:
        row = sample.row(name)
        given = sample.loaded.pop(name, row)
        result = self._result(sample, transform, given, rng)
        if isinstance(result, Mapping) or (isinstance(result, tuple) and any(hasattr(part, "shape") for part in result)):
            raise FormatError(f"expected a row, found a {type(result).__name__} of {len(result)}; {ONE_ROW}")
        if result is not row:
            self._write(sample, name, row, result, given)

    def _transform_sample(self, sample: Sample, transform: Transform, rng: Rng | None) -> None:
        import numpy as np

        rows = {name: sample.row(name) for name, field in self._fields.items() if field.measure is None}
        given = {**rows, **sample.loaded}
        result = self._result(sample, transform, dict(given), rng)
        if not isinstance(result, Mapping):
            raise FormatError(f"expected a dict of rows by field, or None, found {type(result).__name__}")
        for name in result:
            if name not in given:
                raise FormatError(f"expected fields {', '.join(map(repr, given))}, found {name!r}")
        to_write = {}
        for name, row in given.items():
            value = result.get(name, row)
            if value is not rows[name]:
                # A transform may swap fields: copy what is a view of another field's row before that is written.
                shared = any(np.may_share_memory(value, of_other) for other, of_other in rows.items() if other != name)
                to_write[name] = np.array(value) if shared else value
        sample.loaded.clear()
        for name, value in to_write.items():
            try:
                self._write(sample, name, rows[name], value, given[name])
            except FormatError as error:
                raise FormatError(f"field {name!r}: {error}" if sample.reading is None else str(error)) from None

    def _result(self, sample: Sample, transform: Transform, given: Any, rng: Rng | None) -> Any:
        """What a transform makes of a row, or of a dict of rows. Warns, once, if it has had no effect on its first rows."""
        without_effect = self._without_effect.get(sample.where, 0)
        if without_effect < FIRST_ROWS:
            rows = given if isinstance(given, dict) else {"": given}
            was = {name: row.copy() for name, row in rows.items()}
        result = transform(given, rng, sample.epoch)
        if without_effect < FIRST_ROWS:
            import numpy as np

            has_any = result is not None or not all(name in rows and np.array_equal(rows[name], was[name]) for name in was)
            self._without_effect[sample.where] = FIRST_ROWS if has_any else without_effect + 1
            if not has_any and without_effect + 1 == FIRST_ROWS:
                import warnings

                warnings.warn(
                    f"the {sample.where} has returned None for its first {FIRST_ROWS} rows, and changed nothing in place: it may "
                    "have forgotten to return what it made; if it only looks at rows, let it return them",
                    stacklevel=1,
                )
        return given if result is None else result

    def _write(self, sample: Sample, name: str, row: np.ndarray, value: Any, given: np.ndarray) -> None:
        import numpy as np

        pad_value = self._fields[name].pad_value
        try:
            sample.written[name] = write_row(row, value, pad_value=pad_value, dtype_remedy=OF_ANOTHER_DTYPE)
        except ShapeError as error:
            if given is row or np.shape(value) != given.shape:
                raise ShapeError(f"{error}{NO_ROW}") from None
            # The transform left the shape as it was, so the sample has the wrong one.
            sample.where, sample.reading = f"source of field {name!r}", self._readings[name]
            raise ShapeError(f"{error}, of which the transform has made no row of another shape") from None

    def _pad(self, sample: Sample) -> None:
        """Write what was read and no transform has changed."""
        for name, value in sample.loaded.items():
            sample.where, sample.reading = f"source of field {name!r}", self._readings[name]
            pad_value = self._fields[name].pad_value
            remedy = OF_ANOTHER_SHAPE if pad_value is None else TOO_LARGE
            sample.written[name] = write_row(sample.row(name), value, pad_value=pad_value, shape_remedy=remedy)
        sample.loaded.clear()

    def _measure(self, sample: Sample) -> None:
        for field in self._measures:
            of = self._fields[field.of or ""]
            row, shape = sample.row(field.name), sample.written.get(of.name, of.shape)
            if field.measure == "length":
                row[...] = shape[0]
            else:
                row[...] = 0
                row[tuple(map(slice, shape[: row.ndim]))] = 1
        sample.written.clear()


def _part(result: Any, key: Any, reader: Reader) -> Any:
    """What a reader returned for one of its fields."""
    expected = reader.fields or {}
    if isinstance(result, Mapping) and key in result:
        return result[key]
    if isinstance(result, tuple | list) and isinstance(key, int) and len(result) == len(expected):
        return result[key]
    if isinstance(result, Mapping):
        found = f"a dict of {', '.join(map(repr, result)) or 'nothing'}"
    else:
        found = f"a tuple of {len(result)}" if isinstance(result, tuple) else type(result).__name__
    raise FormatError(f"expected {', '.join(map(repr, expected))}, as of the first sample, found {found}")
