"""How much memory, and how many processors, the machine and its container leave to this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


def available() -> int:
    """Bytes of memory that this process may take, droppable page cache included, before the machine or its container runs out."""
    # Not by psutil: every loader calls this when it is made, and would wait 10 to 20 ms for the import.
    left = [kib << 10 for name, kib in _table(PROC / "meminfo") if name == "MemAvailable:"]
    for folder, version in _groups("memory"):
        limit, usage, cache = {
            1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            2: ("memory.max", "memory.current", "inactive_file"),
        }[version]
        with suppress(OSError, ValueError):  # no limit is set here
            most, used = int((folder / limit).read_text()), int((folder / usage).read_text())
            left.append(max(0, most - used + dict(_table(folder / "memory.stat")).get(cache, 0)))
    return min(left, default=1 << 62)


def processors(ranks: int = 1) -> float:
    """How many processors this process may use: those it is bound to, and no more than its container's share of their time.

    Of the processes that share them, ``ranks``, each has an equal part of what their launcher may use.
    """
    own = float(len(os.sched_getaffinity(0)))
    shared = [own]
    if ranks > 1:
        with suppress(OSError):  # the launcher has ended, or belongs to another user
            shared = [float(len(os.sched_getaffinity(os.getppid())))]
    for folder, version in _groups("cpu"):
        names = {1: ("cpu.cfs_quota_us", "cpu.cfs_period_us"), 2: ("cpu.max",)}[version]
        with suppress(OSError, ValueError):
            quota, period = map(int, " ".join((folder / name).read_text() for name in names).split())
            shared += [quota / period] if quota > 0 else []
    return min(own, min(shared) / ranks)


def _groups(controller: str) -> Iterator[tuple[Path, int]]:
    """The cgroups of this process for a controller, those above them included, each with its version, 1 or 2."""
    try:
        lines = (PROC / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root, version = CGROUPS, 2
        elif controller in controllers.split(","):
            root, version = CGROUPS / controller, 1
        else:
            continue
        group = root / path.lstrip("/")
        # In a container the path may be the host's, and what is mounted the container's own group.
        for folder in {root, *(group, *group.parents)} if group.is_dir() else {root}:
            yield folder, version


def _table(path: Path) -> list[tuple[str, int]]:
    """The name and the number on each line."""
    try:
        words = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return []
    return [(line[0], int(line[1])) for line in words if len(line) > 1 and line[1].isdecimal()]
