"""The ring: slots of shared memory that workers fill and the trainer reads; the only module that knows shared memory.

The parent creates the segment and owns it. Its name is gone before the constructor returns, so that nobody's death can leave
one behind; workers map it through the descriptor they inherit.

What the trainer gets are leases: arrays whose common owner is told of the death of the last view, in whatever hands. The
memory itself is unmapped when neither ring nor views are left, so views outlive `Ring.close`.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import sys
import weakref
from collections import deque
from multiprocessing.shared_memory import SharedMemory

import numpy as np

from shmgen._layout import Layout


class Ring:
    """``slots`` slots of one shared-memory segment.

    Args:
        layout: what lies in a slot.
        slots: how many there are at first.

    Attributes:
        fd: descriptor of the segment, to be inherited by workers.
        memory: the segment as the parent sees it; empty once closed.

    Raises:
        OSError: the segment's pages can't be had (``ENOSPC`` where ``/dev/shm`` is too small).
    """

    def __init__(self, layout: Layout, slots: int) -> None:
        self.layout = layout
        self.memory = memoryview(b"")
        self.fd = -1
        self._slot_type = ctypes.c_char * layout.slot_bytes
        self._arrays: dict[int, tuple[np.ndarray, ...]] = {}
        self._leases: dict[int, _Lease] = {}
        self._released: deque[_Lease] = deque()
        self.fd = _nameless_segment(slots * layout.slot_bytes)
        try:
            self._extend(slots)
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> int:
        """Where the mapping begins in this process."""
        return ctypes.addressof(self._owner(0))

    def grow(self) -> None:
        """Add a slot. Workers see it when a task reaches beyond what they have mapped."""
        self._extend(1)

    def _extend(self, slots: int) -> None:
        size = len(self.memory) + slots * self.layout.slot_bytes
        # Without this a segment larger than what /dev/shm has left is granted, and dies of SIGBUS at the first touch.
        try:
            os.posix_fallocate(self.fd, 0, size)
        except OSError as error:
            free = shutil.disk_usage("/dev/shm").free
            raise OSError(
                error.errno,
                f"{size:,} bytes of shared memory are needed, for {size // self.layout.slot_bytes} slots of a batch each, and "
                f"/dev/shm has {free:,} left: use fewer slots or a smaller batch_size, or enlarge /dev/shm ({error.strerror})",
            ) from None
        self._arrays.clear()
        self.memory = memoryview(mmap.mmap(self.fd, size))

    def arrays(self, slot: int) -> tuple[np.ndarray, ...]:
        """The slot's arrays, whole, for its owner to fill or copy; no lease."""
        if slot not in self._arrays:
            self._arrays[slot] = self.layout.arrays(self._owner(slot), self.layout.batch_size)
        return self._arrays[slot]

    def lease(self, slot: int, rows: int) -> tuple[np.ndarray, ...]:
        """The slot's arrays, on loan: `released` names the slot once the last view of them has gone."""
        owner = self._owner(slot)
        # The callback runs on any thread, inside any allocation, even while that thread holds a lock of ours, so it does no more
        # than append. And it is no Python code, in which an interrupt could strike: of a callback's, nobody would hear.
        lease = self._leases[slot] = _Lease(owner, self._released.append)
        lease.slot = slot
        return self.layout.arrays(owner, rows)

    def released(self) -> list[int]:
        """Slots whose last view has gone since the last call."""
        slots = []
        while self._released:
            slot = self._released.popleft().slot
            del self._leases[slot]
            slots.append(slot)
        return slots

    def _owner(self, slot: int) -> ctypes.Array[ctypes.c_char]:
        # Of all that can own an ndarray's memory on Python 3.11, only an object like this lives exactly as long as the last view:
        # NumPy replaces an ndarray or a memoryview by what lies beneath it. And it exports the mapping, which keeps it mapped.
        return self._slot_type.from_buffer(self.memory, slot * self.layout.slot_bytes)

    def close(self) -> None:
        """Give up descriptor and memory; what views still show stays mapped until they are gone."""
        self._arrays.clear()
        self.memory = memoryview(b"")
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class _Lease(weakref.ref[ctypes.Array[ctypes.c_char]]):
    """What is left of a lease when its last view has gone."""

    slot: int


def _nameless_segment(size: int) -> int:
    """Descriptor of a new shared-memory segment whose name is gone already."""
    # The resource tracker guards names; ours lives for two calls, and a tracker is a process more.
    if sys.version_info >= (3, 13):
        segment = SharedMemory(create=True, size=size, track=False)
    else:
        segment = SharedMemory(create=True, size=size)
    try:
        return os.dup(segment._fd)  # type: ignore[attr-defined]
    finally:
        segment.unlink()
        segment.close()
