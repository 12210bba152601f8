"""Shared by all test modules: data sets whose rows identify their samples, scripts in new processes, and a check for leftovers.

Nothing here sleeps for a fixed time: `wait_until` and `Script` wait for the event itself, up to a deadline (see `pace`).
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType, MappingProxyType, ModuleType
from typing import Any

import hypothesis
import numpy as np
import psutil
import pytest
from leftovers import MARKED, Before, Gone, workers_of
from pace import Deadline

from shmgen._memory.ring import Ring
from shmgen._tools.cli import main
from shmgen._worker import launch

ROOT = Path(__file__).parents[1]

# A shell makes its background jobs ignore Ctrl-C, and processes that they start inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


DEADLINE = 20.0
"""Seconds to wait for an event before the test fails; generous, since only a failing test waits that long."""

GONE_WITHIN = 2.0
"""Seconds after the end of a process, however it ended, until nothing of it may be left."""


@dataclass(frozen=True)
class DataSet:
    """Files ``<path>/<id>.npy``; all elements of a file have one value, which follows from its label."""

    path: Path
    ids: list[str]  # ``id-0``, ``id-1``, ...
    labels: dict[str, int]  # the number of each id, modulo ``n_classes`` if that was given
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    n_classes: int | None = None

    def file(self, id: object) -> Path:
        """The path of the sample ``id``."""
        return self.path / f"{id}.npy"

    def sample(self, number: int) -> np.ndarray:
        """The array in the file of sample ``number``."""
        return np.full(self.shape, number % 97, self.dtype)

    def write(self, number: int) -> None:
        """Write the file of sample ``number`` with its original content."""
        np.save(self.file(self.ids[number]), self.sample(number))

    def fifo(self, number: int) -> Path:
        """Replace a sample's file by a FIFO, so that reading it never ends."""
        path = self.file(self.ids[number])
        path.unlink()
        os.mkfifo(path)
        return path

    def check(self, X: np.ndarray, y: np.ndarray) -> list[int]:
        """Assert that every row of ``X`` is the sample that its int label in ``y`` says; return the labels."""
        assert self.n_classes is None, "with few classes, labels do not identify samples"
        assert len(X) == len(y)
        for row, label in zip(X, y.tolist(), strict=True):
            np.testing.assert_array_equal(row, self.sample(label).reshape(row.shape))
        return y.tolist()


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., DataSet]:
    """A function that writes a `DataSet` into ``tmp_path / name``."""

    def write(
        count: int = 8,
        shape: tuple[int, ...] = (4, 3),
        dtype: Any = np.float32,
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


# Without a database of examples: the folder for it may belong to another user.
hypothesis.settings.register_profile("shmgen", database=None)
hypothesis.settings.load_profile("shmgen")


def lines(function: Callable[[], object]) -> int:
    """The number of lines and calls of Python that ``function`` executes."""
    count = 0

    def trace(*_: Any) -> Any:
        nonlocal count
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


def wait_until(condition: Callable[..., object], what: str, within: float = DEADLINE) -> None:
    """Return once ``condition`` holds; fail if it does not hold within ``within`` seconds (see `Deadline`)."""
    deadline = Deadline(within)
    while not condition():
        if deadline.passed:
            pytest.fail(f"not within {deadline}: {what}")
        select.select([], [], [], 0.002)


def until_waiting(loader: Any, requests: int = 1) -> None:
    """Return once ``requests`` requests are waiting for a batch of ``loader``."""
    wait_until(lambda: loader.state.waiting >= requests, f"{requests} requests wait for a batch")


class Asking(threading.Thread):
    """Calls ``ask`` in a thread of its own, and keeps the result or the error."""

    def __init__(self, ask: Callable[..., object]) -> None:
        super().__init__(daemon=True)
        self._ask = ask
        self.result: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._ask()
        except BaseException as error:
            self.error = error

    def outcome(self, within: float = DEADLINE) -> Any:
        """The value that ``ask`` returned, or the error that it raised."""
        deadline = Deadline(within)
        while self.is_alive():
            self.join(deadline.left)
            assert not (self.is_alive() and deadline.passed), f"still waiting after {deadline}"
        return self.result if self.error is None else self.error


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Switches garbage collection off, so that objects in reference cycles stay."""
    gc.disable()
    yield
    gc.enable()


def python(
    *words: object, env: Mapping[str, str] = MappingProxyType({}), check: bool = False, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """Run Python with this checkout importable, and wait until it ends; its output is text unless ``options`` say otherwise."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    options = {"capture_output": True, "text": True, **options}
    return subprocess.run([sys.executable, *map(str, words)], env=environment, check=check, **options)


PREAMBLE = """\
import os, signal, sys, threading, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # processes started under nohup ignore it
import numpy as np
import shmgen
from shmgen import Loader

DATA = sys.argv[1]
IDS = [f"id-{k}" for k in range(int(sys.argv[2]))]
LABELS = {id: k for k, id in enumerate(IDS)}


def say(*words):
    print(*words, flush=True)


def until_waiting(loader):
    while not loader.state.waiting:
        time.sleep(0.002)


def say_when_waiting(word, loader, begun=None):
    '''Say ``word`` once the event ``begun`` (if given) is set and a request is waiting for a batch.'''

    def watch():
        if begun is not None:
            begun.wait()
        until_waiting(loader)
        say(word)

    threading.Thread(target=watch, daemon=True).start()

"""
"""The beginning of every script; without ``if __name__ == "__main__"``, since users' scripts often have none."""


class Script:
    """A Python script that runs in a process group of its own; ``-W error`` makes it fail when it leaves a file open."""

    def __init__(self, path: Path, code: str, data: DataSet, *, options: Sequence[str] = ("-W", "error")) -> None:
        path.write_text(MARKED + PREAMBLE + code)
        self.process = subprocess.Popen(
            [sys.executable, *options, str(path), str(data.path), str(len(data.ids))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd=path.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
        )
        self.out = self.err = ""  # the complete output, once `end` has returned
        self._gone = Gone()
        self._gone.watch(self.process.pid)

    def until(self, word: str, within: float = 60.0) -> None:
        """Return once the script has printed ``word``; watch the children that it has then."""
        assert self.process.stdout is not None
        poll = select.poll()
        fd = self.process.stdout.fileno()
        poll.register(fd, select.POLLIN)
        deadline = Deadline(within)
        while word not in self.out.split():
            if not poll.poll(1000 * deadline.left) and not deadline.passed:
                continue
            if not poll.poll(0) or not (data := os.read(fd, 1 << 16)):
                self.kill()
                pytest.fail(f"the script never said {word!r}; it said {self.out!r} and {self.err!r}")
            self.out += data.decode()
        with suppress(psutil.NoSuchProcess, ProcessLookupError):  # the script may be ending
            for child in psutil.Process(self.process.pid).children(recursive=True):
                if child.pid not in self._gone.fds:
                    self._gone.watch(child.pid)

    @property
    def workers(self) -> list[psutil.Process]:
        """The script's workers that are alive now."""
        return workers_of(psutil.Process(self.process.pid))

    def signal(self, number: int, *, group: bool) -> None:
        """Send a signal to the script alone, or to its whole process group."""
        (os.killpg if group else os.kill)(self.process.pid, number)

    def left(self, within: float) -> set[int]:
        """The ids of those processes, of the script and its children, that are still alive after ``within`` seconds."""
        return self._gone.wait(within)

    def end(self, within: float = 60.0) -> int:
        """Wait for the script to end by itself; return its exit code."""
        deadline = Deadline(within)
        while True:
            try:
                # The pipes end once all processes that inherited them have ended, workers too.
                out, err = self.process.communicate(timeout=deadline.left)
            except subprocess.TimeoutExpired:
                if deadline.passed:
                    break
            else:
                self.out += out.decode()
                self.err += err.decode()
                return self.process.returncode
        self.kill()
        pytest.fail(f"the script, or a process that has its pipes, lives after {deadline}; it said {self.out!r}, {self.err!r}")

    def kill(self) -> None:
        """Kill the script and its children, if they are still alive."""
        for pid in self._gone.wait(0):
            if pid == self.process.pid or psutil.pid_exists(pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # and its children, unless they left its process group
            out, err = self.process.communicate()
            self.out += out.decode()
            self.err += err.decode()
        self._gone.close()


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[..., Script]]:
    """A function that starts a `Script` from its code, a `DataSet`, and ``options`` of the interpreter."""
    started: list[Script] = []

    def start(code: str, data: DataSet, **options: Any) -> Script:
        started.append(Script(tmp_path / f"script_{len(started)}.py", code, data, **options))
        return started[-1]

    yield start
    for one in started:
        one.kill()


class Ran:
    """A command that was run in this process: its exit status and its output."""

    def __init__(self, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
        try:
            self.status = main(words)
        except SystemExit as end:
            self.status = int(end.code or 0)
        self.out, self.err = capsys.readouterr()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def interrupted_by_ctrl_c(*words: object, **options: Any) -> tuple[int, bytes, bytes]:
    """Send Ctrl-C to a command once its two workers are alive, and check that they end; return exit status and output."""
    command = [sys.executable, "-W", "error", "-m", "shmgen", *map(str, words)]
    options = {"env": {**os.environ, "PYTHONPATH": str(ROOT)}, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    with subprocess.Popen(command, start_new_session=True, **options) as process:
        try:
            wait_until(lambda: len(workers_of(psutil.Process(process.pid))) == 2, "both workers are there")
            workers = workers_of(psutil.Process(process.pid))
            os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate()
        finally:
            process.kill()
    assert not any(worker.is_running() for worker in workers)
    return process.returncode, out, err


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """A function that runs a command in the test's temporary folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: Ran(capsys, [*map(str, words)])


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills every slot with 0xA5 as soon as it is released, so that reading a released slot is noticed."""
    released = Ring.released

    def released_and_poisoned(self: Ring) -> list[int]:
        slots = released(self)
        for slot in slots:
            for array in self.arrays[slot]:
                array.view(np.uint8)[:] = 0xA5
        return slots

    monkeypatch.setattr(Ring, "released", released_and_poisoned)


@pytest.fixture
def workers() -> Callable[[], list[psutil.Process]]:
    """A function that returns the workers of this process that are alive now."""
    return lambda: workers_of(psutil.Process())


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """An empty folder, and the port of an nginx that serves the files in it."""
    from servers import nginx

    home = tmp_path_factory.mktemp("nginx")
    (home / "root").mkdir()
    with nginx(home / "root", home / "home") as port:
        yield home / "root", port


@pytest.fixture(scope="session")
def signing() -> None:
    """Has obstore sign something first: from then on it keeps three descriptors open, which are no leftovers of a test."""
    obstore = pytest.importorskip("obstore", reason="obstore is not installed: it is in the extra remote")
    from obstore.store import S3Store

    obstore.sign(S3Store("bucket", access_key_id="a", secret_access_key="b"), "GET", "key", timedelta(seconds=1))


@pytest.fixture
def root(served: tuple[Path, int]) -> Iterator[Path]:
    """The folder that is served: ``id-0.npy`` to ``id-23.npy``, where file n is full of n, and the same rows in ``all.npy``."""
    root, _ = served
    rows = np.repeat(np.arange(24, dtype="f4"), 12).reshape(24, 4, 3)
    for number, row in enumerate(rows):
        np.save(root / f"id-{number}.npy", row)
    np.save(root / "all.npy", rows)
    yield root
    shutil.rmtree(root)
    root.mkdir()


@pytest.fixture
def proxy(served: tuple[Path, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A `Proxy` in front of the server; failed requests are retried at once."""
    from servers import Proxy

    from shmgen._storage import store

    monkeypatch.setattr(store, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    proxy = Proxy(served[1])
    yield proxy
    proxy.stop()


@pytest.fixture(autouse=True)
def _workers_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``make test COVERAGE=1``, workers start coverage themselves: they import nothing that would start it for them."""
    if "COVERAGE_PROCESS_CONFIG" in os.environ:
        place = str(Path(str(sys.modules["coverage"].__file__)).parents[1])
        measure = "try:\n import coverage; coverage.process_startup()\nexcept OSError: pass"  # fails if the folder is gone
        start = f"import sys; sys.path.append({place!r}); exec({measure!r}); sys.path.pop()\n"
        monkeypatch.setattr(launch, "BOOT", start + launch.BOOT)


_imported = 0
"""The number of imported modules when objects were last frozen."""


@pytest.fixture(autouse=True)
def _modules_are_frozen() -> None:
    """Excludes objects of imported modules from garbage collection: TensorFlow's would add 0.4 s to each collection."""
    global _imported  # noqa: PLW0603
    if len(sys.modules) > _imported + 100:
        _imported = len(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves a child process, a descriptor of a kind that a loader opens, or a name in /dev/shm."""
    before = Before()
    yield
    # The traceback of a failed test keeps its loaders alive.
    if getattr(request.node, "failed", False):
        return
    deadline = Deadline(GONE_WITHIN)
    while left := before.left():
        if deadline.passed:
            pytest.fail(f"left behind: {', '.join(left)}")
        gc.collect()  # may take longer than the deadline if much is loaded, so `left` is called once more after it
        select.select([], [], [], 0.01)


def pytest_configure(config: pytest.Config) -> None:
    """Set up the environment in which the frameworks are imported."""
    if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
        sys.modules["tensorflow"] = None  # type: ignore[assignment]  # if it is installed, Keras imports it, which takes seconds
    if hasattr(config, "workerinput"):
        return
    # All processes of a run share JAX's compilation cache, so that each model is compiled once.
    compiled = tempfile.TemporaryDirectory(prefix="shmgen-jax-")
    config.add_cleanup(compiled.cleanup)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"


@pytest.hookimpl(hookwrapper=True)
def pytest_timeout_set_timer(settings: Any) -> Iterator[None]:
    """Make the time limit of each test a `Deadline`, too."""
    deadline = Deadline(settings.timeout)
    yield
    strike: Any = signal.getsignal(signal.SIGALRM)

    def strike_when_passed(number: int, frame: FrameType | None) -> None:
        if deadline.passed:
            strike(number, frame)
        signal.setitimer(signal.ITIMER_REAL, max(0.1, deadline.left))

    if callable(strike):
        signal.signal(signal.SIGALRM, strike_when_passed)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Tell `_nothing_left` that a test failed."""
    yield
    if call.when == "call" and call.excinfo is not None:
        item.failed = True  # type: ignore[attr-defined]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """A function that makes an importable module from code, as a user's own module would be."""

    def make(code: str) -> ModuleType:
        (tmp_path / "of_the_users_own.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "of_the_users_own", raising=False)
        return importlib.import_module("of_the_users_own")

    yield make
    sys.modules.pop("of_the_users_own", None)
