"""Ranks share each batch: together they get the batches of a single process, in as many steps, each with as many rows."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from ways import as_bytes, computed

from shmgen import Function, InputError, Loader
from shmgen._plan.sampler import BatchId, Sampler, Shard, Tail

N = 46
BATCH = 12


def made(shard: Any = None, **options: Any) -> Loader:
    options = {"batch_size": BATCH, "workers": 0, "transform": lambda x, rng: x + rng.random(), **options}
    return computed(ids=range(N), labels=range(N), shard=shard, **options)


def epoch_of(loader: Loader) -> list[list[np.ndarray]]:
    with loader:
        return [[array.copy() for array in batch] for batch in loader]


def together(parts: list[list[list[np.ndarray]]]) -> list[list[bytes]]:
    """The batches of all ranks put together."""
    return [as_bytes([np.concatenate(fields) for fields in zip(*ranks, strict=True)]) for ranks in zip(*parts, strict=True)]


@pytest.mark.parametrize(("tail", "shuffle"), [("drop", True), ("wrap", True), ("wrap", False), ("pad", True)])
def test_all_ranks_together_equal_a_single_process(tail: str, shuffle: bool) -> None:
    """All ranks together have the batches of a single process, with its random numbers and weights; each has as many rows."""
    options: dict[str, Any] = {"tail": tail, "shuffle": shuffle}
    alone = epoch_of(made(**options))
    for world in (2, 3, 12):
        parts = [epoch_of(made((rank, world), **options)) for rank in range(world)]
        assert {len(X) for part in parts for X, *_ in part} == {BATCH // world}
        assert together(parts) == [as_bytes(batch) for batch in alone]


@pytest.mark.parametrize("tail", ["wrap", "pad"])
def test_a_pass_has_every_sample(tail: str) -> None:
    """An epoch has every sample, also if they do not fill one batch; its last batch is filled up from the epoch's start."""
    for samples, world in itertools.product((1, 5, 11, 12, 13, 23, 24, 46), (1, 4)):
        samplers = [
            Sampler(samples, 12, shuffle=True, seed=1, tail=Tail(tail), shard=Shard(rank, world)) for rank in range(world)
        ]
        ids = [sampler[BatchId(3, number)] for number in range(samplers[0].batches) for sampler in samplers]
        order = np.concatenate(ids).tolist()
        assert sorted(order[:samples]) == list(range(samples))
        assert order == [order[position % samples] for position in range(len(order))]
        assert len(order) == -(-samples // 12) * 12


@pytest.mark.parametrize("world", [1, 2, 6])
def test_padded_rows_have_weight_0_and_the_mean_is_exact(world: int) -> None:
    """With ``tail="pad"`` a weighted mean over all rows is the mean over the samples; the user's weights are multiplied."""
    given = {number: 0.5 + number for number in range(N)}
    for weights in (None, given):
        parts = [epoch_of(made((rank, world), tail="pad", weights=weights)) for rank in range(world)]
        y, w = (np.concatenate([batch[field] for part in parts for batch in part]) for field in (1, 2))
        assert w.dtype == np.float32
        assert len(y) == 48
        assert (w == 0).sum() == 2
        wanted = np.mean([number**2 * (1 if weights is None else given[number]) for number in range(N)])
        np.testing.assert_allclose((w * y**2.0).mean(), wanted, rtol=1e-6)


def test_a_whole_last_batch_needs_no_padding() -> None:
    """If the last batch is complete, padding changes no bit of the weights."""
    weights = np.array([0.1, 0.7, 3], np.float32)
    before = weights.copy()
    Sampler(24, 3, shuffle=False, seed=0, tail=Tail.PAD).weigh(weights, BatchId(0, 7))
    assert (weights == before).all()


def test_a_batch_requested_again_has_the_same_weights() -> None:
    """A padded batch that is requested again has the same weights."""
    with made(tail="pad") as loader:
        assert [as_bytes(loader.batch(3)[2:]) for _ in range(3)][1:] == [as_bytes(loader.batch(3)[2:])] * 2


def test_int_weights_are_refused_with_tail_pad() -> None:
    """Weights of an int dtype are refused with ``tail="pad"``, which multiplies weights by fractions."""
    weights = Function(lambda id: np.int64(1), (), None, "int64")
    with pytest.raises(
        InputError, match="field 'weights': with tail='pad', weights are multiplied: expected floats, found dtype int64"
    ):
        made(tail="pad", weights=weights)


def test_without_targets_there_are_no_weights() -> None:
    """Without targets ``tail="pad"`` adds no weights, which ``predict`` does not need; the added rows come last."""
    with computed(ids=range(10), batch_size=4, shuffle=False, tail="pad", workers=0) as loader:
        assert np.concatenate([X[:, 0, 0] for (X,) in loader]).tolist() == [*range(10), 0, 1]


def test_replacements_are_the_same_on_any_number_of_ranks() -> None:
    """Replacements of damaged samples do not depend on the number of ranks, not even in rows that fill up a batch."""

    def read(id: int) -> np.ndarray:
        if id % 5 == 0:
            raise ValueError("damaged")
        return np.full(3, id, np.float64)

    options: dict[str, Any] = {"source": read, "on_error": "replace", "max_damaged": 1.0, "tail": "wrap", "workers": 0}
    alone = epoch_of(made(**options))
    parts = [epoch_of(made((rank, 3), **options)) for rank in range(3)]
    assert together(parts) == [as_bytes(batch) for batch in alone]
    assert not any((y % 5 == 0).any() for _, y in alone)


@pytest.mark.parametrize("tail", ["drop", "wrap", "pad"])
def test_any_number_of_ranks_resumes(tail: str) -> None:
    """All ranks have the same state, and any number of ranks resumes from it: here 4, 1 and 2 after 3."""
    whole = [as_bytes(batch) for batch in epoch_of(made(tail=tail))]
    states = []
    for rank in range(3):
        with made((rank, 3), tail=tail) as loader:
            epoch = iter(loader)
            next(epoch)
            next(epoch)
            states.append(loader.state_dict())
    assert states[0] == states[1] == states[2]
    for world in (4, 1, 2):
        parts = []
        for rank in range(world):
            loader = made((rank, world), tail=tail)
            loader.load_state_dict(states[0])
            parts.append(epoch_of(loader))
        assert together(parts) == whole[2:]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"shard": (2, 2)}, r"shard: expected a rank from 0 to 1, found 2 of 2"),
        ({"shard": (-1, 2)}, "rank of shard"),
        ({"shard": (0, 0)}, "world of shard"),
        ({"shard": 2}, r"shard: expected \(rank, world\), 'auto' or None, found 2"),
        ({"shard": "all"}, r"shard: expected \(rank, world\), 'auto' or None, found 'all'"),
        ({"shard": (0, 5)}, "batch_size: expected a multiple of the 5 ranks, since it counts samples of all together, found 12"),
        ({"shard": (0, 2), "tail": "keep"}, "tail='keep': the last batch would have other rows on each of the 2 ranks"),
        ({"tail": "fill"}, "tail: expected 'drop' or 'keep' or 'wrap' or 'pad', found 'fill'"),
        ({"shard": (0, 2), "ids": range(9)}, "expected at least 12 ids, found 9; give more, .* or tail='wrap'"),
    ],
)
def test_options_without_equal_shards_are_refused(options: dict[str, Any], expected: str) -> None:
    """Options that make no equal shards are refused before anything is read, with a remedy."""
    with pytest.raises(InputError, match=expected):
        computed(batch_size=BATCH, **options)


def test_batch_size_counts_the_rows_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """``batch_size`` counts the rows of all ranks; a batch has those of this rank, which ``shard="auto"`` finds out."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with made("auto") as loader:
        assert loader.shard == (1, 3)
        assert loader.batch_size == BATCH
        assert len(loader) == N // BATCH
        assert len(loader.batch(0)[0]) == 4
