"""A Keras model, for any backend, that records the batches of its steps, and the batches that are expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from shmgen import Loader, Sequence

BATCH = 4
SHAPE = (2, 3)


class Recorder(keras.Model):
    """Writes down the labels of every batch that it trains on, or evaluates, and calls ``look`` with its tensors."""

    def __init__(self, look: Callable[[Any, Any], object] = lambda x, y: None, **options: Any) -> None:
        super().__init__()
        self.seen: list[list[int]] = []
        self.look = look
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")
        self.compile(run_eagerly=True, **options)

    def build(self, input_shape: Any) -> None:
        """Nothing is left to be built."""

    def call(self, x: Any) -> Any:
        return keras.ops.mean(x, axis=(1, 2))

    def train_step(self, *stated: Any) -> Any:
        """On JAX the state comes before the data, and goes back with the logs."""
        *state, data = stated
        self.look(*data)
        x, y = (keras.ops.convert_to_numpy(part) for part in data)
        assert (x == y[:, None, None]).all(), "X and y of a row belong to different samples"
        self.seen.append(y.tolist())
        logs = {"loss": np.float32(0)}
        return (logs, *state) if state else logs

    test_step = train_step

    def taken(self) -> list[list[int]]:
        """The labels of all batches since the last call."""
        taken, self.seen = self.seen, []
        return taken


class Stop(keras.callbacks.Callback):
    """Ends ``fit`` after a number of batches."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        self.model.stop_training = batch + 1 == self.after


class Interruption(Exception):
    """Ends a ``fit``."""


class Interrupt(keras.callbacks.Callback):
    """Interrupts ``fit`` when the step of this number begins, counted over all epochs, or does something else then."""

    def __init__(self, step: int = -1, does: Callable[[], object] | None = None) -> None:
        super().__init__()
        self.left = step
        self.does = does
        self.steps: list[int] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self.does is not None:
            self.does()
        if self.left == 0:
            raise Interruption
        self.left -= 1
        self.steps.append(batch)


class Around(keras.utils.PyDataset):
    """A user's data set around a Sequence, which passes on only the calls that it must."""

    def __init__(self, sequence: Sequence, **options: Any) -> None:
        super().__init__(**options)
        self.sequence = sequence

    def __len__(self) -> int:
        return len(self.sequence)

    def __getitem__(self, index: int) -> Any:
        X, y = self.sequence[index]
        return X + 0, y


def flat_model() -> keras.Model:
    """A model of one unit on rows of `SHAPE`."""
    made = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(1)])
    made.compile(loss="mse", run_eagerly=True)
    return made


class Data:
    """A data set of ``batches`` batches, and what a `Loader` makes of it."""

    def __init__(self, folder: Callable[..., Any], batches: int) -> None:
        self.batches = batches
        self.set = folder(BATCH * batches, SHAPE)
        self.options = {"batch_size": BATCH, "data_dir": self.set.path, "seed": 3, "workers": 1}

    def sequence(self, cls: type[Sequence] = Sequence, **options: Any) -> Sequence:
        return cls(self.set.ids, self.set.labels, **{**self.options, **options})

    def epochs(self, count: int) -> list[list[list[int]]]:
        """The labels of all batches of the first ``count`` epochs."""
        with Loader(self.set.ids, self.set.labels, **{**self.options, "workers": 0}) as loader:
            return [[y.tolist() for _, y in loader] for _ in range(count)]


def address(tensor: Any) -> int:
    """Where the memory of a tensor on the CPU begins, on any backend; `np.asarray` would copy TensorFlow's."""
    for name in ("data_ptr", "unsafe_buffer_pointer"):
        if hasattr(tensor, name):
            return int(getattr(tensor, name)())
    return int(np.asarray(memoryview(tensor)).ctypes.data)
