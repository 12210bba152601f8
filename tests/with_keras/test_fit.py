"""``fit`` gets all kinds of data that a `Loader` reads, without copies; errors stay readable, and mistakes are warned of."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest
from recorder import SHAPE, address, flat_model
from ways import in_a_ring

from shmgen import Function, Npy, Sequence, Values

N = 53


@pytest.fixture
def data(folder: Callable[..., Any]) -> Any:
    """53 samples; every element of sample k is k, and so is its label."""
    return folder(N, SHAPE)


class Own(keras.Model):
    """A model with a user's own train_step, which passes the tensors of each batch to ``look``, and learns nothing."""

    def __init__(self, look: Callable[[list[Any]], object] = lambda tensors: None) -> None:
        super().__init__()
        self.look = look
        self.compile(loss="mse", run_eagerly=True)

    def call(self, x: Any) -> Any:
        return x

    def train_step(self, data: Any) -> Any:
        self.look(keras.tree.flatten(data))
        return {"loss": 0.0}


def test_no_copy_of_any_field_to_the_tensor(data: Any) -> None:
    """All tensors of a nested batch lie in the ring's memory, and hold the right data."""
    found: list[int] = []

    def look(tensors: list[Any]) -> None:
        found.extend(map(address, tensors))
        numbers = [np.asarray(tensor).reshape(len(tensor), -1)[:, 0] for tensor in tensors]
        assert all((numbers[0] == other).all() for other in numbers)

    fields: dict[str, Any] = {
        "inputs": {"age": Values(data.labels, dtype="f4"), "scan": Npy(data.path)},
        "targets": {"class": Values(data.labels), "mask": Function(lambda n: np.full(3, int(n[3:])))},
        "weights": data.labels,
    }
    with Sequence(data.ids, None, 8, **fields, workers=1) as sequence:
        Own(look).fit(sequence, epochs=2, verbose=0)
        assert sequence.stats.grown == 0
        assert all(map(in_a_ring, set(found)))
    assert len(found) == 2 * 6 * 5


def test_dtypes_of_ml_dtypes(data: Any) -> None:
    """Files of ml_dtypes reach ``fit`` as tensors of that dtype, without a copy."""
    tf = pytest.importorskip("tensorflow")
    found: list[int] = []

    def look(tensors: list[Any]) -> None:
        X, y = tensors
        found.append(address(tf.bitcast(X, tf.uint16)))
        assert (X.numpy().astype("f4") == (y.numpy() % 8)[:, None, None]).all()

    for number, id in enumerate(data.ids):
        np.save(data.file(id), np.full(SHAPE, number % 8).astype(ml_dtypes.bfloat16))
    with Sequence(data.ids, data.labels, 8, data_dir=data.path, dtype="bfloat16", workers=1) as sequence:
        Own(look).fit(sequence, verbose=0)
        assert all(map(in_a_ring, set(found)))
    assert len(found) == 6


BEHIND_A_PROBE = 2
"""A seed with which sample 7 is in neither of the two batches that Keras requests before training."""


def test_a_functions_traceback_reaches_fit(caplog: pytest.LogCaptureFixture) -> None:
    """An error of a user's function reaches ``fit`` with sample, field, and the function's file and line; it is logged once."""

    def breaks(id: int) -> np.ndarray:
        if id == 7:
            raise ValueError("no such picture")
        return np.full(3, id, np.float64)

    lines, first = inspect.getsourcelines(breaks)
    line = first + next(number for number, text in enumerate(lines) if "raise" in text)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(loss="mse")
    with (
        Sequence(range(N), np.zeros(N, int), 5, 3, source=breaks, workers=2, seed=BEHIND_A_PROBE) as sequence,
        pytest.raises(Exception, match="no such picture") as caught,
    ):
        model.fit(sequence, verbose=0)
    for word in ("FunctionError", "sample 7", "field 'X'", f'File "{__file__}", line {line}, in breaks'):
        assert word in str(caught.value)
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [str(sequence.error)]


def test_batches_of_any_length() -> None:
    """``fit`` and ``predict`` take batches of any length, for which TensorFlow does not trace its function each time."""
    traced: list[Any] = []

    class Traced(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            traced.append(tuple(x.shape))
            return x

    pool = keras.layers.GlobalAveragePooling1D()
    model = keras.Sequential([keras.Input((None, 2)), Traced(), pool, keras.layers.Dense(1)])
    model.compile(loss="mse", jit_compile=False)
    lengths = [1 + 37 * id % 199 for id in range(200)]
    ragged = Function(lambda id: np.full((lengths[id], 2), id + 1.0, np.float32), dim=(200, 2), pad_value=0, dtype="float32")
    options: dict[str, Any] = {"inputs": ragged, "batch_size": 8, "trim": "longest", "workers": 1}
    labels = Values(np.zeros(200), dtype="float32")
    with Sequence(range(200), labels, lengths=lengths, **options) as training:
        traced.clear()
        assert np.isfinite(model.fit(training, verbose=0).history["loss"]).all()
        if keras.backend.backend() == "tensorflow":
            assert set(traced) <= {(None, None, 2)}
            assert len(traced) <= 3
    with Sequence(range(200), shuffle=False, tail="keep", **options) as test:
        assert model.predict(test, verbose=0).shape == (200, 1)


def test_unsynchronised_ranks_are_warned_of(data: Any) -> None:
    """Ranks without synchronisation give one warning with a remedy, but none for a user's train_step or for validation."""
    options: dict[str, Any] = {"batch_size": 4, "data_dir": data.path, "workers": 0}
    ids = data.ids[:16]
    with Sequence(ids, data.labels, shard=(1, 2), **options) as part:
        with pytest.warns(UserWarning, match="fit trains another model on each of 2 ranks.*with TensorFlow, Keras 3 does not"):
            flat_model().fit(part, verbose=0)
        flat_model().fit(part, verbose=0)
    whole = Sequence(ids, data.labels, **options)
    with whole, Sequence(ids, data.labels, shard=(1, 2), **options) as part:
        flat_model().fit(whole, validation_data=part, verbose=0)
        Own().fit(part, verbose=0)
