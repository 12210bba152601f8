"""The schedule is told each event, and decides what is read next: every order of events is a plain test."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from shmgen._plan.sampler import BatchId
from shmgen._plan.schedule import FIRST_ROWS, FIRST_TICKETS, Schedule, Slot, State, Ticket


def batches(first: int = 0) -> list[BatchId]:
    return [BatchId(0, number) for number in range(first, first + 20)]


class Plan(Schedule):
    """A schedule of slots for a number of readers."""

    def __init__(self, slots: int, readers: int, *args: Any, **options: Any) -> None:
        super().__init__(slots, *args, **options)
        self.readers = readers

    def assign(self, demanded: Sequence[BatchId], upcoming: Iterable[BatchId], readers: int | None = None) -> list[Slot]:
        return super().assign(demanded, upcoming, self.readers if readers is None else readers)


def schedule(slots: int = 3, readers: int = 2, rows: int = 4, in_flight: int = 8) -> Plan:
    return Plan(slots, readers, lambda _: rows, in_flight=in_flight)


def begin(plan: Plan, demanded: Sequence[BatchId], upcoming: Sequence[BatchId] = ()) -> list[Ticket]:
    """Give slots to batches, and return the tickets to hand out."""
    plan.assign(demanded, upcoming)
    return plan.take()


def read(plan: Plan, tickets: Sequence[Ticket]) -> None:
    """Report tickets as done."""
    for ticket in tickets:
        plan.done([ticket.id])


def ready(plan: Plan, batch: BatchId) -> int | None:
    """The number of the slot in which a batch is ready; None if it is not."""
    return next((slot.number for slot in plan.slots if slot.batch == batch and slot.state is State.READY), None)


def lease(plan: Plan, number: int) -> None:
    """Hand out the batch in a slot."""
    batch = plan.slots[number].batch
    assert batch is not None
    slot = plan.hand_out(batch)
    assert slot is not None
    assert slot.number == number


def spans(tickets: Sequence[Ticket]) -> list[tuple[int, int, int]]:
    """For each ticket its batch number, its first row, and one past its last row."""
    return [(ticket.batch.number, ticket.start, ticket.stop) for ticket in tickets]


def numbers(tickets: Sequence[Ticket]) -> list[int]:
    """The numbers of the tickets' batches, each once."""
    return list(dict.fromkeys(ticket.batch.number for ticket in tickets))


@pytest.mark.parametrize(("rows", "readers"), [(1, 3), (7, 3), (5, 5), (64, 7), (1000, 3)])
def test_tickets_cover_a_batch_once(rows: int, readers: int) -> None:
    """Each row is in exactly one ticket; tickets are never empty, and their sizes differ by at most one row."""
    plan = schedule(slots=1, readers=readers, rows=rows)
    for _ in range(2):  # the first batch, and a later one
        tickets = begin(plan, [], batches())
        assert [row for ticket in tickets for row in range(ticket.start, ticket.stop)] == list(range(rows))
        sizes = [ticket.stop - ticket.start for ticket in tickets]
        assert min(sizes) > 0
        assert max(sizes) - min(sizes) <= 1
        assert len(tickets) >= min(rows, readers)
        read(plan, tickets)
        plan.cancel(BatchId(0, 0))


def test_readers_have_several_tickets_ahead() -> None:
    """Large and small batches alike give each reader several tickets, so none is idle while the slowest finishes."""
    for in_flight, rows in ((1, 1000), (4, 1000), (8, 1000), (16, 4)):
        plan = schedule(slots=16, readers=4, rows=rows, in_flight=in_flight)
        read(plan, begin(plan, [BatchId(1, 0)]))
        tickets = begin(plan, [], batches())
        assert len(tickets) >= 16
        assert len(tickets) <= 64


def test_the_first_batches_are_cut_into_many_tickets() -> None:
    """Until the first ticket is done, batches are cut into many tickets, so the time of a row is soon known."""
    plan = schedule(slots=4, readers=2, rows=1000, in_flight=2)
    assert len(begin(plan, [BatchId(0, 0)])) == FIRST_TICKETS
    tickets = begin(plan, [BatchId(0, 1)])
    assert len(tickets) == FIRST_TICKETS
    plan.done([tickets[0].id])
    assert len(begin(plan, [BatchId(0, 2)])) < 10
    [first, *_] = begin(schedule(slots=1, readers=1, rows=40), batches()[:1])
    assert first.stop - first.start == FIRST_ROWS


