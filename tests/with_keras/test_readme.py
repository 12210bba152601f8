"""The code of the README and of the pages of docs/ runs."""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from conftest import ROOT
from launched import needs
from PIL import Image

import shmgen


def blocks(name: str) -> tuple[str, list[str]]:
    """The Python code of a page: all blocks that only import, joined, and the list of the other blocks."""
    found = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    imports = [block for block in found if all(line.startswith(("import", "from")) for line in block.splitlines())]
    return "".join(imports), [block for block in found if block not in imports]


PAGES = {page.stem: found for page in sorted((ROOT / "docs").glob("*.md")) if (found := blocks(f"docs/{page.name}"))[1]}
ELSEWHERE = r"https://host|shmgen\.torch|all\.ids\"\)\.read"
"""Pattern of blocks that other tests run, since they need a server, torch, or a small packed file."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages' code reads."""
    home = tmp_path_factory.mktemp("home")
    for folder in ("data", "scans", "masks", "archives", "large", "tokens", "photos", "pets/cats", "pets/dogs"):
        (home / folder).mkdir(parents=True)
    for number, id in enumerate(IDS):
        for folder, side in {"data": 32, "scans": 4, "masks": 4}.items():
            np.save(home / folder / f"{id}.npy", np.linspace(number, number + 1, side**3, dtype=np.float32).reshape([side] * 3))
        np.savez(home / "archives" / f"{id}.npz", image=np.full((8, 8), number, np.uint8), label=number % 6)
        np.save(home / "large" / f"{id}.npy", np.full((32 + number, 40, 3), number, np.uint8))
        np.save(home / "tokens" / f"{id}.npy", np.full(1 + number % 100, number))
        Image.fromarray(np.full((224, 224, 3), number, np.uint8)).save(home / "photos" / f"{id}.png")
    for number in range(64):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(home / "pets" / ("cats", "dogs")[number % 2] / f"{number}.png")
    (home / "good.txt").write_text("\n".join(IDS))
    (home / "data" / "damaged.npy").write_bytes(b"no array")
    np.save(home / "all.npy", np.zeros((1_000_000, 2), np.uint8))
    np.save(home / "series.npy", np.zeros((5000, 2), np.float32))
    (home / "all.ids").write_text("".join(f"id-{number}\n" for number in range(1_000_000)))
    with h5py.File(home / "all.h5", "w") as file:
        file["images"] = np.zeros((128, 2))
    kinds = ["cat" if number % 3 else "dog" for number in range(128)]
    table = [f"{home}/data/{id},{kind}" for id, kind in zip(IDS, kinds, strict=True)]
    (home / "table.csv").write_text("\n".join(["path,label", *table]))
    table = [f"{id}.png,{kind},20.5,180" for id, kind in zip(IDS, kinds, strict=True)]
    (home / "photos.csv").write_text("\n".join(["file,label,age,height", *table]))
    database = sqlite3.connect(home / "rows.db")
    with database:
        database.execute("CREATE TABLE rows (id TEXT, a REAL, b REAL, c REAL)")
        database.executemany("INSERT INTO rows VALUES (?, 1, 2, 3)", [[id] for id in IDS])
    database.close()
    return home


IDS = [f"id-{number}" for number in range(128)]
LABELS: dict[Any, int] = {**{id: number % 6 for number, id in enumerate(IDS)}, **dict.fromkeys(range(1_000_000), 0), "damaged": 0}


@pytest.fixture
def made(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """A list of the sequences and loaders made in the test, which runs in ``home`` and may write ``states`` there."""
    made: list[Any] = []

    def noted(kind: type) -> Any:
        class Noted(kind):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **{"workers": 1, **kwargs})
                made.append(self)
                assert len(self) > 0

        return Noted

    for name in ("Sequence", "Loader"):
        monkeypatch.setattr(shmgen, name, noted(getattr(shmgen, name)))
    monkeypatch.chdir(home)
    yield made
    shutil.rmtree("states", ignore_errors=True)


def run(name: str, code: str, made: list[Any]) -> None:
    """Run the code of a block; each sequence and loader that it made and did not close must give a batch."""
    model = keras.Sequential([keras.Input((32, 32, 32, 1)), keras.layers.GlobalAveragePooling3D(), keras.layers.Dense(6)])
    loss = "categorical_crossentropy" if "n_classes" in code else "sparse_categorical_crossentropy"
    model.compile(loss=loss, run_eagerly=True)
    names = {
        "ids": IDS, "labels": LABELS, "partition": {"train": IDS, "validation": IDS[:64]}, "damaged_ids": [*IDS, "damaged"],
        "model": model, "animals": LABELS, "ages": dict.fromkeys(IDS, 42),
        **dict.fromkeys(("prices", "sizes", "weights"), dict.fromkeys(IDS, 0.5)),
    }  # fmt: skip
    exec(compile(code.replace("epochs=10", "epochs=1, verbose=0"), name, "exec"), names)
    assert made
    while made:
        with made.pop() as samples:
            if not samples.state.closed:
                next(iter(samples))
    names.clear()  # a name may hold the last batch


def test_the_readme_runs(made: list[Any]) -> None:
    """The README's blocks of Python, run together, train and give batches."""
    run("README", "".join(blocks("README.md")[1]), made)


@pytest.mark.slow
@pytest.mark.parametrize(("page", "part"), [*((page, 0) for page in PAGES), *(("recipes", part) for part in (1, 2, 3))])
def test_the_blocks_of_a_page_run(made: list[Any], page: str, part: int) -> None:
    """Each block of a page runs by itself after the page's imports; the longest page is tested in four parts."""
    imports, found = PAGES[page]
    for number, block in enumerate(found):
        needs_tensorflow = "import tensorflow" in block and find_spec("tensorflow") is None
        if not re.search(ELSEWHERE, block) and not needs_tensorflow and (page != "recipes" or number % 4 == part):
            run(f"block {number} of {page}", imports + block, made)


@pytest.mark.torch
@needs("torch")
def test_the_blocks_of_torch_run(made: list[Any]) -> None:
    """Each block that uses torch runs by itself."""
    for page, (imports, found) in PAGES.items():
        for block in found:
            if "shmgen.torch" in block:
                run(f"a block of {page}", imports + block, made)


def test_a_block_of_urls_runs(
    signing: None, served: tuple[Path, int], home: Path, made: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guide's block of URLs runs with a local server of the same files, in place of http and S3."""
    root, port = served
    links = {root / "data": home / "data", root / "all.npy": home / "all.npy", root / "bucket": home}
    for link, target in links.items():
        link.symlink_to(target)
    url = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "key")
    imports, found = PAGES["guide"]
    [block] = [block for block in found if "https://host" in block]
    run("the block of URLs", (imports + block).replace("https://host", url).replace("/scratch", str(tmp_path)), made)
    for link in links:
        link.unlink()
