"""Memory that processes share by its descriptor. It never has a name, so no death of a process can leave it behind."""

from __future__ import annotations

import errno
import os
from functools import cache

MFD_CLOEXEC = 1
"""Of memfd_create(2). Pythons built against glibc 2.17, such as conda-forge's, lack this name and the function."""

REFUSED = errno.EPERM, errno.EACCES, errno.ENOSYS
"""Errors of memfd_create where a sandbox forbids it, or the kernel lacks it."""

TMPFS = "/dev/shm"  # noqa: S108 # nothing there is given a name
"""Where the memory is without memfd_create. Unlike a memfd, it has a size limit: 64 MB in most containers."""


def create(name: str) -> int:
    """The descriptor of new, empty memory; never that of a standard stream. Tools such as lsof show its ``name``."""
    hold_standard_streams()
    try:
        fd = _memfd(name)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        _say_once(error.strerror)
        fd = _file()
    os.fchmod(fd, 0o600)
    return fd


def most_bytes(fd: int) -> int | None:
    """How many bytes the memory of descriptor ``fd`` may still grow by; None without a limit, as for a memfd."""
    system = os.fstatvfs(fd)
    return system.f_bavail * system.f_frsize if system.f_blocks else None


def hold_standard_streams() -> None:
    """Open /dev/null in place of each standard stream that is closed, as in a daemon or a cron job.

    The next descriptor that is opened would otherwise take its number: what a transform prints would land in a batch.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest number that is free is ``fd``. Children have it too.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _memfd(name: str) -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "memfd_create"):
        raise OSError(errno.ENOSYS, "glibc is older than 2.27")
    fd: int = libc.memfd_create(name.encode(), MFD_CLOEXEC)
    if fd < 0:
        raise OSError(number := ctypes.get_errno(), os.strerror(number))
    return fd


def _file() -> int:
    # Not multiprocessing's SharedMemory: that has a name for a while, and starts a process, the resource tracker.
    from tempfile import TemporaryFile

    with TemporaryFile(dir=TMPFS, buffering=0) as file:
        return os.dup(file.fileno())


@cache
def _say_once(reason: str) -> None:
    import logging  # late, for workers

    logging.getLogger("shmgen").info("shared memory comes from %s, since memfd_create can't be used here: %s", TMPFS, reason)
