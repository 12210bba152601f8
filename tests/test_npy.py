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

WORKERS = [pytest.param(0, id="in-process"), pytest.param(2, id="2-workers")]

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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", WORKERS)
def test_every_kind_of_file_is_read_as_numpy_loads_it(tmp_path: Path, kind: str, workers: int) -> None:
    """Files all of one kind come out as `numpy.load` reads them."""
    for id in range(4):
        (tmp_path / f"{id}.npy").write_bytes(KINDS[kind](number_up((4, 3, 2), np.float32, id)))

    X = rows_of(tmp_path, list(range(4)), dtype=np.float32, workers=workers)

    assert X.dtype == np.float32
    np.testing.assert_array_equal(X, [np.load(tmp_path / f"{id}.npy") for id in range(4)])


@pytest.mark.parametrize("first", KINDS)
def test_all_kinds_of_files_mix_in_one_folder(tmp_path: Path, first: str) -> None:
    """Whichever kind of file comes first, all the others may follow it, each kind twice in a row and then in turn."""
    kinds = [first, *(kind for kind in KINDS if kind != first)]
    order = [*(kind for kind in kinds for _ in range(2)), *kinds, *reversed(kinds)]
    for id, kind in enumerate(order):
        (tmp_path / f"{id}.npy").write_bytes(KINDS[kind](number_up((4, 3, 2), np.float32, id)))

    X = rows_of(tmp_path, list(range(len(order))), dtype=np.float32, workers=2)

    np.testing.assert_array_equal(X, [np.load(tmp_path / f"{id}.npy") for id in range(len(order))])


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_dtypes_are_taken_from_the_first_file(tmp_path: Path, dtype: str, byteorder: Any) -> None:
    """Without ``dtype``, X has that of the first file, in native byte order, and the same values."""
    for id in range(3):
        np.save(tmp_path / f"{id}.npy", number_up((5, 2), dtype, id).astype(np.dtype(dtype).newbyteorder(byteorder)))

    X = rows_of(tmp_path, [0, 1, 2])

    assert X.dtype == np.dtype(dtype)
    assert X.dtype.isnative
    np.testing.assert_array_equal(X, [np.load(tmp_path / f"{id}.npy") for id in range(3)])


@pytest.mark.parametrize("found", DTYPES)
def test_every_same_kind_cast_gives_what_numpy_gives(tmp_path: Path, found: str) -> None:
    """A file is cast where NumPy calls the cast "same_kind", or both are ints, to the values of ``astype``."""
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


@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 1), (1, 2, 3, 1, 2)], ids=str)
@pytest.mark.parametrize("workers", WORKERS)
def test_samples_of_any_rank(tmp_path: Path, shape: tuple[int, ...], workers: int) -> None:
    """Scalars, vectors and arrays of five axes are rows like any other."""
    for id in range(3):
        np.save(tmp_path / f"{id}.npy", number_up(shape, np.int32, id))

    X = rows_of(tmp_path, [0, 1, 2], workers=workers)

    assert X.shape == (3, *shape)
    np.testing.assert_array_equal(X, [np.load(tmp_path / f"{id}.npy") for id in range(3)])


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


@pytest.mark.parametrize("dtype", [None, np.float64], ids=["dtype-left-out", "dtype"])
@pytest.mark.parametrize(("found", "dim", "n_channels", "row"), SHAPES)
def test_what_is_left_out_is_read_from_the_first_header(
    tmp_path: Path, found: tuple[int, ...], dim: object, n_channels: int | None, row: tuple[int, ...], dtype: Any
) -> None:
    """``dim``, ``n_channels`` and ``dtype``, left out in every combination, give rows of the right shape and dtype."""
    for id in range(3):
        np.save(tmp_path / f"{id}.npy", number_up(found, np.float32, id))

    X = rows_of(tmp_path, [0, 1, 2], dim=dim, n_channels=n_channels, dtype=dtype)

    assert X.dtype == np.dtype(dtype or np.float32)
    assert X.shape == (3, *row)
    np.testing.assert_array_equal(X, [np.load(tmp_path / f"{id}.npy").reshape(row) for id in range(3)])


