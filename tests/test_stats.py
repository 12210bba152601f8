"""Who waits for whom: each verdict in a situation made for it, and the trainer's waiting in Keras's logs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
from pace import slowness

import shmgen._engine.prefetcher
from shmgen import Loader, Stats
from shmgen._plan.stats import Decision

IDLE = Stats(workers=2)


def computes() -> Callable[..., None]:
    """A transform that takes a processor for 4 ms."""

    def compute(x: np.ndarray, rng: np.random.Generator) -> None:
        end = time.thread_time() + 0.004
        while time.thread_time() < end:
            pass

    return compute


def blocks() -> Callable[..., None]:
    """A transform that waits, as for a disk, and takes no processor: long beside what a worker waits for one."""

    def block(x: np.ndarray, rng: np.random.Generator) -> None:
        time.sleep(0.03)

    return block


@pytest.mark.parametrize(("transform", "verdict"), [(computes, "worker-bound"), (blocks, "disk-bound")])
def test_a_trainer_that_does_nothing_waits_for(folder: Callable, transform: Callable, verdict: str) -> None:
    """Workers that compute, or that wait for what they read, each are named as what holds up a trainer without work."""
    data = folder(32)
    with Loader(data.ids, data.labels, 8, data_dir=data.path, workers=2, transform=transform()) as loader:
        for _ in range(2):
            for _ in loader:
                pass
        stats = loader.stats
    assert stats.verdict == verdict, stats
    assert stats.data_wait > 0.5
    assert f"verdict: {verdict}" in stats.report()


def test_a_trainer_that_works_waits_for_nothing(folder: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that take long, beside which reading takes nothing, make the trainer the limit, however many there are."""

    class Clock:
        worked = 0.0

        def monotonic(self) -> float:
            return time.monotonic() + self.worked

    clock = Clock()
    monkeypatch.setattr(shmgen._engine.prefetcher, "time", clock)
    data = folder(64)
    with Loader(data.ids, data.labels, 8, data_dir=data.path, workers=2) as loader:
        for _ in range(3):
            for _ in loader:
                clock.worked += 100
        stats = loader.stats
    # Before the last delivery lies all of the work but the last step's.
    assert stats.elapsed > 23 * 100
    assert stats.verdict == "trainer-bound", stats
    assert "verdict: trainer-bound" in stats.report()
    assert stats.load < 0.1


