"""Local files, on disks and mounts: errors that may pass, and files that stand for others."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

from shmgen.errors import FormatError

T = TypeVar("T")

PASSING = errno.EIO, errno.ESTALE, errno.ETIMEDOUT
"""Errors of network mounts that are often gone a moment later."""

PAUSES = 0.05, 0.2, 0.8
"""Seconds before each further try."""

_logged: set[int] = set()


def again(read: Callable[[], T], forget: Callable[[], object] | None = None) -> T:
    """What ``read`` returns. After an error that may pass, ``forget`` closes stale descriptors, and it is called again."""
    for pause in PAUSES:
        try:
            return read()
        except OSError as error:
            if error.errno not in PASSING:
                raise
            if error.errno not in _logged:
                from logging import getLogger  # late: few workers need it

                _logged.add(error.errno)
                # As text: the error itself would keep the rows that were being filled.
                getLogger("shmgen").warning("a read failed, and is tried again: %s", str(error))
        if forget is not None:
            forget()
        time.sleep(pause)
    return read()


def refuse_pointer(start: bytes) -> None:
    """Refuse a file that begins as a pointer of Git LFS, which stands for a file that was not fetched."""
    if start.startswith(b"version http"):
        raise FormatError("expected data, found a pointer file of Git LFS in their place; run `git lfs pull` in the repository")
