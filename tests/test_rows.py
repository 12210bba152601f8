"""Rows never contain data of another sample, and may have the dtypes of ml_dtypes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import psutil
import pytest

from shmgen import Function, InputError, Loader, Npy, NpyRows, SampleError, ShmgenError, Source, scan

N = 40


def padded(data: Any, path: Path) -> dict[str, Any]:
    """Sources by kind, which fill the first k % 3 elements of row k with k; a file in ``path`` makes its row fail or die once."""
    marks = str(path)

    def pad(id: Any, row: np.ndarray) -> None:
        number = int(str(id).removeprefix("id-"))
        for mark in ("fails", "dies"):
            try:
                os.unlink(f"{marks}/{mark}-{number}")
            except FileNotFoundError:
                continue
            row[...] = -1
            if mark == "dies":
                os._exit(3)
            raise ValueError("fails at first")
        row.ravel()[: number % 3] = number

    class Reading(Source):
        shape, dtype = (4, 3), "f4"

        def read(self, id: Any, row: np.ndarray) -> None:
            pad(id, row)

    class Filling(Source):
        shape, dtype = (4, 3), "f4"

        def fill(self, ids: Any, rows: np.ndarray) -> None:
            for id, row in zip(ids, rows, strict=True):
                pad(id, row)

    return {"function": Function(pad, (4, 3), dtype="f4"), "read": Reading(), "fill": Filling()}


def left_out(X: np.ndarray, y: np.ndarray) -> list[int]:
    """Labels of rows with anything else than a `padded` source's numbers and zeros."""
    flat = X.reshape(len(X), -1)
    expected = np.where(np.arange(12) < y[:, None] % 3, y[:, None], 0)
    return y[(flat != expected).any(axis=1)].tolist()


@pytest.mark.parametrize(("kind", "workers"), [("function", 0), ("fill", 1)])
def test_elements_that_a_source_leaves_out_are_zero(folder: Callable, tmp_path: Path, kind: str, workers: int) -> None:
    """Elements that a source leaves out are zero, and not the slot's earlier content."""
    data = folder(N)
    with Loader(data.ids, data.labels, 4, source=padded(data, tmp_path)[kind], slots=2, workers=workers) as loader:
        assert [left_out(X, y) for _ in range(3) for X, y in loader] == [[]] * 30


def test_a_transform_sees_zeros_in_elements_left_out(folder: Callable, tmp_path: Path) -> None:
    """A transform sees zeros in elements left out; what it writes there is cleared before the slot is filled again."""
    data = folder(N)

    def minus(X: np.ndarray, rng: object) -> None:
        assert not X.ravel()[2:].any()
        X -= 1

    inputs = {"X": padded(data, tmp_path)["function"]}
    with Loader(data.ids, data.labels, 4, inputs=inputs, transform={"X": minus}, slots=2, workers=0) as loader:
        assert [left_out(X["X"] + 1, y) for _ in range(3) for X, y in loader] == [[]] * 30


@pytest.mark.parametrize(("kind", "mark", "workers"), [("function", "fails", 0), ("fill", "fails", 0), ("fill", "dies", 1)])
def test_a_row_is_cleared_before_it_is_filled_again(folder: Callable, tmp_path: Path, kind: str, mark: str, workers: int) -> None:
    """After a failure or a death in the middle of a row, the row is filled again from zeros."""
    data = folder(N)
    bad = range(1, N, 19)
    for number in bad:
        (tmp_path / f"{mark}-{number}").touch()
    source = padded(data, tmp_path)[kind]
    options: dict[str, Any] = {"slots": 2, "workers": workers, "on_error": "replace", "max_damaged": 0.5}
    with Loader(data.ids, data.labels, 4, source=source, **options) as loader:
        assert [left_out(X, y) for X, y in loader] == [[]] * 10
        if kind != "fill":  # its rows are retried one by one, and do not fail again
            assert len(loader.damaged) == (len(bad) if mark == "fails" else 0)
        assert loader.stats.restarts == (len(bad) if mark == "dies" else 0)
    assert not list(tmp_path.glob(f"{mark}-*"))


