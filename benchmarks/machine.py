"""Processor time, memory and storage of process trees; the page cache; and busy processes that compete for the processors."""

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

MAX_RESIDENT = 0.02
"""Largest share of pages that may remain in the page cache after dropping them."""

BUSY = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    for _ in range(1_000_000):
        pass
"""


class UnavailableError(Exception):
    """This machine lacks something that a contest needs."""


def drop_from_page_cache(paths: list[str]) -> None:
    """Drop files from the page cache. The kernel drops clean pages only, so sync first.

    Raises:
        UnavailableError: the kernel keeps the pages, as on a tmpfs.
    """
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    checked = paths[:: max(1, len(paths) // 256)]
    found = sum(map(resident, checked)) / len(checked)
    if found > MAX_RESIDENT:
        raise UnavailableError(f"{Path(paths[0]).parent}: expected no pages in the page cache, found {found:.0%} of them")


def resident(path: str) -> float:
    """Share of a file's pages that are in the page cache."""
    with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as pages:
        count = -(-len(pages) // mmap.PAGESIZE)
        flags = (ctypes.c_ubyte * count)()
        first = ctypes.c_char.from_buffer(pages)
        failed = ctypes.CDLL(None, use_errno=True).mincore(ctypes.c_void_p(ctypes.addressof(first)), len(pages), flags)
        del first  # else the map could not be closed
        if failed:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
        return sum(flag & 1 for flag in flags) / count


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Run a number of processes that compute. They end with this process, however it ends."""
    command = [sys.executable, "-IS", "-c", BUSY, str(os.getpid())]
    others = [subprocess.Popen(command) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and all its descendants so far, including those that have ended, in seconds."""
    total = 0.0
    for process in _tree(pid):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def storage_bytes(pid: int) -> int:
    """Bytes that a process and all its descendants have read from storage so far; of ended ones, only those waited for."""
    total = 0
    for process in _tree(pid):
        with suppress(psutil.NoSuchProcess):
            total += process.io_counters().read_bytes
    return total


def memory(pids: Iterable[int]) -> int:
    """Memory of processes and all their descendants, in bytes; shared pages count once in total (PSS)."""
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
