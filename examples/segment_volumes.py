"""Learn to segment noisy volumes: a scan and its mask are read, and flipped alike, by the workers of `shmgen.Sequence`.

The volumes are made here and written to ``.demo/``: bright ellipsoids under so much noise that a threshold is not enough. Inputs
and targets have names, which the transform and the network use too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops

from shmgen import Npy, Sequence

SIDE = 24
"""Voxels along each edge of a volume."""


def write_volumes(folder: Path, count: int) -> list[str]:
    """Write ``scans/ID.npy`` (float32) and ``masks/ID.npy`` (uint8) into ``folder`` and return the ids."""
    rng = np.random.default_rng(0)
    for name in ("scans", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    voxels = np.stack(np.indices((SIDE, SIDE, SIDE)), axis=-1)
    ids = [f"volume-{number}" for number in range(count)]
    for id in ids:
        mask = np.zeros((SIDE, SIDE, SIDE), bool)
        for _ in range(rng.integers(1, 4)):
            centre, radii = rng.uniform(4, SIDE - 4, size=3), rng.uniform(3, 7, size=3)
            mask |= (((voxels - centre) / radii) ** 2).sum(axis=-1) < 1
        np.save(folder / "scans" / f"{id}.npy", (mask + rng.normal(0, 0.5, mask.shape)).astype("float32"))
        np.save(folder / "masks" / f"{id}.npy", mask.astype("uint8"))
    return ids


def flip(sample: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The sample, whose rows have shape (SIDE, SIDE, SIDE, 1), mirrored along a random choice of axes: scan and mask alike."""
    axes = tuple(np.flatnonzero(rng.random(3) < 0.5))
    return {name: np.flip(row, axes) for name, row in sample.items()}


def make_model() -> keras.Model:
    """A U-Net with one step down and up again."""

    def convolve(x: keras.KerasTensor, filters: int) -> keras.KerasTensor:
        return layers.Conv3D(filters, 3, padding="same", activation="relu", kernel_initializer="he_normal")(x)

    scan = keras.Input((SIDE, SIDE, SIDE, 1), name="scan")
    fine = convolve(scan, 8)
    coarse = convolve(convolve(layers.MaxPooling3D()(fine), 16), 16)
    joined = layers.Concatenate()([fine, layers.UpSampling3D()(coarse)])
    mask = layers.Conv3D(1, 1, activation="sigmoid", name="mask")(convolve(joined, 8))
    model = keras.Model({"scan": scan}, {"mask": mask})
    model.compile(keras.optimizers.Adam(0.01), loss={"mask": "binary_crossentropy"}, metrics={"mask": dice})
    return model


def dice(mask: keras.KerasTensor, found: keras.KerasTensor) -> keras.KerasTensor:
    """The Dice coefficient of each sample: 1 if mask and prediction agree in every voxel, 0 if in none."""
    mask, found = ops.cast(mask, "float32"), ops.cast(found > 0.5, "float32")
    axes = (1, 2, 3, 4)
    return 2 * ops.sum(mask * found, axes) / (ops.sum(mask, axes) + ops.sum(found, axes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(".demo/volumes"), help="where the files go (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=200, help="how many volumes (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=6, help="default: %(default)s")
    arguments = parser.parse_args()

    keras.utils.set_random_seed(0)
    ids = write_volumes(arguments.folder, arguments.samples)
    cut = len(ids) * 4 // 5
    fields = {
        "inputs": {"scan": Npy(arguments.folder / "scans", n_channels=1)},
        "targets": {"mask": Npy(arguments.folder / "masks", n_channels=1)},
    }
    training = Sequence(ids[:cut], batch_size=4, transform=flip, **fields)
    validation = Sequence(ids[cut:], batch_size=4, shuffle=False, tail="keep", **fields)

    with training, validation:
        model = make_model()
        model.fit(training, validation_data=validation, epochs=arguments.epochs, verbose=2)
        reached = model.evaluate(validation, verbose=0, return_dict=True)["dice"]
        threshold = np.concatenate([dice(targets["mask"], inputs["scan"]) for inputs, targets in validation]).mean()

    print(f"validation dice {reached:.3f}, by a threshold alone {threshold:.3f}")
    print(f"waited {training.stats.batch_wait:.3f} s for {training.stats.samples} samples")


if __name__ == "__main__":
    main()
