"""Two inputs, two outputs and weights: a picture from a file and a number from a table, through `shmgen.Sequence`.

The picture shows one of the digits that ship with scikit-learn, and the table gives a number to add to it: the network learns the
digit and the sum. A third of the labels are random; the weights of these samples are small.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

from shmgen import Npy, Sequence, Values


def write_digits(folder: Path, count: int) -> dict[str, int]:
    """Write one file a digit into ``folder`` and return the digit of each id, in a random order."""
    folder.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    shown = {}
    for number in np.random.default_rng(0).permutation(len(digits.images))[:count]:
        np.save(folder / f"id-{number}.npy", (digits.images[number] / 16).astype("float32"))
        shown[f"id-{number}"] = int(digits.target[number])
    return shown


def make_model() -> keras.Model:
    """A network that predicts the digit from the picture alone, and the sum from picture and number."""
    picture = keras.Input((8, 8, 1), name="picture")
    number = keras.Input((1,), name="number")
    x = layers.Conv2D(32, 3, padding="same", activation="relu")(picture)
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    x = layers.Dense(64, activation="relu")(x)
    digit = layers.Dense(10, activation="softmax", name="digit")(x)
    x = layers.Dense(64, activation="relu")(layers.Concatenate()([x, digit, number]))
    total = layers.Dense(1, name="sum")(x)
    model = keras.Model({"picture": picture, "number": number}, {"digit": digit, "sum": total})
    model.compile(
        optimizer="adam", loss={"digit": "sparse_categorical_crossentropy", "sum": "mae"}, metrics={"digit": "accuracy"}
    )
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(".demo/two_inputs"), help="where the files go (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=1797, help="how many digits (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=15, help="default: %(default)s")
    arguments = parser.parse_args()

    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(1)
    shown = write_digits(arguments.folder, arguments.samples)
    ids = list(shown)
    cut = len(ids) * 4 // 5
    doubtful = set(rng.choice(ids[:cut], cut // 3, replace=False))
    labels = {id: rng.integers(10) if id in doubtful else digit for id, digit in shown.items()}
    numbers = {id: rng.integers(-9, 10) for id in ids}
    sums = {id: labels[id] + numbers[id] for id in ids}

    fields = {
        "inputs": {"picture": Npy(arguments.folder, n_channels=1), "number": Values(numbers, dtype="float32")},
        "targets": {"digit": Values(labels), "sum": Values(sums, dtype="float32")},
    }
    training = Sequence(ids[:cut], weights={id: 0.05 if id in doubtful else 1 for id in ids}, **fields)
    validation = Sequence(ids[cut:], shuffle=False, tail="keep", **fields)

    with training, validation:
        model = make_model()
        model.fit(training, validation_data=validation, epochs=arguments.epochs, verbose=2)
        reached = model.evaluate(validation, verbose=0, return_dict=True)

    print(f"validation accuracy {reached['digit_accuracy']:.3f}, sum off by {reached['sum_loss']:.2f} on average")
    print(f"waited {training.stats.batch_wait:.3f} s for {training.stats.samples} samples")


if __name__ == "__main__":
    main()
