"""What Linux says of process trees and of the page cache; and other processes, to share the machine with."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

RESIDENT = 0.02
"""Share of the pages that may stay in the page cache after it was dropped."""


BUSY = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    for _ in range(1_000_000):
        pass
"""


class UnavailableError(Exception):
    """Something that a contest needs can't be had here."""


def drop(paths: list[str]) -> None:
    """Out of the page cache; clean pages only, so sync first.

    Raises:
        UnavailableError: they are still there, whatever the kernel is told: on a tmpfs, for example.
    """
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    some = paths[:: max(1, len(paths) // 256)]
    found = sum(map(resident, some)) / len(some)
    if found > RESIDENT:
        raise UnavailableError(f"expected files out of the page cache, found {found:.0%} of {Path(paths[0]).parent} still there")


def resident(path: str) -> float:
    """Share of a file's pages that are in the page cache."""
    with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as pages:
        count = -(-len(pages) // mmap.PAGESIZE)
        flags = (ctypes.c_ubyte * count)()
        here = ctypes.c_char.from_buffer(pages)
        failed = ctypes.CDLL(None, use_errno=True).mincore(ctypes.c_void_p(ctypes.addressof(here)), len(pages), flags)
        del here  # or the map could not be closed
        if failed:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
        return sum(flag & 1 for flag in flags) / count


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many others compute meanwhile. They end with this process, however it ends."""
    command = [sys.executable, "-IS", "-c", BUSY, str(os.getpid())]
    others = [subprocess.Popen(command) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def cpu_seconds(pid: int) -> float:
    """Of a process, of all its children, and of those of them that have ended, so far."""
    total = 0.0
    for process in _tree(pid):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def storage_bytes(pid: int) -> int:
    """That a process and all its children have had fetched from storage, so far; of ended ones, those that were waited for."""
    total = 0
    for process in _tree(pid):
        with suppress(psutil.NoSuchProcess):
            total += process.io_counters().read_bytes
    return total


def memory(pids: Iterable[int]) -> int:
    """Bytes that processes and all their children hold now; what several share is counted once, by its proportions (PSS)."""
    total = 0
    for pid in pids:
        for process in _tree(pid):
            with suppress(OSError):  # it has ended
                lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def _tree(pid: int) -> Iterator[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        yield parent
        yield from parent.children(recursive=True)
