"""The processes of one contestant, as controlled by a contest."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cases import Case, Checksum
from benchmarks.contestant import Turn
from benchmarks.machine import memory
from benchmarks.matrix import Contest
from benchmarks.peers import CONTESTANTS

if TYPE_CHECKING:
    from typing import Self

ROOT = Path(__file__).parents[1]
DEADLINE = 300
"""Seconds within which a contestant must answer; else it counts as hanging."""


class FailedError(RuntimeError):
    """A contestant's process ended, hung, or delivered wrong samples or labels."""


class Team:
    """A contestant's processes for one contest: one process, or for a bound, as many as share its work."""

    def __init__(self, contest: Contest, case: Case, contestant: str, *, seconds: float, step: float, reads: int) -> None:
        entry = CONTESTANTS.get(contestant)
        workers = 1 if entry and entry.single_process else contest.workers
        options = {
            "data": case.root.absolute(),
            "files": case.files,
            "repeats": case.repeats,
            "served-at": case.served_at,
            "seconds": seconds,
            "warmup": seconds / 2 if contest.is_slow else 0,
            "workers": workers,
            "reads": reads,
            "step": step,
        }
        command = [sys.executable, "-m", "benchmarks.contestant", contest.task, contestant, case.name]
        command += [f"--{name}={value}" for name, value in options.items()]
        command += ["--cold"] if contest.storage == "cold" else []
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  __exit__ closes it
        self._processes = [
            subprocess.Popen(
                [*command, "--share", str(share)],
                cwd=ROOT,
                env={**os.environ, "KERAS_BACKEND": contest.backend},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                start_new_session=True,  # so that processes it leaves behind can be killed with its group
            )
            for share in range(workers if entry and entry.bound else 1)
        ]

    def ready(self) -> None:
        """Wait until all processes are ready."""
        for process in self._processes:
            self._read_line(process)

    def turn(self) -> list[Turn]:
        """Run a turn of all processes at once, and return each one's figures."""
        self._begin()
        return [self._turn(process) for process in self._processes]

    def peak_memory(self) -> int:
        """Run a turn, and return the peak of the processes' memory, sampled every 50 ms, in bytes."""
        self._begin()
        pids = [process.pid for process in self._processes]
        found = [memory(pids)]
        end = time.monotonic() + DEADLINE
        last = self._processes[-1].stdout
        assert last is not None
        while time.monotonic() < end and not select.select([last], [], [], 0.05)[0]:
            found.append(memory(pids))
        for process in self._processes:
            self._read_line(process)
        return max(found)

    def _begin(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # _read_line reports why the process ended
                process.stdin.write(b"\n")
                process.stdin.flush()

    def _turn(self, process: subprocess.Popen[bytes]) -> Turn:
        turn = json.loads(self._read_line(process))
        delivered = turn["delivered"]
        return Turn(**turn | {"delivered": delivered and Checksum(**delivered)})

    def _read_line(self, process: subprocess.Popen[bytes]) -> bytes:
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], DEADLINE)
        line = process.stdout.readline() if readable else b""
        if not line:
            found = f"its end, with exit code {process.wait()}" if readable else f"nothing for {DEADLINE} seconds"
            self._stderr.seek(0)
            lines = self._stderr.read().decode(errors="replace").strip().splitlines()[-8:]
            failure = "\n".join([f"expected a line of JSON, found {found}: {process.args!r}", *lines])
            # Reports are published, and must not contain paths of this machine.
            raise FailedError(failure.replace(f"{ROOT}/", ""))
        return line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            self._end_group(process.pid)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        self._stderr.close()

    @staticmethod
    def _end_group(group: int) -> None:
        """Kill a contestant's process group, after two seconds in which resource trackers can unlink what is left."""
        with suppress(ProcessLookupError):
            for _ in range(20):
                os.killpg(group, 0)
                time.sleep(0.1)
            os.killpg(group, signal.SIGKILL)
