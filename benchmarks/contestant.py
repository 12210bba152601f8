"""One contestant: a process that reads a data set in one way, and says how fast. By hand, two turns of shmgen::

    printf '\\n\\n' | python -m benchmarks.contestant load shmgen volume-32

It takes a turn for each line that it reads, and prints what it measured as a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.cases import CASES, CLASSES, Case, Checksum, checksum

if TYPE_CHECKING:
    from keras.utils import PyDataset

WORKERS = 2
"""Processes that read, for whoever reads with several."""

Batches = Iterable[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Turn:
    """What a contestant did when its turn came.

    Attributes:
        samples: delivered while the clock ran.
        seconds: that they took.
        delivered: what was in an epoch for which the clock did not run.
    """

    samples: int
    seconds: float
    delivered: Checksum

    @property
    def rate(self) -> float:
        return self.samples / self.seconds


class Blog:
    """The generator that everybody knows, as far as the files' dtype allows.

    Written after https://stanford.edu/~shervine/blog/keras-how-to-generate-data-on-the-fly, but ``X`` has the dtype of the files:
    with the blog's float64 it would be slower still, and deliver something else.
    """

    def __init__(
        self,
        list_IDs: list[str],
        labels: dict[str, int],
        batch_size: int,
        dim: tuple[int, ...],
        n_channels: int,
        shuffle: bool,
        data_dir: Path,
        dtype: str,
        **keras_options: Any,
    ) -> None:
        super().__init__(**keras_options)
        self.dim = dim
        self.batch_size = batch_size
        self.labels = labels
        self.list_IDs = list_IDs
        self.n_channels = n_channels
        self.shuffle = shuffle
        self.data_dir = data_dir
        self.dtype = dtype
        self.on_epoch_end()

    def __len__(self) -> int:
        return int(np.floor(len(self.list_IDs) / self.batch_size))

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        indexes = self.indexes[index * self.batch_size : (index + 1) * self.batch_size]
        return self._data_generation([self.list_IDs[k] for k in indexes])

    def on_epoch_end(self) -> None:
        self.indexes = np.arange(len(self.list_IDs))
        if self.shuffle:
            np.random.shuffle(self.indexes)

    def _data_generation(self, list_IDs_temp: list[str]) -> tuple[np.ndarray, np.ndarray]:
        X = np.empty((self.batch_size, *self.dim, self.n_channels), dtype=self.dtype)
        y = np.empty((self.batch_size), dtype=int)
        for i, ID in enumerate(list_IDs_temp):
            X[i,] = np.load(f"{self.data_dir}/{ID}.npy")
            y[i] = self.labels[ID]
        return X, y


def arguments(case: Case) -> dict[str, Any]:
    """What the blog's generator and shmgen both take."""
    return {
        "list_IDs": case.ids,
        "labels": case.labels,
        "batch_size": case.batch_size,
        "dim": case.shape[:-1],
        "n_channels": case.shape[-1],
        "shuffle": True,
        "data_dir": case.folder,
        "dtype": case.dtype,
    }


def blog_dataset(case: Case, **keras_options: Any) -> PyDataset:
    """The blog's generator as Keras takes it, which the bare one must not import."""
    from keras.utils import PyDataset

    return type("DataGenerator", (Blog, PyDataset), {})(**arguments(case), **keras_options)


# Loaders: each yields one epoch after another, every one of which gives its batches once.


def load_naive(case: Case, share: int) -> Iterator[Batches]:
    """The blog's generator in a plain loop."""
    generator = Blog(**arguments(case))
    while True:
        yield (generator[index] for index in range(len(generator)))
        generator.on_epoch_end()


def load_keras(case: Case, share: int) -> Iterator[Batches]:
    """The blog's generator, read by Keras's own processes, by the calls of ``fit``; it starts them anew every epoch."""
    from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter

    dataset = blog_dataset(case, workers=WORKERS, use_multiprocessing=True, max_queue_size=10)
    adapter = PyDatasetAdapter(dataset, shuffle=True)
    while True:
        adapter.on_epoch_begin()
        yield adapter.get_numpy_iterator()
        adapter.on_epoch_end()


def load_shmgen(case: Case, share: int) -> Iterator[Batches]:
    """`shmgen.Loader` as it comes."""
    from shmgen import Loader

    with Loader(**arguments(case), workers=WORKERS) as loader:
        while True:
            yield loader


