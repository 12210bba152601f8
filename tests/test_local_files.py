"""Local files of all sources: temporary errors of a mount, pointer files of Git LFS, and archives that unpack to too much."""

from __future__ import annotations

import errno
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from shmgen import Hdf5, Images, InputError, Loader, Npy, NpyRows, Npz, SampleError
from shmgen._samples.npy_format import MAGIC
from shmgen._storage import local

N = 4

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
)


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
    """Make opening a folder's files fail ``times`` times, with error ``number``; return a list of the files that failed."""
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
def test_temporary_errors_are_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, write: Callable[[Path], Any]
) -> None:
    """A temporary error of a mount, when a source is bound or a sample read, is retried three times, and logged once a kind;
    after that, or with any other error, a SampleError is raised."""
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


def test_a_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    """If a file is a pointer of Git LFS instead of data, the error says so, and names the command that gets the data."""
    for write in SOURCES:
        (tmp_path / write.__name__).mkdir()
        source = write(tmp_path / write.__name__)
        for path in (tmp_path / write.__name__).iterdir():
            path.write_bytes(POINTER)
        with pytest.raises((InputError, SampleError), match=r"found a pointer file of Git LFS .*; run `git lfs pull`"):
            Loader(range(N), source=source, batch_size=N, workers=0)


def archive(path: Path, shape: str, size: int) -> None:
    """Write an archive whose only member is ``size`` zero bytes, with a header of the given shape."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x.npy", MAGIC + b"\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(size))


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        pytest.param("(33554432,)", r"expected shape \(4, 3\), found \(33554432,\)", id="shape"),
        pytest.param("(4, 3)", r"array 'x': expected 140 bytes, found 33,554,560", id="larger-than-its-header-says"),
    ],
)
def test_only_the_header_of_an_oversized_member_is_read(tmp_path: Path, shape: str, text: str) -> None:
    """Of an archive member that unpacks to more than a row, only the header is read."""
    for number in range(N):
        np.savez_compressed(tmp_path / f"{number}.npz", x=np.zeros((4, 3), "u1"))
    archive(tmp_path / "2.npz", shape, 1 << 25)
    with Loader(range(N), source=Npz(tmp_path)["x"], batch_size=N, workers=0) as loader:
        tracemalloc.start()
        try:
            with pytest.raises(SampleError, match=text):
                loader.batch(0)
            assert tracemalloc.get_traced_memory()[1] < 1 << 22
        finally:
            tracemalloc.stop()
