"""How a child ends with the main process, which may end in any way and at any moment."""

from __future__ import annotations

import fcntl
import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress

F_SETSIG = 10
"""Of fcntl(2); Python has no name for it."""

SYS_PIDFD_OPEN = 434
"""The number of pidfd_open(2), on every machine."""


def pidfd_open(pid: int) -> int:
    """A descriptor that becomes readable when the process ends; an OSError before Linux 5.3, or if there is no such process."""
    if hasattr(os, "pidfd_open"):
        return os.pidfd_open(pid)
    import ctypes  # for builds of Python that lack `os.pidfd_open`

    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.syscall(SYS_PIDFD_OPEN, pid, 0)
    if fd < 0:
        raise OSError(number := ctypes.get_errno(), os.strerror(number))
    os.set_inheritable(fd, False)
    return fd


def begin(liveness: int, *fds: int) -> None:
    """Keep the descriptors from this child's own children, and have the kernel end it with the main process.

    ``liveness`` is the reading end of a pipe that the main process holds open as long as it lives. In ``fds``, the other
    descriptors that the child inherited, -1 stands for none.
    """
    for fd in (liveness, *fds):
        if fd >= 0:
            os.set_inheritable(fd, False)
    # The kernel kills this process when no process holds the other end of the pipe any more. No code of ours has to run for that:
    # none would in a process that has been stopped, nor beside a function that keeps the interpreter to itself.
    with suppress(OSError):  # some sandboxes do not offer it
        fcntl.fcntl(liveness, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(liveness, F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(liveness, fcntl.F_SETFL, os.O_ASYNC)


def end_in_time(stream: int, parent: int, idle: float, ends: Callable[[], bool]) -> None:
    """End this process, whatever it is doing, once the main process closes ``stream`` or dies; to be run in a thread.

    A fork of the main process may keep the other end of ``stream`` open, so the main process itself, ``parent``, is watched too.
    Every ``idle`` seconds ``ends`` is called, which returns whether this process has been idle and should end.
    """
    poll = select.poll()
    poll.register(stream, 0)  # a hang-up is reported unasked
    with suppress(OSError):  # it has gone already, or the kernel is older than 5.3
        poll.register(pidfd_open(parent), select.POLLIN)
    if os.getppid() == parent:
        while not poll.poll(1000 * idle) and not ends():
            pass
    os._exit(0)
