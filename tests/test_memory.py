"""Too little memory is reported before the first batch, with numbers and a remedy. The size of /dev/shm does not matter."""

from __future__ import annotations

import logging
import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from leftovers import descriptors

import shmgen._engine.held_slots
import shmgen._memory.limits
import shmgen._memory.ring
from shmgen import Loader
from shmgen._memory.layout import PAGE, Field, Layout
from shmgen._memory.ring import OTHERS_NEED, Ring
from shmgen._memory.status_page import StatusPage

PRIVATE = """
import ctypes, logging, shutil, shmgen._engine.held_slots
shmgen._engine.held_slots.GROW_AFTER = 0.05
logging.basicConfig(format="%(name)s %(levelname)s %(message)s")
libc = ctypes.CDLL(None, use_errno=True)

def must(result):
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def mount(source, target, kind=None, flags=0, options=None):
    must(libc.mount(source.encode(), target.encode(), kind and kind.encode(), flags, options and options.encode()))

BIND, PRIVATE = 0x1000, 0x44000  # of mount(2); the last for the whole tree
must(libc.unshare(0x20000))  # the mounts
mount("none", "/", flags=PRIVATE)
"""
"""The beginning of a script whose mounts no other process sees."""

MISSING = """
import tempfile
dev = tempfile.mkdtemp()
mount("none", dev, "tmpfs")
for name in ("null", "urandom"):
    open(f"{dev}/{name}", "w").close()
    mount(f"/dev/{name}", f"{dev}/{name}", flags=BIND)
mount(dev, "/dev", flags=BIND | 0x4000)
assert not os.path.exists("/dev/shm")
"""


@pytest.fixture(scope="module")
def mounts() -> None:
    """Skips the test where mounts are not allowed."""
    made = subprocess.run(
        [sys.executable, "-c", "import os, sys, shmgen\n" + PRIVATE], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"mounts of its own need root: {made.stderr.splitlines()[-1]}")


ROW = 1 << 18
SLOT = ROW + PAGE
"""Bytes of a slot for a batch of one row: the row, its label, and its sheet."""


def room(slots: int) -> int:
    """Bytes of a ring of ``slots`` slots."""
    return slots * SLOT


