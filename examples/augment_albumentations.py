"""Train with augmentations from the albumentations library (``pip install albumentations``), seeded for each sample.

They run in the workers, and their random numbers come from the sample's own generator: a run is the same at any number of
workers, and after an interruption. The photos are those of ``train_photos.py``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import albumentations as A  # noqa: N812 # as its documentation imports it
import keras
import numpy as np
from train_photos import SIZE, make_model, read_table, write_photos

from shmgen import Images, Sequence

AUGMENT = A.Compose([A.HorizontalFlip(p=0.5), A.RandomBrightnessContrast(p=0.5), A.Rotate(limit=15, p=0.5)])


def augment(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``x``, of shape (height, width, 3) and dtype uint8, augmented with random numbers from ``rng``."""
    AUGMENT.set_random_seed(int(rng.integers(1 << 32)))
    return AUGMENT(image=x)["image"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(".demo/augmented"), help="where the files go (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=1000, help="how many photos (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="default: %(default)s")
    arguments = parser.parse_args()

    keras.utils.set_random_seed(0)
    write_photos(arguments.folder, arguments.samples)
    labels = read_table(arguments.folder)
    ids = list(labels)
    cut = len(ids) * 4 // 5
    params = {"source": Images(arguments.folder, size=SIZE), "classes": ["flower", "temple"], "n_classes": 2}
    training = Sequence(ids[:cut], labels, transform=augment, **params)
    validation = Sequence(ids[cut:], labels, shuffle=False, tail="keep", **params)

    with training, validation:
        model = make_model(2)
        model.fit(training, validation_data=validation, epochs=arguments.epochs, verbose=2)
        _, accuracy = model.evaluate(validation, verbose=0)
    print(f"validation accuracy {accuracy:.3f}")

    sums = []
    for workers in (0, 2):
        with Sequence(ids[:64], labels, transform=augment, workers=workers, **params) as again:
            sums.append([int(X.sum(dtype="int64")) for X, _ in again])
    print(f"the same with 0 and 2 workers: {sums[0] == sums[1]}")


if __name__ == "__main__":
    main()
