"""Feeds: each contestant's data as ``model.fit`` takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.job import Batches, Job
from benchmarks.peers import CONTESTANTS, Blog, arguments, grain_dataset, keras_dataset, load_spdl, tf_dataset, torch_loader

if TYPE_CHECKING:
    from keras.utils import PyDataset


@dataclass(frozen=True)
class Feed:
    """Data for ``fit``.

    Attributes:
        arguments: arguments of ``fit``. Endless data come with the number of steps in an epoch, so they are started once.
        epoch: batches of one epoch, checked before ``fit`` begins.
    """

    arguments: dict[str, Any]
    epoch: Batches


def _from_dataset(dataset: PyDataset) -> Feed:
    return Feed({"x": dataset}, (dataset[index] for index in range(len(dataset))))


def feed_naive(job: Job) -> Feed:
    """The blog's generator."""
    from keras.utils import PyDataset

    return _from_dataset(type("DataGenerator", (Blog, PyDataset), {})(**arguments(job.case)))


def feed_keras_threads(job: Job) -> Feed:
    """A `PyDataset` read by Keras's threads."""
    return _from_dataset(keras_dataset(job, workers=job.workers))


def feed_keras_processes(job: Job) -> Feed:
    """A `PyDataset` read by Keras's processes."""
    return _from_dataset(keras_dataset(job, workers=job.workers, use_multiprocessing=True))


def feed_torch(job: Job) -> Feed:
    """torch's DataLoader, which Keras accepts."""
    loader = torch_loader(job)
    return Feed({"x": loader}, ((X.numpy(), y.numpy()) for X, y in loader))


def feed_tf(job: Job) -> Feed:
    """The tf.data.Dataset, which Keras accepts."""
    dataset = tf_dataset(job)
    return Feed({"x": dataset}, dataset.as_numpy_iterator())


def feed_grain(job: Job) -> Feed:
    """The Grain dataset, which Keras accepts."""
    dataset = grain_dataset(job)

    def epoch() -> Batches:
        iterator = iter(dataset)
        yield from islice(iterator, job.batches)
        iterator.close()

    return Feed({"x": dataset, "steps_per_epoch": job.batches}, epoch())


def feed_spdl(job: Job) -> Feed:
    """A Python generator over SPDL's pipeline, the only form that Keras accepts."""
    epochs = load_spdl(job)
    batches: Iterator[tuple[np.ndarray, np.ndarray]] = (batch for epoch in epochs for batch in epoch)
    return Feed({"x": batches, "steps_per_epoch": job.batches}, islice(batches, job.batches))


def feed_shmgen(job: Job) -> Feed:
    """`shmgen.Sequence` with its defaults."""
    from shmgen import Sequence

    return _from_dataset(Sequence(**arguments(job.case), workers=job.workers))


def feed_memory(job: Job) -> Feed:
    """One batch in memory, delivered again and again, to time ``fit`` itself. It is aligned, so TensorFlow does not copy it."""
    from keras.utils import PyDataset

    X, y = Blog(**arguments(job.case))[0]
    memory = np.empty(X.nbytes + 64, np.uint8)
    aligned = memory[-memory.ctypes.data % 64 :][: X.nbytes].view(X.dtype).reshape(X.shape)
    aligned[:] = X

    class Memory(PyDataset):
        def __len__(self) -> int:
            return job.batches

        def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            return aligned, y

    return _from_dataset(Memory())


FEEDS: dict[str, Callable[[Job], Feed]] = {
    "naive": feed_naive,
    "keras-threads": feed_keras_threads,
    "keras-processes": feed_keras_processes,
    "torch": feed_torch,
    "tf.data": feed_tf,
    "grain": feed_grain,
    "spdl": feed_spdl,
    "shmgen": feed_shmgen,
    "memory": feed_memory,
}


def modules(contestant: str) -> tuple[str, ...]:
    """Modules to import before the clock starts."""
    return ("keras", *(CONTESTANTS[contestant].modules if contestant in CONTESTANTS else ()))
