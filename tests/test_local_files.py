"""Local files of all sources: errors of a mount that pass."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from shmgen import Hdf5, Images, Loader, Npy, NpyRows, Npz, SampleError
from shmgen._storage import local

N = 4


def write_npy(folder: Path) -> Any:
    for number in range(N):
        np.save(folder / f"{number}.npy", np.full((4, 3), number, "f4"))
    return Npy(folder)


def write_npz(folder: Path) -> Any:
    for number in range(N):
        np.savez_compressed(folder / f"{number}.npz", x=np.full((4, 3), number, "f4"))
    return Npz(folder)["x"]


def write_images(folder: Path) -> Any:
    for number in range(N):
        Image.fromarray(np.full((4, 3), number, "u1")).save(folder / f"{number}.png")
    return Images(folder, mode="L")


def write_rows(folder: Path) -> Any:
    np.save(folder / "all.npy", np.arange(N, dtype="f4")[:, None])
    return NpyRows(folder / "all.npy")


def write_flat(folder: Path) -> Any:
    with h5py.File(folder / "all.h5", "w") as file:
        file["x"] = np.arange(N, dtype="f4")[:, None]
    return Hdf5(folder / "all.h5", "x")


def write_chunks(folder: Path) -> Any:
    with h5py.File(folder / "all.h5", "w") as file:
        file.create_dataset("x", data=np.arange(N, dtype="f4")[:, None], chunks=(2, 1), compression="gzip")
    return Hdf5(folder / "all.h5", "x")


SOURCES = [write_npy, write_npz, write_images, write_rows, write_flat, write_chunks]


def failing(monkeypatch: pytest.MonkeyPatch, folder: Path, number: int, times: int) -> list[str]:
    """Have the opens of files in a folder fail with an error of this number, some times; returns the files of failed opens."""
    failed: list[str] = []

    def guarded(real: Callable[..., Any]) -> Callable[..., Any]:
        def opened(path: Any, *args: Any, **options: Any) -> Any:
            if len(failed) < times and os.path.basename(path) in names:
                failed.append(str(path))
                raise OSError(number, os.strerror(number), path)
            return real(path, *args, **options)

        return opened

    names = {path.name for path in folder.iterdir()}
    monkeypatch.setattr(os, "open", guarded(os.open))
    monkeypatch.setattr(h5py, "File", guarded(h5py.File))
    return failed


@pytest.mark.parametrize("write", SOURCES)
def test_an_error_that_passes_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, write: Callable[[Path], Any]
) -> None:
    """Where a sample is read, and where the source is bound: the read is tried again three times, and the log says so once for
    each error. An error that lasts is named after that, any other at once."""
    monkeypatch.setattr(local, "PAUSES", (0, 0, 0))
    monkeypatch.setattr(local, "_logged", set())
    source = write(tmp_path)
    with monkeypatch.context() as patch:
        failed = failing(patch, tmp_path, errno.ESTALE, times=3)
        loader = Loader(range(N), source=source, batch_size=N, shuffle=False, workers=0)
        assert len(failed) == 3
    assert caplog.text.count("a read failed, and is tried again") == 1
    for number, tries in ((errno.EIO, 4), (errno.EACCES, 1)):
        with monkeypatch.context() as patch:
            failed = failing(patch, tmp_path, number, times=99)
            with pytest.raises(SampleError, match=os.strerror(number)):
                loader.batch(0)
        assert len(failed) == tries
    failed = failing(monkeypatch, tmp_path, errno.EIO, times=3)
    with loader:
        (X,) = loader.batch(0)
    assert X.reshape(N, -1)[:, 0].tolist() == list(range(N))
    assert len(failed) == 3
    assert caplog.text.count("a read failed, and is tried again") == 2, "once for each error"
