"""Fields: a batch has the structure that was given, its rows are aligned, and its slot is held as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ways import assert_grown, lists

from shmgen import Function, InputError, Loader, Npy, NpyRows, Values

N = 53


@pytest.fixture
def data(folder: Callable[..., Any]) -> Any:
    """53 samples of 4 x 3 float32; every element of sample k is k, and so is its label."""
    return folder(N, (4, 3))


def doubled(id: str) -> np.ndarray:
    return np.full(5, 2.0 * int(id[3:]))


def one() -> Any:
    return Values(np.arange(N))


STRUCTURES = [
    pytest.param(lambda: one(), lambda n: n, id="one"),  # noqa: PLW0108
    pytest.param(lambda: (one(), one()), lambda n: (n, n), id="tuple"),
    pytest.param(lambda: [one(), one()], lambda n: (n, n), id="list"),
    pytest.param(lambda: {"a": one()}, lambda n: {"a": n}, id="dict-of-one"),
    pytest.param(lambda: {"a": one(), "b": (one(), {"c": one()})}, lambda n: {"a": n, "b": (n, {"c": n})}, id="nested"),
]


@pytest.mark.parametrize(("given", "expected"), STRUCTURES)
def test_a_batch_has_the_structure_that_was_given(given: Callable, expected: Callable) -> None:
    """Inputs, targets and weights have the structure that was given, and a batch has no other parts."""
    roles = ["inputs", "targets", "weights"]
    for role in roles:
        for count in range(1 + roles.index(role), 4):
            parts: dict[str, Any] = {name: given() if name == role else {"z": one()} for name in roles[:count]}
            with Loader(range(N), None, 4, **parts, shuffle=False, workers=0) as loader:
                found = lists(loader.batch(1))
            numbers = [4, 5, 6, 7]
            assert found == tuple(expected(numbers) if name == role else {"z": numbers} for name in parts)


def test_plain_mappings_arrays_and_functions_are_sources(data: Any) -> None:
    """A mapping, an array or a function may stand for a source; weights become float32."""
    with Loader(
        data.ids,
        data.labels,
        8,
        inputs={"scan": Npy(data.path), "age": data.labels, "twice": doubled, "half": np.arange(N) / 2},
        weights=np.ones(N, int),
        workers=0,
    ) as loader:
        for X, y, weights in loader:
            for array in (X["scan"][:, 0, 0], X["age"], X["twice"][:, 0] / 2, X["half"] * 2):
                np.testing.assert_array_equal(array, y)
            assert weights.dtype == np.float32


def test_inputs_and_targets_may_share_a_name(data: Any) -> None:
    """Inputs and targets may share a name, as an autoencoder's do; a transform of the sample sees both."""

    def noisy(sample: dict[str, np.ndarray], rng: object) -> None:
        assert len(sample) == 2
        next(iter(sample.values()))[:] += 1000

    fields: dict[str, Any] = {"inputs": {"scan": Npy(data.path)}, "targets": {"scan": Npy(data.path)}}
    with Loader(data.ids, None, 8, **fields, transform=noisy, workers=0) as loader:
        for X, y in loader:
            np.testing.assert_array_equal(X["scan"], y["scan"] + 1000)


REFUSED = [
    pytest.param({"inputs": {1: one(), "1": one()}}, "found 'inputs.1' twice", id="duplicate-name"),
    pytest.param({"inputs": {"a": one(), "b": {"a": one()}}}, "found 'inputs.a' twice", id="duplicate-name-nested"),
    pytest.param({"inputs": one(), "labels": range(N), "targets": one()}, "either labels or targets", id="labels-and-targets"),
    pytest.param({"inputs": one(), "dim": (3,)}, "describe the only input", id="inputs-and-dim"),
    pytest.param({"inputs": one(), "data_dir": "train"}, "data_dir: expected .*found 'train'", id="inputs-and-data_dir"),
    pytest.param({"source": doubled, "data_dir": "train"}, "data_dir: expected .* give a folder", id="source-and-data_dir"),
    pytest.param({"inputs": one(), "source": doubled}, "describe the only input", id="inputs-and-source"),
    pytest.param({"source": NpyRows("all.npy"), "dim": 3}, "NpyRows", id="dim-and-NpyRows"),
    pytest.param({"inputs": "folder"}, "field 'X': expected ", id="path-as-inputs"),
    pytest.param({"inputs": {"a": one(), "b": 3}}, "field 'b': expected a source.*found 3", id="number-as-a-field"),
    pytest.param({"inputs": {}}, "expected", id="no-inputs"),
]


@pytest.mark.parametrize(("arguments", "text"), REFUSED)
def test_contradicting_arguments_are_refused(arguments: dict[str, Any], text: str) -> None:
    """Arguments that contradict each other raise an InputError that names them."""
    with pytest.raises(InputError, match=text):
        Loader([f"id-{k}" for k in range(N)], batch_size=4, **arguments)


def fields(data: Any) -> dict[str, Any]:
    """Two inputs, two targets and weights; all elements of a sample's rows are its number."""
    return {
        "inputs": {"age": Values(data.labels, dtype="f4"), "scan": Npy(data.path)},
        "targets": {"class": Values(data.labels), "mask": Function(lambda n: np.full(3, int(n[3:])))},
        "weights": data.labels,
    }


def test_held_batches_keep_their_values(data: Any) -> None:
    """A held field keeps the slot of its batch; if more batches are held than there are slots, the ring grows."""
    with Loader(data.ids, None, 8, **fields(data), slots=2, shuffle=False, tail="keep", workers=1) as loader:
        held = [batch[1]["mask"] for batch in loader]
        again = [batch[0]["age"][2:] for batch in loader]
        assert_grown(loader, slots=2, held=len(held) + len(again))
    assert np.concatenate(held)[:, 0].tolist() == list(range(N))
    assert np.concatenate(again).tolist() == [number for number in range(N) if number % 8 > 1]
