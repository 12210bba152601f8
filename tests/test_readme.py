"""What the README and the pages of docs/ show, runs."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

import shmgen

ROOT = Path(__file__).parents[1]


def blocks(name: str) -> list[str]:
    """The blocks of Python in a page, but those that only import names, which all others may use."""
    found = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    return [block for block in found if not all(line.startswith(("import", "from")) for line in block.splitlines())]


IDS = [f"id-{number}" for number in range(128)]

ELSEWHERE = r"https://host|shmgen\.(torch|jax)"
"""What wants a server, or a process with another framework (see `backends`)."""

PAGES = ("guide", "recipes", "commands", "training", "promises", "troubleshooting")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages take for granted."""
    home = tmp_path_factory.mktemp("home")
    shapes = {"data": (32, 32, 32), "scans": (4, 4, 4), "masks": (4, 4, 4)}
    for folder in (*shapes, "photos"):
        (home / folder).mkdir()
    for number, id in enumerate(IDS):
        for folder, shape in shapes.items():
            np.save(home / folder / f"{id}.npy", np.full(shape, number, np.float32))
        Image.fromarray(np.full((224, 224, 3), number, np.uint8)).save(home / "photos" / f"{id}.png")
    for number in range(64):
        (home / "pets" / ("cats", "dogs")[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(home / "pets" / ("cats", "dogs")[number % 2] / f"{number}.png")
    for folder in ("archives", "large", "tokens"):
        (home / folder).mkdir()
    for number, id in enumerate(IDS):
        np.savez_compressed(home / "archives" / f"{id}.npz", image=np.full((8, 8), number, np.uint8), label=number % 6)
        np.save(home / "large" / f"{id}.npy", np.full((32 + number, 40, 3), number, np.uint8))
        np.save(home / "tokens" / f"{id}.npy", np.full(1 + number % 100, number))
    (home / "good.txt").write_text("\n".join(IDS))
    (home / "data" / "damaged.npy").write_bytes(b"no array")
    np.save(home / "all.npy", np.zeros((1_000_000, 2), np.uint8))
    np.save(home / "series.npy", np.zeros((5000, 2), np.float32))
    (home / "all.ids").write_text("".join(f"id-{number}\n" for number in range(1_000_000)))
    lines = [f"{home}/data/{id},{'cat' if number % 3 else 'dog'}" for number, id in enumerate(IDS)]
    (home / "table.csv").write_text("\n".join(["path,label", *lines]))
    lines = [f"{id}.png,{'cat' if number % 3 else 'dog'}" for number, id in enumerate(IDS)]
    (home / "photos.csv").write_text("\n".join(["file,label", *lines]))
    database = sqlite3.connect(home / "rows.db")
    with database:
        database.execute("CREATE TABLE rows (id TEXT, a REAL, b REAL, c REAL)")
        database.executemany("INSERT INTO rows VALUES (?, 1, 2, 3)", [[id] for id in IDS])
    database.close()
    return home


@pytest.fixture
def surroundings(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, Any]]:
    """Makes the names that the pages take for granted, in the folder of the files."""
    monkeypatch.chdir(home)
    return names


def names() -> dict[str, Any]:
    """The names; ``made`` gets every `Loader` and `Sequence`."""
    made: list[Any] = []

    def noted(kind: type) -> Any:
        class Noted(kind):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                made.append(self)
                assert len(self) > 0

        return Noted

    ids = IDS
    labels: dict[Any, int] = {
        **{id: number % 6 for number, id in enumerate(ids)},
        **dict.fromkeys(range(1_000_000), 0),
        "damaged": 0,
    }
    return {
        **{name: getattr(shmgen, name) for name in shmgen.__all__},
        "Sequence": noted(shmgen.Sequence), "Loader": noted(shmgen.Loader), "Image": Image, "np": np, "ids": ids,
        "partition": {"train": ids, "validation": ids[:64]}, "labels": labels, "damaged_ids": [*ids, "damaged"],
        "ages": dict.fromkeys(ids, 42), "weights": dict.fromkeys(ids, 0.5), "made": made,
        "prices": dict.fromkeys(ids, 0.5), "animals": labels, "sizes": dict.fromkeys(ids, 0.5),
    }  # fmt: skip


def model(*, one_hot: bool) -> keras.Model:
    made = keras.Sequential([keras.Input((32, 32, 32, 1)), keras.layers.GlobalAveragePooling3D(), keras.layers.Dense(6)])
    made.compile(loss=f"{'' if one_hot else 'sparse_'}categorical_crossentropy", jit_compile=False)
    return made


def run(code: str, surroundings: dict[str, Any], name: str) -> None:
    """Run the block ``name``; each of its sequences and loaders that is not closed yet gives a batch."""
    code = re.sub("^from shmgen import .*$", "", code, flags=re.MULTILINE).replace("epochs=10", "epochs=1, verbose=0")
    surroundings["DataGenerator"] = surroundings["Sequence"]
    surroundings["model"] = model(one_hot="n_classes" in code)
    exec(compile(code, name, "exec"), surroundings)
    assert surroundings["made"]
    for made in surroundings["made"]:
        if not made.state.closed:
            next(iter(made))
        made.close()
    surroundings.clear()  # a name may hold the last batch


def test_the_readme_runs(surroundings: Callable[[], dict[str, Any]]) -> None:
    """Its blocks of Python, one after the other, as they stand there, train and give batches."""
    run("".join(block for block in blocks("README.md") if not re.search(ELSEWHERE, block)), surroundings(), "README")


@pytest.mark.parametrize(("page", "part"), [*((page, 0) for page in PAGES), *(("recipes", part) for part in (1, 2, 3))])
def test_the_blocks_of_a_page_run(surroundings: Callable[[], dict[str, Any]], page: str, part: int) -> None:
    """Each by itself; those of the longest page in four parts."""
    tensorflow = pytest.importorskip("tensorflow")
    for number, block in enumerate(blocks(f"docs/{page}.md")):
        if not re.search(ELSEWHERE, block) and (page != "recipes" or number % 4 == part):
            run(block, {**surroundings(), "tf": tensorflow}, f"block {number} of {page}")


def test_a_block_of_urls_runs(
    signing: None,
    served: tuple[Path, int],
    home: Path,
    surroundings: Callable[[], dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same with a server of the same files, which is S3 to who asks for a bucket."""
    root, port = served
    links = {root / "data": home / "data", root / "all.npy": home / "all.npy", root / "bucket": home}
    for link, target in links.items():
        link.symlink_to(target)
    url = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "key")
    [code] = [block for page in PAGES for block in blocks(f"docs/{page}.md") if "https://host" in block]
    run(code.replace("https://host", url).replace("/scratch", str(tmp_path)), surroundings(), "the block of URLs")
    for link in links:
        link.unlink()
