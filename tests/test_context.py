"""Users' functions find the same modules, folder, environment and logging in every worker as in the calling process."""

from __future__ import annotations

import importlib.util
import json
import logging
import multiprocessing.spawn
import os
import re
import subprocess
import sys
import venv
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, python
from ways import N, computed, kill, rows

from shmgen import InputError, Loader, StartError

# Functions are defined inside tests: for a function of this module, workers would import pytest and Keras.

TENFOLD = "import numpy as np\ndef fill(id): return np.full(3, FACTOR * id, np.float64)\nFACTOR = 10\n"
"""A module with a function that returns ten times the id."""


def read(source: Any, **options: Any) -> np.ndarray:
    """All rows in the order of the ids."""
    return rows(computed(source, shuffle=False, tail="keep", **{"workers": 1, **options}))


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that names a module to be removed from `sys.modules` after the test."""

    def forget(name: str) -> None:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        del sys.modules[name]

    return forget


# Modules


def test_a_module_that_a_worker_cannot_import_is_named(module: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a module can't be imported in a worker, the error has its own text and a remedy, and no lines of shmgen."""
    monkeypatch.setattr(sys, "of_this_process", True, raising=False)
    own = module("import sys\nsys.of_this_process\ndef fill(id): return [id, id, id]\n")
    with computed(own.fill, workers=1, dtype="i8") as loader, pytest.raises(StartError) as caught:
        list(loader)
    assert re.match(
        r"a worker can't import what functions of yours need: .*workers=0; AttributeError: .*of_this_process", str(caught.value)
    )
    assert "shmgen/" not in str(caught.value)


SETUPTOOLS = """
import sys
from importlib.util import spec_from_file_location
MAPPING = {MAPPING}

class _EditableFinder:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name in MAPPING:
            return spec_from_file_location(name, MAPPING[name])
        return None

def install():
    if not any(finder == _EditableFinder for finder in sys.meta_path):
        sys.meta_path.append(_EditableFinder)
"""
"""The finder that setuptools writes for an editable installation, shortened."""


def test_an_editable_installation_is_found(tmp_path: Path) -> None:
    """Workers find a package of an editable installation in a virtual environment, and have that environment's `sys.prefix`.

    With the first loader, only its workers import the package; for the second, the main process imports it, too.
    """
    venv.create(tmp_path / "venv", symlinks=True)
    (site,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    package = tmp_path / "elsewhere/inplace.py"
    package.parent.mkdir()
    package.write_text(f"import sys\n{TENFOLD}    \nHERE = sys.prefix, sys.exec_prefix\n")
    (site / "__editable___inplace_finder.py").write_text(SETUPTOOLS.replace("{MAPPING}", repr({"inplace": str(package)})))
    (site / "__editable__.inplace.pth").write_text("import __editable___inplace_finder; __editable___inplace_finder.install()\n")
    mine = next(entry for entry in sys.path if entry.endswith("site-packages"))
    (site / "mine.pth").write_text(f"{mine}\n")
    code = """
import sys
import numpy as np
from shmgen import Loader

def alone(id):
    import inplace
    assert sys.prefix != sys.base_prefix
    assert inplace.HERE == (sys.prefix, sys.exec_prefix) == (sys.argv[1], sys.argv[1])
    return inplace.fill(id)

def check(source):
    with Loader(range(8), None, 4, source=source, dim=3, n_channels=1, dtype="f8", workers=1, shuffle=False) as loader:
        assert [row for X, in loader for row in X[:, 0, 0].tolist()] == [10 * k for k in range(8)]

check(alone)
from inplace import fill
check(fill)
print("right")
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    done = subprocess.run(
        [tmp_path / "venv/bin/python", script, tmp_path / "venv"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("right\n", 0), done.stderr


def test_workers_import_the_shmgen_of_the_main_process(tmp_path: Path) -> None:
    """If several shmgen packages can be found, workers import the one that the main process runs."""
    (tmp_path / "other/shmgen").mkdir(parents=True)
    (tmp_path / "other/shmgen/__init__.py").write_text("raise RuntimeError('another version')")
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout/shmgen").symlink_to(ROOT / "shmgen")
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(tmp_path / "checkout")!r})
from shmgen import Loader

with Loader(range(8), batch_size=4, source=lambda id: [id], workers=1) as loader:
    assert len(list(loader)) == 2
""")
    done = python(script, env={"PYTHONPATH": str(tmp_path / "other")})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("entry", ["", "sub/.."], ids=["empty", "relative"])
