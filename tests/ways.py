"""Loaders of several kinds on which faults are tried, and helpers that change files and workers.

Functions for workers are defined inside functions: to load those of a module, a worker would import the module, and pytest.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, TypeVar

import numpy as np
import psutil
from conftest import DEADLINE, DataSet, Gone, wait_until

from shmgen import Loader, NpyRows, Source

BATCH = 5

N = 24
"""Number of samples of a `computed` loader."""


T = TypeVar("T")


def part_of(whole: object, kind: type[T]) -> T:
    """The first object of a class that ``whole`` refers to, directly or through other objects."""
    seen: set[int] = set()
    ahead = [whole]
    while ahead:
        one = ahead.pop()
        if isinstance(one, kind):
            return one
        if id(one) not in seen and not isinstance(one, type | ModuleType | FunctionType):
            seen.add(id(one))
            ahead += gc.get_referents(one)
    raise LookupError(f"{whole!r} has no {kind.__name__}")


def flat(batch: Any) -> list[np.ndarray]:
    """The arrays of a batch, however it is nested."""
    parts = list(batch.values()) if isinstance(batch, dict) else batch
    return [parts] if isinstance(parts, np.ndarray) else [array for part in parts for array in flat(part)]


def as_bytes(batch: Any) -> list[bytes]:
    """Copies of a batch's bytes, which do not keep its slot."""
    return [array.tobytes() for array in flat(batch)]


def run(loader: Loader, epochs: int = 2) -> list[list[bytes]]:
    """The batches of ``epochs`` epochs, as bytes; closes the loader."""
    with loader:
        return [as_bytes(batch) for _ in range(epochs) for batch in loader]


def reader(data: DataSet) -> Callable[[str], np.ndarray]:
    """A function that reads a sample of ``data``; if its file is a FIFO, it first writes its process id into a file beside it."""
    folder = str(data.path)

    def read(id: str) -> np.ndarray:
        path = f"{folder}/{id}.npy"
        if stat.S_ISFIFO(os.stat(path).st_mode):
            with open(f"{path}.reader", "w") as file:
                file.write(f"{os.getpid()} ")
        with open(path, "rb") as file:
            return np.frombuffer(file.read()[128:], np.float32).reshape(4, 3)

    return read


def filling(read: Callable[[Any], Any]) -> Source:
    """A source of the user's own that fills many rows in one call, without reporting the current row."""

    class Filling(Source):
        shape, dtype = (4, 3), "f4"

        def fill(self, ids: Any, rows: np.ndarray) -> None:
            for row, id in zip(rows, ids, strict=True):
                row[:] = read(id)

    return Filling()


def shaking() -> Callable[..., None]:
    """A transform that adds random numbers of all three generators (its argument, ``random``, NumPy's) to a sample's rows."""

    def shake(sample: dict[str, np.ndarray], rng: np.random.Generator) -> None:
        for row in sample.values():
            row[...] += rng.integers(1000) + random.randrange(1000) + np.random.randint(1000)

    return shake


