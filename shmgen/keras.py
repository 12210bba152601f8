"""`Sequence`: what ``model.fit`` takes; the only module that imports Keras."""

from __future__ import annotations

import inspect
import logging
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras

from shmgen._damage import Damaged
from shmgen._loader import Loader
from shmgen._stats import Stats

if TYPE_CHECKING:
    from typing import Self

log = logging.getLogger("shmgen")


class Sequence(keras.utils.Sequence):  # type: ignore[misc]
    """A `shmgen.Loader` that ``fit``, ``evaluate`` and ``predict`` take; the arguments are the loader's.

    With ``shuffle=True`` a pass deals every sample exactly once, in an order that depends on ``seed`` and the epoch alone,
    whatever order Keras asks for its batches in. With ``shuffle=False``, ``sequence[i]`` is batch i.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Keras would copy every batch through a pool of its own.
        super().__init__(workers=1, use_multiprocessing=False)
        self._loader = Loader(*args, **kwargs)
        self._drain = _drain()
        _in_use.add(self)

    __init__.__signature__ = inspect.signature(Loader.__init__)  # type: ignore[attr-defined]

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._loader)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """``(X, y)``, or ``(X,)`` without labels; `shmgen.Loader` says of what shapes, dtypes and nesting.

        Raises:
            SampleError: a file can't be read. From within ``fit`` on TensorFlow, it is in the text of TensorFlow's own error, in
                the log, and in `error`.
        """
        return self._loader.batch(index, self._drain)

    @property
    def num_batches(self) -> int:
        """Batches in an epoch. Keras asks for this when it begins to iterate, and never amid an iteration."""
        self._loader.begin()
        return len(self._loader)

    def on_epoch_begin(self) -> None:
        """Harmless whenever it is called; begins a new pass only once all batches of the last were asked for."""
        self._loader.epoch_boundary()

    def on_epoch_end(self) -> None:
        """Harmless whenever it is called; begins a new pass only once all batches of the last were asked for."""
        self._loader.epoch_boundary()

    @property
    def stats(self) -> Stats:
        """What has been done so far."""
        return self._loader.stats

    @property
    def damaged(self) -> tuple[Damaged, ...]:
        """The samples that could not be had and for which others stood in; see `shmgen.Loader.damaged`."""
        return self._loader.damaged

    @property
    def error(self) -> Exception | None:
        """The error that a request for a batch last ended in, whatever the backend made of it; None if there was none."""
        return self._loader.error

    def close(self) -> None:
        """End the workers and give up the memory; see `shmgen.Loader.close`."""
        self._loader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return repr(self._loader).replace("Loader", type(self).__name__, 1)


class DataWait(keras.callbacks.Callback):  # type: ignore[misc]
    """Puts ``data_wait`` into the logs of every epoch, and ``val_data_wait`` where there is a validation.

    It is the fraction of the time in which a batch of any `Sequence` had been asked for and was not there, from 0 to 1.
    TensorFlow asks ahead, so the trainer itself may have waited for less. It stands in ``History`` and the progress bar, and in
    what comes after it in the list of callbacks: ``callbacks=[DataWait(), CSVLogger("log.csv")]``.

    Args:
        warn_above: says once, in the log, when the trainer waits for more than this fraction of an epoch, and what may help.
    """

    def __init__(self, warn_above: float = 0.2) -> None:
        super().__init__()
        self._warn_above = warn_above
        self._warned = False
        self._train = self._validation = _Watch()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._train = _Watch()
        self._validation = _Watch()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._train.pause()
        self._validation = _Watch()

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        self._validation.pause()
        if logs is not None:
            logs["data_wait"] = self._validation.fraction

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._train.pause()
        if logs is not None:
            logs["data_wait"] = self._train.fraction
            if self._validation.is_paused:
                logs["val_data_wait"] = self._validation.fraction
        if self._train.fraction > self._warn_above and not self._warned:
            self._warned = True
            reports = [f"{sequence!r}\n{sequence.stats.report()}" for sequence in list(_in_use) if sequence.stats.batches]
            log.warning(
                "%.0f %% of epoch %d was spent waiting for data\n%s", 100 * self._train.fraction, epoch, "\n".join(reports)
            )


class _Watch:
    """The time that is spent from now until `pause`, and how much of it all sequences together make their callers wait."""

    def __init__(self) -> None:
        self.is_paused = False
        self.fraction = 0.0
        self._start = time.monotonic()
        self._waited = self._now()

    def pause(self) -> None:
        """Take the time; later calls change nothing."""
        if not self.is_paused:
            self.is_paused = True
            waited, elapsed = self._now() - self._waited, time.monotonic() - self._start
            self.fraction = min(1.0, max(0.0, waited / elapsed)) if elapsed else 0.0

    @staticmethod
    def _now() -> float:
        return sum(stats.waited + stats.held_up for stats in (sequence.stats for sequence in list(_in_use)))


_in_use: weakref.WeakSet[Sequence] = weakref.WeakSet()


def _drain() -> Callable[[], object] | None:
    """What makes the backend let go of batches that it no longer needs."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    # A tensor that aliases a batch is only queued for release when it dies; the death of an eager one empties the queue.
    return lambda: tf.constant(0)
