"""Users' functions are sent to the workers, wherever they are defined; those that can't be are named in an error."""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from ways import N, computed, rows

from shmgen import InputError, Loader, Source, Values

# Functions for workers are defined inside tests: to load those of a module, a worker would import the module, and pytest.


def functions_of_many_kinds(own: ModuleType) -> dict[str, Callable[..., Any]]:
    """Functions of several kinds that return ten times their argument, as a row."""
    factor = 10

    def times(factor: float, x: Any, rng: object = None) -> Any:
        return np.full(3, factor * np.ravel(x)[0], np.float64).reshape(np.shape(x) or 3)

    def closure(x: Any, rng: object = None) -> Any:
        return times(factor, x)

    class Times:
        def __init__(self, factor: float) -> None:
            self.factor = factor

        def method(self, x: Any, rng: object = None) -> Any:
            return times(self.factor, x)

        __call__ = method

    class Lazy:
        @functools.cached_property
        def factor(self) -> int:
            return factor

        def method(self, x: Any, rng: object = None) -> Any:
            return times(self.factor, x)

    return {
        "module-function": own.ten_times,
        "method-of-a-module": own.Times(10).method,
        "lambda": lambda x, rng=None: 10 * np.full(3, np.ravel(x)[0], np.float64).reshape(np.shape(x) or 3),
        "closure": closure,
        "partial": functools.partial(times, 10.0),
        "partial-of-a-module-function": functools.partial(own.times, factor=10),
        "bound-method": Times(10).method,
        "callable-object": Times(10),
        "cached-property": Lazy().method,
    }


OF_A_MODULE = """
import numpy as np

def times(x, rng=None, *, factor):
    return np.full(3, factor * np.ravel(x)[0], np.float64).reshape(np.shape(x) or 3)

def ten_times(x, rng=None):
    return times(x, factor=10)

class Times:
    def __init__(self, factor):
        self.factor = factor
    def method(self, x, rng=None):
        return times(x, factor=self.factor)

import functools
cached = functools.cache(ten_times)
"""


def check_tenfold(functions: dict[str, Callable[..., Any]]) -> None:
    """Check that a worker calls each function as the source of a field, and gets ten times the id, in each epoch."""
    with Loader(range(N), inputs=functions, batch_size=N, shuffle=False, workers=1) as loader:
        for _ in range(2):
            [(found,)] = loader
            for name, rows in found.items():
                np.testing.assert_array_equal(rows, 10.0 * np.arange(N)[:, None] * np.ones(3), name)


def test_functions_are_sent_to_workers(module: Callable) -> None:
    """A worker can call functions of all kinds as sources, and a closure as a transform."""
    functions = functions_of_many_kinds(module(OF_A_MODULE))
    assert all(one.__class__.__module__ != __name__ or "<locals>" in type(one).__qualname__ for one in functions.values())
    check_tenfold(functions)
    found = rows(computed(transform=functions["closure"], shuffle=False, tail="keep", workers=1))
    np.testing.assert_array_equal(found, 10.0 * np.arange(N)[:, None] * np.ones(3))


def test_functions_with_a_cache_are_sent(module: Callable) -> None:
    """Functions with functools.lru_cache are sent with its settings; each worker has a cache of its own."""
    own = module(OF_A_MODULE)
    factor = 10

    @functools.lru_cache(maxsize=7, typed=True)
    def local(x: Any) -> Any:
        return np.full(3, factor * x, np.float64)

    class Held:
        @functools.lru_cache  # noqa: B019 # as users do
        def method(self, x: Any) -> Any:
            return local(x)

    def mentions(x: Any) -> Any:
        assert local.cache_info().maxsize == 7
        assert local.cache_parameters()["typed"]
        return local(x)

    check_tenfold({"of-a-module": own.cached, "local": local, "method": Held().method, "mentioned": mentions})


