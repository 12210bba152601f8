"""Rows: nothing of another sample is ever in one, a batch that is a copy is as good as any, and dtypes beyond NumPy's own work."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmgen._filler
from shmgen import Function, Loader, Npy, NpyRows, Source
from shmgen._source import RawSource

N = 40

WORKERS = [pytest.param(0, id="in-process"), pytest.param(2, id="2-workers")]


# Rows that are filled in part.


def padded(data: Any, path: Path) -> dict[str, Any]:
    """Sources by kind: of row k they fill the first k % 3 numbers with k; how may fail at first, as files in ``path`` say."""
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
            for self.at[0], id in enumerate(ids, 1):
                pad(id, rows[self.at[0] - 1])

    class Raw(RawSource):
        shape, dtype = (4, 3), "f4"

        def fill(self, ids: Any, rows: Any) -> None:
            for self.at[0], id in enumerate(ids, 1):
                pad(id, np.frombuffer(rows, "f4").reshape(-1, 4, 3)[self.at[0] - 1])

    class Files(Npy):
        fill = Raw.fill

    class Derived(Function):
        def read(self, id: Any, row: np.ndarray) -> None:
            pad(id, row)

    return {
        "function": Function(pad, (4, 3), dtype="f4"),
        "read": Reading(),
        "fill": Filling(),
        "raw": Raw(),
        "files": Files(data.path),
        "derived": Derived(lambda id: np.zeros((4, 3), "f4")),
    }


def left_out(X: np.ndarray, y: np.ndarray) -> list[int]:
    """Labels of rows that do not hold what a `padded` source fills, and zeros."""
    flat = X.reshape(len(X), -1)
    expected = np.where(np.arange(12) < y[:, None] % 3, y[:, None], 0)
    return y[(flat != expected).any(axis=1)].tolist()


PADDED = ["function", "read", "fill", "raw", "files", "derived"]


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("kind", PADDED)
def test_what_a_source_leaves_out_of_a_row_is_zero(folder: Callable, tmp_path: Path, kind: str, workers: int) -> None:
    """Whichever way a part of a row is filled, nothing of the sample that the slot held before is in the rest."""
    data = folder(N)
    with Loader(data.ids, data.labels, 4, source=padded(data, tmp_path)[kind], slots=2, workers=workers) as loader:
        assert [left_out(X, y) for _ in range(3) for X, y in loader] == [[]] * 30


@pytest.mark.parametrize("field", ["X", None], ids=["one-field", "whole-sample"])
def test_a_transform_sees_zeros_where_nothing_was_filled(folder: Callable, tmp_path: Path, field: str | None) -> None:
    """And what it writes there is gone when the slot is filled again."""
    data = folder(N)

    def minus(row: Any, rng: object) -> None:
        X = row["X"] if isinstance(row, dict) else row
        assert not X.ravel()[2:].any()
        X -= 1

    transform = {field: minus} if field else minus
    inputs = {"X": padded(data, tmp_path)["function"]}
    with Loader(data.ids, data.labels, 4, inputs=inputs, transform=transform, slots=2, workers=1) as loader:
        assert [left_out(X["X"] + 1, y) for _ in range(3) for X, y in loader] == [[]] * 30


@pytest.mark.parametrize(("mark", "workers"), [("fails", 0), ("fails", 1), ("dies", 1)])
@pytest.mark.parametrize("kind", PADDED)
def test_a_row_is_clear_when_it_is_filled_again(folder: Callable, tmp_path: Path, kind: str, mark: str, workers: int) -> None:
    """After a failure, for which another sample stands in, or a death, nothing is left of what was written before it."""
    data = folder(N)
    bad = range(1, N, 9)
    for number in bad:
        (tmp_path / f"{mark}-{number}").touch()
    source = padded(data, tmp_path)[kind]
    options = {"slots": 2, "workers": workers, "on_error": "replace", "max_damaged": 0.5}
    with Loader(data.ids, data.labels, 4, source=source, **options) as loader:
        assert [left_out(X, y) for X, y in loader] == [[]] * 10
        assert len(loader.damaged) == (len(bad) if mark == "fails" else 0)
        assert loader.stats.restarts == (len(bad) if mark == "dies" else 0)
    assert not list(tmp_path.glob(f"{mark}-*"))


def test_plain_files_are_not_cleared_before_they_are_read(folder: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, rows of one file, and a function that returns its rows overwrite them whole, and pay nothing for others."""
    data = folder(8)
    np.save(data.path / "all.npy", np.zeros((8, 3)))
    cleared: list[int] = []
    monkeypatch.setattr(shmgen._filler, "_clear", lambda rows: cleared.append(len(rows)))
    for source in (Npy(data.path), Function(lambda id: np.zeros(3))):
        with Loader(data.ids, None, 4, source=source, workers=0) as loader:
            assert len(list(loader)) == 2
    with Loader(range(8), None, 4, source=NpyRows(data.path / "all.npy"), workers=0) as loader:
        assert len(list(loader)) == 2
    assert cleared == []
    with Loader(data.ids, None, 4, source=padded(data, data.path)["read"], workers=0) as loader:
        assert len(list(loader)) == 2
    assert cleared == [4 * 48] * 2
