"""What to do about a file that can't be read; said only once one can't."""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Sequence

from shmgen.errors import FormatError

FOUND_BY_SCAN = errno.EACCES, errno.EIO
"""Errors of a file that is there: of its rights, or of the disk."""


SCAN = "python", "-m", "shmgen", "scan"


def without_scan(reason: str) -> str:
    """``reason``, as a scan says it: without the advice to make one."""
    return reason.partition(f"; `{shlex.join(SCAN)} ")[0]


def for_unreadable_file(error: Exception, path: str, folder: str | None, options: Sequence[str]) -> str:
    """What an error adds where a file can't be read.

    Args:
        error: that reading it ended in.
        path: of the file, or its URL.
        folder: that the files are in; None if ids are paths.
        options: of ``shmgen scan``, with which it expects what is expected here.
    """
    if "://" in path:
        return ""  # what a server answers says what is wrong
    scan = shlex.join([*SCAN, folder or os.path.dirname(path), *options])
    if isinstance(error, FileNotFoundError):
        if folder is not None and not os.path.isdir(folder):
            return f"; the whole folder {folder} is not there any more: mount it, or move it back"
        names_all = f"; `{scan} --ids FILE` names all that are missing of the ids in FILE, one on a line"
        return f"; put it back, or leave its id out{names_all if folder is not None else ''}"
    if isinstance(error, FormatError) or getattr(error, "errno", None) in FOUND_BY_SCAN:
        return f"; `{scan}` finds all such files: repair them, or leave their ids out"
    return ""
