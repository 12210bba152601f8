"""`Loader.state` shows, from any thread, what a loader is doing, without changing it."""

from __future__ import annotations

import dataclasses
import gc
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from conftest import Asking, DataSet, wait_until
from ways import answer, computed, reader, worker_reading

from shmgen import Loader, LoaderState, SlotState, Source

N = 24


def in_order(data: DataSet, **options: Any) -> Loader:
    """A loader of batches of 4 in the order of the ids, which a `reader` reads."""
    options = {"slots": 3, "workers": 1, "dim": (4, 3), "n_channels": 1, "dtype": "f4", **options}
    return Loader(data.ids, data.labels, 4, shuffle=False, source=reader(data), **options)


def test_the_state_shows_a_batch_from_reading_to_release(folder: Callable[..., DataSet]) -> None:
    """A batch's slot is leased while a view of it exists, and then free at once; epochs are counted."""
    with in_order(folder(N)) as loader:
        assert loader.state.epoch == 0
        assert [slot.status for slot in loader.state.slots].count("leased") == loader.state.leased == 0
        epoch = iter(loader)
        held = [next(epoch)[0][1:], next(epoch)]
        leased = {(slot.epoch, slot.batch) for slot in loader.state.slots if slot.status == "leased"}
        assert leased == {(0, 0), (0, 1)}
        assert loader.state.leased == 2
        del held[0]
        gc.collect()
        assert loader.state.leased == 1
        assert SlotState("free") in loader.state.slots
        held.clear()
        for _ in epoch:
            pass
        assert loader.state.epoch == 0
        next(iter(loader))
        assert loader.state.epoch == 1


def test_the_state_shows_waiting_requests_and_samples(folder: Callable[..., DataSet], workers: Callable[..., Any]) -> None:
    """The state shows how many requests wait, and which worker reads which sample; it is a snapshot."""
    data = folder(N)
    data.fifo(6)
    with in_order(data) as loader:
        loader.batch(0)
        assert loader.state.waiting == 0
        threads = [Asking(lambda: data.check(*loader.batch(1))) for _ in range(2)]
        worker_reading(data, 6)
        wait_until(lambda: loader.state.waiting == 2, "both threads wait")
        state = loader.state
        assert SlotState("filling", 0, 1) in state.slots
        assert [(worker.pid, worker.busy, worker.reading) for worker in state.workers] == [(workers()[0].pid, True, ("id-6",))]
        assert not state.closed
        answer(data, 6)
        assert [thread.outcome() for thread in threads] == [[4, 5, 6, 7]] * 2
        assert loader.state.waiting == 0
        assert state.waiting == 2, "the state is a snapshot"
        with pytest.raises(dataclasses.FrozenInstanceError):
            state.waiting = 3  # type: ignore[misc]


def test_the_state_shows_the_first_sample_of_a_fill(folder: Callable[..., DataSet]) -> None:
    """If a source fills many rows in one call, the first sample is shown for all, and none when the batch is read."""
    data = folder(N)
    flag = str(data.path / "go-on")

    class Slow(Source):
        shape, dtype = (3,), "f4"

        def fill(self, ids: Any, rows: np.ndarray) -> None:
            while not os.path.exists(flag):
                os.sched_yield()

    with Loader(range(8), None, 8, source=Slow(), workers=1, slots=2, shuffle=False) as loader:
        thread = Asking(lambda: len(list(loader)))
        wait_until(lambda: loader.state.workers[0].reading == (0,), "the worker has begun")
        open(flag, "w").close()
        assert thread.outcome() == 1
        wait_until(lambda: loader.state.workers[0].reading == (), "the worker is at no sample")


def test_a_closed_loader_has_no_slots_and_workers(folder: Callable[..., DataSet]) -> None:
    """A closed loader has no slots and no workers, even if a view of a batch exists."""
    loader = in_order(folder(N), workers=1)
    held = loader.batch(0)
    assert (len(loader.state.slots), len(loader.state.workers), loader.state.closed) == (3, 1, False)
    loader.close()
    assert loader.state == LoaderState(epoch=0, slots=(), workers=(), waiting=0, closed=True)
    assert loader.state.leased == 0
    del held


def test_stats_in_a_fork_wait_for_no_lock(folder: Callable[..., DataSet], monkeypatch: pytest.MonkeyPatch) -> None:
    """In a fork, where the thread that held the lock is not there, `stats` can be read."""
    data = folder(8)
    with (
        Loader(data.ids, data.labels, 4, data_dir=data.path, workers=0) as loader,
        ThreadPoolExecutor(1) as other,
        monkeypatch.context() as fork,
    ):
        lock = loader._feed.prefetcher.lock
        other.submit(lock.acquire).result()
        fork.setattr(os, "getpid", lambda: -1)
        assert loader.stats.batches == 0
        other.submit(lock.release).result()


def test_the_state_during_a_function_in_process() -> None:
    """With ``workers=0`` a function may look at the state: its request waits, but does not hold the lock."""
    seen: list[LoaderState] = []
    loader: Loader = computed(transform=lambda x, rng: seen.append(loader.state), workers=0)
    with loader:
        next(iter(loader))
    assert {(state.waiting, state.workers) for state in seen} == {(1, ())}
    assert all(SlotState("filling", 0, 0) in state.slots for state in seen)
