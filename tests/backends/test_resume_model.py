"""The state of a model that `Resume` saves besides Keras's variables, with the Keras backend of this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from recorder import Interrupt, Interruption

from shmgen import InputError, Sequence
from shmgen.keras import Resume
from shmgen.keras.model_state import find

BACKEND = keras.backend.backend()

only_torch = pytest.mark.skipif(BACKEND != "torch", reason="torch's own modules and optimizers")
not_torch = pytest.mark.skipif(BACKEND == "torch", reason="Keras can't train stateful layers on torch")
not_jax = pytest.mark.skipif(BACKEND == "jax", reason="JAX's steps have no side effects: Keras changes only its own variables")


@pytest.fixture
def data() -> Iterator[Callable[[], Sequence]]:
    """A function that makes a `Sequence` of 6 batches of 4 rows of (4, 3)."""
    made: list[Sequence] = []

    def make() -> Sequence:
        row = lambda id: np.full((4, 3), id / 24, np.float32)  # noqa: E731
        label = lambda id: np.float32(id / 12)  # noqa: E731
        made.append(Sequence(range(24), targets=label, batch_size=4, source=row, workers=0))
        return made[-1]

    yield make
    for one in made:
        one.close()


def stateful() -> keras.Model:
    """A model with a stateful layer, whose states are variables that no layer lists."""
    layers = [keras.Input((4, 3), batch_size=4), keras.layers.SimpleRNN(2, stateful=True), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile("adam", "mse", run_eagerly=BACKEND != "jax")
    return model


def unseeded() -> keras.Model:
    """A model with noise from `keras.random` without a seed."""

    class Noise(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return x + keras.random.normal(keras.ops.shape(x))

    model = keras.Sequential([keras.Input((4, 3)), Noise(), keras.layers.Flatten(), keras.layers.Dense(1)])
    model.compile("adam", "mse", run_eagerly=True)
    return model


def counting_loss() -> keras.Model:
    """A model whose loss counts its steps, and is multiplied by the count."""

    class Counts(keras.losses.Loss):
        def __init__(self) -> None:
            super().__init__()
            self.steps = keras.Variable(1.0, name="steps", trainable=False)

        def call(self, y: Any, predicted: Any) -> Any:
            self.steps.assign(self.steps + 1.0)
            return keras.ops.mean((y - predicted) ** 2, axis=-1) * keras.ops.stop_gradient(self.steps + 0.0)

    model = keras.Sequential([keras.Input((4, 3)), keras.layers.Flatten(), keras.layers.Dense(1)])
    model.compile("adam", Counts(), run_eagerly=True)
    return model


def averaged() -> keras.Model:
    """A model with moving averages of its weights, which a callback swaps in at the end of each epoch."""
    model = keras.Sequential([keras.Input((4, 3)), keras.layers.Flatten(), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.1, use_ema=True, ema_momentum=0.8), "mse", run_eagerly=BACKEND != "jax")
    return model


def module() -> keras.Model:
    """A model with torch's BatchNorm1d, whose averages are buffers."""
    import torch

    norm = keras.layers.TorchModuleWrapper(torch.nn.BatchNorm1d(12))
    model = keras.Sequential([keras.Input((4, 3)), keras.layers.Flatten(), norm, keras.layers.Dense(1)])
    model.compile("adam", "mse")
    return model


class TwoOptimizers(keras.Model):
    """Two networks that are trained in turn by an optimizer each, as in a GAN; the optimizer of ``compile`` is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.one = keras.Sequential([keras.Input((4, 3)), keras.layers.Flatten(), keras.layers.Dense(1)])
        self.other = keras.Sequential([keras.Input((4, 3)), keras.layers.Flatten(), keras.layers.Dense(2), keras.layers.Dense(1)])
        self.built = True

    def compile(self, **options: Any) -> None:
        super().compile(run_eagerly=True)
        self.optimizers_of = {"one": keras.optimizers.Adam(0.1), "other": keras.optimizers.Adam(0.01)}

    def call(self, x: Any) -> Any:
        return self.one(x) + self.other(x)

    def train_step(self, data: Any) -> Any:
        x, y = data
        for name, network in [("one", self.one), ("other", self.other)]:
            weights = network.trainable_weights
            if BACKEND == "tensorflow":
                import tensorflow as tf

                with tf.GradientTape() as tape:
                    loss = keras.ops.mean((network(x)[:, 0] - y) ** 2)
                gradients = tape.gradient(loss, [weight.value for weight in weights])
                self.optimizers_of[name].apply(gradients, weights)
            else:
                import torch

                self.zero_grad()
                loss = keras.ops.mean((network(x)[:, 0] - y) ** 2)
                loss.backward()
                with torch.no_grad():
                    self.optimizers_of[name].apply([weight.value.grad for weight in weights], weights)
        return {"loss": loss}


def two_optimizers() -> keras.Model:
    model = TwoOptimizers()
    model.compile()
    return model


def arrays(model: keras.Model) -> dict[str, bytes]:
    return {name: cell.read().tobytes() for name, cell in find(model).cells.items()}


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(stateful, marks=not_torch),
        pytest.param(unseeded, marks=not_jax),
        pytest.param(counting_loss, marks=not_jax),
        averaged,
        pytest.param(module, marks=only_torch),
        pytest.param(two_optimizers, marks=not_jax),
    ],
)
def test_all_state_of_training_is_saved(data: Callable[[], Sequence], tmp_path: Path, make: Callable[[], keras.Model]) -> None:
    """A run that was interrupted, between or within epochs, and resumed ends with exactly the values of an uninterrupted run."""

    def fit(sequence: Sequence, *callbacks: Any) -> keras.Model:
        keras.utils.set_random_seed(1)
        model = make()
        swap = [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)] if make is averaged else []
        model.fit(sequence, epochs=2, verbose=0, callbacks=[*callbacks, *swap])
        return model

    whole = fit(data())
    expected = arrays(whole)
    assert len(expected) > len(whole.variables)
    for step in (6, 9):
        sequence, again = data(), data()
        with pytest.raises(Interruption):
            fit(sequence, Resume(tmp_path / str(step), sequence, every=1), Interrupt(step))
        found = arrays(fit(again, Resume(tmp_path / str(step), again)))
        # On TensorFlow, the optimizer of compile() is built, although it is not used.
        assert {name: found[name] for name in expected} == expected


@only_torch
def test_a_torch_optimizer_is_refused(data: Callable[[], Sequence], tmp_path: Path) -> None:
    """A torch optimizer, whose state can't be saved, is refused before the first step."""
    import torch

    model = stateful()
    model.mine = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
    sequence = data()
    with pytest.raises(InputError, match="the model has a Adam, as attribute mine, whose state can't be saved"):
        model.fit(sequence, verbose=0, callbacks=[Resume(tmp_path, sequence), Interrupt(0)])
