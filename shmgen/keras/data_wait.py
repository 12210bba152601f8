"""`DataWait`: how long training waited for data, in the logs of every epoch."""

from __future__ import annotations

import logging
import time
import weakref
from typing import Any

import keras

from shmgen._plan.stats import Stats
from shmgen.keras.sequence import in_use

log = logging.getLogger("shmgen")


class DataWait(keras.callbacks.Callback):  # type: ignore[misc]
    """Puts ``data_wait`` into the logs of every epoch, and ``val_data_wait`` if there is a validation.

    It is the fraction of the time in which a batch of any `Sequence` was requested and not yet ready, from 0 to 1. TensorFlow
    requests batches ahead, so the trainer itself may have waited less. ``History``, the progress bar, and the callbacks that come
    later in the list show it: ``callbacks=[DataWait(), CSVLogger("log.csv")]``.

    Args:
        warn_above: a fraction from 0 to 1. The log says once that the trainer waited for more than this part of an epoch, and
            why.

    Examples:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((4, 3)), keras.layers.Flatten(), keras.layers.Dense(4)])
        >>> model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> with Sequence(ids, labels, batch_size=4) as training:
        ...     history = model.fit(training, callbacks=[DataWait()], verbose=0)
        >>> [0 <= fraction <= 1 for fraction in history.history["data_wait"]]
        [True]
    """

    def __init__(self, warn_above: float = 0.2) -> None:
        super().__init__()
        self._warn_above = warn_above
        self._warned = False
        self._train = self._validation = _WaitTimer()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._train = _WaitTimer()
        self._validation = _WaitTimer()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._train.stop()
        self._validation = _WaitTimer()

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        self._validation.stop()
        if logs is not None:
            logs["data_wait"] = self._validation.fraction

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._train.stop()
        if logs is not None:
            logs["data_wait"] = self._train.fraction
            if self._validation.is_stopped:
                logs["val_data_wait"] = self._validation.fraction
        if self._train.fraction > self._warn_above and not self._warned:
            self._warned = True
            reports = [f"{sequence!r}\n{sequence.stats.report()}" for sequence in list(in_use) if sequence.stats.batches]
            log.warning(
                "%.0f %% of epoch %d was spent waiting for data\n%s", 100 * self._train.fraction, epoch, "\n".join(reports)
            )


class _WaitTimer:
    """Measures, from now until `stop`, for which fraction of the time callers waited for batches of any sequence."""

    def __init__(self) -> None:
        self.is_stopped = False
        self.fraction = 0.0
        self._start = time.monotonic()
        self._before = weakref.WeakKeyDictionary((sequence, sequence.stats) for sequence in list(in_use))

    def stop(self) -> None:
        """Stop measuring; later calls change nothing."""
        if not self.is_stopped:
            self.is_stopped = True
            seen = [sequence.stats.since(self._before.get(sequence, Stats())) for sequence in list(in_use)]
            wait, elapsed = sum(stats.batch_wait + stats.slot_wait for stats in seen), time.monotonic() - self._start
            self.fraction = min(1.0, wait / elapsed) if elapsed else 0.0