@pytest.mark.parametrize("bare_first", [True, False], ids=["bare-first", "with-channel-first"])
@pytest.mark.parametrize(
    ("dim", "n_channels"),
    [
        pytest.param((4, 5), 1, id="dim-and-n_channels"),
        pytest.param((4, 5), None, id="dim"),
        pytest.param(None, 1, id="n_channels"),
    ],
)
def test_with_one_channel_files_with_and_without_it_mix(
    tmp_path: Path, dim: object, n_channels: int | None, bare_first: bool
) -> None:
    """Where the channel is but one, files of shape ``dim`` and of shape ``(*dim, 1)`` may stand in one folder."""
    for id in range(6):
        bare = (id % 2 == 0) == bare_first
        np.save(tmp_path / f"{id}.npy", number_up((4, 5) if bare else (4, 5, 1), np.float32, id))

    X = rows_of(tmp_path, list(range(6)), dim=dim, n_channels=n_channels)

    np.testing.assert_array_equal(X, [number_up((4, 5, 1), np.float32, id) for id in range(6)])


@pytest.mark.parametrize("kind", ["c-order", "fortran-order"])
def test_a_file_longer_than_one_read_of_the_kernel(tmp_path: Path, kind: str) -> None:
    """A sample of many pages, in an odd shape, comes whole."""
    array = number_up((101, 103, 53), np.float32)
    (tmp_path / "0.npy").write_bytes(KINDS[kind](array))

    np.testing.assert_array_equal(rows_of(tmp_path, [0], workers=2, batch_size=1)[0], array)


def test_a_header_of_python_2_is_read(tmp_path: Path) -> None:
    """Python 2 wrote sizes as ``4L``; `numpy.load` takes them, and so does a loader."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (4L, 2L), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    array = number_up((4, 2), np.float32)
    (tmp_path / "0.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + array.tobytes())

    np.testing.assert_array_equal(rows_of(tmp_path, [0])[0], array)


@pytest.mark.parametrize(
    "id",
    [7, "a b", "sub/folder", "µ-ø-漢", "..x", np.int64(7), np.str_("np")],
    ids=repr,
)
def test_any_id_whose_text_makes_a_path(tmp_path: Path, id: object) -> None:
    """An id is whatever the user has: its text, with .npy behind it, is the file's name."""
    (tmp_path / f"{id}.npy").parent.mkdir(exist_ok=True)
    np.save(tmp_path / f"{id}.npy", number_up((3,), np.float32))

    np.testing.assert_array_equal(rows_of(tmp_path, [id, id], workers=2)[1], number_up((3,), np.float32))


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param(["3", "1", "2", "0"], id="list"),
        pytest.param(("3", "1", "2", "0"), id="tuple"),
        pytest.param(range(3, -1, -1), id="range"),
        pytest.param(np.array([3, 1, 2, 0]), id="int-array"),
        pytest.param(np.array(["3", "1", "2", "0"]), id="str-array"),
        pytest.param(iter(["3", "1", "2", "0"]), id="iterator"),
    ],
)
def test_any_iterable_of_ids(tmp_path: Path, ids: Any) -> None:
    """Ids come as whatever can be iterated over, and keep their order."""
    for id in range(4):
        np.save(tmp_path / f"{id}.npy", number_up((3,), np.float32, id))
    order = [3, 2, 1, 0] if isinstance(ids, range) else [3, 1, 2, 0]

    with Loader(ids, None, 4, data_dir=tmp_path, shuffle=False, workers=0) as loader:
        ((X,),) = loader

    np.testing.assert_array_equal(X, [number_up((3,), np.float32, id) for id in order])


def test_a_later_change_of_directory_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative ``data_dir`` means the one at the time of the call."""
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "0.npy", number_up((3,), np.float32))
    monkeypatch.chdir(tmp_path)
    with Loader([0], None, 1, workers=0) as loader:
        monkeypatch.chdir("/")
        ((X,),) = loader

    np.testing.assert_array_equal(X[0], number_up((3,), np.float32))
