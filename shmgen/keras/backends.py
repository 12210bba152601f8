"""The front end for Keras's backend, which takes batches without a copy, and releases them."""

from __future__ import annotations

import atexit
import signal
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

from shmgen._engine.front_end import FrontEnd, map_arrays
from shmgen.keras.iterations import in_use
from shmgen.keras.running_fit import stack

SAME_IN_TORCH = {
    *("bool", "uint8", "int8", "int16", "int32", "int64"),
    *("bfloat16", "float16", "float32", "float64", "complex64", "complex128"),
}
"""Dtypes that Keras keeps when it makes tensors of arrays. It converts others, such as uint16 to int32."""


class _TensorFlow(FrontEnd):
    """TensorFlow aliases a batch's arrays, since they are aligned. It turns an exception into the text of an UnknownError."""

    hides_errors = True

    def __init__(self) -> None:
        atexit.register(_end_requests)

    def release(self) -> None:
        import tensorflow as tf

        # When a tensor that aliases a batch is deleted, its release is only queued. Deleting an eager tensor empties the queue.
        tf.constant(0)


class _Jax(FrontEnd):
    """JAX, on the CPU, reads arrays where they are, and releases them when garbage is collected."""

    def hand_over(self, batch: Any) -> Any:
        from shmgen.jax import checked

        return map_arrays(checked, batch)


class _Torch(FrontEnd):
    """Keras makes a copy of every array, and takes tensors as they are."""

    def hand_over(self, batch: Any) -> Any:
        return map_arrays(self._convert, batch)

    def _convert(self, array: np.ndarray) -> Any:
        from shmgen.torch import as_tensor

        # A subclass of Sequence may return any array, also one that torch can't share.
        flags = array.flags
        is_shared = array.dtype.name in SAME_IN_TORCH and array.dtype.isnative and flags.c_contiguous and flags.writeable
        return as_tensor(array) if is_shared else array


def _end_requests() -> None:
    """Close all sequences, and wait at most 5 seconds until TensorFlow has called Python for the last time.

    If it has a thread in Python when the interpreter ends, that never returns, and TensorFlow waits for it for ever. After a
    request that fails it calls Python twice more, to learn that this was the last batch; so it must be found at rest ten times.
    """
    for iterations in list(in_use):
        iterations.feed.close()
    until, at_rest = time.monotonic() + 5, 0
    try:
        while at_rest < 10 and time.monotonic() < until:
            time.sleep(0.002)
            at_rest = at_rest + 1 if _is_at_rest() else 0
    except KeyboardInterrupt:  # another Ctrl-C: end at once, as TensorFlow would not let the interpreter end
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)


def _is_at_rest() -> bool:
    """Whether TensorFlow has no thread in Python, and no other thread is ready to run, and so perhaps about to call Python."""
    callers = [list(stack(frame))[-1].f_globals["__name__"] for frame in sys._current_frames().values()]
    try:
        stats = [path.read_text() for path in Path("/proc/self/task").glob("*/stat")]
    except OSError:  # a thread has just ended
        return False
    return "tensorflow.python.ops.script_ops" not in callers and sum(") R " in stat for stat in stats) <= 1


FRONT_END: FrontEnd = {"tensorflow": _TensorFlow, "jax": _Jax, "torch": _Torch}.get(keras.backend.backend(), FrontEnd)()
"""For the backend of Keras in this process."""
