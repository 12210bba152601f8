"""`Sequence`: what ``model.fit`` takes; the only module that imports Keras."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras

from shmgen._damage import Damaged
from shmgen._loader import Loader, Stats

if TYPE_CHECKING:
    from typing import Self


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

    __init__.__signature__ = inspect.signature(Loader.__init__)  # type: ignore[attr-defined]

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._loader)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """``(X, y)``, or ``(X,)`` without labels; `shmgen.Loader` says of what shapes, dtypes and nesting.

        Raises:
            SampleError: a file can't be read. From within ``fit`` on TensorFlow, it is in the text of TensorFlow's own.
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

    def close(self) -> None:
        """End the workers and give up the memory; see `shmgen.Loader.close`."""
        self._loader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return repr(self._loader).replace("Loader", type(self).__name__, 1)


def _drain() -> Callable[[], object] | None:
    """What makes the backend let go of batches that it no longer needs."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    # A tensor that aliases a batch is only queued for release when it dies; the death of an eager one empties the queue.
    return lambda: tf.constant(0)
