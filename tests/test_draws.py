"""Random numbers in users' functions are the same wherever the functions run."""

from __future__ import annotations

import functools
import hashlib
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launched import needs
from ways import N, computed, rows

from shmgen import Loader, Values

# Functions are defined inside tests: for a function of this module, workers would import pytest and Keras.


def draws() -> dict[str, Callable[[np.ndarray, Any], None]]:
    """Functions that fill a row with random numbers, by the way they draw them."""
    from random import random as draw

    from numpy.random import normal

    def put(draw_one: Callable[[Any], float]) -> Callable[[np.ndarray, Any], None]:
        def fill(x: np.ndarray, rng: np.random.Generator) -> None:
            for number in range(len(x)):
                x[number] = draw_one(rng)

        return fill

    def kept(x: np.ndarray, rng: np.random.Generator, keep: list[Any] = []) -> None:  # noqa: B006
        keep.append(rng)
        x[:] = keep[0].random(x.shape)

    return {
        "rng": put(lambda rng: rng.random()),
        "rng-half-words": put(lambda rng: rng.integers(1 << 31, dtype=np.uint32)),
        "rng-spawned": put(lambda rng: rng.spawn(1)[0].random()),
        "rng-of-the-first-sample": kept,
        "random-gauss": put(lambda rng: random.gauss()),
        "random-by-name": put(lambda rng: draw()),
        "numpy-normal": put(lambda rng: np.random.normal()),
        "numpy-normal-by-name": put(lambda rng: normal()),
    }


DRAWS = list(draws())


def test_workers_hash_texts_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes of texts are the same in all workers, those that take another's place included; or as the environment says."""
    for given, expected in (None, 0), ("7", 7):
        if given is None:
            monkeypatch.delenv("PYTHONHASHSEED", raising=False)
        else:
            monkeypatch.setenv("PYTHONHASHSEED", given)
        found = rows(computed(lambda n: [float(os.environ["PYTHONHASHSEED"])], dim=1, workers=1))
        assert set(found.ravel()) == {expected}


@functools.cache
def drawn(names: tuple[str, ...], *, workers: int, alike: bool = False, **options: Any) -> dict[str, np.ndarray]:
    """The rows of two epochs, of a loader with a field for each of these ways to draw."""
    fields = {name: Empty() for name in names}
    transform = {name: draws()[name] for name in names}
    ids = [7] * N if alike else range(N)
    np.random.seed(workers)
    random.seed(workers)
    with Loader(ids, None, 5, inputs=fields, transform=transform, tail="keep", workers=workers, **options) as loader:
        batches = [{name: array.copy() for name, array in batch.items()} for _ in range(2) for (batch,) in loader]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in names}


# `random.gauss` makes two numbers and keeps one, which the next sample must not get; other ways to draw would hide that.
TOGETHER = [("random-gauss",), tuple(name for name in DRAWS if name != "random-gauss")]
"""Groups of ways to draw that share a loader, to save time."""


class Empty(Values):
    """Rows of three zeros."""

    def __init__(self) -> None:
        super().__init__(np.zeros((N, 3)), np.float64, by="position")


def test_rows_do_not_depend_on_workers_readers_and_slots() -> None:
    """Rows are the same with any number of workers, readers and slots, whatever the caller's global random states are."""
    for names in TOGETHER:
        expected = drawn(names, workers=0)
        for workers, reads, slots in ((1, 4, 4), (2, 1, 2)):
            found = drawn(names, workers=workers, reads=reads, slots=slots)
            assert [name for name in names if found[name].tobytes() != expected[name].tobytes()] == []


def test_random_numbers_differ_by_sample_epoch_and_seed() -> None:
    """All rows of two epochs and of two seeds differ, even if all ids are the same."""
    for names in TOGETHER:
        found = drawn(names, workers=0, alike=True)
        others = drawn(names, workers=0, alike=True, seed=1)
        counts = {name: len({row.tobytes() for row in (*found[name], *others[name])}) for name in names}
        assert counts == dict.fromkeys(names, 4 * N)


