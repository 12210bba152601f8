"""The remedies that errors name work."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmgen import FunctionError, Hdf5, Images, InputError, Loader, Npy, Npz, SampleError, Source, SourceField, Values


def of(data: Any, workers: int = 1, **options: Any) -> Loader:
    """A loader of all files of ``data``, in order."""
    options = {"data_dir": data.path, "shuffle": False, "workers": workers, **options}
    return Loader(data.ids, data.labels, 4, **options)


def asked(loader: Loader, error: type[Exception], number: int) -> str:
    """The text of the error that a request for a batch raises."""
    with pytest.raises(error) as raised:
        loader.batch(number)
    return str(raised.value)


def test_scans_are_suggested_only_for_damage(folder: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a damaged file suggests a scan; that of too many open files names the limit instead."""
    data = folder(8)

    def no_more(*_: Any, **__: Any) -> int:
        raise OSError(24, os.strerror(24))

    os.truncate(data.file("id-4"), 150)
    with of(data, 0) as loader, monkeypatch.context() as patched:
        assert "`python -m shmgen scan` finds all such files" in asked(loader, SampleError, 1)
        patched.setattr(os, "open", no_more)
        text = asked(loader, SampleError, 0)
    assert "ulimit -n" in text
    assert "shmgen scan" not in text


def test_a_dtype_that_a_transform_needs(folder: Callable) -> None:
    """If a transform can't divide a row in place, the error names a dtype with which it can."""

    def divide(x: np.ndarray, rng: object) -> None:
        x /= 255

    data = folder(8, dtype=np.uint8)
    with of(data, 0, transform=divide) as loader, pytest.raises(FunctionError) as raised:
        list(loader)
    [dtype] = set(re.findall("pass dtype='(.*?)'", str(raised.value)))
    with of(data, 0, transform=divide, dtype=dtype) as loader:
        X, _ = loader.batch(1)
        np.testing.assert_allclose(X[1], data.sample(5) / 255, rtol=1e-6)


def test_a_transform_with_wrong_arguments_is_refused(folder: Callable) -> None:
    """A transform with other arguments is refused by the constructor, which names the right ones."""
    data = folder(8)
    for transform in (lambda x: x, {"X": lambda x: x}, lambda: None):
        with pytest.raises(InputError, match=r"expected a function of a row and a generator, such as def flip\(x, rng\)"):
            of(data, transform=transform)


WHOLE_SAMPLE: dict[str, Callable[..., Any]] = {
    "three-arguments": lambda x, y, rng: None,
    "a-dict": lambda sample, rng: sample["X"][::-1],
    "a-tuple": lambda x, rng: (x[::-1], x),
    "a-dict-that-is-returned": lambda x, rng: {"X": x, "y": x},
}


@pytest.mark.parametrize("kind", WHOLE_SAMPLE)
def test_a_transform_of_input_and_target_needs_named_inputs(folder: Callable, kind: str) -> None:
    """The error of a transform of input and target says to name the inputs; then it can change both."""
    data = folder(8)
    masks = Npy(data.path)
    options = {"targets": masks, "data_dir": data.path, "batch_size": 4, "shuffle": False, "workers": 0}
    with (
        pytest.raises((InputError, FunctionError), match=r"name the inputs: with inputs=\{'x': \.\.\.\}"),
        Loader(data.ids, transform=WHOLE_SAMPLE[kind], **options) as loader,
    ):
        loader.batch(0)

    def negate(sample: dict[str, np.ndarray], rng: Any) -> None:
        for row in sample.values():
            np.negative(row, out=row)

    del options["data_dir"]
    with Loader(data.ids, inputs={"x": Npy(data.path)}, transform=negate, **options) as loader:
        X, y = loader.batch(0)
        assert (X["x"] == y).all()
        assert y[1:].max() < 0


def test_dim_beside_another_source_is_refused(tmp_path: Path) -> None:
    """``dim``, ``n_channels`` and ``dtype`` beside another source are one error that names the source's own arguments."""
    given: Any = {"dim": (4, 6), "n_channels": 1, "dtype": "float32"}
    with pytest.raises(InputError, match=r"n_channels and dtype out: Images takes folder, size, mode, .*dtype"):
        Loader(["a.png"], None, 1, source=Images(tmp_path), **given)
    with pytest.raises(InputError, match=r"dim: expected where .* found Own; leave dim out: Own takes no arguments"):
        Loader([0], None, 1, source=Own(), dim=3)