@pytest.mark.usefixtures("mounts")
def test_without_dev_shm(folder: Callable, script: Callable) -> None:
    """Without /dev/shm a loader has all its slots, lets all batches be held, and warns of nothing."""
    code = """
loader = Loader(IDS, LABELS, 1, data_dir=DATA, workers=2, slots=6)
assert len(loader.state.slots) == 6, loader

def check(batches):
    assert sorted(int(y[0]) for X, y in batches) == list(range(12))
    assert all((X == y[0]).all() for X, y in batches)

for epoch in range(2):
    check([(X.copy(), y.copy()) for X, y in loader])
held = list(loader)
check(held)
assert len(loader.state.slots) >= 12
loader.close()
check(held)
"""
    run = script(PRIVATE + MISSING + code, folder(12, (ROW // 4,)))

    assert run.end() == 0, run.err
    assert run.err == ""


def memory_left(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Let ``size`` bytes of memory seem to be free, besides the part reserved for other programs."""
    monkeypatch.setattr(shmgen._memory.ring, "available", lambda: size + OTHERS_NEED)


def test_too_little_memory_is_an_error(folder: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """If memory is too small for 2 slots, OSError gives the bytes needed and left, before a worker is started."""
    data = folder(8, (ROW // 4,))
    memory_left(monkeypatch, room(2) - 1)
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: started.append(1))

    with pytest.raises(OSError, match="bytes of shared memory are needed") as raised:
        Loader(data.ids, data.labels, 1, data_dir=data.path, workers=2)

    assert str(raised.value) == (
        f"[Errno 12] {room(2):,} bytes of shared memory are needed, for 2 slots of {SLOT:,} bytes each, and {room(2) - 1:,} "
        "bytes of memory are available: choose a smaller batch_size"
    )
    assert not started


@pytest.mark.parametrize(
    ("left", "slots", "said"),
    [
        pytest.param(2 * room(6), 6, None, id="enough"),
        pytest.param(2 * room(6) - 2, 5, f"{2 * room(6) - 2:,} bytes of memory are available, of which at most half", id="half"),
        pytest.param(room(2), 2, f"{room(2):,} bytes of memory are available, of which at most half", id="just-for-two"),
    ],
)
def test_slots_take_at_most_half_of_the_memory(
    folder: Callable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, left: int, slots: int, said: str | None
) -> None:
    """Slots take at most half of the available memory, unless 2 slots need more; a warning says so if there are fewer."""
    data = folder(8, (ROW // 4,))
    memory_left(monkeypatch, left)

    with Loader(data.ids, data.labels, 1, data_dir=data.path, workers=1, slots=6) as loader:
        assert len(loader.state.slots) == slots
        assert sorted(label for X, y in loader for label in data.check(X, y)) == list(range(8))

    assert [record.levelno for record in caplog.records] == [logging.WARNING] * (said is not None)
    assert said is None or said in caplog.text


def test_no_memory_for_another_slot(folder: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without memory for another slot the request is an OSError, before the kernel kills a process; the loader goes on."""
    monkeypatch.setattr(shmgen._engine.held_slots, "GROW_AFTER", 0.05)
    data = folder(8, (ROW // 4,))
    with Loader(data.ids, data.labels, 1, data_dir=data.path, workers=1, slots=2) as loader:
        with monkeypatch.context() as patch:
            memory_left(patch, SLOT - 1)
            held: list[object] = []
            with pytest.raises(OSError, match=f"{SLOT:,} bytes .* for another slot, and {SLOT - 1:,} bytes of memory are"):
                held.extend(loader)
        del held
        assert sorted(label for X, y in list(loader) for label in data.check(X, y)) == list(range(8))
        assert len(loader.state.slots) >= 8


def test_memory_that_cannot_be_mapped_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """If memory can't be reserved or mapped, the error is passed on, and no descriptor is left."""
    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", no_map)
        with pytest.raises(OSError, match="Cannot allocate memory"):
            StatusPage.create()
    monkeypatch.setattr(mmap, "mmap", no_map)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        Ring(Layout((Field("X", (3,), np.dtype(np.float32)),), 4), 2)
    assert descriptors() == before


def no_map(*_: object, **__: object) -> None:
    raise OSError(12, "Cannot allocate memory")


TREES = {
    # /proc/meminfo, /proc/self/cgroup, files among the cgroups -> bytes
    "nothing-known": (None, None, {}, 1 << 62),
    "machine": ("MemTotal: 900 kB\nMemFree: 10 kB\nMemAvailable: 50 kB\n", None, {}, 50 << 10),
    "machine-without-an-estimate": ("MemTotal: 900 kB\nMemFree: 10 kB\n", None, {}, 1 << 62),
    "v2": ("MemAvailable: 9999 kB\n", "0::/a/b\n", {"a/b": (1_000_000, 400_000, {"inactive_file": 50_000})}, 650_000),
    "v2-machine-has-less": ("MemAvailable: 5 kB\n", "0::/a\n", {"a": (1_000_000, 400_000, {})}, 5 << 10),
    "v2-no-limit": ("MemAvailable: 50 kB\n", "0::/a\n", {"a": ("max", 400_000, {})}, 50 << 10),
    "v2-limit-above": (None, "0::/a/b/c\n", {"a": (500_000, 400_000, {}), "a/b/c": (900_000, 100_000, {})}, 100_000),
    "v2-limit-below": (None, "0::/a/b\n", {"a": (900_000, 400_000, {}), "a/b": (300_000, 100_000, {})}, 200_000),
    "v2-own-namespace": (None, "0::/\n", {"": (1_000_000, 400_000, {})}, 600_000),
    "v2-path-of-the-host": (None, "0::/docker/1234\n", {"": (1_000_000, 400_000, {})}, 600_000),
    "v2-path-above-the-namespace": (None, "0::/../../x\n", {"": (1_000_000, 400_000, {})}, 600_000),
    "v2-another-group": (None, "0::/a\n", {"a": (1_000_000, 400_000, {}), "b": (10, 5, {})}, 600_000),
    "v2-colons-in-the-name": (None, "0::/a:b\n", {"a:b": (1_000_000, 400_000, {})}, 600_000),
    "v2-more-used-than-allowed": (None, "0::/a\n", {"a": (400_000, 500_000, {})}, 0),
    "v2-no-usage": ("MemAvailable: 50 kB\n", "0::/a\n", {"a": (1_000_000, None, {})}, 50 << 10),
    "v2-nonsense": ("MemAvailable: 50 kB\n", "0::/a\n", {"a": ("", "x", {})}, 50 << 10),
    "v1": (
        "MemAvailable: 9999 kB\n",
        "5:cpu,cpuacct:/\n4:memory:/a/b\n1:name=systemd:/x\n",
        {"memory/a/b": (1_000_000, 400_000, {"inactive_file": 1, "total_inactive_file": 50_000})},
        650_000,
    ),
    "v1-joint": (None, "4:cpu,memory:/a\n", {"memory/a": (1_000_000, 400_000, {})}, 600_000),
    "v1-limit-above": (
        None,
        "4:memory:/a/b\n",
        {"memory/a": (500_000, 400_000, {}), "memory/a/b": (2**63 - 4096, 1, {})},
        100_000,
    ),
    "v1-no-limit": ("MemAvailable: 50 kB\n", "4:memory:/\n", {"memory": (2**63 - 4096, 400_000, {})}, 50 << 10),
    "v1-path-of-the-host": (None, "4:memory:/docker/1234\n", {"memory": (1_000_000, 400_000, {})}, 600_000),
    "v1-beside-v2": (None, "4:memory:/a\n0::/\n", {"memory/a": (1_000_000, 400_000, {})}, 600_000),
    "other-controllers": ("MemAvailable: 50 kB\n", "4:cpuset:/a\n", {"memory/a": (10, 5, {})}, 50 << 10),
}


@pytest.mark.parametrize(("meminfo", "groups", "files", "expected"), TREES.values(), ids=TREES)
def test_available_memory(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    meminfo: str | None,
    groups: str | None,
    files: dict[str, tuple[object, object, dict[str, int]]],
    expected: int,
) -> None:
    """Available is the least that the machine and each cgroup of the process have left, with page cache that can be dropped."""
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroups"
    monkeypatch.setattr(shmgen._memory.limits, "PROC", proc)
    monkeypatch.setattr(shmgen._memory.limits, "CGROUPS", cgroups)
    for name, text in {"meminfo": meminfo, "self/cgroup": groups}.items():
        if text is not None:
            write(proc / name, text)
    for group, (limit, usage, stat) in files.items():
        v1 = group.startswith("memory")
        write(cgroups / group / ("memory.limit_in_bytes" if v1 else "memory.max"), f"{limit}\n")
        if usage is not None:
            write(cgroups / group / ("memory.usage_in_bytes" if v1 else "memory.current"), f"{usage}\n")
        write(cgroups / group / "memory.stat", "".join(f"{name} {number}\n" for name, number in stat.items()))

    assert shmgen._memory.limits.available() == expected


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_memory_of_this_machine() -> None:
    """On this machine, available memory is more than nothing, and no more than its total."""
    assert 0 < shmgen._memory.limits.available() <= psutil.virtual_memory().total
