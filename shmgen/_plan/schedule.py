"""Which slot holds which batch and which worker reads which rows. Given an event, it answers what to do.

Pure: no process, no clock, no memory but its own, so every order of events is a plain unit test.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from itertools import chain, islice
from typing import NamedTuple

from shmgen._plan.sampler import BatchId

PORTIONS = 2
"""Into so many portions the batches in flight are divided when work is given out."""


class State(Enum):
    """What a slot is doing."""

    FREE = "free"
    FILLING = "filling"
    READY = "ready"
    LEASED = "leased"
    LOST = "lost"


class Slot:
    """One slot of the ring, as the schedule sees it.

    Attributes:
        batch: what it holds; None where it is free.
        missing: pieces that workers have yet to read.
        error: why the batch can't be delivered, if it can't.
    """

    def __init__(self) -> None:
        self.state = State.FREE
        self.batch: BatchId | None = None
        self.missing = 0
        self.error: Exception | None = None

    def __repr__(self) -> str:
        return self.state.value if self.batch is None else f"{self.state.value} {self.batch.epoch}:{self.batch.number}"


class Piece(NamedTuple):
    """Rows ``start`` to ``stop`` of a batch, read by one worker."""

    slot: int
    batch: BatchId
    start: int
    stop: int


class Schedule:
    """Assigns batches to slots and their rows to workers.

    Args:
        slots: how many slots the ring has.
        workers: how many workers share the rows of a batch.
        rows: how many rows a batch has.
        in_flight: how many batches are read at once, at most, while workers do not wait for I/O. More than keep the workers busy
            would spread over more memory than the processor's cache holds. That costs a quarter of the speed where the trainer
            waits for every batch.

    Attributes:
        waits: whether workers wait for a disk or a network. These do more when they are asked for more at once, so as many
            batches are read then as there are slots.
    """

    def __init__(self, slots: int, workers: int, rows: Callable[[BatchId], int], *, in_flight: int) -> None:
        self._rows = rows
        self._in_flight = min(slots, in_flight)
        self._portion = max(1, self._in_flight // PORTIONS)
        self.waits = False
        self._filling = 0
        self._slots = [Slot() for _ in range(slots)]
        self._free = list(range(slots))
        # The slots that are neither free nor leased.
        self._slot_of: dict[BatchId, int] = {}
        self._held: list[deque[Piece]] = [deque() for _ in range(workers)]
        # Rows that each worker holds.
        self._load = [0] * workers
        self._workers = workers
        self._turn = 0
        self._spare = 0
        self._read_in_vain = False

    def __repr__(self) -> str:
        return f"slots {self._slots}"

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The slots, to be looked at."""
        return tuple(self._slots)

    @property
    def has_spare(self) -> bool:
        """Whether there is a slot that is never leased."""
        return self._spare > 0

    @property
    def can_lease(self) -> bool:
        """Whether a slot is left that may be leased."""
        return len(self._free) + len(self._slot_of) > self._spare

    def add_slot(self) -> None:
        """The ring has one slot more."""
        self._free.append(len(self._slots))
        self._slots.append(Slot())

    def keep_spare(self) -> None:
        """From now on one slot is never leased, so that there is something to copy from."""
        self._spare = 1

    def holds(self, batch: BatchId) -> bool:
        """Whether a slot has been given to ``batch``, which has not been handed out."""
        return batch in self._slot_of

    def ready(self, batch: BatchId) -> int | None:
        """The slot from which ``batch`` can be delivered now."""
        number = self._slot_of.get(batch)
        return None if number is None or self._slots[number].missing else number

    def last_to_finish(self, batch: BatchId) -> int | None:
        """The worker that will probably be the last to have read its piece of ``batch``; None if no worker holds one."""
        slot = self._slot_of.get(batch)
        last, most_before = None, -1
        for worker, held in enumerate(self._held):
            for before, piece in enumerate(held):
                if piece.slot == slot and before >= most_before:
                    last, most_before = worker, before
        return last

    @property
    def workers(self) -> int:
        """How many workers get work: those with the lowest numbers."""
        return self._workers

    def resize(self, workers: int) -> None:
        """From now on so many workers get work; what others hold, they still have to read."""
        self._workers = workers
        for _ in range(len(self._held), workers):
            self._held.append(deque())
            self._load.append(0)

    def forget_last(self) -> None:
        """The worker with the highest number, which holds nothing, is gone."""
        assert not self._held[-1]
        self._held.pop()
        self._load.pop()

    def held(self, worker: int) -> tuple[Piece, ...]:
        """What ``worker`` has yet to read, the oldest first."""
        return tuple(self._held[worker])

    def error(self, slot: int) -> Exception | None:
        """Why the batch in ``slot`` can't be delivered, if it can't."""
        return self._slots[slot].error

    def assign(self, demanded: Sequence[BatchId], upcoming: Iterable[BatchId]) -> list[tuple[int, Piece]]:
        """Give slots to the batches ``demanded`` now, and to those ``upcoming`` next as far as they reach.

        A batch that has been read keeps its slot until one that is wanted more needs it.

        Returns:
            Who is to read what: worker and piece, in the order of sending.
        """
        missing = not all(batch in self._slot_of for batch in demanded)
        # If a demanded batch was not read ahead, other batches may have been read in vain.
        self._read_in_vain = self._read_in_vain or missing
        # Work is given out in portions: where workers share a processor with the main process, its time is lost to them.
        in_flight = len(self._slots) if self.waits else self._in_flight
        has_room = in_flight - self._filling >= self._portion
        if not missing and not (has_room and (self._free or self._read_in_vain)):
            return []
        wanted: Iterable[BatchId] = chain(demanded, upcoming)
        if self._read_in_vain:
            usable = len(self._free) + len(self._slot_of)
            wanted = list(islice(dict.fromkeys(islice(wanted, usable + len(demanded))), usable))
            self._make_room(wanted)
        sends: list[tuple[int, Piece]] = []
        for batch in wanted:
            if batch in self._slot_of:
                continue
            if not self._free or (self._filling >= in_flight and batch not in demanded):
                break
            sends += self._start(self._free.pop(), batch)
        return sends

    def done(self, worker: int, error: Exception | None = None) -> None:
        """A worker has read the oldest piece that it held, or failed to."""
        number, _, start, stop = self._held[worker].popleft()
        self._load[worker] -= stop - start
        slot = self._slots[number]
        slot.missing -= 1
        slot.error = slot.error or error
        if not slot.missing:
            slot.state = State.READY
            self._filling -= 1
            if slot.batch is None:
                self.free(number)

    def wants(self, piece: Piece) -> bool:
        """Whether what is read for ``piece`` will be delivered: its batch has not been discarded, nor given another slot."""
        return self._slots[piece.slot].batch == piece.batch

    def retry(self, worker: int, *, singly: bool, next: bool) -> list[Piece]:
        """The oldest piece that a worker holds is to be read once more.

        Args:
            worker: who holds it.
            singly: cut it into pieces of one row each.
            next: before the others that the worker holds, not after them.

        Returns:
            The pieces that it is read in.
        """
        held = self._held[worker]
        slot, batch, start, stop = piece = held.popleft()
        pieces = [Piece(slot, batch, row, row + 1) for row in range(start, stop)] if singly else [piece]
        self._slots[slot].missing += len(pieces) - 1
        if next:
            held.extendleft(reversed(pieces))
        else:
            held.extend(pieces)
        return pieces

    def drop(self, worker: int) -> None:
        """A worker was interrupted in the oldest piece that it held: its batch is to be read anew, from the start."""
        batch = self._held[worker][0].batch
        self.done(worker)
        self.discard(batch)

    def discard(self, batch: BatchId) -> None:
        """What has been read of ``batch`` ahead, or is being read, is not to be delivered."""
        number = self._slot_of.pop(batch, None)
        if number is not None:
            self._slots[number].batch = None
            if self._slots[number].state is State.READY:
                self.free(number)

    def abandon(self, worker: int) -> bool:
        """A worker that can't be killed may yet write where it was reading: that slot is never used again.

        Returns:
            Whether there is a slot less; False where another such worker has been reading there too.
        """
        number, batch, start, stop = self._held[worker].popleft()
        self._load[worker] -= stop - start
        slot = self._slots[number]
        if slot.state is State.LOST:
            return False
        self._filling -= 1
        if slot.batch is not None:
            del self._slot_of[batch]
        slot.batch = None
        slot.state = State.LOST  # for good: a piece of it is never done
        return True

    def fail(self, batch: BatchId, error: Exception) -> None:
        """``batch``, which no slot has been given to, can't be delivered."""
        number = self._free.pop()
        slot = self._slots[number]
        slot.state, slot.batch, slot.error = State.READY, batch, error
        self._slot_of[batch] = number

    def lease(self, slot: int) -> None:
        """The batch in ``slot``, which was ready, is handed out."""
        batch = self._slots[slot].batch
        assert batch is not None
        del self._slot_of[batch]
        self._slots[slot].state = State.LEASED

    def free(self, slot: int) -> None:
        """The batch in ``slot``, which was ready or leased, is no longer needed by anyone."""
        batch = self._slots[slot].batch
        if batch is not None and self._slot_of.get(batch) == slot:
            del self._slot_of[batch]
        self._slots[slot] = Slot()
        self._free.append(slot)

    def _make_room(self, wanted: Sequence[BatchId]) -> None:
        """Free slots that hold batches not ``wanted``, as many as are needed."""
        lacking = sum(batch not in self._slot_of for batch in wanted) - len(self._free)
        in_vain = [number for batch, number in self._slot_of.items() if batch not in wanted]
        ready = [number for number in in_vain if self._slots[number].state is State.READY][: max(0, lacking)]
        for number in ready:
            self.free(number)
        self._read_in_vain = len(in_vain) > len(ready)

    def _start(self, number: int, batch: BatchId) -> list[tuple[int, Piece]]:
        """Cut ``batch`` into a piece for each worker, larger ones for those who hold fewer rows."""
        slot = self._slots[number]
        slot.state = State.FILLING
        slot.batch = batch
        self._slot_of[batch] = number
        self._filling += 1
        sends = []
        start = 0
        for worker, rows in self._shares(self._rows(batch)):
            piece = Piece(number, batch, start, start + rows)
            start += rows
            slot.missing += 1
            self._held[worker].append(piece)
            self._load[worker] += rows
            sends.append((worker, piece))
        return sends

    def _shares(self, rows: int) -> list[tuple[int, int]]:
        """Workers, and how many of ``rows`` each is to read, so that all hold about the same number.

        A worker that shares its processor with the main process is slower. The others would wait for it if all got the same.
        """
        workers = self._workers
        # Equals take turns, or batches of a single row would all go to the first worker.
        self._turn += 1
        order = sorted(range(workers), key=lambda w: (self._load[w], (w - self._turn) % workers))
        level = 0.0
        filled = 0
        for count, worker in enumerate(order, 1):
            filled += self._load[worker]
            level = (rows + filled) / count
            if count == workers or level <= self._load[order[count]]:
                break
        shares = []
        left = rows
        for worker in order:
            share = min(left, math.ceil(level - self._load[worker]))
            if share <= 0:
                break
            shares.append((worker, share))
            left -= share
        return shares
