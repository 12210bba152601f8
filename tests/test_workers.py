"""Workers are small, have no list of ids of their own, and get all messages and tickets."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import python, wait_until
from pace import AT_ONCE, Deadline
from ways import part_of

from shmgen import Function, Loader
from shmgen._engine.pool import Pool
from shmgen._engine.prefetcher import Prefetcher
from shmgen._engine.supervisor import Supervisor
from shmgen._memory.records import REPORT
from shmgen._plan.activity import Target
from shmgen._plan.sampler import BatchId
from shmgen._plan.schedule import Ticket

LEANEST = 45 * 2**20
"""The limit of a worker's RSS, in bytes."""

AN_ID = 100
"""Bytes that the main process may need for each id."""

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
"""Makes workers write their imported modules into a file at their end, without a hook in the product."""


def top_level(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


def test_workers_are_lean_in_a_script_without_guard(folder: Callable, script: Callable) -> None:
    """Workers of a script without ``__main__`` guard import neither the script nor its framework, and stay small.

    The main process imports psutil only if something goes wrong.
    """
    data = folder(64, (32, 32))
    code = f"""
import tensorflow
with Loader(IDS, LABELS, 4, data_dir=DATA) as loader: list(loader)
{REPORTS}
loader = Loader(IDS, LABELS, 4, data_dir=DATA, workers=2)
for X, y in loader: pass
assert "psutil" not in sys.modules
say("ready")
sys.stdin = open(DATA + "/go"); sys.stdin.read()
loader.close()
"""
    # A stand-in, since importing TensorFlow takes seconds.
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
    reports = [set(file.read_text().split()) for file in data.path.glob("modules-*")]
    assert len(reports) == 2
    for modules in reports:
        assert "shmgen._worker.main" in modules
        assert not top_level(modules) & {"tensorflow", "script_0", "site"}
        assert not modules & {"shmgen.loader", "shmgen.keras", "shmgen._engine.pool"}
        # Modules that are needed for users' functions, but not to read files.
        assert not modules & {"logging", "numpy", "cloudpickle", "psutil", "shmgen._worker.context", "shmgen._worker.pickling"}


def test_importing_the_loader_imports_no_framework() -> None:
    """Importing shmgen and `Loader` imports no framework; only `Sequence` imports Keras."""
    code = "import shmgen; dir(shmgen); from shmgen import Loader, Stats, SampleError, InputError, WorkerDied, ClosedError"
    run = python("-c", f"{code}; import sys; print(*sys.modules)", check=True)
    assert "shmgen" in run.stdout.split()
    assert not top_level(set(run.stdout.split())) & {"keras", "tensorflow", "jax", "torch", "psutil"}


def test_replaced_workers_leave_no_status_page(folder: Callable, workers: Callable) -> None:
    """Each live worker has a status page of its own, and replaced workers leave none behind."""
    data = folder(24)
    gc.collect()  # loaders of other tests
    before = mapped_pages(os.getpid())
    with Loader(data.ids, data.labels, 4, data_dir=data.path, workers=2, slots=2) as loader:
        for died in range(5):
            while loader.stats.restarts < died:
                assert sorted(label for X, y in loader for label in data.check(X, y)) == list(range(24))
            if died < 4:
                workers()[-1].kill()
        # The last killed worker may not have been reaped, and keeps its page until then.
        assert before + 2 <= mapped_pages(os.getpid()) <= before + 3
        wait_until(lambda: [mapped_pages(worker.pid) for worker in workers()] == [1, 1], "both workers have begun")


def mapped_pages(pid: int) -> int:
    """The number of status pages that a process has mapped."""
    return Path(f"/proc/{pid}/maps").read_text().count("memfd:shmgen-status")


MEMORY = """
import resource
ids = [IDS[k % 1000] for k in range({count})]
labels = {{id: 1 for id in ids}}
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


def test_memory_is_flat(folder: Callable, script: Callable) -> None:
    """With 200,000 ids a worker uses no more memory than with 1,000, and the main process at most 100 bytes an id more."""
    data = folder(1000, (4,))
    os.mkfifo(data.path / "go")
    worker_bytes = {}
    parent_bytes = {}
    for count in (1000, 200_000):
        run = script(MEMORY.format(count=count), data)
        run.until("ready")
        (worker,) = run.workers
        worker_bytes[count] = worker.memory_info().rss - worker.memory_info().shared
        parent_bytes[count] = int(run.out.split()[0])
        (data.path / "go").write_text("")
        assert run.end() == 0, run.err

    assert worker_bytes[200_000] < worker_bytes[1000] + 2**20
    assert parent_bytes[200_000] - parent_bytes[1000] <= AN_ID * 199_000


def test_workers_import_from_the_main_processs_path(tmp_path: Path) -> None:
    """Workers find modules on the main process's ``sys.path``, such as NumPy for a cast, or for ids that are NumPy's."""
    np.save(tmp_path / "0.npy", np.ones(3))
    with Loader([np.str_("0")], None, 1, data_dir=tmp_path, dtype=np.float32, workers=1) as loader:
        ((X,),) = loader

    assert X.tolist() == [[1, 1, 1]]


def test_processor_time_of_readers_that_have_ended_counts() -> None:
    """When a worker has fewer readers than before, its processor time still grows by what the others use."""

    def compute(id: int) -> np.ndarray:
        import time

        until = time.thread_time() + 0.002
        while time.thread_time() < until:
            pass
        return np.zeros(1)

    source = Function(compute, concurrent=True)
    with Loader(range(10_000), None, 8, source=source, workers=1, reads=8) as loader:
        pool, supervisor = part_of(loader, Pool), part_of(loader, Supervisor)
        batches = iter(loader)
        while pool.time_spent().cpu < 0.5:
            next(batches)
        worker = psutil.Process(loader.state.workers[0].pid)
        threads = worker.num_threads()
        with part_of(loader, Prefetcher).lock:
            supervisor.resize(Target(1, 1))
        wait_until(lambda: next(batches) and worker.num_threads() == threads - 7, "the other readers have ended")
        before = pool.time_spent().cpu
        for _ in range(40):  # more than had been read ahead
            next(batches)
        assert pool.time_spent().cpu - before > 0.1


def test_a_late_ring_of_the_bell_is_not_lost(folder: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a worker reports and rings just after the reports were read, the next wait ends at once."""
    data = folder(8)
    with Loader(data.ids, data.labels, 4, data_dir=data.path, workers=1) as loader:
        for X, y in loader:
            data.check(X, y)
        pool: Any = part_of(loader, Pool)
        reported = pool.poll_reports

        def late() -> list[Any]:
            events: list[Any] = reported()
            os.write(pool._reports_in, REPORT.pack(1 << 40, 0, 0, 0))
            pool.wake()
            return events

        pool.wake()
        monkeypatch.setattr(pool, "poll_reports", late)
        pool.poll_events()
        monkeypatch.setattr(pool, "poll_reports", reported)
        at_once = Deadline(AT_ONCE)
        pool.wait(10 * AT_ONCE)
        assert not at_once.passed
        assert [event.detail for event in pool.poll_events()] == [[(1 << 40, 0, 0, 0)]]


def test_tickets_beyond_a_full_queue_are_written_later(folder: Callable) -> None:
    """When a full queue has room again, a wait ends at once, and the remaining tickets are written."""
    data = folder(8)
    with Loader(data.ids, data.labels, 4, data_dir=data.path, workers=1) as loader:
        for X, y in loader:
            data.check(X, y)
        pool: Any = part_of(loader, Pool)
        pool.poll_events()
        [(number, pid)] = pool.pids.items()
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: pool.is_stopped(number), "the worker has been stopped")
        while not pool._overflow:
            pool.put([Ticket(1 << 40, 0, BatchId(0, 0), 0, 0)])
        os.read(pool._tickets_out, 1 << 16)
        at_once = Deadline(AT_ONCE)
        pool.wait(10 * AT_ONCE)
        assert not at_once.passed
        pool.poll_events()
        assert not pool._overflow
        assert pool.take_back() == [1 << 40]
        os.kill(pid, signal.SIGCONT)