def test_who_holds_all_slots_is_held_up(folder: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that are kept leave no slot to read into: more slots are advised."""
    monkeypatch.setattr(shmgen._engine.prefetcher, "GROW_AFTER", 0.5)
    data = folder(64)
    with Loader(data.ids, data.labels, 8, data_dir=data.path, workers=2, slots=2) as loader:
        held = list(loader)
        stats = loader.stats
    assert stats.verdict == "slots-bound", stats
    assert stats.slot_wait > stats.batch_wait
    assert "more slots" in stats.report()
    assert len(held) == 8


def test_stats_are_a_snapshot(folder: Callable) -> None:
    """They can't be changed, do not change, and are there after `close` as they were before."""
    data = folder(16)
    with Loader(data.ids, data.labels, 8, data_dir=data.path, workers=1) as loader:
        assert loader.stats == replace(IDLE, workers=1, reads=1)
        list(loader)
        stats = loader.stats
        with pytest.raises(FrozenInstanceError):
            stats.batches = 0  # type: ignore[misc]
        list(loader)
        last = loader.stats
    assert (stats.batches, last.batches, loader.stats) == (2, 4, last)
    assert last.busy > 0


def test_a_stretch_of_time() -> None:
    """What was done since then, and no more: counts, fractions, and decisions; the number of workers is the last."""
    first, second = Decision(3.0, 2, 1, "why"), Decision(12.0, 3, 8, "why not")
    earlier = Stats(10, 80, 8000, 5.0, 1.0, 0.5, 1, 1, 2, workers=2, busy=9.0, cpu=8.0, decisions=(first,))
    later = Stats(50, 400, 40000, 15.0, 4.0, 1.5, 3, 1, 6, workers=4, busy=29.0, cpu=13.0, decisions=(first, second))

    seen = later.since(earlier)

    assert seen == Stats(40, 320, 32000, 10.0, 3.0, 1.0, 2, 0, 4, workers=4, busy=20.0, cpu=5.0, decisions=(second,))
    assert (seen.rate, seen.data_wait, seen.busy_workers, seen.load, seen.io_wait) == (4.0, 0.4, 2.0, 0.5, 0.75)
    assert seen.verdict == "disk-bound"
    assert later.since(Stats()) == later
    assert "after 12.0 s 3 workers, 8 reads each: why not" in seen.report()


def test_no_time_at_all() -> None:
    """Nothing was done since now: all is 0, and there is a report."""
    seen = (stats := Stats(10, 80, 8000, 5.0, 1.0, 0.5, 1, 1, 2, workers=2, busy=9.0, cpu=8.0)).since(stats)
    assert seen == IDLE
    assert (seen.rate, seen.data_wait, seen.busy_workers, seen.load, seen.io_wait) == (0.0, 0.0, 0.0, 0.0, 0.0)
    assert "0 batches" in seen.report()


def test_an_epoch_by_itself(folder: Callable) -> None:
    """The stats of a loader since the end of an epoch are those of the next."""
    data = folder(16)
    with Loader(data.ids, data.labels, 8, data_dir=data.path, workers=1) as loader:
        list(loader)
        before = loader.stats
        list(loader)
        seen = loader.stats.since(before)
        assert (seen.batches, seen.samples, 2 * seen.bytes) == (2, 16, loader.stats.bytes)
        assert seen.elapsed == pytest.approx(loader.stats.elapsed - before.elapsed)


def test_a_report_tells_of_what_went_wrong() -> None:
    """Restarts, replaced samples and added slots stand in the report where there were any."""
    report = replace(IDLE, restarts=2, replaced=3, grown=4).report()
    assert "2 workers replaced" in report
    assert "3 unreadable samples replaced by others" in report
    assert "4 slots added, since all were held" in report
    assert "added" not in IDLE.report()


class TestDataWait:
    """``shmgen.keras.DataWait``."""

    @pytest.fixture
    def fit(self, folder: Callable) -> Callable[..., Any]:
        """Trains on data that ``transform`` makes slow, and on ones that are there; returns the history."""
        import keras

        from shmgen.keras import Sequence

        data = folder(32)
        model = keras.Sequential([keras.Input((4, 3)), keras.layers.Flatten(), keras.layers.Dense(1)])
        model.compile(loss="mse")

        def fit(callbacks: list[Any], **options: Any) -> dict[str, list[float]]:
            with (
                Sequence(data.ids, data.labels, 8, data_dir=data.path, transform=blocks()) as slow,
                Sequence(data.ids, data.labels, 8, data_dir=data.path) as fast,
            ):
                validation = {"validation_data": fast} if options.pop("validated", True) else {}
                return model.fit(slow, epochs=3, verbose=0, callbacks=callbacks, **validation, **options).history

        return fit

    def test_stands_in_history(self, fit: Callable) -> None:
        """Slow data make training wait, and quick ones no validation: fractions, one an epoch."""
        from shmgen.keras import DataWait

        history = fit([DataWait()])
        assert len(history["data_wait"]) == len(history["val_data_wait"]) == 3
        assert all(0 <= fraction <= 1 for fraction in history["data_wait"] + history["val_data_wait"])
        # Where others want the processors, a step takes longer, but its data do not.
        assert max(history["data_wait"][1:]) > 0.3 / slowness()
        assert max(history["data_wait"][1:]) > min(history["val_data_wait"][1:])

    def test_stands_in_the_callbacks_behind_it(self, fit: Callable, tmp_path: Any) -> None:
        """CSVLogger has a column for each."""
        import keras

        from shmgen.keras import DataWait

        fit([DataWait(), keras.callbacks.CSVLogger(tmp_path / "log.csv")])
        assert {"data_wait", "val_data_wait"} <= set((tmp_path / "log.csv").read_text().splitlines()[0].split(","))

    def test_warns_once(self, fit: Callable, caplog: pytest.LogCaptureFixture) -> None:
        """A trainer that waits for much of every epoch is told so once, with the diagnosis; one that does not, is not."""
        from shmgen.keras import DataWait

        with caplog.at_level(logging.WARNING, "shmgen"):
            fit([DataWait(warn_above=0.01)])
            fit([DataWait(warn_above=1.0)])
        [message] = [record.message for record in caplog.records if "waiting for data" in record.message]
        assert "verdict:" in message

    def test_a_sequence_that_is_gone_takes_nothing_back(self, folder: Callable) -> None:
        """What others wait for counts, though one that was waited for before has gone, and its waiting with it."""
        from shmgen.keras import DataWait, Sequence

        data = folder(32)
        gone = Sequence(data.ids, data.labels, 8, data_dir=data.path, transform=blocks(), workers=1)
        for _ in gone:
            pass
        with Sequence(data.ids, data.labels, 8, data_dir=data.path, transform=blocks(), workers=1) as slow:
            callback = DataWait()
            logs: dict[str, Any] = {}
            callback.on_epoch_begin(0)
            gone.close()
            del gone
            for _ in slow:
                pass
            callback.on_epoch_end(0, logs)
        assert logs["data_wait"] > 0.3 / slowness()

    def test_without_validation(self, fit: Callable) -> None:
        """There is no ``val_data_wait`` where nothing is validated."""
        from shmgen.keras import DataWait

        assert "val_data_wait" not in fit([DataWait()], validated=False)
