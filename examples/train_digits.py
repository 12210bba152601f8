"""Train on real handwritten digits, one ``ID.npy`` a sample, through `shmgen.Sequence`.

The 1,797 digits that ship with scikit-learn are written to ``.demo/`` as a folder of files, as in the blog, with its
``partition`` and ``labels``. A small convolutional network learns them, and predicts a few that it has not seen.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import keras
import numpy as np
from sklearn.datasets import load_digits

from shmgen import Sequence


def write_digits(folder: Path) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Write one file a digit into ``folder`` and return ``partition`` and ``labels``."""
    folder.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    labels = {}
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        np.save(folder / f"id-{number}.npy", (image / 16).astype("float32"))
        labels[f"id-{number}"] = int(label)
    ids = np.random.default_rng(0).permutation(list(labels))
    return {"train": list(ids[:1400]), "validation": list(ids[1400:])}, labels


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
            keras.layers.Dropout(0.2),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(".demo/digits"), help="where the files go (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=10, help="default: %(default)s")
    arguments = parser.parse_args()

    keras.utils.set_random_seed(0)
    partition, labels = write_digits(arguments.folder)
    params = {"dim": (8, 8), "batch_size": 32, "n_classes": 10, "n_channels": 1, "data_dir": arguments.folder}
    training = Sequence(partition["train"], labels, shuffle=True, **params)
    validation = Sequence(partition["validation"], labels, shuffle=False, tail="keep", **params)
    few = partition["validation"][:5]
    unseen = Sequence(few, None, batch_size=5, dim=(8, 8), n_channels=1, shuffle=False, data_dir=arguments.folder)

    with training, validation, unseen:
        model = make_model()
        model.fit(training, validation_data=validation, epochs=arguments.epochs, verbose=2)
        _, accuracy = model.evaluate(validation, verbose=0)
        predicted = model.predict(unseen, verbose=0).argmax(axis=1)

    stats = training.stats
    print(f"validation accuracy {accuracy:.3f}")
    print(f"waited {stats.batch_wait:.3f} s for data in {stats.batches} batches, {stats.samples} samples")
    for id, digit in zip(few, predicted, strict=True):
        print(f"{id} shows a {labels[id]}, predicted {digit}")


if __name__ == "__main__":
    main()
