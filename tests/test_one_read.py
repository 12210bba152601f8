"""One read fills several fields: archives, functions that return several arrays, users' own sources, one object given twice."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmgen import Function, FunctionError, InputError, Loader, Npy, Npz, Remote, SampleError, Source, Values

# Functions for workers are defined inside functions: to load those of a module, a worker would import the module, and pytest.

N = 24


def archives(folder: Path, *, compressed: bool = True) -> list[str]:
    """Write an archive for each of ``N`` ids, filled with the id's number; returns the ids."""
    ids = [f"id-{number}" for number in range(N)]
    save: Any = np.savez_compressed if compressed else np.savez
    for number, id in enumerate(ids):
        save(folder / f"{id}.npz", image=np.full((4, 3), number, "f4"), label=number, large=np.zeros(1000))
    return ids


def epoch(loader: Loader) -> list[Any]:
    """Copies of an epoch's batches; closes the loader."""
    with loader:
        return [tuple(np.array(field) for field in batch) for batch in loader]


def recorded(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[tuple[Any, ...]]:
    """A list to which the arguments of all later calls of a function are added."""
    calls: list[tuple[Any, ...]] = []
    real = getattr(owner, name)

    def record(*args: Any, **options: Any) -> Any:
        calls.append(args)
        return real(*args, **options)

    monkeypatch.setattr(owner, name, record)
    return calls


def test_image_and_label_of_one_archive(tmp_path: Path) -> None:
    """Image and label read from one archive belong together, in every epoch, and have their arrays' dtypes."""
    ids = archives(tmp_path)
    npz = Npz(tmp_path)
    with Loader(ids, inputs=npz["image"], targets=npz["label"], batch_size=8, workers=2) as loader:
        for _ in range(2):
            seen = []
            for X, y in loader:
                assert (X.shape, X.dtype, y.shape, y.dtype) == ((8, 4, 3), np.float32, (8,), np.int64)
                assert (y[:, None, None] == X).all()
                seen += y.tolist()
            assert sorted(seen) == list(range(N))


def test_an_archive_given_whole_is_a_dict_of_its_arrays(tmp_path: Path) -> None:
    """An archive given as inputs or as the only source is a dict of all its arrays by name."""
    ids = archives(tmp_path)
    givens: list[dict[str, Any]] = [{"inputs": Npz(tmp_path)}, {"source": Npz(tmp_path)}]
    for given in givens:
        with Loader(ids, batch_size=N, shuffle=False, workers=0, **given) as loader:
            ((inputs,),) = loader
            assert list(inputs) == ["image", "label", "large"]
            assert inputs["label"].tolist() == inputs["image"][:, 0, 0].tolist() == list(range(N))
            assert inputs["large"].shape == (N, 1000)


def test_each_archive_is_opened_once_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each archive is opened once, and only the arrays in use are unpacked, each once."""
    ids = archives(tmp_path)
    npz = Npz(tmp_path)
    loader = Loader(
        ids, inputs=npz["image"], targets={"a": npz["label"], "b": npz["image"]}, batch_size=8, shuffle=False, workers=0
    )
    opened = recorded(monkeypatch, os, "open")
    unpacked = recorded(monkeypatch, zipfile.ZipFile, "open")
    with loader:
        batches = list(loader)
    assert [path for path, *_ in opened if str(path).endswith(".npz")] == [f"{tmp_path}/{id}.npz" for id in ids]
    assert [info.filename for _, info, *_ in unpacked] == ["image.npy", "label.npy"] * N
    for X, y in batches:
        np.testing.assert_array_equal(X, y["b"])


def damaged(path: Path, how: str) -> None:
    """Damage an archive."""
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[:-30])
    elif how == "flipped":
        position = data.index(b"NUMPY") + 120  # in the array's elements, where only a checksum shows it
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
    elif how == "deflated":  # make the compressed data invalid
        with zipfile.ZipFile(path) as archive:
            position = archive.getinfo("image.npy").header_offset + 60
        path.write_bytes(data[:position] + b"\xff" * 20 + data[position + 20 :])
    elif how == "missing":
        path.unlink()
    elif how == "no-array":
        np.savez(path, image=np.zeros((4, 3), "f4"))
    elif how == "objects":
        np.savez(path, image=np.zeros((4, 3), "f4"), label=np.array([{}], object))
    elif how == "shape":
        np.savez(path, image=np.zeros((4, 4), "f4"), label=1)
    elif how == "short-member":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("image.npy", data[data.index(b"\x93NUMPY") :][:100])
            archive.writestr("label.npy", data[data.index(b"\x93NUMPY") :])
    else:
        raise AssertionError(how)


DAMAGES = [
    pytest.param("truncated", "expected an .npz file, found one that is truncated", id="truncated"),
    pytest.param("flipped", "Bad CRC-32 for file 'image.npy'", id="flipped-bit"),
    pytest.param("deflated", "truncated, damaged or of another format", id="no-compressed-data"),
    pytest.param("missing", "expected a file, found none at this path", id="missing"),
    pytest.param("no-array", "expected an array 'label', found 'image'", id="one-array-missing"),
    pytest.param("objects", "expected numbers, found Python objects", id="objects"),
    pytest.param("shape", "expected shape (4, 3), found (4, 4); dim and n_channels, or shaped(dim=...) of a field", id="shape"),
    pytest.param("short-member", "found the end of the file after 100", id="header-cut-off"),
]


@pytest.mark.parametrize(("how", "text"), DAMAGES)
def test_a_damaged_archive_is_named(tmp_path: Path, how: str, text: str) -> None:
    """The error has the id, the file and the reason; ``on_error="replace"`` replaces all fields of the sample."""
    ids = archives(tmp_path, compressed=how == "deflated")
    damaged(tmp_path / "id-7.npz", how)
    npz = Npz(tmp_path)
    options: dict[str, Any] = {"inputs": npz["image"], "targets": npz["label"], "batch_size": 8, "workers": 0}
    with Loader(ids, **options) as loader, pytest.raises(SampleError) as caught:
        list(loader)
    assert type(caught.value) is SampleError
    assert (caught.value.id, caught.value.path) == ("id-7", f"{tmp_path}/id-7.npz")
    assert text in caught.value.reason
    with Loader(ids, on_error="replace", max_damaged=0.05, **options) as loader:
        for X, y in loader:
            assert (y[:, None, None] == X).all()
            assert 7 not in y
        assert [one.id for one in loader.damaged] == ["id-7"]


def test_a_missing_archive_suggests_another_source(tmp_path: Path) -> None:
    """The error for a missing file names files of another format, and the source to pass."""
    ids = archives(tmp_path)
    with pytest.raises(SampleError, match=r"id-0.npz is there: pass the source of such files"):
        Loader(ids, batch_size=8, data_dir=tmp_path)
    with pytest.raises(SampleError, match=r"'id-0.npz', .* and .* more"):
        Loader(["other"], inputs=Npz(tmp_path), batch_size=1)


def test_archives_behind_a_url(root: Path, proxy: Any, tmp_path: Path) -> None:
    """An archive behind a URL takes one request for all of its fields; with a cache, none in the second epoch."""
    ids = archives(root)
    npz = Npz(Remote(proxy.url, cache=tmp_path / "cache"))
    with Loader(ids, inputs=npz["image"], targets=npz["label"], batch_size=N, shuffle=False, workers=0) as loader:
        asked = len(proxy.requests)
        for requests in (N, 0):
            ((X, y),) = loader
            assert X[:, 0, 0].tolist() == y.tolist() == list(range(N))
            assert len(proxy.requests) <= asked + requests
            asked = len(proxy.requests)


def test_an_unknown_field_is_refused(tmp_path: Path) -> None:
    """An unknown field is an error that lists the archive's fields."""
    ids = archives(tmp_path)
    with pytest.raises(InputError, match="field 'X': expected one of 'image', 'label', 'large', which Npz has, found 'img'"):
        Loader(ids, inputs=Npz(tmp_path)["img"], batch_size=8)


def test_dtype_and_channels_of_an_array(tmp_path: Path) -> None:
    """``shaped`` sets the shape and dtype of a field, but not of another field of the same array."""
    ids = archives(tmp_path)
    npz = Npz(tmp_path)
    inputs = {"a": npz["image"].shaped(dim=(4, 3), n_channels=1, dtype="f8"), "b": npz["image"]}
    with Loader(ids, inputs=inputs, batch_size=N, shuffle=False, workers=0) as loader:
        ((found,),) = loader
        assert (found["a"].shape, found["a"].dtype) == ((N, 4, 3, 1), np.float64)
        np.testing.assert_array_equal(found["a"][..., 0], found["b"])


@pytest.mark.parametrize("kind", ["dict", "tuple"])
def test_a_function_that_returns_several_arrays(kind: str) -> None:
    """A function that returns several arrays is called once a sample, and once when the loader is made."""
    calls: list[int] = []

    def decode(id: int) -> Any:
        calls.append(id)
        x, y = np.full((4, 3), id, "f4"), id % 5
        return {"x": x, "y": y} if kind == "dict" else (x, y)

    source = Function(decode)
    first, second = ("x", "y") if kind == "dict" else (0, 1)
    with Loader(range(N), inputs=source[first], targets=source[second], batch_size=8, workers=0) as loader:
        for X, y in loader:
            assert (X.dtype, y.dtype) == (np.float32, np.int64)
            assert (X[:, 0, 0] % 5 == y).all()
    assert sorted(calls) == [0, *range(N)]


def test_source_may_return_a_whole_sample() -> None:
    """``source`` may return (x, y), (x, y, weight), or a dict of inputs, also beside labels."""
    options: dict[str, Any] = {"batch_size": 4, "shuffle": False, "workers": 0}
    X, y = epoch(Loader(range(4), source=lambda id: (np.full(3, id), id), **options))[0]
    assert (X[:, 0].tolist(), y.tolist()) == ([0, 1, 2, 3], [0, 1, 2, 3])
    _, _, weights = epoch(Loader(range(4), source=lambda id: (np.full(3, id), id, 0.5), **options))[0]
    assert weights.tolist() == [0.5] * 4
    with Loader(range(4), source=lambda id: {"a": np.full(3, id), "b": id}, **options) as loader:
        ((inputs,),) = loader
        assert inputs["b"].tolist() == [0, 1, 2, 3]
    with Loader(range(4), {n: -n for n in range(4)}, source=lambda id: {"a": np.full(3, id), "b": id}, **options) as loader:
        ((inputs, y),) = loader
        assert (sorted(inputs), y.tolist()) == (["a", "b"], [0, -1, -2, -3])


def test_other_tuples_are_refused() -> None:
    """A tuple is refused unless it is (x, y) or (x, y, weight), and always beside labels."""
    with pytest.raises(InputError, match=r"source: expected an array, a dict, \(x, y\) or .* found a tuple of 4"):
        Loader(range(4), source=lambda id: (id, id, id, id), batch_size=2)
    with pytest.raises(InputError, match=r"source: expected an array or a dict, as there are labels .* found a tuple of 2"):
        Loader(range(4), [0, 1, 2, 3], source=lambda id: (id, id), batch_size=2)


@pytest.mark.parametrize(
    ("first", "text"),
    [
        pytest.param(None, "expected an array, found None; let the function return one, or fill the row", id="none"),
        pytest.param(({"a": 1}, 2), "field 0: expected an array, found a dict: return one dict of all arrays", id="nested"),
        pytest.param([np.zeros(3), 1], "found a list of parts of several shapes; return fields as a dict", id="list"),
        pytest.param({"x": None}, "field 'x': expected an array, found None", id="none-in-a-field"),
        pytest.param({}, "expected an array, or several, found an empty dict", id="empty-dict"),
        pytest.param({"x": "text"}, "field 'x': .* dtype <U4; make them numbers", id="text-in-a-field"),
    ],
)
def test_the_result_for_the_first_sample_is_checked(first: object, text: str) -> None:
    """An unusable result for the first sample is an error that tells what was found, and what to return instead."""
    with pytest.raises((FunctionError, InputError), match=text):
        Loader(range(4), source=lambda id: first, batch_size=2, workers=0)


@pytest.mark.parametrize(
    ("array", "text"),
    [
        pytest.param(np.array("cat"), "field 'x': .* dtype <U3; make them numbers", id="text"),
        pytest.param(np.array([{}]), "field 'x': .* dtype object; make them numbers", id="objects"),
    ],
)
def test_an_archive_with_texts_or_objects_is_refused(tmp_path: Path, array: np.ndarray, text: str) -> None:
    """An archive with an array of texts or objects is refused with a remedy; its other arrays can be read alone."""
    np.savez(tmp_path / "a.npz", x=array, y=np.zeros(2))
    with pytest.raises(InputError, match=text):
        Loader(["a"], source=Npz(tmp_path), batch_size=1, workers=0)
    with Loader(["a"], source=Npz(tmp_path)["y"], batch_size=1, workers=0) as loader:
        assert loader.batch(0)[0].shape == (1, 2)


def test_later_results_must_have_the_same_fields() -> None:
    """If a later result has other fields than the first, the error has the id, and the fields expected and found."""
    source = Function(lambda id: {"x": np.zeros(3)} if id == 7 else {"x": np.zeros(3), "y": id})
    with (
        Loader(range(N), inputs=source["x"], targets=source["y"], batch_size=8, workers=0) as loader,
        pytest.raises(FunctionError, match="expected 'x', 'y', as of the first sample, found a dict of 'x'") as caught,
    ):
        list(loader)
    assert caught.value.id == 7


def test_a_function_of_several_arrays_beside_dim_is_refused() -> None:
    """A function that returns several arrays is refused beside ``dim``, and one of a single array has no fields."""
    with (
        Loader(range(4), source=lambda id: (np.zeros(3), 1), dim=3, n_channels=1, dtype="f4", batch_size=2, workers=0) as loader,
        pytest.raises(FunctionError),
    ):
        list(loader)
    with pytest.raises(InputError, match="expected a source of several fields, found Function of one"):
        Loader(range(4), inputs=Function(lambda id: np.zeros(3))["x"], batch_size=2)


def test_transforms_of_fields_of_one_source() -> None:
    """Transforms of single fields and of the whole sample name the fields of one source as those of several."""
    source = Function(lambda id: {"x": np.full(3, id), "y": id})
    fields = {"inputs": {"x": source["x"]}, "targets": {"y": source["y"]}, "weights": Values(np.ones(8))}
    options: dict[str, Any] = {**fields, "batch_size": 8, "shuffle": False, "workers": 0}

    def both(sample: dict[str, np.ndarray], rng: object) -> dict[str, Any]:
        assert sorted(sample) == ["weights", "x", "y"]
        return {"x": sample["x"] + 1, "y": -sample["y"]}

    for transform in (both, {"x": lambda x, rng: x + 1, "y": lambda y, rng: -y}):
        with Loader(range(8), transform=transform, **options) as loader:
            ((inputs, targets, _),) = loader
            assert inputs["x"][:, 0].tolist() == list(range(1, 9))
            assert targets["y"].tolist() == [-n for n in range(8)]


def test_random_numbers_of_a_function() -> None:
    """``f(id, rng)`` draws the same with any number of workers, but differently for each sample, each epoch and the transform."""

    def draw(id: int, rng: Any = None) -> Any:
        return {"id": id, "drawn": rng.integers(1 << 40)}

    def shift(drawn: np.ndarray, rng: np.random.Generator) -> Any:
        assert drawn != rng.integers(1 << 40)
        return drawn

    def numbers(workers: int, reads: int) -> list[list[tuple[int, int]]]:
        source = Function(draw, concurrent=True)
        with Loader(
            range(N), inputs=source, batch_size=8, workers=workers, reads=reads, seed=3, transform={"drawn": shift}
        ) as loader:
            return [
                [pair for (X,) in loader for pair in zip(X["id"].tolist(), X["drawn"].tolist(), strict=True)] for _ in range(2)
            ]

    epochs = numbers(2, 4)
    assert epochs == numbers(0, 1)
    assert len({drawn for pairs in epochs for _, drawn in pairs}) == 2 * N


@pytest.mark.parametrize(("kind", "workers"), [("fills", 0), ("returns", 0), ("at-once", 1)])
def test_a_source_of_the_users_own(kind: str, workers: int) -> None:
    """A user's source may fill rows by key, one by one or many at once, or return them; unused fields are dropped."""

    class Pairs(Source):
        fields = {"image": ((4, 3), "f4"), "label": ((), "i8"), "other": ((2,), "u1")}  # noqa: RUF012

        def read(self, id: int, rows: Any) -> Any:
            if kind == "returns":
                return {"image": np.full((4, 3), id, "f4"), "label": id, "other": [1, 2]}
            rows["image"][:] = id
            rows["label"][...] = id
            rows["other"][:] = 1
            return None

    class AtOnce(Pairs):
        def fill(self, ids: Any, rows: Any) -> None:
            rows["image"][:] = np.array(ids)[:, None, None]
            rows["label"][:] = ids
            assert rows["other"].shape == (len(ids), 2)

    pairs = AtOnce() if kind == "at-once" else Pairs()
    with Loader(range(N), pairs["label"], source=pairs["image"], batch_size=8, workers=workers) as loader:
        for X, y in loader:
            assert (y[:, None, None] == X).all()
    with Loader(range(N), inputs={"a": pairs["image"], "b": pairs["image"]}, batch_size=8, workers=workers) as loader:
        for (X,) in loader:
            np.testing.assert_array_equal(X["a"], X["b"])


def test_one_source_for_input_and_target_is_read_once(folder: Callable, tmp_path: Path) -> None:
    """If one source is input and target, as in an autoencoder, a transform of the input leaves the target unchanged."""
    data = folder(N)
    files = Npy(data.path)

    def noise(x: np.ndarray, rng: np.random.Generator) -> None:
        x += rng.random(x.shape, np.float32)

    with Loader(data.ids, inputs=files, targets=files, transform=noise, batch_size=8, shuffle=False, workers=0) as loader:
        for number, (X, y) in enumerate(loader):
            assert (y == np.arange(8 * number, 8 * number + 8)[:, None, None]).all()
            assert ((y <= X) & (y + 1 > X)).all()
            assert X.std() > 0


def test_one_plain_source_for_two_fields_opens_each_file_once(folder: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain source given for several fields opens each file once."""
    data = folder(N)
    files = Npy(data.path)
    with Loader(data.ids, inputs={"a": files, "b": files}, targets=files, batch_size=8, shuffle=False, workers=0) as loader:
        opened = recorded(monkeypatch, os, "open")
        for X, y in loader:
            np.testing.assert_array_equal(X["a"], y)
            np.testing.assert_array_equal(X["b"], y)
    assert [path for path, *_ in opened if str(path).endswith(".npy")] == [f"{id}.npy" for id in data.ids]


def test_one_function_for_two_fields_is_called_once() -> None:
    """A plain function given for two fields is called once a sample."""
    calls = []

    def draw(id: int) -> Any:
        calls.append(id)
        return np.full(3, len(calls))

    with Loader(range(8), inputs={"a": draw, "b": draw}, batch_size=8, shuffle=False, workers=0) as loader:
        ((X,),) = loader
        np.testing.assert_array_equal(X["a"], X["b"])
    assert calls == [0, *range(8)]
