"""The ring: slots of shared memory that workers fill and the trainer reads. No other module creates shared memory.

The main process creates the segment and owns it. It is a file in ``/dev/shm``, as `multiprocessing.shared_memory` makes one, but
never has a name: so no death of any process can leave one behind. Workers map it through the descriptor that they inherit.

The trainer gets leases: arrays with a common owner, which dies with the last view of them, whoever holds that. The memory is
unmapped when the ring and all views are gone, so views outlive `Ring.close`.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os
import weakref
from collections import deque

import numpy as np

from shmgen._memory.layout import Layout
from shmgen._memory.limit_errors import FILES, MAPPING, SEGMENT, most_file_bytes, named, on_file_bytes
from shmgen._memory.limits import SHM, available, free_shm
from shmgen._memory.status_page import STATUS_PAGE_BYTES

MIN_SLOTS = 2
"""With a single slot, nothing could be read while a batch is held."""

OTHERS_NEED = 32 << 20
"""Bytes of memory that are left to workers and the trainer. Without them, the kernel would kill one of these."""

log = logging.getLogger("shmgen")


class Ring:
    """``slots`` slots of one shared-memory segment.

    Args:
        layout: what lies in a slot.
        slots: how many are wanted. If shared memory is short there are fewer, but at least 2.

    Attributes:
        slots: how many there are.
        fd: descriptor of the segment, to be inherited by workers.
        memory: the segment, mapped in the main process; empty after `close`.
        status_page: the workers' records, as 64-bit words; see `shmgen._memory.status_page`.

    Raises:
        OSError: there is no memory for 2 slots.
    """

    def __init__(self, layout: Layout, slots: int) -> None:
        self.layout = layout
        self.memory = self.status_page = memoryview(b"")
        self._slot_type = ctypes.c_char * layout.slot_bytes
        self._arrays: dict[int, tuple[np.ndarray, ...]] = {}
        self._leases: dict[int, _Lease] = {}
        self._released: deque[_Lease] = deque()
        with named(SEGMENT):
            self.slots, self.fd = _segment(layout.slot_bytes, slots)
        try:
            self._map()
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> int:
        """Where the mapping begins in this process."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self.memory))

    def grow(self) -> None:
        """Add a slot. Workers map the segment anew when a task reaches beyond what they have mapped."""
        with named(SEGMENT):
            _reserve(self.fd, STATUS_PAGE_BYTES + self.slots * self.layout.slot_bytes, self.layout.slot_bytes)
        self.slots += 1
        self._map()

    def _map(self) -> None:
        self._arrays.clear()
        with named(MAPPING):
            self.memory = memoryview(mmap.mmap(self.fd, STATUS_PAGE_BYTES + self.slots * self.layout.slot_bytes))
        self.status_page = self.memory[:STATUS_PAGE_BYTES].cast("Q")

    def arrays(self, slot: int) -> tuple[np.ndarray, ...]:
        """The slot's whole arrays, for the main process to fill or copy; no lease."""
        if slot not in self._arrays:
            self._arrays[slot] = self.layout.arrays(self._owner(slot), self.layout.batch_size)
        return self._arrays[slot]

    def lease(self, slot: int, rows: int) -> tuple[np.ndarray, ...]:
        """The slot's arrays as a lease: `released` returns the slot once the last view of them is gone."""
        owner = self._owner(slot)
        # The callback runs on any thread, inside any allocation, even while that thread holds a lock of ours. So it only appends.
        # It is not Python code: an interrupt that is raised inside a callback would be lost.
        lease = self._leases[slot] = _Lease(owner, self._released.append)
        lease.slot = slot
        return self.layout.arrays(owner, rows)

    def is_held(self, slot: int) -> bool:
        """Whether there is still a view of the slot's leased arrays."""
        lease = self._leases.get(slot)
        return lease is not None and lease() is not None

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
        return self._slot_type.from_buffer(self.memory, STATUS_PAGE_BYTES + slot * self.layout.slot_bytes)

    def close(self) -> None:
        """Release the descriptor and the memory. What views still show stays mapped until they are gone."""
        self._arrays.clear()
        self.memory = self.status_page = memoryview(b"")
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class _Lease(weakref.ref[ctypes.Array[ctypes.c_char]]):
    """A lease: a weak reference to the owner of its arrays, which calls back when the last view is gone."""

    slot: int


