"""What all test modules share: data sets whose rows tell whose they are, fresh processes, and a look at what a test left behind.

Nothing here sleeps to let something happen: `until` and `Script` wait for the event itself, up to a deadline.
"""

from __future__ import annotations

import gc
import importlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import pytest

ROOT = Path(__file__).parents[1]

DEADLINE = 20.0
"""Seconds after which an event that is waited for is given up; generous, since only a failing test waits so long."""

GONE_WITHIN = 2.0
"""Seconds in which nothing of a process that ended, however it ended, may be left."""

OURS = ("socket", "eventpoll", "eventfd", "pidfd", "/dev/shm")
"""Kinds of descriptors that a loader opens. TensorFlow and pytest open others of their own at any time."""


@dataclass(frozen=True)
class DataSet:
    """Files ``<path>/<id>.npy``, every element of each of which is the same, a value that its label tells.

    Attributes:
        path: the folder.
        ids: ``id-0``, ``id-1``, ...
        labels: the number of each id; modulo ``n_classes`` where that was given.
        shape: of each file.
        dtype: of each file.
    """

    path: Path
    ids: list[str]
    labels: dict[str, int]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    n_classes: int | None = None

    def file(self, id: object) -> Path:
        """Where the sample ``id`` lies."""
        return self.path / f"{id}.npy"

    def sample(self, number: int) -> np.ndarray:
        """What the file of sample ``number`` holds."""
        return np.full(self.shape, number % 97, self.dtype)

    def write(self, number: int) -> None:
        """Write the file of sample ``number``, as it was at first."""
        np.save(self.file(self.ids[number]), self.sample(number))

    def fifo(self, number: int) -> Path:
        """Put in the place of a sample's file one that never answers."""
        path = self.file(self.ids[number])
        path.unlink()
        os.mkfifo(path)
        return path

    def check(self, X: np.ndarray, y: np.ndarray) -> list[int]:
        """Assert that every row of ``X`` is the sample whose int label stands in ``y``; returns the labels."""
        assert self.n_classes is None, "with few classes a label does not tell the sample"
        assert len(X) == len(y)
        for row, label in zip(X, y.tolist(), strict=True):
            np.testing.assert_array_equal(row, self.sample(label).reshape(row.shape))
        return y.tolist()


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., DataSet]:
    """Writes a data set into ``tmp_path / name``; see `DataSet`."""

    def write(
        count: int = 8,
        shape: tuple[int, ...] = (4, 3),
        dtype: object = np.float32,
        *,
        n_classes: int | None = None,
        name: str = "data",
    ) -> DataSet:
        ids = [f"id-{number}" for number in range(count)]
        labels = {id: number % (n_classes or count) for number, id in enumerate(ids)}
        data = DataSet(tmp_path / name, ids, labels, shape, np.dtype(dtype), n_classes)
        data.path.mkdir()
        for number in range(count):
            data.write(number)
        return data

    return write


