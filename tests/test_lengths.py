"""Batches of samples of similar length, and padded rows that are cut to the longest of their batch."""

from __future__ import annotations

from collections import Counter
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest

from shmgen import Function, InputError, Loader, Values
from shmgen._plan.by_length import WINDOW, fingerprint
from shmgen._plan.sampler import BatchId, Sampler, Shard, Tail
from shmgen._plan.weighted import WeightTable

N, B = 1003, 8

LENGTHS = np.random.default_rng(0).integers(1, 200, N)


def sampler(samples: int = N, batch_size: int = B, **options: Any) -> Sampler:
    """A sampler that batches by `LENGTHS`."""
    lengths = np.resize(LENGTHS, samples).astype(float)
    return Sampler(samples, batch_size, **{"shuffle": True, "seed": 1, "tail": Tail.KEEP, "lengths": lengths, **options})


def epoch(one: Sampler, number: int = 0) -> list[np.ndarray]:
    """The samples of each batch of an epoch."""
    return [one[BatchId(number, batch)] for batch in range(one.batches)]


def test_batches_have_similar_lengths() -> None:
    """Lengths in a batch are similar, each sample comes once, and each window of batches has the samples of a plain order."""
    batches, plain = epoch(sampler()), epoch(sampler(lengths=None))
    spread, plain_spread = (np.mean([np.ptp(LENGTHS[batch]) for batch in some[:-1]]) for some in (batches, plain))
    assert spread < 6
    assert plain_spread > 100
    assert sorted(np.concatenate(batches)) == list(range(N))
    for first in range(0, len(plain), WINDOW):
        window = slice(first, first + WINDOW)
        assert set(np.concatenate(batches[window])) == set(np.concatenate(plain[window]))


def test_batches_are_shuffled_after_sorting() -> None:
    """Batches, and rows in a batch, are not in the order of their lengths; epochs and seeds differ."""
    batches = epoch(sampler())[:-1]
    means = [LENGTHS[batch].mean() for batch in batches[:WINDOW]]
    assert abs(np.corrcoef(means, range(WINDOW))[0, 1]) < 0.5
    assert sum(list(LENGTHS[batch]) == sorted(LENGTHS[batch]) for batch in batches) < 5
    together = [{frozenset(batch) for batch in epoch(*of)} for of in ((sampler(),), (sampler(), 1), (sampler(seed=2),))]
    assert not together[0] & together[1]
    assert not together[0] & together[2]


def test_the_last_batch_has_random_lengths() -> None:
    """The samples of the last, shorter batch have random lengths; they are not always the longest."""
    last = np.concatenate([epoch(sampler(), number)[-1] for number in range(60)])
    assert len(last) == 60 * 3
    assert 70 < LENGTHS[last].mean() < 130


def test_the_batches_are_remembered_across_versions() -> None:
    """Batches never change between versions, since saved states depend on them."""
    words = np.concatenate(epoch(sampler())).astype("<i8").tobytes()
    assert blake2b(words, digest_size=8).hexdigest() == "5496325253b1cefd"
    assert fingerprint(np.arange(5.0), B) == "24fe421f7015a273cd34c8f9e72dc65a"


def test_ranks_share_each_batch() -> None:
    """The ranks' batches together are those of one process, and no rank always gets the shorter samples."""
    world = 4
    parts = [epoch(sampler(tail=Tail.DROP, shard=Shard(rank, world))) for rank in range(world)]
    for rows in zip(epoch(sampler(tail=Tail.DROP)), *parts, strict=True):
        np.testing.assert_array_equal(rows[0], np.concatenate(rows[1:]))
    means = [LENGTHS[np.concatenate(part)].mean() for part in parts]
    assert max(means) - min(means) < 1.5


def test_lengths_with_sampling_weights() -> None:
    """Samples that are drawn by weight are drawn as often as without lengths."""
    table = WeightTable(np.resize([1.0, 3.0], N))
    one, other = sampler(weights=table), sampler(weights=table, lengths=None)
    assert Counter(np.concatenate(epoch(one)).tolist()) == Counter(np.concatenate(epoch(other)).tolist())


