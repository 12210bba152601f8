"""Each iteration gets the next epoch, and each of its batches once, whatever indexes are requested."""

from __future__ import annotations

import random
import tracemalloc
from itertools import islice

import pytest

from shmgen._plan.passes import Pass, Passes, Position
from shmgen._plan.sampler import BatchId


def made(batches: int, *, shuffle: bool = True, epoch: int = 0) -> Passes:
    return Passes(batches, shuffle=shuffle, epoch=epoch)


def deal(passes: Passes, *indexes: int, of: Pass | None = None) -> list[BatchId]:
    return [passes.deal(index, of) for index in indexes]


def ahead(passes: Passes, count: int) -> list[BatchId]:
    return list(islice(passes.upcoming(), count))


def numbered(epoch: int, *numbers: int) -> list[BatchId]:
    return [BatchId(epoch, number) for number in numbers]


def test_batches_are_dealt_in_the_epochs_order() -> None:
    """Whatever indexes Keras requests, batches are handed out in the epoch's order, in which they are read ahead."""
    passes = made(4)
    iteration = passes.open()
    for index, number in [(2, 0), (0, 1), (3, 2), (1, 3)]:
        assert ahead(passes, 1) == [BatchId(0, number)]
        assert deal(passes, index, of=iteration) == [BatchId(0, number)]


@pytest.mark.parametrize("asked", [1, 2, 3])
def test_every_iteration_gets_the_next_epoch(asked: int) -> None:
    """After an iteration, complete or left early, the next one gets the next epoch from its start."""
    passes = made(3, epoch=5)
    for epoch in range(5, 9):
        assert deal(passes, *range(asked), of=passes.open()) == [BatchId(epoch, number) for number in range(asked)]


def test_a_run_resumes_after_the_last_batch() -> None:
    """A run resumes after the last batch handed out; if the consumer requests batches ahead, with the next epoch."""
    passes = made(3)
    deal(passes, 0, of=passes.open(asks_ahead=True))
    assert passes.position == (1, 0)
    deal(passes, 0, of=passes.open())
    assert passes.position == (1, 1)


def test_the_next_epoch_is_read_ahead() -> None:
    """The batches read ahead are those left of this epoch, and then those of the next."""
    passes = made(3, epoch=1)
    assert ahead(passes, 9) == numbered(1, 0, 1, 2) + numbered(2, 0, 1, 2)
    iteration = passes.open()
    deal(passes, 2, 0, of=iteration)
    assert ahead(passes, 9) == numbered(1, 2) + numbered(2, 0, 1, 2)
    deal(passes, 1, of=iteration)
    assert ahead(passes, 9) == numbered(2, 0, 1, 2)


def test_an_iteration_left_early_goes_on_beside_the_next() -> None:
    """An iteration that was left early goes on where it was, beside the next one."""
    passes = made(4)
    left = passes.open()
    deal(passes, 0, of=left)
    new = passes.open()
    assert deal(passes, 1, of=left) == [BatchId(0, 1)]
    assert deal(passes, 0, 1, of=new) == [BatchId(1, 0), BatchId(1, 1)]


def test_an_iteration_taken_back_costs_no_epoch() -> None:
    """After an iteration that was taken back, the next one gets the same epoch."""
    passes = made(3)
    look = passes.open()
    deal(passes, 0, of=look)
    passes.take_back(look)
    assert ahead(passes, 3) == numbered(0, 0, 1, 2)
    assert passes.open().epoch == 0
    assert passes.open().epoch == 1


def test_taking_back_too_late_changes_nothing() -> None:
    """If the next iteration has begun, taking back the first changes nothing: no epoch is used twice."""
    passes = made(3)
    look = passes.open()
    assert passes.open().epoch == 1
    passes.take_back(look)
    assert passes.open().epoch == 2


@pytest.mark.parametrize("asked", [1, 2, 3])
def test_end_starts_the_next_epoch(asked: int) -> None:
    """In a loop by index, complete or left early, `end` starts the next epoch; a second `end` changes nothing."""
    passes = made(3)
    for epoch in range(3):
        assert deal(passes, *range(asked)) == [BatchId(epoch, number) for number in range(asked)]
        passes.end()
        passes.end()
        assert ahead(passes, 3) == numbered(epoch + 1, 0, 1, 2)


