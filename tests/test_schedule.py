"""The schedule, told what happened, says what is to be done: every order of events is a plain test."""

from __future__ import annotations

import random
import re
from itertools import count

import pytest

from shmgen._plan.sampler import BatchId
from shmgen._plan.schedule import Piece, Schedule


def batches(first: int = 0) -> list[BatchId]:
    return [BatchId(0, number) for number in range(first, first + 20)]


def schedule(slots: int = 3, workers: int = 2, rows: int = 4, in_flight: int = 8) -> Schedule:
    return Schedule(slots, workers, lambda _: rows, in_flight=in_flight)


def test_all_workers_share_the_same_next_batch() -> None:
    """Rows, not batches, are the unit of work: the first batch is cut for all workers."""
    sends = schedule(slots=1).assign([], batches())
    assert sorted(worker for worker, _ in sends) == [0, 1]
    assert [(piece.start, piece.stop) for _, piece in sends] == [(0, 2), (2, 4)]


@pytest.mark.parametrize(("rows", "workers"), [(1, 3), (7, 3), (5, 5), (64, 7)])
def test_pieces_cover_a_batch_once(rows: int, workers: int) -> None:
    """However rows and workers divide, each row is in one piece and no piece is empty."""
    sends = schedule(slots=1, workers=workers, rows=rows).assign([], batches())
    assert [row for _, piece in sends for row in range(piece.start, piece.stop)] == list(range(rows))
    assert all(piece.start < piece.stop for _, piece in sends)


def test_batches_of_one_row_take_turns() -> None:
    """Workers that hold equally much get work in turn, also where a batch has but one row."""
    sends = schedule(slots=4, workers=2, rows=1).assign([], batches())
    assert sorted(worker for worker, _ in sends) == [0, 0, 1, 1]


def test_who_holds_more_gets_less() -> None:
    """A worker that lags behind gets fewer rows, or none, until the others hold as many."""
    plan = schedule(slots=4, workers=2, rows=10)
    plan.assign([], batches()[:2])
    plan.done(1)
    plan.done(1)
    [(worker, piece)] = plan.assign([BatchId(0, 2)], [])
    assert (worker, piece.start, piece.stop) == (1, 0, 10)
    assert sorted((w, p.stop - p.start) for w, p in plan.assign([BatchId(0, 3)], [])) == [(0, 5), (1, 5)]


def test_a_batch_is_ready_when_its_last_piece_is() -> None:
    """Pieces may be done in any order of workers."""
    plan = schedule()
    plan.assign([], batches())
    assert plan.last_to_finish(BatchId(0, 0)) is not None
    plan.done(1)
    assert plan.ready(BatchId(0, 0)) is None
    assert plan.last_to_finish(BatchId(0, 0)) == 0
    plan.done(0)
    assert plan.ready(BatchId(0, 0)) is not None
    assert plan.last_to_finish(BatchId(0, 0)) is None


def test_in_flight_bounds_what_is_read_ahead_but_not_what_is_demanded() -> None:
    """No more batches are started than in flight, except one that is waited for."""
    plan = schedule(slots=4, in_flight=2)
    assert {piece.batch.number for _, piece in plan.assign([], batches())} == {0, 1}
    assert {piece.batch.number for _, piece in plan.assign([BatchId(0, 9)], [])} == {9}


def test_all_slots_are_in_flight_while_workers_wait() -> None:
    """What a disk or a network keeps waiting is asked for as far ahead as there is room; and no further once it does not."""
    plan = schedule(slots=5, in_flight=2)
    plan.assign([], batches())
    plan.waits = True
    assert {piece.batch.number for _, piece in plan.assign([], batches())} == {2, 3, 4}
    for worker in (0, 1) * 2:
        plan.done(worker)
    for slot in [plan.ready(batch) for batch in batches()[:2]]:
        assert slot is not None
        plan.lease(slot)
        plan.free(slot)
    plan.waits = False
    assert plan.assign([], batches()[2:]) == []


