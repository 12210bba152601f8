"""The ring: slots of shared memory that workers fill and the trainer reads.

The main process creates the memory and owns it; see `shmgen._memory.anonymous`. Workers map it through the descriptor that they
inherit. The ring grows at its end; what is mapped stays where it is.

The trainer gets leases: arrays with a common owner, which dies with the last view of them, wherever that is held. The memory is
unmapped when the ring and all views are gone, so views outlive `Ring.close`.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import weakref
from collections import deque

import numpy as np

from shmgen._memory import anonymous
from shmgen._memory.layout import BatchArrays, Layout
from shmgen._memory.limit_errors import most_file_bytes, named, on_file_bytes
from shmgen._memory.limits import available
from shmgen._memory.records import READ_MARK, SAMPLES
from shmgen._memory.segments import Segments

MIN_SLOTS = 2
"""With a single slot, nothing could be read while a batch is held."""

OTHERS_NEED = 32 << 20
"""Bytes of memory left to workers and the trainer, so that the kernel kills none of them."""

IS_ORDERED = os.uname().machine in ("x86_64", "i686")
"""Whether other processes see what a process writes in the same order, so that a mark means that its row is there. Elsewhere only
the reports say what has been read: writing to a pipe is a memory barrier."""

log = logging.getLogger("shmgen")


class Ring:
    """Slots of shared memory. If memory is short there are fewer than ``slots``, but at least 2. Workers inherit ``fd``."""

    def __init__(self, layout: Layout, slots: int) -> None:
        self.layout = layout
        self.fd = -1
        self._slot_type = ctypes.c_char * layout.slot_bytes
        # By slot: its whole arrays, and its sheet, for the main process to fill; no lease.
        self.arrays: list[BatchArrays] = []
        self.sheets: list[np.ndarray] = []
        # By slot that has yet to be leased: the number of rows, the arrays, and the lease.
        self._prepared: dict[int, tuple[int, BatchArrays, _Lease]] = {}
        self._leases: dict[int, _Lease] = {}
        self._released: deque[_Lease] = deque()
        with named():
            self.fd = anonymous.create("shmgen")
        self._segments = Segments(self.fd, layout.slot_bytes)
        try:
            reason = self._add(slots, MIN_SLOTS)
        except BaseException:
            self.close()
            raise
        if reason:
            size = layout.slot_bytes
            wanted = f"{slots * size:,} bytes of shared memory are wanted, for {slots} slots of {size:,} bytes each"
            log.warning("%s, and there are %s slots, because %s", wanted, self.slots, reason)

    @property
    def slots(self) -> int:
        """How many slots there are; none after `close`."""
        return len(self._segments)

    def grow(self, count: int = 1) -> int:
        """Add ``count`` slots, or fewer if memory is short; returns how many. An OSError if there is no memory for one.

        Each growth takes a mapping and a descriptor, here and in every worker, until `close`.
        """
        # The mapping takes a descriptor; where the program has closed its standard streams since, that must not be one of these.
        anonymous.hold_standard_streams()
        before = self.slots
        self._add(count, 1)
        return self.slots - before

    def _add(self, wanted: int, least: int) -> str:
        """Add ``wanted`` slots or, if memory is short, fewer, but at least ``least``. Returns why there are fewer, if so."""
        slot_bytes = self.layout.slot_bytes
        held = self.slots * slot_bytes
        count, reason = _room(self.fd, held, slot_bytes, wanted, least)
        while True:
            try:
                _reserve(self.fd, held, count * slot_bytes)
                self._segments.map_new()
                break
            except BaseException as error:
                os.ftruncate(self.fd, self.slots * slot_bytes)
                if count == least or not isinstance(error, OSError):
                    raise
                count, reason = max(least, count // 2), str(error.strerror)
        for slot in range(len(self.sheets), self.slots):
            owner = self._owner(slot)
            self.arrays.append(self.layout.arrays(owner, self.layout.batch_size))
            self.sheets.append(self.layout.sheet(owner))
        return reason

    def bytes(self, slot: int) -> memoryview:
        """The slot's bytes, for the main process to fill; no lease."""
        return self._segments[slot]

    def is_read(self, slot: int, rows: int) -> bool:
        """Whether all ``rows`` rows of the batch in the slot are marked as read in its sheet."""
        return IS_ORDERED and self.sheets[slot][SAMPLES : SAMPLES + rows].tobytes() == READ_MARK * rows

    def prepare_lease(self, slot: int, rows: int) -> None:
        """Make the arrays that `lease` of this slot and number of rows will return.

        This is done in advance, for several slots in a row: just after the trainer's own work, which evicts this code and its
        data from the processor's caches, it is slow.
        """
        if slot in self._prepared:
            if self._prepared[slot][0] == rows:
                return
            self._drop_prepared(slot)
        owner = self._owner(slot)
        # The callback runs on any thread, inside any allocation, even while that thread holds a lock of ours. So it only appends.
        # It is not Python code: an interrupt that is raised inside a callback would be lost.
        lease = _Lease(owner, self._released.append)
        lease.slot = slot
        self._prepared[slot] = rows, self.layout.arrays(owner, rows), lease

    def _drop_prepared(self, slot: int) -> None:
        _, arrays, lease = self._prepared.pop(slot)
        del lease  # first, so that it does not call back
        del arrays

    def lease(self, slot: int, rows: int) -> BatchArrays:
        """The slot's arrays as a lease: `released` returns the slot once the last view of them is gone."""
        self.prepare_lease(slot, rows)
        _, arrays, self._leases[slot] = self._prepared.pop(slot)
        return arrays

    @property
    def held(self) -> int:
        """How many slots are leased, and have not been released."""
        return len(self._leases) - len(self._released)

    @property
    def has_released(self) -> bool:
        return bool(self._released)

    def released(self) -> list[int]:
        """The slots whose last view has gone since the last call."""
        slots = []
        while self._released:
            slot = self._released.popleft().slot
            del self._leases[slot]
            slots.append(slot)
        return slots

    def _owner(self, slot: int) -> ctypes.Array[ctypes.c_char]:
        # Of all objects that can own an ndarray's memory on Python 3.11, only this kind lives exactly as long as the last view:
        # NumPy replaces an ndarray or a memoryview by the object beneath it. It also exports the mapping, which keeps it mapped.
        return self._slot_type.from_buffer(self._segments.mapped[slot])

    def close(self) -> None:
        """Release the descriptor and the memory. What views still show stays mapped until they are gone."""
        for slot in list(self._prepared):
            self._drop_prepared(slot)
        self.arrays.clear()
        self.sheets.clear()
        self._segments.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class _Lease(weakref.ref[ctypes.Array[ctypes.c_char]]):
    """A lease: a weak reference to the owner of its arrays, which calls back when the last view is gone."""

    slot: int


