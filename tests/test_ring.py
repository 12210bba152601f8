"""Slots of shared memory are aligned, have no file name, and are leased for exactly as long as a view of them exists."""

from __future__ import annotations

import errno
import gc
import itertools
import mmap
import os
import re
import threading
from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np
import pytest
from conftest import python

import shmgen._memory.ring
from shmgen._memory.layout import ALIGNMENT, PAGE, Field, Layout
from shmgen._memory.ring import IS_ORDERED, OTHERS_NEED, Ring
from shmgen._memory.segments import Segments

FIELDS = (Field("X", (3, 5), np.dtype(np.float32)), Field("y", (), np.dtype(np.int64)), Field("w", (7,), np.dtype(np.uint8)))

SHEET = Field("sheet", (), np.dtype(np.int64))

Rings = Callable[..., Ring]


@pytest.fixture
def make_ring() -> Iterator[Callable[..., Ring]]:
    """A function that makes rings, which are closed after the test."""
    made: list[Ring] = []

    def make(slots: int = 2) -> Ring:
        made.append(Ring(Layout(FIELDS, 4), slots))
        return made[-1]

    yield make
    for ring in made:
        ring.close()


def address(ring: Ring, slot: int) -> int:
    """The address of a slot in this process."""
    return int(np.frombuffer(ring.bytes(slot), np.uint8).ctypes.data)


def test_arrays_are_aligned_contiguous_and_disjoint(make_ring: Rings) -> None:
    """All fields and sheets of all slots begin at multiples of 64 bytes, are contiguous, and do not overlap."""
    ring = make_ring(slots=3)
    arrays = [array for slot in range(3) for array in (*ring.lease(slot, 4), ring.sheets[slot])]
    for array, field in zip(arrays, (*FIELDS, SHEET) * 3, strict=True):
        assert array.ctypes.data % ALIGNMENT == 0
        assert array.flags.c_contiguous
        assert (array.dtype, array.shape) == (field.dtype, (8 if field is SHEET else 4, *field.shape))
    spans = sorted((array.ctypes.data, array.ctypes.data + array.nbytes) for array in arrays)
    assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(spans))


def test_a_shorter_batch_is_a_prefix(make_ring: Rings) -> None:
    """The arrays of a batch with fewer rows begin at the same addresses as those of a whole one."""
    ring = make_ring()
    whole = ring.lease(0, 4)
    ring.prepare_lease(0, 4)  # prepared for 4 rows, and then leased with 3
    short = ring.lease(0, 3)
    assert [array.shape[0] for array in short] == [3, 3, 3]
    assert [array.ctypes.data for array in short] == [array.ctypes.data for array in whole]


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
def test_a_slot_is_free_when_the_last_view_is_gone(view: Callable[[np.ndarray], object], make_ring: Rings) -> None:
    """A view of any kind, of any field, keeps its slot leased; the slot is free as soon as the view is deleted."""
    ring = make_ring()
    for field in (0, 2):
        seen = view(ring.lease(1, 4)[field])
        assert ring.released() == []
        assert ring.held == 1
        del seen
        assert ring.held == 0
        assert ring.released() == [1]
        assert ring.released() == []
        assert ring.held == 0


def test_a_view_in_a_cycle_keeps_its_slot_until_collected(no_collection: None, make_ring: Rings) -> None:
    """A view in a reference cycle keeps its slot until garbage collection."""
    ring = make_ring()
    cycle: list[object] = [ring.lease(0, 4)]
    cycle.append(cycle)
    del cycle
    assert ring.released() == []
    gc.collect()
    assert ring.released() == [0]


def test_memory_is_unmapped_with_the_last_view(make_ring: Rings) -> None:
    """The memory of a closed ring is unmapped when its last view is deleted."""
    ring = make_ring()
    arrays = ring.lease(0, 4)
    start = address(ring, 0)
    ring.close()
    assert is_mapped(start)
    del arrays
    assert not is_mapped(start)


def is_mapped(address: int) -> bool:
    with open("/proc/self/maps") as maps:
        return any(line.startswith(f"{address:x}-") for line in maps)


def test_a_ring_has_no_name(make_ring: Rings) -> None:
    """A ring never has a file name, so it leaves nothing behind, whenever a process dies."""
    ring = make_ring()
    assert os.readlink(f"/proc/self/fd/{ring.fd}").startswith(("/memfd:", "/dev/shm/#"))
    assert os.fstat(ring.fd).st_nlink == 0
    assert not os.get_inheritable(ring.fd)


@pytest.mark.parametrize("umask", [0, 0o777])
def test_only_the_owner_may_read_a_ring(umask: int, make_ring: Rings) -> None:
    """With any umask, only the owner may read a ring's memory."""
    before = os.umask(umask)
    try:
        ring = make_ring()
    finally:
        os.umask(before)
    assert os.fstat(ring.fd).st_mode & 0o777 == 0o600


