"""Workers are lean, hold no list of ids, and are missed at once when they die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import DEADLINE, Gone

from shmgen import Loader, WorkerDied

AT_ONCE = 2.0
"""Seconds in which what is promised "at once" must have happened, on a machine that does other things as well."""

LEANEST = 45 * 2**20
"""Bytes of RSS that a worker must stay under."""

AN_ID = 100
"""Bytes that the parent may add for each id."""

REPORTS = """
import shmgen._pool
shmgen._pool.BOOT = f'''if True:
    import atexit, os, sys, threading

    lock = threading.Lock()  # two threads end a worker, and one must not cut short what the other writes

    def report():
        with lock, open({DATA!r} + f"/modules-{{os.getpid()}}", "w") as file:
            print(*sys.modules, file=file)

    def end(code, end=os._exit):
        report()
        with lock:
            end(code)

    atexit.register(report)
    os._exit = end
    {shmgen._pool.BOOT}
'''
"""
"""Makes workers tell at their end what they had imported, without a hook in the product."""


def ask_for_modules(path: Path) -> list[set[str]]:
    """What the workers of a script that has ended had imported."""
    return [set(file.read_text().split()) for file in path.glob("modules-*")]


def top_level(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


@pytest.mark.parametrize(
    ("imports", "dtype"),
    [
        pytest.param("tensorflow, keras", "None", id="tensorflow"),
        pytest.param("json", "np.float64", id="numpy-for-a-cast"),
    ],
)
def test_workers_are_lean_in_a_script_without_guard(folder: Callable, script: Callable, imports: str, dtype: str) -> None:
    """With TensorFlow on top and no ``__main__`` guard, a worker has neither it nor the script, and stays small."""
    data = folder(64, (32, 32))
    code = f"""
