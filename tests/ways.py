"""The ways to read a data set on which faults are tried, and what is done to its files and to workers.

What travels to workers stands inside of functions: of the module itself they would have to import it, and pytest with it.
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
"""Samples of `computed`."""


T = TypeVar("T")


def part_of(whole: object, kind: type[T]) -> T:
    """The first object of a class that ``whole`` leads to, through attributes of whatever name."""
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
    """What a batch holds, without holding the batch."""
    return [array.tobytes() for array in flat(batch)]


def run(loader: Loader, epochs: int = 2) -> list[list[bytes]]:
    """What ``epochs`` epochs hold; closes the loader."""
    with loader:
        return [as_bytes(batch) for _ in range(epochs) for batch in loader]


def reader(data: DataSet) -> Callable[[str], np.ndarray]:
    """A function that reads a sample of ``data``; if a FIFO is in its place, it says in a file beside it who reads it."""
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
    """A source of the user's own that fills many rows at once, and does not say which it is at."""

    class Filling(Source):
        shape, dtype = (4, 3), "f4"

        def fill(self, ids: Any, rows: np.ndarray) -> None:
            for row, id in zip(rows, ids, strict=True):
                row[:] = read(id)

    return Filling()


def shaking() -> Callable[..., None]:
    """A transform that changes all rows of a sample by numbers from each place where there are any."""

    def shake(sample: dict[str, np.ndarray], rng: np.random.Generator) -> None:
        for row in sample.values():
            row[...] += rng.integers(1000) + random.randrange(1000) + np.random.randint(1000)

    return shake


def blocks(seconds: float = 0.02) -> Callable[..., np.ndarray]:
    """A transform that waits, as for a disk, and takes no processor: long beside what a worker waits for one."""

    def block(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        time.sleep(seconds)
        return x

    return block


def made(kind: str, data: DataSet, **options: Any) -> Loader:
    """A loader of ``data``: of files, function, own-fill, one-file; transform has two sources, and changes all rows at random."""
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


def who_reads(data: DataSet, number: int) -> psutil.Process:
    """The worker in which a `reader` reads a sample from a FIFO, as soon as it does."""
    path = Path(f"{data.file(data.ids[number])}.reader")
    wait_until(lambda: path.exists() and path.read_text().endswith(" "), f"sample {number} is being read")
    return psutil.Process(int(path.read_text()))


def stop(process: psutil.Process) -> None:
    """Stop a worker, wherever it is."""
    process.suspend()
    wait_until(lambda: process.status() == psutil.STATUS_STOPPED, "the worker is stopped")


def answer(data: DataSet, number: int) -> None:
    """Let the `reader` of a sample, for which a FIFO stands, go on; who reads it later finds the file."""
    with data.file(data.ids[number]).open("wb") as fifo:
        mend(data, number)
        fifo.write(data.file(data.ids[number]).read_bytes())


def mend(data: DataSet, number: int) -> None:
    """Put a sample's file where a FIFO is; who reads that will never know."""
    data.file(data.ids[number]).unlink()
    data.write(number)


def computed(source: Any = None, transform: Any = None, **options: Any) -> Loader:
    """A loader of rows of three float64; without a source they are the id."""
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
    """What comes behind the inputs in the only batch of all ids, and the loader, closed."""
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
    """Whether there is a mapping of a ring's memory at an address."""
    lines = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:shmgen" in line]
    spans = [[int(end, 16) for end in line.split("-")] for line in lines]
    return any(start <= address < end for start, end in spans)


def lists(batch: Any) -> Any:
    """A batch with lists in the place of arrays."""
    if isinstance(batch, dict):
        return {key: lists(value) for key, value in batch.items()}
    return tuple(map(lists, batch)) if isinstance(batch, tuple) else batch.tolist()
