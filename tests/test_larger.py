"""Samples of another shape than the rows: a transform makes rows of them, or they are padded, with their lengths and masks."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from shmgen import FunctionError, InputError, Loader, Npy, SampleError, Source, Values
from shmgen._sources.npy import NpyReader

# Functions that are sent to workers are defined inside tests: for those of this module, workers would import pytest.

N = 24


def pictures(folder: Path, dtype: Any = np.uint8) -> list[str]:
    """Write a file for each of ``N`` ids, of shapes from (5, 6) to (12, 12): element (i, j) of number n is 1000 n + 20 i + j."""
    folder.mkdir(exist_ok=True)
    ids = [f"id-{number}" for number in range(N)]
    for number, id in enumerate(ids):
        np.save(folder / f"{id}.npy", picture(number).astype(dtype))
    return ids


def picture(number: int) -> np.ndarray:
    """The array that `pictures` writes; every sixth has the shape of a row, (5, 6)."""
    rows, columns = 5 + number % 6, 6 + number % 6
    return 1000 * number + 20 * np.arange(rows)[:, None] + np.arange(columns)


def cropping() -> Callable[..., Any]:
    """A transform that returns a random part of shape (5, 6)."""

    def crop(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        top, left = rng.integers(x.shape[0] - 4), rng.integers(x.shape[1] - 5)
        return x[top : top + 5, left : left + 6]

    return crop


def check_crops(X: np.ndarray, numbers: list[int]) -> set[tuple[int, int]]:
    """Assert that each row is a part of its picture; return the parts' top left corners."""
    begun = set()
    for row, number in zip(X.reshape(len(X), 5, 6).astype(int), numbers, strict=True):
        top, left = divmod(row[0, 0] - 1000 * number, 20)
        np.testing.assert_array_equal(row, picture(number)[top : top + 5, left : left + 6])
        begun.add((int(top), int(left)))
    return begun


def test_random_crops_of_files_of_several_sizes(tmp_path: Path) -> None:
    """A transform crops files to ``dim`` at random: differently in each epoch, and the same with any number of workers, whether
    the first file has a row's shape or not."""
    whole = pictures(tmp_path, np.uint16)
    found = []
    for first, count in ((0, 0), (1, 2), (1, 0)):
        options: dict[str, Any] = {"data_dir": tmp_path, "transform": cropping(), "tail": "keep", "dtype": "i4"}
        with Loader(whole[first:], range(first, N), 4, (5, 6), 1, workers=count, **options) as loader:
            assert loader.dim == (5, 6)
            epochs = []
            for _ in range(2):
                rows = [(X, y.tolist()) for X, y in loader]
                assert sorted(n for _, y in rows for n in y) == list(range(first, N))
                begun = set().union(*(check_crops(X, y) for X, y in rows))
                assert len(begun) > 5
                epochs.append(np.concatenate([X for X, _ in rows]))
        found.append(epochs)
    for one, other in zip(*found[1:], strict=True):
        np.testing.assert_array_equal(one, other)


def test_image_and_mask_are_cropped_alike(tmp_path: Path) -> None:
    """A transform of the sample gets all fields in the sizes that were read, so that it can crop picture and mask alike."""
    ids = pictures(tmp_path / "a", "i4")
    pictures(tmp_path / "b", "i8")
    crop = cropping()

    def both(sample: dict[str, np.ndarray], rng: np.random.Generator) -> None:
        assert sample["scan"].shape == (*sample["mask"].shape[:2], 1)
        state = rng.bit_generator.state
        sample["scan"] = crop(sample["scan"], rng)
        rng.bit_generator.state = state
        sample["mask"] = crop(sample["mask"], rng)
        sample["number"] += 1

    inputs = {"scan": Npy(tmp_path / "a", dim=(5, 6), n_channels=1)}
    targets = {"mask": Npy(tmp_path / "b", dim=(5, 6), n_channels=1), "number": Values(np.arange(N))}
    with Loader(ids, inputs=inputs, targets=targets, batch_size=8, transform=both, workers=1) as loader:
        for X, y in loader:
            assert X["scan"].shape == y["mask"].shape == (8, 5, 6, 1)
            np.testing.assert_array_equal(X["scan"], y["mask"])
            check_crops(X["scan"], (y["number"] - 1).tolist())


