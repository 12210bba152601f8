"""What users' functions draw at random is the same wherever they run."""

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

# Functions stand inside of tests: one of the module itself would have workers import pytest and Keras.

WORKERS = [pytest.param(0, id="in-process"), pytest.param(2, id="2-workers")]
ONE = [pytest.param(0, id="in-process"), pytest.param(1, id="1-worker")]


def draws() -> dict[str, Callable[[np.ndarray, Any], None]]:
    """Functions that fill a row with random numbers."""
    from random import gauss
    from random import random as draw

    from numpy.random import normal, rand

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
        "rng-normal": put(lambda rng: rng.standard_normal()),
        "rng-spawned": put(lambda rng: rng.spawn(1)[0].random()),
        "rng-of-the-first-sample": kept,
        "random": put(lambda rng: random.random()),
        "random-gauss": put(lambda rng: random.gauss()),
        "random-randint": put(lambda rng: random.randint(0, 1 << 40)),
        "random-by-name": put(lambda rng: draw()),
        "random-gauss-by-name": put(lambda rng: gauss(0, 1)),
        "numpy": put(lambda rng: np.random.random()),
        "numpy-normal": put(lambda rng: np.random.normal()),
        "numpy-by-name": put(lambda rng: rand()),
        "numpy-normal-by-name": put(lambda rng: normal()),
    }


DRAWS = [
    "rng", "rng-half-words", "rng-normal", "rng-spawned", "rng-of-the-first-sample", "random", "random-gauss", "random-randint",
    "random-by-name", "random-gauss-by-name", "numpy", "numpy-normal", "numpy-by-name", "numpy-normal-by-name",
]  # fmt: skip


@functools.cache
def drawn(names: tuple[str, ...], *, workers: int, alike: bool = False, **options: Any) -> dict[str, np.ndarray]:
    """Two epochs' rows of a loader that has a field for each of these ways to draw."""
    fields = {name: Empty() for name in names}
    transform = {name: draws()[name] for name in names}
    ids = [7] * N if alike else range(N)
    np.random.seed(workers)
    random.seed(workers)
    with Loader(ids, None, 5, inputs=fields, transform=transform, tail="keep", workers=workers, **options) as loader:
        batches = [{name: array.copy() for name, array in batch.items()} for _ in range(2) for (batch,) in loader]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in names}


def together(name: str) -> tuple[str, ...]:
    """The ways to draw that share a loader with this one, to save time."""
    # Of two Gaussian draws `random` keeps the second, which the next sample must not inherit; others' draws would hide that.
    return (name,) if name == "random-gauss" else tuple(each for each in DRAWS if each != "random-gauss")


class Empty(Values):
    """Rows of three zeros."""

    def __init__(self) -> None:
        super().__init__(np.zeros((N, 3)), np.float64, by="position")


@pytest.mark.parametrize(
    ("workers", "options"),
    [
        pytest.param(0, {"slots": 2}, id="in-process"),
        pytest.param(1, {}, id="1-worker"),
        pytest.param(2, {"slots": 2}, id="2-workers-2-slots"),
        pytest.param(5, {"slots": 3}, id="5-workers-3-slots"),
    ],
)
@pytest.mark.parametrize("name", DRAWS)
def test_the_same_bytes_at_any_split_of_rows(name: str, workers: int, options: dict[str, int]) -> None:
    """At 0, 1, 2 and 5 workers, with few slots and many, whatever the caller's global states: the same rows."""
    assert drawn(together(name), workers=workers, **options)[name].tobytes() == drawn(together(name), workers=0)[name].tobytes()


@pytest.mark.parametrize("name", DRAWS)
def test_draws_differ_for_every_sample_epoch_and_seed(name: str) -> None:
    """No row stands twice in two epochs of two workers, even where all ids are alike; and another seed has none of them."""
    found = drawn(together(name), workers=2, alike=True, slots=2)[name]
    others = drawn(together(name), workers=2, alike=True, slots=2, seed=1)[name]
    assert len({row.tobytes() for row in (*found, *others)}) == 4 * N


