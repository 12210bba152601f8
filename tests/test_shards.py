"""Several ranks share each batch: what they get together is what one would get alone, in equal steps and rows."""

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
    """What all ranks have, batch by batch."""
    return [as_bytes([np.concatenate(fields) for fields in zip(*ranks, strict=True)]) for ranks in zip(*parts, strict=True)]


@pytest.mark.parametrize(("tail", "shuffle"), [("drop", True), ("wrap", True), ("wrap", False), ("pad", True)])
def test_ranks_have_together_what_one_has_alone(tail: str, shuffle: bool) -> None:
    """Batch by batch, random numbers and weights included; each rank as many rows."""
    options: dict[str, Any] = {"tail": tail, "shuffle": shuffle}
    alone = epoch_of(made(**options))
    for world in (2, 3, 12):
        parts = [epoch_of(made((rank, world), **options)) for rank in range(world)]
        assert {len(X) for part in parts for X, *_ in part} == {BATCH // world}
        assert together(parts) == [as_bytes(batch) for batch in alone]


@pytest.mark.parametrize("tail", ["wrap", "pad"])
def test_a_pass_has_every_sample(tail: str) -> None:
    """Also where there are fewer samples than rows in a batch. What fills it up is the epoch's order, from its start."""
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
def test_padded_rows_weigh_nothing_and_the_mean_is_exact(world: int) -> None:
    """The mean of anything over all rows, weighed, is its mean over the samples; weights of the user's are multiplied."""
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
    """Then weights are what they were, to the bit."""
    weights = np.array([0.1, 0.7, 3], np.float32)
    before = weights.copy()
    Sampler(24, 3, shuffle=False, seed=0, tail=Tail.PAD).weigh(weights, BatchId(0, 7))
    assert (weights == before).all()


def test_a_batch_that_is_read_again_is_weighed_once() -> None:
    """Asked for twice in a pass, it weighs the same."""
    with made(tail="pad") as loader:
        assert [as_bytes(loader.batch(3)[2:]) for _ in range(3)][1:] == [as_bytes(loader.batch(3)[2:])] * 2


def test_weights_that_are_no_floats_cannot_pad() -> None:
    """An int can't be multiplied by a fraction."""
    weights = Function(lambda id: np.int64(1), (), None, "int64")
    with pytest.raises(
        InputError, match="field 'weights': with tail='pad', weights are multiplied: expected floats, found dtype int64"
    ):
        made(tail="pad", weights=weights)


def test_without_targets_there_are_no_weights() -> None:
    """As ``predict`` needs none: what fills the last batch up comes last."""
    with computed(ids=range(10), batch_size=4, shuffle=False, tail="pad", workers=0) as loader:
        assert np.concatenate([X[:, 0, 0] for (X,) in loader]).tolist() == [*range(10), 0, 1]


def test_replacements_are_the_same_on_any_number_of_ranks() -> None:
    """They go by the position in the epoch; also for the rows that fill up the last batch."""

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
def test_any_number_of_ranks_goes_on(tail: str) -> None:
    """One number says where: 3 ranks are interrupted, and 4, 1, and 2 go on with what was left. Each rank's state is the same."""
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
def test_what_cannot_be_shared_is_refused(options: dict[str, Any], expected: str) -> None:
    """Before anything is read, with what to do."""
    with pytest.raises(InputError, match=expected):
        computed(batch_size=BATCH, **options)


def test_the_batch_size_is_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was given; a batch has the rows of this rank, which ``shard="auto"`` finds in the environment."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with made("auto") as loader:
        assert loader.shard == (1, 3)
        assert loader.batch_size == BATCH
        assert len(loader) == N // BATCH
        assert len(loader.batch(0)[0]) == 4
