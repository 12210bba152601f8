"""The names of the package, errors for packages that are not installed, and lengths of what is iterated over."""

from __future__ import annotations

import io
from collections.abc import Callable
from operator import length_hint

import pytest
from conftest import python

import shmgen
from shmgen import Loader


def test_unknown_names_are_not_attributes() -> None:
    """Unknown names and names of other packages are not attributes of shmgen."""
    for name in ("Sequenz", "tensorflow"):
        assert not hasattr(shmgen, name)
        assert name not in dir(shmgen)


def test_a_missing_keras_is_explained() -> None:
    """Without Keras, `Loader` can be imported, and the error for `Sequence` says how to install Keras."""
    program = "import sys; sys.modules['keras'] = None; import shmgen; shmgen.Loader"
    for code in ("shmgen.Sequence", "shmgen.keras", "from shmgen import Sequence"):
        program += f"\ntry: {code}\nexcept ImportError as error: print(error)"
    lines = python("-c", program, check=True).stdout.splitlines()
    for line, name in zip(lines, ("Sequence", "keras", "Sequence"), strict=True):
        assert line.startswith(f"shmgen.{name} needs keras, which is not installed: pip install 'shmgen[tensorflow]'")
        assert "shmgen.Loader does without" in line


def test_len_of_a_loader_and_length_hint_of_its_iterator(folder: Callable) -> None:
    """A loader's length is its number of batches, and an iterator's hint the batches to come, also when resumed."""
    data = folder(16)
    with Loader(data.ids, data.labels, 4, data_dir=data.path, workers=1) as loader:
        batches = iter(loader)
        assert (len(loader), length_hint(batches)) == (4, 4)
        next(batches)
        assert (len(loader), length_hint(batches)) == (4, 3)
        state = loader.state_dict()
        assert len(list(batches)) == 3
        assert (length_hint(batches), length_hint(iter(loader))) == (0, 4)
        loader.load_state_dict(state)
        assert length_hint(resumed := iter(loader)) == len(list(resumed)) == 3


def test_progress_bars(folder: Callable) -> None:
    """``tqdm(loader)`` knows the number of batches."""
    tqdm = pytest.importorskip("tqdm").tqdm
    data = folder(16)
    with Loader(data.ids, data.labels, 4, data_dir=data.path, workers=1) as loader:
        for batches in (loader, iter(loader)):
            out = io.StringIO()
            bar = tqdm(batches, file=out)
            for _ in bar:
                bar.set_postfix(data_wait=f"{loader.stats.data_wait:.0%}")
            assert bar.total == bar.n == 4
            assert "4/4" in out.getvalue()
            assert "data_wait=" in out.getvalue()
