"""Which slot holds which batch, and which tickets are out. Given an event, it answers what to do.

Pure: no process, no clock, no memory but its own, so every order of events is a plain unit test.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from itertools import chain, islice
from typing import NamedTuple

from shmgen._plan.sampler import BatchId

PORTIONS = 2
"""Into so many portions the batches in flight are divided when work is given out."""

TICKETS_EACH = 4
"""So many tickets of the batches in flight there are for each reader: fewer would leave readers idle behind slower ones."""

FIRST_TICKETS = 64
"""Until the first ticket is done a batch is cut into so many, at most, so that it is known soon what reading takes."""

FIRST_ROWS = 4
"""But not into tickets of fewer rows than these."""

MAX_OUT = 1024
"""Tickets that are out at one time, at most: so many fit into the queue."""


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
        batch: what it holds; None where it is free, or what it holds will not be delivered.
        rows: how many rows that has.
        missing: tickets that have yet to be done.
        error: why the batch can't be delivered, if it can't.
    """

    def __init__(self) -> None:
        self.state = State.FREE
        self.batch: BatchId | None = None
        self.rows = 0
        self.missing = 0
        self.error: Exception | None = None

    def __repr__(self) -> str:
        return self.state.value if self.batch is None else f"{self.state.value} {self.batch.epoch}:{self.batch.number}"


class Ticket(NamedTuple):
    """Rows ``start`` to ``stop`` of a batch, to be read into a slot by whoever takes the ticket.

    Attributes:
        id: its number; none is given twice.
        slot: where the batch is.
        batch: which it is.
        start: the first row.
        stop: one past the last row.
    """

    id: int
    slot: int
    batch: BatchId
    start: int
    stop: int


