"""Weighted draws: in proportion to the weights in every epoch, by seed, epoch and position alone."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmgen._plan.order import Order
from shmgen._plan.weighted import WeightedOrder, WeightTable, _scaled


def drawn(weights: Any, seed: int = 0, epoch: int = 0) -> np.ndarray:
    """All samples that an epoch draws."""
    return WeightedOrder(WeightTable(np.asarray(weights, np.float64)), seed, epoch).part(0, len(weights))


@pytest.mark.parametrize("samples", [1, 2, 1000, 70_000])
@pytest.mark.parametrize("weight", [1.0, 1 / 3, 1e-300, 1e300])
def test_equal_weights_draw_each_sample_once(samples: int, weight: float) -> None:
    """It is the same order as without weights."""
    np.testing.assert_array_equal(drawn(np.full(samples, weight), 3, 5), Order(samples, 3, 5).part(0, samples))


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_rare_class_is_drawn_as_often_as_a_common_one(interleaved: bool) -> None:
    """In every epoch, to within one draw, however the list is sorted; each of its samples as often as the next, to within two."""
    is_rare = np.arange(1000) % 20 == 0 if interleaved else np.arange(1000) < 50
    weights = np.where(is_rare, 1 / 50, 1 / 950)
    for epoch in range(20):
        counts = np.bincount(drawn(weights, epoch=epoch), minlength=1000)
        assert abs(counts[is_rare].sum() - 500) <= 1
        assert 8 <= counts[is_rare].min() <= counts[is_rare].max() <= 12
        assert counts[~is_rare].max() <= 2


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60).filter(any), st.integers(0, 1 << 70), st.integers(0, 1000))
def test_each_sample_comes_as_often_as_its_weight_says(weights: list[float], seed: int, epoch: int) -> None:
    """To within two draws in any epoch; never, if its weight is 0."""
    counts = Counter(drawn(weights, seed, epoch).tolist())
    total = sum(map(Fraction, weights))
    for sample, weight in enumerate(weights):
        expected = Fraction(weight) * len(weights) / total
        assert abs(counts[sample] - expected) < 2 + Fraction(1, 1000)
        assert weight or not counts[sample]


def test_over_many_epochs_the_means_are_the_weights() -> None:
    """Chance favours nobody, whatever edges of parts a sample lies at."""
    weights = np.random.default_rng(0).random(40) ** 4
    epochs = 4000
    counts = sum(np.bincount(drawn(weights, epoch=epoch), minlength=40) for epoch in range(epochs))
    expected = epochs * 40 * weights / weights.sum()
    # A sample's count in an epoch is that of at most two edges, each a fair coin at worst, and whole parts between them.
    assert (np.abs(counts - expected) <= 5 * np.sqrt(epochs * 0.5) + 1).all()


def test_what_is_drawn_is_shuffled() -> None:
    """The same sample's draws lie anywhere in the epoch, and each epoch and seed has draws of its own."""
    weights = np.where(np.arange(2000) < 1000, 9.0, 1.0)
    rows = {key: drawn(weights, *key) for key in ((0, 0), (0, 1), (1, 0))}
    for one in rows.values():
        halves = one < 1000
        assert abs(int(halves[:1000].sum()) - int(halves[1000:].sum())) < 100  # 5 deviations are about 67
    assert not any(np.array_equal(rows[0, 0], other) for key, other in rows.items() if key != (0, 0))


def test_any_part_is_that_of_the_whole() -> None:
    """Positions are computed by themselves: so a resumed run, and every rank, draws what one whole run draws."""
    weights = np.random.default_rng(1).random(70_000)
    order = WeightedOrder(WeightTable(weights), 0, 0)
    whole = order.part(0, 70_000)
    for first, last in ((0, 1), (4095, 4097), (69_990, 70_000), (500, 500)):
        np.testing.assert_array_equal(order.part(first, last), whole[first:last])
    assert whole.dtype == np.int64
    assert not whole.flags.writeable


def test_draws_are_remembered_across_versions() -> None:
    """They are made of integers of our own, and of nothing that another version may change."""
    weights = np.array([1, 0, 3, 0.5, 2, 1e-30, 7, 1 / 3])
    assert drawn(weights, 0, 0).tolist() == [7, 6, 2, 6, 6, 6, 2, 0]
    assert drawn(weights, 1 << 70, 9).tolist() == [2, 6, 6, 6, 6, 4, 2, 3]


def test_weights_of_all_sizes() -> None:
    """The largest and the smallest floats, and a sample that outweighs all others together, do as they say."""
    tiny = np.nextafter(0, 1)
    assert sorted(drawn([tiny] * 5).tolist()) == [0, 1, 2, 3, 4]
    assert drawn([1.0, 1e300, 0.0]).tolist() == [1, 1, 1]
    assert sorted(drawn([np.finfo(float).max] * 3).tolist()) == [0, 1, 2]
    assert drawn([0.0, 0.0, 5.0]).tolist() == [2, 2, 2]
    assert WeightTable(np.array([1.0, tiny])).total > WeightTable(np.array([1.0, 0.0])).total


@given(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 62) - 1))
def test_products_of_128_bits(word: int, below: int) -> None:
    """Their upper halves are those of Python's own ints."""
    assert _scaled(np.array([word], np.uint64), np.array([below], np.uint64)).tolist() == [word * below >> 64]
