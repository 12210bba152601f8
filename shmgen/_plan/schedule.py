"""Which slot holds which batch, and which tickets are out. Given an event, it answers what to do.

Pure: no process, no clock, no memory but its own, so every order of events is a plain unit test.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from functools import partial
from itertools import chain, islice
from typing import NamedTuple

from shmgen._plan.sampler import BatchId

PORTIONS = 2
"""The batches in flight are given out in this number of portions."""

TICKETS_EACH = 4
"""Tickets of the batches in flight for each reader: with fewer, readers idle behind slower ones."""

FIRST_TICKETS = 64
"""Tickets that a batch is cut into, at most, until the first one is done: so it is known soon what reading takes."""

FIRST_ROWS = 4
"""But not into tickets of fewer rows than these."""

MAX_OUT = 1024
"""Tickets that are out at one time, at most: this number fits into the queue."""


class State(Enum):
    """What a slot is doing."""

    FREE = "free"
    FILLING = "filling"
    READY = "ready"
    LEASED = "leased"
    LOST = "lost"


class Slot:
    """One slot of the ring, as the schedule sees it: all that is known of the batch in it.

    Attributes:
        number: its number in the ring.
        batch: what it holds; None where it is free, or what it holds will not be delivered.
        rows: the batch's number of rows.
        missing: tickets that have yet to be done.
        tickets: the numbers of all tickets that the batch was cut into.
        error: why the batch can't be delivered, if it can't.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.state = State.FREE
        self.batch: BatchId | None = None
        self.rows = 0
        self.missing = 0
        self.tickets: list[int] = []
        self.error: Exception | None = None

    def __repr__(self) -> str:
        return self.state.value if self.batch is None else f"{self.state.value} {self.batch.epoch}:{self.batch.number}"


class Ticket(NamedTuple):
    """Rows ``start`` to ``stop`` of a batch, to be read into a slot by the reader that takes the ticket.

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


_ticket: Callable[[tuple[int, int, BatchId, int, int]], Ticket] = partial(tuple.__new__, Ticket)
"""A ticket of its fields, without a call of Python's."""