def test_pages_are_reserved() -> None:
    """All pages are reserved when the ring is made, so that no later access can fail."""
    ring = Ring(Layout((Field("X", (1000,), np.dtype(np.float64)),), 100), 2)
    assert os.fstat(ring.fd).st_blocks * 512 >= 2 * ring.layout.slot_bytes >= 2 * 800_000
    ring.close()


def test_workers_find_a_slots_sheet(make_ring: Rings) -> None:
    """Workers find a slot's sheet at ``sheet_offset``, and `is_read` sees the rows that are marked there as read."""
    ring = make_ring(slots=3)
    ring.sheets[1][:] = words = [2, 3, 4, 1, 10, 20, 30, 40]
    ring.arrays[1][0][:] = 1.5
    end = ring.layout.sheet_offset + 8 * 8
    assert end <= ring.layout.slot_bytes
    assert Segments(ring.fd, ring.layout.slot_bytes)[1][ring.layout.sheet_offset : end].cast("q").tolist() == words
    ring.sheets[1][4:7] = -1  # the mark of a row that has been read
    assert [ring.is_read(1, rows) for rows in (3, 4)] == [IS_ORDERED, False]


@pytest.mark.parametrize("rows", [1, 4, 62, 63, 64, 510, 511])
def test_slots_are_whole_pages_with_room_for_the_sheet(rows: int) -> None:
    """A slot is whole pages with room for the sheet, also where its rows and sheet fill the last page, or nearly."""
    layout = Layout((Field("X", (64,), np.dtype(np.uint8)),), rows)
    assert layout.sheet_offset % ALIGNMENT == layout.slot_bytes % PAGE == 0
    assert rows * 64 <= layout.sheet_offset
    assert 0 <= layout.slot_bytes - (layout.sheet_offset + (3 + rows) * 8) < PAGE


def test_growing_keeps_contents_addresses_and_leases() -> None:
    """A ring that grows keeps the content, address and lease of each slot, and workers see the same memory."""
    ring = Ring(Layout(FIELDS, 4), 2)
    x = ring.lease(0, 4)[0]
    x[:] = 4
    others, before = Segments(ring.fd, ring.layout.slot_bytes), [address(ring, slot) for slot in range(2)]
    for count in (1, 2, 4):
        assert ring.grow(count) == count
    assert ring.slots == 9
    assert [address(ring, slot) for slot in range(2)] == before
    assert len({address(ring, slot) for slot in range(9)}) == 9
    for slot in range(1, 9):
        ring.arrays[slot][0][:] = slot + 4
    assert (x == 4).all()
    assert len(others) == 2
    for slot in (8, 0, 3):
        assert np.frombuffer(others[slot], np.float32, 1)[0] == slot + 4
    assert len(others) == 9
    assert os.fstat(ring.fd).st_blocks * 512 >= 9 * ring.layout.slot_bytes
    del x
    assert ring.released() == [0]
    later = ring.lease(8, 4)
    ring.close()
    del ring
    gc.collect()
    assert (later[0] == 12).all()


def test_a_slot_that_does_not_exist(make_ring: Rings) -> None:
    """A slot that does not exist is an IndexError, and one of closed segments, or of a closed ring, an OSError."""
    ring = make_ring(slots=2)
    segments = Segments(ring.fd, ring.layout.slot_bytes)
    with pytest.raises(IndexError):
        segments[2]
    segments.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        segments[0]
    ring.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        ring.bytes(0)


