"""Slots of shared memory: aligned, nameless, and leased for exactly as long as anybody sees them."""

from __future__ import annotations

import gc
import itertools
import mmap
import os
from collections.abc import Callable

import numpy as np
import pytest
from leftovers import names

from shmgen._layout import ALIGNMENT, Field, Layout
from shmgen._ring import BOARD_BYTES, Ring

FIELDS = (Field("X", (3, 5), np.dtype(np.float32)), Field("y", (), np.dtype(np.int64)), Field("w", (7,), np.dtype(np.uint8)))


def make_ring(slots: int = 2, rows: int = 4) -> Ring:
    return Ring(Layout(FIELDS, rows), slots)


def test_arrays_are_aligned_contiguous_and_apart() -> None:
    """Every field of every slot begins at a multiple of 64 bytes, is contiguous and of its dtype, and overlaps no other."""
    ring = make_ring(slots=3)
    arrays = [array for slot in range(3) for array in ring.lease(slot, 4)]
    for array, field in zip(arrays, FIELDS * 3, strict=True):
        assert array.ctypes.data % ALIGNMENT == 0
        assert array.flags.c_contiguous
        assert (array.dtype, array.shape) == (field.dtype, (4, *field.shape))
        assert ring.address <= array.ctypes.data < ring.address + len(ring.memory)
    spans = sorted((array.ctypes.data, array.ctypes.data + array.nbytes) for array in arrays)
    assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(spans))
    del arrays, array
    ring.close()


def test_a_shorter_batch_is_a_prefix() -> None:
    """The last batch of an epoch has fewer rows, and begins where the others do."""
    ring = make_ring()
    whole, short = ring.lease(0, 4), ring.lease(0, 3)
    assert [array.shape[0] for array in short] == [3, 3, 3]
    assert [array.ctypes.data for array in short] == [array.ctypes.data for array in whole]
    del whole, short
    ring.close()


@pytest.mark.parametrize("view", [
    pytest.param(lambda array: array, id="array"),
    pytest.param(lambda array: array[1:2], id="slice"),
    pytest.param(lambda array: array[1:][:, 1:][..., ::2], id="slice-of-slice"),
    pytest.param(lambda array: array.reshape(-1), id="reshape"),
    pytest.param(lambda array: array.T, id="transpose"),
    pytest.param(np.asarray, id="asarray"),
    pytest.param(lambda array: array.view(np.uint8), id="view"),
    pytest.param(memoryview, id="memoryview"),
    pytest.param(lambda array: np.frombuffer(memoryview(array), np.uint8), id="frombuffer"),
    pytest.param(np.from_dlpack, id="dlpack"),
    pytest.param(lambda array: np.lib.stride_tricks.as_strided(array, (2, 2)), id="as_strided"),
    pytest.param(lambda array: array.flat, id="flatiter"),
])  # fmt: skip
@pytest.mark.parametrize("field", [0, 2])
def test_a_slot_is_free_when_the_last_view_is_gone(field: int, view: Callable[[np.ndarray], object]) -> None:
    """Any kind of view of any field keeps the slot, and its end frees it at once."""
    ring = make_ring()
    arrays = ring.lease(1, 4)
    seen = view(arrays[field])
    del arrays
    assert ring.released() == []
    del seen
    assert ring.released() == [1]
    assert ring.released() == []
    ring.close()


def test_a_view_in_a_cycle_keeps_its_slot_until_collected() -> None:
    """A lease ends by collection, too."""
    ring = make_ring()
    gc.disable()
    try:
        cycle: list[object] = [ring.lease(0, 4)]
        cycle.append(cycle)
        del cycle
        assert ring.released() == []
        gc.collect()
        assert ring.released() == [0]
    finally:
        gc.enable()
    ring.close()


def test_views_outlive_the_ring() -> None:
    """What was handed out stays readable and writable after `close`, and after the ring itself is gone."""
    ring = make_ring()
    x, y, w = ring.lease(0, 4)
    x[:], y[:], w[:] = 1.5, 7, 3
    ring.close()
    del ring
    gc.collect()
    assert (x == 1.5).all()
    assert (y == 7).all()
    x[0] = 2
    del x, y
    assert (w == 3).all()


def test_memory_is_unmapped_with_the_last_view() -> None:
    """Closed and let go of, the segment takes no memory."""
    ring = make_ring()
    arrays = ring.lease(0, 4)
    start = ring.address
    ring.close()
    assert is_mapped(start)
    del arrays
    assert not is_mapped(start)


def is_mapped(address: int) -> bool:
    with open("/proc/self/maps") as maps:
        return any(line.startswith(f"{address:x}-") for line in maps)


def test_a_ring_has_no_name() -> None:
    """From the moment it exists, there is nothing in /dev/shm that anybody's death could leave behind."""
    ring = make_ring()
    assert not names()
    ring.close()


def test_a_ring_is_its_owners_alone() -> None:
    """Nobody else may read a user's data."""
    ring = make_ring()
    assert os.fstat(ring.fd).st_mode & 0o077 == 0
    ring.close()


def test_pages_are_reserved() -> None:
    """Memory is had before it is handed out, so that no later touch can fail."""
    ring = Ring(Layout((Field("X", (1000,), np.dtype(np.float64)),), 100), 2)
    assert os.fstat(ring.fd).st_blocks * 512 >= len(ring.memory) >= 2 * 800_000
    ring.close()


def test_growing_keeps_what_is_there() -> None:
    """A ring that grows keeps the contents of its slots, and the leases of before; others see the same memory."""
    ring = make_ring(slots=2)
    x = ring.lease(0, 4)[0]
    x[:] = 4
    ring.grow()
    spare = ring.arrays(2)[0]
    spare[:] = 5
    assert (x == 4).all()
    with mmap.mmap(ring.fd, 0) as other:
        assert np.frombuffer(other, np.float32, 1, BOARD_BYTES)[0] == 4
        assert np.frombuffer(other, np.float32, 1, BOARD_BYTES + 2 * ring.layout.slot_bytes)[0] == 5
    del x
    assert ring.released() == [0]
    del spare
    ring.close()


def test_close_may_be_called_again() -> None:
    """Closing twice closes nobody else's descriptor."""
    ring = make_ring()
    ring.close()
    other = os.open("/dev/null", os.O_RDONLY)
    ring.close()
    os.fstat(other)
    os.close(other)
