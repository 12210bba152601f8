"""Many loaders, threads and forks, at once and in turn, do not disturb each other, and leave nothing behind."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import Asking
from leftovers import names

from shmgen import Loader


def test_several_loaders_in_one_process(folder: Callable) -> None:
    """Loaders made by threads that end give their own files each, read in turn by one thread or at once by several."""
    sets = [folder(12, (number + 1, 3), name=f"data-{number}") for number in range(4)]
    makers = [Asking(partial(Loader, data.ids, data.labels, 2, data_dir=data.path, workers=2, slots=3)) for data in sets]
    loaders: list[Any] = [maker.outcome() for maker in makers]

    def one(number: int) -> list[int]:
        return [label for X, y in loaders[number] for label in sets[number].check(X, y)]

    taken: list[list[int]] = [[] for _ in sets]
    for batches in zip(*loaders, strict=True):
        for data, labels, (X, y) in zip(sets, taken, batches, strict=True):
            assert X.shape[1:] == data.shape
            labels.extend(data.check(X, y))
    threads = [Asking(lambda number=number: one(number) + one(number)) for number in range(4)]

    assert [sorted(labels) for labels in taken] == [list(range(12))] * 4
    assert [sorted(thread.outcome()) for thread in threads] == [sorted([*range(12)] * 2)] * 4
    for loader in loaders:
        assert loader.stats.restarts == 0  # no worker ended with the thread that started it
        loader.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_threads_share_a_loader_with_passes_of_their_own(folder: Callable, workers: int) -> None:
    """Every loop of a thread is a whole epoch, while other threads begin loops and leave them early."""
    data = folder(24)
    over = threading.Event()
    with Loader(data.ids, data.labels, 2, data_dir=data.path, workers=workers) as loader:

        def epochs() -> list[list[int]]:
            return [[label for X, y in loader for label in data.check(X, y)] for _ in range(5)]

        def leave_early() -> None:
            while not over.is_set():
                data.check(*next(iter(loader)))

        leaving = [Asking(leave_early) for _ in range(2)]
        threads = [Asking(epochs) for _ in range(4)]
        outcomes = [thread.outcome() for thread in threads]
        over.set()
        for thread in leaving:
            assert thread.outcome() is None

    assert [[sorted(epoch) for epoch in outcome] for outcome in outcomes] == [[list(range(24))] * 5] * 4


FORKS = {
    # name -> code of a child that is forked while the loader lives; None: it is started by multiprocessing
    "os._exit": "os._exit(0)",
    "end-of-the-script": "sys.exit(0)",
    "collected": "del loader, epoch; gc.collect(); sys.exit(0)",
    "closed": "loader.close(); loader.close(); os._exit(0)",
    "lives-on": "signal.pause()",
    "multiprocessing": None,
    "multiprocessing-collects": None,
}


def test_children_forked_while_a_loader_lives(folder: Callable, script: Callable) -> None:
    """A loader goes on, and its workers end by themselves, however forks of its process end, even if one lives on."""
    code = f"""
import gc, multiprocessing, subprocess, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 has one for every fork
context = multiprocessing.get_context("fork")

def in_child(collects):
    global loader, epoch
    if collects:
        del loader, epoch
        gc.collect()

loader = Loader(IDS, LABELS, 4, data_dir=DATA, workers=2, shuffle=False)
parent = os.getpid()
for does in {[*FORKS.items()]!r}:
    epoch = iter(loader)
    labels = next(epoch)[1].tolist()
    if does[1] is None:
        process = context.Process(target=in_child, args=("collects" in does[0],))
        process.start()
        process.join(60)
        assert process.exitcode == 0, does
        process.close()
    else:
        child = os.fork()
        if not child:
            exec(does[1])
        if does[0] != "lives-on":
            assert os.waitpid(child, 0)[1] == 0, does
        else:
            living = child
    for X, y in epoch:
        assert (X == y[:, None, None]).all()
        labels += y.tolist()
    assert labels == list(range(24)), does
assert loader.stats.restarts == 0
shmgen._engine.pool.GRACE = 1000  # for workers to end by themselves, though the child that lives on keeps their sockets open
processes = [part for part in gc.get_objects() if type(part) is subprocess.Popen]
loader.close()
assert [process.returncode for process in processes] == [0, 0]
os.kill(living, signal.SIGKILL)
os.waitpid(living, 0)
say("done")
"""
    run = script(code, folder(24))

    assert run.end() == 0, run.err
    assert run.out == "done\n"
    assert run.err == ""
    assert not names()


IN_TURN = {0: 230, 1: 6}
"""Number of loaders made in turn, by their number of workers."""

LEAST_LEFT = 2 << 20
"""Bytes. A loader over 8 ids has 14 kB of objects, so 230 leaked loaders leave 3 MB; without a leak, a process's memory varies by
some hundred kB."""


@pytest.mark.parametrize("workers", IN_TURN)
def test_many_loaders_in_turn(folder: Callable, workers: int) -> None:
    """Loaders made, used and closed one after another leave no descriptors, processes, mappings, objects or memory."""
    data = folder(8)
    process = psutil.Process()

    def one(number: int) -> None:
        loader = Loader(data.ids, data.labels, 4, data_dir=data.path, workers=workers)
        for X, y in loader if number % 3 else ():
            data.check(X, y)
        if number % 2:
            loader.close()

    def state() -> tuple[int, int, int]:
        gc.collect()
        return process.num_fds(), len(process.children(recursive=True)), Path("/proc/self/maps").read_text().count("memfd:shmgen")

    for number in range(6):
        one(number)
    before, objects, memory = state(), len(gc.get_objects()), process.memory_info().rss
    for number in range(IN_TURN[workers]):
        one(number)

    assert state() == before
    assert len(gc.get_objects()) - objects < IN_TURN[workers]
    assert process.memory_info().rss - memory < LEAST_LEFT


def test_a_limit_of_256_open_files_is_enough(folder: Callable, script: Callable) -> None:
    """A limit of 256 open files is enough for 8 loaders of 2 workers each, while all 100 batches of two of them are held."""
    code = """
import resource, shmgen._engine.held_slots
shmgen._engine.held_slots.GROW_AFTER = 0.05
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

def check(batches):
    assert all((X == y[:, None, None] % 97).all() for X, y in batches)
    assert sorted(label for X, y in batches for label in y.tolist()) == list(range(100))

loaders = [Loader(IDS, LABELS, 1, data_dir=DATA, workers=2) for _ in range(8)]
held = [list(loader) for loader in loaders[:2]]
for batches in held: check(batches)
for loader in loaders: assert sum(len(y) for X, y in loader) == 100
say(len(os.listdir("/proc/self/fd")))
for loader in loaders: loader.close()
for batches in held: check(batches)
"""
    run = script(code, folder(100))

    assert run.end() == 0, run.err
    assert run.err == ""
    # Four a worker: socket, process, life, status page. Ten a loader: memory and ids, each mapped as well, two pipes, and those
    # to wait on. And a mapping for each quarter by which the rings of the two loaders grew, from 16 slots to 100.
    assert int(run.out) <= 8 * (4 * 2 + 10) + 2 * 12 + 8
