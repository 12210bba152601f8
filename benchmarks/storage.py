"""Storage that takes its time, in place of the folder of a case: in a process of its own, for as long as a contest lasts."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.cases import Case
from benchmarks.machine import UnavailableError
from benchmarks.slow_files import why_not

FILE_MS = 5
"""Of the open of a file, and of its read."""
ANSWER_MS = 30
"""Of a request."""


@contextmanager
def storage(kind: str, case: Case) -> Iterator[str]:
    """Where the case's files are seen: ``"mount"``, with latency, ``"server"``, by URL, or else nowhere but in their folder.

    Raises:
        UnavailableError: it can't be had here.
    """
    folder = str(case.folder.absolute())
    if kind == "mount":
        if why := why_not():
            raise UnavailableError(why)
        with tempfile.TemporaryDirectory(prefix="shmgen-bench-") as place, serving("slow_files", folder, place, str(FILE_MS)):
            yield place
    elif kind == "server":
        with serving("slow_server", folder, str(ANSWER_MS)) as url:
            yield url
    else:
        yield ""


@contextmanager
def serving(module: str, *args: str) -> Iterator[str]:
    """Yields the line that it says when it is there. It ends with its standard input, so also with this process."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *args]
    process = subprocess.Popen(
        command, cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline().strip()
        if not line:
            raise UnavailableError(f"{module}: {process.stderr.read().strip().splitlines()[-1]}")
        yield line
        process.stdin.close()