UNGUARDED = """
import functools

say("begun")
FACTOR = 10
HELD = threading.Lock()  # need not be sent, since no function uses it

def times(factor, x):
    return np.full(3, factor * x, np.float64)

def function(id): return times(FACTOR, id)

class Times:
    def __init__(self, factor): self.factor = factor
    def __call__(self, id): return function(id)

class Own(shmgen.Source):
    shape, dtype = (3,), "f8"
    def read(self, id, row): row[:] = function(id)

class Rows(Own):
    def fill(self, ids, rows):
        for id, row in zip(ids, rows): row[:] = function(id)

cell = '''
CELLS = 10
def in_a_cell(id): return np.full(3, CELLS * id, np.float64)
'''
exec(compile(cell, "<ipython-input-1-abc>", "exec"), globals())
namespace = {"__name__": "__main__", "np": np}
exec(compile(cell, "/tmp/ipykernel_1/1234.py", "exec"), namespace)

@functools.lru_cache
def cached(id): return function(id)

sources = (cached, function, lambda n: times(FACTOR, n), functools.partial(times, 10), Times(10), Own(), Rows(), in_a_cell,
           namespace["in_a_cell"])
with Loader(range(12), batch_size=12, inputs=sources, workers=2, shuffle=False) as loader:
    [(X,)] = loader
    for rows, source in zip(X, sources, strict=True):
        assert (rows == 10.0 * np.arange(12)[:, None]).all(), source
say("ended")
"""


def test_functions_of_scripts_and_notebook_cells(folder: Callable, script: Callable) -> None:
    """Functions of ``__main__`` are sent with the globals that they use, and no worker runs the script again."""
    run = script(UNGUARDED, folder(1))

    assert run.end() == 0, run.err
    assert run.out.split() == ["begun", "ended"]
    assert run.err == ""


@pytest.mark.parametrize("role", ["own-source", "transform-of-a-field", "transform-of-the-sample"])
def test_unpicklable_objects_are_named(tmp_path: Path, role: str) -> None:
    """A function that holds a lock, an open file or a generator is an error that names it and why, unless ``workers=0``."""
    held: Any = threading.Lock()
    named, why = "transform", "'_thread.lock'"
    if role == "own-source":
        held, named, why = (number for number in range(3)), "source of field 'scan'", "'generator'"
    elif role == "transform-of-a-field":
        held, named, why = (tmp_path / "open").open("w"), "transform of field 'scan'", "pickle files"

    def function(x: Any, rng: object) -> Any:
        return x if held else None

    class Own(Source):
        shape, dtype = (3,), np.float64

        def read(self, id: Any, row: np.ndarray) -> None:
            row[:] = id if held else 0

    source, transform = {
        "own-source": (Own(), None),
        "transform-of-a-field": (Values(range(N)), {"scan": function}),
        "transform-of-the-sample": (Values(range(N)), function),
    }[role]
    options: dict[str, Any] = {"batch_size": 8, "inputs": {"scan": source}, "transform": transform}
    with pytest.raises(InputError, match=rf"^the {named} can't be sent to a worker process: .*{why}.*workers=0") as caught:
        Loader(range(N), workers=2, **options)
    assert "open()" in str(caught.value)
    with Loader(range(N), workers=0, **options) as loader:
        assert len(list(loader)) == len(loader)
    if role == "transform-of-a-field":
        held.close()


def test_a_worker_imports_only_what_functions_import(tmp_path: Path, module: Callable) -> None:
    """A worker imports a function's own module and its imports, but neither the caller's frameworks nor its ``__main__``."""
    path = tmp_path / "modules"
    path.mkdir()
    own = module(f"""
import os, sys
import colorsys

def report(x, rng):
    import wave
    mine = f"{path}/{{os.getpid()}}"
    if not os.path.exists(mine):
        with open(mine + ".new", "w") as file: file.write(" ".join(sys.modules))
        os.rename(mine + ".new", mine)
""")
    rows(computed(transform=own.report, workers=2))

    reports = [set(file.read_text().split()) for file in path.iterdir()]
    assert reports  # one worker may have done all the work
    for modules in reports:
        assert {"of_the_users_own", "colorsys", "wave", "numpy", "shmgen._worker.rng"} <= modules
        assert not {name.partition(".")[0] for name in modules} & {
            "tensorflow", "keras", "h5py", "pytest", "psutil", __name__, "ways", "conftest",
        }  # fmt: skip
        assert not modules & {"shmgen.loader", "shmgen.keras", "shmgen._engine.pool"}


