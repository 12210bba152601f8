"""The check for leftovers finds descriptors, processes and names in /dev/shm that a test leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from leftovers import MARK, Before, names

from shmgen import Loader


@pytest.fixture
def tidy() -> Iterator[None]:
    """Removes the names that a test has left in /dev/shm on purpose."""
    yield
    for name in names():
        Path("/dev/shm", name).unlink()


def test_leftover_descriptors_and_processes_are_found() -> None:
    """A descriptor and a process count as leftovers as long as they exist."""
    before = Before()
    read = os.eventfd(0)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        left = before.left()
    os.close(read)

    assert [line for line in left if line.startswith(f"process {process.pid} ")]
    assert "1 more descriptors of kind eventfd" in left
    assert before.left() == []


LEAVES_A_NAME = f"""
def named(name, create=os.memfd_create):
    if name != "shmgen":
        return create(name)
    return os.open("/dev/shm/{MARK}ring", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
"""
"""Code that gives the ring's memory a name in /dev/shm, and does not remove it."""


@pytest.mark.usefixtures("tidy")
def test_leftover_names_in_dev_shm_are_found(folder: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name in /dev/shm that a loader left would be found."""
    data = folder(8)
    before = Before()
    made: dict[str, Any] = {"os": os}
    exec(LEAVES_A_NAME, made)
    with monkeypatch.context() as patched:
        patched.setattr(os, "memfd_create", made["named"])
        with Loader(data.ids, data.labels, 4, data_dir=data.path, workers=2) as loader:
            list(loader)

    [name] = names()
    assert before.left() == [f"/dev/shm/{name}"]
