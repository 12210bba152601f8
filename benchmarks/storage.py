"""Storage with latency for a data set, served by a process of its own for as long as a contest lasts."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.cases import Case
from benchmarks.machine import UnavailableError
from benchmarks.slow_files import missing_requirement

FILE_MS = 5
"""Latency of opening a file, and of reading it, in milliseconds."""
ANSWER_MS = 30
"""Latency of a request, in milliseconds."""


@contextmanager
def storage(kind: str, case: Case) -> Iterator[str]:
    """Serve the case's files, and yield their mount point (kind "mount") or URL ("server"); other kinds yield an empty string.

    Raises:
        UnavailableError: this machine lacks a requirement of the storage.
    """
    folder = str(case.folder.absolute())
    if kind == "mount":
        if missing := missing_requirement():
            raise UnavailableError(missing)
        with tempfile.TemporaryDirectory(prefix="shmgen-bench-") as place, serving("slow_files", folder, place, str(FILE_MS)):
            yield place
    elif kind == "server":
        with serving("slow_server", folder, str(ANSWER_MS)) as url:
            yield url
    else:
        yield ""


@contextmanager
def serving(module: str, *args: str) -> Iterator[str]:
    """Run a module, and yield the line that it prints once it serves. It ends when this process closes its pipe, or ends."""
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
