"""Files that change while a loader reads them: a row is old or new, never a mixture, or it raises an error."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DataSet

from shmgen import Loader, NpyRows, SampleError

N = 24
NEW = 1000
"""Difference between the elements of a new and an old version of a sample."""


def replaced(data: DataSet, by: int) -> None:
    """Replace each file, atomically, by one whose elements are the sample's number plus ``by``."""
    for number, id in enumerate(data.ids):
        new = data.path / "new.npy"
        np.save(new, data.sample(number) + by)
        new.rename(data.file(id))


def news(data: DataSet, loader: Loader) -> list[int]:
    """The differences between the samples of an epoch and their numbers; check that rows are uniform, each sample once."""
    found, labels = [], []
    for X, y in loader:
        for row, label in zip(X, y.tolist(), strict=True):
            assert (row.flat[0] == row).all()
            found.append(int(row.flat[0]) - label)
            labels.append(label)
    assert sorted(labels) == list(range(len(data.ids)))
    return found


def test_files_replaced_between_epochs(folder: Callable[..., DataSet]) -> None:
    """If files are replaced between epochs, each row is the old or the new version, and then all are new."""
    data = folder(N)
    with Loader(data.ids, data.labels, 4, data_dir=data.path, workers=2, slots=2) as loader:
        assert news(data, loader) == [0] * N
        replaced(data, NEW)
        assert set(news(data, loader)) <= {0, NEW}
        assert news(data, loader) == [NEW] * N


def test_a_folder_deleted_during_an_epoch(folder: Callable[..., DataSet]) -> None:
    """If the folder disappears, as an unmounted one does, batches raise errors; once it is back, the loader reads on."""
    data = folder(N)
    with Loader(data.ids, data.labels, 4, data_dir=data.path, workers=2, slots=2, shuffle=False) as loader:
        batches = iter(loader)
        data.check(*next(batches))
        away = data.path.rename(data.path.with_name("away"))
        for number in range(1, len(loader)):
            with (
                suppress(SampleError)
                if number < 4
                else pytest.raises(SampleError, match=r"expected a file, found none") as raised
            ):
                data.check(*next(batches))  # some of the first batches have been read ahead
        assert raised is not None
        assert raised.value.id in data.ids[-4:]
        assert raised.value.path == str(data.file(raised.value.id))
        away.rename(data.path)
        epoch = iter(loader)
        for _ in range(len(loader)):
            with suppress(SampleError):  # some batches of this epoch may have been read ahead while the folder was away
                next(epoch)
        assert news(data, loader) == [0] * N


@pytest.mark.parametrize(("shape", "workers"), [((4, 3), 0), ((300, 300), 2)], ids=["a-page", "many-pages-by-workers"])
def test_files_rewritten_during_an_epoch(folder: Callable[..., DataSet], shape: tuple[int, ...], workers: int) -> None:
    """While files are truncated and rewritten, each row is one version of its sample, or its batch raises an error."""
    data = folder(6, shape)
    over = threading.Event()

    def write() -> None:
        by = 0
        while not over.is_set():
            by += NEW
            for number, id in enumerate(data.ids):
                with open(data.file(id), "wb", buffering=0) as file:
                    np.save(file, data.sample(number) + by)

    writer = threading.Thread(target=write)
    read = 0
    with Loader(data.ids, data.labels, 1, data_dir=data.path, workers=workers) as loader:
        writer.start()
        try:
            for _ in range(20):
                batches = iter(loader)
                for _ in range(len(loader)):
                    with suppress(SampleError):
                        X, y = next(batches)
                        assert (X.flat[0] == X).all()
                        assert (int(X.flat[0]) - y[0]) % NEW == 0
                        read += 1
        finally:
            over.set()
            writer.join()
    assert read


def test_a_file_that_changes_between_two_reads_is_an_error(folder: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is rewritten between two reads of its parts raises an error, although size and header fit."""
    data = folder(2, (300, 300))
    path = data.file("id-1")
    whole = path.read_bytes()
    preadv = os.preadv
    calls = []

    def changing(fd: int, buffers: Any, offset: int) -> int:
        if not os.path.samestat(os.fstat(fd), path.stat()):
            return preadv(fd, buffers, offset)
        calls.append(offset)
        if len(calls) == 1:
            os.truncate(path, 1000)
        elif len(calls) == 3:
            os.truncate(path, 0)
            np.save(path, data.sample(1) + NEW)
        count = preadv(fd, buffers, offset)
        if len(calls) == 1:
            path.write_bytes(whole[:5000])
        return count

    with Loader(data.ids, data.labels, 2, data_dir=data.path, workers=0, shuffle=False) as loader:
        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", changing)
            with pytest.raises(SampleError, match=r"id-1\.npy: expected a file that does not change .* found .* written to"):
                next(iter(loader))
        assert len(calls) == 3
        assert (loader.batch(0)[0][1] == 1 + NEW).all()


def rows(by: int = 0, count: int = N) -> np.ndarray:
    """Rows of three elements, each the row's number plus ``by``."""
    return np.repeat(np.arange(count, dtype=np.float32) + by, 3).reshape(count, 3)


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A file of rows."""
    np.save(tmp_path / "big.npy", rows())
    return tmp_path / "big.npy"


def news_of_rows(loader: Loader) -> set[float]:
    """The differences between an epoch's rows and their numbers."""
    found = [(X[:, 0] - y).tolist() for X, y in loader if (X[:, :1] == X).all()]
    assert len(sum(found, [])) == N
    return set(sum(found, []))


def test_rows_truncated_during_an_epoch(big: Path) -> None:
    """In a truncated file, rows beyond the end raise errors, rows before it are right; once it is whole, all are right."""
    # Without workers nothing is read ahead: a row that is being read when the file is cut off would be named, too.
    with Loader(range(N), range(N), 4, source=NpyRows(big), workers=0, shuffle=False) as loader:
        batches = iter(loader)
        next(batches)
        os.truncate(big, 128 + 12 * 18)
        for number in range(1, 4):
            assert next(batches)[0][:, 0].tolist() == [*range(4 * number, 4 * number + 4)]
        with pytest.raises(SampleError, match=r"big\.npy: expected \d+ bytes, found 344: the file is truncated") as raised:
            next(batches)
        assert raised.value.id == 18
        with pytest.raises(SampleError):
            next(batches)
        with open(big, "r+b") as file:
            np.save(file, rows())
        assert news_of_rows(loader) == {0}
