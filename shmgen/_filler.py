"""What a worker does with its rows: fills every field from its source, and has the user's functions change them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, NamedTuple

from shmgen._arguments import dtype_of
from shmgen._limits import note
from shmgen._source import IDLE, UNKNOWN, RawSource, Source, function_error, put, row_of, told
from shmgen.errors import Misfit, StartError

if TYPE_CHECKING:
    import numpy as np

    from shmgen._dice import Dice


class Task(NamedTuple):
    """Rows ``start`` to ``stop`` of the batch in a slot.

    Attributes:
        slot: where the batch is.
        start: the first row.
        stop: the row behind the last.
        epoch: whose batch it is.
        position: of the first row in the epoch's data.
        ids: of the rows.
    """

    slot: int
    start: int
    stop: int
    epoch: int
    position: int
    ids: list[Any]


class Part(NamedTuple):
    """One field, as those see it who fill it.

    Attributes:
        name: of the field.
        source: fills it; None where the parent has done so.
        shape: of a row.
        dtype: of a row, as text, since most workers need no NumPy.
        offset: where the field begins in the first slot, in bytes from the begin of the ring.
        row_bytes: bytes of a row.
    """

    name: str
    source: Source | None
    shape: tuple[int, ...]
    dtype: str
    offset: int
    row_bytes: int


class Filler:
    """Fills rows.

    Args:
        parts: the fields of a batch.
        slot_bytes: bytes from one slot to the next.
        seed: of random numbers, together with the epoch and the sample's position in it.
        by_field: functions of a row and a generator, by name of the field.
        whole: a function of the sample, a dict of its rows by name of the field, and a generator.

    Attributes:
        seed: see above.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        slot_bytes: int,
        seed: int,
        by_field: dict[str, Callable[..., Any]],
        whole: Callable[..., Any] | None,
    ) -> None:
        self._parts = parts
        self._slot_bytes = slot_bytes
        self.seed = seed
        self._by_field = by_field
        self._whole = whole
        self._cleared = [part for part in parts if part.source is not None and part.source.may_leave_out]
        # Whether anything is done sample by sample, which may draw random numbers.
        one_by_one = any(part.source is not None and part.source.reads_one_by_one for part in parts)
        self.calls_functions = one_by_one or bool(by_field) or whole is not None
        self._dice: Dice | None = None
        self._at: Any = [IDLE]

    def named(self) -> Iterator[tuple[str, object]]:
        """The users' things in it, by what errors call them."""
        for part in self._parts:
            if part.source is not None:
                yield f"source of field {part.name!r}", part.source
        for name, function in self._by_field.items():
            yield f"transform of field {name!r}", function
        if self._whole is not None:
            yield "transform", self._whole

    @property
    def is_ours(self) -> bool:
        """Whether there is nothing of the user's own in it: no function, and no source of a class of theirs."""
        return not self.calls_functions and all(type(thing).__module__.startswith("shmgen.") for _, thing in self.named())

    def open(self, at: Any) -> None:
        """Get ready, in the process that will fill.

        Args:
            at: ``at[0]`` will be the number of the row that is being filled, counted from 1 in its task, or a word above.
        """
        self._at = at
        for part in self._parts:
            if part.source is not None:
                part.source.at = at
                try:
                    part.source.open()
                except Exception as error:
                    note(error)
                    raise StartError(f"source of field {part.name!r} can't be opened: {told(error)}") from error
        if self.calls_functions:
            from shmgen._dice import Dice

            self._dice = Dice(self.seed)

    def places(self, id: Any) -> str:
        """Where sample ``id`` is read from, for errors and warnings."""
        return ", ".join(part.source.place(id) for part in self._parts if part.source is not None)

    def hint(self, task: Task) -> None:
        """``task`` will be done next."""
        for part in self._parts:
            if part.source is not None:
                part.source.hint(task.ids)

    def fits(self, memory: memoryview, task: Task) -> bool:
        """Whether ``memory`` reaches as far as ``task``."""
        return len(memory) >= self._parts[0].offset + (task.slot + 1) * self._slot_bytes

    def fill(self, memory: memoryview, task: Task) -> None:
        """Do ``task`` in ``memory``, which is the ring.

        Raises:
            SampleError: a sample can't be had; ``at`` tells which.
        """
        for part in self._cleared:
            _clear(self._bytes(memory, task, part))
        for part in self._parts:
            source = part.source
            if source is None or source.reads_one_by_one:
                continue
            self._at[0] = UNKNOWN
            try:
                if isinstance(source, RawSource):
                    source.fill(task.ids, self._bytes(memory, task, part))  # type: ignore[arg-type]
                else:
                    source.fill(task.ids, self._rows(memory, task, part))
            except Exception as error:
                note(error)
                raise function_error(task.ids[row_of(self._at[0]) or 0], f"source of field {part.name!r}", error) from error
        if self._dice is not None:
            self._call_functions(memory, task, self._dice)
        self._at[0] = IDLE

    def _call_functions(self, memory: memoryview, task: Task, dice: Dice) -> None:
        rows = {part.name: self._rows(memory, task, part) for part in self._parts}
        readers = [(p.name, p.source) for p in self._parts if p.source is not None and p.source.reads_one_by_one]
        generators = dice.for_samples(task.epoch, task.position, len(task.ids))
        where = ""
        for number, (id, rng) in enumerate(zip(task.ids, generators, strict=True)):
            self._at[0] = number + 1
            try:
                for name, source in readers:
                    where = f"source of field {name!r}"
                    # A function may change what it is given, and an id may be a list.
                    own = id if isinstance(id, str | int) else deepcopy(id)
                    source.read(own, rows[name][number, ...])
                for name, function in self._by_field.items():
                    where = f"transform of field {name!r}"
                    row = rows[name][number, ...]
                    result = function(row, rng)
                    if result is not None and result is not row:
                        put(row, result)
                if self._whole is not None:
                    where = "transform"
                    _transform_whole(self._whole, {name: array[number, ...] for name, array in rows.items()}, rng)
            except Exception as error:
                note(error)
                raise function_error(id, where, error) from error

    def _bytes(self, memory: memoryview, task: Task, part: Part) -> memoryview:
        first = task.slot * self._slot_bytes + part.offset
        return memory[first + task.start * part.row_bytes : first + task.stop * part.row_bytes]

    def _rows(self, memory: memoryview, task: Task, part: Part) -> np.ndarray:
        import numpy as np

        return np.ndarray((task.stop - task.start, *part.shape), dtype_of(part.dtype), self._bytes(memory, task, part))


def _clear(data: memoryview) -> None:
    """Set rows to 0: what a slot held before is another sample's."""
    import numpy as np

    np.frombuffer(data, np.uint8)[:] = 0


def _transform_whole(function: Callable[..., Any], rows: dict[str, np.ndarray], rng: np.random.Generator) -> None:
    import numpy as np

    sample = dict(rows)
    result = function(sample, rng)
    if result is None:
        result = sample
    if not isinstance(result, Mapping):
        raise Misfit(f"expected a dict of rows by field, or None, found {type(result).__name__}")
    changed = {}
    for name, value in result.items():
        if name not in rows:
            raise Misfit(f"expected fields {', '.join(map(repr, rows))}, found {name!r}")
        if value is not rows[name]:
            # Fields may be swapped: what is a view of another's row must be read before that is written.
            shared = any(np.may_share_memory(value, row) for other, row in rows.items() if other != name)
            changed[name] = np.array(value) if shared else value
    for name, value in changed.items():
        try:
            put(rows[name], value)
        except Misfit as misfit:
            raise Misfit(f"field {name!r}: {misfit}") from None
