"""`DataWait`: how long training waited for data, in the logs of every epoch."""

from __future__ import annotations

import logging
import sys
import time
import weakref
from collections.abc import Iterable
from typing import Any

import keras

from shmgen._plan.stats import Stats
from shmgen.keras.frames import is_keras, stack, variable
from shmgen.keras.running_fit import calling_list
from shmgen.keras.sequence import Sequence, in_use

log = logging.getLogger("shmgen")


class DataWait(keras.callbacks.Callback):  # type: ignore[misc]
    """Puts ``data_wait`` into the logs of every epoch, and ``val_data_wait`` if there is a validation.

    It is the fraction of the time in which a batch was requested and not yet ready, from 0 to 1: of the `Sequence` that ``fit``
    trains on, and of that which it validates on. The start of workers does not count. TensorFlow requests batches ahead, so the
    trainer itself may have waited less. ``History``, the progress bar, and other callbacks, such as ``CSVLogger``, show it,
    wherever in the list they are.

    If ``fit`` is given something that leads to no `Sequence`, such as a ``tf.data.Dataset`` that is made of one, all sequences
    count that are asked for batches meanwhile.

    Args:
        warn_above: a fraction from 0 to 1. The log says once that the trainer waited for more than this part of
            an epoch, and why.

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
        self._given: weakref.WeakSet[Sequence] = weakref.WeakSet()
        self._train = self._validation = _WaitTimer()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._given = weakref.WeakSet(_given_to("fit"))
        _move_to_front(self)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._given = weakref.WeakSet()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._train = _WaitTimer(self._given)
        self._validation = _WaitTimer()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._train.stop()
        self._validation = _WaitTimer(_given_to("evaluate"))

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
            # Keras shows epochs counted from 1.
            log.warning(
                "%.0f %% of epoch %d was spent waiting for data\n%s",
                100 * self._train.fraction,
                epoch + 1,
                "\n".join(f"{sequence!r}\n{sequence.stats.report()}" for sequence in self._train.waited_for()),
            )


class _WaitTimer:
    """Measures, from now until `stop`, for which fraction of the time callers waited for batches.

    Args:
        sequences: whose batches; where there are none, those of any.
    """

    def __init__(self, sequences: Iterable[Sequence] = ()) -> None:
        self.is_stopped = False
        self.fraction = 0.0
        self._start = time.monotonic()
        given = list(sequences)
        self._only = bool(given)
        self._before = weakref.WeakKeyDictionary((sequence, sequence.stats) for sequence in given or list(in_use))

    def _seen(self) -> list[tuple[Sequence, Stats]]:
        """What each sequence has done since then; also those that were made meanwhile."""
        measured = list(self._before) if self._only else list(in_use)
        return [(sequence, sequence.stats.since(self._before.get(sequence, Stats()))) for sequence in measured]

    def stop(self) -> None:
        """Stop measuring; later calls change nothing."""
        if not self.is_stopped:
            self.is_stopped = True
            seen = [stats for _, stats in self._seen()]
            wait = sum(stats.batch_wait + stats.slot_wait for stats in seen)
            elapsed = time.monotonic() - self._start - max((stats.startup for stats in seen), default=0.0)
            self.fraction = min(1.0, wait / elapsed) if elapsed > 0 else 0.0

    def waited_for(self) -> list[Sequence]:
        """The sequences that have delivered anything since then."""
        return [sequence for sequence, stats in self._seen() if stats.batches]


def _given_to(method: str) -> list[Sequence]:
    """The sequence that Keras's ``method``, which calls this, was given as ``x``, or those that are attributes of what it was."""
    for frame in stack(sys._getframe(1)):
        if frame.f_code.co_name == method and is_keras(frame):
            x = variable(frame, "x")
            parts = [x] if isinstance(x, Sequence) else getattr(x, "__dict__", {}).values()
            return [part for part in parts if isinstance(part, Sequence)]
    return []


def _move_to_front(callback: keras.callbacks.Callback) -> None:
    """Have ``callback`` called before those that were given in front of it, so that these find what it puts into the logs."""
    callbacks = calling_list(sys._getframe(1))
    if callbacks is not None and callback in callbacks.callbacks:
        # A new list, since the caller iterates over the old one.
        callbacks.callbacks = [callback, *(other for other in callbacks.callbacks if other is not callback)]
