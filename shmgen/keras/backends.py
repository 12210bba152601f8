"""The front end for each of Keras's backends: how it takes batches without a copy, and lets go of them."""

from __future__ import annotations

import keras

from shmgen._engine.front_end import NO_FRAMEWORK, FrontEnd


def front_end() -> FrontEnd:
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
