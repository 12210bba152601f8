"""Many reads in flight in one worker: batches stay the same, and samples that hang, fail or kill the worker are named."""

from __future__ import annotations

import fcntl
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from conftest import Asking, DataSet, wait_until
from ways import computed, kill, reader, rows

from shmgen import Function, Loader, SampleError, Source
from shmgen._engine import defaults

READS = 8

N = 24

LOADS: dict[str, Any] = {"reads": READS, "workers": 1, "batch_size": 8, "shuffle": False, "slots": 2}


class SlowFiles:
    """Files whose open waits until `answer`, as on a slow server.

    This process holds leases of the files (fcntl(2), F_SETLEASE), and the kernel lets an open wait until the lease ends.
    """

    def __init__(self, data: DataSet, numbers: range) -> None:
        self._fds = {data.ids[number]: os.open(data.file(data.ids[number]), os.O_RDWR) for number in numbers}
        for fd in self._fds.values():
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)

    @property
    def ids(self) -> set[str]:
        """The ids of files that are still leased."""
        return set(self._fds)

    def answer(self, id: str) -> None:
        """Let the open of a file return."""
        os.close(self._fds.pop(id))


@pytest.fixture
def slow_files(folder: Callable, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[DataSet, SlowFiles]]]:
    """Makes a data set in which some files are slow; never the first, which the main process reads."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # sent by the kernel when an open waits for a lease
    made: list[SlowFiles] = []

    def make(numbers: range, count: int = N) -> tuple[DataSet, SlowFiles]:
        data = folder(count)
        made.append(SlowFiles(data, numbers))
        return data, made[-1]

    yield make
    for slow in made:
        for id in slow.ids:
            slow.answer(id)
    signal.signal(signal.SIGIO, before)


def reading(loader: Loader) -> set[str]:
    """The ids of samples that workers are reading now."""
    return {id for worker in loader.state.workers for id in worker.reading}


def labels(loader: Loader, data: DataSet) -> list[int]:
    """The labels of an epoch, after a check of each row."""
    return [label for X, y in loader for label in data.check(X, y)]


def test_files_that_arrive_in_any_order(slow_files: Callable) -> None:
    """Eight files are requested at once and answer in random order; batches and rows are in order nevertheless."""
    data, slow = slow_files(range(1, N))
    chance = random.Random(1)
    with Loader(data.ids, data.labels, data_dir=data.path, **{**LOADS, "slots": 3}) as loader:  # one for each batch
        thread = Asking(lambda: labels(loader, data))
        while slow.ids:
            wait_until(lambda: len(reading(loader) & slow.ids) == min(READS, len(slow.ids)), "eight reads, or all, are in flight")
            slow.answer(chance.choice(sorted(reading(loader) & slow.ids)))
        assert thread.outcome() == list(range(N))
        assert loader.stats.reads == READS


def test_a_death_with_many_reads_in_flight(slow_files: Callable, workers: Callable, caplog: pytest.LogCaptureFixture) -> None:
    """If a worker dies with eight reads in flight, the log names all and they are read again; no sample is blamed, even twice."""
    data, slow = slow_files(range(1, 1 + READS))
    held = slow.ids
    with Loader(data.ids, data.labels, data_dir=data.path, on_error="replace", max_damaged=0.0, **LOADS) as loader:
        thread = Asking(lambda: labels(loader, data))
        for restarts in range(2):
            wait_until(lambda: loader.stats.restarts == restarts and reading(loader) == held, "all eight are read")  # noqa: B023
            [worker] = workers()
            kill(worker)
        for id in held:
            slow.answer(id)
        assert thread.outcome() == list(range(N))
        assert loader.stats.restarts == 2
        assert loader.damaged == ()
    for record in caplog.records:
        [files] = re.findall("the 8 rows that it held are read again: (.*)", record.getMessage())
        assert set(files.split(", ")) == {str(data.file(id)) for id in held}


@pytest.mark.parametrize(("how", "times"), [("fails", 10), ("hangs", 1), ("dies", 1)])
def test_a_batch_is_an_error_once_its_last_row_is_read(folder: Callable, how: str, times: int) -> None:
    """The request for a batch ends in an error once one row has failed and the others are read, in whatever order."""
    data = folder(8)
    read = reader(data)

    def one_ends(id: str) -> np.ndarray:
        if id == "id-0":
            if how == "hangs":
                threading.Event().wait()
            if how == "dies":
                os._exit(3)
            raise ValueError("never mind")
        time.sleep(0.003)
        return read(id)

    source = Function(one_ends, (4, 3), 1, "f4", concurrent=True)
    options: dict[str, Any] = {**LOADS, "timeout": 0.3 if how == "hangs" else None}
    with Loader(data.ids, data.labels, source=source, **options) as loader:
        for _ in range(times):
            with pytest.raises(SampleError, match="id-0"):
                loader.batch(0)


# Concurrent sources


def test_a_concurrent_function_is_called_at_once() -> None:
    """A concurrent function is called in four threads at once: each call waits for three others, and none hangs."""
    shared: dict[str, Any] = {}

    def meet(n: int) -> np.ndarray:
        shared.setdefault("barrier", threading.Barrier(4)).wait(20)
        return np.full(3, n, np.float64)

    source = Function(meet, 3, 1, np.float64, concurrent=True)
    found = rows(computed(source, ids=range(16), batch_size=4, shuffle=False, workers=1, reads=4))

    assert found[:, 0].tolist() == list(range(16))


def test_sys_exit_in_a_reader_thread_ends_the_worker(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """``sys.exit`` in any reader's thread ends the worker, not just the thread, and its rows are read again."""
    ended = str(tmp_path / "ended")
    shared: dict[str, Any] = {}

    def ends_once(n: int) -> np.ndarray:
        if not os.path.exists(ended):
            shared.setdefault("barrier", threading.Barrier(2)).wait(20)
            if threading.current_thread() is threading.main_thread():
                threading.Event().wait()
            open(ended, "w").close()
            sys.exit(3)
        return np.full(3, n, np.float64)

    source = Function(ends_once, 3, 1, np.float64, concurrent=True)
    found = rows(computed(source, ids=range(16), batch_size=4, shuffle=False, workers=1, reads=2))
    assert found[:, 0].tolist() == list(range(16))
    assert caplog.text.count("ended with exit code 3") == 1


