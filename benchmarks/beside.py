"""Compares shmgen with the code that users usually write, for each kind of data; every contestant follows its documentation.

To run one contestant on existing data: ``yes | head -5 | python -m benchmarks.beside rows-784 shmgen FOLDER 1``.
"""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.job import TUNING
from benchmarks.slow_s3 import BUCKET
from benchmarks.storage import ANSWER_MS, serving

WORKERS = 2
WINDOW = 128
"""Steps of a time series in one sample."""
PHOTO = (224, 224)
REMOTE_FILES = 256
"""Number of files read from a server; a full run makes four times as many, a quick run no more."""
KEYS = {"key": "test", "secret": "test"}
"""Credentials for the bucket."""

Counts = Iterator[int]
"""The number of samples in each batch, endlessly."""
Load = Callable[[str, int], Counts]
"""A function that reads batches, given the location of the data (a folder, or the URL of a server) and the batch size."""


@dataclass(frozen=True)
class Kind:
    """A kind of data, and its contestants.

    Attributes:
        title: name of the kind in the table.
        make: function that writes a number of samples into a folder.
        samples: number of samples in a full run.
        contestants: functions that read the data, by name.
        batch_size: samples in a batch, for all contestants.
        server: module that serves the folder; empty if the files are read from the page cache.
    """

    title: str
    make: Callable[[Path, int], None]
    samples: int
    contestants: dict[str, Load]
    batch_size: int = 64
    server: str = ""


