"""What the README shows, runs."""

from __future__ import annotations

import re
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
    for number in range(64):
        (tmp_path / "pets" / ("cats", "dogs")[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(tmp_path / "pets" / ("cats", "dogs")[number % 2] / f"{number}.png")
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


def run(code: str, surroundings: dict[str, Any]) -> None:
    """Run a block of the README; each of its sequences gives a batch."""
    code = code.replace("from shmgen import Sequence", "", 1).replace("epochs=10", "epochs=1, verbose=0")
    exec(compile(code, "README.md", "exec"), surroundings)
    assert surroundings["made"]
    for sequence in surroundings["made"]:
        sequence.close()


@pytest.mark.parametrize("number", [number for number, block in enumerate(BLOCKS) if "https://host" not in block])
def test_a_block_of_the_readme_runs(surroundings: dict[str, Any], number: int) -> None:
    """Each block of Python, as it stands there, makes its sequences, trains, and gives a batch."""
    run(BLOCKS[number], surroundings)


def test_a_block_of_urls_runs(
    served: tuple[Path, int], surroundings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with a server of the same files, which is S3 to who asks for a bucket."""
    pytest.importorskip("botocore", reason="botocore is not installed: it is in the extra remote")
    root, port = served
    links = {root / "data": tmp_path / "data", root / "all.npy": tmp_path / "all.npy", root / "bucket": tmp_path}
    for link, target in links.items():
        link.symlink_to(target)
    url = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "key")
    [code] = [block for block in BLOCKS if "https://host" in block]
    run(code.replace("https://host", url).replace("/scratch", str(tmp_path)), surroundings)
    for link in links:
        link.unlink()
