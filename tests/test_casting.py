"""A cast to the rows' dtype may lose precision, but never changes a number otherwise, in any source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from shmgen import Function, Hdf5, Loader, Npy, Npz, SampleError
from shmgen._samples.casting import cast, holds
from shmgen.errors import FormatError

ROWS: list[tuple[str, str, Any, Any]] = [
    # dtype of the rows, dtype found, the number found, and the number in the row, or None for an error
    ("u1", "u2", 255, 255),
    ("u1", "u2", 256, None),
    ("u1", "i8", -1, None),
    ("i1", "i2", -128, -128),
    ("i1", "i2", -129, None),
    ("u8", "i8", -1, None),
    ("i8", "u8", 2**63, None),
    ("i8", "u8", 2**63 - 1, 2**63 - 1),
    ("f4", "f8", 1e30 + 1, 1e30),
    ("f4", "f8", 1e300, None),
    ("f4", "f8", -1e300, None),
    ("f4", "f8", np.inf, np.inf),
    ("f4", "f8", np.nan, np.nan),
    ("f2", "u4", 65504, 65504),
    ("f2", "u4", 70000, None),
    ("c8", "c16", 1e300j, None),
    ("f4", "f8", 1e-300, 0),
    ("f4", "i8", 2**24 + 1, 2**24),
    ("bfloat16", "f8", 1e300, None),
    ("float8_e4m3fn", "f4", 1000.0, None),
    ("int4", "i8", 9, None),
]


def test_casts_may_lose_precision_but_not_range() -> None:
    """A cast may lose precision; a number that the dtype can't hold raises an error; infinity and NaN are kept."""
    import ml_dtypes

    for dtype, found, number, held in ROWS:
        rows = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
        given = np.zeros((3, 4), found)
        given[1, 2] = number
        if held is None:
            with pytest.raises(FormatError, match=rf"numbers that dtype {rows} holds, found .* in dtype {np.dtype(found)}"):
                cast(given, rows)
        else:
            with np.errstate(all="raise"):
                result = cast(given, rows)
            np.testing.assert_array_equal(result[1, 2], np.array(held, rows))
            assert np.count_nonzero(result) == (held != 0)


HELD: list[tuple[str, float, bool]] = [
    ("u8", -1, False),
    ("u8", 2**64 - 1, True),
    ("i8", 2.0**63, False),
    ("i8", -(2.0**63), True),
    ("u1", 2.5, False),
    ("u1", np.nan, False),
    ("?", 2, False),
    ("f4", 1e300, False),
    ("f4", 2**70, True),
    ("f2", 1e-30, True),
    ("f4", -np.inf, True),
    ("c8", 1.5, True),
    ("int4", 7, True),
    ("int4", 100, False),
    ("float8_e4m3fn", 1000.0, False),
]


def test_which_numbers_a_dtype_holds() -> None:
    """A dtype of ints holds the whole numbers in its range; one of floats holds what it does not make infinite."""
    import ml_dtypes

    for dtype, number, held in HELD:
        with np.errstate(all="raise"):
            assert holds(np.dtype(getattr(ml_dtypes, dtype, None) or dtype), number) == held, (dtype, number)


def written(folder: Path, arrays: list[np.ndarray], kind: str) -> list[str]:
    """Write the arrays, to a file each or to one HDF5 file; return their ids."""
    folder.mkdir()
    for number, array in enumerate(arrays):
        if kind == "npz":
            np.savez(folder / f"{number}.npz", image=array)
        elif kind == "hdf5":
            with h5py.File(folder / "all.h5", "a") as file:
                file[f"rows/{number}"] = array
        else:
            np.save(folder / f"{number}.npy", array)
    return [str(number) for number in range(len(arrays))]


SOURCES: dict[str, Callable[[Path, list[np.ndarray]], Any]] = {
    "npy": lambda folder, arrays: Npy(folder),
    "npz": lambda folder, arrays: Npz(folder)["image"],
    "hdf5": lambda folder, arrays: Hdf5(folder / "all.h5", "rows/{id}"),
    "function": lambda folder, arrays: lambda id: arrays[int(id)],
    "list": lambda folder, arrays: Function(lambda id: arrays[int(id)].tolist(), 2, 1, "u1"),
    "padded": lambda folder, arrays: Npy(folder, 4, pad_value=7),
}


@pytest.mark.parametrize(("kind", "workers"), [*((kind, 0) for kind in SOURCES), ("npy", 1)])
def test_a_later_sample_out_of_range_is_damaged(tmp_path: Path, kind: str, workers: int) -> None:
    """A later sample with a number that the rows' dtype can't hold raises an error with a remedy, or is replaced."""
    arrays = [np.array([number, 255], "u1") for number in range(7)] + [np.array([3, 300], "u2")]
    ids = written(tmp_path / "data", arrays, kind)

    def loader(**options: Any) -> Loader:
        source = SOURCES[kind](tmp_path / "data", arrays)
        return Loader(ids, batch_size=8, source=source, shuffle=False, workers=workers, **options)

    with (
        loader() as strict,
        pytest.raises(SampleError, match=r"^sample '7'.* dtype uint8 holds, found 300 .*pass .*dtype='") as caught,
    ):
        list(strict)
    assert caught.value.id == "7"
    with loader(on_error="replace", max_damaged=0.5) as lenient:
        ((X,),) = lenient
        assert [damaged.id for damaged in lenient.damaged] == ["7"]
        assert X[:7].reshape(7, -1)[:, :2].tolist() == [array.tolist() for array in arrays[:7]]


def test_a_transforms_result_out_of_range_is_an_error() -> None:
    """A transform's float64 result that would become infinite as float32 raises an error that names the transform."""

    def source(id: int) -> np.ndarray:
        return np.full(3, 1 + id, "f4")

    match = r"transform of field 'X': .* dtype float32 holds, found -?\de\+300 and 2 more of 3 .*dtype='float64'"
    with (
        Loader(range(4), batch_size=4, source=source, transform=lambda x, rng: x.astype("f8") * 1e300, workers=0) as loader,
        pytest.raises(SampleError, match=match),
    ):
        list(loader)


def test_masked_elements_are_an_error() -> None:
    """A masked array with masked elements raises an error; one without is read."""

    def source(id: int) -> Any:
        return np.ma.masked_equal(np.array([id, 1, 2], "f4"), 5)

    with Loader(range(5), batch_size=5, source=source, shuffle=False, workers=0) as loader:
        assert next(iter(loader))[0][:, 0].tolist() == [0, 1, 2, 3, 4]
    with (
        Loader(range(8), batch_size=8, source=source, workers=0) as loader,
        pytest.raises(SampleError, match=r"^sample 5, .*found some; fill it: array\.filled\(number\)"),
    ):
        list(loader)