OTHERS: dict[str, tuple[np.ndarray, Callable[..., Any] | None]] = {
    # the second array, where the first is three zeros of uint8, and a transform
    "numbers": (np.array([300, 0, 0], "u2"), None),
    "dtype": (np.array([0.5, 0, 0]), None),
    "shape": (np.ones(5, "u1"), None),
    "shape-and-a-transform": (np.ones(5, "u1"), lambda x, rng: x[:3]),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_the_remedies_for_an_npz_field_work(tmp_path: Path, kind: str) -> None:
    """An array of another shape or dtype than the first file's is read once ``shaped`` says what the error says it should."""
    other, transform = OTHERS[kind]
    for number, array in enumerate([np.zeros(3, "u1"), other]):
        np.savez(tmp_path / f"{number}.npz", x=array)
    source = Npz(tmp_path)
    options: Any = {"batch_size": 2, "shuffle": False, "workers": 0}
    with Loader(range(2), source=source["x"], **options) as loader:
        text = asked(loader, SampleError, 0)
    assert re.search(r"source\[key\]\.shaped\(dtype=.(uint16|float32)|or shaped\(dim=", text)
    found = re.findall("dtype='(.*?)'", text)
    given: Any = {"dtype": found[0]} if found else {"dim": 3 if transform else 5, **({} if transform else {"pad_value": 0})}
    with pytest.raises(InputError, match=rf"pass source\['x'\]\.shaped\({next(iter(given))}=\.\.\."):
        Loader(range(2), source=source["x"], **given, **options)
    with Loader(range(2), source=source["x"].shaped(**given), transform=transform, **options) as loader:
        (X,) = loader.batch(0)
    assert X[1].tolist() == other.tolist()[: X.shape[1]]


def test_the_remedy_for_datasets_of_another_dtype_works(tmp_path: Path) -> None:
    """Of HDF5 datasets of several dtypes a function makes rows; `shaped` is refused of a source that has one field."""
    h5py = pytest.importorskip("h5py")
    file = tmp_path / "all.h5"
    with h5py.File(file, "w") as written:
        written["0"], written["1"] = np.zeros(3, "u1"), np.full(3, 300, "i8")
    options: Any = {"batch_size": 2, "shuffle": False, "workers": 0}
    with Loader(range(2), source=Hdf5(file), **options) as loader:
        assert "read it by a function as source, and pass dtype='int64'" in asked(loader, SampleError, 0)
    with pytest.raises(InputError, match=r"leave dtype out: Hdf5 takes .*or pass a function that reads samples as source"):
        Loader(range(2), source=Hdf5(file), dtype="int64", **options)
    with pytest.raises(InputError, match=r"expected shaped\(\) of one of several fields, found Hdf5 of one"):
        Loader(range(2), source=SourceField(Hdf5(file)).shaped(dtype="int64"), **options)

    def read(id: int) -> np.ndarray:
        with h5py.File(file) as opened:
            return opened[str(id)][()]

    with Loader(range(2), source=read, dtype="int64", **options) as loader:
        assert loader.batch(0)[0].tolist() == [[0] * 3, [300] * 3]


class Own(Source):
    """A source of the user's."""

    shape, dtype = (3,), "f4"


@pytest.mark.parametrize("given", [[1.5, float("nan")], np.array([[1.0, 2.0], [np.nan, 3.0]]), {"a": 1.5, "b": float("nan")}])
def test_nan_among_targets_and_weights(given: Any) -> None:
    """NaN among targets is an error unless a float dtype is given; NaN among weights is always an error."""
    ids, x = ["a", "b"], Values([0, 1])
    with pytest.raises(InputError, match=r"id 'b', field 'y': expected a number, found .*nan.*; leave such ids out") as raised:
        Loader(ids, None, 2, inputs=x, targets=given)
    assert "Values(..., dtype='float32')" in str(raised.value)
    with Loader(ids, None, 2, inputs=x, targets=Values(given, dtype="float32"), shuffle=False, workers=0) as loader:
        _, y = loader.batch(0)
        assert np.isnan(y[1]).any()
        assert not np.isnan(y[0]).any()
    if not isinstance(given, np.ndarray):
        with pytest.raises(InputError, match="id 'b', field 'weights': expected a number, found nan"):
            Loader(ids, [1, 2], 2, inputs=x, weights=given)
