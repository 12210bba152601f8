"""The contestants that only deliver batches: shmgen, its peers, and the limit.

Each is written as its own documentation recommends, at the settings that were fastest for it here. What a peer leaves to its
user, the reading of a file, is the limit's own `open`, `preadv`, `close` (`readers`), into the place in the batch where the peer
lets one write: what differs is how batches get from the reader to the trainer. *naive* is the blog's generator.

A contestant is a generator that makes its loader and then yields one epoch after another, each of which gives its batches once:
``X`` of (batch, *dim, channels) and int ``y``, shuffled anew, every sample once.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.bounds import HELD, load_limit
from benchmarks.cases import Case
from benchmarks.job import Batches, Job
from benchmarks.readers import Reader

if TYPE_CHECKING:
    import grain
    import tensorflow as tf
    from keras.utils import PyDataset
    from torch.utils.data import DataLoader

SMALL = 16 * 1024
"""Bytes of a sample under which tf.data is faster where it maps whole batches."""


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
        data_dir: str,
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
        "data_dir": case.location,
        "dtype": case.dtype,
    }


def load_naive(job: Job) -> Iterator[Batches]:
    """The blog's generator, one batch after another."""
    generator = Blog(**arguments(job.case))
    while True:
        yield (generator[index] for index in range(len(generator)))
        generator.on_epoch_end()


def keras_dataset(job: Job, **options: Any) -> PyDataset:
    """As the documentation of ``keras.utils.PyDataset`` shows it."""
    from keras.utils import PyDataset

    class DataGenerator(PyDataset):
        def __init__(self) -> None:
            super().__init__(**options)
            self.files = Reader(job.case)
            self.on_epoch_end()

        def __len__(self) -> int:
            return job.batches

        def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            return self.files.batch(self.order[index])

        def on_epoch_end(self) -> None:
            self.order = np.random.permutation(job.case.samples).reshape(job.batches, -1)

    return DataGenerator()


def load_keras(job: Job, processes: bool) -> Iterator[Batches]:
    """By Keras's own threads, or processes, which it starts anew every epoch; by the calls of ``fit``."""
    from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter

    workers = job.processes if processes else job.threads
    dataset = keras_dataset(job, workers=workers, use_multiprocessing=processes, max_queue_size=max(10, workers))
    adapter = PyDatasetAdapter(dataset, shuffle=True)
    while True:
        adapter.on_epoch_begin()
        yield adapter.get_numpy_iterator()
        adapter.on_epoch_end()