def test_rows_of_sources_that_fill_them_whole_are_not_cleared(folder: Callable) -> None:
    """Sources that always overwrite whole rows, such as files, are known as such, so their rows are not cleared first."""
    data = folder(8)
    np.save(data.path / "all.npy", np.zeros((8, 3)))
    assert not Npy(data.path).bind(data.ids).leaves_out
    assert not Function(lambda id: np.zeros(3)).bind(data.ids).leaves_out
    assert not NpyRows(data.path / "all.npy").bind(range(8)).leaves_out
    assert padded(data, data.path)["read"].bind(data.ids).leaves_out
    assert padded(data, data.path)["function"].bind(data.ids).leaves_out


NAMES = ["bfloat16", "float8_e4m3b11fnuz"]


def numbered(dtype: str) -> np.ndarray:
    """40 rows of shape (4, 3) in a dtype of ml_dtypes; all elements of row n are n % 8 + 1."""
    return np.full((N, 4, 3), np.arange(N)[:, None, None] % 8 + 1).astype(getattr(ml_dtypes, dtype))


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[str], list[str]]:
    """A function that writes the rows of `numbered` into a file each, and into ``all.npy``; it returns the files' ids."""

    def write(dtype: str) -> list[str]:
        for number, row in enumerate(numbered(dtype)):
            np.save(tmp_path / f"{number:02}.npy", row)
        np.save(tmp_path / "all.npy", numbered(dtype))
        return [f"{number:02}" for number in range(N)]

    return write


def loaded(ids: Any, workers: int = 0, **options: Any) -> np.ndarray:
    """All rows of an epoch, in the order of the ids."""
    with Loader(ids, None, 8, shuffle=False, workers=workers, **options) as loader:
        return np.concatenate([X for (X,) in loader])


@pytest.mark.parametrize("dtype", NAMES)
def test_files_of_ml_dtypes(stored: Callable, tmp_path: Path, dtype: str) -> None:
    """Files of ml_dtypes, one a sample or one for all, are read bit for bit, with the dtype given as a name or an object."""
    ids = stored(dtype)
    expected = numbered(dtype)
    for said in (dtype, getattr(ml_dtypes, dtype)):
        for X in (loaded(ids, data_dir=tmp_path, dtype=said), loaded(range(N), source=NpyRows(tmp_path / "all.npy", dtype=said))):
            assert X.dtype == expected.dtype
            assert X.tobytes() == expected.tobytes()


def test_files_are_cast_to_ml_dtypes(tmp_path: Path) -> None:
    """Files of float32 in either byte order, and of bfloat16 in either axis order, become bfloat16 rows."""
    rows = numbered("bfloat16") + np.arange(12).reshape(4, 3).astype(ml_dtypes.bfloat16)
    kinds: list[Callable] = [np.asarray, lambda a: a.astype("f4"), lambda a: a.astype(">f4"), np.asfortranarray]
    for number, row in enumerate(rows):
        np.save(tmp_path / f"{number}.npy", kinds[number % 4](row))
    X = loaded(list(range(N)), data_dir=tmp_path, dtype="bfloat16")
    np.testing.assert_array_equal(X, rows)


def row_sources(dtype: str) -> dict[str, Any]:
    """Functions and sources that produce row n of `numbered`, and check the dtype of the row to fill."""

    def fill(n: int, row: np.ndarray) -> None:
        assert row.dtype.name == dtype
        row[:] = n % 8 + 1

    class Reading(Source):
        shape = (4, 3)

        def __init__(self) -> None:
            self.dtype = dtype

        def read(self, n: int, row: np.ndarray) -> None:
            fill(n, row)

    class Filling(Reading):
        def fill(self, ids: Any, rows: np.ndarray) -> None:
            for n, row in zip(ids, rows, strict=True):
                fill(n, row)

    own = numbered(dtype)
    return {
        "fills": Function(fill, (4, 3), dtype=dtype),
        "returns-bare-bytes": Function(lambda n: own[n].view(f"V{own.itemsize}"), dtype=dtype),
        "reads": Reading(),
        "fills-many": Filling(),
    }


