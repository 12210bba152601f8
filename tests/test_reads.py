"""Many reads in flight in one worker: batches are what they would be, and who hangs, fails or kills is named among them."""

from __future__ import annotations

import fcntl
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Asking, DataSet, wait_until
from ways import as_bytes, computed, kill, made, reader, rows, run

from shmgen import Function, Loader, NpyRows, SampleError, Source

READS = 8

N = 24

LOADS: dict[str, Any] = {"reads": READS, "workers": 1, "batch_size": 8, "shuffle": False, "slots": 2}


class SlowFiles:
    """Files whose open waits, as on a server that takes its time, until this lets it go on.

    The kernel has an open wait for the process that holds a lease of the file (fcntl(2), F_SETLEASE).
    """

    def __init__(self, data: DataSet, numbers: range) -> None:
        self._fds = {data.ids[number]: os.open(data.file(data.ids[number]), os.O_RDWR) for number in numbers}
        for fd in self._fds.values():
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)

    @property
    def ids(self) -> set[str]:
        """Of those that wait, or would."""
        return set(self._fds)

    def answer(self, id: str) -> None:
        """Let who waits for a file go on."""
        os.close(self._fds.pop(id))


@pytest.fixture
def slow_files(folder: Callable, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[DataSet, SlowFiles]]]:
    """Makes a data set of which some files are slow; a loader itself reads the first, so that one is not."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # the kernel tells who holds a lease of who waits
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
    """The samples that are read at this moment."""
    return {id for worker in loader.state.workers for id in worker.reading}


def labels(loader: Loader, data: DataSet) -> list[int]:
    """Those of an epoch, each row of which is checked."""
    return [label for X, y in loader for label in data.check(X, y)]


def test_files_that_answer_in_any_order(slow_files: Callable, asking: type[Asking]) -> None:
    """Eight are asked for at once, and go on whichever answers first; batches and rows are in order nevertheless."""
    data, slow = slow_files(range(1, N))
    chance = random.Random(1)
    with Loader(data.ids, data.labels, data_dir=data.path, **{**LOADS, "slots": 3}) as loader:  # one for each batch
        thread = asking(lambda: labels(loader, data))
        while slow.ids:
            wait_until(lambda: len(reading(loader) & slow.ids) == min(READS, len(slow.ids)), "as many as can be are in flight")
            slow.answer(chance.choice(sorted(reading(loader) & slow.ids)))
        assert thread.outcome() == list(range(N))
        assert loader.stats.reads == READS


def test_a_death_amid_many_reads(
    slow_files: Callable, asking: type[Asking], workers: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    """What all eight held is named and read again; no sample is blamed, though it happens twice at the same files."""
    data, slow = slow_files(range(1, 1 + READS))
    held = slow.ids
    with Loader(data.ids, data.labels, data_dir=data.path, on_error="replace", max_damaged=0.0, **LOADS) as loader:
        thread = asking(lambda: labels(loader, data))
        for restarts in range(2):
            wait_until(lambda: loader.stats.restarts == restarts and reading(loader) == held, "all are in flight")  # noqa: B023
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


def test_many_deaths_among_many_reads_change_no_byte(folder: Callable, workers: Callable) -> None:
    """Two workers of eight reads each, killed in turn while they read: what comes is what one process reads."""
    data = folder(N * 8)
    expected = run(made("files", data, workers=0))
    found = []
    with made("files", data, workers=2, reads=READS) as loader:
        for _ in range(2):
            for number, batch in enumerate(loader):
                found.append(as_bytes(batch))
                if number % 10 == 0:
                    wait_until(lambda: len(workers()) == 2, "those that replace the dead have begun")
                    kill(workers()[number % 2])
        assert loader.stats.restarts == 8
    assert found == expected


TIMEOUT = 1.5
"""Seconds: much more than a read takes that ends, also on a busy machine."""


@pytest.mark.parametrize("kind", ["files", "function"])
def test_who_never_answers_is_named_alone(folder: Callable, caplog: pytest.LogCaptureFixture, tmp_path: Path, kind: str) -> None:
    """Of eight that are read at once, the one that hangs; the others, which the same worker held, are read again."""
    data = folder(256)  # of which half is asked for: so nothing is read for another epoch
    fifo = data.fifo(3)
    read, noted = reader(data), str(tmp_path / "noted")

    def slow(id: str) -> np.ndarray:
        fd = os.open(noted, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.write(fd, f"{id}\n".encode())
        os.close(fd)
        time.sleep(0.15)
        return read(id)

    options: dict[str, Any] = {**LOADS, "slots": 16, "timeout": TIMEOUT}
    if kind == "files":
        loader = Loader(data.ids, data.labels, data_dir=data.path, **options)
        place = str(fifo)
    else:
        loader = Loader(data.ids, data.labels, source=Function(slow, (4, 3), 1, "f4", concurrent=True), **options)
        place = "function .*slow'"
    with loader:
        with pytest.raises(SampleError, match=f"^sample 'id-3', .*{place}: .* none for {TIMEOUT} seconds"):
            loader.batch(0)
        assert [label for index in range(1, 16) for label in data.check(*loader.batch(index))] == list(range(8, 128))
        assert loader.stats.restarts == 1
    assert caplog.text.count("another takes its place") == 1
    if kind == "function":
        [held] = re.findall("the 7 rows that it held are read again: (.*)", caplog.text)
        again = {f"'{id}'" for id, times in Counter(Path(noted).read_text().split()).items() if times > 1}
        assert again == set(held.split(", "))


def test_a_sample_that_kills_is_found_among_many(folder: Callable) -> None:
    """Three workers die of it, the last while it reads nothing else; the others, which were read beside it, are not blamed."""
    data = folder(64)
    read = reader(data)

    def deadly(id: str) -> np.ndarray:
        if id == "id-11":
            os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(0.01)
        return read(id)

    options: dict[str, Any] = {**LOADS, "slots": 4, "on_error": "replace", "max_damaged": 0.02}
    with Loader(data.ids, data.labels, source=Function(deadly, (4, 3), 1, "f4", concurrent=True), **options) as loader:
        found = labels(loader, data)
        assert found[:11] + found[12:] == [*range(11), *range(12, 64)]
        assert [damaged.id for damaged in loader.damaged] == ["id-11"]
        assert loader.stats.restarts == 3


@pytest.mark.parametrize("how", ["sleeps", "holds-the-interpreter"])
def test_who_hangs_alone_is_blamed(folder: Callable, how: str) -> None:
    """Where one never lets go of the interpreter, the reads beside it can't go on either: they are not to blame."""
    data = folder(64)
    read = reader(data)

    def hang(id: str) -> np.ndarray:
        if id == "id-9" and how == "sleeps":
            threading.Event().wait()
        elif id == "id-9":
            import ctypes

            ctypes.PyDLL(None).sleep(1_000_000)  # a call into C, during which no other thread of the process runs
        time.sleep(0.05)
        return read(id)

    options: dict[str, Any] = {**LOADS, "slots": 4, "timeout": TIMEOUT, "on_error": "replace", "max_damaged": 0.02}
    with Loader(data.ids, data.labels, source=Function(hang, (4, 3), 1, "f4", concurrent=True), **options) as loader:
        found = labels(loader, data)
        assert found[:9] + found[10:] == [*range(9), *range(10, 64)]
        assert [damaged.id for damaged in loader.damaged] == ["id-9"]
        assert loader.stats.restarts == 1 + (how == "holds-the-interpreter")


