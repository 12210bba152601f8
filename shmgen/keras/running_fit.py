"""The ``fit`` that led to a call: its local variables, which Keras passes to no data set and no callback; and `RunningFit`, which
has it begin in the middle of an epoch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import FrameType
from typing import Any, cast

import keras
from keras.src.trainers.epoch_iterator import EpochIterator

from shmgen.errors import InputError


def stack(frame: FrameType | None) -> Iterator[FrameType]:
    """``frame``, its caller, the caller's caller, and so on."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def variable(frame: FrameType, name: str) -> Any:
    """The value of a local variable of the function with this frame; None if it has none of this name."""
    if not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
        return None
    local = frame.f_locals
    value = local.get(name)
    if isinstance(local, dict):
        # Up to Python 3.12 this is a copy that the frame keeps: it would hold the batch that ``fit`` had then, long after.
        local.clear()
    return value


def running(frame: FrameType) -> tuple[Any, FrameType] | tuple[None, None]:
    """The `EpochIterator` of the innermost ``fit``, ``evaluate`` or ``predict`` that led to a call, and that method's frame."""
    for caller in stack(frame):
        iterator = variable(caller, "epoch_iterator")
        if isinstance(iterator, EpochIterator):
            return iterator, caller
    return None, None


class RunningFit:
    """The ``fit`` that has called the function with a frame, ``on_train_begin`` of a callback.

    Keras gives callbacks no way to begin in the middle of an epoch, or to see each other. So this looks at the variables of
    ``fit``, and at the counters of its `EpochIterator`. ``batches`` are those of a pass, ``steps`` those of Keras's epoch.
    """

    def __init__(self, frame: FrameType) -> None:
        iterator, caller = cast("tuple[Any, Any]", running(frame))
        if caller is None or not hasattr(iterator, "_enumerate_iterator"):
            raise InputError(
                f"Resume: expected to be called by fit() of Keras 3.8 to 3.15, found Keras {keras.__version__} or a loop of "
                "yours; there, save Sequence.state_dict() beside the weights"
            )
        self._iterator = iterator
        self.callbacks = variable(caller, "callbacks")
        self.data = getattr(iterator.data_adapter, "py_dataset", None)
        self.validation = variable(caller, "validation_data")
        self.batches = int(iterator._num_batches)
        steps = iterator.steps_per_epoch
        self.steps_per_epoch = None if steps is None else int(steps)
        self.steps = self.steps_per_epoch or self.batches
        self.steps_per_execution = int(iterator.steps_per_execution)

    @property
    def position(self) -> int:
        """In ``on_train_batch_end``: batches of the present pass that were trained on, also before it was resumed."""
        return min(int(self._iterator._steps_seen), self.batches)

    def put_last(self, callback: Any) -> None:
        """Have ``callback`` called after all others. In the round of calls that is under way, each is still called once."""
        others = [other for other in self.callbacks.callbacks if other is not callback]
        self.callbacks.callbacks = [*others, callback]

    def begin_at(self, step: int, position: int) -> None:
        """Let the first epoch begin with this step, behind ``position`` batches of the pass; all steps keep their numbers."""
        iterator = self._iterator
        enumerate_epoch = iterator._enumerate_iterator

        def enumerate_rest() -> Iterator[tuple[Any, ...]]:
            del iterator._enumerate_iterator
            given = iterator.steps_per_epoch
            # The generator reads the number of steps once, at its beginning.
            iterator.steps_per_epoch = self.steps - step
            for count, (*numbers, data) in enumerate(enumerate_epoch()):
                if count == 0:
                    iterator.steps_per_epoch = given
                    iterator._steps_seen += position
                yield (*(number + step for number in numbers), data)

        iterator._enumerate_iterator = enumerate_rest
