"""However a loader ends, it leaves no process, no name in /dev/shm and no descriptor; batches in use stay readable."""

from __future__ import annotations

import gc
import multiprocessing.spawn
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from conftest import GONE_WITHIN, Asking, Script, until_waiting
from leftovers import Gone, names
from pace import AT_ONCE, Deadline
from ways import answer, made, worker_reading

import shmgen._memory.ring
from shmgen import ClosedError, Loader, SampleError, StartError

CTRL_C_WITHIN = 0.5
"""Seconds after Ctrl-C until all processes must have ended."""

TRIES = 3
"""Number of tries for a time limit that may be missed while the machine is busy."""

LOADER = "loader = Loader(IDS, LABELS, 4, data_dir=DATA, workers=2)\n"

ENDS = {
    "unused": LOADER,
    "during-an-epoch": LOADER + "it = iter(loader); next(it)",
    "views-alive": LOADER + "batches = list(loader)",
    "in-a-reference-cycle": LOADER + "loop = [loader, iter(loader)]; loop.append(loop); next(loop[1]); del loader, loop",
    "sys.exit-in-a-thread": LOADER + "t = threading.Thread(target=lambda: [sys.exit(3) for _ in loader]); t.start(); t.join()",
    "abort": LOADER + "for X, y in loader: os.abort()",
    "daemon-thread-waits": "os.unlink(f'{DATA}/id-9.npy'); os.mkfifo(f'{DATA}/id-9.npy')\n" + LOADER + "def read():\n"
    "    try: list(loader)\n"
    "    except shmgen.ClosedError: pass\n"
    "threading.Thread(target=read, daemon=True).start()\n"
    "until_waiting(loader)\n",
}
"""Scripts by how they end; ``test_parent.py`` has those that are killed, or end with an error."""


def test_a_script_that_ends_without_close_leaves_nothing(folder: Callable, script: Callable) -> None:
    """However a script ends, it leaves no process or name, prints no warning or text of shmgen, and keeps its exit code."""
    runs = {name: script(code + "\n", folder(24, name=name)) for name, code in ENDS.items()}
    for name, run in runs.items():
        aborts = name == "abort"
        assert run.end() == (-signal.SIGABRT if aborts else 0), (name, run.err)  # the pipes are closed, so no worker is alive
        for complaint in ("Traceback", "shmgen", "Warning", "leaked", "Exception ignored"):
            assert complaint not in run.err or aborts, (name, run.err)  # after abort, faulthandler prints all threads
    assert not names()


ITERATING = """
def main():
    loader = Loader(IDS, LABELS, 4, data_dir=DATA, workers=2)
    for _ in range(3):
        for X, y in loader: pass
    say("ready")
    while True:
        for X, y in loader: pass

main()
"""

WAITING = """
def main():
    loader = Loader(IDS, LABELS, 4, data_dir=DATA, workers=2, shuffle=False)
    say_when_waiting("ready", loader)
    for X, y in loader: pass

main()
"""

STATES = [pytest.param(ITERATING, False, id="during-iteration"), pytest.param(WAITING, True, id="waiting-for-a-fifo")]


def ready(folder: Callable, script: Callable, code: str, fifo: bool, name: str = "data", **options: object) -> Script:
    """A script that has reached the point where a signal should strike."""
    data = folder(24, name=name)
    if fifo:
        data.fifo(9)
    run = script(code, data, **options)
    run.until("ready")
    assert len(run.workers) >= 2
    return run


@pytest.mark.parametrize(("code", "fifo"), STATES)
def test_ctrl_c_ends_all_processes_within_half_a_second(folder: Callable, script: Callable, code: str, fifo: bool) -> None:
    """Ctrl-C, which a terminal sends to the whole group, ends all processes in half a second, with only the user's traceback."""
    for attempt in range(TRIES):
        run = ready(folder, script, code, fifo, f"try-{attempt}")
        run.signal(signal.SIGINT, group=True)
        late = run.left(CTRL_C_WITHIN)
        assert run.end() == -signal.SIGINT, run.err
        assert run.err.count("Traceback") == 1, run.err
        assert run.err.rstrip().endswith("KeyboardInterrupt"), run.err
        assert "in main" in run.err
        for complaint in ("Warning", "leaked", "Exception ignored"):
            assert complaint not in run.err, run.err
        if not late:
            break
    assert not late
    assert not names()