def wait_until(condition: Callable[[], object], what: str, within: float = DEADLINE) -> None:
    """Return once ``condition`` holds; fail if it does not within so many seconds."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {within} s: {what}")
        select.select([], [], [], 0.002)


@pytest.fixture(name="until")
def _until() -> Callable[..., None]:
    """`wait_until`."""
    return wait_until


def calls(thread: int) -> dict[str, str]:
    """The functions that the thread with this ident is in, and the files that they stand in."""
    found = {}
    frame = sys._current_frames().get(thread)
    while frame is not None:
        found[frame.f_code.co_name] = frame.f_code.co_filename
        frame = frame.f_back
    return found


def waits_for_workers(thread: int) -> bool:
    """Whether the thread with this ident waits for a batch that is being read."""
    return calls(thread).get("wait", "").endswith("shmgen/_pool.py")


class Asking(threading.Thread):
    """Calls ``ask`` in a thread of its own, and keeps what it returns or raises."""

    def __init__(self, ask: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._ask = ask
        self.result: object = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._ask()
        except BaseException as error:
            self.error = error

    def until_it_waits(self) -> None:
        """Return once the thread waits for workers."""
        wait_until(lambda: waits_for_workers(self.ident or 0), "the thread waits for a batch")

    def until_anybody_waits(self, within: str = "run") -> None:
        """Return once some thread waits for workers, while this one is in a function called ``within``."""
        wait_until(
            lambda: any(map(waits_for_workers, sys._current_frames())) and within in calls(self.ident or 0),
            f"somebody waits for a batch, and the thread in {within}",
        )

    def outcome(self, within: float = DEADLINE) -> object:
        """What ``ask`` returned, or else raised."""
        self.join(within)
        assert not self.is_alive(), f"still waiting after {within} s"
        return self.result if self.error is None else self.error


@pytest.fixture
def asking() -> type[Asking]:
    """`Asking`."""
    return Asking


@dataclass
class Gone:
    """Processes whose end is waited for, through descriptors that no reuse of a process id can fool."""

    fds: dict[int, int] = field(default_factory=dict)

    def watch(self, pid: int) -> None:
        self.fds[pid] = os.pidfd_open(pid)

    def wait(self, within: float) -> set[int]:
        """Process ids of those that live on after so many seconds."""
        deadline = time.monotonic() + within
        poll = select.poll()
        left = {fd: pid for pid, fd in self.fds.items()}
        for fd in left:
            poll.register(fd, select.POLLIN)
        while left:
            ended = poll.poll(max(0.0, 1000 * (deadline - time.monotonic())))
            if not ended:
                break
            for fd, _ in ended:
                poll.unregister(fd)
                del left[fd]
        return set(left.values())

    def close(self) -> None:
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()


PREAMBLE = """\
import os, signal, sys, threading, time
import numpy as np
import shmgen
from shmgen import Loader

# A shell has what it runs in the background ignore Ctrl-C, tests included.
signal.signal(signal.SIGINT, signal.default_int_handler)

DATA = sys.argv[1]
IDS = [f"id-{k}" for k in range(int(sys.argv[2]))]
LABELS = {id: k for k, id in enumerate(IDS)}


def say(*words):
    print(*words, flush=True)


def calls(thread):
    found = {}
    frame = sys._current_frames().get(thread)
    while frame is not None:
        found[frame.f_code.co_name] = frame.f_code.co_filename
        frame = frame.f_back
    return found


def somebody_waits():
    return any(calls(thread).get("wait", "").endswith("shmgen/_pool.py") for thread in sys._current_frames())


def say_when_waiting(word, within="<module>"):
    '''Say ``word`` once some thread waits for a batch, and the main one is in a function called ``within``.'''

    def watch(main=threading.get_ident()):
        while not (somebody_waits() and within in calls(main)):
            time.sleep(0.002)
        say(word)

    threading.Thread(target=watch, daemon=True).start()

"""
"""What every script begins with. It has no guard, as users' scripts have none."""


