"""Weighted draws are proportional to the weights in every epoch, and depend only on seed, epoch and position."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from ways import computed, rows

from shmgen import InputError, Loader, TooManyDamaged, Values
from shmgen._plan.order import Order
from shmgen._plan.weighted import WeightedOrder, WeightTable


def drawn(weights: Any, seed: int = 0, epoch: int = 0) -> np.ndarray:
    """All samples that an epoch draws."""
    return WeightedOrder(WeightTable(np.asarray(weights, np.float64)), seed, epoch).part(0, len(weights))


@pytest.mark.parametrize(("samples", "weight"), [(1, 1e300), (2, 1 / 3), (1000, 1e-300), (70_000, 1.0)])
def test_equal_weights_draw_each_sample_once(samples: int, weight: float) -> None:
    """Equal weights give the same order as no weights."""
    np.testing.assert_array_equal(drawn(np.full(samples, weight), 3, 5), Order(samples, 3, 5).part(0, samples))


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_rare_class_is_drawn_as_often_as_a_common_one(interleaved: bool) -> None:
    """Classes of equal total weight get equal shares of every epoch, within one draw; samples within two, in any order."""
    is_rare = np.arange(1000) % 20 == 0 if interleaved else np.arange(1000) < 50
    weights = np.where(is_rare, 1 / 50, 1 / 950)
    for epoch in range(20):
        counts = np.bincount(drawn(weights, epoch=epoch), minlength=1000)
        assert abs(counts[is_rare].sum() - 500) <= 1
        assert 8 <= counts[is_rare].min() <= counts[is_rare].max() <= 12
        assert counts[~is_rare].max() <= 2


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60).filter(any), st.integers(0, 1 << 70), st.integers(0, 1000))
def test_each_sample_comes_as_often_as_its_weight_says(weights: list[float], seed: int, epoch: int) -> None:
    """In any epoch a sample comes as often as its weight says, within two draws, and never if its weight is 0."""
    counts = Counter(drawn(weights, seed, epoch).tolist())
    total = sum(map(Fraction, weights))
    for sample, weight in enumerate(weights):
        expected = Fraction(weight) * len(weights) / total
        assert abs(counts[sample] - expected) < 2 + Fraction(1, 1000)
        assert weight or not counts[sample]


def test_over_many_epochs_the_means_are_the_weights() -> None:
    """Over many epochs the mean number of draws of each sample is proportional to its weight."""
    weights = np.random.default_rng(0).random(40) ** 4
    epochs = 4000
    counts = sum(np.bincount(drawn(weights, epoch=epoch), minlength=40) for epoch in range(epochs))
    expected = epochs * 40 * weights / weights.sum()
    # Each draw is a point in its own equal part of all weights. A sample covers whole parts, each drawn for certain, and a piece
    # of a part at each edge, drawn by chance: at worst like a fair coin.
    assert (np.abs(counts - expected) <= 5 * np.sqrt(epochs * 0.5) + 1).all()


def test_draws_are_shuffled() -> None:
    """The draws of a sample are spread over the whole epoch, and differ between epochs and seeds."""
    weights = np.where(np.arange(2000) < 1000, 9.0, 1.0)
    rows = {key: drawn(weights, *key) for key in ((0, 0), (0, 1), (1, 0))}
    for one in rows.values():
        halves = one < 1000
        assert abs(int(halves[:1000].sum()) - int(halves[1000:].sum())) < 100  # 5 deviations are about 67
    assert not any(np.array_equal(rows[0, 0], other) for key, other in rows.items() if key != (0, 0))


def test_any_part_equals_that_part_of_the_whole() -> None:
    """Any part of an epoch can be computed by itself, so resumed runs and ranks draw the same as a whole run."""
    weights = np.random.default_rng(1).random(70_000)
    order = WeightedOrder(WeightTable(weights), 0, 0)
    whole = order.part(0, 70_000)
    for first, last in ((0, 1), (4095, 4097), (69_990, 70_000), (500, 500)):
        np.testing.assert_array_equal(order.part(first, last), whole[first:last])
    assert whole.dtype == np.int64
    assert not whole.flags.writeable


def test_draws_are_remembered_across_versions() -> None:
    """Draws are the same in every version: they are computed from integers, with no other library's generator."""
    weights = np.array([1, 0, 3, 0.5, 2, 1e-30, 7, 1 / 3])
    assert drawn(weights, 0, 0).tolist() == [7, 6, 2, 6, 6, 6, 2, 0]
    assert drawn(weights, 1 << 70, 9).tolist() == [2, 6, 6, 6, 6, 4, 2, 3]
    assert WeightTable(weights).fingerprint() == "0e5ee84d4bf1024c046f6fb8183eb757"