def test_releasing_a_batch_runs_no_python_code(folder: Callable) -> None:
    """Releasing a batch runs no Python code: Ctrl-C during a Python callback would be printed, and not end the script."""
    data = folder(24)
    ran = []
    with Loader(data.ids, data.labels, 4, data_dir=data.path, workers=2) as loader:
        X, y = next(iter(loader))
        sys.setprofile(lambda frame, event, _: ran.append(frame.f_code.co_name) if event == "call" else None)
        try:
            del X, y
        finally:
            sys.setprofile(None)

        assert ran == []
        for X, y in loader:
            data.check(X, y)
        assert loader.stats.grown == 0


def test_ctrl_c_in_a_garbage_collector_callback(folder: Callable, no_collection: None) -> None:
    """Ctrl-C in another library's garbage-collector callback, where Python only prints errors, still ends a wait for slots."""
    data = folder(24)
    struck: list[str] = []

    def strike(phase: str, info: object) -> None:
        if not struck:
            struck.append(phase)
            signal.raise_signal(signal.SIGINT)

    with Loader(data.ids, data.labels, 4, data_dir=data.path, workers=1, slots=2, shuffle=False) as loader:
        batches = iter(loader)
        held = [next(batches), next(batches)]
        gc.callbacks.append(strike)
        try:
            with pytest.raises(KeyboardInterrupt):
                next(batches)  # only the loader runs the garbage collector
        finally:
            gc.callbacks.remove(strike)
        assert struck
        held.clear()
        assert [data.check(*batch)[0] for batch in batches] == [12, 16, 20]


def test_workers_end_with_a_parent_whose_forked_child_lives_on(folder: Callable, script: Callable) -> None:
    """Workers end with the parent, even if a process forked from it lives on and keeps the pipes open."""
    code = LOADER + "next(iter(loader))\nif os.fork() == 0: signal.pause()\nsay('ready')\nsignal.pause()\n"
    run = script(code, folder(24))
    run.until("ready")
    # Not the forked child, nor multiprocessing's tracker, whose pipe that child holds: both live on.
    pids = [worker.pid for worker in run.workers if "shmgen" in " ".join(worker.cmdline()) and "-c" in worker.cmdline()]
    assert len(pids) == 2
    gone = Gone()
    for pid in pids:
        gone.watch(pid)

    run.signal(signal.SIGKILL, group=False)

    assert not gone.wait(GONE_WITHIN)
    gone.close()


def test_close_may_be_called_again(folder: Callable) -> None:
    """A second `close` does nothing; later requests raise ClosedError, and so does a state to load; its repr says closed."""
    data = folder(8)
    with Loader(data.ids, data.labels, 4, data_dir=data.path, workers=2) as loader:
        next(iter(loader))
        loader.close()
        loader.close()
    loader.close()

    with pytest.raises(ClosedError):
        loader.batch(0)
    with pytest.raises(ClosedError):
        next(iter(loader))
    with pytest.raises(ClosedError):
        loader.load_state_dict(loader.state_dict())
    assert "closed" in repr(loader)
    assert loader.stats.batches == 1


def test_later_requests_raise_what_ended_the_run(folder: Callable) -> None:
    """Each request after the end raises the error that ended it, with its notes."""
    data = folder(4)
    with Loader(data.ids, None, 4, data_dir=data.path, workers=0) as loader:
        reason = StartError("a worker can't start")
        reason.add_note("the limit is 1")
        loader._feed.prefetcher.close(reason)
        for _ in range(2):
            with pytest.raises(StartError, match="can't start") as caught:
                loader.batch(0)
            assert caught.value.__notes__ == ["the limit is 1"]


@pytest.mark.parametrize("workers", [0, 2])
def test_views_stay_readable(folder: Callable, workers: int) -> None:
    """Batches in use keep their values after ``close``, and after the loader is freed."""
    data = folder(32)
    loader = Loader(data.ids, data.labels, 4, data_dir=data.path, workers=workers, slots=3)
    epoch = iter(loader)
    held = [next(epoch), next(epoch)]
    sliced = held[0][0][1:, ::2]
    before = sliced.copy()

    loader.close()
    for X, y in held:
        data.check(X, y)
    del loader, epoch
    gc.collect()
    for X, y in held:
        data.check(X, y)
    del held, X, y
    gc.collect()

    np.testing.assert_array_equal(sliced, before)
    sliced[:] = 5  # the memory is still mapped


