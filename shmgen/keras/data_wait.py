"""`DataWait`: how long training waited for data, in the logs of every epoch."""

from __future__ import annotations

import logging
import sys
import time
import weakref
from typing import Any

import keras

from shmgen._engine.feed import Feed
from shmgen._plan.stats import Stats
from shmgen.keras.iterations import in_use
from shmgen.keras.running_fit import running, variable

log = logging.getLogger("shmgen")


class DataWait(keras.callbacks.Callback):  # type: ignore[misc]
    """Puts ``data_wait`` into the logs of every epoch, and ``val_data_wait`` if there is a validation.

    It is a fraction of the epoch's time, from 0 to 1, in which a batch was requested and not yet ready: of the `Sequence` that
    ``fit`` trains on, or of the one that it validates on. The start of workers does not count. TensorFlow requests batches ahead,
    so the trainer itself may have waited less. ``History``, the progress bar and other callbacks, such as ``CSVLogger``, show it,
    wherever they are in the list.

    If ``fit`` is given neither a `Sequence` nor a data set around one, but for example a ``tf.data.Dataset`` made of one, every
    sequence that delivers batches meanwhile counts.

    Args:
        warn_above: a fraction from 0 to 1. If training waits for more than this part of an epoch, the log says so and why, once.

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

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        # Before the callbacks that were given in front of it, so that these find the wait in the logs.
        _, fit = running(sys._getframe())
        callbacks = None if fit is None else variable(fit, "callbacks")
        if callbacks is not None and self in callbacks.callbacks:
            # A new list, since the caller iterates over the old one.
            callbacks.callbacks = [self, *(other for other in callbacks.callbacks if other is not self)]

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._train = _WaitTimer()
        self._validation = _WaitTimer()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._train.stop()
        self._validation = _WaitTimer()

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        fraction = self._validation.stop()
        if logs is not None:
            logs["data_wait"] = fraction

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        fraction = self._train.stop()
        if logs is not None:
            logs["data_wait"] = fraction
            if self._validation.fraction is not None:
                logs["val_data_wait"] = self._validation.fraction
        if fraction > self._warn_above and not self._warned:
            self._warned = True
            # Keras shows epochs counted from 1.
            log.warning(
                "%.0f %% of epoch %d was spent waiting for data\n%s",
                100 * fraction,
                epoch + 1,
                "\n".join(f"{feed!r}\n{feed.prefetcher.stats.report()}" for feed, stats in self._train.seen() if stats.batches),
            )


class _WaitTimer:
    """Measures, from now until `stop`, for which fraction of the time callers waited for batches.

    The sequences that the running ``fit`` or ``evaluate`` was given count, also in a data set around; if there are none, all.
    """

    def __init__(self) -> None:
        self.fraction: float | None = None
        iterator, _ = running(sys._getframe())
        self._measured = weakref.WeakSet(getattr(getattr(iterator, "data_adapter", None), "over", ())) or in_use
        self._before = weakref.WeakKeyDictionary({one: one.feed.prefetcher.stats for one in list(self._measured)})
        self._start = time.monotonic()

    def seen(self) -> list[tuple[Feed, Stats]]:
        """Each feed with its stats since then; also feeds that were made meanwhile."""
        return [(one.feed, one.feed.prefetcher.stats.since(self._before.get(one, Stats()))) for one in list(self._measured)]

    def stop(self) -> float:
        """Stop measuring, unless it has been stopped, and return the fraction."""
        if self.fraction is None:
            seen = [stats for _, stats in self.seen()]
            wait = sum(stats.batch_wait + stats.slot_wait for stats in seen)
            elapsed = time.monotonic() - self._start - max((stats.startup for stats in seen), default=0.0)
            self.fraction = min(1.0, wait / elapsed) if elapsed > 0 else 0.0
        return self.fraction