def test_weights_of_all_sizes() -> None:
    """The largest and smallest floats, and one weight far above all others, are drawn correctly."""
    tiny = np.nextafter(0, 1)
    assert sorted(drawn([tiny] * 5).tolist()) == [0, 1, 2, 3, 4]
    assert drawn([1.0, 1e300, 0.0]).tolist() == [1, 1, 1]
    assert sorted(drawn([np.finfo(float).max] * 3).tolist()) == [0, 1, 2]
    assert drawn([0.0, 0.0, 5.0]).tolist() == [2, 2, 2]
    assert WeightTable(np.array([1.0, tiny])).total > WeightTable(np.array([1.0, 0.0])).total


# Draws in a loader


IDS = [f"id-{number}" for number in range(40)]
WEIGHTS = {id: 9.0 if number < 4 else 1.0 for number, id in enumerate(IDS)}


def loader_of(**options: Any) -> Loader:
    """A loader of 40 ids, of which the first four weigh as much as the rest; rows and labels are the ids' numbers."""
    numbers = {id: number for number, id in enumerate(IDS)}
    given: dict[str, Any] = {"sampling_weights": WEIGHTS, "batch_size": 8, **options}
    return Loader(IDS, numbers, source=lambda id: np.array([int(id[3:])]), **given)


def labels(loader: Loader, epochs: int = 1) -> list[list[int]]:
    """The labels of ``epochs`` epochs, after a check that each belongs to its row."""
    found: list[list[int]] = []
    for _ in range(epochs):
        found.append([])
        for X, y in loader:
            np.testing.assert_array_equal(X[:, 0], y)
            found[-1] += y.tolist()
    return found


