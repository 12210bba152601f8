"""How a slot is divided: the arrays of a batch, then the sheet that tells workers its samples."""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from shmgen._memory.records import SAMPLES

ALIGNMENT = 64
"""Bytes. TensorFlow and JAX alias an array that begins at a multiple of this, and copy any other."""

PAGE = mmap.ALLOCATIONGRANULARITY
"""Bytes. A mapping of a file must begin at a multiple of this."""

BatchArrays = tuple[np.ndarray, ...]
"""The arrays of a batch, one for each field."""


@dataclass(frozen=True)
class Field:
    """One array of a batch."""

    name: str
    shape: tuple[int, ...]  # of one sample's row, without the batch axis
    dtype: np.dtype[np.generic]  # in native byte order; no objects

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Layout:
    """Divides a slot into the arrays of a batch of up to ``batch_size`` rows, one for each field, and its sheet.

    Arrays and sheet begin at multiples of `ALIGNMENT`. ``sample_bytes`` are those of a sample in all arrays.
    """

    def __init__(self, fields: tuple[Field, ...], batch_size: int) -> None:
        self.fields = fields
        self.batch_size = batch_size
        sizes = (_round_up(batch_size * field.row_bytes, ALIGNMENT) for field in fields)
        *self.offsets, self.sheet_offset = accumulate(sizes, initial=0)
        self.slot_bytes = _round_up(self.sheet_offset + (SAMPLES + batch_size) * 8, PAGE)
        self.sample_bytes = sum(field.row_bytes for field in fields)

    def arrays(self, buffer: object, rows: int) -> BatchArrays:
        """The first ``rows`` rows of every field: views of ``buffer``, the memory of a slot, which they keep alive."""
        arrays = []
        for field, offset in zip(self.fields, self.offsets, strict=True):
            arrays.append(np.ndarray((rows, *field.shape), field.dtype, buffer, offset))  # type: ignore[arg-type]
        return tuple(arrays)

    def sheet(self, buffer: object) -> np.ndarray:
        """The sheet of the slot ``buffer``, of dtype int64; its words are those of `shmgen._memory.records`."""
        return np.ndarray(SAMPLES + self.batch_size, np.int64, buffer, self.sheet_offset)  # type: ignore[arg-type]


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
