"""The contestants that deliver batches: shmgen, its peers, and the blog's generator, *naive*.

Each peer follows its own documentation, with the settings that were fastest here. Where a peer leaves reading to its user, it
reads files as the limit does (`readers`), into the batch's own memory if the peer allows that. So contestants differ in how
batches get from the reader to the trainer.

A contestant is a generator that makes its loader and yields epochs, each an iterable of batches: ``X`` of shape (batch, *dim,
channels) and int ``y``, with every sample once, in a new random order.
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
"""Bytes of a sample below which tf.data is faster at mapping whole batches."""


class Blog:
    """The blog's generator, https://stanford.edu/~shervine/blog/keras-how-to-generate-data-on-the-fly.

    Only the dtype of ``X`` differs, which is that of the files: the blog's float64 would be slower, and deliver other batches.
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
    """Arguments that the blog's generator and shmgen share."""
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
    """The blog's generator, called batch by batch."""
    generator = Blog(**arguments(job.case))
    while True:
        yield (generator[index] for index in range(len(generator)))
        generator.on_epoch_end()


def keras_dataset(job: Job, **options: Any) -> PyDataset:
    """A ``keras.utils.PyDataset``, as its documentation shows it."""
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
    """Keras's threads or processes, which it restarts every epoch, driven as ``fit`` drives them."""
    from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter

    workers = job.processes if processes else job.threads
    dataset = keras_dataset(job, workers=workers, use_multiprocessing=processes, max_queue_size=max(10, workers))
    adapter = PyDatasetAdapter(dataset, shuffle=True)
    while True:
        adapter.on_epoch_begin()
        yield adapter.get_numpy_iterator()
        adapter.on_epoch_end()


def torch_loader(job: Job) -> DataLoader:
    """A DataLoader with a batch sampler, which its documentation recommends for reading whole batches.

    A worker reads into a tensor in shared memory, as ``default_collate`` makes it, so torch need not copy the batch there.
    Single samples through ``default_collate`` were as fast with small files, and a third slower with large ones.
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
    """torch's DataLoader, with its tensors as NumPy arrays, without a copy."""
    loader = torch_loader(job)
    while True:
        yield ((X.numpy(), y.numpy()) for X, y in loader)


def tf_dataset(job: Job) -> tf.data.Dataset:
    """The pipeline of TensorFlow's performance guide: nondeterministic parallel maps and prefetching, with AUTOTUNE.

    TensorFlow chooses the number of threads, unless ``job`` gives the reads in flight. Small samples are mapped as whole batches,
    as the guide recommends, which was faster by half. The header is cut off after ``decode_raw``, which avoids the copy of
    ``tf.strings.substr``. URLs, which TensorFlow can't read, are read by a Python function.
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
        options.threading.private_threadpool_size = job.reads  # else no more calls could wait at once than there are processors
        dataset = dataset.with_options(options)
    return dataset.prefetch(tf.data.AUTOTUNE)


def load_tf(job: Job) -> Iterator[Batches]:
    """tf.data, with its tensors as NumPy arrays, without a copy."""
    dataset = tf_dataset(job)
    while True:
        yield dataset.as_numpy_iterator()


def grain_dataset(job: Job) -> grain.IterDataset:
    """A Grain Dataset that is repeated, so its workers are started only once.

    A worker reads whole batches into Grain's shared-memory arrays, which avoids a copy, and has two threads, so that one reads
    while the other hands over a batch. Batches of samples read one by one were a third slower.
    """
    import grain
    from absl import flags
    from grain.multiprocessing import SharedMemoryArray

    flags.FLAGS.mark_as_parsed()  # if JAX is installed, Grain uses flags that only a main function would parse
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
    """Grain's worker processes."""
    iterator = iter(grain_dataset(job))
    try:
        while True:
            yield islice(iterator, job.batches)
    finally:
        iterator.close()


def load_spdl(job: Job) -> Iterator[Batches]:
    """SPDL's threads, in one pipeline for all epochs, whose items are whole batches: single samples were five times slower."""
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
    """`shmgen.Loader` with its defaults and the job's number of workers; ``auto`` lets it choose that number."""
    from shmgen import Loader

    with Loader(**arguments(job.case), workers="auto" if auto else job.workers) as loader:
        while True:
            yield loader


def load_tensors(job: Job) -> Iterator[Batches]:
    """`shmgen.torch.Tensors` as NumPy arrays, without a copy."""
    from shmgen import Loader
    from shmgen.torch import Tensors

    with Loader(**arguments(job.case), workers=job.workers) as loader:
        tensors = Tensors(loader)
        while True:
            yield ((X.numpy(), y.numpy()) for X, y in tensors)


@dataclass(frozen=True)
class Contestant:
    """A way to read a data set.

    Attributes:
        load: generator that makes the loader and yields its epochs; None for `BARE_READERS`.
        modules: modules to import before the clock starts; if any is missing, the contestant is not installed.
        bound: whether it is a bound. Its work is shared by as many processes as there are workers.
        single_process: whether one process does all the work, at any number of workers.
        program: a program that it needs.
    """

    load: Callable[[Job], Iterator[Batches]] | None
    modules: tuple[str, ...] = ()
    bound: bool = False
    single_process: bool = False
    program: str = ""

    @property
    def installed(self) -> bool:
        found = all(find_spec(module.partition(".")[0]) for module in self.modules)
        return found and (not self.program or shutil.which(self.program) is not None)


_KERAS = ("tensorflow", "keras.src.trainers.data_adapters.py_dataset_adapter")

CONTESTANTS: dict[str, Contestant] = {
    "naive": Contestant(load_naive),
    "keras-threads": Contestant(partial(load_keras, processes=False), _KERAS),
    "keras-processes": Contestant(partial(load_keras, processes=True), _KERAS),
    "torch": Contestant(load_torch, ("torch.utils.data",)),
    "tf.data": Contestant(load_tf, ("tensorflow",)),
    "grain": Contestant(load_grain, ("grain.multiprocessing",)),
    "spdl": Contestant(load_spdl, ("spdl.pipeline",)),
    "shmgen": Contestant(load_shmgen, ("shmgen.loader",)),
    "shmgen-tensors": Contestant(load_tensors, ("torch.utils.data", "shmgen.loader")),
    "shmgen-auto": Contestant(partial(load_shmgen, auto=True), ("shmgen.loader",)),
    "limit": Contestant(load_limit, bound=True),
    "limit-held": Contestant(partial(load_limit, held=HELD), bound=True),
    "pool": Contestant(None, bound=True, single_process=True),
    "requests": Contestant(None, bound=True),
    "fio": Contestant(None, bound=True, single_process=True, program="fio"),
}