def test_what_was_read_in_vain_gives_way() -> None:
    """When others are wanted, slots that hold batches nobody wants are read into again; those still wanted are kept."""
    plan = schedule(slots=2, workers=1)
    plan.assign([], batches())
    plan.done(0)
    plan.done(0)
    sends = plan.assign([BatchId(0, 7)], [BatchId(0, 1)])
    assert [piece.batch.number for _, piece in sends] == [7]
    assert plan.ready(BatchId(0, 1)) is not None
    assert plan.ready(BatchId(0, 0)) is None


def test_a_slot_being_read_into_is_never_given_away() -> None:
    """Workers can't be called back: a demand waits until a slot has been read, then takes it."""
    plan = schedule(slots=1, workers=1)
    plan.assign([], batches())
    assert plan.assign([BatchId(0, 5)], []) == []
    plan.done(0)
    assert [piece.batch.number for _, piece in plan.assign([BatchId(0, 5)], [])] == [5]


def test_a_leased_batch_asked_for_again_is_read_again() -> None:
    """What was handed out belongs to whom it was handed; the next request gets a slot of its own."""
    plan = schedule(slots=2, workers=1)
    plan.assign([], [BatchId(0, 0)])
    plan.done(0)
    slot = plan.ready(BatchId(0, 0))
    assert slot is not None
    plan.lease(slot)
    [(_, piece)] = plan.assign([BatchId(0, 0)], [])
    assert piece.slot != slot


def test_what_is_discarded_is_read_again() -> None:
    """A batch discarded once read, or while it is read, is not delivered; its slot is free when no worker writes to it."""
    plan = schedule(slots=2, workers=1)
    plan.assign([], [BatchId(0, 0), BatchId(0, 1)])
    plan.done(0)
    plan.discard(BatchId(0, 0))
    plan.discard(BatchId(0, 1))
    assert plan.ready(BatchId(0, 0)) is None
    [(_, piece)] = plan.assign([BatchId(0, 1)], [])
    plan.done(0)
    assert plan.ready(BatchId(0, 1)) is None
    plan.done(0)
    assert plan.ready(BatchId(0, 1)) == piece.slot


def test_a_failed_piece_fails_its_batch_once() -> None:
    """The first error of a batch is kept; once reported and freed, the batch can be read again."""
    plan = schedule(slots=1)
    plan.assign([], batches())
    first = ValueError("first")
    plan.done(0, first)
    plan.done(1, ValueError("second"))
    slot = plan.ready(BatchId(0, 0))
    assert slot is not None
    assert plan.error(slot) is first
    plan.free(slot)
    assert len(plan.assign([BatchId(0, 0)], [])) == 2
    plan.done(0)
    plan.done(1)
    assert plan.error(slot) is None


def test_a_spare_is_never_leased() -> None:
    """Once all slots were held for too long, one is always left to read into."""
    plan = schedule(slots=1, workers=1)
    plan.assign([], [BatchId(0, 0)])
    plan.done(0)
    slot = plan.ready(BatchId(0, 0))
    assert slot is not None
    plan.lease(slot)
    assert not plan.can_lease
    plan.add_slot()
    plan.keep_spare()
    assert not plan.can_lease
    plan.assign([BatchId(0, 1)], [])
    plan.free(slot)
    assert plan.can_lease


def rows_held(plan: Schedule, worker: int) -> list[tuple[int, int, int]]:
    """What a worker has yet to read: number of the batch, first row, and the row behind the last."""
    return [(piece.batch.number, piece.start, piece.stop) for piece in plan.held(worker)]


def test_work_is_given_out_in_portions() -> None:
    """No batch is started, unless one is waited for, before there is room for half of those that may be in flight."""
    plan = schedule(slots=8, workers=1, in_flight=4)
    assert len(plan.assign([], batches())) == 4
    plan.done(0)
    assert plan.assign([], batches()) == []
    assert [piece.batch.number for _, piece in plan.assign([BatchId(0, 15)], batches())] == [15]
    plan.done(0)
    plan.done(0)
    assert [piece.batch.number for _, piece in plan.assign([], batches())] == [4, 5]


