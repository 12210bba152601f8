"""Each public name has a docstring with an example that runs, and is in the reference."""

from __future__ import annotations

import ast
import doctest
import gc
import re
import sys
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import shmgen
import shmgen.errors


def exported(module: str) -> list[str]:
    """``__all__`` of a module, which may need a framework that is not installed."""
    [names] = re.findall(r"^__all__ = (\[.*?\])", (ROOT / module).read_text(), re.MULTILINE | re.DOTALL)
    return list(ast.literal_eval(names))


PUBLIC = {
    **dict.fromkeys(exported("shmgen/keras/__init__.py"), "shmgen.keras"),
    **dict.fromkeys(exported("shmgen/torch.py"), "shmgen.torch"),
    **dict.fromkeys(exported("shmgen/jax.py"), "shmgen.jax"),
    **dict.fromkeys(shmgen.__all__, "shmgen"),
}
"""For each public name, the module to import it from."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the examples of docstrings use."""
    home = tmp_path_factory.mktemp("home")
    rows = np.arange(16, dtype=np.float32)[:, None, None] * np.ones((4, 3), np.float32)
    (home / "data").mkdir()
    for id, row in zip(IDS, rows, strict=True):
        np.save(home / "data" / f"{id}.npy", row)
    np.save(home / "all.npy", rows)
    (home / "all.ids").write_text("".join(f"{id}\n" for id in IDS))
    with h5py.File(home / "all.h5", "w") as file:
        file["images"] = rows
    with h5py.File(home / "each.h5", "w") as file:
        for id, row in zip(IDS, rows, strict=True):
            file[f"samples/{id}/image"] = row
    pictures = [f"photos/{id}" for id in IDS] + [f"pets/{kind}/{number}" for kind in ("cats", "dogs") for number in range(8)]
    for picture in pictures:
        (home / picture).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48)).save(home / f"{picture}.png")
    return home


IDS = [f"id-{number}" for number in range(16)]


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.torch if name == "Tensors" else ()) for name in PUBLIC])
def test_public_examples_run(home: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The docstring of a public name has an example that runs; those of errors and of results may have one."""
    if PUBLIC[name] in ("shmgen.torch", "shmgen.jax"):
        pytest.importorskip(PUBLIC[name].removeprefix("shmgen."))
    monkeypatch.chdir(home)
    for rounds in ("ROUNDS", "MAX_ROUNDS"):
        monkeypatch.setattr(f"shmgen._tools.tune.{rounds}", 2)
    names = {known: getattr(import_module(PUBLIC[known]), known) for known in {*PUBLIC} - {"Arrays", "Tensors"} | {name}}
    text = names[name].__doc__
    names |= {"np": np, "ids": IDS, "labels": {id: number % 4 for number, id in enumerate(IDS)}, "__name__": "__main__"}
    example = doctest.DocTestParser().get_doctest(text, names, name, None, None)
    is_result = isinstance(names[name], type) and (issubclass(names[name], Exception | tuple) or is_dataclass(names[name]))
    assert example.examples or is_result, f"the docstring of {name} has no example"
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, _ = doctest.DocTestRunner(optionflags=options).run(example)
    assert not failed, capsys.readouterr().out
    gc.collect()  # loaders that the example did not close


def test_the_reference_names_every_public_name() -> None:
    """The reference names each public name under its module, the errors as one module, and the classes of options."""
    errors = {f"shmgen.{name}" for name in shmgen.__all__ if hasattr(shmgen.errors, name)}
    shown = {f"{module}.{name}" for name, module in PUBLIC.items()} - errors
    shown |= {"shmgen.errors", "shmgen.options.DataOptions", "shmgen.options.Options"}
    listed = re.findall(r"^::: (.+)$", (ROOT / "docs/reference.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(shown)


@pytest.mark.parametrize("name", ["keras", pytest.param("torch", marks=pytest.mark.torch), "jax"])
def test_front_ends_need_no_import_of_their_own(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """``shmgen.keras``, ``shmgen.torch`` and ``shmgen.jax`` need no import of their own, and are in ``dir``."""
    pytest.importorskip(name)
    import_module(f"shmgen.{name}")
    monkeypatch.delattr(shmgen, name)
    assert getattr(shmgen, name) is sys.modules[f"shmgen.{name}"]
    assert name in dir(shmgen)
