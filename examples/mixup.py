"""Train with MixUp (Zhang et al., mixup: beyond empirical risk minimization, 2018): batches of pairs of photos, mixed.

A subclass of `shmgen.Sequence` changes whole batches: it takes the batch that the workers made, and returns another.
The photos are those of ``train_photos.py``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from zlib import crc32

import keras
import numpy as np
from train_photos import SIZE, make_model, read_table, write_photos

from shmgen import Images, Sequence


class MixUp(Sequence):
    """Mixes each photo of a batch, and its one-hot label, with another one of the batch."""

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        X, y = super().__getitem__(index)
        rng = np.random.default_rng(crc32(X[0]))  # the same batch is always mixed in the same way
        other, part = rng.permutation(len(X)), np.float32(rng.beta(0.2, 0.2))
        return part * X + (1 - part) * X[other], part * y + (1 - part) * y[other]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(".demo/mixup"), help="where the files go (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=1000, help="how many photos (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="default: %(default)s")
    arguments = parser.parse_args()

    keras.utils.set_random_seed(0)
    write_photos(arguments.folder, arguments.samples)
    labels = read_table(arguments.folder)
    ids = list(labels)
    cut = len(ids) * 4 // 5
    params = {"source": Images(arguments.folder, size=SIZE), "classes": ["flower", "temple"], "n_classes": 2}
    training = MixUp(ids[:cut], labels, **params)
    validation = Sequence(ids[cut:], labels, shuffle=False, tail="keep", **params)

    with training, validation:
        X, y = training[0]
        print(f"the first photo is {y[0, 0]:.3f} flower and {y[0, 1]:.3f} temple, of dtype {X.dtype}")
        model = make_model(2)
        model.fit(training, validation_data=validation, epochs=arguments.epochs, verbose=2)
        _, accuracy = model.evaluate(validation, verbose=0)

    print(f"validation accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