@pytest.mark.parametrize(
    ("singly", "next", "held"),
    [
        pytest.param(False, True, [(0, 0, 2), (1, 0, 2)], id="next"),
        pytest.param(False, False, [(1, 0, 2), (0, 0, 2)], id="last"),
        pytest.param(True, True, [(0, 0, 1), (0, 1, 2), (1, 0, 2)], id="singly-next"),
        pytest.param(True, False, [(1, 0, 2), (0, 0, 1), (0, 1, 2)], id="singly-last"),
    ],
)
def test_the_oldest_piece_is_read_once_more(singly: bool, next: bool, held: list[tuple[int, int, int]]) -> None:
    """As it is, or row by row; before what the worker holds besides, or after it. Each piece of it must be done then."""
    plan = schedule(slots=2, workers=1, rows=2)
    plan.assign([], batches())
    again = plan.retry(0, singly=singly, next=next)
    assert rows_held(plan, 0) == held
    assert again == [piece for piece in plan.held(0) if piece.batch.number == 0]
    while plan.held(0):
        assert plan.ready(plan.held(0)[0].batch) is None
        plan.done(0)
    assert None not in (plan.ready(BatchId(0, 0)), plan.ready(BatchId(0, 1)))


def test_what_is_tried_again_is_as_much_work_as_before() -> None:
    """Shares go by the rows that workers hold, in however many pieces."""
    plan = schedule(slots=3, workers=2, rows=4)
    plan.assign([], batches()[:1])
    plan.retry(0, singly=True, next=True)
    assert sorted((w, p.stop - p.start) for w, p in plan.assign([BatchId(0, 1)], [])) == [(0, 2), (1, 2)]


def test_a_piece_is_wanted_while_its_batch_is_in_its_slot() -> None:
    """Not once the batch has been discarded, also while it is read anew in another slot."""
    plan = schedule(slots=2, workers=1)
    plan.assign([], [BatchId(0, 0)])
    [piece] = plan.held(0)
    assert plan.wants(piece)
    plan.discard(BatchId(0, 0))
    assert not plan.wants(piece)
    [(_, other)] = plan.assign([BatchId(0, 0)], [])
    assert not plan.wants(piece)
    assert plan.wants(other)


def test_a_slot_that_may_yet_be_written_to_is_lost() -> None:
    """The batch is read anew elsewhere; what other workers still read into the slot changes nothing."""
    plan = schedule(slots=2, workers=2)
    plan.assign([], [BatchId(0, 0)])
    [piece] = plan.held(0)
    plan.abandon(0)
    assert not plan.holds(BatchId(0, 0))
    assert not plan.wants(piece)
    assert repr(plan) == "slots [free, lost]"
    sends = plan.assign([BatchId(0, 0)], [])
    assert {p.slot for _, p in sends} == {1 - piece.slot}
    plan.done(1)
    assert repr(plan) == "slots [filling 0:0, lost]"
    for worker, _ in sends:
        plan.done(worker)
    assert plan.ready(BatchId(0, 0)) == 1 - piece.slot


def test_two_workers_may_lose_the_same_slot() -> None:
    """It counts once: as many batches as before are in flight then, in the slots that are left and the one that is new."""
    plan = schedule(slots=3, workers=2, in_flight=2)
    plan.assign([], batches())
    assert plan.abandon(0)
    plan.add_slot()
    assert not plan.abandon(1)
    assert repr(plan).count("lost") == 1
    assert {piece.batch.number for _, piece in plan.assign([], batches())} == {0}


def test_a_batch_that_was_discarded_may_lose_its_slot() -> None:
    """The batch is being read elsewhere by then, and stays there."""
    plan = schedule(slots=3, workers=1)
    plan.assign([], [BatchId(0, 0)])
    plan.discard(BatchId(0, 0))
    plan.assign([BatchId(0, 0)], [])
    plan.abandon(0)
    assert plan.holds(BatchId(0, 0))
    plan.done(0)
    assert plan.ready(BatchId(0, 0)) is not None


