"""Finds the processes, descriptors and names in /dev/shm that a test leaves behind, and no other program's."""

from __future__ import annotations

import os
import select
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import shared_memory

import psutil
from pace import Deadline

KINDS = ("socket", "eventpoll", "eventfd", "pidfd", "memfd:shmgen", "/dev/shm/#")
"""Kinds of descriptors that a loader opens; the last is its memory if memfd_create is forbidden. Other kinds are not counted,
since TensorFlow and pytest may open them at any time."""

MARK = f"t{os.getpid():07}_"
"""Prefix of all names in /dev/shm made by this process or its scripts: other programs may make names there at any time."""

MARKED = f"from multiprocessing import shared_memory\nshared_memory._SHM_NAME_PREFIX = '/{MARK}'\n"
"""Code that gives the names in /dev/shm this prefix in the process that executes it."""

shared_memory._SHM_NAME_PREFIX = f"/{MARK}"  # type: ignore[attr-defined]


def names() -> set[str]:
    """The names in /dev/shm that have our prefix."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(MARK)}


def command(process: psutil.Process) -> list[str]:
    """The command line of ``process``, as a list of words."""
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ["shmgen, dead but not reaped"]


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """The workers among the children of ``process``."""
    return [child for child in process.children() if any("shmgen" in word for word in command(child))]


def pids() -> set[str]:
    """The ids of all processes on the machine."""
    return set(filter(str.isdigit, os.listdir("/proc")))


def started_since(before: set[str]) -> list[str]:
    """The descendants of this process whose ids are not in ``before``."""
    found = []
    for pid in pids() - before:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(int(pid))
            if os.getpid() not in {parent.pid for parent in process.parents()}:
                continue
            words = command(process)  # none for a moment, while it executes another program
            # multiprocessing's resource tracker is started with the first segment, and lives until this process ends.
            if not any("resource_tracker" in word for word in words):
                found.append(f"{pid} {' '.join(words)}")
    return sorted(found)


def descriptors() -> Counter[str]:
    """The number of open descriptors of each of `KINDS`."""
    found: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the one that listed the directory
            continue
        found.update(kind for kind in KINDS if kind in target)
    return found


class Before:
    """The state of the machine when this object was made."""

    def __init__(self) -> None:
        self._pids, self._descriptors, self._names = pids(), descriptors(), names()

    def left(self) -> list[str]:
        """Descriptions of everything that was added since and is still there."""
        return [
            *(f"process {process}" for process in started_since(self._pids)),
            *(f"{number} more descriptors of kind {kind}" for kind, number in (descriptors() - self._descriptors).items()),
            *(f"/dev/shm/{name}" for name in sorted(names() - self._names)),
        ]


@dataclass
class Gone:
    """Waits for processes to end, by their pidfds: a process id could be used again for another process."""

    fds: dict[int, int] = field(default_factory=dict)

    def watch(self, pid: int) -> None:
        self.fds[pid] = os.pidfd_open(pid)

    def wait(self, within: float) -> set[int]:
        """The ids of the processes that are still alive after ``within`` seconds; see `Deadline`."""
        deadline = Deadline(within)
        poll = select.poll()
        left = {fd: pid for pid, fd in self.fds.items()}
        for fd in left:
            poll.register(fd, select.POLLIN)
        while left:
            ended = poll.poll(1000 * deadline.left)
            if not ended and deadline.passed:
                break
            for fd, _ in ended:
                poll.unregister(fd)
                del left[fd]
        return set(left.values())

    def close(self) -> None:
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()