def test_a_loader_draws_by_weight() -> None:
    """Half of each epoch are the four heavy samples; epochs differ, and are those of `WeightedOrder`."""
    with loader_of(workers=1) as loader:
        epochs = labels(loader, 3)
    assert all(abs(sum(label < 4 for label in epoch) - 20) <= 1 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    table = WeightTable(np.array(list(WEIGHTS.values())))
    assert epochs == [WeightedOrder(table, 0, epoch).part(0, 40).tolist() for epoch in range(3)]


def test_repeated_draws_are_transformed_differently() -> None:
    """A transform's random numbers depend on the position, so a sample drawn several times is changed differently each time."""
    options: dict[str, Any] = {"sampling_weights": [1.0] + [0.0] * 23, "transform": lambda x, rng: x + rng.random()}
    values = rows(computed(**options), 1)[:, 0]
    assert len(set(values)) == len(values) == 20


@pytest.mark.parametrize(
    "given",
    [
        WEIGHTS,
        list(WEIGHTS.values()),
        np.array(list(WEIGHTS.values()), np.float32),
        WEIGHTS.__getitem__,
        Values(WEIGHTS),
        {id: int(weight) for id, weight in WEIGHTS.items()},
        {id: weight / 3 for id, weight in WEIGHTS.items()},
    ],
    ids=["mapping", "list", "array", "function", "Values", "ints", "scaled"],
)
def test_weights_in_any_form(given: Any) -> None:
    """Weights may be a mapping, a list, an array, a function or Values; only their proportions count."""
    with loader_of(sampling_weights=given, workers=0) as loader, loader_of(workers=0) as other:
        assert labels(loader) == labels(other)


def test_a_resumed_run_has_the_remaining_draws() -> None:
    """A run resumes with the remaining draws, also with another batch size; with other weights the state is refused."""
    with loader_of(workers=0) as loader:
        whole = labels(loader, 2)
    with loader_of(workers=0) as loader:
        batches = iter(loader)
        seen = [next(batches)[1].tolist(), next(batches)[1].tolist()]
        state = loader.state_dict()
    with loader_of(workers=0, batch_size=4) as loader:
        loader.load_state_dict(state)
        rest = [y.tolist() for _, y in loader]
        assert [label for batch in [*seen, *rest] for label in batch] == whole[0]
        assert labels(loader) == whole[1:]
    for other in ({**WEIGHTS, "id-7": 2.0}, None):
        with (
            loader_of(workers=0, sampling_weights=other) as loader,
            pytest.raises(InputError, match=r"expected sampling_weights='.*; give the sampling_weights that it was saved with"),
        ):
            loader.load_state_dict(state)


def test_a_damaged_sample_is_replaced_by_a_drawn_one() -> None:
    """A damaged sample is replaced by a drawn one wherever it comes, and in the same way in every run."""

    def read(id: str) -> np.ndarray:
        if id == "id-1":
            raise ValueError("broken")
        return np.array([int(id[3:])])

    def run() -> list[list[list[int]]]:
        options: dict[str, Any] = {"on_error": "replace", "max_damaged": 0.1, "workers": 0, "sampling_weights": WEIGHTS}
        with Loader(IDS, {id: int(id[3:]) for id in IDS}, 8, source=read, **options) as loader:
            found = [[y.tolist() for _, y in loader] for _ in range(2)]
            assert [damaged.id for damaged in loader.damaged] == ["id-1"]
            assert loader.stats.replaced >= 8
        return found

    first = run()
    assert 1 not in {label for epoch in first for batch in epoch for label in batch}
    assert run() == first


def test_only_damaged_draws_end_the_run() -> None:
    """If only damaged samples are drawn, none can replace them: the run ends with `TooManyDamaged`, and does not hang."""

    def broken(id: str) -> Any:
        raise ValueError("broken")

    with (
        Loader(IDS, None, 8, source=broken, dim=1, n_channels=1, dtype="f4", workers=0, on_error="replace",
               max_damaged=1.0, sampling_weights=[1.0] + [0.0] * 39) as loader,
        pytest.raises(TooManyDamaged),
    ):  # fmt: skip
        list(loader)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({**WEIGHTS, "id-3": -1.0}, r"id 'id-3', sampling_weights: expected a finite number from 0, found -1\.0"),
        ({**WEIGHTS, "id-3": float("inf")}, "id 'id-3', sampling_weights: expected a finite number from 0, found inf"),
        ({**WEIGHTS, "id-3": float("nan")}, "id 'id-3', sampling_weights: expected a finite number from 0, found nan"),
        ({**WEIGHTS, "id-3": "much"}, "id 'id-3', field 'sampling_weights'"),
        ({"id-0": 1.0}, "id 'id-1', field 'sampling_weights': expected a value for each of the 40 ids, found none for 39"),
        ([1.0, 2.0], "field 'sampling_weights': expected a value for each of the 40 ids, found 2"),
        ([0] * 40, "sampling_weights: expected some above 0, found none"),
        ([[1.0, 2.0]] * 40, r"sampling_weights: expected a number for each id, found rows of shape \(2,\)"),
        (5, "field 'sampling_weights': expected a mapping from id to value"),
    ],
)
def test_wrong_weights_are_named(given: Any, text: str) -> None:
    """Wrong weights are an error that names the id, and what was expected."""
    with pytest.raises(InputError, match=text):
        loader_of(sampling_weights=given)


def test_weights_without_shuffling_are_refused() -> None:
    """``sampling_weights`` are refused with ``shuffle=False``: draws do not keep the order of the ids."""
    with pytest.raises(InputError, match="sampling_weights: expected with shuffle=True"):
        loader_of(shuffle=False)