def test_a_batch_without_a_slot_fails() -> None:
    """It takes a free slot for its error, and can be asked for again once that was told."""
    plan = schedule(slots=1, workers=1)
    plan.assign([], [BatchId(0, 0)])
    plan.abandon(0)
    plan.add_slot()
    error = ValueError("no answer")
    plan.fail(BatchId(0, 0), error)
    slot = plan.ready(BatchId(0, 0))
    assert slot == 1
    assert plan.error(slot) is error
    plan.free(slot)
    assert [piece.slot for _, piece in plan.assign([BatchId(0, 0)], [])] == [1]


@pytest.mark.parametrize("seed", range(60))
def test_any_order_of_events_delivers_every_batch(seed: int) -> None:
    """Random events, faults among them: no slot is given twice, nothing is lost, and what is demanded is delivered, or fails."""
    chance = random.Random(seed)
    slots, workers = chance.randint(2, 6), chance.randint(1, 4)
    fault_rate = chance.choice([0, 0.3])
    plan = Schedule(slots, workers, lambda batch: 1 + batch.number % 5, in_flight=chance.randint(1, slots))
    # What the workers believe to hold, slots in which batches were handed out, and those that a hung worker may write to.
    held: list[list[Piece]] = [[] for _ in range(workers)]
    leased: list[int] = []
    hung: set[int] = set()
    failed: set[BatchId] = set()
    for number in range(200):
        batch = BatchId(0, number if chance.random() < 0.8 else chance.randrange(1000))
        for _ in count():
            for worker, piece in plan.assign([batch], batches(number + 1)):
                assert piece.slot not in leased
                assert piece.slot not in hung
                assert all(other.batch == piece.batch for his in held for other in his if other.slot == piece.slot)
                held[worker].append(piece)
            slot = plan.ready(batch)
            if slot is not None and plan.error(slot):
                failed.remove(batch)
                plan.free(slot)
                continue
            if slot is not None and plan.can_lease:
                assert all(piece.slot != slot for his in held for piece in his)
                plan.lease(slot)
                leased.append(slot)
                break
            if any(held) and (not leased or chance.random() < 0.7):
                worker = chance.choice([worker for worker in range(workers) if held[worker]])
                if chance.random() < fault_rate:
                    strike(plan, worker, held, hung, failed, chance)
                else:
                    held[worker].pop(0)
                    plan.done(worker)
            elif leased:
                plan.free(leased.pop(chance.randrange(len(leased))))
            assert all(list(plan.held(worker)) == held[worker] for worker in range(workers))
    for worker in range(workers):
        while held[worker]:
            held[worker].pop(0)
            plan.done(worker)
    for slot in leased:
        plan.free(slot)
    assert repr(plan).count("lost") == len(hung)
    assert not re.search("filling|leased", repr(plan))


def strike(
    plan: Schedule, worker: int, held: list[list[Piece]], hung: set[int], failed: set[BatchId], chance: random.Random
) -> None:
    """Have a worker fail at, die of, hang in or forget the oldest piece that it holds, as a delivery would tell it."""
    piece = held[worker].pop(0)
    wanted = plan.wants(piece)
    event = chance.choice(["retry", "discard", "hang"])
    if event == "hang":
        assert plan.abandon(worker) == (piece.slot not in hung)
        if piece.slot not in hung:
            hung.add(piece.slot)
            plan.add_slot()
        if wanted and chance.random() < 0.5:
            plan.fail(piece.batch, ValueError("hangs"))
            failed.add(piece.batch)
    elif event == "discard" or not wanted:
        plan.done(worker)
        plan.discard(piece.batch)
    else:
        singly, next = chance.random() < 0.5, chance.random() < 0.5
        again = [piece._replace(start=row, stop=row + 1) for row in range(piece.start, piece.stop)] if singly else [piece]
        assert plan.held(worker)[0] == piece
        assert plan.retry(worker, singly=singly, next=next) == again
        held[worker][:] = again + held[worker] if next else held[worker] + again
