"""The order of an epoch is a pure function of the number of samples, the seed and the epoch."""

from __future__ import annotations

import random

import numpy as np
import pytest

from shmgen._plan.sampler import BatchId, Sampler


def samples_of(order: Sampler, epoch: int) -> list[int]:
    return [int(n) for number in range(order.batches) for n in order[BatchId(epoch, number)]]


@pytest.mark.parametrize(("samples", "batch_size", "drop_last", "sizes"), [
    (10, 4, True, [4, 4]),
    (10, 4, False, [4, 4, 2]),
    (8, 4, False, [4, 4]),
    (3, 4, False, [3]),
    (3, 4, True, []),
])  # fmt: skip
def test_sizes_of_batches(samples: int, batch_size: int, drop_last: bool, sizes: list[int]) -> None:
    """``drop_last`` is the blog's floor; without it the last batch is the shorter one."""
    order = Sampler(samples, batch_size, shuffle=True, seed=0, drop_last=drop_last)
    assert [order.size(BatchId(0, number)) for number in range(order.batches)] == sizes
    assert [len(order[BatchId(0, number)]) for number in range(order.batches)] == sizes


def test_each_epoch_is_a_permutation_of_its_own() -> None:
    """Every sample stands once in an epoch, and two epochs differ."""
    order = Sampler(100, 7, shuffle=True, seed=3, drop_last=False)
    epochs = [samples_of(order, epoch) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    """The same in any sequence of calls and whatever the global random states, which stay as they were."""
    np.random.seed(1)
    random.seed(1)
    before = random.getstate(), str(np.random.get_state())
    forward = Sampler(50, 5, shuffle=True, seed=0, drop_last=True)
    orders = [samples_of(forward, epoch) for epoch in range(4)]
    np.random.seed(2)
    backward = Sampler(50, 5, shuffle=True, seed=0, drop_last=True)
    assert [samples_of(backward, epoch) for epoch in reversed(range(4))][::-1] == orders
    assert samples_of(Sampler(50, 5, shuffle=True, seed=1, drop_last=True), 0) != orders[0]
    np.random.seed(1)
    assert (random.getstate(), str(np.random.get_state())) == before


def test_without_shuffling_samples_come_in_their_order() -> None:
    """Every epoch is the list of ids as it stands."""
    order = Sampler(10, 4, shuffle=False, seed=0, drop_last=False)
    assert samples_of(order, 0) == samples_of(order, 5) == list(range(10))


def test_an_order_is_remembered_across_versions() -> None:
    """A run that is repeated in a year, on other versions, sees the samples in the same order."""
    assert samples_of(Sampler(10, 10, shuffle=True, seed=0, drop_last=True), 1) == [9, 1, 3, 8, 7, 6, 0, 4, 2, 5]