def test_a_transform_that_hangs_is_blamed_alone(folder: Callable) -> None:
    """It is called for one sample at a time: those that wait for it to end are not to blame."""
    data = folder(64)

    def transform(x: np.ndarray, rng: object) -> None:
        if x[0, 0] == 9:
            threading.Event().wait()

    options: dict[str, Any] = {**LOADS, "slots": 4, "timeout": TIMEOUT, "on_error": "replace", "max_damaged": 0.02}
    with Loader(data.ids, data.labels, data_dir=data.path, transform=transform, **options) as loader:
        found = labels(loader, data)
        assert found[:9] + found[10:] == [*range(9), *range(10, 64)]
        assert [damaged.id for damaged in loader.damaged] == ["id-9"]
        assert loader.stats.restarts == 1


def test_many_that_are_damaged_are_each_named(folder: Callable) -> None:
    """Failures of several reads in flight, each with its own file and reason."""
    data = folder(N)
    missing = {f"id-{number}" for number in range(1, N, 3)}
    for id in missing:
        data.file(id).unlink()
    with Loader(data.ids, data.labels, data_dir=data.path, on_error="replace", max_damaged=0.5, **LOADS) as loader:
        assert len(labels(loader, data)) == N
        assert {damaged.id for damaged in loader.damaged} == missing
        assert all(damaged.path == str(data.file(damaged.id)) for damaged in loader.damaged)


