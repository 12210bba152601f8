"""How much memory there is left to take: of the machine, of the container, of ``/dev/shm``."""

from __future__ import annotations

import os
from pathlib import Path

SHM = "/dev/shm"

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


def free_shm() -> int:
    """Bytes that ``/dev/shm`` has left; 0 where there is none that may be used."""
    try:
        found = os.statvfs(SHM)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize if os.access(SHM, os.W_OK) else 0


def available() -> int:
    """Bytes that this process may take before the machine or its container runs out; page cache that can be dropped included."""
    found = [kib << 10 for name, kib in _table(PROC / "meminfo") if name == "MemAvailable:"]
    return min([*found, *_left_in_cgroups()], default=1 << 62)


def _left_in_cgroups() -> list[int]:
    """What each cgroup that this process is in has left, those above it included; version 2, or 1."""
    left = []
    try:
        lines = (PROC / "self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root, limit, usage, cache = CGROUPS, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit, usage, cache = (
                CGROUPS / "memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        else:
            continue
        group = root / path.lstrip("/")
        # In a container the path may be the host's, and what is mounted the container's own group.
        for folder in {root, *(group, *group.parents)} if group.is_dir() else {root}:
            try:
                most, used = int((folder / limit).read_text()), int((folder / usage).read_text())
            except (OSError, ValueError):  # no limit is set here
                continue
            left.append(max(0, most - used + dict(_table(folder / "memory.stat")).get(cache, 0)))
    return left


def _table(path: Path) -> list[tuple[str, int]]:
    """Names and numbers, one of each a line."""
    try:
        words = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return []
    return [(line[0], int(line[1])) for line in words if len(line) > 1 and line[1].isdecimal()]