def measure(name: str, root: Path, rounds: int, seconds: float, cut: int) -> dict[str, list[float]]:
    """Samples a second of every contestant, in each round. Contestants run in processes of their own, and take turns.

    Args:
        name: a kind of data.
        root: folder for the data.
        rounds: number of rounds.
        seconds: duration of a turn, in seconds.
        cut: divisor of the number of samples.

    Raises:
        RuntimeError: a contestant failed.
    """
    kind = KINDS[name]
    folder = (root / f"beside-{name}-{cut}").absolute()
    if not folder.exists():
        folder.with_suffix(".new").mkdir(parents=True, exist_ok=True)
        kind.make(folder.with_suffix(".new"), kind.samples // cut)
        os.sync()
        folder.with_suffix(".new").rename(folder)
    for path in folder.rglob("*.*"):
        path.read_bytes()  # brings the file into the page cache
    values: dict[str, list[float]] = {contestant: [] for contestant in kind.contestants}
    with ExitStack() as stack:
        place = stack.enter_context(serving(kind.server, str(folder), str(ANSWER_MS))) if kind.server else str(folder)
        processes = {}
        for contestant in kind.contestants:
            command = [sys.executable, "-m", "benchmarks.beside", name, contestant, place, str(seconds)]
            process = subprocess.Popen(command, cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            processes[contestant] = stack.enter_context(process)
            stack.callback(process.kill)
        rng = random.Random(0)
        for _ in range(rounds):
            for contestant in rng.sample(list(processes), len(processes)):
                process = processes[contestant]
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(b"\n")
                process.stdin.flush()
                line = process.stdout.readline()
                if not line:
                    raise RuntimeError(f"{contestant} on {name} ended, with exit code {process.wait()}")
                values[contestant].append(json.loads(line))
    return values


def main() -> None:
    """Take a turn for each line on standard input, after a warm-up of a quarter of its time, and print samples a second."""
    name, contestant, place, seconds = sys.argv[1:]
    kind = KINDS[name]
    batches = kind.contestants[contestant](place, kind.batch_size)
    now = time.perf_counter
    ready = now() + (TUNING if kind.server else 0)
    next(batches)
    while now() < ready:
        next(batches)
    for _ in sys.stdin:
        warm = now() + float(seconds) / 4
        while now() < warm:
            next(batches)
        samples, begin = 0, now()
        while now() - begin < float(seconds):
            samples += next(batches)
        print(json.dumps(samples / (now() - begin)), flush=True)
    os._exit(0)  # without waiting for the peers' threads and processes


def rows(folder: Path, count: int, shape: tuple[int, ...]) -> None:
    """Write one ``.npy`` file of uint8 rows."""
    np.save(folder / "all.npy", np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8))


def series(folder: Path, count: int) -> None:
    """Write one ``.npy`` file with a time series of 8 float32 a step."""
    np.save(folder / "all.npy", np.random.default_rng(0).random((count, 8), np.float32))


def hdf5(folder: Path, count: int, **options: Any) -> None:
    """Write one HDF5 data set with rows of 64 x 64 x 3 uint8; ``options`` are those of h5py's ``create_dataset``."""
    import h5py

    with h5py.File(folder / "all.h5", "w") as file:
        file.create_dataset("x", data=np.random.default_rng(0).integers(0, 60, (count, 64, 64, 3), np.uint8), **options)


def arrays(folder: Path, count: int, *, npz: bool) -> None:
    """Write one file a sample: an ``.npz`` with image and label, or an ``.npy`` with the image alone."""
    for number in range(count):
        image = np.full((64, 64, 3), number % 251, np.uint8)
        if npz:
            np.savez(folder / f"{number}.npz", image=image, label=number % 6)
        else:
            np.save(folder / f"{number}.npy", image)


def photos(folder: Path, count: int, suffix: str) -> None:
    """Write pieces of scikit-learn's two photographs, of 500 x 375 pixels, into a folder for each of six classes."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    images = [Image.fromarray(image) for image in load_sample_images().images]
    rng = np.random.default_rng(0)
    for number in range(count):
        image = images[number % 2]
        width, height = (int(side * rng.uniform(0.6, 1)) for side in image.size)
        left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
        path = folder / str(number % 6) / f"{number}.{suffix}"
        path.parent.mkdir(exist_ok=True)
        image.crop((left, top, left + width, top + height)).resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)


def indices(count: int, batch_size: int) -> Iterator[np.ndarray]:
    """Yield the sample numbers of each batch endlessly, in a new random order every epoch."""
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(count)
        yield from (order[at : at + batch_size] for at in range(0, count - batch_size + 1, batch_size))


def mapped(place: str, batch_size: int, window: int = 0) -> Counts:
    """``mm[idx]`` in the trainer's thread."""
    mm = np.load(f"{place}/all.npy", mmap_mode="r")
    if window:
        mm = np.lib.stride_tricks.sliding_window_view(mm, window, axis=0).transpose(0, 2, 1)
    for index in indices(len(mm), batch_size):
        yield len(np.ascontiguousarray(mm[index]))


def windows_by_keras(place: str, batch_size: int) -> Counts:
    """`timeseries_dataset_from_array`."""
    from keras.utils import timeseries_dataset_from_array

    data = np.load(f"{place}/all.npy", mmap_mode="r")
    dataset = timeseries_dataset_from_array(data, None, WINDOW, batch_size=batch_size, shuffle=True)
    for batch in dataset.repeat().as_numpy_iterator():
        yield len(batch)


def h5py_rows(place: str, batch_size: int) -> Counts:
    """``ds[np.sort(idx)]``, since h5py requires increasing indices."""
    import h5py

    with h5py.File(f"{place}/all.h5") as file:
        data = file["x"]
        for index in indices(len(data), batch_size):
            yield len(data[np.sort(index)])


def by_torch(place: str, batch_size: int, read: Callable[[str, int], Any], count: Callable[[str], int]) -> Counts:
    """A `DataLoader` and a `Dataset`, whose samples are read by location and number."""
    import torch

    class Samples(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return count(place)

        def __getitem__(self, index: int) -> Any:
            return read(place, index)

    loader = torch.utils.data.DataLoader(Samples(), batch_size, shuffle=True, num_workers=WORKERS, drop_last=True)
    while True:
        for batch in loader:
            yield len(batch[0] if isinstance(batch, list) else batch)


_maps: dict[str, np.ndarray] = {}


def torch_row(place: str, index: int) -> Any:
    """A row of a file that each process maps once."""
    if place not in _maps:
        _maps[place] = np.load(f"{place}/all.npy", mmap_mode="r")
    return np.array(_maps[place][index])


def npz_sample(place: str, index: int) -> Any:
    """An image and its label."""
    with np.load(f"{place}/{index}.npz") as file:
        return file["image"], int(file["label"])


def npz_in_a_loop(place: str, batch_size: int) -> Counts:
    """`np.load` in the trainer's thread."""
    for index in indices(len(os.listdir(place)), batch_size):
        images, labels = zip(*(npz_sample(place, number) for number in index), strict=True)
        np.array(labels)
        yield len(np.stack(images))


def torch_photo(place: str, index: int, suffix: str) -> Any:
    """A photo and its label, decoded by Pillow, as torchvision does it."""
    from PIL import Image

    with Image.open(f"{place}/{index % 6}/{index}.{suffix}") as image:
        return np.array(image.convert("RGB").resize(PHOTO, Image.Resampling.BILINEAR)), index % 6


def tf_photos(place: str, batch_size: int, suffix: str) -> Counts:
    """tf.data with TensorFlow's own decoders, as many at a time as other contestants have workers."""
    import tensorflow as tf

    paths = [str(path) for path in Path(place).glob(f"*/*.{suffix}")]
    labels = [int(Path(path).parent.name) for path in paths]
    decode = tf.io.decode_jpeg if suffix == "jpg" else tf.io.decode_png

    def read(path: Any, label: Any) -> Any:
        return tf.cast(tf.image.resize(decode(tf.io.read_file(path), channels=3), PHOTO), tf.uint8), label

    dataset = tf.data.Dataset.from_tensor_slices((paths, labels)).shuffle(len(paths)).repeat()
    for X, _ in dataset.map(read, num_parallel_calls=WORKERS).batch(batch_size).prefetch(2).as_numpy_iterator():
        yield len(X)


def keras_photos(place: str, batch_size: int) -> Counts:
    """`image_dataset_from_directory`."""
    from keras.utils import image_dataset_from_directory

    dataset = image_dataset_from_directory(place, image_size=PHOTO, batch_size=batch_size, verbose=False)
    for X, _ in dataset.repeat().as_numpy_iterator():
        yield len(X)


def torch_http(place: str, index: int) -> Any:
    """A sample by one request of the standard library's urllib."""
    from urllib.request import urlopen

    with urlopen(f"{place}/{index}.npy") as answer:
        return np.load(io.BytesIO(answer.read()))


def by_fsspec(place: str, batch_size: int) -> Counts:
    """``fs.cat`` of fsspec, or s3fs for a bucket: it requests all files of a batch at once."""
    import fsspec

    if "#s3" in place:
        files, prefix = fsspec.filesystem("s3", client_kwargs={"endpoint_url": place.removesuffix("#s3")}, **KEYS), BUCKET
    else:
        files, prefix = fsspec.filesystem("http"), place
    for index in indices(REMOTE_FILES, batch_size):
        found = files.cat([f"{prefix}/{number}.npy" for number in index])
        yield len(np.stack([np.load(io.BytesIO(data)) for data in found.values()]))


def shmgen(arguments: Callable[[str], dict[str, Any]]) -> Load:
    """A `Loader` with its defaults, and with the arguments that it needs for the data at a location."""

    def read(place: str, batch_size: int) -> Counts:
        from shmgen import Loader

        loader = Loader(**{"batch_size": batch_size, "workers": WORKERS, **arguments(place)})
        while True:
            for batch in loader:
                yield len(batch[0])

    return read


def npy_rows(place: str, **options: Any) -> dict[str, Any]:
    from shmgen import NpyRows

    count = npy_count(place) - (WINDOW - 1 if options else 0)
    return {"list_IDs": range(count), "source": NpyRows(f"{place}/all.npy", **options)}


def hdf5_rows(place: str) -> dict[str, Any]:
    import h5py

    from shmgen import Hdf5

    with h5py.File(f"{place}/all.h5") as file:
        count = len(file["x"])
    return {"list_IDs": range(count), "source": Hdf5(f"{place}/all.h5", "x")}


def npz_files(place: str) -> dict[str, Any]:
    from shmgen import Npz

    files = Npz(place)
    return {"list_IDs": range(len(os.listdir(place))), "inputs": files["image"], "targets": files["label"]}


def photo_files(place: str) -> dict[str, Any]:
    from shmgen import Images, image_folder

    partition, labels, _ = image_folder(place)
    source = Images(place, size=PHOTO, resize="stretch")
    return {"list_IDs": partition["train"], "labels": labels, "source": source}


def remote_files(place: str) -> dict[str, Any]:
    from shmgen import Remote

    if place.endswith("#s3"):
        remote = Remote(f"s3://{BUCKET}", options={"endpoint_url": place.removesuffix("#s3"), **KEYS})
    else:
        remote = Remote(place)
    return {"list_IDs": range(REMOTE_FILES), "data_dir": remote, "workers": "auto"}


def bucket(load: Load) -> Load:
    """Let a contestant read the bucket, whose endpoint is the location of the data."""
    return lambda place, batch_size: load(f"{place}#s3", batch_size)


def npy_count(place: str) -> int:
    return len(np.load(f"{place}/all.npy", mmap_mode="r"))


def file_count(place: str) -> int:
    return sum(len(names) for _, _, names in os.walk(place))


KINDS = {
    **{
        f"rows-{size}": Kind(
            f"rows of one `.npy` file, {size:,} B",
            partial(rows, shape=shape),
            count,
            {"`mm[idx]`": mapped, "torch": partial(by_torch, read=torch_row, count=npy_count), "shmgen": shmgen(npy_rows)},
            batch_size,
        )
        for size, shape, count, batch_size in ((784, (28, 28), 60_000, 256), (12_288, (64, 64, 3), 20_000, 64))
    },
    "windows": Kind(
        "windows of 128 x 8 float32",
        series,
        1_000_000,
        {
            "`mm[idx]`": partial(mapped, window=WINDOW),
            "`timeseries_dataset_from_array`": windows_by_keras,
            "shmgen": shmgen(partial(npy_rows, window=WINDOW)),
        },
    ),
    "hdf5": Kind("HDF5, contiguous, 12 KiB", hdf5, 5_000, {"`ds[np.sort(idx)]`": h5py_rows, "shmgen": shmgen(hdf5_rows)}),
    "hdf5-gzip": Kind(
        "HDF5, chunks of 16 rows, gzip",
        partial(hdf5, chunks=(16, 64, 64, 3), compression="gzip"),
        5_000,
        {"`ds[np.sort(idx)]`": h5py_rows, "shmgen": shmgen(hdf5_rows)},
    ),
    "npz": Kind(
        "`.npz`, image and label",
        partial(arrays, npz=True),
        1_000,
        {"`np.load`": npz_in_a_loop, "torch": partial(by_torch, read=npz_sample, count=file_count), "shmgen": shmgen(npz_files)},
    ),
    **{
        suffix: Kind(
            f"{title} of 500 x 375 to 224 x 224",
            partial(photos, suffix=suffix),
            600,
            {
                "tf.data": partial(tf_photos, suffix=suffix),
                "torch, Pillow": partial(by_torch, read=partial(torch_photo, suffix=suffix), count=file_count),
                "`image_dataset_from_directory`": keras_photos,
                "shmgen": shmgen(photo_files),
            },
        )
        for suffix, title in (("jpg", "JPEG"), ("png", "PNG"))
    },
    "http": Kind(
        f"HTTP, {ANSWER_MS} ms a request, 12 KiB",
        partial(arrays, npz=False),
        4 * REMOTE_FILES,
        {
            "torch, urllib": partial(by_torch, read=torch_http, count=lambda _: REMOTE_FILES),
            "fsspec": by_fsspec,
            "shmgen": shmgen(remote_files),
        },
        server="slow_server",
    ),
    "s3": Kind(
        f"S3 (moto), {ANSWER_MS} ms a request, 12 KiB",
        partial(arrays, npz=False),
        4 * REMOTE_FILES,
        {"s3fs": bucket(by_fsspec), "shmgen": bucket(shmgen(remote_files))},
        server="slow_s3",
    ),
}


if __name__ == "__main__":
    main()
