"""`RunningFit`: the ``fit`` that calls a callback, for the callback to look at and to change."""

from __future__ import annotations

from collections.abc import Iterator
from types import FrameType
from typing import Any

import keras

from shmgen.errors import InputError
from shmgen.keras.frames import running, variable


class RunningFit:
    """The ``fit`` that has called the function with a frame, ``on_train_begin`` of a callback.

    Keras gives callbacks no way to begin in the middle of an epoch, or to see each other. So this looks at the variables of
    ``fit``, and at the counters of its `EpochIterator`.

    Attributes:
        callbacks: the `keras.callbacks.CallbackList`.
        data: the `keras.utils.PyDataset` that it trains on; None for other data.
        validation: its ``validation_data``, or None.
        batches: in a pass over the data.
        steps_per_epoch: as given to ``fit``.
        steps: in an epoch of Keras's.
        steps_per_execution: as given to ``compile``.

    Raises:
        InputError: no ``fit`` has called it.
    """

    def __init__(self, frame: FrameType) -> None:
        found: Any = running(frame)
        iterator, caller = found
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
        """Let the first epoch begin with this step, behind ``position`` batches of the pass that were trained on before.

        Steps keep their numbers, for all callbacks.
        """
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
