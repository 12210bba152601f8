"""A loader's stats: whether the trainer or the workers are the bottleneck, and the times and counts behind each verdict."""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ways import blocks

import shmgen._engine.held_slots
import shmgen._engine.prefetcher
from shmgen import Function, Loader, Source, Stats
from shmgen._plan.meter import Meter, TimeSpent
from shmgen._plan.stats import WAITING, Decision

IDLE = Stats(workers=2)

BATCH = 4

N = 48


class Clock:
    """A clock to which a test adds the time of a trainer's steps."""

    def __init__(self) -> None:
        self.worked = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.worked


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that the main process uses."""
    clock = Clock()
    monkeypatch.setattr(shmgen._engine.prefetcher, "time", clock)
    return clock


def computes() -> Callable[..., np.ndarray]:
    """A transform that uses 4 ms of processor time."""

    def compute(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        end = time.thread_time() + 0.004
        while time.thread_time() < end:
            pass
        return x

    return compute


def slow_to_open() -> Source:
    """A source of the user's own that is slow to open, and fast to read."""

    class Slow(Source):
        shape, dtype = (3,), "f4"

        def open(self) -> None:
            time.sleep(0.5)

        def read(self, id: Any, row: np.ndarray) -> None: ...

    return Slow()


def own_fill() -> Source:
    """A source of the user's own that fills many rows in one slow call."""

    class Slow(Source):
        shape, dtype = (3,), "f4"

        def fill(self, ids: Any, rows: np.ndarray) -> None:
            time.sleep(0.02 * len(ids))

    return Slow()


def epochs(loader: Loader, count: int = 1, step: Callable[[], object] = lambda: None) -> Stats:
    """The stats after ``count`` epochs, with a call of ``step`` after each batch; closes the loader."""
    with loader:
        for _ in range(count):
            for _ in loader:
                step()
        return loader.stats


def made(**options: Any) -> Loader:
    """A loader of rows that take no time, unless ``options`` say otherwise."""
    arguments: dict[str, Any] = {"workers": 2, "slots": 4, "source": lambda id: np.zeros(3, np.float32), **options}
    return Loader(range(N), None, BATCH, **arguments)


def of_files(data: Any, times: int = 1, **options: Any) -> Loader:
    """A loader of files, each of which is a sample ``times`` times an epoch."""
    arguments: dict[str, Any] = {"workers": 2, "slots": 4, **options}
    return Loader(times * data.ids, None, BATCH, data_dir=data.path, **arguments)


class Situations:
    """Situations made with real loaders; each method returns the stats."""

    def slow_trainer(self, clock: Clock, **rest: Any) -> Stats:
        return epochs(made(), step=lambda: setattr(clock, "worked", clock.worked + 100))

    def batches_held(self, monkeypatch: pytest.MonkeyPatch, **rest: Any) -> Stats:
        monkeypatch.setattr(shmgen._engine.held_slots, "GROW_AFTER", 0.5)
        with made(slots=2) as loader:
            held = list(loader)
            assert len(held) == N // BATCH
            return loader.stats

    def no_workers(self, **rest: Any) -> Stats:
        return epochs(made(workers=0, transform=blocks(0.005)))

    def any_order(self, **rest: Any) -> Stats:
        with made(shuffle=False, transform=blocks()) as loader, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for index in (7, 2, 9, 4, 11, 0, 5):
                loader.batch(index)
            return loader.stats

    def waiting_source(self, **rest: Any) -> Stats:
        return epochs(made(source=own_fill()))

    def computing_transform(self, **rest: Any) -> Stats:
        return epochs(made(transform=computes(), workers=1))

    def slow_storage(self, root: Path, proxy: Any, **rest: Any) -> Stats:
        proxy._delay = 0.03
        return epochs(Loader([f"id-{n}" for n in range(24)] * 2, None, BATCH, data_dir=proxy.url, workers=1, reads=2, slots=4))

    def files_that_are_cast(self, folder: Callable, **rest: Any) -> Stats:
        return epochs(of_files(folder(8, (1024, 1024), np.float64), 20, dtype="float32", workers=1))


