"""Fills the rows of a ticket, of every field from its source, and has the user's functions change them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, TypeAlias

from shmgen._memory.limit_errors import note
from shmgen._memory.records import FUNCTION, ROW, TURN
from shmgen._samples.sample_spec import dtype_of
from shmgen._sources.base import IDLE, UNKNOWN, error_text, function_error, row_of
from shmgen._sources.fields import FieldSpec, Reading, RowsByKey
from shmgen._worker.transform import Transform, transform_named
from shmgen.errors import SampleError, StartError

if TYPE_CHECKING:
    import numpy as np

    from shmgen._worker.rng import SampleRng
    from shmgen._worker.sample_filler import SampleFiller, Step

InTurn: TypeAlias = "Callable[[Callable[[], None]], None]"


class Task:
    """A ticket as its reader sees it: rows of the batch in a slot, from row ``start`` on, ``position`` in the epoch.

    ``samples`` are those of a slot's sheet, as long as the rows are not marked; ``tables`` look samples up in `key_tables`.
    """

    __slots__ = "_found", "_samples", "_tables", "epoch", "position", "start"

    def __init__(
        self, start: int, epoch: int, position: int, samples: Any, tables: Sequence[Callable[[Any], Sequence[Any]]]
    ) -> None:
        self.start = start
        self.epoch = epoch
        self.position = position
        self._samples = samples
        self._tables = tables
        self._found: dict[int, Sequence[Any]] = {}

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def ids(self) -> Sequence[Any]:
        return self.keys(0)

    def keys(self, table: int) -> Sequence[Any]:
        """The keys of the rows in a table. They are looked up when first asked for, since making texts takes time."""
        if table not in self._found:
            self._found[table] = self._tables[table](self._samples)
        return self._found[table]


class TicketFiller:
    """Fills the rows of tasks: by ``readings`` all fields that the main process does not fill, then by the transforms.

    ``sheet_offset`` is where the sheet begins in a slot, in bytes; ``transforms`` are as in `shmgen.options.DataOptions`.
    """

    def __init__(
        self,
        fields: Sequence[FieldSpec],
        readings: Sequence[Reading],
        sheet_offset: int,
        seed: int,
        transforms: dict[str | None, Transform],
        setup: Callable[[], object] | None = None,
    ) -> None:
        self._fields = fields
        self._readings = readings
        self.sheet_offset = sheet_offset
        self.seed = seed
        self.setup = setup
        self._transforms = transforms
        self._goes_by_sample = any(field.of is not None for field in fields) or bool(transforms)
        self._samples: SampleFiller | None = None
        self._cleared = [field for reading in readings if reading.reader.leaves_out for field in reading.fields]
        readers = [reading.reader for reading in readings]
        # Whether several readers may read at once. Functions not marked concurrent run in the main thread, one at a time.
        self.concurrent = all(reader.concurrent for reader in readers)
        is_called = any(each.user_code is not None and not each.concurrent for each in readers)
        self.calls_functions = is_called or bool(transforms)
        self._draws_outside = any(reader.draws and reader.concurrent for reader in readers)
        self._rngs: tuple[SampleRng | None, SampleRng | None] = None, None
        self._function_rng: SampleRng | None = None
        self._rows_begun: Any = [IDLE, *[0] * (TURN - ROW)]
        self._in_turn: InTurn = _at_once

    def named(self) -> Iterator[tuple[str, object]]:
        """Sources and functions, each with its name in errors."""
        for reading in self._readings:
            yield reading.named, reading.reader if reading.reader.user_code is None else reading.reader.user_code
        for name, transform in self._transforms.items():
            yield transform_named(name), transform.function
        if self.setup is not None:
            yield "setup", self.setup

    @property
    def is_ours(self) -> bool:
        """Whether it contains no code of the user's: no function, and no source of their own class."""
        calls = bool(self._transforms) or self.setup is not None
        return not calls and all(reading.reader.user_code is None for reading in self._readings)

    def set_up(self) -> None:
        """Call ``setup``, if there is one; what it raises becomes a StartError."""
        if self.setup is not None:
            try:
                self.setup()
            except Exception as error:
                note(error)
                raise StartError(f"setup failed: {error_text(error)}") from error

    def opened(self, rows_begun: Any, in_turn: InTurn | None = None, *, in_worker: bool = False) -> TicketFiller:
        """A copy for a reader of this process, with its sources opened; a StartError if one can't be.

        ``rows_begun`` are the words of a record on the status page, from `ROW` on: the first will say how many rows of the task
        have been begun, or `IDLE`, or `UNKNOWN`. ``in_turn`` calls its argument in the thread of the user's functions.
        """
        reader = copy(self)
        reader._rows_begun = rows_begun
        reader._readings = []
        for reading in self._readings:
            try:
                reader._readings.append(reading._replace(reader=reading.reader.opened(in_worker=in_worker)))
            except Exception as error:
                note(error)
                raise StartError(f"{reading.named} can't be opened: {error_text(error)}") from error
        if self.calls_functions or self._draws_outside:
            from shmgen._worker.rng import SampleRng

            outside = SampleRng(self.seed, outside=True) if self._draws_outside else None
            if self.calls_functions:  # else the main thread serves no calls
                reader._in_turn = in_turn or _at_once
                # One for all readers, whose functions are called one at a time and may keep it.
                self._function_rng = self._function_rng or SampleRng(self.seed)
            reader._rngs = outside, self._function_rng
        return reader

    def places(self, id: Any) -> str:
        """Where sample ``id`` is read from, for errors and warnings."""
        return ", ".join(reading.reader.place(id) for reading in self._readings)

    def fill(self, slot: memoryview, task: Task, *, io_waits: bool = False) -> None:
        """Fill the rows of ``task`` in the memory of a slot; ``io_waits`` if reads have had to wait lately."""
        for field in self._cleared:
            self._rows(slot, task, field)[...] = 0  # the slot still holds another sample's data
        one_by_one: list[Step] = []
        for reading in self._readings:
            reader, fields, named, table = reading
            if reader.reads_one_by_one:
                one_by_one.append((reading, task.keys(table), None))
                continue
            began = time.monotonic_ns()
            self._rows_begun[0] = UNKNOWN
            try:
                keys = task.keys(table)
                rows: Any
                if reader.user_code is not None:
                    keys = list(keys)
                if reader.takes_bytes:
                    rows = self._bytes(slot, task, fields[0])
                elif reader.fields is None:
                    rows = self._rows(slot, task, fields[0])
                else:
                    rows = RowsByKey(reader, [(field, self._rows(slot, task, field)) for field in fields], (len(task),))
                left = reader.fill(keys, rows, self._rows_begun, io_waits=io_waits)
            except Exception as error:
                note(error)
                id = task.ids[row_of(self._rows_begun[0]) or 0]
                if table and isinstance(error, SampleError):
                    raise SampleError(id, error.path, error.reason) from None
                raise function_error(id, named, error) from error
            if reader.user_code is not None:
                self._count(FUNCTION, began)
            if left:
                one_by_one.append((reading, keys, frozenset(left)))
        self._rows_begun[0] = IDLE
        if one_by_one or self._goes_by_sample:
            self._fill_samples(slot, task, one_by_one)
            self._rows_begun[0] = IDLE

    def _fill_samples(self, slot: memoryview, task: Task, one_by_one: Sequence[Step]) -> None:
        if self._samples is None:
            from shmgen._worker.sample_filler import SampleFiller  # late: imports are most of a worker's start

            self._samples = SampleFiller(
                self._fields, self._readings, self._transforms, self._rngs, self._in_turn, self._rows_begun, self._count
            )
        rows = {field.name: self._rows(slot, task, field) for field in self._fields}
        self._samples.fill(task.epoch, task.position, lambda: task.ids, rows, one_by_one)

    def _count(self, word: int, began: int) -> int:
        """Add the time since ``began``, in nanoseconds, to a word of the reader's record; returns the time."""
        now = time.monotonic_ns()
        self._rows_begun[word - ROW] += now - began
        return now

    def _bytes(self, slot: memoryview, task: Task, field: FieldSpec) -> memoryview:
        first = field.offset + task.start * field.row_bytes
        return slot[first : first + len(task) * field.row_bytes]

    def _rows(self, slot: memoryview, task: Task, field: FieldSpec) -> np.ndarray:
        import numpy as np

        return np.ndarray((len(task), *field.shape), dtype_of(field.dtype), self._bytes(slot, task, field))


def _at_once(function: Callable[[], None]) -> None:
    function()