def test_an_end_without_a_request_changes_nothing() -> None:
    """`end` before the first request costs no epoch."""
    passes = made(3)
    passes.end()
    assert deal(passes, 0) == [BatchId(0, 0)]


def test_a_request_by_index_costs_no_epoch() -> None:
    """Batches requested by index are of the next epoch, and the next iteration gets the whole of that epoch."""
    passes = made(2)
    assert deal(passes, 0, 1) == [BatchId(0, 0), BatchId(0, 1)]
    assert passes.open().epoch == 0
    assert deal(passes, 1) == [BatchId(1, 0)]
    passes.forget()
    assert deal(passes, 0) == [BatchId(1, 0)]
    assert passes.open().epoch == 1


def test_loops_and_indexes_share_a_pass_until_end() -> None:
    """Until `end`, ``for`` and ``[i]`` get the same batch for the same index."""
    passes = made(3)
    loop = passes.open(by_hand=True)
    assert deal(passes, 0, 1, of=loop) == deal(passes, 0, 1) == [BatchId(0, 0), BatchId(0, 1)]
    passes.end()
    assert deal(passes, 0) == [BatchId(1, 0)]
    assert passes.open().epoch == 1


def test_without_shuffling_index_is_batch() -> None:
    """Without shuffling index i is batch i, and i + 1 is read ahead."""
    passes = made(3, shuffle=False)
    assert deal(passes, 0) == [BatchId(0, 0)]
    assert ahead(passes, 3) == [BatchId(0, 1), BatchId(0, 2), BatchId(1, 0)]


def test_an_unforeseen_order_is_not_read_ahead() -> None:
    """After an index out of sequence nothing is read ahead, until two indexes come in sequence again."""
    passes = made(5, shuffle=False)
    iteration = passes.open()
    assert deal(passes, 3, of=iteration) == [BatchId(0, 3)]
    assert ahead(passes, 1) == []
    deal(passes, 1, 2, of=iteration)
    assert ahead(passes, 1) == [BatchId(0, 3)]
    deal(passes, 3, 4, 0, of=iteration)  # 0 follows the last
    assert ahead(passes, 1) == [BatchId(0, 1)]


def test_iterations_at_once_are_independent() -> None:
    """Two concurrent iterations each get every batch of their epochs once; the last one to request decides what is read ahead."""
    passes = made(2)
    first, second = passes.open(), passes.open()
    found = [passes.deal(0, first), passes.deal(1, second), passes.deal(1, first), passes.deal(0, second)]
    assert found == [BatchId(0, 0), BatchId(1, 0), BatchId(0, 1), BatchId(1, 1)]
    passes.deal(0, first)
    assert ahead(passes, 1) == [BatchId(1, 0)]
    passes.deal(0, second)
    assert ahead(passes, 1) == [BatchId(2, 0)]


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_billion_batches_cost_nothing(shuffle: bool) -> None:
    """A billion batches take no memory if indexes come in order, and otherwise only that for the requested ones."""
    tracemalloc.start()
    try:
        begun = made(10**9, shuffle=shuffle).open()
        for index in range(10_000):
            assert begun.deal(index) == BatchId(0, index)
        next(begun.upcoming())
        in_order = tracemalloc.get_traced_memory()[1]
        for index in range(10**6, 10**9, 10**6):
            begun.deal(index)
        assert begun.deal(10**9 - 1).number == (10_999 if shuffle else 10**9 - 1)
        out_of_order = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert in_order < 100_000
    assert out_of_order < 5_000_000


@pytest.mark.parametrize(("batches", "first"), [(1, 0), (255, 0), (256, 0), (257, 0), (1000, 0), (700, 300)])
def test_random_indexes_keep_their_batches(batches: int, first: int) -> None:
    """Indexes in sequence, then at random, with repeats: each index keeps its batch, also in a pass resumed at ``first``."""
    chance = random.Random(batches)
    rest = list(range(batches // 3, batches))
    chance.shuffle(rest)
    order = [*range(batches // 3), *rest]
    passes = made(first + batches)
    passes.go_to(Position(0, first))
    iteration = passes.open()
    bound: dict[int, int] = {}
    for number, index in enumerate(order):
        bound[index] = iteration.deal(index).number
        assert bound[index] == first + number
        again = chance.choice(order[: number + 1])
        assert iteration.deal(again).number == bound[again]
