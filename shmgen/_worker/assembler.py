"""What a reader does with a ticket: fills the rows of every field from its source, and has the user's functions change them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from copy import copy
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

from shmgen._memory.limit_errors import note
from shmgen._sources.base import IDLE, UNKNOWN, RawSource, Source, error_text, function_error, row_of
from shmgen._sources.sample_spec import dtype_of
from shmgen._worker.field_spec import FieldSpec, Reading, readings_of
from shmgen.errors import StartError

if TYPE_CHECKING:
    import numpy as np

    from shmgen._sources.rng import SampleRng
    from shmgen._worker.sample_assembler import SampleAssembler


class Task(NamedTuple):
    """Rows of the batch in a slot.

    Attributes:
        start: the first row.
        epoch: of the batch.
        position: of the first row in the epoch's data.
        ids: of the rows.
    """

    start: int
    epoch: int
    position: int
    ids: list[Any]


class BatchAssembler:
    """Fills the rows of tasks.

    Args:
        fields: of a batch, in the order of its arrays.
        sources: by name of the field. Those that the main process fills from are left out here.
        sheet_offset: where the sheet begins in a slot, in bytes: see `Layout.sheet`.
        seed: of random numbers, together with the epoch and the sample's position in it.
        transforms: functions of a row and a generator, by name of the field.
        sample_transform: a function of the sample, a dict of its rows by name of the field, and a generator.

    Attributes:
        sheet_offset: see above.
        seed: see above.
        calls_functions: whether anything is done sample by sample, which may draw random numbers.
        concurrent: whether several readers of a process may read at once. Functions are called one at a time even so: the global
            generators of random numbers are seeded for each sample.
    """

    def __init__(
        self,
        fields: Sequence[FieldSpec],
        sources: Mapping[str, Source],
        sheet_offset: int,
        seed: int,
        transforms: dict[str, Callable[..., Any]],
        sample_transform: Callable[..., Any] | None,
    ) -> None:
        self._fields = fields
        self._readings, self._derived = readings_of(fields, sources)
        self.sheet_offset = sheet_offset
        self.seed = seed
        self._transforms = transforms
        self._sample_transform = sample_transform
        is_derived = bool(self._derived.copies or self._derived.measures)
        self._goes_by_sample = is_derived or bool(transforms) or sample_transform is not None
        self._samples: SampleAssembler | None = None
        self._cleared = [field for source, own, _ in self._readings if source.may_leave_out for field in own]
        read_from = [source for source, _, _ in self._readings]
        self.concurrent = all(source.concurrent for source in read_from)
        is_called = any(source.reads_one_by_one and not source.concurrent and not source.is_ours for source in read_from)
        self.calls_functions = is_called or bool(transforms) or sample_transform is not None
        self._draws_outside = any(source.draws and source.concurrent for source in read_from)
        self._rng: SampleRng | None = None
        self._reading_rng: SampleRng | None = None
        self._rows_begun: Any = [IDLE]
        self._one_at_a_time: Any = nullcontext()

    def named(self) -> Iterator[tuple[str, object]]:
        """Sources and functions, each with what errors call it."""
        for reading in self._readings:
            yield reading.named, reading.source
        for name, function in self._transforms.items():
            yield f"transform of field {name!r}", function
        if self._sample_transform is not None:
            yield "transform", self._sample_transform

    @property
    def is_ours(self) -> bool:
        """Whether none of the user's code is in it: no function, and no source of a class of theirs."""
        return not self._transforms and self._sample_transform is None and all(source.is_ours for source, _, _ in self._readings)

    def opened(self, rows_begun: Any, one_at_a_time: threading.Lock) -> BatchAssembler:
        """A copy for a reader, in the process that will fill, whose sources are ready to read.

        Args:
            rows_begun: ``rows_begun[0]`` will say how many rows of the task have been begun, or `IDLE`, or `UNKNOWN`.
            one_at_a_time: held while functions are called.

        Raises:
            StartError: a source can't be opened.
        """
        reader = copy(self)
        reader._rows_begun = rows_begun
        reader._readings = [reading._replace(source=copy(reading.source)) for reading in self._readings]
        for reading in reader._readings:
            reading.source.rows_begun = rows_begun
            try:
                reading.source.open()
            except Exception as error:
                note(error)
                raise StartError(f"{reading.named} can't be opened: {error_text(error)}") from error
        if self.calls_functions or self._draws_outside:
            from shmgen._sources.rng import SampleRng

            if self.calls_functions:
                reader._rng, reader._one_at_a_time = SampleRng(self.seed), one_at_a_time
            if self._draws_outside:
                reader._reading_rng = SampleRng(self.seed, outside=True)
        return reader

    def places(self, id: Any) -> str:
        """Where sample ``id`` is read from, for errors and warnings."""
        return ", ".join(source.place(id) for source, _, _ in self._readings)

    def fill(self, slot: memoryview, task: Task, *, io_waits: bool = False) -> None:
        """Do ``task`` in a slot of the ring.

        Args:
            slot: the slot's memory.
            task: what is to be done.
            io_waits: whether reads have had to wait lately.

        Raises:
            SampleError: a sample can't be read; ``rows_begun`` says which.
        """
        for field in self._cleared:
            _clear(self._bytes(slot, task, field))
        one_by_one: list[tuple[Reading, Callable[[int], bool]]] = []
        for reading in self._readings:
            source, fields, named = reading
            if source.reads_one_by_one:
                one_by_one.append((reading, _every))
                continue
            self._rows_begun[0] = UNKNOWN
            source.io_waits = io_waits
            try:
                if isinstance(source, RawSource):
                    left = source.fill(task.ids, self._bytes(slot, task, fields[0]))
                elif source.fields is None:
                    left = source.fill(task.ids, self._rows(slot, task, fields[0]))
                else:
                    left = source.fill(task.ids, self._rows_by_key(slot, task, reading))
            except Exception as error:
                note(error)
                raise function_error(task.ids[row_of(self._rows_begun[0]) or 0], named, error) from error
            if left and source.varies:
                one_by_one.append((reading, set(left).__contains__))
        self._rows_begun[0] = IDLE
        if one_by_one or self._goes_by_sample:
            self._fill_samples(slot, task, one_by_one)
            self._rows_begun[0] = IDLE

    def _fill_samples(self, slot: memoryview, task: Task, one_by_one: Sequence[tuple[Reading, Callable[[int], bool]]]) -> None:
        if self._samples is None:
            from shmgen._worker.sample_assembler import SampleAssembler  # late: imports are most of a worker's start

            self._samples = SampleAssembler(self._fields, self._readings, self._derived, self._transforms, self._sample_transform)
        place = task.epoch, task.position, len(task.ids)
        self._samples.fill(
            task.ids,
            {field.name: self._rows(slot, task, field) for field in self._fields},
            [(reading, reads) for reading, reads in one_by_one if reading.source.concurrent],
            [(reading, reads) for reading, reads in one_by_one if not reading.source.concurrent],
            (
                repeat(None) if self._reading_rng is None else self._reading_rng.for_samples(*place),
                repeat(None) if self._rng is None else self._rng.for_samples(*place),
            ),
            self._one_at_a_time,
            self._rows_begun,
        )

    def _rows_by_key(self, slot: memoryview, task: Task, reading: Reading) -> dict[Any, np.ndarray]:
        """What a source fills at once, if it has several fields."""
        from shmgen._worker.sample_assembler import RowsByKey

        rows = [(field.key, self._rows(slot, task, field)) for field in reading.fields]
        return RowsByKey(reading.source, rows, (len(task.ids),))

    def _bytes(self, slot: memoryview, task: Task, field: FieldSpec) -> memoryview:
        first = field.offset + task.start * field.row_bytes
        return slot[first : first + len(task.ids) * field.row_bytes]

    def _rows(self, slot: memoryview, task: Task, field: FieldSpec) -> np.ndarray:
        import numpy as np

        return np.ndarray((len(task.ids), *field.shape), dtype_of(field.dtype), self._bytes(slot, task, field))


def _every(number: int) -> bool:
    """Whether a row is read one by one, where all of them are."""
    return True


def _clear(data: memoryview) -> None:
    """Set rows to 0: the slot still holds another sample's data."""
    import numpy as np

    np.frombuffer(data, np.uint8)[:] = 0
