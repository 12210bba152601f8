"""HDF5 files as they are found: a dataset for each sample, groups, scalars; what does not serve is explained."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmgen import Hdf5, InputError, Loader, SampleError

h5py = pytest.importorskip("h5py", reason="h5py is not installed: it is in the extra hdf5")

WORKERS = [pytest.param(0, id="in-process"), pytest.param(2, id="2-workers")]

IDS = [f"id-{number}" for number in range(12)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with the same samples in several places: those of number n are full of n."""
    with h5py.File(tmp_path / "all.h5", "w") as file:
        for number, id in enumerate(IDS):
            file[f"flat/{id}"] = np.full((4, 3), number, "f4")
            file[f"nested/{id}/image"] = np.full((4, 3), number, ">f8")
            file[f"nested/{id}/label"] = number
            file[f"numbered/{number}"] = np.full((4, 3), number, "u1")
        file["words"] = ["a", "b"]
        file["table"] = np.zeros(3, [("a", "f4"), ("b", "i4")])
        file.create_dataset("ragged", (3,), h5py.vlen_dtype("f4"))
        file["nothing"] = h5py.Empty("f4")
        file["number"] = 3.0
        file["flat-bits"] = np.array([True, False])
    with h5py.File(tmp_path / "top.h5", "w") as file:
        for number, id in enumerate(IDS):
            file[id] = np.full((2,), number, "i2")
    return tmp_path / "all.h5"


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("flat", "f4"), ("flat/{id}", "f4"), ("/flat/", "f4"), ("nested/{id}/image", "f8")],
)
def test_a_dataset_for_each_sample(file: Path, name: str, dtype: str, workers: int) -> None:
    """By the name of the group that they are in, or by a name with the id in it; scalars are labels."""
    labels = Hdf5(file, "nested/{id}/label")
    with Loader(IDS, labels, 4, source=Hdf5(file, name), workers=workers) as loader:
        for X, y in loader:
            assert X.shape == (4, 4, 3)
            assert X.dtype == dtype
            assert (y[:, None, None] == X).all()


def test_all_that_is_in_a_file(file: Path) -> None:
    """Without a name, ids are the names of the file's own datasets."""
    with Loader(IDS, None, 12, source=Hdf5(file.parent / "top.h5"), shuffle=False, workers=1) as loader:
        np.testing.assert_array_equal(loader.batch(0)[0], np.arange(12)[:, None] * np.ones((1, 2), int))


def test_ids_that_are_ints_name_datasets(file: Path) -> None:
    """As texts do."""
    with Loader(range(12), None, 12, source=Hdf5(file, "numbered"), shuffle=False, workers=0) as loader:
        assert loader.batch(0)[0][:, 0, 0].tolist() == list(range(12))


def test_a_dataset_of_bits(file: Path) -> None:
    """True and False are numbers, too."""
    with Loader([0, 1], None, 2, source=Hdf5(file, "flat-bits"), shuffle=False, workers=1) as loader:
        assert loader.batch(0)[0].tolist() == [True, False]


@pytest.mark.parametrize(
    ("name", "ids", "text"),
    [
        ("nested", IDS, "'nested/id-0', found a group with 'image', 'label'; write Hdf5(file, 'nested/{id}/image')"),
        ("flat", ["id-99"], "'flat/id-99', found none; group 'flat' has 'id-0', 'id-1', 'id-10', 'id-11', 'id-2' and 7 others"),
        ("nested/{id}/pixels", IDS, "'nested/id-0/pixels', found none; group 'nested/id-0' has 'image', 'label'"),
        ("flt/{id}", IDS, "'flt/id-0', found none; the file has 'flat', 'flat-bits', 'nested', 'nothing', 'number' and 4 others"),
        ("number", [0], "expected rows, found a single number; where each sample has one, put '{id}' into the name"),
        ("nothing", [0], "expected a dataset 'nothing' of numbers, found one without any"),
        ("words", [0], "expected numbers, found dtype object in dataset 'words'; read it by a function as source"),
        ("table", [0], "expected numbers, found dtype [('a', '<f4'), ('b', '<i4')] in dataset 'table'; read it by a function"),
        ("ragged", [0], "expected numbers, found dtype object in dataset 'ragged'"),
        ("words/{id}", [0], "expected a dataset 'words/0', found none"),
    ],
)  # fmt: skip
def test_what_does_not_serve_is_explained(file: Path, name: str, ids: Any, text: str) -> None:
    """What was found, what is there, and what to write."""
    with pytest.raises((InputError, SampleError), match=re.escape(text)):
        Loader(ids, None, 1, source=Hdf5(file, name))


def test_the_remedy_for_a_group_works(file: Path) -> None:
    """What the error says to write is what reads it."""
    with pytest.raises(SampleError) as caught:
        Loader(IDS, None, 12, source=Hdf5(file, "nested"))
    [name] = re.findall(r"write Hdf5\(file, '(.*)'\)", str(caught.value))
    with Loader(IDS, None, 12, source=Hdf5(file, name), shuffle=False, workers=0) as loader:
        assert loader.batch(0)[0][:, 0, 0].tolist() == list(range(12))


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("missing", "expected a dataset 'flat/id-5', found none; group 'flat' has"),
        ("shape", "dataset 'flat/id-5': expected shape (4, 3) and dtype float32, as the first has, found (5, 3) and float32"),
        ("dtype", "dataset 'flat/id-5': expected shape (4, 3) and dtype float32, as the first has, found (4, 3) and complex64"),
    ],
)
def test_a_sample_that_does_not_fit_is_named(file: Path, change: str, text: str, workers: int) -> None:
    """By its id; with ``on_error="replace"`` it is replaced."""
    with h5py.File(file, "r+") as opened:
        del opened["flat/id-5"]
        if change != "missing":
            opened["flat/id-5"] = np.zeros((5, 3), "f4") if change == "shape" else np.zeros((4, 3), "c8")
    options: dict[str, Any] = {"source": Hdf5(file, "flat"), "shuffle": False, "workers": workers}
    with Loader(IDS, None, 4, **options) as loader, pytest.raises(SampleError, match=re.escape(text)) as caught:
        list(loader)
    assert caught.value.id == "id-5"
    with Loader(IDS, range(12), 4, on_error="replace", max_damaged=0.1, **options) as loader:
        for X, y in loader:
            assert (y[:, None, None] == X).all()
        assert [damaged.id for damaged in loader.damaged] == ["id-5"]


def test_a_file_that_is_none(tmp_path: Path) -> None:
    """It is named, with what h5py says of it."""
    (tmp_path / "no.h5").write_bytes(b"hello")
    with pytest.raises(InputError, match=r"file .*/no\.h5: expected an HDF5 file that can be read, found: .*signature"):
        Loader(["a"], None, 1, source=Hdf5(tmp_path / "no.h5"))


def test_without_h5py_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not only that a module is missing."""
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r"pip install 'shmgen\[hdf5\]'"):
        Hdf5("all.h5")