@pytest.mark.parametrize(
    ("kind", "dtype", "workers"),
    [
        ("fills", "bfloat16", 0),
        ("returns-bare-bytes", "bfloat16", 0),
        ("reads", "float8_e4m3fn", 0),
        ("fills-many", "bfloat16", 1),
    ],
)
def test_functions_and_sources_of_ml_dtypes(kind: str, dtype: str, workers: int) -> None:
    """Functions, sources and transforms get rows with the dtype of ml_dtypes, with and without workers."""

    def double(row: np.ndarray, rng: object) -> np.ndarray:
        assert row.dtype.name == dtype
        return row + row

    X = loaded(range(N), workers, source=row_sources(dtype)[kind], transform=double)
    np.testing.assert_array_equal(X, numbered(dtype) + numbered(dtype))
    assert X.dtype.name == dtype


@pytest.mark.parametrize(("dtype", "found", "remedy"), [("bfloat16", "V2", "bfloat16"), ("float8_e5m2", "V1", "float8_e4m3fn")])
def test_bare_bytes_are_refused_with_the_remedy(stored: Callable, tmp_path: Path, dtype: str, found: str, remedy: str) -> None:
    """Without a dtype, arrays of bare bytes are refused; the remedy, to pass a dtype, works."""
    ids = stored(dtype)
    text = f"expected numbers, found dtype |{found}; make them numbers"
    bare = numbered(dtype).view(found)
    for make in (lambda **options: Npy(tmp_path, **options), lambda **options: Function(lambda id: bare[int(id)], **options)):
        with pytest.raises(SampleError, match=re.escape(text)):
            Loader(ids, None, 8, source=make(), workers=0)
        assert loaded(ids, source=make(dtype=remedy)).tobytes() == numbered(dtype).tobytes()
    with pytest.raises(InputError, match=re.escape(text)):
        Loader(range(N), None, 8, source=NpyRows(tmp_path / "all.npy"), workers=0)
    assert loaded(range(N), source=NpyRows(tmp_path / "all.npy", remedy)).tobytes() == numbered(dtype).tobytes()


def test_scans_and_loaders_accept_the_same_files(stored: Callable, tmp_path: Path) -> None:
    """A scan without a dtype reports files of ml_dtypes as damaged, with the remedy; with the dtype all are good."""
    ids = stored("bfloat16")
    without = scan(tmp_path, ids, workers=0)
    assert len(without.damaged) == len(ids)
    assert "such as bfloat16, pass that as dtype" in without.damaged[0].reason
    assert scan(Npy(tmp_path, dtype="bfloat16"), ids, full=True, workers=0).damaged == ()


def test_other_dtypes_for_bare_bytes_are_refused(stored: Callable, tmp_path: Path) -> None:
    """For files of bare bytes a dtype of another size, one of NumPy's own, and an unknown name are refused."""
    ids = stored("bfloat16")
    for dtype, text in (
        ("float8_e4m3fn", r"expected dtype float8_e4m3fn, found \|V2"),
        ("float32", r"expected dtype float32, found \|V2"),
        ("float33", "dtype: expected one of numbers, found 'float33'"),
        ("finfo", "dtype: expected one of numbers, found"),
    ):
        with pytest.raises(ShmgenError, match=text):
            Loader(ids, None, 8, data_dir=tmp_path, dtype=dtype, workers=0)


def test_a_worker_of_plain_files_is_lean(stored: Callable, tmp_path: Path, workers: Callable[[], list[psutil.Process]]) -> None:
    """A worker that reads files as they are stored loads neither NumPy nor ml_dtypes."""
    ids = stored("bfloat16")
    with Loader(ids, None, 8, data_dir=tmp_path, dtype="bfloat16", workers=1) as loader:
        assert len(list(loader)) == 5
        [worker] = workers()
        mapped = Path(f"/proc/{worker.pid}/maps").read_text()
    assert [name for name in ("numpy", "ml_dtypes") if f"/{name}/" in mapped] == []


def test_ml_dtypes_is_imported_only_if_needed(folder: Callable, script: Callable) -> None:
    """ml_dtypes is imported only for its own dtypes; if it is not installed, such a dtype is an error that names it."""
    code = """
sys.modules["ml_dtypes"] = None  # importing it fails
with Loader(IDS, LABELS, 4, data_dir=DATA, dtype="f4", workers=1) as loader:
    assert len(list(loader)) == 2
try: Loader(IDS, LABELS, 4, data_dir=DATA, dtype="bfloat16")
except shmgen.InputError as error: say(error)
"""
    run = script(code, folder(8))

    assert run.end() == 0, run.err
    assert "dtype: expected one of numbers, found 'bfloat16'" in run.out