def test_concurrent_threads_map_a_new_slot_once(monkeypatch: pytest.MonkeyPatch, make_ring: Rings) -> None:
    """Two reader threads that need a new slot at once map it once."""
    ring = make_ring(slots=2)
    segments = Segments(ring.fd, ring.layout.slot_bytes)
    ring.grow(3)
    both, stat = threading.Barrier(2), os.fstat

    def slow(fd: int) -> os.stat_result:
        found = stat(fd)
        try:
            both.wait(0.2)  # both threads arrive here, unless one waits for the other's lock
        except threading.BrokenBarrierError:
            both.reset()
        return found

    monkeypatch.setattr(os, "fstat", slow)
    threads = [threading.Thread(target=segments.__getitem__, args=(4,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(segments) == 5


def refuse(*_: object, **__: object) -> None:
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def interrupt_after(*args: int) -> None:
    RESERVE(*args)
    raise KeyboardInterrupt


RESERVE = os.posix_fallocate


@pytest.mark.parametrize(("module", "name", "error"), [
    (os, "posix_fallocate", refuse),
    (os, "posix_fallocate", interrupt),
    (os, "posix_fallocate", interrupt_after),
    (mmap, "mmap", refuse),
    (mmap, "mmap", interrupt),
])  # fmt: skip
def test_a_failed_growth_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, error: Callable[..., None], make_ring: Rings
) -> None:
    """If memory or its mapping is refused, or Ctrl-C comes, file, slots and leases are as before, and the ring can grow later."""
    ring = make_ring(slots=2)
    x = ring.lease(1, 4)[0]
    x[:] = 3
    other = Segments(ring.fd, ring.layout.slot_bytes)
    for wanted in (1, 4):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, error)
            with pytest.raises((OSError, KeyboardInterrupt)):
                ring.grow(wanted)
        assert ring.slots == 2
        assert os.fstat(ring.fd).st_size == 2 * ring.layout.slot_bytes
    assert ring.grow(2) == 2
    ring.arrays[3][0][:] = 5
    assert np.frombuffer(other[3], np.float32, 1)[0] == 5
    assert (x == 3).all()


def test_slots_mapped_during_a_failed_growth_are_valid_later(make_ring: Rings) -> None:
    """A worker that mapped slots just before a failed growth was undone sees the same memory once the ring grows again."""
    ring = make_ring(slots=2)
    slot_bytes = ring.layout.slot_bytes
    os.posix_fallocate(ring.fd, 2 * slot_bytes, 4 * slot_bytes)
    other = Segments(ring.fd, slot_bytes)
    os.ftruncate(ring.fd, 2 * slot_bytes)
    assert [ring.grow(1), ring.grow(5)] == [1, 5]
    for slot in range(8):
        ring.arrays[slot][0][:] = slot
        assert np.frombuffer(other[slot], np.float32, 1)[0] == slot


@pytest.mark.parametrize(
    ("left", "in_tmpfs", "added"),
    [(100, None, 4), (8, None, 4), (7, None, 3), (3, None, 1), (1, None, 1), (100, 7, 3), (7, 100, 3)],
)
def test_a_ring_grows_as_far_as_memory_allows(
    monkeypatch: pytest.MonkeyPatch, left: int, in_tmpfs: int | None, added: int, make_ring: Rings
) -> None:
    """Of 4 wanted slots, as many are added as fit into half of the available memory, or one if there is memory for it.

    If the ring is a file of /dev/shm, only the memory that is free there is available.
    """
    ring = make_ring(slots=2)
    monkeypatch.setattr(shmgen._memory.ring, "available", lambda: OTHERS_NEED + left * ring.layout.slot_bytes)
    free = None if in_tmpfs is None else in_tmpfs * ring.layout.slot_bytes
    monkeypatch.setattr(shmgen._memory.anonymous, "most_bytes", lambda fd: free)
    assert ring.grow(4) == added
    assert ring.slots == 2 + added


def test_refused_memory_is_requested_in_smaller_parts(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """If the kernel refuses memory that seemed available, there are fewer slots, and a warning gives the numbers."""
    reserve = os.posix_fallocate

    def stingy(fd: int, held: int, more: int) -> None:
        if held + more > room:
            raise OSError(errno.ENOSPC, "No space left on device")
        reserve(fd, held, more)

    monkeypatch.setattr(os, "posix_fallocate", stingy)
    layout = Layout(FIELDS, 4)
    room = 9 * layout.slot_bytes
    ring = Ring(layout, 16)
    assert ring.slots == 8
    assert caplog.messages == [
        f"{16 * layout.slot_bytes:,} bytes of shared memory are wanted, for 16 slots of {layout.slot_bytes:,} bytes each, and "
        f"there are 8 slots, because {16 * layout.slot_bytes:,} bytes of shared memory were refused: choose "
        "a smaller batch_size (No space left on device)"
    ]
    assert ring.grow(8) == 1
    with pytest.raises(OSError, match=r"of shared memory were refused: hold fewer batches, or .* \(No space left on device\)"):
        ring.grow()
    ring.close()


def test_a_limit_on_address_space_limits_growth() -> None:
    """Under ``ulimit -v`` a ring grows by the slots that can be mapped; if that is none, the error names the limit."""
    code = """
import resource, sys
import numpy as np
from shmgen._memory.layout import Field, Layout
from shmgen._memory.ring import Ring
ring = Ring(Layout((Field("X", (1 << 20,), np.dtype("u1")),), 1), 2)
def limit(more):
    with open("/proc/self/statm") as file: size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + more, resource.RLIM_INFINITY))
limit(12 << 20)
print(ring.grow(32), ring.slots)
limit(0)
try: ring.grow(8)
except OSError as error: print(error, ring.slots)
"""
    grown, refused = python("-c", code, check=True).stdout.splitlines()
    assert grown == "8 10"
    assert re.fullmatch(r".* Cannot allocate memory: this process may have .* of address space \(ulimit -v\), .* 10", refused)


def test_close_may_be_called_again(make_ring: Rings) -> None:
    """A second `close` does not close a new file that has the ring's descriptor number."""
    ring = make_ring()
    ring.close()
    other = os.open("/dev/null", os.O_RDONLY)
    ring.close()
    os.fstat(other)
    os.close(other)