def test_a_row_left_out_of_a_retry_counts_as_read() -> None:
    """A row left out of a retry counts as done: the batch becomes ready, with all of its rows done."""
    plan = schedule(slots=4, readers=1, rows=4)
    [ticket] = begin(plan, [BatchId(0, 0)])
    plan.retry(ticket, singly=True, without=2)
    read(plan, plan.take())
    assert ready(plan, BatchId(0, 0)) == ticket.slot
    assert plan.rows_done == 4


def test_a_batch_is_ready_when_its_last_ticket_is() -> None:
    """Tickets may be done in any order; one reported twice, or an unknown one, is ignored."""
    plan = schedule(rows=8)
    tickets = [ticket for ticket in begin(plan, [], batches()) if ticket.batch.number == 0]
    for ticket in tickets[:0:-1]:
        assert ready(plan, BatchId(0, 0)) is None
        plan.done([ticket.id])
        plan.done([ticket.id])
        plan.done([10_000])
    assert ready(plan, BatchId(0, 0)) is None
    assert plan.ticket(tickets[0].id) == tickets[0]
    plan.done([tickets[0].id])
    assert ready(plan, BatchId(0, 0)) == tickets[0].slot
    assert plan.ticket(tickets[0].id) is None


def test_in_flight_limits_read_ahead_but_not_requests() -> None:
    """Read-ahead starts at most ``in_flight`` batches; batches that a request waits for are started anyway, and first."""
    plan = schedule(slots=4, in_flight=2)
    assert plan.runs_low
    assert numbers(begin(plan, [], batches())) == [0, 1]
    assert not plan.runs_low
    assert numbers(begin(plan, [BatchId(0, 9), BatchId(0, 8)], batches())) == [9, 8]


def test_assign_returns_the_slots_of_the_batches() -> None:
    """`assign` returns the slots given to batches in the order in which these are wanted, each once."""
    plan = schedule(slots=4)
    given = plan.assign([BatchId(0, 3), BatchId(0, 3)], batches())
    assert [slot.batch for slot in given] == [BatchId(0, number) for number in (3, 0, 1, 2)]
    assert {slot.number for slot in given} == {0, 1, 2, 3}
    assert {(ticket.slot, ticket.batch) for ticket in plan.take()} == {(slot.number, slot.batch) for slot in given}


def test_all_slots_are_in_flight_while_readers_wait() -> None:
    """While readers wait for I/O, all slots are filled ahead; once they do not, at most ``in_flight`` again."""
    plan = schedule(slots=5, in_flight=2)
    tickets = begin(plan, [], batches())
    plan.waits = True
    tickets += begin(plan, [], batches())
    assert numbers(tickets) == [0, 1, 2, 3, 4]
    read(plan, [ticket for ticket in tickets if ticket.batch.number < 2])
    for slot in [ready(plan, batch) for batch in batches()[:2]]:
        assert slot is not None
        lease(plan, slot)
        plan.release([slot])
    plan.waits = False
    assert begin(plan, [], batches()[2:]) == []


def test_all_slots_are_filled_while_no_batch_is_waited_for() -> None:
    """When more batches than slots were handed out without a wait, all slots are filled ahead, until the next wait."""
    plan = schedule(slots=4, in_flight=1)
    in_flight = []
    for number in range(8):
        tickets = begin(plan, [], batches(number))
        in_flight.append(len(numbers(tickets)))
        read(plan, tickets)
        slot = plan.hand_out(BatchId(0, number))
        assert slot is not None
        plan.release([slot.number])
    assert in_flight == [1, 1, 1, 1, 1, 4, 1, 1]
    assert plan.is_unhurried
    plan.assign([BatchId(0, 19)], [])
    assert not plan.is_unhurried


def test_unwanted_batches_give_up_their_slots() -> None:
    """If all slots are full, a new batch takes the slot of one no longer wanted; batches still wanted are kept."""
    plan = schedule(slots=2)
    read(plan, begin(plan, [], batches()))
    assert numbers(begin(plan, [BatchId(0, 7)], [BatchId(0, 1)])) == [7]
    assert ready(plan, BatchId(0, 1)) is not None
    assert ready(plan, BatchId(0, 0)) is None


def test_no_more_batches_are_given_up_than_needed() -> None:
    """Batches that were read ahead stay while there are free slots for the wanted ones; they may be wanted later."""
    plan = schedule(slots=4, in_flight=2)
    read(plan, begin(plan, [], batches()))
    tickets = [ticket for number in (7, 8) for ticket in begin(plan, [BatchId(0, number)])]
    assert numbers(tickets) == [7, 8]
    assert ready(plan, BatchId(0, 0)) is not None
    assert ready(plan, BatchId(0, 1)) is not None
    tickets += begin(plan, [BatchId(0, 9)])
    assert numbers(tickets) == [7, 8, 9]
    assert sum(ready(plan, BatchId(0, number)) is not None for number in (0, 1)) == 1
    read(plan, tickets)
    assert numbers(begin(plan, [], batches(7))) == [10]