@pytest.mark.parametrize(("how", "times"), [("fails", 10), ("hangs", 2), ("dies", 2)])
def test_a_batch_is_an_error_once_its_last_row_is_read(folder: Callable, how: str, times: int) -> None:
    """Whether that is read before or after another of its rows is given up, the request for the batch ends."""
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


# Who may read at once.


def test_a_concurrent_function_is_called_at_once() -> None:
    """Four calls that each wait for three others end; in fewer threads they would not."""
    shared: dict[str, Any] = {}

    def meet(n: int) -> np.ndarray:
        shared.setdefault("barrier", threading.Barrier(4)).wait(20)
        return np.full(3, n, np.float64)

    source = Function(meet, 3, 1, np.float64, concurrent=True)
    found = rows(computed(source, ids=range(16), batch_size=4, shuffle=False, workers=1, reads=4))

    assert found[:, 0].tolist() == list(range(16))


@pytest.mark.parametrize("kind", ["transform", "function", "read"])
def test_others_are_called_one_at_a_time(folder: Callable, kind: str) -> None:
    """A transform beside files that are read at once, and a source that does not say that it is concurrent."""
    data = folder(N)
    inside: list[int] = []

    def alone(n: int) -> None:
        inside.append(n)
        time.sleep(0.002)
        assert inside.pop() == n
        assert not inside

    def transform(x: np.ndarray, rng: object) -> None:
        alone(int(x[0, 0]))

    def function(id: str) -> np.ndarray:
        number = int(id[3:])
        alone(number)
        return np.full((4, 3), number, "f4")

    class Reading(Source):
        shape, dtype = (4, 3), "f4"

        def read(self, id: str, row: np.ndarray) -> None:
            row[:] = function(id)

    source = {"transform": None, "function": Function(function, (4,), 3, "f4"), "read": Reading()}[kind]
    options: dict[str, Any] = {"transform": transform, "data_dir": data.path} if source is None else {"source": source}
    with Loader(data.ids, data.labels, **LOADS, **options) as loader:
        assert labels(loader, data) == list(range(N))
        assert loader.stats.reads == (READS if kind == "transform" else 1)


def test_random_numbers_are_exact_with_many_reads(folder: Callable) -> None:
    """Transforms draw from their generator and the global ones what they draw in process, however many files are read at once."""
    data = folder(64)

    def shake(x: np.ndarray, rng: np.random.Generator) -> None:
        drawn = rng.integers(1000), random.randrange(1000)
        time.sleep(0.0002)  # so that other readers' turns would come
        x += sum(drawn) + np.random.randint(1000)

    def load(**options: Any) -> Loader:
        return Loader(data.ids, data.labels, 8, data_dir=data.path, transform=shake, **options)

    assert run(load(workers=2, reads=READS)) == run(load(workers=0))


@pytest.mark.parametrize(
    ("concurrent", "workers", "reads", "expected"),
    [(True, 2, 4, 4), (True, 1, 64, 64), (False, 2, 4, 1), (True, 0, 4, 1)],
)
def test_each_reader_opens_a_copy_of_a_source(tmp_path: Path, concurrent: bool, workers: int, reads: int, expected: int) -> None:
    """Once; there are as many as ``reads`` says, or one where the source is not concurrent, or there are no workers."""
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


def test_a_reader_that_can_not_begin_is_said_and_others_read(folder: Callable, caplog: pytest.LogCaptureFixture) -> None:
    """A server that gives out three connections: three readers do the work of eight."""
    shared: list[int] = []

    class Database(Source):
        shape, dtype, concurrent = (1,), "int64", True

        def open(self) -> None:
            shared.append(1)
            if len(shared) > 3:
                raise OSError("too many connections")

        def fill(self, ids: Any, rows: np.ndarray) -> None:
            rows[:, 0] = ids

    with Loader(range(N), None, source=Database(), **LOADS) as loader:
        wait_until(lambda: next(iter(loader)) and "too many connections" in caplog.text, "it is said")
        assert np.concatenate([X[:, 0] for (X,) in loader]).tolist() == list(range(N))
    assert "worker 0 has fewer reads in flight than are wanted: " in caplog.text


def test_rows_of_one_file_are_read_at_once(folder: Callable, tmp_path: Path) -> None:
    """`NpyRows` with many reads gives the rows that one read gives."""
    array = np.random.default_rng(5).normal(size=(200, 7))
    np.save(tmp_path / "all.npy", array)
    with Loader(range(200), None, 8, source=NpyRows(tmp_path / "all.npy"), workers=2, reads=READS, shuffle=False) as loader:
        np.testing.assert_array_equal(np.concatenate([X for (X,) in loader]), array)
