"""Arguments as callers, ``help`` and editors see them; and batches that a framework holds."""

from __future__ import annotations

import gc
import inspect
import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from typing import Any

import numpy as np
import pytest

from shmgen import InputError, Loader, Sequence, tune
from shmgen._engine.feed import Feed
from shmgen._engine.front_end import FrontEnd
from shmgen.options import Options

TAKERS: list[Any] = [Loader, Sequence, tune]


@pytest.mark.parametrize("call", TAKERS)
def test_the_real_parameters_are_shown(call: Any) -> None:
    """``inspect.signature`` shows all parameters with defaults: the blog's by position or name, the others by name only."""
    parameters = inspect.signature(call).parameters

    blogs = ["list_IDs", "labels", "batch_size", "dim", "n_channels", "n_classes", "shuffle"]
    assert list(parameters)[:7] == blogs
    assert {name for name, one in parameters.items() if one.kind is one.POSITIONAL_OR_KEYWORD} == set(blogs)
    assert {name for name, one in parameters.items() if one.kind is one.KEYWORD_ONLY} == parameters.keys() - set(blogs)
    assert {"batch_size": 32, "seed": 0, "timeout": 300.0}.items() <= {k: one.default for k, one in parameters.items()}.items()


@pytest.mark.parametrize("call", TAKERS)
def test_each_argument_is_described_once(call: Any) -> None:
    """``help`` describes each argument exactly once."""
    shown = call if call is tune else call.__init__
    arguments = (inspect.getdoc(shown) or "").partition("\n\nArgs:\n")[2].partition("\n\nRaises:\n")[0]
    described = re.findall(r"^    (\w+): ", arguments, flags=re.MULTILINE)

    assert sorted(described) == sorted(inspect.signature(call).parameters)


@pytest.mark.parametrize(
    ("args", "options", "said"),
    [
        pytest.param(
            ("id",), {"bach_size": 2}, "got an unexpected keyword argument 'bach_size'; did you mean batch_size\\?", id="unknown"
        ),
        pytest.param(("id",), {"zzz": 2}, "got an unexpected keyword argument 'zzz'", id="unlike-any"),
        pytest.param((), {"batch_size": 2}, "missing a required argument: 'list_IDs'", id="no-ids"),
        pytest.param((["id"], None, 2, 3, 1, 6, True, "sorted"), {}, "too many positional arguments", id="too-many"),
        pytest.param((["id"],), {"list_IDs": ["id"]}, "multiple values for argument 'list_IDs'", id="twice"),
    ],
)
def test_wrong_arguments_are_type_errors(args: Any, options: Any, said: str) -> None:
    """A wrong argument is a TypeError as Python words it, with the name of the called function or (sub)class."""
    for call in (*TAKERS, type("Mine", (Loader,), {})):
        with pytest.raises(TypeError, match=rf"^{call.__name__}: {said}$"):
            call(*args, **options)


OTHERS: dict[str, dict[str, Any]] = {
    # an argument of another library -> the arguments that the error advises
    "num_workers=2": {"workers": 2},
    "prefetch_factor=4": {"slots": 4},
    "drop_last=False": {"tail": "keep"},
    "batchsize=1": {"batch_size": 1},
    "batchSize=1": {"batch_size": 1},
    "shufle=False": {"shuffle": False},
    "collate_fn=print": {"transform": lambda x, rng: x},
    "random_state=3": {"seed": 3},
    "pin_memory=True": {},
    "directory='x'": {"data_dir": "x"},
    "num_classes=2": {"n_classes": 2, "labels": {"a": 0}},
    "sample_weight={}": {"sampling_weights": {"a": 1.0}},
}


@pytest.mark.parametrize("given", OTHERS)
def test_arguments_of_other_libraries(given: str) -> None:
    """The error for another library's argument names the one of shmgen, which works."""
    for call in TAKERS:
        with pytest.raises(TypeError, match=f"got an unexpected keyword argument '{given.partition('=')[0]}'; ") as raised:
            eval(f"call(['a'], {given})", {"call": call, "print": print})
        for name in OTHERS[given].keys() - {"labels"}:
            assert name in str(raised.value).rpartition(";")[2]
    options: dict[str, Any] = {"batch_size": 1, **OTHERS[given]}
    assert Options(["a"], **options).ids == ["a"]


def test_options_are_checked_and_frozen() -> None:
    """Options have checked values, copy the ids, and can't be changed."""
    ids = [1, 2, 3]
    options = Options(ids, batch_size=np.int64(2), dim=4, seed=np.uint8(3), timeout=5)  # type: ignore[arg-type]
    ids.append(4)

    assert (options.batch_size, options.dim, options.seed, options.timeout) == (2, (4,), 3, 5.0)
    assert list(map(type, (options.batch_size, options.seed, options.timeout))) == [int, int, float]
    assert list(options.ids) == [1, 2, 3]
    assert options.list_IDs is options.ids
    for field in fields(options):
        with pytest.raises(FrozenInstanceError):
            setattr(options, field.name, None)
    with pytest.raises(InputError, match="seed: expected an int from 0, found -1"):
        Options(ids, seed=-1)


class Hoarding(FrontEnd):
    """A framework that holds all batches until it is asked to release them."""

    def __init__(self) -> None:
        self.held: list[Any] = []
        self.releases = 0

    def release(self) -> None:
        self.releases += 1
        self.held.clear()


@pytest.mark.parametrize("workers", [0, 1])
def test_the_front_end_is_asked_to_release(folder: Callable[..., Any], workers: int) -> None:
    """A front end that holds all batches is asked to release them, and the ring does not grow."""
    data = folder(20, (4, 3))
    front_end = Hoarding()
    options = Options(data.ids, {"label": data.labels}, 2, data_dir=data.path, workers=workers, slots=2)
    feed = Feed(options, front_end)
    for X, y in feed:
        front_end.held.append((X, y["label"]))
    assert feed.prefetcher.stats.grown == 0
    feed.close()
    assert front_end.releases > 0


class Cycle(list[Any]):
    """A list in a reference cycle, which lives until garbage collection."""

    def __init__(self, members: Any) -> None:
        super().__init__(members)
        self.itself = self


@pytest.mark.parametrize("slots", [2, 16])
def test_batches_in_young_garbage_are_collected(folder: Callable[..., Any], slots: int, no_collection: None) -> None:
    """Batches that a framework leaves in reference cycles are collected, and the ring does not grow."""
    data = folder(200, (4, 3))
    gc.collect()
    with Loader(data.ids, data.labels, 2, data_dir=data.path, workers=1, slots=slots) as loader:
        for X, y in loader:
            Cycle([X, y])
        assert loader.stats.grown == 0
