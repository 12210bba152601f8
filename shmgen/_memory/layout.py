"""The arrays of a batch, and where each is in a slot: names, dtypes, shapes, aligned offsets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

ALIGNMENT = 64
"""Bytes. TensorFlow and JAX alias an array that begins at a multiple of this, and copy any other."""

PAGE = 4096

Arrays = tuple[np.ndarray, ...]
"""The arrays of a batch, one for each field."""


@dataclass(frozen=True)
class Field:
    """One array of a batch.

    Attributes:
        name: what the field is called in errors.
        shape: shape of one sample's row, without the batch axis.
        dtype: native byte order; no objects.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Layout:
    """Divides a slot into the arrays of a batch of up to ``batch_size`` rows.

    Attributes:
        fields: the arrays, in the order in which a batch holds them.
        offsets: where each begins in its slot, in bytes; multiples of `ALIGNMENT`.
        slot_bytes: size of a slot, a multiple of the page size.
    """

    def __init__(self, fields: tuple[Field, ...], batch_size: int) -> None:
        self.fields = fields
        self.batch_size = batch_size
        offsets = []
        end = 0
        for field in fields:
            offsets.append(end)
            end += _round_up(batch_size * field.row_bytes, ALIGNMENT)
        self.offsets = tuple(offsets)
        self.slot_bytes = _round_up(end, PAGE)
        self.sample_bytes = sum(field.row_bytes for field in fields)
        self._arrays = [(field.shape, field.dtype, offset) for field, offset in zip(fields, offsets, strict=True)]

    def arrays(self, buffer: object, rows: int) -> Arrays:
        """The first ``rows`` rows of every field, as views of ``buffer``, which is one slot.

        They keep ``buffer`` itself alive, through slices and views of them too.
        """
        return tuple(
            [np.ndarray((rows, *shape), dtype, buffer, offset) for shape, dtype, offset in self._arrays]  # type: ignore[arg-type]
        )

    def copies(self, arrays: Arrays, rows: int) -> Arrays:
        """Copies of the first ``rows`` rows of ``arrays``, in new memory, aligned as in a slot."""
        memory = np.empty(self.slot_bytes + ALIGNMENT, np.uint8)  # NumPy aligns by 16 bytes only
        copies = self.arrays(memory[-memory.ctypes.data % ALIGNMENT :], rows)
        for copy, array in zip(copies, arrays, strict=True):
            copy[...] = array[:rows]
        return copies


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
