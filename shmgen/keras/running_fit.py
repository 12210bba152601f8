"""`RunningFit`: the ``fit`` that calls a callback, for the callback to look at and to change."""

from __future__ import annotations

from collections.abc import Iterator
from types import FrameType
from typing import Any

import keras

from shmgen.errors import InputError
from shmgen.keras.frames import running, variable


class RunningFit:
    """The ``fit`` that is under way, its callbacks, the `keras.utils.PyDataset` that it trains on, and its ``validation_data``.

    Keras gives callbacks no way to begin in the middle of an epoch, or to see each other. So this looks at the variables of
    ``fit``, and at the counters of its `EpochIterator`.
    """

    def __init__(self, callbacks: Any, iterator: Any, validation: Any) -> None:
        self.callbacks = callbacks
        self.validation = validation
        self._iterator = iterator
        self.data = getattr(iterator.data_adapter, "py_dataset", None)

    @classmethod
    def find(cls, frame: FrameType) -> RunningFit:
        """The ``fit`` that has called the function with this frame, ``on_train_begin`` of a callback.

        Raises:
            InputError: no ``fit`` has called it.
        """
        iterator, caller = running(frame)
        if caller is not None and hasattr(iterator, "_enumerate_iterator"):
            return cls(variable(caller, "callbacks"), iterator, variable(caller, "validation_data"))
        raise InputError(
            f"Resume: expected to be called by fit() of Keras 3.8 to 3.15, found Keras {keras.__version__} or a loop of yours; "
            "there, save Sequence.state_dict() beside the weights"
        )

    @property
    def batches(self) -> int:
        """Batches in a pass over the data."""
        return int(self._iterator._num_batches)

    @property
    def position(self) -> int:
        """In ``on_train_batch_end``: batches of the present pass that were trained on, also before it was resumed."""
        return min(int(self._iterator._steps_seen), self.batches)

    @property
    def steps_per_epoch(self) -> int | None:
        """As given to ``fit``."""
        steps = self._iterator.steps_per_epoch
        return None if steps is None else int(steps)

    @property
    def steps(self) -> int:
        """Steps in an epoch of Keras's."""
        return self.steps_per_epoch or self.batches

    @property
    def steps_per_execution(self) -> int:
        """As given to ``compile``."""
        return int(self._iterator.steps_per_execution)

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
