"""Workers are lean, hold no list of ids, and take whatever is sent to them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import wait_until
from pace import Deadline
from ways import part_of

from shmgen import Loader
from shmgen._engine.pool import Pool
from shmgen._memory.records import REPORT

AT_ONCE = 2.0
"""Seconds in which what is promised "at once" must have happened."""

LEANEST = 45 * 2**20
"""Bytes of RSS that a worker must stay under."""

AN_ID = 100
"""Bytes that the parent may add for each id."""

REPORTS = """
import shmgen._worker.launch
shmgen._worker.launch.BOOT = f'''if True:
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
''' + shmgen._worker.launch.BOOT
"""
"""Makes workers tell at their end what they had imported, without a hook in the product."""


def ask_for_modules(path: Path) -> list[set[str]]:
    """What the workers of a script that has ended had imported."""
    return [set(file.read_text().split()) for file in path.glob("modules-*")]


def top_level(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


@pytest.mark.parametrize("dtype", ["None", "np.float64"])
def test_workers_are_lean_in_a_script_without_guard(folder: Callable, script: Callable, dtype: str) -> None:
    """With a framework on top and no ``__main__`` guard, a worker has neither it nor the script, and stays small."""
    data = folder(64, (32, 32))
    code = f"""
import tensorflow
{REPORTS}
loader = Loader(IDS, LABELS, 4, data_dir=DATA, workers=2, dtype={dtype})
for X, y in loader: pass
say("ready")
sys.stdin = open(DATA + "/go"); sys.stdin.read()
loader.close()
"""
    # A stand-in takes seconds less to import than TensorFlow.
    (data.path.parent / "tensorflow.py").write_text("print('imported', flush=True)\n")
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
        assert "shmgen._worker.main" in modules
        assert not top_level(modules) & {"tensorflow", "script_0", "site"}
        assert not modules & {"shmgen.loader", "shmgen.keras", "shmgen._engine.pool"}
        # What functions of the user's need, and a worker that only reads files does not.
        assert not modules & {
            "logging",
            "cloudpickle",
            "psutil",
            "shmgen._worker.context",
            "shmgen._worker.pickling",
            "shmgen._worker.log_forwarding",
        }
    # One worker may have done all the work.
    assert any("numpy" in modules for modules in reports) == (dtype != "None")


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
    assert not top_level(set(run.stdout.split())) & {"keras", "tensorflow", "jax", "torch", "psutil"}


@pytest.mark.parametrize("workers", ["'auto'", "0"])
def test_a_first_batch_does_not_wait_for_psutil(folder: Callable, script: Callable, workers: str) -> None:
    """It is imported where it is needed, and no loader needs it as long as all goes well."""
    run = script(
        f"with Loader(IDS, LABELS, 4, data_dir=DATA, workers={workers}) as loader: list(loader)\nsay(*sys.modules)", folder()
    )

    assert run.end() == 0, run.err
    assert "shmgen._engine.prefetcher" in run.out.split()
    assert "psutil" not in run.out.split()


def test_a_stopped_worker_does_not_delay_close(folder: Callable, workers: Callable) -> None:
    """A worker that does not answer, stopped by a signal, is killed at close."""
    data = folder(24)
    loader = Loader(data.ids, data.labels, 4, data_dir=data.path, workers=2)
    for worker in workers():
        worker.suspend()

    at_once = Deadline(AT_ONCE)
    loader.close()

    assert not at_once.passed
    assert not workers()


def test_what_is_larger_than_a_sockets_buffer_is_sent() -> None:
    """Functions that hold much, and long ids, reach a worker in parts, also while it alone is waited for."""
    held = np.arange(1_000_000.0)
    ids = [f"{'x' * 50_000}{number:02}" for number in range(24)]

    def look_up(id: str) -> np.ndarray:
        return held[int(id[-2:]) : int(id[-2:]) + 3]

    with Loader(ids, None, 8, source=look_up, dim=3, n_channels=1, dtype="f8", shuffle=False, workers=1) as loader:
        assert [row[0] for (X,) in loader for row in X[..., 0].tolist()] == list(range(24))


def test_who_has_gone_leaves_no_status_page(folder: Callable, workers: Callable) -> None:
    """However many have been replaced: each that lives has a page, and none is shared, nor left to one that has gone."""
    data = folder(24)
    with Loader(data.ids, data.labels, 4, data_dir=data.path, workers=2, slots=2) as loader:
        for died in range(5):
            while loader.stats.restarts < died:
                assert sorted(label for X, y in loader for label in data.check(X, y)) == list(range(24))
            if died < 4:
                workers()[-1].kill()
        assert mapped_pages(os.getpid()) == 2
        wait_until(lambda: [mapped_pages(worker.pid) for worker in workers()] == [1, 1], "all have begun")


def mapped_pages(pid: int) -> int:
    """How many status pages a process has mapped."""
    return Path(f"/proc/{pid}/maps").read_text().count("memfd:shmgen-status")


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


@pytest.mark.parametrize("kind", ["list", "range"])
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


def test_no_wake_up_is_lost(folder: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that reports, and rings, just after all reports were read has rung for the next wait."""
    data = folder(8)
    with Loader(data.ids, data.labels, 4, data_dir=data.path, workers=1) as loader:
        for X, y in loader:
            data.check(X, y)
        pool: Any = part_of(loader, Pool)
        reported = pool.poll_reports

        def late() -> list[Any]:
            events: list[Any] = reported()
            os.write(pool._reports_in, REPORT.pack(1 << 40, 0, 0))
            pool.wake()
            return events

        pool.wake()
        monkeypatch.setattr(pool, "poll_reports", late)
        pool.poll_events()
        monkeypatch.setattr(pool, "poll_reports", reported)
        at_once = Deadline(AT_ONCE)
        pool.wait(10 * AT_ONCE)
        assert not at_once.passed
        assert [event.detail for event in pool.poll_events()] == [[(1 << 40, 0, 0)]]
