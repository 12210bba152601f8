"""`Sequence`: what ``model.fit`` takes; the only module that imports Keras."""

from __future__ import annotations

import inspect
import logging
import sys
import time
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from itertools import islice, takewhile
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

import keras

from shmgen._checks import Fixed, check_index
from shmgen._engine.front_end import NO_FRAMEWORK, FrontEnd
from shmgen._engine.state import LoaderState
from shmgen._plan.damage import Damaged
from shmgen._plan.passes import Pass
from shmgen._plan.stats import Stats
from shmgen.errors import InputError
from shmgen.loader import NO_COPY, Loader
from shmgen.options import Options, init_from

if TYPE_CHECKING:
    from typing import Self

__all__ = ["DataWait", "Sequence"]

KERAS_QUEUE = 10
"""Keras's default for ``max_queue_size``."""

MAX_ITERATIONS = 16
"""Iterations over one object that are told apart; with more, the oldest is forgotten."""

log = logging.getLogger("shmgen")


class _KerasOption:
    """An attribute that Keras's users set on the object. Here it changes nothing, which is logged once."""

    def __init__(self, value: int) -> None:
        self._value = value

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> int:
        return self._value

    def __set__(self, instance: Sequence, value: object) -> None:
        if value != self._value and self._name not in instance._warned:
            instance._warned.add(self._name)
            log.warning(
                "%s = %r changes nothing, since batches are read by shmgen's own workers; pass workers= to the constructor",
                self._name,
                value,
            )


@dataclass(frozen=True, eq=False, repr=False)
class SequenceOptions(Options):
    """The arguments of a `Sequence`.

    Args:
        use_multiprocessing: accepted for Keras's sake: True if ``workers`` are processes, as they are here; or left out.
        max_queue_size: accepted for Keras's sake: the batches that may be read ahead, no more than ``slots``; or left out.
    """

    _: KW_ONLY
    use_multiprocessing: bool | None = None
    max_queue_size: int | None = None

    def __post_init__(self) -> None:
        if self.use_multiprocessing and self.workers == 0:
            raise InputError("use_multiprocessing=True asks for processes, and workers=0 for none: leave one of them out")
        if self.max_queue_size not in (None, KERAS_QUEUE, self.slots):
            raise InputError(
                f"max_queue_size={self.max_queue_size!r}: batches are read ahead into slots: leave max_queue_size out, "
                f"or pass slots={self.max_queue_size!r} in its place"
            )
        super().__post_init__()


