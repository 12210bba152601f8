"""Whatever `numpy.load` reads without pickle, a loader reads into its rows, to the same values."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmgen import Loader, SampleError

DTYPES = [
    "bool",
    *("int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "longdouble"),
    *("complex64", "complex128"),
]


def rows_of(folder: Path, ids: list[object], **options: Any) -> np.ndarray:
    """The rows of ``ids``, in order."""
    options = {"workers": 0, "batch_size": len(ids), **options}
    with Loader(ids, None, data_dir=folder, shuffle=False, **options) as loader:
        ((X,),) = loader
        return X


def number_up(shape: tuple[int, ...], dtype: Any, start: int = 0) -> np.ndarray:
    """An array whose elements differ, so that a wrong order of axes or bytes shows."""
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
    "big-endian-fortran": lambda a: as_version(np.asfortranarray(a.astype(a.dtype.newbyteorder(">"))), (1, 0)),
    "version-2": lambda a: as_version(a, (2, 0)),
    "version-3": lambda a: as_version(a, (3, 0)),
    "version-3-by-hand": as_version_3,
    "float64-cast": lambda a: as_version(a.astype(np.float64), (1, 0)),
    "int16-cast": lambda a: as_version(a.astype(np.int16), (1, 0)),
    "bytes-after-the-data": lambda a: as_version(a, (1, 0)) + b"trailing bytes" * 100,
}


@pytest.mark.parametrize(("first", "workers"), [("c-order", 2), *((kind, 0) for kind in list(KINDS)[1:])])
def test_all_kinds_of_files_mix_in_one_folder(tmp_path: Path, first: str, workers: int) -> None:
    """Whichever kind of file is first, all others may follow, in any order."""
    kinds = [first, *(kind for kind in KINDS if kind != first)]
    order = [*(kind for kind in kinds for _ in range(2)), *kinds, *reversed(kinds)]
    for id, kind in enumerate(order):
        (tmp_path / f"{id}.npy").write_bytes(KINDS[kind](number_up((4, 3, 2), np.float32, id)))

    X = rows_of(tmp_path, list(range(len(order))), dtype=np.float32, workers=workers)

    np.testing.assert_array_equal(X, [np.load(tmp_path / f"{id}.npy") for id in range(len(order))])


@pytest.mark.parametrize("found", DTYPES)
def test_every_same_kind_cast_gives_what_numpy_gives(tmp_path: Path, found: str) -> None:
    """A file is cast as by ``astype`` where NumPy calls that "same_kind", or both are ints; else it is an error."""
    array = number_up((3, 2), found)
    np.save(tmp_path / "0.npy", array)

    for wanted in DTYPES:
        if np.can_cast(found, wanted, "same_kind") or (np.dtype(found).kind in "iu" and np.dtype(wanted).kind in "iu"):
            X = rows_of(tmp_path, [0], dtype=wanted)
            assert X.dtype == np.dtype(wanted)
            np.testing.assert_array_equal(X[0], array.astype(wanted))
        else:
            with pytest.raises(SampleError, match=f"expected dtype {np.dtype(wanted)}, found {np.dtype(found)}"):
                rows_of(tmp_path, [0], dtype=wanted)


SHAPES = [
    # what the files have, dim, n_channels, what a row then has
    pytest.param((4, 5), None, None, (4, 5), id="nothing-given"),
    pytest.param((4, 5, 1), None, None, (4, 5, 1), id="nothing-given-one-channel"),
    pytest.param((4, 5, 3), None, None, (4, 5, 3), id="nothing-given-channels"),
    pytest.param((4, 5), (4, 5), None, (4, 5), id="dim"),
    pytest.param((4, 5, 1), (4, 5), None, (4, 5, 1), id="dim-one-channel"),
    pytest.param((4, 5, 3), (4, 5), None, (4, 5, 3), id="dim-channels"),
    pytest.param((4, 5), None, 1, (4, 5, 1), id="n_channels"),
    pytest.param((4, 5, 1), None, 1, (4, 5, 1), id="n_channels-one-channel"),
    pytest.param((4, 5, 3), None, 3, (4, 5, 3), id="n_channels-channels"),
    pytest.param((4, 5), (4, 5), 1, (4, 5, 1), id="both"),
    pytest.param((4, 5, 1), (4, 5), 1, (4, 5, 1), id="both-one-channel"),
    pytest.param((4, 5, 3), (4, 5), 3, (4, 5, 3), id="both-channels"),
    pytest.param((4,), 4, 1, (4, 1), id="dim-is-an-int"),
    pytest.param((4, 5), [4, 5], 1, (4, 5, 1), id="dim-is-a-list"),
    pytest.param((), (), 1, (1,), id="dim-is-empty"),
]


@pytest.mark.parametrize(("found", "dim", "n_channels", "row"), SHAPES)
def test_what_is_left_out_is_read_from_the_first_header(
    tmp_path: Path, found: tuple[int, ...], dim: object, n_channels: int | None, row: tuple[int, ...]
) -> None:
    """Whichever of ``dim``, ``n_channels`` and ``dtype`` are left out come from the first file."""
    for id in range(3):
        np.save(tmp_path / f"{id}.npy", number_up(found, np.float32, id))

    for dtype in (None, np.float64):
        X = rows_of(tmp_path, [0, 1, 2], dim=dim, n_channels=n_channels, dtype=dtype)

        assert X.dtype == np.dtype(dtype or np.float32)
        assert X.shape == (3, *row)
        np.testing.assert_array_equal(X, [np.load(tmp_path / f"{id}.npy").reshape(row) for id in range(3)])


@pytest.mark.parametrize(
    ("dim", "n_channels", "bare_first"),
    [((4, 5), 1, True), ((4, 5), 1, False), ((4, 5), None, False), (None, 1, True), (None, 1, False)],
)
def test_with_one_channel_files_with_and_without_it_mix(
    tmp_path: Path, dim: object, n_channels: int | None, bare_first: bool
) -> None:
    """With one channel, files of shape ``dim`` and ``(*dim, 1)`` may stand in one folder."""
    for id in range(6):
        bare = (id % 2 == 0) == bare_first
        np.save(tmp_path / f"{id}.npy", number_up((4, 5) if bare else (4, 5, 1), np.float32, id))

    X = rows_of(tmp_path, list(range(6)), dim=dim, n_channels=n_channels)

    np.testing.assert_array_equal(X, [number_up((4, 5, 1), np.float32, id) for id in range(6)])


@pytest.mark.parametrize("kind", ["c-order", "fortran-order"])
def test_a_file_longer_than_one_read_of_the_kernel(tmp_path: Path, kind: str) -> None:
    """A sample of many pages, of an odd shape, is read whole."""
    array = number_up((101, 103, 53), np.float32)
    (tmp_path / "0.npy").write_bytes(KINDS[kind](array))

    np.testing.assert_array_equal(rows_of(tmp_path, [0])[0], array)
