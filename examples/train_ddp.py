"""Train on several processes with torch: ``torchrun --nproc-per-node 2 examples/train_ddp.py``.

Keras's own ``fit`` on torch does not synchronise the processes' weights. Here ``train_step`` goes through torch's
DistributedDataParallel, which averages the gradients of all ranks. ``shard="auto"`` gives each rank its part of every batch, so
the model is the one that a single process would have trained, up to rounding.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
import torch
import torch.distributed
from sklearn.datasets import load_digits
from torch.nn.parallel import DistributedDataParallel

from shmgen import Sequence


class Synchronised(keras.Sequential):
    """A model whose weights are the same on all ranks."""

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        self.zero_grad()
        y_pred = self._ddp(x, training=True)
        loss = self.compute_loss(x, y, y_pred, weights)
        loss.backward()
        trainable = self.trainable_weights
        with torch.no_grad():
            self.optimizer.apply([weight.value.grad for weight in trainable], trainable)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss, sample_weight=len(y))
            else:
                metric.update_state(y, y_pred, weights)
        return self.get_metrics_result()

    @property
    def _ddp(self) -> DistributedDataParallel:
        # Keras and torch track assigned attributes: assigned as one, the wrapper would make the model contain itself.
        if "ddp" not in vars(self):
            vars(self)["ddp"] = DistributedDataParallel(self)
        return vars(self)["ddp"]


def write_digits(folder: Path) -> None:
    """Write one file a digit into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(load_digits().images):
        np.save(folder / f"id-{number}.npy", (image / 16).astype("float32"))


def make_model() -> keras.Model:
    """A small convolutional network for 8 x 8 pictures of 10 classes."""
    model = Synchronised(
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


def largest_difference(model: keras.Model) -> float:
    """The largest difference between weights of the ranks."""
    mine = torch.cat([weight.value.detach().flatten() for weight in model.weights])
    first = mine.clone()
    torch.distributed.broadcast(first, src=0)
    difference = (mine - first).abs().max()
    torch.distributed.all_reduce(difference, op=torch.distributed.ReduceOp.MAX)
    return float(difference)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(".demo/digits"), help="where the files go (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=5, help="default: %(default)s")
    arguments = parser.parse_args()

    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    keras.utils.set_random_seed(0)  # the same initial weights on all ranks
    if rank == 0:
        write_digits(arguments.folder)
    torch.distributed.barrier()

    labels = {f"id-{number}": int(label) for number, label in enumerate(load_digits().target)}
    ids = list(labels)
    params = {"dim": (8, 8), "n_channels": 1, "data_dir": arguments.folder, "batch_size": 64}
    # batch_size is that of all ranks together. With tail="pad", the rows that fill the last batch weigh nothing.
    with Sequence(ids[:1400], labels, tail="pad", shard="auto", **params) as training:
        model = make_model()
        model.fit(training, epochs=arguments.epochs, verbose=2 if rank == 0 else 0)
    difference = largest_difference(model)

    if rank == 0:
        with Sequence(ids[1400:], labels, shuffle=False, tail="keep", **params) as validation:
            _, accuracy = model.evaluate(validation, verbose=0)
        model.save_weights(arguments.folder / f"{world}-ranks.weights.h5")
        print(f"the weights of {world} ranks differ by {difference}; validation accuracy {accuracy:.3f}")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
