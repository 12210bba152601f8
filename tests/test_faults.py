"""Workers that die are replaced, and batches are the same as without deaths."""

from __future__ import annotations

import os
import random
import re
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from itertools import chain, cycle, repeat
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import Asking, DataSet, until_waiting, wait_until
from pace import PROMPTLY, Deadline
from ways import BATCH, as_bytes, filling, flat, kill, made, reader, repair, run, stop, worker_reading

from shmgen import Function, Loader, SampleError, Source, StartError, WorkerDied
from shmgen._engine import pool, prefetcher, supervisor
from shmgen._worker import launch

# Functions and sources are defined inside functions: for those of this module, workers would import pytest.

N = 30


# Workers that die


@pytest.mark.parametrize(("kind", "count"), [("files", 2), ("one-file", 2), ("transform", 1)])
def test_deaths_change_no_byte(folder: Callable, workers: Callable, kind: str, count: int) -> None:
    """Whichever worker dies between requests, by whatever signal, two epochs have the same bytes as without workers."""
    data = folder(N)
    expected = run(made(kind, data, workers=0, seed=count))
    signals = cycle([signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
    found = []

    reads = {"reads": 8} if kind == "files" else {}
    with made(kind, data, workers=count, seed=count, **reads) as loader:
        for epoch in range(2):
            for number, batch in enumerate(loader):
                found.append(as_bytes(batch))
                if number in (0, 3):
                    wait_until(lambda: len(workers()) == count, "the replacements of dead workers have begun")
                    kill(workers()[(number + epoch) % count], next(signals))
        assert loader.stats.restarts == 4
        assert loader.stats.replaced == 0
        assert len(workers()) == count

    assert found == expected


def test_kills_during_work_lose_no_ticket(folder: Callable, poison: None) -> None:
    """If workers with several readers are killed during work, every sample is still delivered once."""
    data, chance = folder(60), random.Random(0)
    read = reader(data)

    def slowly(id: str) -> np.ndarray:
        time.sleep(0.002)
        return read(id)

    source = Function(slowly, (4, 3), 1, "f4", concurrent=True)
    with Loader(data.ids, data.labels, 4, source=source, workers=2, reads=3, slots=4) as loader:
        while loader.stats.restarts < 6:
            labels: list[int] = []
            for number, (X, y) in enumerate(loader):
                labels += data.check(X, y)
                busy = [worker.pid for worker in loader.state.workers if worker.busy]
                if number % 5 == 0 and busy:  # with more kills, a sample might see three deaths and be blamed
                    os.kill(chance.choice(busy), signal.SIGKILL)
            assert sorted(labels) == list(range(60))


CAUSES: dict[int, str] = {
    signal.SIGKILL: "was killed by SIGKILL; the kernel does that when memory runs out: try .*",
    signal.SIGSEGV: "was killed by SIGSEGV",
    signal.SIGTERM: "was killed by SIGTERM",
}


@pytest.mark.parametrize(
    ("kind", "count", "number"),
    [
        pytest.param("files", 1, signal.SIGKILL, id="files-1-SIGKILL"),
        pytest.param("function", 2, signal.SIGTERM, id="function-2-SIGTERM"),
        pytest.param("own-fill", 2, signal.SIGSEGV, id="own-fill-2-SIGSEGV"),
    ],
)
def test_deaths_during_a_wait_are_named(
    folder: Callable, workers: Callable, caplog: pytest.LogCaptureFixture, kind: str, count: int, number: int
) -> None:
    """If all workers die during a wait, the batch is delivered, and warnings name each death's cause and the rows held."""
    data = folder(24)
    data.fifo(9)
    with made(kind, data, batch_size=4, workers=count, shuffle=False) as loader:
        data.check(*loader.batch(0))
        thread = Asking(lambda: loader.batch(2))
        until_waiting(loader)
        if kind != "files":
            worker_reading(data, 9)
        else:
            wait_until(lambda: loader.state.workers[0].reading == ("id-9",), "the worker reads the file that does not answer")
        pids = [worker.pid for worker in workers()]
        for worker in workers():
            stop(worker)
        repair(data, 9)
        for worker in workers():
            worker.send_signal(number)
            with suppress(psutil.NoSuchProcess):  # SIGKILL has ended it although it was stopped
                worker.resume()

        assert data.check(*thread.outcome()) == [8, 9, 10, 11]
        assert data.check(*loader.batch(3)) == [12, 13, 14, 15]
        assert loader.stats.restarts == count
        assert not set(pids) & {worker.pid for worker in workers()}

    assert [record.levelname for record in caplog.records] == ["WARNING"] * count
    for pid in pids:
        [said] = [record.getMessage() for record in caplog.records if f"(pid {pid})" in record.getMessage()]
        assert re.match(rf"worker \d \(pid {pid}\) {CAUSES[number]}; .*another takes its place", said), said
    if kind != "own-fill":
        place = data.file("id-9") if kind == "files" else "function 'reader.<locals>.read'"
        assert f"; it was at sample 'id-9', {place}; another takes its place" in caplog.text
    held = re.findall(r"the (?:(\d+) rows|row) that it held (?:is|are) read again: (.*)", caplog.text)
    assert any("id-9" in files for _, files in held)
    assert all(len(files.split(", ")) == int(rows or 1) for rows, files in held)


ENDS = {
    "exit-0": (lambda: os._exit(0), "ended with exit code 0"),
    "sys.exit-7": (lambda: sys.exit(7), "ended with exit code 7"),
    "SIGSEGV": (lambda: os.kill(os.getpid(), signal.SIGSEGV), "was killed by SIGSEGV"),
    "SIGKILL": (lambda: os.kill(os.getpid(), signal.SIGKILL), "was killed by SIGKILL; .*memory"),
}
"""How a function ends its worker, and the text of the error."""


def deadly(role: str, data: DataSet, ends: Callable[[], object], once: Path | None, **options: Any) -> Loader:
    """A loader whose function ends its worker by ``ends`` at sample 7, always or only once; labels are raised by 1000."""
    read, ended = reader(data), once and str(once)

    def end(id: str) -> None:
        if id == "id-7" and not (ended and os.path.exists(ended)):
            if ended:
                open(ended, "w").close()
            ends()

    def dying(id: str) -> np.ndarray:
        end(id)
        return read(id)

    def changing(sample: dict[str, np.ndarray], rng: np.random.Generator) -> None:
        if role == "transform":
            end(f"id-{sample['y']}")
        sample["y"] += 1000

    sources = {"source": dying, "own-fill": filling(dying), "transform": read}
    options = {"batch_size": 4, "shuffle": False, "slots": 2, "workers": 1, **options}
    return Loader(data.ids, inputs={"X": sources[role]}, targets=data.labels, transform=changing, **options)


@pytest.mark.parametrize(("how", "role"), [("exit-0", "transform"), ("sys.exit-7", "source"), ("SIGKILL", "own-fill")])
def test_a_function_that_ends_its_worker_once(
    folder: Callable, caplog: pytest.LogCaptureFixture, tmp_path: Path, how: str, role: str
) -> None:
    """A function that ends its worker is called again for the same samples, and each row is transformed only once."""
    data = folder(12)
    ends, said = ENDS[how]
    with deadly(role, data, ends, tmp_path / "ended", workers=2) as loader:
        epoch = [flat(batch) for batch in loader]
        assert loader.stats.restarts == 1

    assert [label for _, y in epoch for label in y.tolist()] == [1000 + number for number in range(12)]
    for X, y in epoch:
        data.check(X, y - 1000)
    assert re.search(rf"worker \d \(pid \d+\) {said}", caplog.text)


def test_all_workers_die_right_after_construction(folder: Callable, workers: Callable) -> None:
    """Workers that die before they have reported anything are replaced."""
    data = folder(N)
    with made("files", data, workers=2) as loader:
        for worker in workers():
            worker.kill()
        assert sorted(label for X, y in loader for label in data.check(X, y)) == list(range(N))
        assert loader.stats.restarts == 2


# Samples that kill the worker that reads them


def test_a_sample_that_kills_workers_is_named(folder: Callable) -> None:
    """After three workers have died at a sample, its batch raises an error that names id, source and signal."""
    data = folder(24)
    with deadly("own-fill", data, ENDS["SIGSEGV"][0], None) as loader:
        with pytest.raises(SampleError, match=r"found that 3 workers died at it: .* was killed by SIGSEGV") as caught:
            loader.batch(1)
        assert caught.value.id == "id-7"
        assert caught.value.path.startswith("source Filling")
        assert loader.stats.restarts in (3, 4)  # one more if its ticket has other rows: rows are then tried one by one
        X, y = flat(loader.batch(2))
        assert data.check(X, y - 1000) == [8, 9, 10, 11]


# Workers that can't start


def ended_by(loader: Loader, error: type[Exception], match: str, workers: Callable) -> None:
    """Assert that the loader ends promptly with this error, and is closed afterwards."""
    promptly = Deadline(PROMPTLY)
    with pytest.raises(error, match=match):
        deque(chain.from_iterable(repeat(loader, 20)), maxlen=0)  # batches that were read ahead are delivered first
    assert not promptly.passed
    assert not workers()
    assert "ended: " in repr(loader)
    with pytest.raises(error, match=match):
        loader.batch(1)


def test_workers_that_never_start_end_the_run(folder: Callable, workers: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that end before their first report, as with a broken interpreter, are replaced only a few times."""
    data = folder(N)
    monkeypatch.setattr(launch, "BOOT", "raise SystemExit(7)  # %s")
    with made("files", data, workers=2) as loader:
        ended_by(loader, WorkerDied, "ended with exit code 7", workers)
        assert loader.stats.restarts < 2 * supervisor.STARTS


def test_a_source_that_can_no_longer_be_opened_ends_the_run(tmp_path: Path, workers: Callable) -> None:
    """If a dead worker's replacement can't open the source, the run ends with a StartError that has the cause."""
    gone = str(tmp_path / "gone")

    class Database(Source):
        shape, dtype = (3,), "f4"

        def open(self) -> None:
            if os.path.exists(gone):
                raise OSError("no route to host")

        def read(self, id: Any, row: np.ndarray) -> None:
            row[:] = id

    with Loader(range(N), batch_size=BATCH, source=Database(), workers=1, slots=2) as loader:
        next(iter(loader))
        Path(gone).touch()
        kill(workers()[0])
        ended_by(loader, StartError, "no route to host", workers)


def test_an_alarm_handlers_error_is_raised_unchanged(
    folder: Callable, workers: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TimeoutError from an alarm's handler is raised as it is, although failures to start a worker are OSErrors, too."""
    data = folder(N)

    def time_is_up(*_: object) -> None:
        raise TimeoutError("time is up")

    start = pool.Pool._start

    def start_at_the_alarm(*args: Any) -> Any:
        signal.raise_signal(signal.SIGALRM)
        return start(*args)

    before = signal.signal(signal.SIGALRM, time_is_up)
    try:
        with made("files", data, workers=2) as loader:
            next(iter(loader))
            monkeypatch.setattr(pool.Pool, "_start", start_at_the_alarm)
            kill(workers()[0])
            with pytest.raises(TimeoutError, match="time is up"):
                list(chain.from_iterable(repeat(loader)))
    finally:
        signal.signal(signal.SIGALRM, before)


def is_running(pid: int) -> bool:
    """Whether process ``pid`` exists and has not ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_idle_workers_end_and_start_again(folder: Callable[..., DataSet], monkeypatch: pytest.MonkeyPatch) -> None:
    """When idle workers end and start again, no batch is lost, order and state stay, and none counts as replaced."""
    monkeypatch.setattr(pool, "IDLE_AFTER", 0.2)
    data = folder(48)
    with Loader(data.ids, data.labels, 4, data_dir=data.path, workers=2, slots=4, seed=3) as loader:
        batches, labels = iter(loader), []
        for _ in range(3):
            for _ in range(4):
                labels += data.check(*next(batches))
            state = loader.state_dict()
            pids = [worker.pid for worker in loader.state.workers]
            wait_until(lambda pids=pids: not any(map(is_running, pids)), "the workers have ended")
            assert loader.state_dict() == state
        assert sorted(labels) == list(range(48))
        assert loader.stats.restarts == 0
        for X, y in loader:
            data.check(X, y)
        assert len(loader.state.workers) == 2


def test_unused_loaders_are_logged(folder: Callable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """When a loader is made while four or more are unused, this is logged, once."""
    monkeypatch.setattr(prefetcher, "_warned_of_unused", threading.Lock())
    data = folder(4)
    with ExitStack() as loaders:
        for number in range(9):
            monkeypatch.setattr(prefetcher, "UNUSED_AFTER", 1000.0 if number < 6 else 0.0)
            assert caplog.text.count("6 loaders are open that have given no batch") == (number > 6)
            loaders.enter_context(Loader(data.ids, None, 4, data_dir=data.path, workers=0))


def test_a_loader_that_is_opened_while_others_are_counted(folder: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a loader is made, which counts the unused ones, another thread may make one too."""
    data = folder(4)

    def opened() -> Loader:
        return loaders.enter_context(Loader(data.ids, None, 4, data_dir=data.path, workers=0))

    class Meanwhile(float):
        def __radd__(self, last: float) -> float:
            monkeypatch.undo()
            opened()
            return last

    with ExitStack() as loaders:
        for _ in range(3):
            opened()
        monkeypatch.setattr(prefetcher, "UNUSED_AFTER", Meanwhile(0.0))
        opened()