def test_close_ends_a_wait_of_another_thread(folder: Callable) -> None:
    """When another thread closes the loader, all threads that wait for a batch promptly get ClosedError."""
    data = folder(24)
    data.fifo(9)
    for waiting in (1, 3):
        loader = Loader(data.ids, data.labels, 4, data_dir=data.path, workers=2, shuffle=False)
        threads = [Asking(lambda loader=loader: list(loader)) for _ in range(waiting)]
        until_waiting(loader, waiting)

        promptly = Deadline(AT_ONCE)
        loader.close()

        outcomes = [thread.outcome(AT_ONCE) for thread in threads]
        assert [type(outcome) for outcome in outcomes] == [ClosedError] * waiting
        assert not promptly.passed


def test_ctrl_c_ends_only_the_main_threads_wait(folder: Callable) -> None:
    """Ctrl-C while another thread listens to the workers ends only the main thread's wait; the other gets its batch."""
    data = folder(24)
    data.fifo(9)

    def interrupt(main: int = threading.get_ident()) -> None:
        until_waiting(loader, 2)
        signal.pthread_kill(main, signal.SIGINT)

    with made("function", data, batch_size=4, workers=1, shuffle=False) as loader:
        thread = Asking(lambda: loader.batch(2))
        until_waiting(loader)
        interrupting = Asking(interrupt)
        with pytest.raises(KeyboardInterrupt):
            loader.batch(2)
        assert interrupting.outcome() is None
        worker_reading(data, 9)
        answer(data, 9)
        assert data.check(*thread.outcome()) == [8, 9, 10, 11]
        assert data.check(*loader.batch(3)) == [12, 13, 14, 15]


def test_close_from_many_threads_at_once(folder: Callable) -> None:
    """If several threads close a loader while others iterate, each `close` returns, and the iterations raise ClosedError."""
    data = folder(24)
    loader = Loader(data.ids, data.labels, 4, data_dir=data.path, workers=2)

    def for_ever() -> None:
        while True:
            for X, y in loader:
                data.check(X, y)

    readers = [Asking(for_ever) for _ in range(2)]
    next(iter(loader))
    closers = [Asking(loader.close) for _ in range(3)]

    assert [closer.outcome(AT_ONCE) for closer in closers] == [None] * 3
    assert [type(reader.outcome(AT_ONCE)) for reader in readers] == [ClosedError] * 2


def test_a_garbage_collected_loader_leaves_nothing(folder: Callable, workers: Callable) -> None:
    """Without `close`, workers end with the last reference to the loader; in a cycle, with garbage collection."""
    data = folder(8)
    loader = Loader(data.ids, data.labels, 4, data_dir=data.path, workers=2)
    next(iter(loader))
    assert len(workers()) == 2
    del loader
    assert not workers()

    loop: list[object] = [Loader(data.ids, data.labels, 4, data_dir=data.path, workers=2)]
    loop.append(loop)
    del loop
    gc.collect()
    assert not workers()


def test_a_loader_at_the_end_of_the_program(folder: Callable, script: Callable) -> None:
    """At the end of the program, a loader in use is closed, and the error of a later request says so."""
    code = """
import atexit
atexit.register(lambda: ask())  # registered before the handler of `weakref.finalize`, so called after it
loader = Loader(IDS, LABELS, 4, data_dir=DATA, workers=1)
def ask():
    try: loader.batch(0)
    except shmgen.ClosedError as error: print(error)
"""
    run = script(code, folder(8))
    assert run.end() == 0, run.err
    assert run.out == "its last reference is gone, or the program is ending\n"


def test_an_iterator_keeps_its_loader_alive(folder: Callable) -> None:
    """``for X, y in Loader(...)`` works without a name for the loader."""
    data = folder(24)

    labels = [label for X, y in Loader(data.ids, data.labels, 4, data_dir=data.path, workers=2) for label in data.check(X, y)]

    assert sorted(labels) == list(range(24))


FORKED = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 has one for every fork
parent = os.getpid()

