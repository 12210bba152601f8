"""What ``model.fit`` is given, by each contestant that it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.job import Batches, Job
from benchmarks.peers import (
    PEERS,
    Blog,
    arguments,
    grain_dataset,
    keras_dataset,
    load_spdl,
    tf_dataset,
    torch_loader,
)

if TYPE_CHECKING:
    from keras.utils import PyDataset


@dataclass(frozen=True)
class Feed:
    """Data for ``fit``.

    Attributes:
        arguments: of ``fit``. What has no end says the steps of an epoch: started once, it is not started anew for each.
        epoch: one, to be checked before ``fit`` begins.
    """

    arguments: dict[str, Any]
    epoch: Batches


def _of_dataset(dataset: PyDataset) -> Feed:
    return Feed({"x": dataset}, (dataset[index] for index in range(len(dataset))))


def feed_naive(job: Job) -> Feed:
    """The blog's generator."""
    from keras.utils import PyDataset

    return _of_dataset(type("DataGenerator", (Blog, PyDataset), {})(**arguments(job.case)))


def feed_keras_threads(job: Job) -> Feed:
    """Keras's own threads."""
    return _of_dataset(keras_dataset(job, workers=job.workers))


def feed_keras_processes(job: Job) -> Feed:
    """Keras's own processes."""
    return _of_dataset(keras_dataset(job, workers=job.workers, use_multiprocessing=True))


def feed_torch(job: Job) -> Feed:
    """The DataLoader as it is, which Keras takes."""
    loader = torch_loader(job)
    return Feed({"x": loader}, ((X.numpy(), y.numpy()) for X, y in loader))


def feed_tf(job: Job) -> Feed:
    """The tf.data.Dataset as it is."""
    dataset = tf_dataset(job)
    return Feed({"x": dataset}, dataset.as_numpy_iterator())


def feed_grain(job: Job) -> Feed:
    """The Grain dataset as it is, which Keras takes."""
    dataset = grain_dataset(job)

    def epoch() -> Batches:
        iterator = iter(dataset)
        yield from islice(iterator, job.batches)
        iterator.close()

    return Feed({"x": dataset, "steps_per_epoch": job.batches}, epoch())


def feed_spdl(job: Job) -> Feed:
    """A Python generator around the pipeline: Keras knows no other way to take it."""
    epochs = load_spdl(job)
    batches: Iterator[tuple[np.ndarray, np.ndarray]] = (batch for epoch in epochs for batch in epoch)
    return Feed({"x": batches, "steps_per_epoch": job.batches}, islice(batches, job.batches))


def feed_shmgen(job: Job) -> Feed:
    """`shmgen.Sequence` as it comes."""
    from shmgen import Sequence

    return _of_dataset(Sequence(**arguments(job.case), workers=job.workers))


def feed_memory(job: Job) -> Feed:
    """One batch again and again, which nobody reads: what ``fit`` itself costs. Aligned as TensorFlow takes it without a copy."""
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

    return _of_dataset(Memory())


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
    """Imported before any clock runs, beside Keras's backend."""
    return ("keras", *(PEERS[contestant].modules if contestant in PEERS else ()))
