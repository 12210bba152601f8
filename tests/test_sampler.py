"""The order of an epoch is a pure function of the number of samples, the seed and the epoch."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from shmgen._plan.order import Order
from shmgen._plan.sampler import BatchId, Sampler, Shard, Tail


def samples_of(order: Sampler, epoch: int) -> list[int]:
    return [int(n) for number in range(order.batches) for n in order[BatchId(epoch, number)]]


@pytest.mark.parametrize(("samples", "batch_size", "tail", "sizes"), [
    (10, 4, "drop", [4, 4]),
    (10, 4, "keep", [4, 4, 2]),
    (8, 4, "keep", [4, 4]),
    (3, 4, "keep", [3]),
    (3, 4, "drop", []),
])  # fmt: skip
def test_sizes_of_batches(samples: int, batch_size: int, tail: str, sizes: list[int]) -> None:
    """``tail="drop"`` drops an incomplete last batch, as the blog does; ``tail="keep"`` keeps it."""
    order = Sampler(samples, batch_size, shuffle=True, seed=0, tail=Tail(tail))
    assert [order.size(BatchId(0, number)) for number in range(order.batches)] == sizes
    assert [len(order[BatchId(0, number)]) for number in range(order.batches)] == sizes


@pytest.mark.parametrize("shard", [(0, 1), (1, 2)])
@pytest.mark.parametrize("tail", [Tail.DROP, Tail.KEEP, Tail.WRAP])
def test_several_batches_at_once_equal_those_one_by_one(tail: Tail, shard: tuple[int, int]) -> None:
    """The samples of several batches at once, in any order and of several epochs, are those of each batch by itself."""
    sampler = Sampler(10, 4, shuffle=True, seed=0, tail=tail, shard=Shard(*shard))
    for numbers in ([(0, 0), (0, 1)], [(0, 1), (0, 0)], [(0, 1), (0, 2)], [(0, 0), (1, 1)], [(0, 0), (0, 0), (0, 2)]):
        batches = [BatchId(*number) for number in numbers]
        if tail is not Tail.KEEP or sampler.shard.world == 1:
            for found, batch in zip(sampler.samples_of(batches), batches, strict=True):
                np.testing.assert_array_equal(found, sampler[batch])


def test_order_depends_on_seed_and_epoch_alone() -> None:
    """The order depends neither on the sequence of calls nor on global random states, and does not change those."""
    np.random.seed(1)
    random.seed(1)
    before = random.getstate(), str(np.random.get_state())
    forward = Sampler(50, 5, shuffle=True, seed=0, tail=Tail.DROP)
    orders = [samples_of(forward, epoch) for epoch in range(4)]
    np.random.seed(2)
    backward = Sampler(50, 5, shuffle=True, seed=0, tail=Tail.DROP)
    assert [samples_of(backward, epoch) for epoch in reversed(range(4))][::-1] == orders
    assert samples_of(Sampler(50, 5, shuffle=True, seed=1, tail=Tail.DROP), 0) != orders[0]
    np.random.seed(1)
    assert (random.getstate(), str(np.random.get_state())) == before


def test_without_shuffling_samples_come_in_their_order() -> None:
    """Without shuffling every epoch is the list of ids in its order."""
    order = Sampler(10, 4, shuffle=False, seed=0, tail=Tail.KEEP)
    assert samples_of(order, 0) == samples_of(order, 5) == list(range(10))


def test_samples_are_shuffled_over_all_batches() -> None:
    """The batches of an epoch are its whole order, also if there are too many samples to sort."""
    for samples in (1000, 70_001):
        order = Sampler(samples, 96, shuffle=True, seed=3, tail=Tail.KEEP)
        assert samples_of(order, 2) == Order(samples, 3, 2).part(0, samples).tolist()


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_billion_samples_take_no_memory(shuffle: bool) -> None:
    """A billion samples take no memory, neither at the start nor for any batch or replacement."""
    tracemalloc.start()
    try:
        order = Sampler(10**9, 64, shuffle=shuffle, seed=0, tail=Tail.DROP)
        for number in (0, 1, order.batches // 2, order.batches - 1):
            for epoch in (0, 1):
                assert len(set(order[BatchId(epoch, number)].tolist())) == 64
                order.replacement(BatchId(epoch, number), 5, 0)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 1_000_000


def replacements(sampler: Sampler, batch: BatchId, row: int, count: int) -> list[int]:
    return [sampler.replacement(batch, row, tried) for tried in range(count)]


@pytest.mark.parametrize(
    ("samples", "batch_size", "tail", "shuffle"),
    [(10, 4, "drop", True), (10, 4, "drop", False), (10, 4, "keep", True), (2, 1, "drop", False), (70_000, 64, "drop", True)],
)
def test_a_replacement_is_another_sample_of_the_epoch(samples: int, batch_size: int, tail: str, shuffle: bool) -> None:
    """A replacement is never the sample itself or one that ``tail="drop"`` leaves out, and in time each of the others."""
    sampler = Sampler(samples, batch_size, shuffle=shuffle, seed=1, tail=Tail(tail))
    dealt = set(samples_of(sampler, 3))
    for number in {0, sampler.batches - 1}:
        for row in range(min(2, sampler.size(BatchId(3, number)))):
            batch = BatchId(3, number)
            found = set(replacements(sampler, batch, row, 200))
            assert found <= dealt - {int(sampler[batch][row])}
            assert samples > 10 or found == dealt - {int(sampler[batch][row])}


def test_replacements_are_even() -> None:
    """Each other sample is about equally often the replacement."""
    sampler = Sampler(10, 5, shuffle=True, seed=0, tail=Tail.DROP)
    found = Counter(sampler.replacement(BatchId(epoch, 1), 2, tried) for epoch in range(2000) for tried in range(5))
    assert all(abs(count - 1000) < 5 * 1000**0.5 for count in found.values())


def test_replacements_are_remembered_across_versions() -> None:
    """Replacements depend only on seed, epoch, position and try, and are the same in every version."""
    sampler = Sampler(100, 8, shuffle=True, seed=7, tail=Tail.DROP)
    assert replacements(sampler, BatchId(2, 3), 1, 5) == [15, 84, 9, 78, 25]
    assert replacements(sampler, BatchId(2, 3), 2, 5) != [15, 84, 9, 78, 25]
    by_other_batches = Sampler(96, 8, shuffle=True, seed=7, tail=Tail.DROP), Sampler(96, 24, shuffle=True, seed=7, tail=Tail.DROP)
    assert by_other_batches[0].replacement(BatchId(0, 4), 1, 0) == by_other_batches[1].replacement(BatchId(0, 1), 9, 0)
