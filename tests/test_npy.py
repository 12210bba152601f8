"""A loader reads all files that `numpy.load` reads without pickle, with the same values."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmgen import Loader, SampleError

DTYPES = ["bool", "int8", "int64", "uint8", "uint16", "uint64", "float16", "float32", "longdouble", "complex64", "complex128"]


def rows_of(folder: Path, ids: list[object], **options: Any) -> np.ndarray:
    """The rows of ``ids``, in order."""
    options = {"workers": 0, "batch_size": len(ids), **options}
    with Loader(ids, None, data_dir=folder, shuffle=False, **options) as loader:
        ((X,),) = loader
        return X


def number_up(shape: tuple[int, ...], dtype: Any, start: int = 0) -> np.ndarray:
    """An array with different elements, so that a wrong order of axes or bytes shows."""
    size = int(np.prod(shape))
    return (np.arange(size) * 7 + start).reshape(shape).astype(dtype)


def as_version_3(array: np.ndarray) -> bytes:
    """``array`` in format version 3.0, written by hand from the format's description."""
    header = repr({"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}).encode("utf-8")
    header += b" " * (-(len(header) + 13) % 64) + b"\n"
    return b"\x93NUMPY\x03\x00" + struct.pack("<I", len(header)) + header + array.tobytes()


def as_version(array: np.ndarray, version: tuple[int, int]) -> bytes:
    """``array`` in a format version, written by NumPy."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version, allow_pickle=False)
    return file.getvalue()


KINDS: dict[str, Callable[[np.ndarray], bytes]] = {
    "c-order": lambda a: as_version(np.ascontiguousarray(a), (1, 0)),
    "fortran-order": lambda a: as_version(np.asfortranarray(a), (1, 0)),
    "big-endian": lambda a: as_version(a.astype(a.dtype.newbyteorder(">")), (1, 0)),
    "version-2": lambda a: as_version(a, (2, 0)),
    "version-3-by-hand": as_version_3,
    "float64-cast": lambda a: as_version(a.astype(np.float64), (1, 0)),
    "int16-cast": lambda a: as_version(a.astype(np.int16), (1, 0)),
    "bytes-after-the-data": lambda a: as_version(a, (1, 0)) + b"trailing bytes" * 100,
}


@pytest.mark.parametrize(("first", "workers"), [("c-order", 2), ("fortran-order", 0), ("big-endian", 0), ("float64-cast", 0)])
def test_all_kinds_of_files_mix_in_one_folder(tmp_path: Path, first: str, workers: int) -> None:
    """Files of all kinds may follow any kind of first file, in any order."""
    kinds = [first, *(kind for kind in KINDS if kind != first)]
    order = [*(kind for kind in kinds for _ in range(2)), *kinds, *reversed(kinds)]
    for id, kind in enumerate(order):
        (tmp_path / f"{id}.npy").write_bytes(KINDS[kind](number_up((4, 3, 2), np.float32, id)))

    X = rows_of(tmp_path, list(range(len(order))), dtype=np.float32, workers=workers)

    np.testing.assert_array_equal(X, [np.load(tmp_path / f"{id}.npy") for id in range(len(order))])


def test_same_kind_casts_equal_those_of_numpy(tmp_path: Path) -> None:
    """A file is cast as by ``astype`` if NumPy calls the cast "same_kind", or both are ints; otherwise it is an error."""
    for found, wanted in product(DTYPES, DTYPES):
        array = number_up((3, 2), found)
        np.save(tmp_path / "0.npy", array)
        if np.can_cast(found, wanted, "same_kind") or (np.dtype(found).kind in "iu" and np.dtype(wanted).kind in "iu"):
            X = rows_of(tmp_path, [0], dtype=wanted)
            assert X.dtype == np.dtype(wanted)
            np.testing.assert_array_equal(X[0], array.astype(wanted))
        else:
            with pytest.raises(SampleError, match=f"expected dtype {np.dtype(wanted)}, found {np.dtype(found)}"):
                rows_of(tmp_path, [0], dtype=wanted)


@pytest.mark.parametrize(("dim", "n_channels", "bare_first"), [((4, 5), 1, True), ((4, 5), None, False), (None, 1, False)])
def test_files_with_and_without_a_channel_mix(tmp_path: Path, dim: object, n_channels: int | None, bare_first: bool) -> None:
    """With one channel, files of shapes ``dim`` and ``(*dim, 1)`` may be mixed in one folder."""
    for id in range(6):
        bare = (id % 2 == 0) == bare_first
        np.save(tmp_path / f"{id}.npy", number_up((4, 5) if bare else (4, 5, 1), np.float32, id))

    X = rows_of(tmp_path, list(range(6)), dim=dim, n_channels=n_channels)

    np.testing.assert_array_equal(X, [number_up((4, 5, 1), np.float32, id) for id in range(6)])


def test_a_file_longer_than_one_read_of_the_kernel(tmp_path: Path) -> None:
    """A sample that is larger than the kernel reads in one call is read whole."""
    array = number_up((101, 103, 53), np.float32)
    np.save(tmp_path / "0.npy", np.asfortranarray(array))

    np.testing.assert_array_equal(rows_of(tmp_path, [0])[0], array)
