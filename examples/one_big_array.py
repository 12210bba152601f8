"""Train from one big ``.npy`` file that holds all samples: an id is a row number, and the labels are an array.

The 1,797 digits that ship with scikit-learn stand in for an array that would not fit into memory, which you would write piece by
piece with ``np.lib.format.open_memmap``. `shmgen.Sequence` reads only the rows of each batch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import keras
import numpy as np
from sklearn.datasets import load_digits

from shmgen import NpyRows, Sequence, Values


def write_digits(file: Path, count: int) -> np.ndarray:
    """Write an array of shape (count, 8, 8, 1) into ``file`` and return the label of each row."""
    file.parent.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    np.save(file, (digits.images[:count, ..., None] / 16).astype("float32"))
    return digits.target[:count]


def make_model() -> keras.Model:
    """A small convolutional network for 8 x 8 pictures of 10 classes."""
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(".demo"), help="where the file goes (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=1797, help="how many digits (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=10, help="default: %(default)s")
    arguments = parser.parse_args()

    keras.utils.set_random_seed(0)
    file = arguments.folder / "all_digits.npy"
    labels = write_digits(file, arguments.samples)
    rows = np.random.default_rng(0).permutation(len(labels))
    by_row = Values(labels, by="id")  # labels[k] belongs to row k of the file, not to the k-th id
    cut = len(rows) * 4 // 5
    training = Sequence(rows[:cut], by_row, source=NpyRows(file))
    validation = Sequence(rows[cut:], by_row, source=NpyRows(file), shuffle=False, tail="keep")

    with training, validation:
        model = make_model()
        model.fit(training, validation_data=validation, epochs=arguments.epochs, verbose=2)
        _, accuracy = model.evaluate(validation, verbose=0)

    print(f"validation accuracy {accuracy:.3f}")
    print(f"waited {training.stats.batch_wait:.3f} s for {training.stats.samples} samples")


if __name__ == "__main__":
    main()
