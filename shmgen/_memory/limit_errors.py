"""Limits of the process: which limit an error is about, how much it allows, and what to do.

It is never imported late: a process that can open no more files could not import it.
"""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def most_file_bytes() -> int | None:
    """How many bytes a file may have; None if there is no limit."""
    return _soft(resource.RLIMIT_FSIZE)


def on_file_bytes() -> str:
    """The message where a file would have more; empty if there is no limit."""
    soft = most_file_bytes()
    return "" if soft is None else f"files may have {soft:,} bytes (ulimit -f), and shared memory counts as one: {_LESS}"


def reached(error: Exception) -> str:
    """The limit that ``error`` is about, and the remedy; empty if there is none."""
    number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    return _TOLD[number]() if number in _TOLD else ""


@contextmanager
def named() -> Iterator[None]:
    """Add to an OSError's text the limit that it is about, unless it is there."""
    try:
        yield
    except OSError as error:
        limit = reached(error)
        if limit and limit not in str(error):
            raise OSError(error.errno, f"{error.strerror}: {limit}") from None
        raise


def note(error: Exception) -> None:
    """Add to the notes of ``error``, which comes from the user's code, the limit that it is about, if any."""
    if not isinstance(error, BlockingIOError) and (limit := reached(error)):  # a non-blocking socket of theirs raises it, too
        error.add_note(limit)


def _files() -> str:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    raised = f"raise the limit, up to {hard:,}" if soft < hard else "raise the limit"
    return f"this process may have {soft:,} files open (ulimit -n): close what is no longer needed, such as loaders, or {raised}"


def _memory() -> str:
    try:
        with open("/proc/self/statm") as file:
            size, _, _, _, _, data, _ = (int(pages) * resource.getpagesize() for pages in file.read().split())
    except OSError:
        return ""  # the error that is to be explained matters more than this one
    limits = (resource.RLIMIT_AS, "of address space", "v", size), (resource.RLIMIT_DATA, "of data", "d", data)
    found = [
        f"this process may have {soft:,} bytes {what} (ulimit -{letter}), and has {used:,}"
        for limit, what, letter, used in limits
        if (soft := _soft(limit)) is not None
    ]
    return f"{'; '.join(found)}: {_LESS}" if found else ""


def _processes() -> str:
    soft = _soft(resource.RLIMIT_NPROC)
    if soft is None:
        return ""
    return f"this user may have {soft:,} processes and threads (ulimit -u): use fewer workers, end others, or raise the limit"


def _soft(limit: int) -> int | None:
    soft, _ = resource.getrlimit(limit)
    return None if soft == resource.RLIM_INFINITY else soft


_LESS = "raise the limit, hold fewer batches, or use fewer slots or a smaller batch_size"

_TOLD: dict[int | None, Callable[[], str]] = {
    errno.EMFILE: _files,
    errno.EFBIG: on_file_bytes,
    errno.ENOMEM: _memory,
    errno.EAGAIN: _processes,
}
