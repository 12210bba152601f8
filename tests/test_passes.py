"""Batches are dealt: each iteration gets the next epoch, and each batch of it once, whatever indexes are asked for."""

from __future__ import annotations

from itertools import islice

import pytest

from shmgen._order import Batch
from shmgen._passes import Pass, Passes


def made(batches: int, *, shuffle: bool = True, epoch: int = 0) -> Passes:
    return Passes(batches, shuffle=shuffle, epoch=epoch)


def deal(passes: Passes, *indexes: int, of: Pass | None = None) -> list[Batch]:
    return [passes.deal(index, of) for index in indexes]


def ahead(passes: Passes, count: int) -> list[Batch]:
    return list(islice(passes.upcoming(), count))


def test_indexes_in_any_order_get_the_batches_in_theirs() -> None:
    """What is read ahead in the epoch's order is what is asked for next, whatever index Keras names."""
    passes = made(4)
    iteration = passes.open()
    for index, number in [(2, 0), (0, 1), (3, 2), (1, 3)]:
        assert ahead(passes, 1) == [Batch(0, number)]
        assert deal(passes, index, of=iteration) == [Batch(0, number)]


def test_an_index_keeps_its_batch_for_the_pass() -> None:
    """Asked for twice, an index means the same batch, and takes none from the others."""
    passes = made(3)
    assert deal(passes, 1, 1, 0, 1, 2) == [Batch(0, 0), Batch(0, 0), Batch(0, 1), Batch(0, 0), Batch(0, 2)]


@pytest.mark.parametrize("asked", [1, 2, 3])
def test_every_iteration_gets_the_next_epoch(asked: int) -> None:
    """Whole or left early, an iteration is followed by the next epoch, from its start."""
    passes = made(3, epoch=5)
    for epoch in range(5, 9):
        assert deal(passes, *range(asked), of=passes.open()) == [Batch(epoch, number) for number in range(asked)]


def test_the_next_epoch_is_foreseen() -> None:
    """The first batches of the next epoch are read before it begins; no more of them."""
    passes = made(3, epoch=1)
    assert ahead(passes, 9) == [Batch(1, 0), Batch(1, 1)]
    iteration = passes.open()
    deal(passes, 2, 0, of=iteration)
    assert ahead(passes, 9) == [Batch(1, 2), Batch(2, 0), Batch(2, 1)]
    deal(passes, 1, of=iteration)
    assert ahead(passes, 9) == [Batch(2, 0), Batch(2, 1)]


def test_an_iteration_asked_late_takes_none_from_the_next() -> None:
    """One that was left early may yet be asked: it goes on where it was."""
    passes = made(4)
    left = passes.open()
    deal(passes, 0, of=left)
    new = passes.open()
    assert deal(passes, 1, of=left) == [Batch(0, 1)]
    assert deal(passes, 0, 1, of=new) == [Batch(1, 0), Batch(1, 1)]


def test_what_is_taken_back_costs_no_epoch() -> None:
    """An iteration that was but a look is followed by one over the same epoch."""
    passes = made(3)
    look = passes.open()
    deal(passes, 0, of=look)
    passes.take_back(look)
    assert ahead(passes, 9) == [Batch(0, 0), Batch(0, 1)]
    assert passes.open().epoch == 0
    assert passes.open().epoch == 1


def test_what_is_taken_back_too_late_changes_nothing() -> None:
    """Another has begun meanwhile, with the next epoch: no epoch is dealt twice."""
    passes = made(3)
    look = passes.open()
    assert passes.open().epoch == 1
    passes.take_back(look)
    assert passes.open().epoch == 2


@pytest.mark.parametrize("asked", [1, 2, 3])
def test_by_hand_an_end_is_followed_by_the_next_epoch(asked: int) -> None:
    """The blog's own loop, whole or left early: `end` says that what was asked for has been used; twice says it once."""
    passes = made(3)
    for epoch in range(3):
        assert deal(passes, *range(asked)) == [Batch(epoch, number) for number in range(asked)]
        passes.end()
        passes.end()
        assert ahead(passes, 9) == [Batch(epoch + 1, 0), Batch(epoch + 1, 1)]


def test_an_end_without_a_request_changes_nothing() -> None:
    """`end` before the first request costs no epoch."""
    passes = made(3)
    passes.end()
    assert deal(passes, 0) == [Batch(0, 0)]


def test_a_look_costs_nothing() -> None:
    """What is asked for by hand is of the next epoch, which the next iteration gets all the same."""
    passes = made(2)
    assert deal(passes, 0, 1) == [Batch(0, 0), Batch(0, 1)]
    assert passes.open().epoch == 0
    assert deal(passes, 1) == [Batch(1, 0)]
    passes.forget()
    assert deal(passes, 0) == [Batch(1, 0)]
    assert passes.open().epoch == 1


def test_a_look_amid_a_loop_by_hand_is_of_its_pass() -> None:
    """``for`` and ``[i]`` mean the same batch by the same index, until `end`."""
    passes = made(3)
    loop = passes.open(by_hand=True)
    assert deal(passes, 0, 1, of=loop) == deal(passes, 0, 1) == [Batch(0, 0), Batch(0, 1)]
    passes.end()
    assert deal(passes, 0) == [Batch(1, 0)]
    assert passes.open().epoch == 1


def test_without_shuffling_index_is_batch() -> None:
    """Index i is batch i, and i + 1 is foreseen."""
    passes = made(3, shuffle=False)
    assert deal(passes, 0) == [Batch(0, 0)]
    assert ahead(passes, 3) == [Batch(0, 1), Batch(0, 2), Batch(1, 0)]


def test_an_unforeseen_order_is_not_read_ahead() -> None:
    """After an index out of sequence nothing is foreseen until two come in sequence again; misses are counted."""
    passes = made(5, shuffle=False)
    iteration = passes.open()
    assert deal(passes, 3, of=iteration) == [Batch(0, 3)]
    assert ahead(passes, 1) == []
    assert iteration.misses == 1
    deal(passes, 1, 2, of=iteration)
    assert ahead(passes, 1) == [Batch(0, 3)]
    assert iteration.misses == 2


def test_iterations_at_once_are_independent() -> None:
    """Two that are alive at once each get every batch of their epochs once; who was asked last decides what is read ahead."""
    passes = made(2)
    first, second = passes.open(), passes.open()
    found = [passes.deal(0, first), passes.deal(1, second), passes.deal(1, first), passes.deal(0, second)]
    assert found == [Batch(0, 0), Batch(1, 0), Batch(0, 1), Batch(1, 1)]
    passes.deal(0, first)
    assert ahead(passes, 1) == [Batch(1, 0)]
    passes.deal(0, second)
    assert ahead(passes, 1) == [Batch(2, 0)]
