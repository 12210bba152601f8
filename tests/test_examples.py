"""Every example in its small form, run as a user runs it: a fresh process, a folder of its own, what it prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from launched import needs

ROOT = Path(__file__).parents[1]

CHANCE = 0.1
"""Accuracy of a guess among ten digits."""


@pytest.fixture
def example(tmp_path: Path) -> Callable[..., str]:
    """Runs an example, which is to write nowhere but into ``tmp_path / folder``, and returns what it printed."""

    def run(name: str, *options: str, folder: str = "data", launcher: Sequence[str] = (), **environment: str) -> str:
        directory = tmp_path / "elsewhere"
        directory.mkdir(exist_ok=True)
        ended = subprocess.run(
            # What is left open is told by a traceback on stderr; in the exit code it would not show.
            [
                *(sys.executable, "-W", "error::ResourceWarning", *launcher, str(ROOT / "examples" / name)),
                *("--folder", str(tmp_path / folder), *options),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", **environment},
        )
        assert ended.returncode == 0, ended.stderr
        assert "Traceback" not in ended.stderr, ended.stderr
        assert not list(directory.iterdir()), "files were written outside of --folder"
        return ended.stdout

    return run


def numbers(pattern: str, printed: str) -> list[float]:
    """The numbers in the only line of ``printed`` that ``pattern`` describes, with ``#`` for each number."""
    lines = re.findall(f"^{pattern.replace('#', '([0-9.]+)')}$", printed, re.MULTILINE)
    assert len(lines) == 1, printed
    return [float(number) for number in (lines[0] if isinstance(lines[0], tuple) else lines)]


@pytest.mark.parametrize("backend", ["tensorflow", "jax", pytest.param("torch", marks=pytest.mark.torch)])
def test_train_digits(example: Callable[..., str], backend: str) -> None:
    """The classic call learns digits: far better than chance on those it has not seen, and it names five of them."""
    pytest.importorskip(backend)
    printed = example("train_digits.py", "--epochs", "2", KERAS_BACKEND=backend)
    (accuracy,) = numbers("validation accuracy #", printed)
    assert 0.6 < accuracy <= 1
    batch_wait, batches, samples = numbers("waited # s for data in # batches, # samples", printed)
    assert batch_wait < 10
    # What fit has read ahead when it ends comes on top.
    assert batches >= 2 * (1400 // 32)
    assert samples == 32 * batches
    assert len(re.findall(r"^id-\d+ shows a \d, predicted \d$", printed, re.MULTILINE)) == 5


def test_train_digits_png(example: Callable[..., str], tmp_path: Path) -> None:
    """Functions of an unguarded script decode PNG files and augment them, and the network learns from what they make."""
    printed = example("train_digits_png.py", "--samples", "1000", "--epochs", "3")
    (accuracy,) = numbers("validation accuracy #", printed)
    assert 4 * CHANCE < accuracy <= 1
    _, samples = numbers("waited # s for # samples", printed)
    assert samples >= 3 * 800
    assert len(list((tmp_path / "data").glob("*.png"))) == 1000


def test_segment_volumes(example: Callable[..., str], tmp_path: Path) -> None:
    """A network learns masks from scans better than a threshold does: both come from one sample, and are flipped alike."""
    printed = example("segment_volumes.py", "--samples", "60", "--epochs", "4")
    reached, threshold = numbers("validation dice #, by a threshold alone #", printed)
    assert 0.2 < threshold < reached <= 1
    _, samples = numbers("waited # s for # samples", printed)
    assert samples >= 4 * 48
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"scans", "masks"}


def test_two_inputs(example: Callable[..., str]) -> None:
    """A model with two named inputs, two named outputs and weights trains: it names digits, and adds the table's number."""
    printed = example("two_inputs.py", "--samples", "1000", "--epochs", "4")
    accuracy, off = numbers("validation accuracy #, sum off by # on average", printed)
    assert 3 * CHANCE < accuracy <= 1
    # The sums of a digit and a number from -9 to 9 lie 5 apart from their mean on average.
    assert 0 < off < 4.5
    _, samples = numbers("waited # s for # samples", printed)
    assert samples >= 4 * 800


def test_one_big_array(example: Callable[..., str], tmp_path: Path) -> None:
    """Rows of one file, by number, in random order: the network learns, so each row came with the label of its number."""
    printed = example("one_big_array.py", "--samples", "1000", "--epochs", "3")
    (accuracy,) = numbers("validation accuracy #", printed)
    assert 4 * CHANCE < accuracy <= 1
    _, samples = numbers("waited # s for # samples", printed)
    assert samples >= 3 * 800
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["all_digits.npy"]


def arrays(file: Path) -> dict[str, np.ndarray]:
    """What a file of weights holds, by name."""
    found: dict[str, np.ndarray] = {}
    with h5py.File(file) as opened:
        opened.visititems(lambda name, part: found.update({name: part[()]}) if isinstance(part, h5py.Dataset) else None)
    return found


@pytest.mark.torch
@needs("torch")
def test_train_ddp(example: Callable[..., str], tmp_path: Path) -> None:
    """Two processes under torchrun, which train on a part of each batch, end with the same weights, which are those of one."""

    def run(ranks: int) -> list[float]:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        options: dict[str, Any] = {"folder": str(ranks), "launcher": torchrun, "GLOO_SOCKET_IFNAME": "lo"}
        printed = example("train_ddp.py", "--epochs", "1", **options)
        return numbers("the weights of # ranks differ by #; validation accuracy #", printed)

    with ThreadPoolExecutor() as pool:
        (world, differ, accuracy), (_, _, alone) = pool.map(run, (2, 1))
    assert (world, differ) == (2, 0)
    assert abs(accuracy - alone) < 0.01
    one, two = (arrays(tmp_path / str(ranks) / f"{ranks}-ranks.weights.h5") for ranks in (1, 2))
    assert one.keys() == two.keys()
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, rtol=0, atol=1e-5)


def test_train_photos(example: Callable[..., str], tmp_path: Path) -> None:
    """A network learns from JPEGs of many sizes and a table of their classes, and names what it sees by the classes' names."""
    printed = example("train_photos.py", "--samples", "400", "--epochs", "6")
    (accuracy,) = numbers("validation accuracy #", printed)
    assert 0.7 < accuracy <= 1
    shown = re.findall(r"^\d+\.jpg shows a (flower|temple), predicted (flower|temple)$", printed, re.MULTILINE)
    assert len(shown) == 5
    assert sum(label == predicted for label, predicted in shown) >= 3
    assert len(list((tmp_path / "data").glob("*.jpg"))) == 400


def test_mixup(example: Callable[..., str]) -> None:
    """A subclass mixes the batches that workers made, the labels too, and the network learns from them."""
    printed = example("mixup.py", "--samples", "400", "--epochs", "6")
    flower, temple = numbers("the first photo is # flower and # temple, of dtype float32", printed)
    assert flower + temple == pytest.approx(1, abs=0.002)
    (accuracy,) = numbers("validation accuracy #", printed)
    assert 0.6 < accuracy <= 1


def test_augment_albumentations(example: Callable[..., str]) -> None:
    """A library's augmentations, seeded from each sample's generator, are the same at any number of workers."""
    pytest.importorskip("albumentations", reason="albumentations is not installed: pip install albumentations")
    printed = example("augment_albumentations.py", "--samples", "400", "--epochs", "6")
    (accuracy,) = numbers("validation accuracy #", printed)
    assert 0.6 < accuracy <= 1
    assert "the same with 0 and 2 workers: True" in printed
