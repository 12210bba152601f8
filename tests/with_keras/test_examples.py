"""The examples, with few samples and epochs, print what they should, and write only into ``--folder``."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import python
from launched import needs

EXAMPLES = Path(__file__).parents[2] / "examples"

ACCURACY = "validation accuracy #"

LEARNS: dict[str, tuple[int, int, dict[str, Callable[..., bool]]]] = {
    "train_digits_png.py": (1000, 3, {ACCURACY: lambda reached: reached > 0.4}),
    "one_big_array.py": (1000, 3, {ACCURACY: lambda reached: reached > 0.4}),
    # Guessing the mean of the sums of a digit and a number from -9 to 9 is off by 5 on average.
    "two_inputs.py": (1000, 4, {f"{ACCURACY}, sum off by # on average": lambda reached, off: reached > 0.3 and off < 4.5}),
    "segment_volumes.py": (30, 2, {"validation dice #, by a threshold alone #": lambda reached, alone: 0.2 < alone < reached}),
    "train_photos.py": (400, 6, {ACCURACY: lambda reached: reached > 0.7}),
    "mixup.py": (
        400,
        6,
        {
            ACCURACY: lambda reached: reached > 0.6,
            "the first photo is # flower and # temple, of dtype float32": lambda flower, temple: abs(flower + temple - 1) < 0.002,
        },
    ),
    "augment_albumentations.py": (
        400,
        6,
        {ACCURACY: lambda reached: reached > 0.6, "the same with # and # workers: True": lambda none, two: (none, two) == (0, 2)},
    ),
}
"""For each example: its samples and epochs here, and checks of the numbers in lines that it prints, by the line."""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """The working folder of an example, which must stay empty."""
    (tmp_path / "elsewhere").mkdir()
    yield tmp_path / "elsewhere"
    assert not list((tmp_path / "elsewhere").iterdir()), "files were written outside of --folder"


@pytest.fixture
def example(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """A function that runs an example in this process, on ``tmp_path / "data"``, and returns its output."""

    def run(name: str, *options: str) -> str:
        monkeypatch.chdir(elsewhere)
        monkeypatch.syspath_prepend(EXAMPLES)
        monkeypatch.setattr(sys, "argv", [name, "--folder", str(tmp_path / "data"), *options])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture
def fresh(tmp_path: Path, elsewhere: Path) -> Callable[..., str]:
    """A function that runs an example in a new process, on ``tmp_path / folder``, as a user does, and returns its output."""

    def run(name: str, *options: str, folder: str = "data", launcher: Sequence[str] = (), **environment: str) -> str:
        # A file left open shows as a traceback on stderr, but not in the exit code.
        words = "-W", "error::ResourceWarning", *launcher, EXAMPLES / name, "--folder", tmp_path / folder, *options
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        ended = python(*words, env={**quiet, **environment}, stdin=subprocess.DEVNULL, cwd=elsewhere)
        assert ended.returncode == 0, ended.stderr
        assert "Traceback" not in ended.stderr, ended.stderr
        return ended.stdout

    return run


def numbers(pattern: str, printed: str) -> list[float]:
    """The numbers in the only line of ``printed`` that matches ``pattern``, in which ``#`` stands for a number."""
    lines = re.findall(f"^{pattern.replace('#', '([0-9.]+)')}$", printed, re.MULTILINE)
    assert len(lines) == 1, printed
    return [float(number) for number in (lines[0] if isinstance(lines[0], tuple) else lines)]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax", pytest.param("torch", marks=pytest.mark.torch)])
def test_train_digits(fresh: Callable[..., str], backend: str) -> None:
    """The classic call learns digits: its accuracy on new ones is far above chance, and it prints five predictions."""
    pytest.importorskip(backend)
    printed = fresh("train_digits.py", "--epochs", "2", KERAS_BACKEND=backend)
    (accuracy,) = numbers("validation accuracy #", printed)
    assert 0.6 < accuracy <= 1
    _, batches, samples = numbers("waited # s for data in # batches, # samples", printed)
    # At its end, fit may have requested more batches ahead.
    assert batches >= 2 * (1400 // 32)
    assert samples == 32 * batches
    assert len(re.findall(r"^id-\d+ shows a \d, predicted \d$", printed, re.MULTILINE)) == 5


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNS)
def test_an_example_learns(example: Callable[..., str], name: str) -> None:
    """Each example's network learns, which shows that rows come with the right labels, masks and numbers."""
    if "albumentations" in name:
        pytest.importorskip("albumentations")
    samples, epochs, lines = LEARNS[name]
    printed = example(name, "--samples", str(samples), "--epochs", str(epochs))
    for line, holds in lines.items():
        assert holds(*numbers(line, printed)), printed


def arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a file of weights, by name."""
    found: dict[str, np.ndarray] = {}
    with h5py.File(file) as opened:
        opened.visititems(lambda name, part: found.update({name: part[()]}) if isinstance(part, h5py.Dataset) else None)
    return found


@pytest.mark.torch
@needs("torch")
def test_train_ddp(fresh: Callable[..., str], tmp_path: Path) -> None:
    """Two processes under torchrun, each training on its part of every batch, end with the weights of a single process."""

    def run(ranks: int) -> list[float]:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        options: dict[str, Any] = {"folder": str(ranks), "launcher": torchrun, "GLOO_SOCKET_IFNAME": "lo"}
        printed = fresh("train_ddp.py", "--epochs", "1", **options)
        return numbers("the weights of # ranks differ by #; validation accuracy #", printed)

    with ThreadPoolExecutor() as pool:
        (world, differ, accuracy), (_, _, alone) = pool.map(run, (2, 1))
    assert (world, differ) == (2, 0)
    assert abs(accuracy - alone) < 0.01
    one, two = (arrays(tmp_path / str(ranks) / f"{ranks}-ranks.weights.h5") for ranks in (1, 2))
    assert one.keys() == two.keys()
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, rtol=0, atol=1e-5)
