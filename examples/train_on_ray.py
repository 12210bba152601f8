"""Train on the machines of a Ray cluster, with JAX: ``python examples/train_on_ray.py --ranks 2``.

Ray Train starts one process, a *rank*, on each machine. ``keras.distribution`` keeps their weights the same, and ``shard="auto"``
gives each rank its part of every batch, so the model is the one that a single process would have trained, up to rounding.
`Resume` saves the state of the model and of the data. When a machine is lost, Ray starts again with the remaining ones, and
training continues in the middle of the epoch.

``--folder`` must be visible to all machines. Without a cluster, Ray starts one on this machine.
"""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.collective
from ray.train.v2.jax import JaxTrainer
from sklearn.datasets import load_digits

BATCH = 64
"""Samples in a batch, of all ranks together: a multiple of every possible number of ranks."""


def write_digits(folder: Path) -> None:
    """Write one file a digit into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(load_digits().images):
        np.save(folder / f"id-{number}.npy", (image / 16).astype("float32"))


def connect() -> None:
    """Connect the ranks. Ray itself does that for GPUs and TPUs, but not for CPUs."""
    import jax

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    if world > 1 and not jax.distributed.is_initialized():
        address = None
        if rank == 0:
            host = ray.util.get_node_ip_address()
            with socket.socket() as free:
                free.bind((host, 0))
                address = f"{host}:{free.getsockname()[1]}"
        jax.distributed.initialize(ray.train.collective.broadcast_from_rank_zero(address), world, rank)


def make_model() -> Any:
    """A small convolutional network for 8 x 8 pictures of 10 classes."""
    import keras

    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(
        optimizer=keras.optimizers.SGD(0.05, momentum=0.9), loss="sparse_categorical_crossentropy", weighted_metrics=["accuracy"]
    )
    return model


def train(config: dict[str, Any]) -> float:
    """Train one rank, in a process and working folder that Ray made; returns the validation accuracy."""
    connect()
    # Importing Keras initialises JAX's devices, so the ranks must be connected first.
    import keras

    from shmgen import Sequence
    from shmgen.keras import Resume

    # Each rank's Sequence delivers that rank's part; Keras must not divide it again.
    keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
    keras.utils.set_random_seed(0)
    labels = {f"id-{number}": int(label) for number, label in enumerate(load_digits().target)}
    ids = list(labels)
    params = {"dim": (8, 8), "n_channels": 1, "data_dir": config["data"], "batch_size": BATCH, "shard": "auto"}
    training = Sequence(ids[: 22 * BATCH], labels, **params)
    # The rows that fill the last batch weigh nothing, so the accuracy is that of all samples.
    validation = Sequence(ids[22 * BATCH :], labels, shuffle=False, tail="pad", **params)
    with training, validation:
        model = make_model()
        callbacks = [
            Resume(config["states"], training, every=config["every"]),
            keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: ray.train.report({"epoch": epoch, **logs})),
            *config.get("callbacks", ()),
        ]
        history = model.fit(training, validation_data=validation, epochs=config["epochs"], callbacks=callbacks, verbose=0)
        return float(history.history["val_accuracy"][-1])


def fit(folder: Path, ranks: int, loop: Callable[[dict[str, Any]], float] = train, **config: Any) -> float:
    """Train on this number of ranks, or on fewer if the cluster has fewer; returns what ``loop`` returns."""
    trainer = JaxTrainer(
        loop,
        train_loop_config={"data": folder / "digits", "states": folder / "states", **config},
        scaling_config=ray.train.ScalingConfig(num_workers=(1, ranks), resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(
            storage_path=str(folder / "runs"),
            failure_config=ray.train.FailureConfig(max_failures=3),
            worker_runtime_env={"env_vars": {"KERAS_BACKEND": "jax", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}},
        ),
    )
    returned: float = trainer.fit().return_value
    return returned


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(".demo/ray"), help="for files and states (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--ranks", type=int, default=2, help="maximum; training continues with fewer (default: %(default)s)")
    arguments = parser.parse_args()

    folder = arguments.folder.absolute()
    write_digits(folder / "digits")
    accuracy = fit(folder, arguments.ranks, epochs=arguments.epochs, every=10)
    print(f"validation accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
