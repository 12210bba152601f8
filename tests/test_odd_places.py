"""Loaders in unusual environments: a Python or kernel without memfd_create, closed standard streams, a small /dev/shm."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, python

from shmgen import Loader
from shmgen._memory import anonymous

SCRIPT = """
import gc, logging, os, signal, sys
import numpy as np
import shmgen._engine.held_slots
from shmgen import Loader

shmgen._engine.held_slots.GROW_AFTER = 0.05
where = sys.argv[1]
logging.getLogger("shmgen").setLevel("ERROR")  # it tells of the death

optimize = sys.flags.optimize

def transform(x, rng):
    if sys.flags.optimize != optimize: raise RuntimeError(sys.flags)
    assert hasattr(os, "memfd_create") == hasattr(os, "pidfd_open") == (where != "old")
    os.write(1, b"printed by a worker\\n")
    for fd in range(3):
        assert "shm" not in os.readlink(f"/proc/self/fd/{fd}"), fd
    return x

ids = [f"id-{k}" for k in range(8)]
with Loader(ids, range(8), 2, data_dir="data", transform=transform, workers=2, slots=2) as loader:
    held = [batch for _ in range(2) for batch in loader]  # more than there are slots: the ring grows
    pids = [worker.pid for worker in loader.state.workers]
    os.kill(pids[0], signal.SIGKILL)
    held += list(loader)
    while not loader.stats.restarts: list(loader)  # the other worker may have read it all
    for fd in range(3):
        assert "shm" not in os.readlink(f"/proc/self/fd/{fd}"), fd
    right = all((x == y[:, None, None]).all() for x, y in held)
    [ring] = [part for part in gc.get_objects() if type(part).__name__ == "Ring"]
    with open("said", "w") as file:
        memory = os.readlink(f"/proc/self/fd/{ring.fd}").split("/#")[0].split(" ")[0]
        print(right, len(held), memory, file=file)
"""


def run(folder: Callable, where: str = "", redirected: str = "", *, options: str = "") -> subprocess.CompletedProcess[str]:
    """Run `SCRIPT` in an unusual environment, with redirections of a shell; ``stdout`` is what it wrote to the file ``said``."""
    data = folder(8)
    home = data.path.parent
    (home / "script.py").write_text(SCRIPT)
    place = f"{sys.executable} {Path(__file__).with_name('odd_places.py')} {where} " if where else ""
    command = f"{place}{sys.executable} {options} script.py '{where}' {redirected}"
    done = subprocess.run(
        command, shell=True, cwd=home, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    said = home / "said"
    done.stdout = said.read_text() if said.exists() else ""
    return done


@pytest.mark.parametrize(("where", "memory"), [("old", "/memfd:shmgen"), ("forbidden", anonymous.TMPFS)])
def test_without_memfd_create_of_python_or_of_the_kernel(folder: Callable, where: str, memory: str) -> None:
    """Without memfd_create a loader uses libc's, or /dev/shm: it reads, grows and replaces a worker, and leaves no file."""
    before = set(os.listdir(anonymous.TMPFS))
    done = run(folder, where)
    assert (done.stdout, done.stderr) == (f"True 12 {memory}\n", "")
    assert set(os.listdir(anonymous.TMPFS)) <= before


def test_closed_standard_streams(folder: Callable) -> None:
    """If standard streams are closed, a loader's memory never gets their descriptors, in the main process or a worker."""
    done = run(folder, "", "<&- >&- 2>&-")
    assert (done.stdout, done.stderr, done.returncode) == ("True 12 /memfd:shmgen\n", "", 0)


@pytest.mark.parametrize("before", ["os.kill(", "held = "], ids=["a-worker-starts", "the-ring-grows"])
def test_streams_closed_later(folder: Callable, before: str) -> None:
    """Streams closed while a loader lives: its memory never gets their descriptors, and new workers have all three streams."""
    data = folder(8)
    script = data.path.parent / "script.py"
    script.write_text(SCRIPT.replace(f"    {before}", f"    os.closerange(0, 3)\n    {before}"))
    assert python(script, "", cwd=script.parent, capture_output=False).returncode == 0
    assert (script.parent / "said").read_text() == "True 12 /memfd:shmgen\n"


def test_without_docstrings(folder: Callable) -> None:
    """A loader and its workers work under ``python -OO``."""
    done = run(folder, options="-OO")
    assert (done.stdout, done.stderr) == ("True 12 /memfd:shmgen\n", "")


def test_a_small_tmpfs_is_logged(folder: Callable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """In a small /dev/shm a loader has fewer slots, and the log names the remedy."""
    monkeypatch.setattr(anonymous, "_memfd", lambda *_: anonymous._file())
    monkeypatch.setattr(anonymous, "most_bytes", lambda _: 100_000)
    data = folder(8)
    with (
        caplog.at_level(logging.WARNING, "shmgen"),
        Loader(data.ids, data.labels, 2, data_dir=data.path, workers=1, slots=16) as loader,
    ):
        assert sum(len(data.check(*batch)) for batch in loader) == 8
        assert 2 <= len(loader.state.slots) < 16
    assert "100,000 bytes of /dev/shm are free" in caplog.text
    assert "--shm-size" in caplog.text
