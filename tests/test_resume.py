"""A run of ``fit`` that is killed at any moment, and started again, ends with the same weights as one that is not killed."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

RUNS = Path(__file__).with_name("resume_runs.py")

BATCHES = 10
"""Batches in an epoch; a run has 3 epochs."""


class Runs:
    """Runs of ``resume_runs.py``, one after another, on one backend of Keras."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        environment = {"KERAS_BACKEND": backend, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "TF_CPP_MIN_LOG_LEVEL": "3"}
        self._process = subprocess.Popen(
            [sys.executable, str(RUNS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment, "CUDA_VISIBLE_DEVICES": ""},
        )
        assert self._answer() == backend

    def __call__(self, home: Path, **options: Any) -> int:
        """Run in ``home``; returns the exit code, or minus the number of the signal that ended the run."""
        home.mkdir(exist_ok=True)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"home": str(home), **options}) + "\n")
        self._process.stdin.flush()
        status = self._answer()
        assert isinstance(status, int)
        return status

    def _answer(self) -> object:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> Iterator[Runs]:
    """Runs on one backend of Keras."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    runs = Runs(request.param)
    yield runs
    runs.end()


@pytest.fixture
def torn(runs: Runs, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A function that kills a run at several moments, one after another, and then lets it end.

    Its result is compared, bit for bit, with that of a run that is not killed and saves no state, and returned.
    """

    def tear(*kills: dict[str, Any], **options: Any) -> dict[str, Any]:
        whole, home = tmp_path / "whole", tmp_path / "torn"
        assert runs(whole, **options) == 0
        for kill in kills:
            assert runs(home, resume={"every": 3}, kill=kill, **options) == -signal.SIGKILL, kill
            unfinished = list((home / "states").glob(".*state*"))
            assert bool(unfinished) == (kill["where"] in ("write", "replace") and not kill.get("after")), kill
        assert runs(home, resume={"every": 3}, **options) == 0
        expected, found = (json.loads((folder / "result.json").read_text()) for folder in (whole, home))
        assert found == expected
        with np.load(whole / "variables.npz") as wanted, np.load(home / "variables.npz") as got:
            assert [name for name in wanted if wanted[name].tobytes() != got[name].tobytes()] == []
        return dict(found)

    return tear


on_tensorflow, on_jax = (pytest.param(name, marks=pytest.mark.slow) for name in ("tensorflow", "jax"))


@pytest.mark.parametrize("runs", [on_tensorflow, on_jax, pytest.param("torch", marks=pytest.mark.torch)], indirect=True)
def test_killed_at_any_moment(torn: Callable[..., Any]) -> None:
    """A run resumes exactly after kills in a step, in a validation, while a state is saved, or while the old one is deleted."""
    kills = [
        {"where": "read", "count": 2},
        {"where": "write", "count": 40},
        {"where": "replace", "count": 2},
        {"where": "replace", "count": 2, "after": True},
        {"where": "unlink", "count": 1},
        {"where": "on_test_batch_begin", "count": 1},
    ]
    result = torn(*kills)
    assert set(result["counts"]) == {3}
    assert result["iterations"] == 3 * BATCHES


@pytest.mark.parametrize("runs", [on_tensorflow, on_jax], indirect=True)
def test_several_steps_per_execution(torn: Callable[..., Any]) -> None:
    """A run resumes exactly with 4 steps per execution in 10 batches, in half precision, and if the best weights are restored."""
    torn({"where": "on_train_batch_begin", "count": 5}, steps_per_execution=4, policy="mixed_float16", best=True)