def test_a_batch_requested_again_has_the_same_random_numbers() -> None:
    """A batch that is requested again, in another order, has the same random numbers."""
    with computed(transform=draws()["random-gauss"], workers=2, slots=2, shuffle=False) as loader:
        forwards = [loader.batch(index)[0].copy() for index in range(4)]
        backwards = [loader.batch(index)[0].copy() for index in reversed(range(4))]
    np.testing.assert_array_equal(forwards, backwards[::-1])


HASH = """
import hashlib
from random import gauss, random
from numpy.random import rand

def fill(x, rng):
    x[:, 0] = rng.random(), gauss(0, 1), rand()

with Loader(range(24), None, 5, dim=3, n_channels=1, dtype="f8", source=lambda n: np.full(3, random()), transform=fill,
            workers=2) as loader:
    say(hashlib.sha256(b"".join(X.tobytes() for _ in range(2) for X, in loader)).hexdigest())
"""


def test_the_same_bytes_in_every_run(folder: Callable, script: Callable) -> None:
    """A new process with 2 workers and this one without workers produce the same bytes."""
    from random import gauss

    from numpy.random import rand

    def fill(x: np.ndarray, rng: np.random.Generator) -> None:
        x[:, 0] = rng.random(), gauss(0, 1), rand()

    run = script(HASH, folder(1))
    assert run.end() == 0, run.err
    here = rows(computed(lambda n: np.full(3, random.random()), fill, workers=0), epochs=2)
    assert run.out.strip() == hashlib.sha256(here.tobytes()).hexdigest()


@pytest.mark.parametrize("dim", [(3,), None], ids=["dim-given", "dim-learned"])
def test_the_callers_random_states_are_left_alone(dim: object) -> None:
    """Functions that draw or set seeds do not change the global random states of the calling process."""

    def draw(id: int) -> np.ndarray:
        random.random()
        np.random.normal()
        return np.random.rand(3)

    def seed(x: np.ndarray, rng: object) -> None:
        random.seed(4)
        np.random.seed(4)

    random.seed(12)
    np.random.seed(12)
    random.gauss()
    np.random.normal()
    before = random.getstate(), np.random.get_state(legacy=False)
    rows(computed(draw, seed, dim=dim, n_channels=None if dim is None else 1, workers=0))
    assert random.getstate() == before[0]
    np.testing.assert_equal(np.random.get_state(legacy=False), before[1])


STAND_IN = """
import random
class Generator(random.Random): manual_seed = random.Random.seed
default_generator = Generator()
def rand(count): return [default_generator.random() for _ in range(count)]
"""
"""A module that replaces torch: its draws depend only on the seed of its global generator."""


@pytest.mark.parametrize(
    "real", [False, pytest.param(True, marks=[pytest.mark.torch, needs("torch")])], ids=["stand-in", "torch"]
)
def test_torchs_global_generator_is_reproducible(real: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transform draws the same from torch's global generator in process, after a resume, and after a worker's death."""
    if not real:
        (tmp_path / "torch.py").write_text(STAND_IN)
        monkeypatch.syspath_prepend(tmp_path)

    def draw(x: np.ndarray, rng: object) -> None:
        import torch

        x[:, 0] = np.asarray(torch.rand(3))

    def loader(workers: int) -> Loader:
        return computed(transform=draw, workers=workers, slots=2)

    whole = rows(loader(1))
    assert len(np.unique(whole)) == whole.size
    if real:
        assert (rows(loader(0)) == whole).all()
        return  # each worker imports torch, which takes seconds
    with loader(1) as first:
        next(iter(first))
        state = first.state_dict()
    resumed = loader(1)
    resumed.load_state_dict(state)
    assert (rows(resumed) == whole[5:]).all()
    with loader(1) as dying:
        batches = iter(dying)
        next(batches)
        os.kill(dying.state.workers[0].pid, signal.SIGKILL)
        assert all((X[:, :, 0] == whole[start : start + 5]).all() for start, (X,) in zip((5, 10, 15), batches, strict=True))
        assert dying.stats.restarts == 1