class Script:
    """A Python script that runs in a process group of its own, in an interpreter that is strict about what is left open.

    Attributes:
        process: the process.
        out, err: what it has written, once `end` has returned.
    """

    def __init__(self, path: Path, code: str, data: DataSet, *, options: Sequence[str] = ("-W", "error", "-X", "dev")) -> None:
        path.write_text(PREAMBLE + code)
        self.process = subprocess.Popen(
            [sys.executable, *options, str(path), str(data.path), str(len(data.ids))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd=path.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
        )
        self.out = self.err = ""
        self._gone = Gone()
        self._gone.watch(self.process.pid)

    def until(self, word: str, within: float = 60.0) -> None:
        """Return once the script has said ``word``, and remember its children."""
        assert self.process.stdout is not None
        poll = select.poll()
        fd = self.process.stdout.fileno()
        poll.register(fd, select.POLLIN)
        deadline = time.monotonic() + within
        while word not in self.out.split():
            if not poll.poll(max(0.0, 1000 * (deadline - time.monotonic()))) or not (data := os.read(fd, 1 << 16)):
                self.kill()
                pytest.fail(f"the script never said {word!r}; it said {self.out!r} and {self.err!r}")
            self.out += data.decode()
        with suppress(psutil.NoSuchProcess, ProcessLookupError):  # it may be on its way out
            for child in psutil.Process(self.process.pid).children(recursive=True):
                if child.pid not in self._gone.fds:
                    self._gone.watch(child.pid)

    @property
    def workers(self) -> list[psutil.Process]:
        """The workers that live now."""
        return workers_of(psutil.Process(self.process.pid))

    def signal(self, number: int, *, group: bool) -> None:
        """Send a signal to the script alone, or to its whole process group."""
        (os.killpg if group else os.kill)(self.process.pid, number)

    def left(self, within: float) -> set[int]:
        """Process ids of the script and its children that live on after so many seconds."""
        return self._gone.wait(within)

    def end(self, within: float = 60.0) -> int:
        """Wait for the script to end by itself; its exit code."""
        try:
            # The pipes end when all who inherited them have ended: workers too.
            out, err = self.process.communicate(timeout=within)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"the script, or who inherited its pipes, lives on after {within} s; it said {self.out!r}, {self.err!r}")
        self.out += out.decode()
        self.err += err.decode()
        return self.process.returncode

    def kill(self) -> None:
        """Make sure that all of it has gone."""
        for pid in self._gone.wait(0):
            if pid == self.process.pid or psutil.pid_exists(pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if self.process.returncode is None:
            out, err = self.process.communicate(timeout=DEADLINE)
            self.out += out.decode()
            self.err += err.decode()
        self._gone.close()


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[..., Script]]:
    """Starts `Script`; called with its code, a `DataSet`, and ``options`` of the interpreter."""
    started: list[Script] = []

    def start(code: str, data: DataSet, **options: Any) -> Script:
        started.append(Script(tmp_path / f"script_{len(started)}.py", code, data, **options))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """The workers among the children of ``process``."""
    return [child for child in process.children() if any("shmgen" in word for word in _command(child))]


@pytest.fixture
def workers() -> Callable[[], list[psutil.Process]]:
    """The workers of this process that live now."""
    return lambda: workers_of(psutil.Process())


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ["shmgen, dead but not reaped"]


def _children() -> set[str]:
    # multiprocessing's resource tracker, which the first segment starts, serves the whole process until its end.
    found = psutil.Process().children(recursive=True)
    return {str(child) for child in found if not any("resource_tracker" in word for word in _command(child))}


def _descriptors() -> Counter[str]:
    found: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the one that listed the directory
            continue
        found.update(kind for kind in OURS if kind in target)
    return found


def _names() -> set[str]:
    return set(os.listdir("/dev/shm"))


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test: no child process, no more descriptors of the kinds that a loader opens, no new name in /dev/shm."""
    children, descriptors, names = _children(), _descriptors(), _names()

    def left() -> str:
        found = [f"process {child}" for child in sorted(_children() - children)]
        found += [f"{number} more descriptors of kind {kind}" for kind, number in (_descriptors() - descriptors).items()]
        found += [f"/dev/shm/{name}" for name in sorted(_names() - names)]
        return ", ".join(found)

    yield
    # The frames of a failed test hold its loaders.
    if getattr(request.node, "failed", False):
        return
    # Others on this machine make names of their own in /dev/shm; those of ours would stay.
    deadline = time.monotonic() + GONE_WITHIN
    while found := left():
        gc.collect()
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: {found}")
        select.select([], [], [], 0.01)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Let `_nothing_left` know that a test failed."""
    yield
    if call.when == "call" and call.excinfo is not None:
        item.failed = True  # type: ignore[attr-defined]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Makes a module of the user's own, beside which nothing stands."""

    def make(code: str) -> ModuleType:
        (tmp_path / "of_the_users_own.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "of_the_users_own", raising=False)
        return importlib.import_module("of_the_users_own")

    yield make
    sys.modules.pop("of_the_users_own", None)
