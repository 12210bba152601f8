"""The front end for Keras's backend, which takes batches without a copy, and releases them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from shmgen._engine.front_end import FrontEnd, map_arrays

SAME_IN_TORCH = {
    *("bool", "uint8", "int8", "int16", "int32", "int64"),
    *("bfloat16", "float16", "float32", "float64", "complex64", "complex128"),
}
"""Dtypes that Keras keeps when it makes tensors of arrays. It converts others, such as uint16 to int32."""


class _TensorFlow(FrontEnd):
    """TensorFlow aliases a batch's arrays, since they are aligned. It turns an exception into the text of an UnknownError."""

    hides_errors = True

    def release(self) -> None:
        import tensorflow as tf

        # When a tensor that aliases a batch is deleted, its release is only queued. Deleting an eager tensor empties the queue.
        tf.constant(0)


class _Torch(FrontEnd):
    """Keras makes a copy of every array, and takes tensors as they are."""

    def __init__(self) -> None:
        from shmgen.torch import as_tensor

        self._as_tensor = as_tensor

    def hand_over(self, batch: Any) -> Any:
        return map_arrays(self._convert, batch)

    def _convert(self, array: np.ndarray) -> Any:
        # A subclass of Sequence may return any array, also one that torch can't share.
        flags = array.flags
        is_shared = array.dtype.name in SAME_IN_TORCH and array.dtype.isnative and flags.c_contiguous and flags.writeable
        return self._as_tensor(array) if is_shared else array


# JAX, on the CPU, reads arrays where they are, and releases them when garbage is collected.
FRONT_END: FrontEnd = {"tensorflow": _TensorFlow, "torch": _Torch}.get(keras.backend.backend(), FrontEnd)()
"""For the backend of Keras in this process."""