@pytest.mark.parametrize(("concurrent", "workers", "reads", "expected"), [(True, 2, 4, 4), (False, 2, 4, 1), (True, 0, 4, 1)])
def test_each_reader_opens_a_copy_of_a_source(tmp_path: Path, concurrent: bool, workers: int, reads: int, expected: int) -> None:
    """Each of ``reads`` readers opens its own copy of a source once; there is one if it is not concurrent, or without workers."""
    noted = str(tmp_path / "noted")

    class Noting(Source):
        shape, dtype = (1,), "int64"

        def open(self) -> None:
            fd = os.open(noted, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.write(fd, f"{os.getpid()}-{threading.get_ident()}-{id(self)}\n".encode())
            os.close(fd)

        def fill(self, ids: Any, rows: np.ndarray) -> None:
            rows[:, 0] = ids

    def opened() -> int:
        return len(Path(noted).read_text().split())

    source = Noting()
    source.concurrent = concurrent
    with Loader(range(512), None, 64, source=source, workers=workers, reads=reads, shuffle=False) as loader:
        wait_until(lambda: next(iter(loader)) and opened() == max(1, workers) * expected, "all readers have begun")
        assert np.concatenate([X[:, 0] for (X,) in loader]).tolist() == list(range(512))
        assert loader.stats.reads == expected
        assert opened() == max(1, workers) * expected
    lines = Path(noted).read_text().split()
    assert len({line.rpartition("-")[0] for line in lines}) == len(set(lines)) == len(lines)


@pytest.mark.parametrize(("reads", "several"), [(1, False), (2, True), ("auto", True)])
def test_more_workers_than_processors_where_each_has_one_read(monkeypatch: pytest.MonkeyPatch, reads: Any, several: bool) -> None:
    """With ``reads=1``, workers that wait may outnumber the processors, also where the source could have many reads in flight."""
    limits = Mock(wraps=defaults.limits)
    monkeypatch.setattr(defaults, "limits", limits)
    source = Function(lambda id: [float(id)], concurrent=True)
    with Loader(range(4), None, 4, source=source, workers=1, reads=reads):
        limits.assert_called_once_with(concurrent=several)