def _segment(slot_bytes: int, wanted: int) -> tuple[int, int]:
    """Make a segment for as many of ``wanted`` slots as there is room for. Returns how many, and its descriptor."""
    in_memory, in_shm, in_a_file = _in_memory(), free_shm(), most_file_bytes()
    of_each = f"of {slot_bytes:,} bytes each"
    least = STATUS_PAGE_BYTES + MIN_SLOTS * slot_bytes
    if least > in_memory:
        raise OSError(
            errno.ENOMEM,
            f"{least:,} bytes of shared memory are needed, for {MIN_SLOTS} slots {of_each}, and {in_memory:,} bytes of memory "
            "are available: choose a smaller batch_size",
        )
    if in_a_file is not None and least > in_a_file:
        raise OSError(errno.EFBIG, f"{least:,} bytes of shared memory are needed, for {MIN_SLOTS} slots {of_each}")
    # One more slot may be needed later, if all are held for good. And other processes need memory, too.
    for_memory = max(MIN_SLOTS, (in_memory // 2 - STATUS_PAGE_BYTES) // slot_bytes - 1)
    for_a_file = wanted if in_a_file is None else max(MIN_SLOTS, (in_a_file - STATUS_PAGE_BYTES) // slot_bytes - 1)
    slots = min(wanted, for_memory, for_a_file, (in_shm - STATUS_PAGE_BYTES) // slot_bytes - 1)
    while slots >= MIN_SLOTS:
        try:
            fd = _nameless_segment(STATUS_PAGE_BYTES + slots * slot_bytes, in_shm=True)
        except OSError as error:
            if error.errno in FILES:
                raise
            slots -= 1  # another process has taken the memory meanwhile
            continue
        if slots < wanted:
            by_memory = (
                f"{in_memory:,} bytes of memory are available, of which at most half is taken: choose a smaller batch_size"
            )
            by_shm = f"{SHM} has {in_shm:,} left: enlarge it, or choose a smaller batch_size"
            reason = by_memory if slots == for_memory else on_file_bytes() if slots == for_a_file else by_shm
            log.warning(
                "%s bytes of shared memory are wanted, for %s slots and a spare one %s, and there are %s slots, because %s",
                f"{STATUS_PAGE_BYTES + (wanted + 1) * slot_bytes:,}",
                wanted,
                of_each,
                slots,
                reason,
            )
        return slots, fd
    log.warning(
        "%s bytes of shared memory are needed, for %s slots and a spare one %s, and %s has %s left: memory beyond its limit is "
        "taken; enlarge it, or choose a smaller batch_size",
        f"{least + slot_bytes:,}",
        MIN_SLOTS,
        of_each,
        SHM,
        f"{in_shm:,}",
    )
    return MIN_SLOTS, _nameless_segment(least, in_shm=False)


def _in_memory() -> int:
    """Bytes of memory that are available."""
    return max(0, available() - OTHERS_NEED)


def _nameless_segment(size: int, *, in_shm: bool) -> int:
    """Descriptor of new shared memory that never has a name, and whose pages are reserved.

    Args:
        size: in bytes.
        in_shm: take it of ``/dev/shm``, where that can be; else of memory, however little room ``/dev/shm`` has.
    """
    fd = -1
    if in_shm:
        try:
            fd = os.open(SHM, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in (
                errno.EOPNOTSUPP,
                errno.EISDIR,
            ):  # some kernels that pass for Linux have no files without a name
                raise
    if fd < 0:
        fd = os.memfd_create("shmgen", os.MFD_CLOEXEC)
    try:
        os.fchmod(fd, 0o600)
        _reserve(fd, 0, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _reserve(fd: int, held: int, more: int) -> None:
    """Make the segment ``more`` bytes longer than the ``held`` ones, and take their pages: at first touch it would be SIGBUS."""
    in_memory = _in_memory()
    try:
        if more > in_memory:  # the kernel would kill a process rather than refuse
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        os.posix_fallocate(fd, held, more)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise
        raise OSError(
            error.errno,
            f"{more:,} bytes of shared memory are needed, {SHM} has {free_shm():,} left, and {in_memory:,} bytes of memory are "
            f"available: hold fewer batches, or use fewer slots or a smaller batch_size ({error.strerror})",
        ) from None
