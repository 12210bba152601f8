"""A `Sequence` that tells where its batches lie, for tests of what is not copied."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from shmgen import Sequence


class Noting(Sequence):
    """Notes where the arrays lie that it hands out."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.handed_out: set[int] = set()

    def __getitem__(self, index: int) -> Any:
        batch = super().__getitem__(index)
        self.handed_out.update(array.ctypes.data for array in tf.nest.flatten(batch))
        return batch