def test_in_process_a_debugger_stops_in_functions() -> None:
    """With ``workers=0`` functions run in the caller's process and thread, under its trace function."""
    seen: set[tuple[object, ...]] = set()

    def note(x: np.ndarray, rng: object) -> None:
        seen.add((os.getpid(), threading.get_ident(), sys.gettrace()))

    before = sys.gettrace()
    sys.settrace(trace := lambda *_: None)
    try:
        rows(computed(transform=note, workers=0))
    finally:
        sys.settrace(before)

    assert seen == {(os.getpid(), threading.get_ident(), trace)}


MANY = 12_100_000
"""Bytes: more than the 10 MB from which a warning is given."""


def test_large_data_is_warned_of_once() -> None:
    """Sending much data to workers gives one warning with size, field and remedy, at the caller's line; less gives none."""

    def holding(held: Any) -> Callable[..., Any]:
        return lambda id: np.full(3, len(held) and id, np.float64)

    text = r"^each worker gets 12\.1 MB .*, 12\.1 MB .*the source of field 'X', .*np\.load\(file, mmap_mode='r'\).*open\(\)"
    with pytest.warns(UserWarning, match=text) as caught:
        loader = computed(holding(np.zeros(MANY, np.uint8)), workers=1)
    loader.close()
    assert [warning.filename for warning in caught] == [computed.__code__.co_filename]
    with computed(holding(bytes(MANY // 2)), workers=1) as loader:  # where warnings are errors
        list(loader)


@pytest.mark.parametrize(("mode", "order"), [("r", "C"), ("r+", "F")])
def test_a_mapped_array_is_mapped_by_the_worker(tmp_path: Path, mode: Any, order: Any) -> None:
    """An array that np.load has mapped is mapped by the worker as well, and not copied."""
    np.save(tmp_path / "big.npy", np.asarray(np.arange(3_000_000.0).reshape(-1, 3), order=order))
    array = np.load(tmp_path / "big.npy", mmap_mode=mode)
    told = type(array), array.shape, array.strides, array.dtype, array.flags.writeable

    def look(id: int) -> np.ndarray:
        assert (type(array), array.shape, array.strides, array.dtype, array.flags.writeable) == told
        with open("/proc/self/maps") as maps:
            assert "/big.npy" in maps.read()
        return array[id]

    np.testing.assert_array_equal(rows(computed(look, shuffle=False, tail="keep", workers=1)), array[:N])


def test_a_mapped_file_is_not_truncated(tmp_path: Path) -> None:
    """A file mapped with mode ``w+`` is not created again by a worker, and workers can write to it."""
    array = np.memmap(tmp_path / "raw", np.float64, "w+", 16, (N, 3))
    array[:] = np.arange(N)[:, None]

    def write(id: int) -> np.ndarray:
        array[id, 2] += 1
        return array[id]

    found = rows(computed(write, ids=range(N), batch_size=N, shuffle=False, slots=2, workers=1))
    np.testing.assert_array_equal(found[:, 0], np.arange(N))
    assert (array[:, 2] > array[:, 0]).all()


def test_a_part_of_a_mapped_file_is_copied(tmp_path: Path) -> None:
    """A part of a mapped file, or one mapped copy-on-write, whose changes are not in the file, is copied, with a warning."""
    np.save(tmp_path / "big.npy", np.arange(3_000_000.0).reshape(-1, 3))
    for mode, first in ("r", 7), ("c", 0):
        array = np.load(tmp_path / "big.npy", mmap_mode=mode)[first:]  # type: ignore[arg-type]
        if mode == "c":
            array[2, 0] = -1
        with pytest.warns(UserWarning, match=r"^each worker gets 24\.0 MB"):
            loader = computed(lambda id, array=array: array[id], shuffle=False, tail="keep", workers=1)
        np.testing.assert_array_equal(rows(loader), array[:N])
