"""Which slot holds which batch and which worker reads which rows: told what happened, it answers what is to be done.

Pure: no process, no clock, no memory but its own, so every order of events is a plain unit test.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from typing import NamedTuple

from shmgen._order import Batch


class State(Enum):
    """What a slot is doing."""

    FREE = "free"
    FILLING = "filling"
    READY = "ready"
    LEASED = "leased"


class Slot:
    """One slot of the ring, as the schedule sees it.

    Attributes:
        batch: what it holds; None where it is free.
        missing: pieces that workers have yet to read.
        error: why the batch can't be delivered, if it can't.
    """

    def __init__(self) -> None:
        self.state = State.FREE
        self.batch: Batch | None = None
        self.missing = 0
        self.error: Exception | None = None

    def __repr__(self) -> str:
        return self.state.value if self.batch is None else f"{self.state.value} {self.batch.epoch}:{self.batch.number}"


class Piece(NamedTuple):
    """Rows ``start`` to ``stop`` of a batch, read by one worker."""

    slot: int
    batch: Batch
    start: int
    stop: int


class Schedule:
    """Assigns batches to slots and their rows to workers.

    Args:
        slots: how many slots the ring has.
        workers: how many workers share the rows of a batch.
        rows: how many rows a batch has.
    """

    def __init__(self, slots: int, workers: int, rows: Callable[[Batch], int]) -> None:
        self._slots = [Slot() for _ in range(slots)]
        self._held: list[deque[Piece]] = [deque() for _ in range(workers)]
        self._rows = rows
        self._turn = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._slots}>"

    @property
    def is_idle(self) -> bool:
        """Whether no worker holds anything."""
        return not any(self._held)

    @property
    def can_lease(self) -> bool:
        """Whether a slot may be leased: one must always be left to read into."""
        return sum(slot.state is not State.LEASED for slot in self._slots) > 1

    def ready(self, batch: Batch) -> int | None:
        """The slot from which ``batch`` can be delivered now."""
        for number, slot in enumerate(self._slots):
            if slot.batch == batch and slot.state is State.READY:
                return number
        return None

    def error(self, slot: int) -> Exception | None:
        """Why the batch in ``slot`` can't be delivered, if it can't."""
        return self._slots[slot].error

    def assign(self, wanted: Iterable[Batch]) -> list[tuple[int, Piece]]:
        """Give slots to the ``wanted`` batches, most urgent first, as far as they reach.

        A batch that is read and not wanted keeps its slot until another needs it.

        Returns:
            Who is to read what: worker and piece, in the order of sending.
        """
        usable = sum(slot.state is not State.LEASED for slot in self._slots)
        held = {slot.batch for slot in self._slots if slot.state is not State.LEASED}
        chosen: list[Batch] = []
        for batch in wanted:
            if len(chosen) == usable:
                break
            if batch not in chosen:
                chosen.append(batch)
        sends: list[tuple[int, Piece]] = []
        for batch in chosen:
            if batch in held:
                continue
            number = self._vacate(chosen)
            if number is None:
                break
            sends += self._start(number, batch)
        return sends

    def done(self, worker: int, error: Exception | None = None) -> Piece:
        """A worker has read the oldest piece that it held, or failed to."""
        piece = self._held[worker].popleft()
        slot = self._slots[piece.slot]
        slot.missing -= 1
        slot.error = slot.error or error
        if not slot.missing:
            slot.state = State.READY
        return piece

    def lease(self, slot: int) -> None:
        """The batch in ``slot``, which was ready, is handed out."""
        self._slots[slot].state = State.LEASED

    def free(self, slot: int) -> None:
        """The batch in ``slot`` is no longer needed by anyone."""
        self._slots[slot] = Slot()

    def _vacate(self, chosen: list[Batch]) -> int | None:
        """A slot to read into: a free one, else one that holds a batch not ``chosen``."""
        for number, slot in enumerate(self._slots):
            if slot.state is State.FREE:
                return number
        for number, slot in enumerate(self._slots):
            if slot.state is State.READY and slot.batch not in chosen:
                return number
        return None

    def _start(self, number: int, batch: Batch) -> list[tuple[int, Piece]]:
        """Cut ``batch`` into a piece for each worker, given to those who hold least."""
        slot = self._slots[number] = Slot()
        slot.state = State.FILLING
        slot.batch = batch
        rows = self._rows(batch)
        workers = len(self._held)
        slot.missing = min(rows, workers)
        sends = []
        for part in range(slot.missing):
            piece = Piece(number, batch, part * rows // slot.missing, (part + 1) * rows // slot.missing)
            # Equals take turns, or the batches of one row would all go to the first worker.
            self._turn = (self._turn + 1) % workers
            worker = min(range(workers), key=lambda w: (len(self._held[w]), (w - self._turn) % workers))
            self._held[worker].append(piece)
            sends.append((worker, piece))
        return sends
