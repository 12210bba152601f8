"""What a reader does with a ticket: fills the rows of every field from its source, and has the user's functions change them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy, deepcopy
from typing import TYPE_CHECKING, Any, NamedTuple

from shmgen._memory.limit_errors import note
from shmgen._memory.status_page import FUNCTION, ROW, TURN
from shmgen._sources.base import IDLE, UNKNOWN, RawSource, Source, error_text, function_error, row_of
from shmgen._sources.sample_spec import dtype_of, write_row
from shmgen.errors import FormatError, SampleError, StartError

if TYPE_CHECKING:
    import numpy as np

    from shmgen._sources.rng import SampleRng


class Task:
    """Rows of the batch in a slot.

    Args:
        start: the first row.
        epoch: of the batch.
        position: of the first row in the epoch's data.
        samples: of the rows: positions in the list of ids.
        tables: for each of `key_tables`, a function that looks samples up in it.

    Attributes:
        start, epoch, position: see above.
    """

    __slots__ = "_found", "_samples", "_tables", "epoch", "position", "start"

    def __init__(self, start: int, epoch: int, position: int, samples: Any, tables: Sequence[Callable[[Any], list[Any]]]) -> None:
        self.start = start
        self.epoch = epoch
        self.position = position
        self._samples = samples
        self._tables = tables
        self._found: dict[int, list[Any]] = {}

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def ids(self) -> list[Any]:
        """The ids of the rows."""
        return self.keys(0)

    def keys(self, table: int) -> list[Any]:
        """What the rows are called in a table. It is looked up when it is first asked for: texts take their time."""
        if table not in self._found:
            self._found[table] = self._tables[table](self._samples)
        return self._found[table]


class FieldSpec(NamedTuple):
    """Where the rows of one field are, and what they are.

    Attributes:
        name: of the field.
        shape: of a row.
        dtype: of a row, as text, since most workers need no NumPy.
        offset: where the field begins in a slot, in bytes.
        row_bytes: bytes of a row.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    row_bytes: int


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
        self._sources = [(field, sources[field.name]) for field in fields if not sources[field.name].in_main_process]
        self.sheet_offset = sheet_offset
        self.seed = seed
        self._transforms = transforms
        self._sample_transform = sample_transform
        # The fields that code of the user's reads.
        self._users = {field.name for field, source in self._sources if source.is_users}
        self._cleared = [field for field, source in self._sources if source.may_leave_out]
        self.concurrent = all(source.concurrent for _, source in self._sources)
        is_called = any(source.reads_one_by_one and not source.concurrent for _, source in self._sources)
        self.calls_functions = is_called or bool(transforms) or sample_transform is not None
        self._rng: SampleRng | None = None
        self._rows_begun: Any = [IDLE, *[0] * (TURN - ROW)]
        self._one_at_a_time: Any = None

    def named(self) -> Iterator[tuple[str, object]]:
        """Sources and functions, each with what errors call it."""
        for field, source in self._sources:
            yield f"source of field {field.name!r}", source
        for name, function in self._transforms.items():
            yield f"transform of field {name!r}", function
        if self._sample_transform is not None:
            yield "transform", self._sample_transform

    @property
    def is_ours(self) -> bool:
        """Whether none of the user's code is in it: no function, and no source of a class of theirs."""
        calls = self.calls_functions or any(source.reads_one_by_one for _, source in self._sources)
        return not calls and all(type(thing).__module__.startswith("shmgen.") for _, thing in self.named())

    def opened(self, rows_begun: Any, one_at_a_time: threading.Lock) -> BatchAssembler:
        """A copy for a reader, in the process that will fill, whose sources are ready to read.

        Args:
            rows_begun: the words of a record on the status page, from `ROW` on: ``rows_begun[0]`` will say how many rows of the
                task have been begun, or `IDLE`, or `UNKNOWN`.
            one_at_a_time: held while functions are called.

        Raises:
            StartError: a source can't be opened.
        """
        reader = copy(self)
        reader._rows_begun, reader._one_at_a_time = rows_begun, one_at_a_time
        reader._sources = [(field, copy(source)) for field, source in self._sources]
        for field, source in reader._sources:
            source.rows_begun = rows_begun
            try:
                source.open()
            except Exception as error:
                note(error)
                raise StartError(f"source of field {field.name!r} can't be opened: {error_text(error)}") from error
        if self.calls_functions:
            from shmgen._sources.rng import SampleRng

            reader._rng = SampleRng(self.seed)
        return reader

    def places(self, id: Any) -> str:
        """Where sample ``id`` is read from, for errors and warnings."""
        return ", ".join(source.place(id) for _, source in self._sources)

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
        for field, source in self._sources:
            if source.reads_one_by_one:
                if source.concurrent:
                    began = time.monotonic_ns()
                    self._read(field, source, slot, task)
                    if field.name in self._users:
                        self._count(FUNCTION, began)
                continue
            began = time.monotonic_ns()
            self._rows_begun[0] = UNKNOWN
            source.io_waits = io_waits
            try:
                keys = task.keys(source.key_table)
                if isinstance(source, RawSource):
                    source.fill(keys, self._bytes(slot, task, field))  # type: ignore[arg-type]
                else:
                    source.fill(keys, self._rows(slot, task, field))
            except Exception as error:
                note(error)
                id = task.ids[row_of(self._rows_begun[0]) or 0]
                if source.key_table and isinstance(error, SampleError):
                    raise SampleError(id, error.path, error.reason) from None
                raise function_error(id, f"source of field {field.name!r}", error) from error
            if field.name in self._users:
                self._count(FUNCTION, began)
        self._rows_begun[0] = IDLE
        if self._rng is not None:
            began = time.monotonic_ns()
            with self._one_at_a_time:
                began = self._count(TURN, began)
                self._call_functions(slot, task, self._rng)
                self._count(FUNCTION, began)
            self._rows_begun[0] = IDLE

    def _count(self, word: int, began: int) -> int:
        """Add the time since ``began``, in nanoseconds, to a word of the reader's record; returns the time."""
        now = time.monotonic_ns()
        self._rows_begun[word - ROW] += now - began
        return now

    def _read(self, field: FieldSpec, source: Source, slot: memoryview, task: Task) -> None:
        rows = self._rows(slot, task, field)
        for number, key in enumerate(task.keys(source.key_table)):
            self._rows_begun[0] = number + 1
            try:
                source.read(_own(key), rows[number, ...])
            except Exception as error:
                note(error)
                raise function_error(task.ids[number], f"source of field {field.name!r}", error) from error

    def _call_functions(self, slot: memoryview, task: Task, sample_rng: SampleRng) -> None:
        rows = {field.name: self._rows(slot, task, field) for field in self._fields}
        readers = [(field.name, source) for field, source in self._sources if source.reads_one_by_one and not source.concurrent]
        generators = sample_rng.for_samples(task.epoch, task.position, len(task))
        where = ""
        for number, rng in enumerate(generators):
            self._rows_begun[0] = number + 1
            try:
                for name, source in readers:
                    where = f"source of field {name!r}"
                    source.read(_own(task.keys(source.key_table)[number]), rows[name][number, ...])
                for name, function in self._transforms.items():
                    where = f"transform of field {name!r}"
                    row = rows[name][number, ...]
                    result = function(row, rng)
                    if result is not None and result is not row:
                        write_row(row, result)
                if self._sample_transform is not None:
                    where = "transform"
                    _transform_sample(self._sample_transform, {name: array[number, ...] for name, array in rows.items()}, rng)
            except Exception as error:
                note(error)
                raise function_error(task.ids[number], where, error) from error

    def _bytes(self, slot: memoryview, task: Task, field: FieldSpec) -> memoryview:
        first = field.offset + task.start * field.row_bytes
        return slot[first : first + len(task) * field.row_bytes]

    def _rows(self, slot: memoryview, task: Task, field: FieldSpec) -> np.ndarray:
        import numpy as np

        return np.ndarray((len(task), *field.shape), dtype_of(field.dtype), self._bytes(slot, task, field))


def _own(id: Any) -> Any:
    """A function may change what it is given, and an id may be a list."""
    return id if isinstance(id, str | int) else deepcopy(id)


def _clear(data: memoryview) -> None:
    """Set rows to 0: the slot still holds another sample's data."""
    import numpy as np

    np.frombuffer(data, np.uint8)[:] = 0


def _transform_sample(function: Callable[..., Any], rows: dict[str, np.ndarray], rng: np.random.Generator) -> None:
    import numpy as np

    sample = dict(rows)
    result = function(sample, rng)
    if result is None:
        result = sample
    if not isinstance(result, Mapping):
        raise FormatError(f"expected a dict of rows by field, or None, found {type(result).__name__}")
    changed = {}
    for name, value in result.items():
        if name not in rows:
            raise FormatError(f"expected fields {', '.join(map(repr, rows))}, found {name!r}")
        if value is not rows[name]:
            # Fields may be swapped: what is a view of another's row must be read before that is written.
            shared = any(np.may_share_memory(value, row) for other, row in rows.items() if other != name)
            changed[name] = np.array(value) if shared else value
    for name, value in changed.items():
        try:
            write_row(rows[name], value)
        except FormatError as error:
            raise FormatError(f"field {name!r}: {error}") from None