def _room(fd: int, held: int, slot_bytes: int, wanted: int, least: int) -> tuple[int, str]:
    """How many of ``wanted`` slots can be added to ``held`` bytes, at least ``least``, and why not all; empty if all can."""
    what = "another slot" if held else f"{least} slots of {slot_bytes:,} bytes each"
    needed = f"{least * slot_bytes:,} bytes of shared memory are needed, for {what}"
    in_memory, in_a_file = max(0, available() - OTHERS_NEED), most_file_bytes()
    left = f"{in_memory:,} bytes of memory are available"
    in_tmpfs = anonymous.most_bytes(fd)
    if in_tmpfs is not None and in_tmpfs < in_memory:
        in_memory = in_tmpfs
        left = f"{in_tmpfs:,} bytes of {anonymous.TMPFS} are free (mount a larger one there, as docker run --shm-size does)"
    if least * slot_bytes > in_memory:  # the kernel would kill a process rather than refuse
        raise OSError(errno.ENOMEM, f"{needed}, and {left}: {_remedy(held)}")
    for_memory = max(least, in_memory // 2 // slot_bytes)
    for_a_file = wanted if in_a_file is None else (in_a_file - held) // slot_bytes
    if least > for_a_file:
        raise OSError(errno.EFBIG, f"{needed}: {on_file_bytes()}")
    if wanted <= min(for_memory, for_a_file):
        return wanted, ""
    if for_a_file < for_memory:
        return for_a_file, on_file_bytes()
    return for_memory, f"{left}, of which at most half is taken: {_remedy(held)}"


def _reserve(fd: int, held: int, more: int) -> None:
    """Make the file longer by ``more`` bytes, and take their pages: at first touch, a lack of them would be SIGBUS."""
    try:
        os.posix_fallocate(fd, held, more)
    except OSError as error:
        raise OSError(error.errno, f"{more:,} bytes of shared memory were refused: {_remedy(held)} ({error.strerror})") from None


def _remedy(held: int) -> str:
    return "hold fewer batches, or choose a smaller batch_size" if held else "choose a smaller batch_size"