def test_relative_paths_survive_chdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: Callable, entry: str) -> None:
    """Workers import a module from the folder that a relative entry meant first, even after the process changes its folder."""
    forgotten("beside")
    for folder, code in {"here": TENFOLD, "there": "def fill(id): return [-1, -1, -1]"}.items():
        (tmp_path / folder / "sub").mkdir(parents=True)
        (tmp_path / folder / "beside.py").write_text(code)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", [entry, *sys.path])
    module = importlib.import_module("beside")
    with computed(module.fill, shuffle=False, tail="keep", workers=1) as loader:
        list(loader)
        monkeypatch.chdir(tmp_path / "there")
        kill_all(loader)
        for _ in range(3):
            np.testing.assert_array_equal(np.concatenate([X[:, 0, 0] for (X,) in loader]), 10.0 * np.arange(N))


# The process around a function


ALIKE = """
import json

def tell():
    return {
        "working folder": os.getcwd(),
        "relative file": open("note").read(),
        "variable": os.environ.get("SOME_VARIABLE"),
        "PYTHONPATH": os.environ.get("PYTHONPATH"),
        "arguments": sys.argv,
        "flags": [sys.flags.utf8_mode, sys.dont_write_bytecode],
        "prefixes": [sys.prefix, sys.exec_prefix],
    }

def function(id):
    path = f"{DATA}/{os.getpid()}"
    if not os.path.exists(path):
        with open(path + ".new", "w") as file: json.dump(tell(), file)
        os.rename(path + ".new", path)
    return np.zeros(3)

def until(workers):
    while len([name for name in os.listdir(DATA) if name.isdecimal()]) < workers: list(loader)

loader = Loader(range(64), None, 2, source=function, dim=3, n_channels=1, dtype="f8", workers=2)
say(json.dumps(tell()))
until(2)
os.chdir("/")
os.environ["SOME_VARIABLE"] = "another"
sys.argv.append("another")
for worker in loader.state.workers:
    os.kill(worker.pid, signal.SIGKILL)
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
until(4)
import gc
parts = {type(part).__name__: part for part in gc.get_objects()}
with parts["Prefetcher"].lock: parts["Supervisor"].resize(type(parts["Supervisor"].target)(3, 1))  # as "auto" does
until(5)
loader.close()
"""


def test_later_workers_start_as_the_first_did(folder: Callable, script: Callable) -> None:
    """The first workers, their replacements and added ones have the folder, environment and arguments as at construction."""
    data = folder(1)
    (data.path.parent / "note").write_text("here")
    run = script(ALIKE, data, options=("-X", "utf8", "-B"))
    assert run.end() == 0, run.err
    own = json.loads(run.out)
    told = [json.loads(path.read_text()) for path in data.path.iterdir() if path.name.isdecimal()]
    assert len(told) == 5
    assert told == [own] * 5


def test_a_deleted_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """If the working folder is deleted, new workers work on, and that is logged where they are in another one."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    with computed(workers=1) as loader:
        (tmp_path / "gone").rmdir()
        for folder in (None, tmp_path):
            if folder:
                monkeypatch.chdir(folder)
            kill_all(loader)
            assert {len(list(loader)) for _ in range(3)} == {len(loader)}  # some were read ahead
            logged = f"the working folder {tmp_path}/gone is gone: in workers that start from now on, relative paths are those in"
            assert caplog.text.count(f"{logged} {tmp_path}") == bool(folder)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert len(read(None)) == N


def kill_all(loader: Loader) -> None:
    """Kill a loader's workers."""
    import psutil

    for worker in loader.state.workers:
        kill(psutil.Process(worker.pid))


@pytest.mark.parametrize(("is_frozen", "why"), [(True, "frozen"), (False, "sys.executable")])
def test_a_program_without_an_interpreter(monkeypatch: pytest.MonkeyPatch, is_frozen: bool, why: str) -> None:
    """In a frozen program or an embedded Python, the constructor raises an error, and both of its remedies work."""
    python = sys.executable
    monkeypatch.setattr(sys, "frozen", is_frozen, raising=False)
    monkeypatch.setattr(sys, "executable", "/bin/false" if is_frozen else "")
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", os.fsencode(sys.executable))
    with pytest.raises(InputError, match=rf"^workers: .*{why}.*multiprocessing\.set_executable, or use workers=0$"):
        computed()
    assert len(read(None, workers=0)) == N
    multiprocessing.set_executable(python)
    assert len(read(None)) == N


# Warnings and log records