def forked(does):
    child = os.fork()
    if not child:
        signal.alarm(60)
        try: os._exit(0 if does() else 9)
        except shmgen.ClosedError as error: os._exit(str(parent) not in str(error) and 8)
        except SystemExit as error:
            if error.code is None: raise  # the interpreter ends, as that of a script does
            os._exit(7)
    status = os.waitpid(child, 0)[1]
    assert status == 0, (does, status)

"""
"""`forked` runs a function in a forked child: it must return true, exit, or raise the error that names the parent."""


def test_a_forked_child_disturbs_no_other_process(folder: Callable, script: Callable) -> None:
    """A forked child gets an error from its parent's loader, may read batches it has, and ends without affecting the parent."""
    code = """
loader = Loader(IDS, LABELS, 4, data_dir=DATA, workers=2, shuffle=False)
epoch = iter(loader)
first = next(epoch)

forked(lambda: loader.batch(0) and False)
forked(lambda: loader.state and False)
forked(lambda: list(loader) and False)
forked(lambda: next(epoch) and False)
forked(lambda: loader.__exit__(None, None, None) is None)
forked(lambda: (first[0].reshape(4, -1)[:, 0] == first[1]).all())
forked(lambda: sum(len(y) for X, y in Loader(IDS, LABELS, 4, data_dir=DATA, workers=1)) == 24 and sys.exit())
assert sum(len(y) for X, y in epoch) == 20
assert sum(len(y) for X, y in loader) == 24
loader.close()

path = f"{DATA}/id-9.npy"
os.rename(path, path + "~"); os.mkfifo(path)
loader = Loader(IDS, LABELS, 4, data_dir=DATA, workers=2, shuffle=False)
outcome = []
def ask():
    try: list(loader)
    except shmgen.ClosedError as error: outcome.append(error)
thread = threading.Thread(target=ask)
thread.start()
until_waiting(loader)
forked(lambda: loader.batch(0) and False)
forked(lambda: list(loader) and False)
forked(lambda: loader.close() is None)
forked(sys.exit)
assert thread.is_alive()
loader.close()
thread.join(60)
assert outcome and not thread.is_alive()
say("done")
"""
    run = script(FORKED + code, folder(24))
    assert run.end() == 0, run.err
    assert (run.out, run.err) == ("done\n", "")


FAILURES = {
    "a-bad-first-file": (SampleError, {"list_IDs": ["missing"], "labels": None, "batch_size": 1}),
    "no-memory": (OSError, {}),
    "no-interpreter": (OSError, {}),
    "no-process": (OSError, {}),
    "no-second-process": (OSError, {}),
    "no-descriptor": (OSError, {"workers": 16}),
    "interrupt": (KeyboardInterrupt, {}),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_constructor_that_fails_leaves_nothing(folder: Callable, monkeypatch: pytest.MonkeyPatch, failure: str) -> None:
    """A failing constructor leaves nothing behind, which `_nothing_left` checks."""
    import subprocess

    error: Any
    changed: Any
    error, changed = FAILURES[failure]
    data = folder(8)
    popen = subprocess.Popen
    started: list[subprocess.Popen[bytes]] = []

    def second_fails(*args: Any, **kwargs: Any) -> object:
        if started:
            raise KeyboardInterrupt if failure == "interrupt" else OSError(11, "Resource temporarily unavailable")
        started.append(popen(*args, **kwargs))
        return started[0]

    if failure == "no-interpreter":
        monkeypatch.setattr(multiprocessing.spawn, "_python_exe", b"/nowhere/python")
    elif failure == "no-memory":
        monkeypatch.setattr(shmgen._memory.ring, "available", lambda: 4096)
    elif failure == "no-process":
        monkeypatch.setattr(subprocess, "Popen", Mock(side_effect=OSError(11, "Resource temporarily unavailable")))
    elif failure in ("no-second-process", "interrupt"):
        monkeypatch.setattr(subprocess, "Popen", second_fails)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if failure == "no-descriptor":
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 30, limits[1]))
    try:
        with pytest.raises(error):
            Loader(
                **{"list_IDs": data.ids, "labels": data.labels, "batch_size": 4, "data_dir": data.path, "workers": 3, **changed}
            )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    for process in started:
        assert process.returncode is not None