class Schedule:
    """Assigns batches to slots, and cuts them into tickets.

    Args:
        slots: the number of slots of the ring.
        readers: how many readers take tickets at once; 0 where the main process does the tickets, each of which is then a batch.
        rows: the number of rows of a batch.
        in_flight: how many batches are read at once, at most, while readers do not wait for I/O. More than keep the readers busy
            would spread over more memory than the processor's cache holds. That costs a quarter of the speed where the trainer
            waits for every batch.
        is_read: whether the slot of this number says itself that this number of its rows, which are all, have been read. It may,
            before the reports of its last tickets are heard of.

    Attributes:
        readers: see above; may be set.
        waits: whether readers wait for a disk or a network. These do more when they are asked for more at once, so as many
            batches are read then as there are slots.
        rows_done: rows that have been read, those included that were read in vain.
    """

    def __init__(
        self,
        slots: int,
        readers: int,
        rows: Callable[[BatchId], int],
        *,
        in_flight: int,
        is_read: Callable[[int, int], bool] = lambda slot, rows: False,
    ) -> None:
        self.readers = readers
        self.waits = False
        self.rows_done = 0
        self._rows = rows
        self._is_read = is_read
        self._in_flight = in_flight
        self._filling = 0
        self._slots = [Slot(number) for number in range(slots)]
        self._free = list(range(slots))
        # The slots that are neither free nor leased.
        self._slot_of: dict[BatchId, Slot] = {}
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
        """The ring has ``count`` slots more."""
        for _ in range(count):
            self._free.append(len(self._slots))
            self._slots.append(Slot(len(self._slots)))

    def holds(self, batch: BatchId) -> bool:
        """Whether a slot has been given to ``batch``, which has not been handed out."""
        return batch in self._slot_of

    def hand_out(self, batch: BatchId) -> Slot | None:
        """The slot of ``batch``, if that has been read: from now on it is leased. Or it has an error, and is free."""
        slot = self._slot_of.get(batch)
        if slot is None:
            return None
        if slot.missing:
            if not self._is_read(slot.number, slot.rows):
                return None
            # Its last tickets were done, and will be reported. They are not out any more.
            for id in slot.tickets:
                ticket = self._out.pop(id, None)
                if ticket is not None:
                    self.rows_done += ticket[4] - ticket[3]
            slot.missing = 0
            self._filling -= 1
            self._any_done = True
        if slot.error is not None:
            self.free(slot.number)
            return slot
        del self._slot_of[batch]
        slot.state = State.LEASED
        return slot

    def waited_for(self, batch: BatchId) -> list[Slot]:
        """The slots whose batches, once read, end a wait for ``batch``: its own; or any, since it has none."""
        slot = self._slot_of.get(batch)
        return [slot] if slot is not None else [slot for slot in self._slots if slot.state is State.FILLING]

    @property
    def runs_low(self) -> bool:
        """Whether fewer than half of the slots hold a batch that is to be handed out."""
        return 2 * len(self._slot_of) < len(self._slots)

    def assign(self, demanded: Sequence[BatchId], upcoming: Iterable[BatchId]) -> list[Slot]:
        """Give slots to the batches ``demanded`` now, and to those ``upcoming`` next as far as they reach.

        A batch that has been read keeps its slot until one that is wanted more needs it.

        Returns:
            The slots that were given a batch, in the order in which they will be read.
        """
        slot_of, free = self._slot_of, self._free
        missing = False
        for batch in demanded:
            missing = missing or batch not in slot_of
        # If a demanded batch was not read ahead, other batches may have been read in vain.
        self._read_in_vain = self._read_in_vain or missing
        # Work is given out in portions: where workers share a processor with the main process, its time is lost to them.
        most = len(self._slots) if self.waits else min(self._in_flight, len(self._slots))
        has_room = most - self._filling >= max(1, most // PORTIONS)
        if not missing and not (has_room and (free or self._read_in_vain)):
            return []
        wanted: Iterable[BatchId] = chain(demanded, upcoming)
        if self._read_in_vain:
            usable = len(free) + len(slot_of)
            wanted = list(islice(dict.fromkeys(islice(wanted, usable + len(demanded))), usable))
            self._make_room(wanted)
        # All readers share a batch, so that it is there soon; and each has several tickets ahead of it.
        tickets = max(1, self.readers, -(-TICKETS_EACH * self.readers // most))
        given = []
        for batch in wanted:
            if batch in slot_of:
                continue
            if not free or (self._filling >= most and batch not in demanded):
                break
            given.append(self._start(self._slots[free.pop()], batch, tickets))
        return given

    def take(self) -> list[Ticket]:
        """The tickets that are to be given out now."""
        out, pending = self._out, self._pending
        if self._alone in out:
            return []
        if self._suspects:
            if out:
                return []
            tickets = [self._suspects.popleft()]
            self._alone = tickets[0].id
        elif len(pending) + len(out) <= MAX_OUT:
            tickets = list(pending)
            pending.clear()
        else:
            tickets = [pending.popleft() for _ in range(MAX_OUT - len(out))]
        for ticket in tickets:
            out[ticket[0]] = ticket
        return tickets

    def take_back(self, ids: Sequence[int]) -> None:
        """The tickets of these numbers were taken by no reader, and have been taken back."""
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

    def done(self, ids: Iterable[int], error: Exception | None = None) -> None:
        """Tickets have been done, or have failed. Those that are not out are of no interest any more."""
        self._any_done = True
        for id in ids:
            ticket = self._out.pop(id, None)
            if ticket is None:
                continue
            _, number, _, start, stop = ticket
            self.rows_done += stop - start
            slot = self._slots[number]
            if slot.state is not State.LOST:
                slot.missing -= 1
                slot.error = slot.error or error
                if not slot.missing:
                    slot.state = State.READY
                    self._filling -= 1
                    if slot.batch is None:
                        self.free(number)

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
        _, _, batch, start, stop = ticket
        rows = [(row, row + 1) for row in range(start, stop) if row != without] if singly else [(start, stop)]
        slot.missing += len(rows) - 1
        tickets = [self._ticket(slot, batch, first, last) for first, last in rows]
        if alone:
            self._suspects.extend(tickets)
        else:
            self._pending.extendleft(reversed(tickets))  # others of its batch have been read already

    def drop(self, id: int) -> None:
        """A ticket was interrupted: its batch is to be read anew, from the start."""
        batch = self._out[id].batch
        self.done([id])
        self.discard(batch)

    def discard(self, batch: BatchId) -> None:
        """What has been read of ``batch`` ahead, or is being read, is not to be delivered."""
        slot = self._slot_of.pop(batch, None)
        if slot is not None:
            slot.batch = None
            if slot.state is State.READY:
                self.free(slot.number)

    def lose(self, ticket: Ticket) -> bool:
        """The reader of ``ticket``, which is out, can't be killed, and may yet write: its slot is never used again.

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
        """``batch``, which no slot has been given to, can't be delivered. If no slot is free, it is tried again."""
        if not self._free:
            return
        slot = self._slots[self._free.pop()]
        slot.state, slot.batch, slot.error = State.READY, batch, error
        self._slot_of[batch] = slot

    def free(self, number: int) -> None:
        """What is in the slot of this number, which was ready or leased, is no longer needed."""
        slot = self._slots[number]
        if slot.batch is not None and self._slot_of.get(slot.batch) is slot:
            del self._slot_of[slot.batch]
        self._slots[number] = Slot(number)
        self._free.append(number)

    def _make_room(self, wanted: Sequence[BatchId]) -> None:
        """Free slots that hold batches not ``wanted``, as many as are needed."""
        lacking = sum(batch not in self._slot_of for batch in wanted) - len(self._free)
        in_vain = [slot for batch, slot in self._slot_of.items() if batch not in wanted]
        ready = [slot for slot in in_vain if slot.state is State.READY][: max(0, lacking)]
        for slot in ready:
            self.free(slot.number)
        self._read_in_vain = len(in_vain) > len(ready)

    def _start(self, slot: Slot, batch: BatchId, tickets: int) -> Slot:
        """Have ``batch`` read into a slot, in about this number of tickets, of about the same size."""
        slot.state = State.FILLING
        slot.batch = batch
        self._slot_of[batch] = slot
        self._filling += 1
        rows = slot.rows = self._rows(batch)
        if self.readers and not self._any_done:
            tickets = max(tickets, min(FIRST_TICKETS, rows // FIRST_ROWS))
        slot.missing = tickets = min(rows, tickets)
        number, id, start = slot.number, self._last_id, 0
        for part in range(1, tickets + 1):
            stop = part * rows // tickets
            self._pending.append(_ticket((id + part, number, batch, start, stop)))
            start = stop
        self._last_id += tickets
        slot.tickets = list(range(id + 1, id + 1 + tickets))
        return slot

    def _ticket(self, slot: Slot, batch: BatchId, start: int, stop: int) -> Ticket:
        self._last_id += 1
        slot.tickets.append(self._last_id)
        return Ticket(self._last_id, slot.number, batch, start, stop)
