"""Train on a folder of JPEGs and a table of their file names and classes.

Pieces of the two photographs that ship with scikit-learn stand in for your own; they are JPEGs of different sizes, and
``.demo/photos/photos.csv`` has a line for each. The workers of `shmgen.Sequence` decode them, resize them to one size, and flip
some, while the network trains.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import keras
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from shmgen import Images, Sequence

SIZE = (64, 64)


def write_photos(folder: Path, count: int) -> None:
    """Write ``count`` JPEGs, with sides of 100 to 200 pixels, and their table."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    with (folder / "photos.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "label"])
        for number in range(count):
            label = int(rng.integers(2))
            width, height = rng.integers(100, 200, size=2)
            left, top = rng.integers(photos[label].width - width), rng.integers(photos[label].height - height)
            photos[label].crop((left, top, left + width, top + height)).save(folder / f"{number:04d}.jpg", quality=90)
            table.writerow([f"{number:04d}.jpg", ["temple", "flower"][label]])


def read_table(folder: Path) -> dict[str, str]:
    """The label of each photo, by file name."""
    with (folder / "photos.csv").open(newline="") as file:
        return {row["file"]: row["label"] for row in csv.DictReader(file)}


def flip(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``x``, of shape (height, width, 3), mirrored half of the time."""
    return x[:, ::-1] if rng.random() < 0.5 else x


def make_model(classes: int) -> keras.Model:
    """A small convolutional network for photos."""
    model = keras.Sequential(
        [
            keras.Input((*SIZE, 3), dtype="uint8"),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(16, 5, strides=2, activation="relu"),
            keras.layers.Conv2D(32, 3, strides=2, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(classes, activation="softmax"),
        ]
    )
    model.compile(optimizer=keras.optimizers.Adam(0.01), loss="categorical_crossentropy", metrics=["accuracy"])
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(".demo/photos"), help="where the files go (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=1000, help="how many photos (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="default: %(default)s")
    arguments = parser.parse_args()

    keras.utils.set_random_seed(0)
    write_photos(arguments.folder, arguments.samples)
    labels = read_table(arguments.folder)
    ids, classes = list(labels), sorted(set(labels.values()))
    cut = len(ids) * 4 // 5
    params = {"source": Images(arguments.folder, size=SIZE), "classes": classes, "n_classes": len(classes)}
    training = Sequence(ids[:cut], labels, transform=flip, **params)
    validation = Sequence(ids[cut:], labels, shuffle=False, tail="keep", **params)

    with training, validation:
        model = make_model(len(classes))
        model.fit(training, validation_data=validation, epochs=arguments.epochs, verbose=2)
        _, accuracy = model.evaluate(validation, verbose=0)
        predicted = model.predict(validation, verbose=0).argmax(axis=1)

    print(f"validation accuracy {accuracy:.3f}")
    print(f"waited {training.stats.batch_wait:.3f} s for {training.stats.samples} samples")
    for id, number in zip(ids[cut : cut + 5], predicted, strict=False):
        print(f"{id} shows a {labels[id]}, predicted {classes[number]}")


if __name__ == "__main__":
    main()
