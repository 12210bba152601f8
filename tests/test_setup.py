"""What a worker is given before it calls the user's functions: their own setup, the epoch, seeded generators."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from launched import needs
from ways import N, computed, rows

from shmgen import InputError, Loader, StartError

# Functions stand inside of tests: one of the module itself would have workers import pytest and Keras.


@pytest.mark.parametrize("workers", [0, 2])
def test_setup_runs_once_in_each_worker_before_anything_else(module: Callable, workers: int) -> None:
    """``setup`` runs once in each worker, first, in the thread that calls functions."""
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


def test_setup_that_fails_is_an_error_of_the_start() -> None:
    """A ``setup`` that fails is a StartError with its line; one that is no function is refused."""

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
def test_a_transform_that_asks_for_the_epoch_gets_it(workers: int, of: str) -> None:
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


@pytest.mark.torch
@needs("torch")
@pytest.mark.parametrize("imported", ["before", "by-the-function"])
def test_numbers_of_torch_are_the_same_in_each_run(imported: str) -> None:
    """torch's random numbers are the same in each run, with any number of workers."""
    code = f"""
import numpy as np
from shmgen import Loader
{"import torch" if imported == "before" else ""}

def transform(x, rng):
    {"" if imported == "before" else "import torch"}
    return torch.rand(3).numpy() + torch.randn(1).numpy()

for workers in (0, 1, 3):
    with Loader(range(24), batch_size=4, source=lambda id: np.zeros(3, "f4"), transform=transform, workers=workers) as loader:
        print(np.concatenate([X for X, in loader]).tobytes().hex())
"""
    lines = []
    for _ in range(2):
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        lines += run.stdout.split()
    assert len(lines) == 6
    assert len(set(lines)) == 1
    rows = np.frombuffer(bytes.fromhex(lines[0]), "f4").reshape(24, 3)
    assert len(np.unique(rows)) == rows.size