class Schedule:
    """Assigns batches to slots, and cuts them into tickets.

    Args:
        slots: how many slots the ring has.
        readers: how many readers take tickets at once; 0 where whoever asks does the tickets, each of which is then a batch.
        rows: how many rows a batch has.
        in_flight: how many batches are read at once, at most, while readers do not wait for I/O. More than keep the readers busy
            would spread over more memory than the processor's cache holds. That costs a quarter of the speed where the trainer
            waits for every batch.

    Attributes:
        readers: see above; may be set.
        waits: whether readers wait for a disk or a network. These do more when they are asked for more at once, so as many
            batches are read then as there are slots.
    """

    def __init__(self, slots: int, readers: int, rows: Callable[[BatchId], int], *, in_flight: int) -> None:
        self.readers = readers
        self.waits = False
        self._rows = rows
        self._in_flight = in_flight
        self._filling = 0
        self._slots = [Slot() for _ in range(slots)]
        self._free = list(range(slots))
        # The slots that are neither free nor leased.
        self._slot_of: dict[BatchId, int] = {}
        self._last_id = 0
        # Tickets that can be given out; those that are out, by id; and those that are given out only while no other is.
        self._pending: deque[Ticket] = deque()
        self._out: dict[int, Ticket] = {}
        self._suspects: deque[Ticket] = deque()
        self._alone = 0  # the number of the suspect given out last
        self._read_in_vain = False
        self._any_done = False

    def __repr__(self) -> str:
        return f"slots {self._slots}"

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The slots, to be looked at."""
        return tuple(self._slots)

    @property
    def out(self) -> int:
        """How many tickets are out: in the queue, or taken by a reader."""
        return len(self._out)

    @property
    def can_lease(self) -> bool:
        """Whether there is a slot that is not leased for good: one that is free, or filled, or being filled."""
        return bool(self._free or self._slot_of or self._filling)

    def add_slots(self, count: int) -> None:
        """The ring has so many slots more."""
        for _ in range(count):
            self._free.append(len(self._slots))
            self._slots.append(Slot())

    def holds(self, batch: BatchId) -> bool:
        """Whether a slot has been given to ``batch``, which has not been handed out."""
        return batch in self._slot_of

    def ready(self, batch: BatchId) -> int | None:
        """The slot from which ``batch`` can be delivered now."""
        number = self._slot_of.get(batch)
        return None if number is None or self._slots[number].missing else number

    def error(self, slot: int) -> Exception | None:
        """Why the batch in ``slot`` can't be delivered, if it can't."""
        return self._slots[slot].error

    def assign(self, demanded: Sequence[BatchId], upcoming: Iterable[BatchId]) -> list[tuple[int, BatchId]]:
        """Give slots to the batches ``demanded`` now, and to those ``upcoming`` next as far as they reach.

        A batch that has been read keeps its slot until one that is wanted more needs it.

        Returns:
            The batches that were given a slot, each with that slot, in the order in which they will be read.
        """
        missing = not self._slot_of.keys() >= set(demanded)
        # If a demanded batch was not read ahead, other batches may have been read in vain.
        self._read_in_vain = self._read_in_vain or missing
        # Work is given out in portions: where workers share a processor with the main process, its time is lost to them.
        most = self._most_in_flight()
        has_room = most - self._filling >= max(1, most // PORTIONS)
        if not missing and not (has_room and (self._free or self._read_in_vain)):
            return []
        wanted: Iterable[BatchId] = chain(demanded, upcoming)
        if self._read_in_vain:
            usable = len(self._free) + len(self._slot_of)
            wanted = list(islice(dict.fromkeys(islice(wanted, usable + len(demanded))), usable))
            self._make_room(wanted)
        given = []
        for batch in wanted:
            if batch in self._slot_of:
                continue
            if not self._free or (self._filling >= most and batch not in demanded):
                break
            given.append((self._start(self._free.pop(), batch), batch))
        return given

    def take(self) -> list[Ticket]:
        """The tickets that are to be given out now."""
        if self._alone in self._out:
            return []
        if self._suspects:
            if self._out:
                return []
            tickets = [self._suspects.popleft()]
            self._alone = tickets[0].id
        else:
            tickets = [self._pending.popleft() for _ in range(min(len(self._pending), MAX_OUT - len(self._out)))]
        self._out.update((ticket.id, ticket) for ticket in tickets)
        return tickets

    def take_back(self, ids: Sequence[int]) -> None:
        """The tickets of these numbers, which are out, were taken by nobody, and have been taken back."""
        for id in reversed(ids):
            ticket = self._out.pop(id)
            if self._slots[ticket.slot].state is not State.LOST:
                (self._suspects if id == self._alone else self._pending).appendleft(ticket)

    @property
    def holds_back(self) -> bool:
        """Whether there are tickets that will be given out only when others are done."""
        return self.has_tickets or self._alone in self._out

    @property
    def has_tickets(self) -> bool:
        """Whether there are tickets that are not out."""
        return bool(self._pending or self._suspects)

    def ticket(self, id: int) -> Ticket | None:
        """The ticket of this number, if it is out."""
        return self._out.get(id)

    def wants(self, ticket: Ticket) -> bool:
        """Whether what is read for ``ticket`` will be delivered: its batch has not been discarded, nor given another slot."""
        return self._slots[ticket.slot].batch == ticket.batch

    def done(self, id: int, error: Exception | None = None) -> int:
        """A ticket has been done, or has failed. One that is not out is nobody's any more: nothing happens.

        Returns:
            How many rows it had.
        """
        self._any_done = True
        ticket = self._out.pop(id, None)
        if ticket is None:
            return 0
        _, number, _, start, stop = ticket
        slot = self._slots[number]
        if slot.state is not State.LOST:
            slot.missing -= 1
            slot.error = slot.error or error
            if not slot.missing:
                slot.state = State.READY
                self._filling -= 1
                if slot.batch is None:
                    self.free(number)
        return stop - start

    def retry(self, ticket: Ticket, *, singly: bool = False, alone: bool = False, without: int | None = None) -> None:
        """``ticket``, which is out, is to be read once more, under other numbers.

        Args:
            ticket: which one.
            singly: cut it into tickets of one row each.
            alone: give it out only while no other ticket is out.
            without: a row that is left out; others must be left.
        """
        del self._out[ticket.id]
        slot = self._slots[ticket.slot]
        if slot.state is State.LOST:
            return
        _, number, batch, start, stop = ticket
        rows = [(row, row + 1) for row in range(start, stop) if row != without] if singly else [(start, stop)]
        slot.missing += len(rows) - 1
        tickets = [self._ticket(number, batch, first, last) for first, last in rows]
        if alone:
            self._suspects.extend(tickets)
        else:
            self._pending.extendleft(reversed(tickets))  # others of its batch have been read already

    def drop(self, id: int) -> None:
        """A ticket was interrupted: its batch is to be read anew, from the start."""
        batch = self._out[id].batch
        self.done(id)
        self.discard(batch)

    def discard(self, batch: BatchId) -> None:
        """What has been read of ``batch`` ahead, or is being read, is not to be delivered."""
        number = self._slot_of.pop(batch, None)
        if number is not None:
            self._slots[number].batch = None
            if self._slots[number].state is State.READY:
                self.free(number)

    def lose(self, ticket: Ticket) -> bool:
        """Who has ``ticket``, which is out, can't be killed, and may yet write: its slot is never used again.

        Returns:
            Whether there is a slot less; False where it was lost already.
        """
        del self._out[ticket.id]
        slot = self._slots[ticket.slot]
        if slot.state is State.LOST:
            return False
        self._filling -= 1
        if slot.batch is not None:
            del self._slot_of[slot.batch]
        slot.batch = None
        slot.state = State.LOST
        self._pending = deque(other for other in self._pending if other.slot != ticket.slot)
        self._suspects = deque(other for other in self._suspects if other.slot != ticket.slot)
        return True

    def fail(self, batch: BatchId, error: Exception) -> None:
        """``batch``, which no slot has been given to, can't be delivered."""
        number = self._free.pop()
        slot = self._slots[number]
        slot.state, slot.batch, slot.error = State.READY, batch, error
        self._slot_of[batch] = number

    def lease(self, number: int) -> int:
        """The batch in a slot, which was ready, is handed out; how many rows it has."""
        slot = self._slots[number]
        assert slot.batch is not None
        del self._slot_of[slot.batch]
        slot.state = State.LEASED
        return slot.rows

    def free(self, slot: int) -> None:
        """The batch in ``slot``, which was ready or leased, is no longer needed by anyone."""
        batch = self._slots[slot].batch
        if batch is not None and self._slot_of.get(batch) == slot:
            del self._slot_of[batch]
        self._slots[slot] = Slot()
        self._free.append(slot)

    def _most_in_flight(self) -> int:
        return len(self._slots) if self.waits else min(self._in_flight, len(self._slots))

    def _make_room(self, wanted: Sequence[BatchId]) -> None:
        """Free slots that hold batches not ``wanted``, as many as are needed."""
        lacking = sum(batch not in self._slot_of for batch in wanted) - len(self._free)
        in_vain = [number for batch, number in self._slot_of.items() if batch not in wanted]
        ready = [number for number in in_vain if self._slots[number].state is State.READY][: max(0, lacking)]
        for number in ready:
            self.free(number)
        self._read_in_vain = len(in_vain) > len(ready)

    def _start(self, number: int, batch: BatchId) -> int:
        """Have ``batch`` read into a slot, in tickets of about the same size."""
        slot = self._slots[number]
        slot.state = State.FILLING
        slot.batch = batch
        self._slot_of[batch] = number
        self._filling += 1
        rows = slot.rows = self._rows(batch)
        # All readers share a batch, so that it is there soon; and each has several tickets ahead of it.
        tickets = max(1, self.readers, -(-TICKETS_EACH * self.readers // self._most_in_flight()))
        if self.readers and not self._any_done:
            tickets = max(tickets, min(FIRST_TICKETS, rows // FIRST_ROWS))
        slot.missing = tickets = min(rows, tickets)
        for part in range(tickets):
            self._pending.append(self._ticket(number, batch, part * rows // tickets, (part + 1) * rows // tickets))
        return number

    def _ticket(self, slot: int, batch: BatchId, start: int, stop: int) -> Ticket:
        self._last_id += 1
        return Ticket(self._last_id, slot, batch, start, stop)
