"""Reads that never end are given up, and stopped workers replaced; no sample is blamed if only its worker had no time."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import Asking, DataSet, until_waiting, wait_until
from pace import PROMPTLY, Deadline
from ways import answer, as_bytes, made, reader, run, stop, worker_reading

from shmgen import ClosedError, Loader, SampleError

N = 24
BATCH = 4

SOON = 0.8
"""A ``timeout`` for reads that never end: much longer than any other read takes here, also on a busy machine."""


def in_order(kind: str, data: DataSet, **options: Any) -> Loader:
    """A loader of ``data`` in the order of its ids."""
    return made(kind, data, **{"batch_size": BATCH, "shuffle": False, "timeout": SOON, **options})


def test_a_read_that_never_ends_is_named(folder: Callable, caplog: pytest.LogCaptureFixture) -> None:
    """After ``timeout`` a batch is an error that names the sample; its worker is replaced, and other batches arrive."""
    data = folder(N)
    fifo = data.fifo(9)
    with in_order("files", data, workers=2) as loader:
        promptly, called = Deadline(PROMPTLY), time.monotonic()
        for number in range(len(loader)):
            if number == 2:
                with pytest.raises(
                    SampleError, match=rf"id-9'.*{fifo}: expected an answer, found none for 0\.8 seconds \(timeout\)$"
                ):
                    loader.batch(number)
            else:
                assert data.check(*loader.batch(number)) == list(range(4 * number, 4 * number + 4))
        assert time.monotonic() - called >= SOON
        assert not promptly.passed
        assert loader.stats.restarts == 1
        assert loader.damaged == ()
    assert re.search(r"worker \d \(pid \d+\) gave no answer for 0\.8 seconds, and was killed; ", caplog.text)
    assert "memory" not in caplog.text


def test_a_stopped_worker_changes_no_byte(folder: Callable, workers: Callable, caplog: pytest.LogCaptureFixture) -> None:
    """A stopped worker is replaced if a request waits for it; its rows are read again, and no sample is blamed."""
    data = folder(N)
    expected = run(made("files", data, workers=0))
    found = []
    with made("files", data, workers=2, timeout=SOON, on_error="replace", max_damaged=0.0) as loader:
        for epoch in range(2):
            for number, batch in enumerate(loader):
                found.append(as_bytes(batch))
                if number == 1:
                    stop(workers()[epoch % 2])
        restarts = loader.stats.restarts
        assert restarts <= 2  # a worker stopped while it was idle is not replaced: the other does all the work
        assert loader.damaged == ()
    assert found == expected
    said = re.findall(r"worker \d \(pid \d+\) had been stopped for 0\.8 seconds, and was killed; ", caplog.text)
    assert len(said) == restarts


@pytest.mark.parametrize("timeout", [None, float("inf")])
def test_without_a_timeout_a_request_waits_for_ever(folder: Callable, timeout: float | None) -> None:
    """Without a timeout a request waits until the read ends, however late, or another thread closes the loader."""
    data = folder(N)
    with in_order("function", data, workers=1, timeout=timeout) as loader:
        cases: list[tuple[Callable, type]] = [(lambda: answer(data, 9), list), (loader.close, ClosedError)]
        for ends, outcome in cases:
            data.fifo(9)
            thread = Asking(lambda: [data.check(X, y) for X, y in loader])
            worker_reading(data, 9)
            until_waiting(loader)
            ends()
            assert isinstance(thread.outcome(), outcome)


def test_a_slow_start_blames_no_sample(folder: Callable) -> None:
    """Imports and opens at a worker's start do not count for the timeout."""
    from shmgen import Source

    data = folder(N)
    read = reader(data)

    class Database(Source):
        shape, dtype = (4, 3), "f4"

        def open(self) -> None:
            time.sleep(2 * SOON)

        def read(self, id: str, row: np.ndarray) -> None:
            row[:] = read(id)

    with Loader(data.ids, data.labels, BATCH, source=Database(), workers=2, timeout=SOON) as loader:
        assert sorted(label for X, y in loader for label in data.check(X, y)) == list(range(N))
        assert loader.stats.restarts == 0


def test_no_timeout_in_process(folder: Callable) -> None:
    """With ``workers=0`` there is no timeout, since the main process can't give up its own reads."""
    data = folder(N)
    with in_order("function", data, workers=0, timeout=1e-9) as loader:
        assert [label for X, y in loader for label in data.check(X, y)] == list(range(N))


@pytest.mark.filterwarnings("ignore:batches of a loader")
def test_other_threads_batches_do_not_extend_a_timeout(folder: Callable) -> None:
    """A request whose read hangs ends in time, although another thread gets batch after batch meanwhile."""
    data = folder(N)
    data.fifo(9)
    with in_order("function", data, workers=2, slots=6) as loader:
        thread = Asking(lambda: loader.batch(2))
        worker_reading(data, 9)
        promptly = Deadline(PROMPTLY)
        while thread.is_alive() and not promptly.passed:
            for index in (0, 1):
                data.check(*loader.batch(index))
        assert isinstance(thread.outcome(), SampleError)


PARENT = """
def read(id):
    if id == "id-9":
        with open(f"{DATA}/{id}.npy.reader", "w") as file: file.write(f"{os.getpid()} ")
    with open(f"{DATA}/{id}.npy", "rb") as file: return np.frombuffer(file.read()[128:], np.float32).reshape(4, 3)

loader = Loader(IDS, LABELS, 4, (4, 3), 1, source=read, shuffle=False, workers=1, on_error="replace", timeout=1.5)
say_when_waiting("waiting", loader)
labels = [label for X, y in loader for label in y.tolist() if (X[y == label] == label).all()]
say(labels == list(range(24)), loader.stats.restarts)
loader.close()
"""


def test_a_stop_of_the_program_blames_no_sample(folder: Callable, script: Callable) -> None:
    """If the whole program was stopped for longer than ``timeout``, as by Ctrl-Z, a read can still end afterwards."""
    data = folder(N)
    data.fifo(9)
    run = script(PARENT, data)
    run.until("waiting")
    worker = worker_reading(data, 9)

    run.signal(signal.SIGSTOP, group=True)
    wait_until(lambda: psutil.Process(run.process.pid).status() == psutil.STATUS_STOPPED, "the script is stopped")
    assert worker.pid in run.left(within=2.0)
    answering = Asking(lambda: answer(data, 9))  # in a thread: it waits until the stopped worker opens the FIFO
    run.signal(signal.SIGCONT, group=True)

    assert run.end() == 0, run.err
    assert answering.outcome() is None
    assert run.out.split() == ["waiting", "True", "0"]
    assert run.err == ""
