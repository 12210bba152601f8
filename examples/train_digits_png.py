"""Train on real handwritten digits in PNG files, decoded and shifted by functions of your own, in the workers.

The 1,797 digits that ship with scikit-learn are written to ``.demo/`` as pictures. One function reads the picture of an id,
and another shifts it at random; the workers of `shmgen.Sequence` call both.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import keras
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from shmgen import Sequence


def write_digits(folder: Path, count: int) -> dict[str, int]:
    """Write one PNG file a digit into ``folder`` and return ``labels``, in a random order."""
    folder.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    labels = {}
    for number in np.random.default_rng(0).permutation(len(digits.images))[:count]:
        Image.fromarray((digits.images[number] / 16 * 255).astype("uint8")).save(folder / f"id-{number}.png")
        labels[f"id-{number}"] = int(digits.target[number])
    return labels


def decode(id: str, folder: Path) -> np.ndarray:
    """The picture of sample ``id``, of shape (8, 8) and dtype uint8."""
    with Image.open(folder / f"{id}.png") as image:
        return np.asarray(image)


def shift(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``x``, of shape (8, 8, 1), moved by up to one pixel up or down and left or right; new pixels are black."""
    top, left = rng.integers(3, size=2)
    return np.pad(x, ((1, 1), (1, 1), (0, 0)))[top : top + 8, left : left + 8]


def make_model() -> keras.Model:
    """A small convolutional network for 8 x 8 pictures of 10 classes."""
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), dtype="uint8"),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(".demo/png"), help="where the files go (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=1797, help="how many digits (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=15, help="default: %(default)s")
    arguments = parser.parse_args()

    keras.utils.set_random_seed(0)
    labels = write_digits(arguments.folder, arguments.samples)
    ids = list(labels)
    cut = len(ids) * 4 // 5
    params = {"source": partial(decode, folder=arguments.folder), "n_channels": 1, "n_classes": 10}
    training = Sequence(ids[:cut], labels, transform=shift, **params)
    validation = Sequence(ids[cut:], labels, shuffle=False, tail="keep", **params)

    with training, validation:
        model = make_model()
        model.fit(training, validation_data=validation, epochs=arguments.epochs, verbose=2)
        _, accuracy = model.evaluate(validation, verbose=0)

    print(f"validation accuracy {accuracy:.3f}")
    print(f"waited {training.stats.batch_wait:.3f} s for {training.stats.samples} samples")


if __name__ == "__main__":
    main()
