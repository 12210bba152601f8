"""Bounds: contestants that only do the unavoidable work and hand nothing over, so no loader can be faster."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import NamedTuple

import numpy as np

from benchmarks.cases import Case
from benchmarks.job import Batches, Job
from benchmarks.readers import Reader, read_file, request

HELD = 3
"""The fewest batches in the memory of a loader that reads ahead: the trainer's, the next one, and one being read."""
AHEAD = 16
"""Files that `load_limit` opens ahead on a cold disk, with a hint to the kernel to read them."""
IN_FLIGHT = 64
"""Default number of reads in flight."""
FIO_BYTES = 1 << 29
"""Size of the file that fio reads."""


class Read(NamedTuple):
    """What a bound read in one turn.

    Attributes:
        samples: number of files, or for fio, of reads as large as a file.
        seconds: duration of the reading, in seconds.
    """

    samples: int
    seconds: float


def load_limit(job: Job, held: int = 1) -> Iterator[Batches]:
    """Open, read and close files, and do nothing else: no loader with as many processes can be faster.

    Each process reads its share of every batch into memory of its own. On a cold disk it opens the next files ahead, and has the
    kernel read them.

    Args:
        job: what to read.
        held: number of batches in memory, filled in turn: the more there are, the less of them stays in the processor's cache.
    """
    case = job.case
    begin, end = (part * case.batch_size // job.workers for part in (job.share, job.share + 1))
    held_batches = []
    for _ in range(held):
        X = np.empty((end - begin, *case.shape), case.dtype)
        held_batches.append((X, [memoryview(row).cast("B") for row in X]))
    files = Reader(case)
    header = bytearray(files.header)
    # One order for all epochs, shuffled before the clock runs: shuffling is not reading.
    order = np.random.default_rng(0).permutation(case.samples).reshape(-1, case.batch_size)[:, begin:end]
    batches = [[files.paths[number] for number in numbers] for numbers in order]
    labels = files.labels[order]

    def epoch() -> Batches:
        opened, preadv, close, flags = os.open, os.preadv, os.close, os.O_RDONLY | os.O_CLOEXEC
        for (paths, y), (X, rows) in zip(zip(batches, labels, strict=True), cycle(held_batches), strict=False):
            for path, row in zip(paths, rows, strict=True):
                fd = opened(path, flags)
                preadv(fd, (header, row), 0)
                close(fd)
            yield X, y

    def epoch_ahead() -> Batches:
        fds = _opened_ahead([path for paths in batches for path in paths])
        for y, (X, rows) in zip(labels, cycle(held_batches), strict=False):
            for row, fd in zip(rows, fds, strict=False):  # fds goes on with the next batch
                os.preadv(fd, (header, row), 0)
                os.close(fd)
            yield X, y

    while True:
        yield epoch_ahead() if job.cold else epoch()


def _opened_ahead(paths: list[str]) -> Iterator[int]:
    ahead: deque[int] = deque()
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
        ahead.append(fd)
        if len(ahead) > AHEAD:
            yield ahead.popleft()
    yield from ahead


def read_pool(job: Job, seconds: float) -> Read:
    """Read with plain threads, `Job.reads` over all processes: each reads or requests file after file into a row of its own."""
    case = job.case
    paths = [case.path(id) for id in case.labels]
    np.random.default_rng(job.share).shuffle(paths)
    threads = (job.reads or IN_FLIGHT) // job.workers
    read = request if case.url else read_file

    def count_reads(thread: int) -> int:
        count = 0
        header, row = bytearray(case.header_bytes), bytearray(case.sample_bytes)
        for number in cycle(range(thread, len(paths), threads)):
            read(paths[number], header, row)
            if time.perf_counter() > end:
                break
            count += 1
        return count

    end = time.perf_counter() + seconds
    with ThreadPoolExecutor(threads) as pool:
        return Read(sum(pool.map(count_reads, range(threads))), seconds)


def read_fio(job: Job, seconds: float) -> Read:
    """Run fio: `Job.reads` direct reads in flight, each as large as a file's pages, at random offsets of one large file."""
    case = job.case
    options = {
        "filename": _large_file(case),
        "rw": "randread",
        "randrepeat": 0,
        "bs": case.file_pages,
        "direct": 1,
        "ioengine": "libaio",
        "iodepth": job.reads or IN_FLIGHT,
        "time_based": 1,
        "runtime": f"{1000 * seconds:.0f}ms",
        "output-format": "json",
    }
    command = ["fio", "--name=bench", *(f"--{name}={value}" for name, value in options.items())]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)["jobs"][0]["read"]
    return Read(found["total_ios"], found["runtime"] / 1e3)


def _large_file(case: Case) -> str:
    """The path of a file of random bytes: a hole would not be read from the disk."""
    file = case.root / "fio"
    if not file.exists():
        unfinished = file.with_suffix(".unfinished")
        block = np.random.default_rng(0).bytes(1 << 20)
        with unfinished.open("wb") as written:
            for _ in range(FIO_BYTES // len(block)):
                written.write(block)
            os.fsync(written.fileno())
        unfinished.rename(file)
    return str(file)


BARE_READERS: dict[str, Callable[[Job, float], Read]] = {"pool": read_pool, "requests": read_pool, "fio": read_fio}
"""Bounds that make no batches."""