class Sequence(keras.utils.Sequence):  # type: ignore[misc]
    """A `shmgen.Loader` that ``fit``, ``evaluate`` and ``predict`` take.

    Each iteration, Keras's or a ``for`` loop, is a pass of its own. It gets the next epoch, even if the last pass was left early.
    With ``shuffle=True`` a pass deals every sample exactly once, in an order that depends on ``seed`` and the epoch alone,
    whatever order Keras requests its batches in. With ``shuffle=False``, ``sequence[i]`` is batch i.

    ``sequence[i]`` outside of an iteration is a look at the next epoch, until `on_epoch_end` says that it was used.

    The arguments are described at ``__init__``. ``workers`` is the loader's, not Keras's. A subclass may override ``__len__``,
    for shorter passes, and ``__getitem__``.

    Examples:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((4, 3)), keras.layers.Flatten(), keras.layers.Dense(4)])
        >>> model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> with Sequence(ids, labels, batch_size=4) as training:
        ...     history = model.fit(training, epochs=2, verbose=0)
        >>> len(history.history["loss"])
        2
    """

    @init_from(SequenceOptions)
    def __init__(self, options: SequenceOptions) -> None:
        """Start the workers, and begin to read ahead."""
        super().__init__()
        self._warned: set[str] = set()
        self._loader = Loader.from_options(options, _front_end())
        self._iterations = _Iterations(self._loader)
        _in_use.add(self)

    list_IDs = Fixed[Any](lambda sequence: sequence._loader.list_IDs)
    labels = Fixed[Any](lambda sequence: sequence._loader.labels)
    batch_size = Fixed[int](lambda sequence: sequence._loader.batch_size)
    dim = Fixed["tuple[int, ...] | None"](lambda sequence: sequence._loader.dim)
    n_channels = Fixed["int | None"](lambda sequence: sequence._loader.n_channels)
    n_classes = Fixed["int | None"](lambda sequence: sequence._loader.n_classes)
    classes = Fixed[Any](lambda sequence: sequence._loader.classes)
    shuffle = Fixed[bool](lambda sequence: sequence._loader.shuffle)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._loader)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """``(X, y)``, or ``(X,)`` without labels; see `shmgen.Loader` for shapes, dtypes and nesting.

        Raises:
            IndexError: there is no batch of this index.
            SampleError: a file can't be read. ``fit`` on TensorFlow raises TensorFlow's own error, whose text contains this one.
                It is also in the log, and in `error`.
        """
        return self._loader.batch(check_index(index, len(self)), self._iterations.find(sys._getframe(1)))

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """The batches of the next epoch. The epoch begins with the first request."""
        for index in range(self.num_batches):
            yield self[index]

    @property
    def num_batches(self) -> int:
        """Batches in an epoch, as ``len``. Each iteration reads it when it begins."""
        forwarding, caller = _caller_behind("num_batches")
        if caller.f_code.co_flags & inspect.CO_GENERATOR:
            self._iterations.begin(caller, by_hand=caller.f_code is Sequence.__iter__.__code__)
        elif any(map(_is_keras, forwarding)):
            self._iterations.on_read()
            if any(frame.f_code.co_name == "predict" and _is_keras(frame) for frame in _stack(caller)):
                self._warn_of_predict()
        return len(self)

    def on_epoch_begin(self) -> None:
        """Does nothing: an epoch begins when its first batch is requested."""

    def on_epoch_end(self) -> None:
        """The batches from ``sequence[i]`` were used: the next one belongs to the next epoch. Keras may call this at any time."""
        _, caller = _caller_behind("on_epoch_end")
        self._iterations.end(by_keras=_is_keras(caller))

    def _warn_of_predict(self) -> None:
        if self.shuffle:
            self._warn_once(
                "predict over a Sequence with shuffle=True returns rows in the order of that pass, not in that of list_IDs: "
                "make a Sequence with shuffle=False for it"
            )
        lost = len(self.list_IDs) - self.batch_size * len(self._loader)
        if lost > 0:
            self._warn_once(
                f"predict leaves out {lost:,} of {len(self.list_IDs):,} samples, which fill no batch of {self.batch_size}: "
                "make a Sequence with drop_last=False for it"
            )

    def _warn_once(self, what: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(what, stacklevel=2)

    # With other values, Keras would copy every batch through a pool of its own.
    workers = _KerasOption(1)
    use_multiprocessing = _KerasOption(False)
    max_queue_size = _KerasOption(KERAS_QUEUE)

    @property
    def stats(self) -> Stats:
        """What has been done so far."""
        return self._loader.stats

    @property
    def state(self) -> LoaderState:
        """What it is doing at this moment; see `shmgen.Loader.state`."""
        return self._loader.state

    @property
    def damaged(self) -> tuple[Damaged, ...]:
        """The samples that could not be read and were replaced by others; see `shmgen.Loader.damaged`."""
        return self._loader.damaged

    @property
    def error(self) -> Exception | None:
        """The last error of a request for a batch, whatever the backend made of it; None if there was none."""
        return self._loader.error

    def close(self) -> None:
        """End the workers and release the memory; see `shmgen.Loader.close`."""
        self._loader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(NO_COPY.format(type(self).__name__))

    def __repr__(self) -> str:
        return repr(self._loader).replace("Loader", type(self).__name__, 1)


class _Iterations:
    """Finds the iteration that a request belongs to, and tells iterations from mere looks at the data.

    An iteration, Keras's or that of a ``for`` loop, is a generator that reads ``num_batches`` when it begins, and then requests
    batches. It is recognised by its frame, in any thread. So an iteration that was left early, but for which TensorFlow still
    requests batches ahead, takes none from the next one.

    Keras looks at a batch or two before it trains: on TensorFlow outside of an iteration, on JAX and torch in one. Then it resets
    its `EpochIterator`, which reads ``num_batches`` through its adapter, and calls ``on_epoch_end``. So an iteration that is
    reset before it has ended was a look, unless another `EpochIterator` was made meanwhile: that reads the number too.
    """

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        # By the id of the generator's frame. If another frame gets the id of one that is gone, it runs other code, or begins.
        self._passes: dict[int, tuple[CodeType, Pass]] = {}
        self._last: Pass | None = None
        # How often an `EpochIterator` has read ``num_batches`` since the last iteration began or ended.
        self._reads = 0
        self._seen_keras = False

    def begin(self, frame: FrameType, *, by_hand: bool) -> None:
        """An iteration begins, in the generator with this frame."""
        with self._loader.passes() as passes:
            self._last = passes.open(by_hand=by_hand)
        self._reads = 0
        self._seen_keras = self._seen_keras or not by_hand
        self._passes.pop(id(frame), None)
        self._passes[id(frame)] = frame.f_code, self._last
        if len(self._passes) > MAX_ITERATIONS:
            del self._passes[next(iter(self._passes))]

    def on_read(self) -> None:
        """Keras makes or resets an `EpochIterator`."""
        self._reads += 1
        self._seen_keras = True

    def find(self, frame: FrameType) -> Pass | None:
        """The pass of the iteration in which a batch is requested; None outside of iterations."""
        if self._passes:
            for caller in _stack(frame):
                code, found = self._passes.get(id(caller), (None, None))
                if code is caller.f_code:
                    return found
        return None

    def end(self, *, by_keras: bool) -> None:
        """An epoch has ended, or Keras resets its iterator."""
        # If Keras is hidden by a wrapper of the user's, which forwards only batches and this call, nothing more is known.
        if not (by_keras and self._seen_keras):
            self._loader.on_epoch_end()
        elif self._reads:
            with self._loader.passes() as passes:
                if self._reads == 1 and self._last is not None:
                    passes.take_back(self._last)
                passes.forget()
        self._last = None
        self._reads = 0


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    """``frame``, its caller, the caller's caller, and so on."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def _caller_behind(name: str) -> tuple[list[FrameType], FrameType]:
    """The frames of functions of this ``name`` that forward the call, Keras's or a subclass's, and the frame that called them."""
    forwarding = list(takewhile(lambda frame: frame.f_code.co_name == name, _stack(sys._getframe(2))))
    return forwarding, next(islice(_stack(sys._getframe(2)), len(forwarding), None))


def _is_keras(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] == "keras"


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
            reports = [f"{sequence!r}\n{sequence.stats.report()}" for sequence in list(_in_use) if sequence.stats.batches]
            log.warning(
                "%.0f %% of epoch %d was spent waiting for data\n%s", 100 * self._train.fraction, epoch, "\n".join(reports)
            )


class _WaitTimer:
    """Measures, from now until `stop`, for which fraction of the time callers waited for batches of any sequence."""

    def __init__(self) -> None:
        self.is_stopped = False
        self.fraction = 0.0
        self._start = time.monotonic()
        self._before = weakref.WeakKeyDictionary((sequence, sequence.stats) for sequence in list(_in_use))

    def stop(self) -> None:
        """Stop measuring; later calls change nothing."""
        if not self.is_stopped:
            self.is_stopped = True
            seen = [sequence.stats.since(self._before.get(sequence, Stats())) for sequence in list(_in_use)]
            wait, elapsed = sum(stats.batch_wait + stats.slot_wait for stats in seen), time.monotonic() - self._start
            self.fraction = min(1.0, wait / elapsed) if elapsed else 0.0


_in_use: weakref.WeakSet[Sequence] = weakref.WeakSet()


def _front_end() -> FrontEnd:
    """The front end for Keras's backend."""
    return _TensorFlow() if keras.backend.backend() == "tensorflow" else NO_FRAMEWORK


class _TensorFlow(FrontEnd):
    """TensorFlow aliases a batch's arrays as they are, since they are aligned."""

    def __init__(self) -> None:
        import tensorflow as tf

        self._constant = tf.constant

    def release(self) -> None:
        # When a tensor that aliases a batch dies, its release is only queued. The death of an eager tensor empties the queue.
        self._constant(0)