def ragged(count: int = N) -> Function:
    """Rows of ``LENGTHS[id]`` steps, padded to 200; their elements are the id plus 1."""
    lengths = LENGTHS[:count].tolist()
    return Function(lambda id: np.full((lengths[id], 2), id + 1.0, np.float32), dim=(200, 2), pad_value=0, dtype="float32")


def loader(count: int = 200, **options: Any) -> Loader:
    """Trimmed batches of the rows of `ragged`, and their ids."""
    options = {"inputs": ragged(), "targets": range(count), "batch_size": B, "trim": "longest", "workers": 0, **options}
    return Loader(range(count), **options)


def test_trim_cuts_batches_to_their_longest_row() -> None:
    """With ``trim``, rows and masks are cut to a batch's longest row; lengths and other fields are not changed."""
    x = ragged()
    inputs = {
        "x": x,
        "again": x,
        "mask": x.mask,
        "times": x.mask_along(),
        "length": x.length,
        "other": Function(lambda id: np.zeros(3)),
    }
    found = []
    with loader(inputs=inputs, lengths=LENGTHS[:200].tolist(), workers=1) as batches:
        for X, y in batches:
            longest = LENGTHS[y].max()
            assert X["x"].shape == X["again"].shape == (B, longest, 2)
            assert (X["mask"].shape, X["other"].shape) == ((B, longest, 2), (B, 3))
            assert (X["length"] == LENGTHS[y]).all()
            np.testing.assert_array_equal(X["times"], X["mask"][..., 0])
            np.testing.assert_array_equal(X["x"], X["mask"] * (y[:, None, None] + 1))
            found += y.tolist()
    assert sorted(found) == list(range(200))


def test_each_padded_field_is_trimmed_to_its_own_longest_row() -> None:
    """Padded inputs and targets are each cut to their own longest row, as for a translation."""
    other = Function(lambda id: np.ones(id % 5 + 1), dim=9, pad_value=0)
    with loader(targets={"id": range(200), "y": other}, shuffle=False) as batches:
        for X, y in batches:
            assert (X.shape[1], y["y"].shape[1]) == (LENGTHS[y["id"]].max(), (y["id"] % 5).max() + 1)


def test_lengths_and_resume() -> None:
    """A run with lengths resumes with the same batches; a state of other lengths or another batch size is refused."""
    options: dict[str, Any] = {"lengths": LENGTHS[:200].tolist(), "seed": 3}
    with loader(**options) as whole, loader(**options) as rest:
        batches = iter(whole)
        for _ in range(7):
            next(batches)
        rest.load_state_dict(state := whole.state_dict())
        assert [y.tolist() for _, y in batches] == [y.tolist() for _, y in rest]
    for change in ({"batch_size": 4}, {"lengths": None}, {"lengths": range(1, 201)}):
        with loader(**options | change) as other, pytest.raises(InputError, match="give the lengths and the batch_size"):
            other.load_state_dict(state)


MISTAKES: list[Any] = [
    pytest.param({"trim": "shortest"}, "trim: expected 'longest' or None, found 'shortest'", id="trim"),
    pytest.param(
        {"inputs": Values(range(200))}, "trim: expected a padded field, found none; pass dim and pad_value", id="no-padding"
    ),
    pytest.param({"lengths": range(200), "shuffle": False}, "lengths: expected with shuffle=True", id="no-shuffle"),
    pytest.param({"lengths": range(199)}, "field 'lengths': expected a value for each of the 200 ids, found 199", id="too-few"),
    pytest.param({"lengths": [-1] * 200}, "id 0, lengths: expected a finite number from 0, found -1", id="negative"),
]


@pytest.mark.parametrize(("options", "text"), MISTAKES)
def test_wrong_options_are_refused(options: dict[str, Any], text: str) -> None:
    """Wrong options raise errors that say what was expected and found."""
    with pytest.raises(InputError, match=text):
        loader(**options).close()