def test_a_transform_gets_a_copy(tmp_path: Path) -> None:
    """A transform gets a copy that it may change, also of an array that a function keeps, or that is read-only."""
    kept = {number: picture(number) for number in range(N)}
    for array in kept.values():
        array.flags.writeable = False
    crop = cropping()

    def change(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        x += 1
        return crop(x, rng)

    with Loader(range(N), None, N, (5, 6), 1, source=kept.__getitem__, transform=change, shuffle=False, workers=0) as loader:
        for _ in range(2):
            ((X,),) = loader
            check_crops(X - 1, list(range(N)))


def test_one_sample_at_a_time_is_held(tmp_path: Path) -> None:
    """Only one sample of another shape than the rows is in memory at a time."""
    ids = [f"id-{number}" for number in range(16)]
    for number, id in enumerate(ids):
        np.save(tmp_path / f"{id}.npy", np.zeros((4 if number == 0 else 1 << 20,), "f8"))

    with Loader(ids, None, 16, 4, 1, data_dir=tmp_path, transform=lambda x, rng: x[:4], shuffle=False, workers=0) as loader:
        for _ in range(2):
            tracemalloc.start()
            list(loader)
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert most < 4 * (8 << 20)


def test_files_are_read_together_again_after_one_of_another_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a single file of another shape, files are read together again before long."""
    ids = [f"id-{number}" for number in range(200)]
    for number, id in enumerate(ids):
        np.save(tmp_path / f"{id}.npy", np.full((9, 9) if number == 10 else (4, 4), number, "i4"))
    singly = []
    read = NpyReader.read

    def counted(self: NpyReader, id: Any, row: Any, rng: Any) -> Any:
        singly.append(id)
        return read(self, id, row, rng)

    monkeypatch.setattr(NpyReader, "read", counted)
    options: dict[str, Any] = {"transform": lambda x, rng: x[:4, :4], "data_dir": tmp_path, "shuffle": False, "workers": 0}
    with Loader(ids, range(200), 20, (4, 4), 1, **options) as loader:
        for X, y in loader:
            assert not (X - y[:, None, None, None]).any()
    assert singly[0] == "id-10"
    assert 40 < len(singly) < 120


@pytest.mark.parametrize("returns", ["numbers", "rows"])
def test_fill_may_leave_rows_to_read(returns: str) -> None:
    """``fill`` may return the numbers of rows that it left out, which ``read`` then reads; other results are ignored."""

    class Most(Source):
        shape, dtype = (4,), "i8"

        def read(self, id: int, row: np.ndarray) -> Any:
            return np.full(10, id)

        def fill(self, ids: Any, rows: np.ndarray) -> Any:
            left = [number for number, id in enumerate(ids) if id % 3 == 0 and returns == "numbers"]
            for number, id in enumerate(ids):
                if number not in left:
                    rows[number] = id
            return left if returns == "numbers" else rows

    options: dict[str, Any] = {"transform": lambda x, rng: x[-4:], "workers": 0}
    with Loader(range(N), range(N), source=Most(), batch_size=8, **options) as loader:
        for X, y in loader:
            assert not (X - y[:, None]).any()


def test_a_transform_that_keeps_another_shape_is_an_error(tmp_path: Path) -> None:
    """If a transform does not make rows of a file of another shape, the error names the file, or the sample is replaced."""
    ids = [f"id-{number}" for number in range(N)]
    for number, id in enumerate(ids):
        np.save(tmp_path / f"{id}.npy", np.full((5, 6) if number != 7 else (6, 5), number, "f4"))

    def flip(x: np.ndarray, rng: object) -> None:
        x[:] = x[::-1].copy()

    def flipped(x: np.ndarray, rng: object) -> np.ndarray:
        return x[::-1]

    for transform in (flipped, {"X": flip}, lambda sample, rng: None):
        single = not callable(transform) or transform is flipped
        options: dict[str, Any] = {"inputs": Npy(tmp_path, (5, 6), 1)} if single else {"inputs": {"X": Npy(tmp_path, (5, 6), 1)}}
        options |= {"batch_size": 8, "transform": transform, "workers": 0}
        with Loader(ids, **options) as loader, pytest.raises(SampleError) as caught:
            list(loader)
        assert (type(caught.value), caught.value.path) == (SampleError, f"{tmp_path}/id-7.npy")
        assert caught.value.reason.startswith(
            "expected shape (5, 6, 1) or (5, 6), found (6, 5, 1), of which the transform has made"
        )
        with Loader(ids, on_error="replace", max_damaged=0.1, **options) as loader:
            assert len(list(loader)) == 3
            assert [one.id for one in loader.damaged] == ["id-7"]


def test_without_dim_rows_have_the_first_files_shape(tmp_path: Path) -> None:
    """Without ``dim``, rows have the first file's shape; the error of another shape says how a transform could get it."""
    ids = pictures(tmp_path, "i4")
    with Loader(ids, None, 8, data_dir=tmp_path, transform=cropping(), workers=0) as loader, pytest.raises(SampleError) as caught:
        list(loader)
    assert caught.value.path.endswith(".npy")
    assert "expected shape (5, 6), found" in caught.value.reason
    assert "Where samples vary in size, give dim, and a transform that makes rows of them, or a pad_value" in caught.value.reason


@pytest.mark.parametrize(
    ("made", "text"),
    [
        pytest.param(
            lambda x: x[:2],
            "expected shape (4, 3), found (2, 3); return an array of a row's shape, or say by dim and n_channels what shape rows",
            id="shape",
        ),
        pytest.param(
            lambda x: x * 0.5,
            "expected dtype uint8, found float64, whose cast would lose more than precision; pass dtype='float32', so that rows "
            "have that, or return numbers that fit the rows' dtype, cast to it",
            id="dtype",
        ),
    ],
)
def test_the_remedy_for_a_transforms_shape_or_dtype_works(folder: Callable, made: Callable[..., Any], text: str) -> None:
    """If a transform returns another shape or dtype than the rows', the error has a remedy, which works."""
    data = folder(8, (4, 3), np.uint8)
    options: dict[str, Any] = {"data_dir": data.path, "transform": lambda x, rng: made(x), "workers": 0}
    with Loader(data.ids, None, 8, **options) as loader, pytest.raises(FunctionError) as caught:
        list(loader)
    assert str(caught.value).startswith(f"sample '{caught.value.id}', transform of field 'X': {text}")
    remedy = {"dim": 2, "n_channels": 3} if "shape" in text else {"dtype": "float64"}
    with Loader(data.ids, None, 8, **remedy, **options) as loader:
        ((X,),) = loader
        assert X.shape[1:] == ((2, 3) if "shape" in text else (4, 3))


def test_the_error_of_a_transform_has_the_samples_shape(tmp_path: Path) -> None:
    """The error of a transform that fails at a too small sample has the sample's shape and file."""
    ids = pictures(tmp_path, "i4")
    np.save(tmp_path / "id-7.npy", np.zeros((3, 9), "i4"))
    with (
        Loader(ids, None, 8, (5, 6), 1, data_dir=tmp_path, transform=cropping(), workers=0) as loader,
        pytest.raises(FunctionError) as caught,
    ):
        list(loader)
    assert (caught.value.id, caught.value.path) == ("id-7", "transform of field 'X'")
    assert caught.value.reason.startswith("ValueError: ")
    assert f"(the sample has shape (3, 9) in field 'X', {tmp_path}/id-7.npy)" in caught.value.reason


def sequences(folder: Path, dtype: Any = np.int64, *, features: int | None = None) -> list[str]:
    """Write a file for each of ``N`` ids, of lengths 1 to 8: number n is full of n + 1."""
    ids = [f"id-{number}" for number in range(N)]
    for number, id in enumerate(ids):
        shape = (1 + number % 8,) if features is None else (1 + number % 8, features)
        np.save(folder / f"{id}.npy", np.full(shape, number + 1, dtype))
    return ids


def check_padded(X: np.ndarray, numbers: Any, pad_value: float) -> None:
    """Assert that each row is its sequence, followed by padding."""
    for row, number in zip(X, numbers, strict=True):
        length = 1 + number % 8
        assert (row[:length] == number + 1).all()
        assert (row[length:] == pad_value).all()


def test_sequences_of_several_lengths_are_padded(tmp_path: Path) -> None:
    """Padded rows have the shape ``dim``; length and mask say which part of a row is from its file, in every epoch."""
    ids = sequences(tmp_path)
    tokens = Npy(tmp_path, dim=8, pad_value=-1)
    inputs = {"tokens": tokens, "length": tokens.length, "mask": tokens.mask}
    with Loader(ids, range(N), inputs=inputs, weights=tokens.mask, batch_size=8, workers=1) as loader:
        for _ in range(2):
            for X, y, weights in loader:
                assert (X["tokens"].shape, X["tokens"].dtype) == ((8, 8), np.int64)
                check_padded(X["tokens"], y, -1)
                assert X["length"].tolist() == (1 + y % 8).tolist()
                assert (X["mask"].dtype, weights.dtype) == (np.bool_, np.float32)
                np.testing.assert_array_equal(X["mask"], X["tokens"] != -1)
                np.testing.assert_array_equal(weights, X["mask"])


def test_padding_by_the_loaders_own_arguments(tmp_path: Path) -> None:
    """``Loader(ids, labels, dim=..., pad_value=...)`` pads arrays from files and from a function."""
    ids = sequences(tmp_path, "f4", features=3)
    options: dict[str, Any] = {"dim": 8, "n_channels": 3, "pad_value": np.float32(0.5), "batch_size": 8, "workers": 0}
    for given in ({"data_dir": tmp_path}, {"source": lambda id: np.load(tmp_path / f"{id}.npy")}):
        with Loader(ids, range(N), **given, **options) as loader:
            for X, y in loader:
                assert X.shape == (8, 8, 3)
                check_padded(X, y, 0.5)


def test_the_axes_of_a_mask(tmp_path: Path) -> None:
    """A mask has the shape of ``dim`` without channels, or of its first axes: ``mask_along(1)`` is a mask of time steps."""
    ids = sequences(tmp_path, "f4", features=3)
    padded, channels = Npy(tmp_path, dim=(8, 3), pad_value=0), Npy(tmp_path, dim=8, n_channels=3, pad_value=0)
    inputs = {"x": padded, "y": channels}
    masks = {"times": padded.mask_along(1), "both": padded.mask_along(2), "whole": padded.mask, "channels": channels.mask}
    with Loader(ids, inputs=inputs, targets=masks, batch_size=N, shuffle=False, workers=0) as loader:
        ((X, found),) = loader
        for name in ("times", "channels"):
            np.testing.assert_array_equal(found[name], X["x"][..., 0] != 0)
        for name in ("both", "whole"):
            np.testing.assert_array_equal(found[name], X["x"] != 0)


def test_padding_along_two_axes(tmp_path: Path) -> None:
    """Pictures of several sizes are padded along both axes; each is in the top left corner of its row."""
    ids = pictures(tmp_path, "i4")
    padded = Npy(tmp_path, dim=(12, 12), pad_value=-1)
    fields = {"inputs": {"x": padded, "length": padded.length}, "targets": padded.mask}
    options: dict[str, Any] = {"batch_size": N, "shuffle": False, "workers": 0}
    with Loader(ids, **fields, **options) as loader:  # type: ignore[arg-type]
        ((X, mask),) = loader
        for number in range(N):
            rows, columns = picture(number).shape
            np.testing.assert_array_equal(X["x"][number][:rows, :columns], picture(number))
            assert (X["x"][number] != -1).sum() == rows * columns == mask[number].sum()
            assert X["length"][number] == rows


def test_transforms_run_before_padding(tmp_path: Path) -> None:
    """A transform gets sequences before padding, and may return shorter ones; length is that of its result."""
    ids = sequences(tmp_path)

    def cut(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return x[: min(len(x), 4)]

    def reverse(sample: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        assert sorted(sample) == ["tokens", "y"]  # without the length, which is taken afterwards
        return {"tokens": cut(sample["tokens"], rng)}

    tokens = Npy(tmp_path, dim=5, pad_value=0)
    inputs = {"tokens": tokens, "length": tokens.length}
    transforms: list[Any] = [{"tokens": cut}, reverse]
    for transform in transforms:
        with Loader(ids, range(N), inputs=inputs, batch_size=8, transform=transform, workers=int(transform is reverse)) as loader:
            for X, y in loader:
                lengths = np.minimum(1 + y % 8, 4)
                assert X["length"].tolist() == lengths.tolist()
                np.testing.assert_array_equal(X["tokens"], (y[:, None] + 1) * (np.arange(5) < lengths[:, None]))


@pytest.mark.parametrize(
    ("array", "text"),
    [
        pytest.param(
            np.zeros(9, "i8"), "expected shape (8,), or a smaller one of 1 axis, found (9,); pass a larger dim", id="long"
        ),
        pytest.param(np.zeros((2, 2), "i8"), "expected shape (8,), or a smaller one of 1 axis, found (2, 2)", id="axes"),
    ],
)
def test_a_sequence_that_does_not_fit_is_named(tmp_path: Path, array: np.ndarray, text: str) -> None:
    """A sequence that does not fit raises an error that names its file, or is replaced together with its length."""
    ids = sequences(tmp_path)
    np.save(tmp_path / "id-7.npy", array)
    tokens = Npy(tmp_path, dim=8, pad_value=0)
    inputs = {"tokens": tokens, "length": tokens.length}
    options: dict[str, Any] = {"inputs": inputs, "batch_size": 8, "workers": 0}
    with Loader(ids, range(N), **options) as loader, pytest.raises(SampleError) as caught:
        list(loader)
    assert (type(caught.value), caught.value.path) == (SampleError, f"{tmp_path}/id-7.npy")
    assert caught.value.reason.startswith(text)
    with Loader(ids, range(N), on_error="replace", max_damaged=0.1, **options) as loader:
        for X, y in loader:
            check_padded(X["tokens"], y, 0)
            assert X["length"].tolist() == (1 + y % 8).tolist()
        assert [one.id for one in loader.damaged] == ["id-7"]


def test_an_empty_sequence_is_all_padding(tmp_path: Path) -> None:
    """An empty sequence becomes padding, with length 0, also if it is the first."""
    ids = sequences(tmp_path)
    for id in ("id-0", "id-7"):
        np.save(tmp_path / f"{id}.npy", np.zeros(0, "i8"))
    tokens = Npy(tmp_path, dim=8, pad_value=-1)
    with Loader(ids, inputs=tokens, targets=tokens.length, batch_size=N, shuffle=False, workers=0) as loader:
        ((X, length),) = loader
        assert length.tolist() == [0 if n in (0, 7) else 1 + n % 8 for n in range(N)]
        assert (X[7] == -1).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "?"])
def test_padding_in_any_dtype(tmp_path: Path, dtype: str) -> None:
    """Rows of other dtypes are padded, too; with floats, ``pad_value`` may be NaN."""
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    np.save(tmp_path / "0.npy", np.ones(3, kind))
    pad_value = float("nan") if dtype == "bfloat16" else 0
    options: dict[str, Any] = {"dim": 5, "pad_value": pad_value, "dtype": dtype, "data_dir": tmp_path, "workers": 0}
    with Loader([0], None, 1, **options) as loader:
        ((X,),) = loader
        np.testing.assert_array_equal(X[0].astype("f4"), [1, 1, 1, pad_value, pad_value])


@pytest.mark.parametrize(
    ("make", "text"),
    [
        pytest.param(lambda folder: Npy(folder, pad_value=0), "pad_value: expected with dim", id="no-dim"),
        pytest.param(lambda folder: Npy(folder, 8, pad_value="0"), "expected a number, found '0'", id="text"),  # type: ignore[arg-type]
        *(
            pytest.param(
                lambda folder, dtype=dtype, value=value: Loader(
                    ["id-0"], inputs=Npy(folder, dim=8, dtype=dtype, pad_value=value), batch_size=1
                ),
                f"field 'X': expected a pad_value that {dtype or 'int64'} holds, found {value}",
                id=f"{value}",
            )
            for dtype, value in ((None, 0.5), (None, float("nan")), ("int8", 300), ("int8", -129))
        ),
        pytest.param(
            lambda folder: Loader(["id-0"], inputs=Npy(folder), targets=Npy(folder).mask, batch_size=1),
            "field 'y': expected the mask of a source that has a pad_value, found one without",
            id="mask-without-padding",
        ),
        pytest.param(
            lambda folder: Loader(["id-0"], inputs=(x := Npy(folder, 8, pad_value=0)), targets=x.mask_along(2), batch_size=1),
            "field 'y': expected a mask along at most 1 axes, those of dim, found 2",
            id="mask-along-too-many-axes",
        ),
        pytest.param(
            lambda folder: Loader(["id-0"], inputs=Npy(folder), targets=Npy(folder, 8, pad_value=0).length, batch_size=1),
            "field 'y': expected the padded field, too, whose length it is",
            id="length-alone",
        ),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, make: Callable[[Path], Any], text: str) -> None:
    """Wrong arguments raise an error before the first batch, which names the argument or field."""
    sequences(tmp_path)
    with pytest.raises(InputError) as caught:
        make(tmp_path)
    assert text in str(caught.value)