def test_warning_filters_of_the_command_line_and_environment(tmp_path: Path) -> None:
    """``-W error`` turns a function's warning into an error with id and line; PYTHONWARNINGS can ignore others."""
    script = tmp_path / "script.py"
    script.write_text("""if True:
    import logging, warnings
    from shmgen import Loader, FunctionError

    logging.getLogger("shmgen").addHandler(logging.NullHandler())

    def function(id):
        warnings.warn("ignored", FutureWarning)
        warnings.warn("no such picture")
        return [0.0, 0.0, 0.0]

    try:
        with Loader(range(8), None, 4, source=function, dim=3, n_channels=1, dtype="f8", workers=1) as loader: list(loader)
    except FunctionError as error:
        print(error)
    """)
    run = python("-W", "error::UserWarning", script, env={"PYTHONWARNINGS": "ignore::FutureWarning"}, check=True)
    assert re.match(r"sample \d, source of field 'X': UserWarning: no such picture", run.stdout), run.stderr
    assert f'File "{script}", line 9, in function\n    warnings.warn("no such picture")' in run.stdout.replace("    " * 2, "    ")
    assert run.stderr == ""


@pytest.mark.filterwarnings("default")
def test_warnings_in_workers_are_shown_in_the_main_process() -> None:
    """A warning in workers is shown once, with file and line, and its class or the nearest that can be sent."""

    class Own(UserWarning):
        def __init__(self, one: object, two: object) -> None:
            super().__init__(f"{one} and {two}")

    def warns(x: Any, rng: object) -> Any:
        warnings.warn("no such picture", RuntimeWarning, stacklevel=1)
        warnings.warn(Own(1, 2), stacklevel=1)
        return x

    with warnings.catch_warnings(record=True) as caught, computed(transform=warns, workers=2) as loader:
        for _ in range(3):
            list(loader)
    assert sorted((warning.category.__name__, str(warning.message)) for warning in caught) == [
        ("RuntimeWarning", "no such picture"),
        ("UserWarning", "1 and 2"),
    ]
    assert {(warning.filename, warning.lineno) for warning in caught} == {
        (__file__, warns.__code__.co_firstlineno + number) for number in (1, 2)
    }


def test_log_records_in_workers_are_handled_in_the_main_process(caplog: pytest.LogCaptureFixture) -> None:
    """A log record in a worker is handled once, by the logger of that name and its level, with exception text and extras."""
    caplog.set_level(logging.INFO, "of_the_users_own")

    def logs(x: Any, rng: object) -> None:
        own = logging.getLogger("of_the_users_own")
        own.debug("not this")
        logging.getLogger("of_the_users_own.sub").info(
            "sample %d", int(x[0, 0]), extra={"process_id": os.getpid(), "lock": own.parent}
        )
        try:
            raise ValueError("no such picture")
        except ValueError:
            own.exception("sorry")

    assert len(rows(computed(transform=logs, workers=2, tail="keep"))) == N
    # There may be records of samples that were read ahead for the next epoch, too.
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert {*told} == {f"sample {number}" for number in range(N)}
    assert "not this" not in {record.getMessage() for record in caplog.records}
    (error, *_) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "ValueError: no such picture" in logging.Formatter().format(error)
    assert {record.process_id for record in caplog.records if hasattr(record, "process_id")} == {
        record.process for record in caplog.records
    }
    assert os.getpid() not in {record.process for record in caplog.records}


def test_large_log_records_do_not_break_the_stream(caplog: pytest.LogCaptureFixture) -> None:
    """Records of megabytes, from several threads of a worker at once, and batches arrive whole."""
    caplog.set_level(logging.INFO, "of_the_users_own")

    def logs(id: int) -> np.ndarray:
        import threading

        def log(number: int) -> None:
            logging.getLogger("of_the_users_own").info("%s", str(number) * 1_000_000)

        threads = [threading.Thread(target=log, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return np.full(3, id, np.float64)

    found = rows(computed(logs, ids=range(4), batch_size=2, shuffle=False, workers=2))
    assert found[:, 0].tolist() == [0, 1, 2, 3]
    messages = [record.getMessage() for record in caplog.records]
    assert {*messages} == {str(number) * 1_000_000 for number in range(4)}
    assert len(messages) >= 16


def test_a_failing_logging_filter_costs_no_batch(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """An error in a logging filter is logged, and all batches are delivered."""

    def fails(record: logging.LogRecord) -> bool:
        raise RuntimeError("no words")

    monkeypatch.setattr(logging.getLogger("of_the_users_own"), "filters", [fails])
    found = rows(computed(transform=lambda x, rng: logging.getLogger("of_the_users_own").warning("hm"), workers=1, tail="keep"))
    assert len(found) == N
    assert "no words" in caplog.text