def test_a_cancelled_batch_is_read_again_on_request() -> None:
    """A batch that was cancelled is read again on request; its old slot is free when its last ticket is done."""
    plan = schedule(slots=2)
    tickets = begin(plan, [], [BatchId(0, 0), BatchId(0, 1)])
    read(plan, [ticket for ticket in tickets if ticket.batch.number == 0])
    plan.cancel(BatchId(0, 0))
    plan.cancel(BatchId(0, 1))
    plan.cancel(BatchId(0, 2))
    assert ready(plan, BatchId(0, 0)) is None
    again = begin(plan, [BatchId(0, 1)])
    read(plan, [ticket for ticket in tickets if ticket.batch.number == 1])
    assert ready(plan, BatchId(0, 1)) is None
    assert repr(plan).count("free") == 1
    read(plan, again)
    assert ready(plan, BatchId(0, 1)) == again[0].slot


def test_a_failed_ticket_fails_its_batch_once() -> None:
    """A batch keeps its first error; when its slot is released, the batch can be read again."""
    plan = schedule(slots=1, rows=9)
    one, *others = begin(plan, [], batches())
    first = ValueError("first")
    plan.done([one.id], first)
    for ticket in others:
        plan.done([ticket.id], ValueError("second"))
    slot = ready(plan, BatchId(0, 0))
    assert slot is not None
    assert plan.slots[slot].error is first
    plan.release([slot])
    read(plan, begin(plan, [BatchId(0, 0)]))
    assert ready(plan, BatchId(0, 0)) == slot
    assert plan.slots[slot].error is None


def test_adding_slots() -> None:
    """If all slots are leased, nothing is read until slots are added, which have the next numbers."""
    plan = schedule(slots=1)
    read(plan, begin(plan, [], [BatchId(0, 0)]))
    slot = ready(plan, BatchId(0, 0))
    assert slot is not None
    assert plan.can_lease
    lease(plan, slot)
    assert not plan.can_lease
    assert begin(plan, [BatchId(0, 1)]) == []
    plan.add_slots(2)
    assert plan.can_lease
    assert {ticket.slot for ticket in begin(plan, [BatchId(0, 1), BatchId(0, 2)])} == {1, 2}
    plan.release([slot])
    assert repr(plan) == "slots [free, filling 0:2, filling 0:1]"


def test_the_slot_of_a_cancelled_batch_can_be_leased_soon() -> None:
    """While a cancelled batch is still being read, its slot counts as one that can be leased soon."""
    plan = schedule(slots=1)
    tickets = begin(plan, [], [BatchId(0, 0)])
    plan.cancel(BatchId(0, 0))
    assert plan.can_lease
    read(plan, tickets)
    assert plan.can_lease


def test_read_ahead_starts_in_portions() -> None:
    """Read-ahead starts no batch before half of ``in_flight`` is free; a batch that a request waits for starts at once."""
    plan = schedule(slots=8, readers=1, in_flight=4, rows=1)
    tickets = begin(plan, [], batches())
    assert len(tickets) == 4
    plan.done([tickets[0].id])
    assert begin(plan, [], batches()) == []
    assert numbers(begin(plan, [BatchId(0, 15)], batches())) == [15]
    read(plan, tickets[1:3])
    assert numbers(begin(plan, [], batches())) == [4, 5]


@pytest.mark.parametrize("singly", [False, True])
@pytest.mark.parametrize("alone", [False, True])
def test_a_ticket_is_retried_whole_or_row_by_row(singly: bool, alone: bool) -> None:
    """A ticket is read again whole or row by row, under new numbers; then its batch is ready."""
    plan = schedule(slots=1, readers=2, rows=6)
    one, *others = begin(plan, [], batches())
    read(plan, others)
    plan.retry(one, singly=singly, alone=alone)
    assert plan.ticket(one.id) is None
    again = []
    while more := plan.take():
        plan.done([one.id])
        assert ready(plan, BatchId(0, 0)) is None
        read(plan, more)
        again += more
    rows = range(one.start, one.stop)
    assert spans(again) == ([(0, row, row + 1) for row in rows] if singly else [(0, one.start, one.stop)])
    assert ready(plan, BatchId(0, 0)) == 0


