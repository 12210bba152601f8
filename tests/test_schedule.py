"""The schedule, told what happened, says what is to be done: every order of events is a plain test."""

from __future__ import annotations

import random
from itertools import count

import pytest

from shmgen._order import Batch
from shmgen._schedule import Piece, Schedule


def batches(first: int = 0) -> list[Batch]:
    return [Batch(0, number) for number in range(first, first + 20)]


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
    [(worker, piece)] = plan.assign([Batch(0, 2)], [])
    assert (worker, piece.start, piece.stop) == (1, 0, 10)
    assert sorted((w, p.stop - p.start) for w, p in plan.assign([Batch(0, 3)], [])) == [(0, 5), (1, 5)]


def test_a_batch_is_ready_when_its_last_piece_is() -> None:
    """Pieces may be done in any order of workers."""
    plan = schedule()
    plan.assign([], batches())
    assert plan.last_to_finish(Batch(0, 0)) is not None
    plan.done(1)
    assert plan.ready(Batch(0, 0)) is None
    assert plan.last_to_finish(Batch(0, 0)) == 0
    plan.done(0)
    assert plan.ready(Batch(0, 0)) is not None
    assert plan.last_to_finish(Batch(0, 0)) is None


def test_in_flight_bounds_what_is_read_ahead_but_not_what_is_demanded() -> None:
    """No more batches are started than in flight, except one that is waited for."""
    plan = schedule(slots=4, in_flight=2)
    assert {piece.batch.number for _, piece in plan.assign([], batches())} == {0, 1}
    assert {piece.batch.number for _, piece in plan.assign([Batch(0, 9)], [])} == {9}


def test_what_was_read_in_vain_gives_way() -> None:
    """When others are wanted, slots that hold batches nobody wants are read into again; those still wanted are kept."""
    plan = schedule(slots=2, workers=1)
    plan.assign([], batches())
    plan.done(0)
    plan.done(0)
    sends = plan.assign([Batch(0, 7)], [Batch(0, 1)])
    assert [piece.batch.number for _, piece in sends] == [7]
    assert plan.ready(Batch(0, 1)) is not None
    assert plan.ready(Batch(0, 0)) is None


def test_a_slot_being_read_into_is_never_given_away() -> None:
    """Workers can't be called back: a demand waits until a slot has been read, then takes it."""
    plan = schedule(slots=1, workers=1)
    plan.assign([], batches())
    assert plan.assign([Batch(0, 5)], []) == []
    plan.done(0)
    assert [piece.batch.number for _, piece in plan.assign([Batch(0, 5)], [])] == [5]


def test_a_leased_batch_asked_for_again_is_read_again() -> None:
    """What was handed out belongs to whom it was handed; the next request gets a slot of its own."""
    plan = schedule(slots=2, workers=1)
    plan.assign([], [Batch(0, 0)])
    plan.done(0)
    slot = plan.ready(Batch(0, 0))
    assert slot is not None
    plan.lease(slot)
    [(_, piece)] = plan.assign([Batch(0, 0)], [])
    assert piece.slot != slot


def test_what_is_discarded_is_read_again() -> None:
    """A batch discarded once read, or while it is read, is not delivered; its slot is free when no worker writes to it."""
    plan = schedule(slots=2, workers=1)
    plan.assign([], [Batch(0, 0), Batch(0, 1)])
    plan.done(0)
    plan.discard(Batch(0, 0))
    plan.discard(Batch(0, 1))
    assert plan.ready(Batch(0, 0)) is None
    [(_, piece)] = plan.assign([Batch(0, 1)], [])
    plan.done(0)
    assert plan.ready(Batch(0, 1)) is None
    plan.done(0)
    assert plan.ready(Batch(0, 1)) == piece.slot


def test_a_failed_piece_fails_its_batch_once() -> None:
    """The first error of a batch is kept; once reported and freed, the batch can be read again."""
    plan = schedule(slots=1)
    plan.assign([], batches())
    first = ValueError("first")
    plan.done(0, first)
    plan.done(1, ValueError("second"))
    slot = plan.ready(Batch(0, 0))
    assert slot is not None
    assert plan.error(slot) is first
    plan.free(slot)
    assert len(plan.assign([Batch(0, 0)], [])) == 2
    plan.done(0)
    plan.done(1)
    assert plan.error(slot) is None


def test_a_spare_is_never_leased() -> None:
    """Once all slots were held for too long, one is always left to read into."""
    plan = schedule(slots=1, workers=1)
    plan.assign([], [Batch(0, 0)])
    plan.done(0)
    slot = plan.ready(Batch(0, 0))
    assert slot is not None
    plan.lease(slot)
    assert not plan.can_lease
    plan.add_slot()
    plan.keep_spare()
    assert not plan.can_lease
    plan.assign([Batch(0, 1)], [])
    plan.free(slot)
    assert plan.can_lease


@pytest.mark.parametrize("seed", range(30))
def test_any_order_of_events_delivers_every_batch(seed: int) -> None:
    """Random events: no slot is ever given twice, nothing is lost, and each batch is delivered when it is demanded."""
    chance = random.Random(seed)
    slots, workers = chance.randint(2, 6), chance.randint(1, 4)
    plan = Schedule(slots, workers, lambda batch: 1 + batch.number % 5, in_flight=chance.randint(1, slots))
    held: list[list[Piece]] = [[] for _ in range(workers)]
    leased: list[int] = []
    busy: dict[int, int] = {}
    for number in range(200):
        batch = Batch(0, number if chance.random() < 0.8 else chance.randrange(1000))
        for _ in count():
            for worker, piece in plan.assign([batch], batches(number + 1)):
                assert piece.slot not in leased
                busy[piece.slot] = busy.get(piece.slot, 0) + 1
                held[worker].append(piece)
            slot = plan.ready(batch)
            if slot is not None and plan.can_lease:
                assert busy.get(slot, 0) == 0
                plan.lease(slot)
                leased.append(slot)
                break
            if any(held) and (not leased or chance.random() < 0.7):
                worker = chance.choice([worker for worker in range(workers) if held[worker]])
                busy[held[worker].pop(0).slot] -= 1
                plan.done(worker)
            elif leased:
                plan.free(leased.pop(chance.randrange(len(leased))))
