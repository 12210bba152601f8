"""The examples in the docstrings of public names run, and each public name has one."""

from __future__ import annotations

import doctest
import gc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

import shmgen
import shmgen.keras

PUBLIC = {
    **{name: getattr(shmgen, name) for name in shmgen.__all__},
    **{name: getattr(shmgen.keras, name) for name in shmgen.keras.__all__},
}


@pytest.fixture
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `shmgen`'s own docstring says that examples have: files, and names."""
    ids = [f"id-{number}" for number in range(16)]
    rows = np.arange(16, dtype=np.float32)[:, None, None] * np.ones((4, 3), np.float32)
    (tmp_path / "data").mkdir()
    for id, row in zip(ids, rows, strict=True):
        np.save(tmp_path / "data" / f"{id}.npy", row)
    np.save(tmp_path / "all.npy", rows)
    (tmp_path / "all.ids").write_text("".join(f"{id}\n" for id in ids))
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file["images"] = rows
    with h5py.File(tmp_path / "each.h5", "w") as file:
        for id, row in zip(ids, rows, strict=True):
            file[f"samples/{id}/image"] = row
    pictures = [f"photos/{id}" for id in ids] + [f"pets/{kind}/{number}" for kind in ("cats", "dogs") for number in range(8)]
    for picture in pictures:
        (tmp_path / picture).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48)).save(tmp_path / f"{picture}.png")
    monkeypatch.chdir(tmp_path)
    labels = {id: number % 4 for number, id in enumerate(ids)}
    return {**PUBLIC, "np": np, "ids": ids, "labels": labels, "__name__": "__main__"}


@pytest.mark.parametrize("name", PUBLIC)
def test_the_example_of_a_public_name_runs(surroundings: dict[str, Any], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As it stands there, in its folder; there is one, and it uses what it is an example of, or shows its text."""
    text = PUBLIC[name].__doc__
    example = doctest.DocTestParser().get_doctest(text, surroundings, name, None, None)
    assert example.examples, f"the docstring of {name} has no example"
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, _ = doctest.DocTestRunner(optionflags=options).run(example)
    assert not failed, capsys.readouterr().out
    for value in list(surroundings.values()):
        if isinstance(value, shmgen.Loader | shmgen.Sequence):
            value.close()
    surroundings.clear()
    example.globs.clear()
    gc.collect()