@pytest.mark.filterwarnings("ignore:batches of a loader with shuffle=False are requested")
@pytest.mark.parametrize("name", ["rng", "random-gauss", "numpy-normal"])
def test_a_sample_asked_for_again_is_drawn_again_alike(name: str) -> None:
    """A batch asked for a second time, in another order and by itself, has the same numbers."""
    with computed(transform=draws()[name], workers=2, slots=2, shuffle=False) as loader:
        forwards = [loader.batch(index)[0].copy() for index in range(4)]
        backwards = [loader.batch(index)[0].copy() for index in reversed(range(4))]
    np.testing.assert_array_equal(forwards, backwards[::-1])


HASH = """
import hashlib
from random import gauss
from numpy.random import rand

def fill(x, rng):
    x[:, 0] = rng.random(), gauss(0, 1), rand()

with Loader(range(24), None, 5, dim=3, n_channels=1, dtype="f8", source=lambda n: np.full(3, random()), transform=fill,
            workers=WORKERS) as loader:
    say(hashlib.sha256(b"".join(X.tobytes() for _ in range(2) for X, in loader)).hexdigest())
"""


def test_the_same_bytes_in_every_run(folder: Callable, script: Callable) -> None:
    """Processes of their own, with 0 workers and 2, and this one: one digest."""
    from random import gauss

    from numpy.random import rand

    def fill(x: np.ndarray, rng: np.random.Generator) -> None:
        x[:, 0] = rng.random(), gauss(0, 1), rand()

    data = folder(1)
    runs = [script(f"from random import random\nWORKERS = {workers}" + HASH, data) for workers in (0, 2)]
    for run in runs:
        assert run.end() == 0, run.err
    assert runs[0].out == runs[1].out
    here = rows(computed(lambda n: np.full(3, random.random()), fill, workers=2), epochs=2)
    assert runs[0].out.strip() == hashlib.sha256(here.tobytes()).hexdigest()


def test_sources_draw_as_well_as_transforms() -> None:
    """A source function's draws are as reproducible, and other than the transform's."""

    def transform(sample: dict[str, np.ndarray], rng: np.random.Generator) -> None:
        sample["c"] = rng.random(3)
        sample["d"] = np.random.rand(3)

    def found(workers: int) -> list[np.ndarray]:
        names = {
            "a": lambda n: np.random.rand(3),
            "b": lambda n: np.full(3, random.random()),
            "c": lambda n: np.zeros(3),
            "d": lambda n: np.zeros(3),
        }
        with Loader(range(N), batch_size=5, inputs=names, transform=transform, workers=workers) as loader:
            batches = [batch for _ in range(2) for (batch,) in loader]
            return [np.concatenate([batch[name] for batch in batches]) for name in names]

    fields = found(0)
    for field, at_two, at_five in zip(fields, found(2), found(5), strict=True):
        np.testing.assert_array_equal(field, at_two)
        np.testing.assert_array_equal(field, at_five)
    assert len({row.tobytes() for field in fields for row in field}) == 4 * 2 * 20


@pytest.mark.parametrize("workers", ONE)
@pytest.mark.parametrize("dim", [pytest.param((3,), id="dim-given"), pytest.param(None, id="dim-learned")])
def test_the_callers_random_states_are_left_alone(dim: object, workers: int) -> None:
    """Functions that draw, and seed, leave the global states of the calling process as they were."""

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
    rows(computed(draw, seed, dim=dim, n_channels=None if dim is None else 1, workers=workers))
    assert random.getstate() == before[0]
    np.testing.assert_equal(np.random.get_state(legacy=False), before[1])


STAND_IN = """
import random
class Generator(random.Random): manual_seed = random.Random.seed
default_generator = Generator()
def rand(count): return [default_generator.random() for _ in range(count)]
"""
"""A module in place of torch: what it draws depends on the seed of its global generator alone."""


@pytest.mark.parametrize(
    "real", [False, pytest.param(True, marks=[pytest.mark.torch, needs("torch")])], ids=["stand-in", "torch"]
)
def test_torch_draws_the_same(real: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a transform draws from torch's global generator is the sample's: after a resume, and after a worker's death."""
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
    with loader(2) as first:
        next(iter(first))
        state = first.state_dict()
    resumed = loader(2)
    resumed.load_state_dict(state)
    assert (rows(resumed) == whole[5:]).all()
    with loader(1) as dying:
        batches = iter(dying)
        next(batches)
        os.kill(dying.state.workers[0].pid, signal.SIGKILL)
        assert all((X[:, :, 0] == whole[start : start + 5]).all() for start, (X,) in zip((5, 10, 15), batches, strict=True))
        assert dying.stats.restarts == 1
