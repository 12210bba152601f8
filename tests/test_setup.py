"""A worker runs the user's ``setup`` first, and passes the epoch to transforms that have a parameter for it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ways import N, computed, rows

from shmgen import InputError, Loader, StartError
from shmgen._engine import pool

# Functions for workers are defined inside tests: to load those of a module, a worker would import the module, and pytest.


@pytest.mark.parametrize("workers", [0, 2])
def test_setup_runs_once_in_each_worker_before_anything_else(module: Callable, workers: int) -> None:
    """``setup`` runs once in each worker, before other functions, and in the same thread."""
    own = module("CALLS = []\n")

    def setup() -> None:
        own.CALLS.append((os.getpid(), threading.get_ident()))

    def source(id: int) -> np.ndarray:
        (call,) = own.CALLS
        assert call == (os.getpid(), threading.get_ident())
        return np.full(3, id, "f8")

    found = rows(computed(source, workers=workers, setup=setup, shuffle=False, tail="keep"))
    assert found[:, 0].tolist() == list(range(N))
    assert len(own.CALLS) == (1 if workers == 0 else 0)


def test_a_worker_whose_setup_takes_long_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that sets itself up, or opens a source, for longer than an idle worker lives is not ended."""
    monkeypatch.setattr(pool, "IDLE_AFTER", 0.02)
    with computed(workers=1, setup=lambda: time.sleep(0.1)) as loader:
        assert len(list(loader)) == len(loader)


def test_setup_that_fails_is_an_error_of_the_start() -> None:
    """A failing ``setup`` is a StartError that shows its line; a ``setup`` that is not a function is refused."""

    def setup() -> None:
        raise OSError("no licence")

    with (
        computed(workers=2, setup=setup) as loader,
        pytest.raises(StartError, match=r"^setup failed: OSError: no licence.*") as error,
    ):
        list(loader)
    assert 'raise OSError("no licence")' in str(error.value)
    with pytest.raises(StartError, match=r"^setup failed: OSError: no licence"):
        computed(workers=0, setup=setup)
    with pytest.raises(InputError, match=r"^setup: expected a function without arguments, found 3"):
        computed(setup=3)


@pytest.mark.parametrize(("workers", "of"), [(0, "row"), (2, "sample")])
def test_a_transform_may_have_a_parameter_epoch(workers: int, of: str) -> None:
    """A transform with a parameter ``epoch`` gets the epoch's number."""

    def of_row(x: np.ndarray, rng: Any, epoch: int = -1) -> np.ndarray:
        return x + epoch

    def of_sample(sample: dict[str, np.ndarray], rng: Any, *, epoch: int) -> None:
        sample["X"] += epoch

    def loader(epoch: int) -> Loader:
        source = lambda id: np.zeros(1)  # noqa: E731
        described: dict[str, Any] = {"source": source} if of == "row" else {"inputs": {"X": source}}
        transform: Any = of_row if of == "row" else of_sample
        return Loader(range(4), None, 4, transform=transform, workers=workers, epoch=epoch, **described)

    with loader(5) as first:
        found = [batch[0] if of == "row" else batch[0]["X"] for _ in range(3) for batch in first]
    assert [set(np.ravel(X).tolist()) for X in found] == [{5.0}, {6.0}, {7.0}]
