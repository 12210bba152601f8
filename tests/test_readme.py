"""What the README shows, runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

import shmgen

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.fixture
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The files and names that the README takes for granted."""
    ids = [f"id-{number}" for number in range(128)]
    shapes = {"data": (32, 32, 32), "scans": (4, 4, 4), "masks": (4, 4, 4)}
    for folder in (*shapes, "photos"):
        (tmp_path / folder).mkdir()
    for number, id in enumerate(ids):
        for folder, shape in shapes.items():
            np.save(tmp_path / folder / f"{id}.npy", np.full(shape, number, np.float32))
        Image.fromarray(np.full((224, 224, 3), number, np.uint8)).save(tmp_path / "photos" / f"{id}.png")
    np.save(tmp_path / "all.npy", np.zeros((1_000_000, 2), np.uint8))
    monkeypatch.chdir(tmp_path)
    model = keras.Sequential([keras.Input((32, 32, 32, 1)), keras.layers.GlobalAveragePooling3D(), keras.layers.Dense(6)])
    model.compile(loss="categorical_crossentropy")
    made: list[shmgen.Sequence] = []

    def make(*args: Any, **kwargs: Any) -> shmgen.Sequence:
        made.append(shmgen.Sequence(*args, **kwargs))
        assert len(made[-1]) > 0
        made[-1][0]
        return made[-1]

    return {
        **{name: getattr(shmgen, name) for name in shmgen.__all__},
        "Sequence": make, "Image": Image, "np": np, "ids": ids, "model": model,
        "partition": {"train": ids, "validation": ids[:64]},
        "labels": {**{id: number % 6 for number, id in enumerate(ids)}, **dict.fromkeys(range(1_000_000), 0)},
        "ages": dict.fromkeys(ids, 42), "weights": dict.fromkeys(ids, 0.5), "made": made,
    }  # fmt: skip


@pytest.fixture
def network(
    request: pytest.FixtureRequest, surroundings: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The URL of a server of the same files, which is S3 to who asks for a bucket."""
    root, port = request.getfixturevalue("served")
    links = [root / "data", root / "all.npy", root / "bucket"]
    for link in links:
        link.symlink_to(tmp_path if link.name == "bucket" else tmp_path / link.name)
    url = f"http://127.0.0.1:{port}"
    for name, value in {
        "ENDPOINT_URL": url,
        "ACCESS_KEY_ID": "a",
        "SECRET_ACCESS_KEY": "b",
        "DEFAULT_REGION": "eu-west-1",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    yield url
    for link in links:
        link.unlink()


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_of_the_readme_runs(
    request: pytest.FixtureRequest, surroundings: dict[str, Any], tmp_path: Path, number: int
) -> None:
    """Each block of Python, as it stands there, makes its sequences, trains, and gives a batch."""
    code = BLOCKS[number].replace("from shmgen import Sequence", "", 1).replace("epochs=10", "epochs=1, verbose=0")
    if "https://host" in code:
        pytest.importorskip("botocore", reason="botocore is not installed: it is in the extra remote")
        code = code.replace("https://host", request.getfixturevalue("network")).replace("/scratch", str(tmp_path))
    exec(compile(code, "README.md", "exec"), surroundings)
    assert surroundings["made"]
    for sequence in surroundings["made"]:
        sequence.close()