import {imports}, my_module_beside_the_script
{REPORTS}
loader = Loader(IDS, LABELS, 4, data_dir=DATA, workers=2, dtype={dtype})
for X, y in loader: pass
say("ready")
sys.stdin = open(DATA + "/go"); sys.stdin.read()
loader.close()
"""
    (data.path.parent / "my_module_beside_the_script.py").write_text("print('imported', flush=True)\n")
    os.mkfifo(data.path / "go")
    run = script(code, data, options=("-W", "error::ResourceWarning"))
    run.until("ready")

    sizes = [worker.memory_info().rss for worker in run.workers]
    (data.path / "go").write_text("")
    assert run.end() == 0, run.err

    assert len(sizes) == 2
    assert max(sizes) < LEANEST
    assert run.out.split() == ["imported", "ready"]  # once: no worker has run the script, or what it imports
    reports = ask_for_modules(data.path)
    assert len(reports) == 2
    for modules in reports:
        assert "shmgen._worker" in modules
        assert not top_level(modules) & {"keras", "tensorflow", "my_module_beside_the_script", "script_0", "site"}
        assert not modules & {"shmgen._loader", "shmgen.keras", "shmgen._pool"}
        assert ("numpy" in modules) == (dtype != "None")


@pytest.mark.parametrize(
    "code", ["import shmgen", "from shmgen import *", "from shmgen import Loader", "import shmgen; dir(shmgen)"]
)
def test_importing_the_loader_imports_no_framework(code: str) -> None:
    """Neither the package nor Loader imports Keras or TensorFlow; ``Sequence`` alone does."""
    if code.endswith("*"):
        code = "from shmgen import Loader, Stats, SampleError, InputError, WorkerDied, ClosedError, ShmgenError"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )

    assert "shmgen" in run.stdout.split()
    assert not top_level(set(run.stdout.split())) & {"keras", "tensorflow", "jax", "torch"}


@pytest.mark.parametrize("which", [0, 1], ids=["first", "second"])
@pytest.mark.parametrize(
    ("number", "cause"),
    [
        pytest.param(signal.SIGKILL, r"was killed by SIGKILL.*memory", id="SIGKILL"),
        pytest.param(signal.SIGSEGV, r"was killed by SIGSEGV$", id="SIGSEGV"),
        pytest.param(signal.SIGTERM, r"was killed by SIGTERM$", id="SIGTERM"),
    ],
)
def test_a_death_ends_a_wait_at_once(
    folder: Callable, asking: Callable, workers: Callable, number: int, cause: str, which: int
) -> None:
    """A worker killed while a batch is waited for, be it the stuck one or an idle one, raises WorkerDied, then and later."""
    data = folder(24)
    data.fifo(9)
    with Loader(data.ids, data.labels, 4, data_dir=data.path, workers=2, shuffle=False) as loader:
        data.check(*loader.batch(0))
        thread = asking(lambda: loader.batch(2))
        thread.until_it_waits()
        pid = workers()[which].pid

        os.kill(pid, number)
        error = thread.outcome(AT_ONCE)

        assert isinstance(error, WorkerDied), error
        assert (error.worker, error.pid, error.exitcode) == (which, pid, -number)
        with pytest.raises(WorkerDied, match=rf"^worker {which} \(pid {pid}\) {cause}"):
            raise error
        with pytest.raises(WorkerDied, match=f"pid {pid}"):
            loader.batch(0)
        with pytest.raises(WorkerDied, match=f"pid {pid}"):
            list(loader)
        assert f"pid {pid}" in repr(loader)
        assert not workers()


def test_a_death_ends_the_wait_of_all_threads(folder: Callable, asking: Callable, workers: Callable) -> None:
    """Of several threads that wait, each for another batch, none is forgotten when a worker dies."""
    data = folder(24)
    data.fifo(1)
    data.fifo(9)
    with Loader(data.ids, data.labels, 4, data_dir=data.path, workers=2, shuffle=False) as loader:
        threads = [asking(lambda index=index: loader.batch(index)) for index in (0, 2, 0)]
        threads[0].until_anybody_waits()

        os.kill(workers()[0].pid, signal.SIGKILL)

        assert [type(thread.outcome(AT_ONCE)) for thread in threads] == [WorkerDied] * 3


@pytest.mark.parametrize("code", [0, 3])
def test_an_exit_code_is_named(
    folder: Callable, asking: Callable, workers: Callable, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """A worker that exits amid its work is named with its exit code, even if that is 0."""
    from shmgen import _pool

    data = folder(24)
    data.fifo(9)
    exits = data.path / "exit"
    os.mkfifo(exits)
    # Ends the worker once somebody opens the FIFO to write.
    thread = f"threading.Thread(target=lambda: (open({str(exits)!r}), os._exit({code})), daemon=True).start()"
    monkeypatch.setattr(_pool, "BOOT", f"import os, threading; {thread}; {_pool.BOOT}")
    with Loader(data.ids, data.labels, 4, data_dir=data.path, workers=1, shuffle=False) as loader:
        waiting = asking(lambda: loader.batch(2))
        waiting.until_it_waits()
        (worker,) = workers()

        exits.write_text("")

        error = waiting.outcome(AT_ONCE)
        assert isinstance(error, WorkerDied), error
        assert (error.worker, error.pid, error.exitcode) == (0, worker.pid, code)
        assert str(error) == f"worker 0 (pid {worker.pid}) ended with exit code {code}"


def test_workers_that_never_start_are_named(folder: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that end before their first word, as under a broken interpreter, are no reason to wait either."""
    from shmgen import _pool

    data = folder(8)
    monkeypatch.setattr(_pool, "BOOT", "raise SystemExit(7)")

    with Loader(data.ids, data.labels, 4, data_dir=data.path, workers=2) as loader:
        with pytest.raises(WorkerDied, match="ended with exit code 7"):
            next(iter(loader))
        with pytest.raises(WorkerDied):
            loader.batch(1)


def test_a_death_while_nobody_waits_is_noticed_at_the_next_batch(folder: Callable, workers: Callable) -> None:
    """A worker that died between two requests ends the next one, though its batch may have been read already."""
    data = folder(64)
    with Loader(data.ids, data.labels, 4, data_dir=data.path, workers=2, slots=8) as loader:
        epoch = iter(loader)
        data.check(*next(epoch))
        worker = workers()[1]
        gone = Gone()
        gone.watch(worker.pid)
        worker.kill()
        # A process is a zombie already while a thread of it still dies, and holds its descriptors.
        assert gone.wait(DEADLINE) == set()
        gone.close()

        with pytest.raises(WorkerDied, match=f"worker 1 .pid {worker.pid}. was killed by SIGKILL"):
            next(epoch)


def test_rows_are_right_until_a_death(folder: Callable, workers: Callable) -> None:
    """Killed amid a fast run, a worker leaves no half-read batch behind: every batch up to the error is right."""
    data = folder(96)
    for _ in range(5):
        with Loader(data.ids, data.labels, 4, data_dir=data.path, workers=2) as loader:
            data.check(*next(iter(loader)))
            workers()[0].kill()

            def go_on(loader: Loader = loader) -> None:
                while True:
                    for X, y in loader:
                        data.check(X, y)

            with pytest.raises(WorkerDied):
                go_on()


