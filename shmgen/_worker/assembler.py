"""What a worker does with a task: fills the rows of every field from its source, and has the user's functions change them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, NamedTuple

from shmgen._memory.limit_errors import note
from shmgen._sources.base import IDLE, UNKNOWN, RawSource, Source, error_text, function_error, row_of
from shmgen._sources.sample_spec import dtype_of, write_row
from shmgen.errors import FormatError, StartError

if TYPE_CHECKING:
    import numpy as np

    from shmgen._sources.rng import SampleRng


class Task(NamedTuple):
    """Rows ``start`` to ``stop`` of the batch in a slot.

    Attributes:
        slot: where the batch is.
        start: the first row.
        stop: one past the last row.
        epoch: of the batch.
        position: of the first row in the epoch's data.
        ids: of the rows.
    """

    slot: int
    start: int
    stop: int
    epoch: int
    position: int
    ids: list[Any]


class FieldSpec(NamedTuple):
    """Where the rows of one field are, and what they are.

    Attributes:
        name: of the field.
        shape: of a row.
        dtype: of a row, as text, since most workers need no NumPy.
        offset: where the field begins in the first slot, in bytes from the beginning of the ring.
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
        slot_bytes: bytes from one slot to the next.
        seed: of random numbers, together with the epoch and the sample's position in it.
        transforms: functions of a row and a generator, by name of the field.
        sample_transform: a function of the sample, a dict of its rows by name of the field, and a generator.

    Attributes:
        seed: see above.
        calls_functions: whether anything is done sample by sample, which may draw random numbers.
    """

    def __init__(
        self,
        fields: Sequence[FieldSpec],
        sources: Mapping[str, Source],
        slot_bytes: int,
        seed: int,
        transforms: dict[str, Callable[..., Any]],
        sample_transform: Callable[..., Any] | None,
    ) -> None:
        self._fields = fields
        self._sources = [(field, sources[field.name]) for field in fields if not sources[field.name].in_main_process]
        self._slot_bytes = slot_bytes
        self.seed = seed
        self._transforms = transforms
        self._sample_transform = sample_transform
        self._cleared = [field for field, source in self._sources if source.may_leave_out]
        reads_one_by_one = any(source.reads_one_by_one for _, source in self._sources)
        self.calls_functions = reads_one_by_one or bool(transforms) or sample_transform is not None
        self._rng: SampleRng | None = None
        self._rows_begun: Any = [IDLE]

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
        return not self.calls_functions and all(type(thing).__module__.startswith("shmgen.") for _, thing in self.named())

    def open(self, rows_begun: Any) -> None:
        """Get ready, in the process that will fill.

        Args:
            rows_begun: ``rows_begun[0]`` will say how many rows of the task have been begun, or `IDLE`, or `UNKNOWN`.

        Raises:
            StartError: a source can't be opened.
        """
        self._rows_begun = rows_begun
        for field, source in self._sources:
            source.rows_begun = rows_begun
            try:
                source.open()
            except Exception as error:
                note(error)
                raise StartError(f"source of field {field.name!r} can't be opened: {error_text(error)}") from error
        if self.calls_functions:
            from shmgen._sources.rng import SampleRng

            self._rng = SampleRng(self.seed)

    def places(self, id: Any) -> str:
        """Where sample ``id`` is read from, for errors and warnings."""
        return ", ".join(source.place(id) for _, source in self._sources)

    def hint(self, task: Task) -> None:
        """``task`` will be done next."""
        for _, source in self._sources:
            source.hint(task.ids)

    def fits(self, memory: memoryview, task: Task) -> bool:
        """Whether ``memory`` reaches as far as ``task``."""
        return len(memory) >= self._fields[0].offset + (task.slot + 1) * self._slot_bytes

    def fill(self, memory: memoryview, task: Task) -> None:
        """Do ``task`` in ``memory``, which is the ring.

        Raises:
            SampleError: a sample can't be read; ``rows_begun`` says which.
        """
        for field in self._cleared:
            _clear(self._bytes(memory, task, field))
        for field, source in self._sources:
            if source.reads_one_by_one:
                continue
            self._rows_begun[0] = UNKNOWN
            try:
                if isinstance(source, RawSource):
                    source.fill(task.ids, self._bytes(memory, task, field))  # type: ignore[arg-type]
                else:
                    source.fill(task.ids, self._rows(memory, task, field))
            except Exception as error:
                note(error)
                raise function_error(
                    task.ids[row_of(self._rows_begun[0]) or 0], f"source of field {field.name!r}", error
                ) from error
        if self._rng is not None:
            self._call_functions(memory, task, self._rng)
        self._rows_begun[0] = IDLE

    def _call_functions(self, memory: memoryview, task: Task, sample_rng: SampleRng) -> None:
        rows = {field.name: self._rows(memory, task, field) for field in self._fields}
        readers = [(field.name, source) for field, source in self._sources if source.reads_one_by_one]
        generators = sample_rng.for_samples(task.epoch, task.position, len(task.ids))
        where = ""
        for number, (id, rng) in enumerate(zip(task.ids, generators, strict=True)):
            self._rows_begun[0] = number + 1
            try:
                for name, source in readers:
                    where = f"source of field {name!r}"
                    # A function may change what it is given, and an id may be a list.
                    own = id if isinstance(id, str | int) else deepcopy(id)
                    source.read(own, rows[name][number, ...])
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
                raise function_error(id, where, error) from error

    def _bytes(self, memory: memoryview, task: Task, field: FieldSpec) -> memoryview:
        first = task.slot * self._slot_bytes + field.offset
        return memory[first + task.start * field.row_bytes : first + task.stop * field.row_bytes]

    def _rows(self, memory: memoryview, task: Task, field: FieldSpec) -> np.ndarray:
        import numpy as np

        return np.ndarray((task.stop - task.start, *field.shape), dtype_of(field.dtype), self._bytes(memory, task, field))


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
