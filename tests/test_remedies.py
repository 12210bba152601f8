"""The remedies that errors name work."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmgen import FunctionError, Images, InputError, Loader, Npy, SampleError, Source, Values


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
