"""Which slot holds which batch, and which tickets are out. Told of an event, it answers what to do."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from itertools import chain, islice, repeat
from typing import NamedTuple

from shmgen._plan.sampler import BatchId

PORTIONS = 2
"""Portions in which the batches in flight are given out."""

TICKETS_EACH = 4
"""Tickets of the batches in flight for each reader. With fewer, fast readers idle while a slow one finishes."""

FIRST_TICKETS, FIRST_ROWS = 64, 4
"""The most tickets of a batch, and the fewest rows of each, until the first is done: it is soon known what reading takes."""

LEAST_MICROSECONDS = 200
"""A ticket takes at least this long, as far as batches are cut: taking and reporting one costs a reader some 60 microseconds."""

RECENT = 1 / 8
"""The weight of the last ticket in the mean time of a row."""


class State(Enum):
    """What a slot is doing."""

    FREE = "free"
    FILLING = "filling"
    READY = "ready"
    LEASED = "leased"
    LOST = "lost"


@dataclass(eq=False)
class Slot:
    """One slot of the ring, and all that is known of the batch in it."""

    number: int
    state: State = State.FREE
    batch: BatchId | None = None  # None where it is free, or its batch will not be delivered
    rows: int = 0
    missing: int = 0  # tickets that have yet to be done
    tickets: list[int] = field(default_factory=list)  # the numbers of all tickets that the batch was cut into
    error: Exception | None = None  # why the batch can't be delivered
    # By row: the sample that replaces a damaged one, and how many have been tried.
    replaced: dict[int, tuple[int, int]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return self.state.value if self.batch is None else f"{self.state.value} {self.batch.epoch}:{self.batch.number}"


class Ticket(NamedTuple):
    """Rows ``start`` to ``stop - 1`` of a batch, to be read into a slot. No number ``id`` is given twice."""

    id: int
    slot: int
    batch: BatchId
    start: int
    stop: int


_ticket: Callable[[tuple[int, int, BatchId, int, int]], Ticket] = partial(tuple.__new__, Ticket)
"""Makes a ticket of its fields without a Python call."""


class Schedule:
    """Assigns batches to slots, and cuts them into tickets.

    While readers do not wait for I/O, at most ``in_flight`` batches are read at once. More than keep the readers busy would not
    fit the processor's cache, and a trainer that waits for every batch would lose a quarter of its speed. ``is_read`` says
    whether the sheet of a slot marks this number of rows as read, which may be before the reports of the last tickets arrive.
    """

    def __init__(
        self,
        slots: int,
        rows: Callable[[BatchId], int],
        *,
        in_flight: int,
        is_read: Callable[[int, int], bool] = lambda slot, rows: False,
    ) -> None:
        # Whether readers wait for a disk or a network. Then as many batches are read at once as there are slots, since storage
        # serves more requests at once faster.
        self.waits = False
        self.rows_done = 0  # those read in vain included
        self._rows = rows
        self._is_read = is_read
        self._in_flight = in_flight
        self._filling = 0
        self._unhurried = 0  # batches handed out since the trainer last had to wait for one
        self.slots = [Slot(number) for number in range(slots)]
        self._free = list(range(slots))
        # The slots that are neither free nor leased.
        self._slot_of: dict[BatchId, Slot] = {}
        self._last_id = 0
        # Tickets to give out; those that are out, by id; and those to give out only while no other is out.
        self._pending: deque[Ticket] = deque()
        self._out: dict[int, Ticket] = {}
        self._suspects: deque[Ticket] = deque()
        self._alone = 0  # the number of the suspect given out last
        self._read_in_vain = False
        self._any_done = False
        self._row_time = 0.0  # microseconds

    def __repr__(self) -> str:
        return f"slots {self.slots}"

    @property
    def out(self) -> int:
        """Tickets in the queue, or taken by a reader."""
        return len(self._out)

    @property
    def can_lease(self) -> bool:
        """Whether any slot is free, filled, or being filled."""
        return bool(self._free or self._slot_of or self._filling)

    def add_slots(self, count: int) -> None:
        for _ in range(count):
            self._free.append(len(self.slots))
            self.slots.append(Slot(len(self.slots)))

    def holds(self, batch: BatchId) -> bool:
        """Whether a slot has been given to ``batch``, which has not been handed out."""
        return batch in self._slot_of

    def hand_out(self, batch: BatchId) -> Slot | None:
        """The slot of ``batch``, leased from now on, if the batch has been read; a slot with an error is released at once."""
        slot = self._slot_of.get(batch)
        if slot is None:
            return None
        if slot.missing:
            if not self._is_read(slot.number, slot.rows):
                return None
            # Reports of its last tickets are still to come; the tickets are no longer out.
            for id in slot.tickets:
                ticket = self._out.pop(id, None)
                if ticket is not None:
                    self.rows_done += ticket[4] - ticket[3]
            self._filling -= 1
            self._any_done = True
        if slot.error is not None:
            self.release([slot.number])
            return slot
        del self._slot_of[batch]
        slot.state = State.LEASED
        self._unhurried += 1
        return slot

    def waited_for(self, batch: BatchId) -> list[Slot]:
        """The slots whose batches, once read, end a wait for ``batch``: its own or, if it has none yet, any."""
        slot = self._slot_of.get(batch)
        return [slot] if slot is not None else [slot for slot in self.slots if slot.state is State.FILLING]

    @property
    def is_unhurried(self) -> bool:
        """Whether more batches than there are slots have been handed out since one had to be waited for."""
        return self._unhurried > len(self.slots)

    @property
    def runs_low(self) -> bool:
        """Whether fewer than half of the slots hold a batch to hand out."""
        return 2 * len(self._slot_of) < len(self.slots)

    def assign(self, demanded: Sequence[BatchId], upcoming: Iterable[BatchId], readers: int) -> list[Slot]:
        """Give slots to the batches ``demanded`` now and, as far as slots are left, to those ``upcoming`` next.

        A batch that has been read keeps its slot until one that is wanted more needs it. There are 0 ``readers`` where the main
        process reads, whole batches. Returns the slots that were given a batch, in the order in which they will be read.
        """
        slot_of, free = self._slot_of, self._free
        missing = any(batch not in slot_of for batch in demanded)
        # Where a demanded batch was not read ahead, others may have been read in vain.
        self._read_in_vain = self._read_in_vain or missing
        if demanded:
            self._unhurried = 0
        # Work is given out in portions: giving it out takes processor time, which workers on the main process's processor lose.
        fills_all = self.waits or self.is_unhurried
        most = len(self.slots) if fills_all else min(self._in_flight, len(self.slots))
        has_room = most - self._filling >= max(1, most // PORTIONS)
        if not missing and not (has_room and (free or self._read_in_vain)):
            return []
        wanted: Iterable[BatchId] = chain(demanded, upcoming)
        if self._read_in_vain:
            usable = len(free) + len(slot_of)
            wanted = list(islice(dict.fromkeys(islice(wanted, usable + len(demanded))), usable))
            self._make_room(wanted)
        # Each batch is cut so that all readers share it and it is ready soon, and so that each reader has several tickets.
        tickets = max(1, readers, -(-TICKETS_EACH * readers // most))
        given = []
        for batch in wanted:
            if batch in slot_of:
                continue
            if not free or (self._filling >= most and batch not in demanded):
                break
            given.append(self._start(self.slots[free.pop()], batch, tickets, is_cut=readers > 0))
        return given

    def take(self) -> list[Ticket]:
        """The tickets to give out now."""
        out, pending = self._out, self._pending
        if self._alone in out:
            return []
        if self._suspects:
            if out:
                return []
            tickets = [self._suspects.popleft()]
            self._alone = tickets[0].id
        else:
            tickets = list(pending)
            pending.clear()
        for ticket in tickets:
            out[ticket[0]] = ticket
        return tickets

    def take_back(self, ids: Sequence[int]) -> None:
        """These tickets, which no reader has taken, are no longer in the queue."""
        for id in reversed(ids):
            ticket = self._out.pop(id)
            if self.slots[ticket.slot].state is not State.LOST:
                (self._suspects if id == self._alone else self._pending).appendleft(ticket)

    @property
    def holds_back(self) -> bool:
        """Whether tickets wait for others to be done before they are given out."""
        return self.has_tickets or self._alone in self._out

    @property
    def has_tickets(self) -> bool:
        return bool(self._pending or self._suspects)

    def ticket(self, id: int) -> Ticket | None:
        return self._out.get(id)

    def wants(self, ticket: Ticket) -> bool:
        """Whether the batch of ``ticket`` will be delivered from its slot."""
        return self.slots[ticket.slot].batch == ticket.batch

    def done(self, ids: Iterable[int], error: Exception | None = None, *, times: Iterable[int] = repeat(0)) -> None:
        """These tickets have been done, in these microseconds (0 if not known), or have failed. Those not out are ignored."""
        self._any_done = True
        for id, time in zip(ids, times, strict=False):
            ticket = self._out.pop(id, None)
            if ticket is None:
                continue
            _, number, _, start, stop = ticket
            self.rows_done += stop - start
            if time:
                self._row_time += RECENT * (time / (stop - start) - self._row_time)
            slot = self.slots[number]
            if slot.state is not State.LOST:
                slot.missing -= 1
                slot.error = slot.error or error
                if not slot.missing:
                    slot.state = State.READY
                    self._filling -= 1
                    if slot.batch is None:
                        self.release([number])

    def retry(self, ticket: Ticket, *, singly: bool = False, alone: bool = False, without: int | None = None) -> None:
        """Have ``ticket``, which is out, read once more, under other numbers.

        With ``singly``, it is cut into tickets of one row each, ``without`` a row that is left out where there are others. With
        ``alone``, it is given out only while no other ticket is out.
        """
        del self._out[ticket.id]
        slot = self.slots[ticket.slot]
        if slot.state is State.LOST:
            return
        _, _, batch, start, stop = ticket
        rows = [(row, row + 1) for row in range(start, stop) if row != without] if singly else [(start, stop)]
        slot.missing += len(rows) - 1
        self.rows_done += without is not None
        tickets = []
        for first, last in rows:
            self._last_id += 1
            slot.tickets.append(self._last_id)
            tickets.append(Ticket(self._last_id, slot.number, batch, first, last))
        if alone:
            self._suspects.extend(tickets)
        else:
            self._pending.extendleft(reversed(tickets))  # first, since others of the batch have been read already

    def aborted(self, id: int) -> None:
        """A ticket was interrupted: its batch is read again from the start."""
        batch = self._out[id].batch
        self.done([id])
        self.cancel(batch)

    def cancel(self, batch: BatchId) -> None:
        """Do not deliver what has been read ahead of ``batch``, or is being read."""
        slot = self._slot_of.pop(batch, None)
        if slot is not None:
            slot.batch = None
            if slot.state is State.READY:
                self.release([slot.number])

    def lose_slot(self, ticket: Ticket) -> bool:
        """Never use the slot of ``ticket`` again: its reader can't be killed, and may yet write there. False if lost already."""
        del self._out[ticket.id]
        slot = self.slots[ticket.slot]
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

    def deliver_error(self, batch: BatchId, error: Exception) -> None:
        """Have a request for ``batch``, which has no slot, raise ``error``. If no slot is free, the batch is read again."""
        if self._free:
            slot = self.slots[self._free.pop()]
            slot.state, slot.batch, slot.error = State.READY, batch, error
            self._slot_of[batch] = slot

    def release(self, numbers: Iterable[int]) -> None:
        """Make these slots, which were ready or leased, free."""
        for number in numbers:
            slot = self.slots[number]
            if slot.batch is not None and self._slot_of.get(slot.batch) is slot:
                del self._slot_of[slot.batch]
            self.slots[number] = Slot(number)
            self._free.append(number)

    def _make_room(self, wanted: Sequence[BatchId]) -> None:
        """Release slots whose batches are not ``wanted``, as many as are needed."""
        lacking = sum(batch not in self._slot_of for batch in wanted) - len(self._free)
        in_vain = [slot for batch, slot in self._slot_of.items() if batch not in wanted]
        ready = [slot for slot in in_vain if slot.state is State.READY][: max(0, lacking)]
        self.release([slot.number for slot in ready])
        self._read_in_vain = len(in_vain) > len(ready)

    def _start(self, slot: Slot, batch: BatchId, tickets: int, *, is_cut: bool) -> Slot:
        """Have ``batch`` read into a slot, in about this number of tickets of about the same size."""
        slot.state = State.FILLING
        slot.batch = batch
        self._slot_of[batch] = slot
        self._filling += 1
        rows = slot.rows = self._rows(batch)
        if is_cut and not self._any_done:
            tickets = max(tickets, min(FIRST_TICKETS, rows // FIRST_ROWS))
        elif self._row_time:
            tickets = min(tickets, max(1, int(rows * self._row_time / LEAST_MICROSECONDS)))
        slot.missing = tickets = min(rows, tickets)
        number, id, start = slot.number, self._last_id, 0
        for part in range(1, tickets + 1):
            stop = part * rows // tickets
            self._pending.append(_ticket((id + part, number, batch, start, stop)))
            start = stop
        self._last_id += tickets
        slot.tickets = list(range(id + 1, id + 1 + tickets))
        return slot