def blocks(seconds: float = 0.02) -> Callable[..., np.ndarray]:
    """A transform that sleeps, as if it waited for a disk, for longer than a worker waits for a processor."""

    def block(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        time.sleep(seconds)
        return x

    return block


def made(kind: str, data: DataSet, **options: Any) -> Loader:
    """A loader of ``data``; ``kind`` is files, function, own-fill, one-file, or transform: two sources and random changes."""
    options = {"batch_size": BATCH, "slots": 2, **options}
    if kind == "files":
        return Loader(data.ids, data.labels, data_dir=data.path, **options)
    if kind == "function":
        return Loader(data.ids, data.labels, source=reader(data), dim=(4, 3), n_channels=1, dtype="f4", **options)
    if kind == "own-fill":
        return Loader(data.ids, data.labels, source=filling(reader(data)), **options)
    numbers = range(len(data.ids))
    if kind == "one-file":
        np.save(data.path / "all.npy", np.stack([data.sample(number) for number in numbers]))
        return Loader(numbers, numbers, source=NpyRows(data.path / "all.npy"), **options)
    inputs = {"one": filling(reader(data)), "two": reader(data)}
    return Loader(data.ids, inputs=inputs, targets=data.labels, weights=data.labels, transform=shaking(), **options)


def kill(process: psutil.Process, number: int = signal.SIGKILL) -> None:
    """Send a signal to a worker, and wait until it has gone."""
    gone = Gone()
    gone.watch(process.pid)
    process.send_signal(number)
    assert gone.wait(DEADLINE) == set()
    gone.close()


def worker_reading(data: DataSet, number: int) -> psutil.Process:
    """Wait until a `reader` reads a sample from its FIFO, and return the worker process."""
    path = Path(f"{data.file(data.ids[number])}.reader")
    wait_until(lambda: path.exists() and path.read_text().endswith(" "), f"sample {number} is being read")
    return psutil.Process(int(path.read_text()))


def stop(process: psutil.Process) -> None:
    """Stop a worker at whatever it is doing, with SIGSTOP."""
    process.suspend()
    wait_until(lambda: process.status() == psutil.STATUS_STOPPED, "the worker is stopped")


def answer(data: DataSet, number: int) -> None:
    """Let the `reader` that waits for a sample's FIFO go on; later reads find the file."""
    with data.file(data.ids[number]).open("wb") as fifo:
        repair(data, number)
        fifo.write(data.file(data.ids[number]).read_bytes())


def repair(data: DataSet, number: int) -> None:
    """Replace a sample's FIFO by its file; a reader that waits for the FIFO keeps waiting."""
    data.file(data.ids[number]).unlink()
    data.write(number)


def computed(source: Any = None, transform: Any = None, **options: Any) -> Loader:
    """A loader of rows of three float64, which are the id unless there is a source."""
    if not isinstance(source, Source):
        source = source or (lambda n: np.full(3, n, np.float64))
        options = {"dim": 3, "n_channels": 1, "dtype": np.float64, **options}
    return Loader(
        options.pop("ids", range(N)),
        options.pop("labels", None),
        **{"batch_size": 5, "source": source, "transform": transform, **options},
    )


def rows(loader: Loader, epochs: int = 1) -> np.ndarray:
    """All rows of ``epochs`` epochs; closes the loader."""
    with loader:
        return np.concatenate([X.reshape(len(X), -1) for _ in range(epochs) for (X,) in loader])


def assert_grown(loader: Any, slots: int, held: int) -> None:
    """Assert that slots were added for ``held`` batches, but not many more: the ring grows by a quarter at a time."""
    assert held <= slots + loader.stats.grown <= 1.25 * held


def batch_of(ids: Any, labels: Any = None, **options: Any) -> tuple[Any, Loader]:
    """The targets of one batch of all ids, and the loader, which is closed."""
    options.setdefault("source", lambda id: np.zeros(2))
    if "inputs" in options:
        del options["source"]
    with Loader(ids, labels, len(ids), shuffle=False, workers=0, **options) as loader:
        _, *rest = loader.batch(0)
    return rest[0], loader


def labels_of(ids: Any, labels: Any = None, **options: Any) -> list[Any]:
    """The labels, in the order of the ids."""
    found: list[Any] = batch_of(ids, labels, **options)[0].tolist()
    return found


def in_a_ring(address: int) -> bool:
    """Whether an address lies in a ring's mapped memory."""
    lines = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:shmgen" in line]
    spans = [[int(end, 16) for end in line.split("-")] for line in lines]
    return any(start <= address < end for start, end in spans)


def lists(batch: Any) -> Any:
    """A batch with lists in the place of arrays."""
    if isinstance(batch, dict):
        return {key: lists(value) for key, value in batch.items()}
    return tuple(map(lists, batch)) if isinstance(batch, tuple) else batch.tolist()
