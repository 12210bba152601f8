"""What own computations and other sources cost, as ratios between loaders that take turns."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.contest import Plan
from benchmarks.report import Ratio
from shmgen import Loader, Npy, NpyRows

ROW = (28, 28)
ROW_BYTES = 784


def burn(x: np.ndarray, rng: np.random.Generator) -> None:
    """A millisecond of pure computation, whatever else the processor does."""
    end = time.thread_time() + 0.001
    while time.thread_time() < end:
        pass


def nothing(x: np.ndarray, rng: np.random.Generator) -> None:
    """A transform that does nothing."""


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory, plan: Plan) -> tuple[Path, int]:
    """A folder of 784-byte rows, a file each and all in one, and how many there are."""
    folder = tmp_path_factory.mktemp("digits")
    count = 20_480 // plan.cut
    rows = np.random.default_rng(0).integers(0, 256, (count, *ROW), np.uint8)
    for number, row in enumerate(rows):
        np.save(folder / f"{number}.npy", row)
    np.save(folder / "all.npy", rows)
    return folder, count


def epochs(**arguments: object) -> Callable[[], int]:
    """One loader, whose epochs are run one at a time; each returns its number of samples."""
    loader = Loader(slots=3, **arguments)  # type: ignore[arg-type]

    def epoch() -> int:
        return sum(len(batch[0]) if isinstance(batch[0], np.ndarray) else len(batch[0]["a"]) for batch in loader)

    return epoch


def in_turn(plan: Plan, one: Callable[[], int], other: Callable[[], int]) -> Iterator[tuple[float, float]]:
    """Seconds a sample of both, round by round."""
    for _ in range(plan.rounds):
        seconds = []
        for run in (one, other):
            run()  # takes what was read ahead while the other's clock ran
            start = time.perf_counter()
            samples = run()
            seconds.append((time.perf_counter() - start) / samples)
        yield seconds[0], seconds[1]


def bare(file: Path, count: int) -> Callable[[], int]:
    """The limit for rows of one file: ``preadv`` on one descriptor, in shuffled order."""
    fd = os.open(file, os.O_RDONLY)
    order = np.random.default_rng(0).permutation(count).tolist()
    batch = memoryview(bytearray(256 * ROW_BYTES))

    def epoch() -> int:
        place = 0
        for number in order:
            os.preadv(fd, (batch[place : place + ROW_BYTES],), 128 + number * ROW_BYTES)
            place = (place + ROW_BYTES) % len(batch)
        return count

    return epoch


def note(benchmark: BenchmarkFixture, ratios: list[Ratio], title: str, unit: str, values: list[float]) -> None:
    """Into the table, and into pytest-benchmark's JSON."""
    ratios.append(Ratio(title, unit, values))
    benchmark.extra_info[title] = values
    benchmark.pedantic(lambda: None)  # type: ignore[no-untyped-call]


def test_two_workers_compute_twice_as_fast(
    benchmark: BenchmarkFixture, digits: tuple[Path, int], plan: Plan, ratios: list[Ratio]
) -> None:
    """A transform of 1 ms of pure computation a sample: 2 workers against 1, while the consumer idles."""
    folder, _ = digits
    ids = range(1024 // plan.cut)
    one, two = (epochs(list_IDs=ids, data_dir=folder, batch_size=64, transform=burn, workers=workers) for workers in (1, 2))
    note(benchmark, ratios, "1 ms of computation: 2 workers / 1 worker", "x", [a / b for a, b in in_turn(plan, one, two)])


def test_a_transform_that_does_nothing(
    benchmark: BenchmarkFixture, digits: tuple[Path, int], plan: Plan, ratios: list[Ratio]
) -> None:
    """What the call of a transform, and its random numbers, cost a sample."""
    folder, count = digits
    without, with_it = (
        epochs(list_IDs=range(count), data_dir=folder, batch_size=256, transform=transform, workers=1)
        for transform in (None, nothing)
    )
    cost = [1e6 * (b - a) for a, b in in_turn(plan, without, with_it)]
    note(benchmark, ratios, "a transform that does nothing, microseconds a sample", "", cost)


def test_rows_of_one_file(benchmark: BenchmarkFixture, digits: tuple[Path, int], plan: Plan, ratios: list[Ratio]) -> None:
    """784-byte rows of one file against as many files, and against bare ``preadv``; one process each."""
    folder, count = digits
    files = epochs(list_IDs=range(count), data_dir=folder, batch_size=256, workers=1)
    rows = epochs(list_IDs=range(count), source=NpyRows(folder / "all.npy"), batch_size=256, workers=1)
    ratios.append(Ratio("rows of one file / one file a row", "x", [a / b for a, b in in_turn(plan, files, rows)]))
    limit = bare(folder / "all.npy", count)
    note(benchmark, ratios, "rows of one file / bare preadv", "x", [a / b for a, b in in_turn(plan, limit, rows)])


def test_two_fields(benchmark: BenchmarkFixture, digits: tuple[Path, int], plan: Plan, ratios: list[Ratio]) -> None:
    """Time for two fields of files against one."""
    folder, count = digits
    arguments = {"list_IDs": range(count), "batch_size": 256, "workers": 1}
    one = epochs(inputs={"a": Npy(folder)}, **arguments)
    two = epochs(inputs={"a": Npy(folder), "b": Npy(folder)}, **arguments)
    note(benchmark, ratios, "time of two fields / time of one", "x", [b / a for a, b in in_turn(plan, one, two)])
