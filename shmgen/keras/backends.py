"""The front end for Keras's backend: how it takes batches without a copy, and lets go of them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from shmgen._engine.front_end import NO_FRAMEWORK, FrontEnd, map_arrays

SAME_IN_TORCH = {
    *("bool", "uint8", "int8", "int16", "int32", "int64"),
    *("bfloat16", "float16", "float32", "float64", "complex64", "complex128"),
}
"""Dtypes of arrays that Keras makes tensors of the same dtype of. It has others for the rest, as int32 for uint16."""


class _TensorFlow(FrontEnd):
    """TensorFlow aliases a batch's arrays as they are, since they are aligned. It makes text of an UnknownError of exceptions."""

    hides_errors = True

    def __init__(self) -> None:
        import tensorflow as tf

        self._constant = tf.constant

    def release(self) -> None:
        # When a tensor that aliases a batch dies, its release is only queued. The death of an eager tensor empties the queue.
        self._constant(0)


class _Torch(FrontEnd):
    """Keras makes a copy of every array, and takes tensors as they are."""

    def __init__(self) -> None:
        from shmgen.torch import as_tensor

        self._as_tensor = as_tensor

    def hand_over(self, batch: Any) -> Any:
        return map_arrays(self._convert, batch)

    def _convert(self, array: np.ndarray) -> Any:
        # A subclass may return any array, also one that torch can't share.
        flags = array.flags
        is_shared = array.dtype.name in SAME_IN_TORCH and array.dtype.isnative and flags.c_contiguous and flags.writeable
        return self._as_tensor(array) if is_shared else array


def _front_end() -> FrontEnd:
    # JAX, on the CPU, reads arrays where they are, and lets go of them when garbage is collected.
    return {"tensorflow": _TensorFlow, "torch": _Torch}.get(keras.backend.backend(), lambda: NO_FRAMEWORK)()


FRONT_END = _front_end()
"""For the backend that Keras has in this process."""