def load_limit(case: Case, share: int) -> Iterator[Batches]:
    """What files cost that are opened, read and closed, and nothing else: no loader with as many processes does it in less.

    This process reads its share of every batch, while another reads the rest for itself.
    """
    begin, end = (part * case.batch_size // WORKERS for part in (share, share + 1))
    X = np.empty((end - begin, *case.shape), case.dtype)
    rows = [memoryview(row).cast("B") for row in X]
    header = bytearray(os.path.getsize(case.path(case.ids[0])) - case.sample_bytes)
    # Drawn beforehand and the same in every epoch, because drawing it is not reading.
    order = np.random.default_rng(0).permutation(case.samples).reshape(-1, case.batch_size)[:, begin:end]
    batches = [[case.path(case.ids[number]) for number in numbers] for numbers in order]
    labels = np.array([case.labels[id] for id in case.ids])[order]

    def epoch() -> Batches:
        opened, preadv, close, flags = os.open, os.preadv, os.close, os.O_RDONLY | os.O_CLOEXEC
        for paths, y in zip(batches, labels, strict=True):
            for path, row in zip(paths, rows, strict=True):
                fd = opened(path, flags)
                preadv(fd, (header, row), 0)
                close(fd)
            yield X, y

    while True:
        yield epoch()


# Datasets: what ``fit`` is given.


def fit_naive(case: Case) -> PyDataset:
    """The blog's generator."""
    return blog_dataset(case)


def fit_shmgen(case: Case) -> PyDataset:
    """`shmgen.Sequence` as it comes."""
    from shmgen import Sequence

    return Sequence(**arguments(case), workers=WORKERS)


def fit_memory(case: Case) -> PyDataset:
    """One batch again and again, which nobody reads: what ``fit`` itself costs. Aligned as TensorFlow takes it without a copy."""
    from keras.utils import PyDataset

    X, y = Blog(**arguments(case))[0]
    memory = np.empty(X.nbytes + 64, np.uint8)
    aligned = memory[-memory.ctypes.data % 64 :][: X.nbytes].view(X.dtype).reshape(X.shape)
    aligned[:] = X

    class Memory(PyDataset):
        def __len__(self) -> int:
            return case.samples // case.batch_size

        def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            return aligned, y

    return Memory()


LOADERS: dict[str, Callable[[Case, int], Iterator[Batches]]] = {
    "naive": load_naive,
    "keras": load_keras,
    "shmgen": load_shmgen,
    "limit": load_limit,
}
DATASETS: dict[str, Callable[[Case], PyDataset]] = {"naive": fit_naive, "shmgen": fit_shmgen, "memory": fit_memory}


def turns_of_loading(epochs: Iterator[Batches], least: float) -> Iterator[Turn]:
    """Every turn is an epoch off the clock, then as many on it as take ``least`` seconds.

    The first gives back what was read ahead while others had their turn, warms the caches again, and is checked.
    """
    while True:
        delivered = checksum(next(epochs))
        samples = 0
        start = time.perf_counter()
        while (seconds := time.perf_counter() - start) < least:
            for X, _ in next(epochs):
                samples += len(X)
        yield Turn(samples, seconds, delivered)


def turns_of_fit(dataset: PyDataset, samples: int, least: float) -> Iterator[Turn]:
    """Every turn is a ``fit`` whose clock starts when its first epoch ends, and runs for ``least`` seconds or more.

    Args:
        dataset: to be trained on.
        samples: in an epoch.
        least: seconds.
    """
    import keras

    class Clock(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: object = None) -> None:
            if epoch == 0:
                self.start = time.perf_counter()
            self.epochs = epoch
            self.seconds = time.perf_counter() - self.start
            self.model.stop_training = self.seconds >= least

    delivered = checksum(dataset[index] for index in range(len(dataset)))
    # So small that to feed it is the work.
    model = keras.Sequential([keras.layers.GlobalAveragePooling3D(), keras.layers.Dense(CLASSES)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    while True:
        clock = Clock()
        model.fit(dataset, epochs=sys.maxsize, verbose=0, callbacks=[clock])
        yield Turn(clock.epochs * samples, clock.seconds, delivered)


def main() -> None:
    """Take a turn for every line on standard input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contestant", description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["load", "fit"], help="read the batches only, or train on them")
    parser.add_argument("contestant", choices=[*LOADERS, *(DATASETS.keys() - LOADERS.keys())])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--files", type=int, help="how many there are")
    parser.add_argument("--repeats", type=int, default=1, help="of each file in an epoch")
    parser.add_argument("--seconds", type=float, default=1.0, help="that a turn lasts, or more")
    parser.add_argument("--share", type=int, default=0, help=f"of every batch, from 0 to {WORKERS - 1}, for the limit")
    options = parser.parse_args()
    case = CASES[options.case]
    case = replace(case, files=options.files or case.files, repeats=options.repeats, root=options.data or case.root)
    case.make()
    if options.what == "load":
        turns = turns_of_loading(LOADERS[options.contestant](case, options.share), options.seconds)
    else:
        turns = turns_of_fit(DATASETS[options.contestant](case), case.samples, options.seconds)
    for _ in sys.stdin:
        print(json.dumps(asdict(next(turns))), flush=True)


if __name__ == "__main__":
    main()
