"""The front end for Keras's backend: how it takes batches without a copy, and lets go of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import keras
import numpy as np

from shmgen._engine.front_end import NO_FRAMEWORK, FrontEnd, map_arrays
from shmgen.keras.iterations import is_keras, variable

SAME_IN_TORCH = {
    *("bool", "uint8", "int8", "int16", "int32", "int64"),
    *("bfloat16", "float16", "float32", "float64", "complex64", "complex128"),
}
"""Dtypes of arrays that Keras makes tensors of the same dtype of. It has others for the rest, as int32 for uint16."""


class _TensorFlow(FrontEnd):
    """TensorFlow aliases a batch's arrays as they are, since they are aligned."""

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

GetT = TypeVar("GetT", bound=Callable[..., Any])


def hands_over(get: GetT) -> GetT:
    """Have ``get``, a ``__getitem__``, give batches to Keras as its backend takes them, and NumPy's arrays to everyone else."""
    if type(FRONT_END).hand_over is FrontEnd.hand_over:
        return get

    @wraps(get)
    def get_and_hand_over(self: Any, index: int) -> Any:
        batch = get(self, index)
        caller = sys._getframe(1)
        if not is_keras(caller):
            return batch
        if type(batch) is tuple and getattr(variable(caller, "self"), "class_weight", None) is not None:
            return (FRONT_END.hand_over(batch[0]), *batch[1:])  # Keras makes weights of the labels, with NumPy
        return FRONT_END.hand_over(batch)

    return cast(GetT, get_and_hand_over)
