"""While the trainer does not wait for batches, a background thread reads ahead; batches and errors stay the same."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable

import pytest
from conftest import DEADLINE, DataSet, Script, wait_until

from shmgen import Loader, TooManyDamaged
from shmgen._engine import background_thread
from shmgen._engine.background_thread import Background
from shmgen._plan.schedule import Schedule

LOADER = """
from shmgen._plan.schedule import Schedule
Schedule.is_unhurried = Schedule.runs_low = True
loader = Loader(IDS, LABELS, 4, data_dir=DATA, workers=2)
batches = iter(loader)
assert any(thread.name == "shmgen" for _ in batches for thread in threading.enumerate())
left = len(batches)
"""
"""A script that is in the middle of an epoch, with the background thread running."""


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every batch count as one that nothing waited for, and after which more should be read."""
    monkeypatch.setattr(Schedule, "is_unhurried", True)
    monkeypatch.setattr(Schedule, "runs_low", True)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "shmgen"]


def until_none_is_left() -> None:
    wait_until(lambda: not threads(), "the thread has ended")


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.usefixtures("unhurried")
def test_batches_are_the_same(folder: Callable[..., DataSet], monkeypatch: pytest.MonkeyPatch, shuffle: bool) -> None:
    """Every epoch has the same samples in the same order as without the thread, also after an epoch that was left early."""
    data = folder(60)

    def epochs() -> list[list[int]]:
        with Loader(data.ids, data.labels, 4, data_dir=data.path, workers=2, shuffle=shuffle) as loader:
            found = []
            for last in (15, 7, 15):
                rows: list[int] = []
                for (X, y), _ in zip(loader, range(last), strict=False):
                    rows += data.check(X, y)
                found.append(rows)
            return found

    here = epochs()
    assert sorted(here[0]) == sorted(here[2]) == list(range(60))
    monkeypatch.setattr(Schedule, "is_unhurried", False)
    assert epochs() == here
    until_none_is_left()


@pytest.mark.usefixtures("unhurried")
def test_the_thread_ends_with_the_loader(folder: Callable[..., DataSet]) -> None:
    """The thread ends when its loader is closed or garbage-collected, and does not keep it alive."""
    data = folder(60)
    loader = Loader(data.ids, data.labels, 4, data_dir=data.path, workers=2)
    assert any(threads() for _ in loader)
    loader.close()
    until_none_is_left()
    loader = Loader(data.ids, data.labels, 4, data_dir=data.path, workers=2)
    assert any(threads() for _ in loader)
    forgotten = weakref.ref(loader)
    del loader
    gc.collect()
    assert forgotten() is None
    until_none_is_left()


@pytest.mark.usefixtures("unhurried")
def test_too_many_damaged_samples_are_raised_by_the_next_request(folder: Callable[..., DataSet]) -> None:
    """When the thread finds too many damaged samples, the trainer's next request raises the error."""
    data = folder(400)
    with Loader(data.ids, data.labels, 4, data_dir=data.path, workers=2, on_error="replace", max_damaged=0.01) as loader:
        batches = iter(loader)
        next(batches)
        for id in data.ids:
            data.file(id).unlink()
        with pytest.raises(TooManyDamaged, match="of 400 samples are damaged"):
            list(batches)
    until_none_is_left()


@pytest.mark.usefixtures("unhurried")
def test_internal_errors_end_the_run(folder: Callable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected error in the thread is logged with its traceback, and raised by the next request, which does not hang."""
    data = folder(400)
    with Loader(data.ids, data.labels, 4, data_dir=data.path, workers=2) as loader:
        batches = iter(loader)
        next(batches)
        monkeypatch.setattr(Schedule, "runs_low", property(lambda _: 1 / 0 if threading.current_thread() in threads() else True))
        with pytest.raises(Exception, match=r"reading ahead failed: .*division by zero"):
            list(batches)
    assert "reading ahead failed" in caplog.text
    until_none_is_left()


@pytest.mark.parametrize(
    ("then", "code"),
    {
        "raises": ("raise RuntimeError\n", 1),
        "forks": ("pid = os.fork()\nif not pid: os._exit(0)\nos.waitpid(pid, 0)\nassert len(list(batches)) == left\n", 0),
    }.values(),
    ids=["raises", "forks"],
)
def test_a_process_ends_with_the_thread(folder: Callable, script: Callable[..., Script], then: str, code: int) -> None:
    """A process with the thread may fork, and after an exception it ends at once and leaves nothing behind."""
    process = script(LOADER + then, folder(60), options=())
    assert process.end() == code, process.err
    assert ("RuntimeError" in process.err) == bool(code)


@pytest.mark.usefixtures("unhurried")
def test_where_no_thread_can_be_started(
    folder: Callable[..., DataSet], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the user may have no more threads, the trainer's thread reads ahead itself; that is logged once."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    data = folder(60)
    with Loader(data.ids, data.labels, 4, data_dir=data.path, workers=1) as loader:
        monkeypatch.setattr(threading.Thread, "start", start)
        assert sorted(label for batch in loader for label in data.check(*batch)) == list(range(60))
        monkeypatch.undo()
    assert caplog.text.count("read ahead: can't start new thread") == 1


def test_an_idle_thread_ends_and_a_request_starts_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread ends a while after the last request, and the next request starts a new one."""
    monkeypatch.setattr(background_thread, "IDLE", 0.001)

    class Worker:
        def __init__(self) -> None:
            self.called = threading.Semaphore(0)

        def work(self) -> bool:
            self.called.release()
            return True

    worker = Worker()
    thread = Background(worker.work)
    for _ in range(3):
        thread.request()
        assert worker.called.acquire(timeout=DEADLINE)
        until_none_is_left()