SITUATIONS = {
    "slow_trainer": "trainer-bound",
    "batches_held": "consumer-held",
    "no_workers": "no-workers",
    "any_order": "order-bound",
    "waiting_source": "function-bound",
    "computing_transform": "function-bound",
    "slow_storage": "io-bound",
    "files_that_are_cast": "worker-bound",
}


@pytest.mark.usefixtures("served")  # started before the test, so that it is no leftover of it
@pytest.mark.parametrize(("situation", "verdict"), SITUATIONS.items())
def test_verdicts_of_real_situations(
    situation: str, verdict: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each real situation gets its own verdict; the advice tells functions that wait from functions that compute."""
    make = getattr(Situations(), situation)
    names = [name for name in inspect.signature(make).parameters if name not in ("rest", "monkeypatch")]
    stats = make(monkeypatch=monkeypatch, **{name: request.getfixturevalue(name) for name in names})

    assert stats.verdict == verdict, stats.report()
    if verdict == "function-bound":
        assert ("your functions compute" in stats.advice) == (situation == "computing_transform"), stats.report()


ADVICE = {
    "unknown": "too little was delivered to tell: ask again after more than 8 batches",
    "trainer-bound": "nothing to gain",
    "consumer-held": "give more slots",
    "no-workers": "workers=1, or 'auto', would read ahead",
    "order-bound": "can't be foreseen",
    "slot-bound": "a few slow samples hold up whole batches: give more slots",
    "function-bound": "your functions compute: give more workers",
    "io-bound": "the disk, or network, is the limit: reads='auto' has",
    "worker-bound": "reading computes: give more workers",
}
"""The advice by verdict, if the number of workers was given."""

FIGURES: list[tuple[dict[str, float], str]] = [
    # changes to the stats of a trainer that waits half the time for workers that compute, and the verdict
    ({}, "worker-bound"),
    ({"batches": 3}, "worker-bound"),
    ({"batches": 2}, "unknown"),
    ({"batches": 3, "startup": 1.0}, "unknown"),
    ({"elapsed": 0.1}, "worker-bound"),
    ({"elapsed": 0.09}, "unknown"),
    ({"batch_wait": 0.5}, "worker-bound"),
    ({"batch_wait": 0.49}, "trainer-bound"),
    ({"batch_wait": 0.0, "batches": 9}, "trainer-bound"),
    ({"batch_wait": 0.0, "batches": 8}, "unknown"),
    ({"batch_wait": 0.0, "batches": 8, "workers": 0}, "trainer-bound"),
    ({"slot_wait": 5.0, "grown": 1}, "worker-bound"),
    ({"slot_wait": 5.1, "grown": 1}, "consumer-held"),
    ({"slot_wait": 5.1}, "trainer-bound"),
    ({"workers": 0}, "no-workers"),
    ({"late_wait": 2.5}, "worker-bound"),
    ({"late_wait": 2.6}, "order-bound"),
    ({"busy": 10.0}, "worker-bound"),
    ({"busy": 9.9}, "slot-bound"),
    ({"busy": 9.9, "late_wait": 2.6}, "order-bound"),
    ({"function": 10.0}, "worker-bound"),
    ({"function": 5.0, "function_wait": 5.1}, "function-bound"),
    ({"function": 15.0, "cpu": 9.9}, "function-bound"),
    ({"cpu": 10.0}, "worker-bound"),
    ({"cpu": 9.9}, "io-bound"),
    ({"cpu": 7.6, "function_wait": 5.0}, "worker-bound"),
    ({"cpu": 7.4, "function_wait": 5.0}, "io-bound"),
]


@pytest.mark.parametrize(("change", "verdict"), FIGURES)
def test_verdicts_change_at_their_limits(change: dict[str, Any], verdict: str) -> None:
    """The verdict changes at each limit, has its advice, and is that of the last epoch if that is long enough."""
    computes = Stats(100, workers=2, slots=8, elapsed=10.0, batch_wait=5.0, busy=20.0, cpu=20.0, capacity=20.0)
    seen = replace(computes, **change)
    assert seen.verdict == verdict
    assert seen.report().splitlines()[-1] == f"verdict: {verdict}: {seen.advice}"
    waits = verdict == "function-bound" and seen.io_wait > WAITING
    assert ("Function(f, concurrent=True)" if waits else ADVICE[verdict]) in seen.advice
    # Several reads that never wait for their turn call functions that are concurrent already.
    several = replace(seen, reads=128, function_wait=0.0)
    assert ("have them wait less for each sample" in several.advice) == waits
    assert "concurrent=True" not in several.advice
    # A number that the loader chooses itself is not advised.
    assert "more workers" not in replace(seen, auto=("workers",)).advice
    assert replace(computes, epoch=seen).verdict == (verdict if verdict != "unknown" else "worker-bound")


def test_stats_show_the_numbers_that_auto_chooses() -> None:
    """The stats say which numbers the loader chooses itself."""
    cases: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        ({"workers": "auto"}, ("workers",)),
        ({"workers": 1}, ()),
        ({"workers": 0}, ()),
        ({"workers": 1, "source": Function(lambda id: np.zeros(3), concurrent=True)}, ("reads",)),
    ]
    for options, auto in cases:
        with made(**options) as loader:
            assert loader.stats.auto == auto, options
            assert (loader.stats.workers == 0) == (options["workers"] == 0)
            assert f"workers: {loader.stats.workers}" in loader.stats.report()


def test_startup_counts_apart() -> None:
    """The time until the first batch is ``startup``, and counts neither as waiting nor in the rate."""
    stats = epochs(made(source=slow_to_open()))
    assert stats.startup > 0.4
    assert stats.batch_wait + stats.slot_wait <= stats.elapsed
    assert stats.rate == pytest.approx((N // BATCH - 1) / stats.elapsed)
    assert stats.samples_per_second == pytest.approx(BATCH * stats.rate)
    assert stats.bytes_per_second == pytest.approx(12 * stats.samples_per_second)
    assert f"first batch after {stats.startup:.1f} s" in stats.report()


def test_stats_of_the_last_epoch_and_of_all(clock: Clock) -> None:
    """Time between epochs, such as a validation, counts in the stats of all epochs, but not in those of the last epoch."""
    with made(transform=blocks(0.01)) as loader:
        list_of_first = [len(X) for (X,) in loader]
        assert loader.stats.epoch is None
        for _ in range(2):
            clock.worked += 1000
            for _ in loader:
                pass
        stats = loader.stats
    assert stats.epoch is not None
    assert (stats.batches, stats.epoch.batches) == (3 * N // BATCH, N // BATCH)
    assert stats.elapsed > 2000
    assert stats.epoch.elapsed < 1000
    assert stats.data_wait < 0.05 < stats.epoch.data_wait
    assert stats.epoch.startup == 0 < stats.startup
    titles, batches = [line.split() for line in stats.report().splitlines()[1:3]]
    assert titles == ["all", "last", "epoch"]
    assert batches == ["batches", "36", "12"]
    assert list_of_first == [BATCH] * (N // BATCH)


@pytest.mark.parametrize("workers", [0, 2])
def test_time_in_functions_counts_apart(folder: Callable, workers: int) -> None:
    """Time in the user's functions is counted apart from reading: zero without functions, nearly all with slow ones."""
    data = folder(N)
    without = epochs(of_files(data, workers=workers))
    assert without.busy > 0
    assert (without.function, without.function_wait, without.function_part) == (0, 0, 0)
    assert "in your functions" not in without.report()
    waits = epochs(of_files(data, workers=workers, transform=blocks(0.005)))
    # Rows read before the first batch was delivered do not count.
    assert 0.005 * (N - 5 * BATCH) < waits.function < waits.busy
    assert waits.function_part > 0.5
    assert "in your functions" in waits.report()


def test_waits_for_a_turn_count_apart(folder: Callable) -> None:
    """A worker calls one function at a time; the time that its other readers wait for their turn is counted apart."""
    stats = epochs(of_files(folder(N), workers=1, reads=4, transform=blocks(0.005)))
    assert stats.function_wait > stats.function / 3
    # `busy` counts a ticket when it is done, and each reader may be in the middle of one.
    assert stats.function + stats.function_wait < stats.busy + 4 * 4 * BATCH * 0.02


def test_stats_are_a_snapshot(folder: Callable) -> None:
    """Stats can't be changed, do not change by themselves, and can still be read after `close`."""
    data = folder(16)
    with Loader(data.ids, data.labels, 8, data_dir=data.path, workers=1) as loader:
        assert loader.stats == replace(IDLE, workers=1, reads=1, slots=16, auto=("reads",))
        list(loader)
        stats = loader.stats
        with pytest.raises(FrozenInstanceError):
            stats.batches = 0  # type: ignore[misc]
        list(loader)
        last = loader.stats
    closed = loader.stats  # workers may have read further ahead in between
    assert (stats.batches, last.batches) == (2, 4)
    assert (closed.batches, closed.samples, closed.bytes, closed.elapsed) == (4, 32, last.bytes, last.elapsed)
    assert loader.stats == closed


def test_stats_since_earlier_stats() -> None:
    """`since` gives the counts, fractions and decisions of the time after earlier stats, and the latest number of workers."""
    first, second = Decision(3.0, 2, 1, "why"), Decision(12.0, 3, 8, "why not")
    earlier = Stats(10, 80, 8000, 5.0, 1.0, 0.5, 1, 1, 2, 2, 1, 9.0, 8.0, (first,), capacity=10.0)
    later = Stats(50, 400, 40000, 15.0, 4.0, 1.5, 3, 1, 6, 4, 8, 29.0, 13.0, (first, second), capacity=50.0)

    seen = later.since(earlier)

    assert seen == Stats(40, 320, 32000, 10.0, 3.0, 1.0, 2, 0, 4, 4, 8, 20.0, 5.0, (second,), capacity=40.0)
    assert (seen.rate, seen.data_wait, seen.load, seen.io_wait) == (4.0, 0.4, 0.5, 0.75)
    assert seen.verdict == "io-bound"
    assert later.since(Stats()) == later
    for batches in (40, 41):  # an epoch that began before the earlier stats is left out
        epoch = Stats(batches)
        assert replace(later, epoch=epoch).since(earlier).epoch == (epoch if batches == 40 else None)
    assert "after 12.0 s 3 workers, 8 reads each: why not" in seen.report()


def test_counts_of_a_meter() -> None:
    """Waiting and work before the first batch count as startup; time before an epoch's first request is in no epoch."""
    meter = Meter(0.0, 2, 10)
    meter.begin_epoch(0, 1.0, Stats())
    meter.batch_wait = 3.0
    assert meter.stats(TimeSpent(6.0, 5.0), slots=8) == Stats(slots=8)
    meter.count_batch(4, 0, 5.0, lambda: TimeSpent(6.0, 5.0))
    meter.set_workers(7.0, 3)
    meter.batch_wait = 4.0
    meter.count_batch(4, 1, 9.0, TimeSpent)
    seen = meter.stats(TimeSpent(8.0, 6.0))
    rest: dict[str, Any] = {"batch_wait": 1.0, "replaced": 1, "busy": 2.0, "cpu": 1.0, "startup": 4.0, "capacity": 10.0}
    assert seen == Stats(2, 8, 80, elapsed=4.0, **rest)
    meter.begin_epoch(1, 19.0, seen)
    meter.count_batch(4, 0, 20.0, TimeSpent)
    assert meter.stats(TimeSpent(9.0, 7.0)).epoch == Stats(1, 4, 40, elapsed=1.0, busy=1.0, cpu=1.0, capacity=3.0)


def test_stats_of_no_time() -> None:
    """Stats since now have zero counts and fractions, and a report."""
    seen = (stats := Stats(10, 80, 8000, 5.0, 1.0, 0.5, 1, 1, 2, workers=2, busy=9.0, cpu=8.0)).since(stats)
    assert seen == IDLE
    assert (seen.rate, seen.data_wait, seen.load, seen.io_wait) == (0.0, 0.0, 0.0, 0.0)
    assert "verdict: unknown: no batch was delivered" in seen.report()


def test_a_report_lists_restarts_replacements_and_growth() -> None:
    """The report tells of restarts, replaced samples and added slots, if there were any."""
    report = replace(IDLE, restarts=2, replaced=3, grown=4).report()
    assert "2 workers replaced" in report
    assert "3 unreadable samples replaced by others" in report
    assert "4 slots added, since all were held" in report
    assert "added" not in IDLE.report()
