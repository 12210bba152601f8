"""The tests' own tools: what is left behind is found, what others make is not, and time limits are missed on a quiet machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pace
import pytest
from conftest import wait_until
from leftovers import MARK, Before, names
from pace import Deadline

from shmgen import Loader

SHM = Path("/dev/shm")


@pytest.fixture
def tidy() -> Iterator[None]:
    """Takes away what a test has left in /dev/shm on purpose."""
    yield
    for name in names():
        (SHM / name).unlink()


def test_a_descriptor_and_a_process_are_found() -> None:
    """As long as they are there."""
    before = Before()
    read = os.eventfd(0)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        left = before.left()
    os.close(read)

    assert [line for line in left if line.startswith(f"process {process.pid} ")]
    assert "1 more descriptors of kind eventfd" in left
    assert before.left() == []


LEAVES_A_NAME = f"""
def named(name, flags, create=os.memfd_create):
    if name != "shmgen":
        return create(name, flags)
    return os.open("/dev/shm/{MARK}ring", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
"""
"""Code that gives the ring's memory a name, and keeps it."""


@pytest.mark.usefixtures("tidy")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_name_that_a_loader_leaves_is_found(folder: Callable, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """A loader whose memory had a name, and kept it, would be found out."""
    data = folder(8)
    before = Before()
    made: dict[str, Any] = {"os": os}
    exec(LEAVES_A_NAME, made)
    with monkeypatch.context() as patched:
        patched.setattr(os, "memfd_create", made["named"])
        with Loader(data.ids, data.labels, 4, data_dir=data.path, workers=workers) as loader:
            list(loader)

    [name] = names()
    assert before.left() == [f"/dev/shm/{name}"]


@pytest.mark.parametrize(("slow", "after", "passed"), [(1, 0.9, False), (1, 1.1, True), (5, 4.9, False), (5, 5.1, True)])
def test_a_deadline_is_as_much_later_as_the_machine_is_slower(
    monkeypatch: pytest.MonkeyPatch, slow: float, after: float, passed: bool
) -> None:
    """A second on a quiet machine is a second."""
    clock = {"now": 100.0}
    monkeypatch.setattr(pace.time, "monotonic", lambda: clock["now"])
    monkeypatch.setattr(pace, "slowness", lambda: slow)
    deadline = Deadline(1.0)
    clock["now"] += after
    assert deadline.passed is passed


def test_a_deadline_follows_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was granted while others ran is over when it is, and more is granted only to who still needs it."""
    begun = 100.0
    clock = {"now": begun}
    monkeypatch.setattr(pace.time, "monotonic", lambda: clock["now"])
    deadline = Deadline(1.0)
    for after, slow, passed, left in [(1.5, 3, False, 1.5), (2.5, 1, False, 0.5), (3.5, 4, False, 0.5), (4.5, 1, True, 0.0)]:
        clock["now"] = begun + after
        monkeypatch.setattr(pace, "slowness", lambda slow=slow: slow)
        assert deadline.passed is passed
        assert deadline.left == pytest.approx(left)


@pytest.mark.timeout(0.2)
def test_the_time_limit_of_a_test_is_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is late on a slow machine goes on; who is later than that, fails."""
    slow = [4.0]
    asked: list[int] = []
    monkeypatch.setattr(pace, "slowness", lambda: (asked.append(1), slow[0])[1])  # type: ignore[func-returns-value]
    wait_until(lambda: asked, "the time limit is over")
    slow[0] = 1.0
    with pytest.raises(pytest.fail.Exception, match="Timeout"):
        time.sleep(60)
