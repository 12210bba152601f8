"""``shmgen.keras.DataWait`` adds the fraction of time that training waits for data to Keras's logs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import pytest
from pace import slowness
from recorder import Around
from ways import blocks

from shmgen.keras import DataWait, Sequence


def fit(training: Any, callbacks: list[Any], epochs: int = 3, **options: Any) -> dict[str, list[float]]:
    """Train on rows of 4 by 3, and return the history."""
    model = keras.Sequential([keras.Input((4, 3)), keras.layers.Flatten(), keras.layers.Dense(1)])
    model.compile(loss="mse", run_eagerly=True)
    history: dict[str, list[float]] = model.fit(training, epochs=epochs, verbose=0, callbacks=callbacks, **options).history
    return history


def test_data_wait_of_training_and_validation(folder: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The fraction of each epoch is in the history, in CSVLogger's columns, and in the logs of callbacks before and after.

    Without validation there is no ``val_data_wait``. A fraction above the limit gives one warning, one below gives none.
    """
    data = folder(32)
    with (
        Sequence(data.ids, data.labels, 8, data_dir=data.path, transform=blocks(0.01), workers=1, slots=2) as slow,
        Sequence(data.ids, data.labels, 8, data_dir=data.path, workers=1) as fast,
        caplog.at_level(logging.WARNING, "shmgen"),
    ):
        for wait_is_first in (True, False):
            called: list[Any] = []
            told = keras.callbacks.LambdaCallback(
                on_train_begin=lambda logs, called=called: called.append("train"),
                on_epoch_end=lambda epoch, logs, called=called: called.append(sorted(logs)),
            )
            others = [told, keras.callbacks.CSVLogger(tmp_path / "log.csv")]
            callbacks = [DataWait(warn_above=0.01), *others] if wait_is_first else [*others, DataWait(warn_above=1.0)]
            history = fit(slow, callbacks, **{"validation_data": fast} if wait_is_first else {})
            names = ["data_wait", "loss", *(["val_data_wait", "val_loss"] if wait_is_first else [])]
            titles, *lines = (tmp_path / "log.csv").read_text().splitlines()
            assert {*names} <= {*titles.split(",")}
            assert len(lines) == 3
            assert "NA" not in "".join(lines) or not wait_is_first
            assert called == ["train", *[names] * 3]
            assert sorted(history) == names
            waits = history["data_wait"]
            assert len(waits) == 3
            # On a busy machine a step takes longer, but its data do not.
            assert max(waits[1:]) > 0.3 / slowness()
            if wait_is_first:
                assert max(waits[1:]) > min(history["val_data_wait"][1:])
            assert all(0 <= fraction <= 1 for name in names if "wait" in name for fraction in history[name])
    [message] = [record.message for record in caplog.records if "waiting for data" in record.message]
    assert any(f"of epoch {epoch} was" in message for epoch in (1, 2, 3))  # the first ones may have been read ahead
    assert message.count("verdict:") == 1


@pytest.mark.parametrize("wrapped", [False, True])
def test_other_sequences_do_not_count(folder: Callable, caplog: pytest.LogCaptureFixture, wrapped: bool) -> None:
    """Waiting for another sequence, in a callback, does not count, and is not reported."""
    data = folder(32)

    with (
        Sequence(data.ids, data.labels, 8, data_dir=data.path, workers=1) as training,
        Sequence(data.ids, data.labels, 8, data_dir=data.path, transform=blocks(), workers=1, slots=2) as other,
    ):
        x = Around(training) if wrapped else training
        look = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: list(other))
        history = fit(x, [DataWait(warn_above=0.0), look], epochs=2)
        assert other.stats.batch_wait > 0.25  # of each epoch's 4 batches, 2 at most were read ahead
        # Most of an epoch is the callback's waiting: if it counted, the fraction would be nearly 1.
        assert max(history["data_wait"]) < 0.5
    assert all(record.message.count("verdict:") <= 1 for record in caplog.records)


def test_a_deleted_sequence_changes_no_data_wait(folder: Callable) -> None:
    """The waiting for a sequence counts even if another sequence, with its own waiting, is deleted meanwhile."""
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