def test_a_stopped_worker_does_not_delay_close(folder: Callable, workers: Callable) -> None:
    """A worker that does not answer, stopped by a signal, is killed at close."""
    data = folder(24)
    loader = Loader(data.ids, data.labels, 4, data_dir=data.path, workers=2)
    for worker in workers():
        worker.suspend()

    called = time.monotonic()
    loader.close()

    assert time.monotonic() - called < AT_ONCE
    assert not workers()


def test_fit_ends_when_a_worker_dies(folder: Callable, asking: Callable, workers: Callable) -> None:
    """``fit`` waits for no dead worker: its error names the worker and the signal."""
    import keras

    from shmgen import Sequence

    data = folder(24)
    data.fifo(17)
    model = keras.Sequential([keras.layers.Input((4, 3)), keras.layers.Flatten(), keras.layers.Dense(1)])
    model.compile(loss="mse")
    with Sequence(data.ids, data.labels, 4, data_dir=data.path, workers=2, shuffle=False) as sequence:
        fitting = asking(lambda: model.fit(sequence, shuffle=False, verbose=0))
        # TensorFlow asks from a thread of its own, for which the one that fits waits.
        fitting.until_anybody_waits(within="quick_execute")

        workers()[1].kill()

        error = fitting.outcome()
        assert isinstance(error, Exception)
        assert "WorkerDied: worker 1" in str(error)
        assert "SIGKILL" in str(error)


MEMORY = """
import resource
count, kind = {count}, {kind!r}
ids = {ids}
labels = {{id: 1 for id in ids}} if {labelled} else None
loader = Loader(ids[:64], None, 32, data_dir=DATA, workers=0)
list(loader)  # whatever is imported at first use
loader.close()


def rss():
    with open("/proc/self/statm") as statm:
        resident, shared = map(int, statm.read().split()[1:3])
    return (resident - shared) * resource.getpagesize()


before = rss()
loader = Loader(ids, labels, 32, data_dir=DATA, workers=1)
it = iter(loader)
for _ in range(20): next(it)
it = iter(loader)
next(it)
say(rss() - before)
say("ready")
sys.stdin = open(DATA + "/go"); sys.stdin.read()
loader.close()
"""

IDS = {
    "list": "[IDS[k % 1000] for k in range(count)]",
    "range": "range(count)",
    "int-array": "np.arange(count) % 1000",
    "str-array": "np.array(IDS)[np.arange(count) % 1000]",
}


@pytest.mark.parametrize("kind", IDS)
def test_memory_is_flat(folder: Callable, script: Callable, kind: str) -> None:
    """With 1,000,000 ids a worker uses no more than with 1,000, and the parent adds at most 100 bytes an id."""
    data = folder(1000, (4,))
    for number in range(1000 if kind in ("range", "int-array") else 0):
        data.file(number).hardlink_to(data.file(data.ids[number]))
    os.mkfifo(data.path / "go")
    worker_bytes = {}
    parent_bytes = {}
    for count in (1000, 1_000_000):
        code = MEMORY.format(count=count, kind=kind, ids=IDS[kind], labelled=kind != "range")
        if kind == "range":
            code = code.replace("workers=1)", "workers=1, shuffle=False)")
        run = script(code, data)
        run.until("ready")
        (worker,) = run.workers
        worker_bytes[count] = worker.memory_info().rss - worker.memory_info().shared
        parent_bytes[count] = int(run.out.split()[0])
        (data.path / "go").write_text("")
        assert run.end() == 0, run.err

    assert worker_bytes[1_000_000] < worker_bytes[1000] + 2**20
    assert parent_bytes[1_000_000] - parent_bytes[1000] <= AN_ID * 999_000


def test_workers_take_what_they_need_from_the_path_of_the_parent(tmp_path: Path) -> None:
    """Ids and files may need modules that only the parent's ``sys.path`` leads to; NumPy, for a cast, is one."""
    np.save(tmp_path / "0.npy", np.ones(3))
    with Loader([np.str_("0")], None, 1, data_dir=tmp_path, dtype=np.float32, workers=1) as loader:
        ((X,),) = loader

    assert X.tolist() == [[1, 1, 1]]