def test_retries_come_before_new_tickets() -> None:
    """A ticket to be read again comes first, since the other tickets of its batch have been read."""
    plan = schedule(slots=2, readers=1, rows=256)
    [first, *_] = begin(plan, [BatchId(0, 0)])
    plan.assign([BatchId(0, 1)], [])
    plan.retry(first)
    assert spans(plan.take())[0] == (0, first.start, first.stop)


def test_a_ticket_is_wanted_while_its_batch_is_in_its_slot() -> None:
    """A ticket is no longer wanted once its batch was cancelled, even if the batch is read again in another slot."""
    plan = schedule(slots=2, rows=1)
    [ticket] = begin(plan, [], [BatchId(0, 0)])
    assert plan.wants(ticket)
    plan.cancel(BatchId(0, 0))
    assert not plan.wants(ticket)
    [other] = begin(plan, [BatchId(0, 0)])
    assert not plan.wants(ticket)
    assert plan.wants(other)


def test_an_aborted_ticket_restarts_its_batch() -> None:
    """If a ticket is aborted, its whole batch is read again, with the rows that were done."""
    plan = schedule(slots=2, rows=2)
    one, two = begin(plan, [], [BatchId(0, 0)])
    plan.done([two.id])
    plan.aborted(one.id)
    assert not plan.holds(BatchId(0, 0))
    assert repr(plan) == "slots [free, free]"
    read(plan, begin(plan, [BatchId(0, 0)]))
    assert ready(plan, BatchId(0, 0)) is not None


def test_a_slot_that_a_hung_worker_may_write_to_is_lost() -> None:
    """A slot that a hung worker may still write to is given up; its batch is read again in another slot."""
    plan = schedule(slots=2, rows=2, in_flight=1)
    one, two = begin(plan, [], [BatchId(0, 0)])
    assert plan.lose_slot(one)
    assert not plan.holds(BatchId(0, 0))
    assert not plan.wants(one)
    assert repr(plan) == "slots [free, lost]"
    again = begin(plan, [], [BatchId(0, 0)])
    assert {ticket.slot for ticket in again} == {0}
    plan.done([two.id])
    assert repr(plan) == "slots [filling 0:0, lost]"
    read(plan, again)
    assert ready(plan, BatchId(0, 0)) == 0


def test_a_batch_without_a_slot_fails() -> None:
    """The error of a batch without a slot takes a free one; when that is released, the batch can be read again."""
    plan = schedule(slots=1, rows=1)
    [ticket] = begin(plan, [], [BatchId(0, 0)])
    plan.lose_slot(ticket)
    plan.add_slots(1)
    error = ValueError("no answer")
    plan.deliver_error(BatchId(0, 0), error)
    slot = ready(plan, BatchId(0, 0))
    assert slot == 1
    assert plan.slots[slot].error is error
    plan.release([slot])
    assert [ticket.slot for ticket in begin(plan, [BatchId(0, 0)])] == [1]


def test_batches_are_cut_by_the_time_that_rows_take() -> None:
    """Batches with fast rows are one ticket each; batches with slow rows are one ticket for each reader."""
    plan = schedule(slots=4, readers=2, rows=64, in_flight=4)
    counts = []
    for number, row_time in enumerate((1, 1, 100, 1)):
        tickets = begin(plan, [BatchId(0, number)])
        counts.append(len(tickets))
        plan.done([ticket.id for ticket in tickets], times=[(ticket.stop - ticket.start) * row_time for ticket in tickets])
    assert counts == [64 // FIRST_ROWS, 1, 1, 2]


def test_a_batch_is_ready_once_its_sheet_marks_all_rows() -> None:
    """A batch whose sheet marks all rows as read is handed out before its reports arrive; these change nothing then."""
    read_in: set[int] = set()
    plan = Plan(2, 2, lambda _: 4, in_flight=8, is_read=lambda slot, rows: slot in read_in and rows == 4)
    tickets = begin(plan, [], batches())
    first = [ticket for ticket in tickets if ticket.batch.number == 0]
    plan.done([first[0].id])
    assert plan.hand_out(BatchId(0, 0)) is None
    read_in.add(first[0].slot)
    slot = plan.hand_out(BatchId(0, 0))
    assert slot is not None
    assert slot.state is State.LEASED
    assert plan.rows_done == 4
    assert all(plan.ticket(ticket.id) is None for ticket in first)
    plan.done([ticket.id for ticket in first])
    assert slot.state is State.LEASED
    assert plan.rows_done == 4
    read_in.clear()
    plan.release([slot.number])
    again = begin(plan, [], [BatchId(0, 5)])
    plan.done([ticket.id for ticket in first])
    assert {ticket.slot for ticket in again} == {slot.number}
    assert plan.hand_out(BatchId(0, 5)) is None
