"""Runs of one training script, each in a process of its own that may be killed at a given moment; for ``test_resume.py``.

Importing a framework takes seconds. So this process imports it once, and forks itself for each run. A run is requested by a line
of JSON with the arguments of `run`; the answer is the run's exit status.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
    sys.modules["tensorflow"] = None  # type: ignore[assignment]  # else Keras imports it in every run

import keras
import numpy as np

from shmgen import Sequence
from shmgen.keras import Resume

BATCH = 4

SAMPLES = 40


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Count(keras.layers.Layer):
    """Takes the id from the first column, counts in a weight how often each id was trained on, and passes the rest on."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.samples = samples
        self.counts = self.add_weight((samples,), "zeros", "float32", trainable=False, autocast=False, name="counts")

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            ids = keras.ops.cast(x[:, 0], "int32")
            self.counts.assign(self.counts + keras.ops.sum(keras.ops.one_hot(ids, self.samples, dtype="float32"), axis=0))
        return x[:, 1:]


class Killer(keras.callbacks.Callback):
    """Kills the process when Keras calls one of its methods for the n-th time."""

    def __init__(self, where: str, count: int) -> None:
        super().__init__()
        self.left = count
        setattr(self, where, self.hit)

    def hit(self, *_: Any, **__: Any) -> None:
        self.left -= 1
        if not self.left:
            die()


def patch(owner: Any, name: str, count: int, *, after: bool) -> None:
    """Kill the process at the n-th call of a function."""
    function, calls = getattr(owner, name), 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count and not after:
            die()
        result = function(*args, **options)
        if calls == count and after:
            die()
        return result

    setattr(owner, name, counted)


PLACES = {"replace": (os, "replace"), "write": (np.lib.format, "write_array"), "unlink": (Path, "unlink")}
"""Functions that write or delete a saved state."""


def rows(samples: int, traps: list[str]) -> Callable[[int], np.ndarray]:
    """A function that computes samples. The middle one deletes a trap (a file), and with the last trap kills the trainer."""

    def row(id: int) -> np.ndarray:
        trap = next(filter(os.path.exists, traps), None)
        if id == samples // 2 and trap is not None:
            os.unlink(trap)
            if trap == traps[-1]:
                os.kill(os.getppid(), signal.SIGKILL)
        rng = np.random.Generator(np.random.Philox(id))
        return np.concatenate([[id], rng.standard_normal(3)]).astype(np.float32)

    return row


def run(
    home: str,
    *,
    kill: dict[str, Any] | None = None,
    resume: dict[str, Any] | None = None,
    steps_per_execution: int = 1,
    policy: str = "float32",
    best: bool = False,
) -> None:
    """Train, and write variables and results into ``home``."""
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy(policy)
    layers = [Count(SAMPLES), keras.layers.Dense(8, "relu"), keras.layers.BatchNormalization(), keras.layers.Dropout(0.3)]
    model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(3)])
    model.compile(
        keras.optimizers.Adam(0.05),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=steps_per_execution,
        run_eagerly=keras.backend.backend() == "torch",
        jit_compile=keras.backend.backend() == "jax",  # its cache has what earlier runs compiled
    )
    kill = dict(kill or {})
    traps = [f"{home}/trap-{number}" for number in range(kill["count"])] if kill.get("where") == "read" else []
    source: dict[str, Any] = {"dim": (4,), "dtype": "float32"}
    training = Sequence(range(SAMPLES), lambda id: id % 3, BATCH, source=rows(SAMPLES, traps), workers=1, **source)
    # 10 samples leave an incomplete batch, with other samples in each epoch.
    validation = Sequence(range(10), lambda id: id % 3, BATCH, source=rows(10, []), seed=3, workers=0, **source)
    checkpoints = Path(home, "checkpoints")
    callbacks: list[Any] = []
    if resume is not None:
        callbacks.append(Resume(f"{home}/states", training, **resume))
    callbacks += [
        keras.callbacks.EarlyStopping(patience=20, restore_best_weights=best),
        keras.callbacks.ReduceLROnPlateau(patience=1, factor=0.5),
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9),
        keras.callbacks.ModelCheckpoint(checkpoints / "best.weights.h5", save_best_only=True, save_weights_only=True),
        keras.callbacks.ModelCheckpoint(checkpoints / "{epoch}-{batch}.weights.h5", save_weights_only=True, save_freq=7),
    ]
    for trap in traps:
        Path(trap).touch()
    if kill and not traps:
        where, count, after = kill["where"], kill.get("count", 1), kill.get("after", False)
        if where in PLACES:
            patch(*PLACES[where], count, after=after)
        else:
            callbacks.insert(0, Killer(where, count))
    with warnings.catch_warnings(record=True) as caught:
        history = model.fit(training, epochs=3, validation_data=validation, callbacks=callbacks, verbose=0)
    variables = [*model.variables, *model.optimizer.variables]
    np.savez(f"{home}/variables.npz", *map(keras.ops.convert_to_numpy, variables))
    result = {
        "counts": keras.ops.convert_to_numpy(model.layers[0].counts).tolist(),
        "iterations": int(model.optimizer.iterations),
        "epochs": history.epoch,
        "history": history.history,
        "checkpoints": sorted(path.name for path in checkpoints.iterdir()),
        "warnings": sorted(
            {str(warning.message) for warning in caught if "Resume" in str(warning.message) or "ran out" in str(warning.message)}
        ),
    }
    Path(home, "result.json").write_text(json.dumps(result))
    training.close()
    validation.close()


def main() -> None:
    print(json.dumps(keras.backend.backend()), flush=True)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            failed = 1
            try:
                run(**json.loads(line))
                failed = 0
            except BaseException:
                traceback.print_exc()
            os._exit(failed)
        _, status = os.waitpid(child, 0)
        print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)


if __name__ == "__main__":
    main()