def torch_loader(job: Job) -> DataLoader:
    """The DataLoader with a sampler of batches, which its documentation offers to those who read a batch at once.

    A worker reads into a tensor that is in shared memory already, as ``default_collate`` makes one; else torch would copy the
    batch there. Samples one by one through ``default_collate`` were as fast with small files, and slower by a third with large.
    """
    import torch
    from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

    class NpyFiles(Dataset):
        def __init__(self) -> None:
            self.files = Reader(job.case)

        def __len__(self) -> int:
            return job.case.samples

        def __getitem__(self, numbers: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
            shape = (len(numbers), *self.files.shape)
            X = torch.empty(0, dtype=getattr(torch, self.files.dtype))
            X = X.new(X._typed_storage()._new_shared(int(np.prod(shape)), device=X.device)).resize_(*shape)
            return X, torch.from_numpy(self.files.fill(X.numpy(), np.asarray(numbers)))

    dataset = NpyFiles()
    batches = BatchSampler(RandomSampler(dataset), job.case.batch_size, drop_last=True)
    return DataLoader(dataset, batch_size=None, sampler=batches, num_workers=job.processes, persistent_workers=True)


def load_torch(job: Job) -> Iterator[Batches]:
    """torch's DataLoader, whose tensors are NumPy arrays without a copy."""
    loader = torch_loader(job)
    while True:
        yield ((X.numpy(), y.numpy()) for X, y in loader)


def tf_dataset(job: Job) -> tf.data.Dataset:
    """The pipeline of TensorFlow's guides to performance: parallel maps in any order, prefetch, all AUTOTUNE.

    It chooses its number of threads itself, unless ``job`` does. Where samples are small, whole batches are mapped, as the guide
    says: faster by half. The header is cut off behind ``decode_raw``, which takes no copy; ``tf.strings.substr`` would. What
    TensorFlow can't read itself (a URL) a Python function does.
    """
    import tensorflow as tf

    case, files, calls = job.case, Reader(job.case), job.reads or tf.data.AUTOTUNE
    dtype = tf.as_dtype(case.dtype)
    header = files.header // dtype.size

    def sample(path: tf.Tensor) -> tf.Tensor:
        if files.opens_files:
            return tf.reshape(tf.io.decode_raw(tf.io.read_file(path), dtype)[header:], case.shape)
        return tf.ensure_shape(tf.numpy_function(files.sample, [path], dtype), case.shape)

    def batch(paths: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(sample, paths, fn_output_signature=dtype, parallel_iterations=1)

    def mapped(dataset: tf.data.Dataset, read: Callable[[tf.Tensor], tf.Tensor]) -> tf.data.Dataset:
        return dataset.map(lambda path, y: (read(path), y), num_parallel_calls=calls, deterministic=False)

    dataset = tf.data.Dataset.from_tensor_slices((files.paths, files.labels)).shuffle(case.samples)
    if case.sample_bytes < SMALL and files.opens_files:
        dataset = mapped(dataset.batch(case.batch_size, drop_remainder=True), batch)
    else:
        dataset = mapped(dataset, sample).batch(case.batch_size, drop_remainder=True)
    if job.reads:
        options = tf.data.Options()
        options.threading.private_threadpool_size = job.reads  # or as many calls as there are processors would wait at once
        dataset = dataset.with_options(options)
    return dataset.prefetch(tf.data.AUTOTUNE)


def load_tf(job: Job) -> Iterator[Batches]:
    """tf.data, read as NumPy arrays, without a copy."""
    dataset = tf_dataset(job)
    while True:
        yield dataset.as_numpy_iterator()


def grain_dataset(job: Job) -> grain.IterDataset:
    """Grain's Dataset: shuffled, repeated, so that its workers outlive epochs; batched, then read.

    A worker reads into one of Grain's own arrays in shared memory, which saves it a copy; two threads a worker keep reading while
    one batch is handed over. Batches made of samples that were read one by one were slower by a third.
    """
    import grain
    from absl import flags
    from grain.multiprocessing import SharedMemoryArray

    flags.FLAGS.mark_as_parsed()  # where JAX is installed, Grain asks for flags of its own
    files = Reader(job.case)

    def read(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        X = SharedMemoryArray((len(numbers), *files.shape), np.dtype(files.dtype))
        return X, files.fill(np.asarray(X), numbers)

    numbers = grain.MapDataset.range(job.case.samples).seed(0).shuffle().repeat()
    dataset = numbers.batch(job.case.batch_size, drop_remainder=True).map(read)
    threads = max(2, job.threads // job.workers)
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    processes = grain.MultiprocessingOptions(num_workers=job.workers, per_worker_buffer_size=2)
    return dataset.to_iter_dataset(reading).mp_prefetch(processes)


def load_grain(job: Job) -> Iterator[Batches]:
    """Grain's processes."""
    iterator = iter(grain_dataset(job))
    try:
        while True:
            yield islice(iterator, job.batches)
    finally:
        iterator.close()


def load_spdl(job: Job) -> Iterator[Batches]:
    """SPDL's threads, one pipeline for all epochs, each stage item a whole batch: samples one by one were five times slower."""
    from spdl.pipeline import PipelineBuilder

    files = Reader(job.case)

    class Shuffled:
        def __iter__(self) -> Iterator[np.ndarray]:
            return iter(np.random.permutation(job.case.samples).reshape(job.batches, -1))

    builder = PipelineBuilder().add_source(Shuffled(), continuous=True).pipe(files.batch, concurrency=job.threads).add_sink(3)
    pipeline = builder.build(num_threads=job.threads)
    with pipeline.auto_stop():
        while True:
            yield pipeline.get_iterator()


def load_shmgen(job: Job, auto: bool = False) -> Iterator[Batches]:
    """`shmgen.Loader` as it comes, with as many workers as are asked for, or ``auto``: as many as it likes."""
    from shmgen import Loader

    with Loader(**arguments(job.case), workers="auto" if auto else job.workers) as loader:
        while True:
            yield loader


def load_tensors(job: Job) -> Iterator[Batches]:
    """`shmgen.torch.Tensors`, looked at as torch's own are."""
    from shmgen import Loader
    from shmgen.torch import Tensors

    with Loader(**arguments(job.case), workers=job.workers) as loader:
        tensors = Tensors(loader)
        while True:
            yield ((X.numpy(), y.numpy()) for X, y in tensors)


@dataclass(frozen=True)
class Peer:
    """A way to read a data set.

    Attributes:
        load: makes the loader, and gives its epochs; None for those of `BARE`.
        modules: imported before any clock runs; without the first, the peer is not installed.
        limit: is a bound: as many processes as there are workers share its batches.
        alone: one process does, however many workers there are.
        program: without which it is not installed.
    """

    load: Callable[[Job], Iterator[Batches]] | None
    modules: tuple[str, ...] = ()
    limit: bool = False
    alone: bool = False
    program: str = ""

    @property
    def installed(self) -> bool:
        found = all(find_spec(module.partition(".")[0]) for module in self.modules)
        return found and (not self.program or shutil.which(self.program) is not None)


_KERAS = ("tensorflow", "keras.src.trainers.data_adapters.py_dataset_adapter")

PEERS: dict[str, Peer] = {
    "naive": Peer(load_naive),
    "keras-threads": Peer(partial(load_keras, processes=False), _KERAS),
    "keras-processes": Peer(partial(load_keras, processes=True), _KERAS),
    "torch": Peer(load_torch, ("torch.utils.data",)),
    "tf.data": Peer(load_tf, ("tensorflow",)),
    "grain": Peer(load_grain, ("grain.multiprocessing",)),
    "spdl": Peer(load_spdl, ("spdl.pipeline",)),
    "shmgen": Peer(load_shmgen, ("shmgen.loader",)),
    "shmgen-tensors": Peer(load_tensors, ("torch.utils.data", "shmgen.loader")),
    "shmgen-auto": Peer(partial(load_shmgen, auto=True), ("shmgen.loader",)),
    "limit": Peer(load_limit, limit=True),
    "limit-held": Peer(partial(load_limit, held=HELD), limit=True),
    "pool": Peer(None, limit=True, alone=True),
    "requests": Peer(None, limit=True),
    "fio": Peer(None, limit=True, alone=True, program="fio"),
}
