"""Users' functions: they travel, draw the same numbers wherever they run, fail by name, and take one processor each."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
import pytest

from shmgen import ClosedError, FunctionError, InputError, Loader, Npy, SampleError, Sequence, Source, StartError, Values

# Functions stand inside of tests: one of the module itself would have workers import pytest and Keras.

N = 24
PROMPTLY = 2.0
"""Seconds in which what is promised "promptly" must have happened, on a machine that does other things as well."""

WORKERS = [pytest.param(0, id="in-process"), pytest.param(2, id="2-workers")]
ONE = [pytest.param(0, id="in-process"), pytest.param(1, id="1-worker")]


def computed(source: Any = None, transform: Any = None, **options: Any) -> Loader:
    """A loader of rows of three float64; without a source they are the id."""
    if not isinstance(source, Source):
        source = source or (lambda n: np.full(3, n, np.float64))
        options = {"dim": 3, "n_channels": 1, "dtype": np.float64, **options}
    return Loader(options.pop("ids", range(N)), None, **{"batch_size": 5, "source": source, "transform": transform, **options})


def rows(loader: Loader, epochs: int = 1) -> np.ndarray:
    """All rows of so many epochs; closes the loader."""
    with loader:
        return np.concatenate([X.reshape(len(X), -1) for _ in range(epochs) for (X,) in loader])


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


# 1. Functions travel.


def travellers(own: ModuleType) -> dict[str, Callable[..., Any]]:
    """Functions that return ten times what they are given, as a row."""
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

    return {
        "module-function": own.ten_times,
        "method-of-a-module": own.Times(10).method,
        "lambda": lambda x, rng=None: 10 * np.full(3, np.ravel(x)[0], np.float64).reshape(np.shape(x) or 3),
        "closure": closure,
        "partial": functools.partial(times, 10.0),
        "partial-of-a-module-function": functools.partial(own.times, factor=10),
        "bound-method": Times(10).method,
        "callable-object": Times(10),
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
"""

KINDS = [
    "module-function", "method-of-a-module", "lambda", "closure", "partial", "partial-of-a-module-function", "bound-method",
    "callable-object",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("role", ["source", "transform"])
def test_functions_travel(module: Callable, role: str, kind: str) -> None:
    """Whatever kind of function it is, a worker calls it as source and as transform."""
    function = travellers(module(OF_A_MODULE))[kind]
    assert function.__class__.__module__ != "test_functions" or "<locals>" in type(function).__qualname__

    found = rows(computed(**{role: function}, shuffle=False, drop_last=False, workers=1))

    np.testing.assert_array_equal(found, 10.0 * np.arange(N)[:, None] * np.ones(3))


UNGUARDED = """
import functools

say("begun")
FACTOR = 10
HELD = threading.Lock()  # what no function mentions need not travel

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

for source in (function, lambda n: times(FACTOR, n), functools.partial(times, 10), Times(10), Own(), Rows(), in_a_cell,
               namespace["in_a_cell"]):
    size = {} if isinstance(source, shmgen.Source) else dict(dim=3, n_channels=1, dtype="f8")
    with Loader(range(12), None, 4, source=source, workers=2, shuffle=False, **size) as loader:
        X = np.concatenate([X for X, in loader])
        assert (X.reshape(12, 3) == 10.0 * np.arange(12)[:, None]).all(), source
say("ended")
"""


def test_functions_of_a_script_without_guard_and_of_a_notebook_cell(folder: Callable, script: Callable) -> None:
    """What stands in ``__main__`` travels with the globals it needs, and no worker runs the script again."""
    run = script(UNGUARDED, folder(1))

    assert run.end() == 0, run.err
    assert run.out.split() == ["begun", "ended"]
    assert run.err == ""


def test_a_source_of_ours_subclassed_in_a_script(folder: Callable, script: Callable) -> None:
    """A subclass of Npy in ``__main__`` travels, too."""
    code = """
class Elsewhere(shmgen.Npy):
    def path(self, id): return super().path(f"id-{id}")
    def fill(self, ids, rows): super().fill([f"id-{id}" for id in ids], rows)

with Loader(range(8), range(8), 4, source=Elsewhere(DATA), workers=2) as loader:
    for X, y in loader:
        assert (X == y[:, None, None]).all()
say("ended")
"""
    run = script(code, folder(8))

    assert run.end() == 0, run.err
    assert run.out.split() == ["ended"]


def stuck(tmp_path: Path, what: str) -> Any:
    """Something that can't be sent."""
    if what == "lock":
        return threading.Lock()
    return (number for number in range(3)) if what == "generator" else (tmp_path / "open").open("w")


@pytest.mark.parametrize(
    ("what", "why"),
    [
        pytest.param("lock", "'_thread.lock'", id="lock"),
        pytest.param("file", "pickle files", id="open-file"),
        pytest.param("generator", "'generator'", id="generator"),
    ],
)
@pytest.mark.parametrize(
    ("role", "named"),
    [
        pytest.param("source", "source of field 'X'", id="source"),
        pytest.param("named-source", "source of field 'scan'", id="named-source"),
        pytest.param("own-source", "source of field 'X'", id="own-source"),
        pytest.param("transform", "transform of field 'X'", id="transform"),
        pytest.param("transform-of-a-field", "transform of field 'age'", id="transform-of-a-field"),
        pytest.param("transform-of-the-sample", "transform", id="transform-of-the-sample"),
    ],
)
def test_what_cannot_be_sent_is_named(tmp_path: Path, role: str, named: str, what: str, why: str) -> None:
    """A function that holds a lock, an open file or a generator: which it is and why; with ``workers=0`` it may."""
    held = stuck(tmp_path, what)

    def function(x: Any, rng: object = None) -> Any:
        return x if isinstance(x, np.ndarray | dict) else np.full((3, 1), x if held else 0, np.float64)

    class Own(Source):
        shape, dtype = (3,), np.float64

        def __init__(self) -> None:
            self.held = held

        def read(self, id: Any, row: np.ndarray) -> None:
            row[:] = id

    def make(workers: int) -> Loader:
        if role == "own-source":
            return computed(Own(), workers=workers)
        if role in ("source", "transform"):
            return computed(**{role: function}, workers=workers)
        scan = function if role == "named-source" else (lambda n: np.full(3, n, np.float64))
        transform = {"transform-of-a-field": {"age": function}, "transform-of-the-sample": function}.get(role)
        return Loader(range(N), None, 8, inputs={"scan": scan, "age": Values(np.arange(N))}, transform=transform, workers=workers)

    try:
        with pytest.raises(InputError, match=rf"^the {named} can't be sent to a worker process: .*{why}.*workers=0") as caught:
            make(2)
        assert "open()" in str(caught.value)
        with make(0) as loader:
            assert len(list(loader)) == len(loader)
    finally:
        if what == "file":
            held.close()


def test_a_worker_imports_only_what_functions_import(tmp_path: Path, module: Callable) -> None:
    """Neither the caller's frameworks nor its ``__main__``: the function's own module and what that imports, when it does."""
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
    assert len(reports) == 2
    for modules in reports:
        assert {"of_the_users_own", "colorsys", "wave", "numpy", "shmgen._dice"} <= modules
        assert not {name.partition(".")[0] for name in modules} & {
            "tensorflow", "keras", "h5py", "pytest", "psutil", "site", "test_functions", "conftest",
        }  # fmt: skip
        assert not modules & {"shmgen._loader", "shmgen.keras", "shmgen._pool"}


def test_in_process_a_debugger_stops_in_functions() -> None:
    """With ``workers=0`` functions run in the calling process and thread, under its trace function."""
    seen: list[tuple[int, int]] = []
    stops: list[str] = []

    def note(x: np.ndarray, rng: object) -> None:
        seen.append((os.getpid(), threading.get_ident()))

    def trace(frame: Any, event: str, arg: object) -> None:
        if frame.f_code is note.__code__:
            stops.append(event)

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        rows(computed(transform=note, workers=0))
    finally:
        sys.settrace(before)

    assert set(seen) == {(os.getpid(), threading.get_ident())}
    assert stops == ["call"] * 20


# 2. The same bytes anywhere.


def draws() -> dict[str, Callable[[np.ndarray, Any], None]]:
    """Functions that fill a row with random numbers."""
    from random import gauss
    from random import random as draw

    from numpy.random import normal, rand

    def put(draw_one: Callable[[Any], float]) -> Callable[[np.ndarray, Any], None]:
        def fill(x: np.ndarray, rng: np.random.Generator) -> None:
            for number in range(len(x)):
                x[number] = draw_one(rng)

        return fill

    def kept(x: np.ndarray, rng: np.random.Generator, keep: list[Any] = []) -> None:  # noqa: B006
        keep.append(rng)
        x[:] = keep[0].random(x.shape)

    return {
        "rng": put(lambda rng: rng.random()),
        "rng-half-words": put(lambda rng: rng.integers(1 << 31, dtype=np.uint32)),
        "rng-normal": put(lambda rng: rng.standard_normal()),
        "rng-spawned": put(lambda rng: rng.spawn(1)[0].random()),
        "rng-of-the-first-sample": kept,
        "random": put(lambda rng: random.random()),
        "random-gauss": put(lambda rng: random.gauss()),
        "random-randint": put(lambda rng: random.randint(0, 1 << 40)),
        "random-by-name": put(lambda rng: draw()),
        "random-gauss-by-name": put(lambda rng: gauss(0, 1)),
        "numpy": put(lambda rng: np.random.random()),
        "numpy-normal": put(lambda rng: np.random.normal()),
        "numpy-by-name": put(lambda rng: rand()),
        "numpy-normal-by-name": put(lambda rng: normal()),
    }


DRAWS = [
    "rng", "rng-half-words", "rng-normal", "rng-spawned", "rng-of-the-first-sample", "random", "random-gauss", "random-randint",
    "random-by-name", "random-gauss-by-name", "numpy", "numpy-normal", "numpy-by-name", "numpy-normal-by-name",
]  # fmt: skip


@functools.cache
def drawn(names: tuple[str, ...], *, workers: int, alike: bool = False, **options: Any) -> dict[str, np.ndarray]:
    """Two epochs' rows of a loader that has a field for each of these ways to draw."""
    fields = {name: Empty() for name in names}
    transform = {name: draws()[name] for name in names}
    ids = [7] * N if alike else range(N)
    np.random.seed(workers)
    random.seed(workers)
    with Loader(ids, None, 5, inputs=fields, transform=transform, drop_last=False, workers=workers, **options) as loader:
        batches = [{name: array.copy() for name, array in batch.items()} for _ in range(2) for (batch,) in loader]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in names}


def together(name: str) -> tuple[str, ...]:
    """The ways to draw that share a loader with this one, to save time."""
    # Of two Gaussian draws `random` keeps the second, which the next sample must not inherit; others' draws would hide that.
    return (name,) if name == "random-gauss" else tuple(each for each in DRAWS if each != "random-gauss")


class Empty(Values):
    """Rows of three zeros."""

    def __init__(self) -> None:
        super().__init__(np.zeros((N, 3)), np.float64)


@pytest.mark.parametrize(
    ("workers", "options"),
    [
        pytest.param(0, {"slots": 2}, id="in-process"),
        pytest.param(1, {}, id="1-worker"),
        pytest.param(2, {"slots": 2}, id="2-workers-2-slots"),
        pytest.param(5, {"slots": 3}, id="5-workers-3-slots"),
    ],
)
@pytest.mark.parametrize("name", DRAWS)
def test_the_same_bytes_at_any_split_of_rows(name: str, workers: int, options: dict[str, int]) -> None:
    """At 0, 1, 2 and 5 workers, with few slots and many, whatever the caller's global states: the same rows."""
    assert drawn(together(name), workers=workers, **options)[name].tobytes() == drawn(together(name), workers=0)[name].tobytes()


@pytest.mark.parametrize("name", DRAWS)
def test_draws_differ_for_every_sample_epoch_and_seed(name: str) -> None:
    """No row stands twice in two epochs of two workers, even where all ids are alike; and another seed has none of them."""
    found = drawn(together(name), workers=2, alike=True, slots=2)[name]
    others = drawn(together(name), workers=2, alike=True, slots=2, seed=1)[name]
    assert len({row.tobytes() for row in (*found, *others)}) == 4 * N


@pytest.mark.filterwarnings("ignore:batches of a loader with shuffle=False are asked for")
@pytest.mark.parametrize("name", ["rng", "random-gauss", "numpy-normal"])
def test_a_sample_asked_for_again_is_drawn_again_alike(name: str) -> None:
    """A batch asked for a second time, in another order and by itself, has the same numbers."""
    with computed(transform=draws()[name], workers=2, slots=2, shuffle=False) as loader:
        forwards = [loader.batch(index)[0].copy() for index in range(4)]
        backwards = [loader.batch(index)[0].copy() for index in reversed(range(4))]
    np.testing.assert_array_equal(forwards, backwards[::-1])


HASH = """
import hashlib
from random import gauss
from numpy.random import rand

def fill(x, rng):
    x[:, 0] = rng.random(), gauss(0, 1), rand()

with Loader(range(24), None, 5, dim=3, n_channels=1, dtype="f8", source=lambda n: np.full(3, random()), transform=fill,
            workers=WORKERS) as loader:
    say(hashlib.sha256(b"".join(X.tobytes() for _ in range(2) for X, in loader)).hexdigest())
"""


def test_the_same_bytes_in_every_run(folder: Callable, script: Callable) -> None:
    """Processes of their own, with 0 workers and 2, and this one: one digest."""
    from random import gauss

    from numpy.random import rand

    def fill(x: np.ndarray, rng: np.random.Generator) -> None:
        x[:, 0] = rng.random(), gauss(0, 1), rand()

    data = folder(1)
    runs = [script(f"from random import random\nWORKERS = {workers}" + HASH, data) for workers in (0, 2)]
    for run in runs:
        assert run.end() == 0, run.err
    assert runs[0].out == runs[1].out
    here = rows(computed(lambda n: np.full(3, random.random()), fill, workers=2), epochs=2)
    assert runs[0].out.strip() == hashlib.sha256(here.tobytes()).hexdigest()


def test_sources_draw_as_well_as_transforms() -> None:
    """A source function's draws are as reproducible, and other than the transform's."""

    def transform(sample: dict[str, np.ndarray], rng: np.random.Generator) -> None:
        sample["c"] = rng.random(3)
        sample["d"] = np.random.rand(3)

    def found(workers: int) -> list[np.ndarray]:
        names = {
            "a": lambda n: np.random.rand(3),
            "b": lambda n: np.full(3, random.random()),
            "c": lambda n: np.zeros(3),
            "d": lambda n: np.zeros(3),
        }
        with Loader(range(N), batch_size=5, inputs=names, transform=transform, workers=workers) as loader:
            batches = [batch for _ in range(2) for (batch,) in loader]
            return [np.concatenate([batch[name] for batch in batches]) for name in names]

    fields = found(0)
    for field, at_two, at_five in zip(fields, found(2), found(5), strict=True):
        np.testing.assert_array_equal(field, at_two)
        np.testing.assert_array_equal(field, at_five)
    assert len({row.tobytes() for field in fields for row in field}) == 4 * 2 * 20


@pytest.mark.parametrize("workers", ONE)
@pytest.mark.parametrize("dim", [pytest.param((3,), id="dim-given"), pytest.param(None, id="dim-learned")])
def test_the_callers_random_states_are_left_alone(dim: object, workers: int) -> None:
    """Functions that draw, and seed, leave the global states of the calling process as they were."""

    def draw(id: int) -> np.ndarray:
        random.random()
        np.random.normal()
        return np.random.rand(3)

    def seed(x: np.ndarray, rng: object) -> None:
        random.seed(4)
        np.random.seed(4)

    random.seed(12)
    np.random.seed(12)
    random.gauss()
    np.random.normal()
    before = random.getstate(), np.random.get_state(legacy=False)
    rows(computed(draw, seed, dim=dim, n_channels=None if dim is None else 1, workers=workers))
    assert random.getstate() == before[0]
    np.testing.assert_equal(np.random.get_state(legacy=False), before[1])


# 3. Functions that fail.


def failing(number: int = 7) -> tuple[Callable[..., Any], str]:
    """A function that raises for one sample, and the line that does it as a traceback shows it."""

    def breaks(x: Any, rng: object = None) -> Any:
        if np.ravel(x)[0] == number:
            raise ValueError("no such picture")
        return x if isinstance(x, np.ndarray) else np.full(3, x, np.float64)

    lines, first = inspect.getsourcelines(breaks)
    return breaks, f'File "{__file__}", line {first + next(n for n, line in enumerate(lines) if "raise" in line)}, in breaks'


@pytest.mark.parametrize("workers", ONE)
@pytest.mark.parametrize(
    ("role", "named"),
    [
        pytest.param("source", "source of field 'X'", id="source"),
        pytest.param("transform", "transform of field 'X'", id="transform"),
        pytest.param("field", "transform of field 'age'", id="transform-of-a-field"),
        pytest.param("sample", "transform", id="transform-of-the-sample"),
    ],
)
def test_a_function_that_raises_is_named(role: str, named: str, workers: int) -> None:
    """Id, field, and the function's own file and line, where it ran; other batches can still be had."""
    breaks, line = failing()
    if role in ("source", "transform"):
        loader = computed(**{role: breaks}, shuffle=False, workers=workers)
    else:
        transform = {"age": breaks} if role == "field" else (lambda sample, rng: sample.update(age=breaks(sample["age"])))
        inputs = {"scan": lambda n: np.full(3, n), "age": Values(np.arange(N), dtype="f8")}
        loader = Loader(range(N), batch_size=5, inputs=inputs, transform=transform, shuffle=False, workers=workers)
    with loader:
        loader.batch(0)
        with pytest.raises(FunctionError) as caught:
            loader.batch(1)
        loader.batch(2)
    error = caught.value
    assert error.id == 7
    assert error.path == named
    assert error.reason.startswith("ValueError: no such picture\n\nTraceback (most recent call last):")
    assert line in error.reason
    assert 'raise ValueError("no such picture")' in error.reason
    assert str(error).startswith(f"sample 7, {named}: ValueError: no such picture")


def test_fit_tells_the_functions_traceback() -> None:
    """Out of ``fit`` on TensorFlow, the text names the sample, the field, and the function's own file and line."""
    breaks, line = failing()
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(loss="mse")
    with (
        Sequence(range(N), np.zeros(N, int), 5, 3, source=breaks, workers=2) as sequence,
        pytest.raises(Exception, match="no such picture") as caught,
    ):
        model.fit(sequence, verbose=0)
    for word in ("FunctionError", "sample 7", "field 'X'", line):
        assert word in str(caught.value)


ODD = """
import threading

class TwoArguments(Exception):
    def __init__(self, message, other):
        super().__init__(message)

class HoldsALock(Exception):
    def __init__(self, message):
        super().__init__(message)
        self.lock = threading.Lock()

class Speechless(Exception):
    def __str__(self):
        raise RuntimeError("no words")

def two(): raise TwoArguments("no such picture", 1)
def lock(): raise HoldsALock("no such picture")
def speechless(): raise Speechless()
def plain(): raise ValueError("no such picture")
"""


@pytest.mark.parametrize("workers", ONE)
@pytest.mark.parametrize("kind", ["plain", "lock", "two", "speechless"])
@pytest.mark.parametrize("role", ["function", "transform", "read", "fill"])
def test_an_exception_that_cannot_be_pickled(module: Callable, role: str, kind: str, workers: int) -> None:
    """Whatever is raised, and by what, comes as a FunctionError of one of the piece's ids, field and traceback."""
    fail = getattr(module(ODD), kind)

    class Read(Source):
        shape, dtype = (3, 1), np.float64

        def read(self, id: int, row: np.ndarray) -> None:
            row[:] = id
            if id == 7:
                fail()

    class Fill(Read):
        def fill(self, ids: Any, rows: np.ndarray) -> None:
            if 7 in ids:
                fail()

    def function(id: int) -> Any:
        return fail() if id == 7 else np.full(3, id, np.float64)

    def transform(x: np.ndarray, rng: object) -> None:
        if x[0] == 7:
            fail()

    sources = {"function": function, "transform": None, "read": Read(), "fill": Fill()}
    with computed(
        sources[role], transform if role == "transform" else None, shuffle=False, workers=workers, batch_size=1, ids=range(8)
    ) as loader:
        loader.batch(6)
        with pytest.raises(FunctionError) as caught:
            loader.batch(7)
        loader.batch(5)
    assert caught.value.id == 7
    assert "field 'X'" in caught.value.path
    assert f"in {kind}" in caught.value.reason


@pytest.mark.parametrize("workers", ONE)
@pytest.mark.parametrize(
    ("role", "bad", "expected", "found"),
    [
        pytest.param("source", np.zeros((2, 2)), "shape (3, 1)", "(2, 2)", id="source-shape"),
        pytest.param("source", np.zeros(3, complex), "dtype float64", "complex128", id="source-dtype"),
        pytest.param("source", "text", "shape (3, 1)", "()", id="source-text"),
        pytest.param("source", None, "shape (3, 1)", "()", id="source-nothing"),
        pytest.param("transform", np.zeros(4), "shape (3, 1)", "(4,)", id="transform-shape"),
        pytest.param("transform", np.zeros((3, 1), complex), "dtype float64", "complex128", id="transform-dtype"),
        pytest.param("transform", 1.0, "shape (3, 1)", "()", id="transform-scalar"),
    ],
)
def test_what_does_not_fit_is_named(role: str, bad: object, expected: str, found: str, workers: int) -> None:
    """A shape or dtype that is not the row's: id, field, expected and found; nothing is broadcast or truncated."""

    def function(x: Any, rng: object = None) -> Any:
        if np.ravel(x)[0] == 7:
            return bad
        return np.full(3, np.ravel(x)[0], np.float64) if rng is None else x

    with computed(**{role: function}, shuffle=False, workers=workers) as loader, pytest.raises(FunctionError) as caught:
        list(loader)
    assert str(caught.value).startswith(f"sample 7, {role} of field 'X': expected {expected}, found {found}")


@pytest.mark.parametrize("learned", [False, True], ids=["at-a-batch", "at-the-first-look"])
def test_a_source_that_does_not_fit_dim_is_named_at_once(learned: bool) -> None:
    """The first sample's misfit names id, field, expected and found, wherever it is noticed."""
    options = {"n_channels": None, "dtype": None} if learned else {}
    with pytest.raises(FunctionError) as caught:
        list(computed(lambda n: np.zeros((2, 2)), dim=(4,), workers=0, shuffle=False, **options))
    assert caught.value.id == 0
    assert "field 'X'" in str(caught.value)
    assert re.search(r"expected shape \(4.*\), .*found \(2, 2\)", str(caught.value))


@pytest.mark.parametrize("workers", ONE)
@pytest.mark.parametrize(
    ("result", "text"),
    [
        pytest.param({"sacn": np.zeros(3)}, "expected fields 'scan', 'mask', found 'sacn'", id="unknown-field"),
        pytest.param({"mask": np.zeros(2)}, "field 'mask': expected shape (3,), found (2,)", id="shape"),
        pytest.param({"mask": np.full(3, 0.5)}, "field 'mask': expected dtype int64, found float64", id="dtype"),
        pytest.param(np.zeros(3), "expected a dict", id="not-a-dict"),
        pytest.param((np.zeros(3), np.zeros(3)), "expected a dict", id="tuple"),
    ],
)
def test_what_a_transform_of_the_sample_returns_is_checked(result: object, text: str, workers: int) -> None:
    """Fields that are not there, what does not fit them, and what is no dict: with the id and what was expected."""
    fields = {"scan": lambda n: np.full(3, n, np.float64), "mask": lambda n: np.full(3, n)}
    with (
        Loader(range(4), batch_size=2, inputs=fields, transform=lambda sample, rng: result, workers=workers) as loader,
        pytest.raises(FunctionError, match=r"^sample \d, transform: ") as caught,
    ):
        list(loader)
    assert text in str(caught.value)


def endless(path: Path) -> dict[str, Callable[..., Any]]:
    """Functions that say that they have begun by a file at ``path``, and never end."""

    def spins(x: Any, rng: object) -> None:
        path.touch()
        while True:
            pass

    def sleeps(x: Any, rng: object) -> None:
        path.touch()
        time.sleep(1e6)

    def holds_the_interpreter(x: Any, rng: object) -> None:
        path.touch()
        (1 << 40_000_000) ** 3  # one call into C, during which no other thread of the process runs

    return {"spins": spins, "sleeps": sleeps, "holds-the-interpreter": holds_the_interpreter}


@pytest.mark.parametrize("kind", ["spins", "sleeps", "holds-the-interpreter"])
def test_close_ends_a_function_that_never_ends(tmp_path: Path, asking: Callable, until: Callable, kind: str) -> None:
    """Another thread's `close` ends worker and wait at once."""
    path = tmp_path / "begun"
    loader = computed(transform=endless(path)[kind], workers=2)
    thread = asking(lambda: list(loader))
    thread.until_it_waits()
    until(path.exists, "the function has begun")

    begun = time.monotonic()
    loader.close()

    assert isinstance(thread.outcome(PROMPTLY), ClosedError)
    assert time.monotonic() - begun < PROMPTLY


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("body", ["while True: pass", "time.sleep(1e6)"], ids=["spins", "sleeps"])
def test_ctrl_c_ends_a_function_that_never_ends(
    folder: Callable, script: Callable, until: Callable, body: str, workers: int
) -> None:
    """Ctrl-C in a terminal, which reaches the whole group: a KeyboardInterrupt, and nothing is left."""
    data = folder(1)
    code = f"""
def endless(id):
    open(f"{{DATA}}/begun", "w").close()
    {body}

loader = Loader(range(8), None, 4, dim=3, n_channels=1, dtype="f8", source=endless, workers={workers})
say("ready")
next(iter(loader))
"""
    run = script(code, data)
    until((data.path / "begun").exists, "the function has begun")
    run.until("ready")

    run.signal(signal.SIGINT, group=True)

    assert not run.left(PROMPTLY)
    assert run.end() == -signal.SIGINT
    assert run.err.count("KeyboardInterrupt") == 1, run.err
    assert run.err.count("Traceback") == 1, run.err


@pytest.mark.parametrize("workers", ONE)
@pytest.mark.parametrize(
    "call",
    [
        pytest.param("print('word', id)", id="print"),
        pytest.param("print('word ', end='')", id="print-without-a-newline"),
        pytest.param("print('word', id, file=sys.stderr)", id="print-to-stderr"),
        pytest.param("os.write(1, b'word ')", id="write"),
    ],
)
def test_a_function_that_prints_prints(folder: Callable, script: Callable, call: str, workers: int) -> None:
    """What functions print is on the script's stdout and stderr, all of it, in whole words."""
    code = f"""
def loud(id):
    {call}
    return np.zeros(3)

with Loader(range(8), None, 4, dim=3, n_channels=1, dtype="f8", source=loud, workers={workers}) as loader:
    list(loader)
    loader.batch(0)
"""
    run = script(code, folder(1))

    assert run.end() == 0, run.err
    assert (run.out + run.err).count("word") >= 8, (run.out, run.err)
    assert set(re.findall("[a-z]+", run.out + run.err)) == {"word"}


@pytest.mark.parametrize("workers", WORKERS)
def test_changed_arguments_do_no_harm(workers: int) -> None:
    """Fields popped from the sample, rows rebound, ids emptied: the next field, sample, epoch and the caller see none of it."""
    ids = [["a", number] for number in range(8)]

    def take(id: list[Any]) -> np.ndarray:
        number = id[1]
        id.clear()
        return np.full(3, number, np.float64)

    def change(sample: dict[str, Any], rng: Any) -> None:
        assert sample["one"][0] == sample["two"][0]
        sample.pop("one")
        one = sample.pop("two")
        one = np.zeros(3)  # noqa: F841

    fields = {"one": shaped(take), "two": shaped(take)}
    with Loader(ids, batch_size=3, inputs=fields, transform=change, drop_last=False, workers=workers) as loader:
        for _ in range(2):
            batches = [batch for (batch,) in loader]
            for batch in batches:
                np.testing.assert_array_equal(batch["one"], batch["two"])
            assert sorted(row[0] for batch in batches for row in batch["one"]) == list(range(8))
    assert ids == [["a", number] for number in range(8)]


def shaped(function: Callable[[Any], np.ndarray]) -> Source:
    """A source of rows of three float64, which calls the function for no id before its time."""

    class Shaped(Source):
        shape, dtype = (3,), np.float64

        def read(self, id: Any, row: np.ndarray) -> None:
            row[:] = function(id)

    return Shaped()


def test_an_id_that_a_function_emptied_is_still_named() -> None:
    """The error of a function that changed its id before it raised names the id as it stood in the list."""

    def take(id: list[Any]) -> np.ndarray:
        id.clear()
        raise ValueError("no such picture")

    with Loader([["a", 1]], batch_size=1, source=shaped(take), workers=1) as loader, pytest.raises(FunctionError) as caught:
        list(loader)
    assert caught.value.id == ["a", 1]


def test_a_function_that_exits_is_an_error_by_name() -> None:
    """``sys.exit(7)`` in each worker that takes the place of another: an error with that code, not a wait without end."""
    with computed(transform=lambda x, rng: sys.exit(7), workers=2) as loader:
        with pytest.raises(SampleError, match=r"3 workers died of it: .* ended with exit code 7$"):
            list(loader)
        assert loader.stats.restarts >= 3


def test_a_function_that_exits_in_process_exits() -> None:
    """With ``workers=0`` it ends what it would end anywhere: the calling process."""
    with computed(transform=lambda x, rng: sys.exit(7), workers=0) as loader, pytest.raises(SystemExit, match="7"):
        list(loader)


def test_an_interrupted_piece_is_not_transformed_twice() -> None:
    """In process, Ctrl-C amid a batch, and the batch asked for again: rows that the caller filled are changed once."""
    interrupts = [KeyboardInterrupt]

    def negate(sample: dict[str, np.ndarray], rng: object) -> None:
        if sample["age"] == 3 and interrupts:
            raise interrupts.pop()
        sample["age"] *= -1

    inputs = {"scan": lambda n: np.zeros(3), "age": Values(np.arange(1.0, 6.0))}
    with Loader(range(5), batch_size=5, shuffle=False, inputs=inputs, transform=negate, workers=0) as loader:
        with pytest.raises(KeyboardInterrupt):
            loader.batch(0)
        (found,) = loader.batch(0)
    assert found["age"].tolist() == [-1, -2, -3, -4, -5]


def test_a_function_that_a_worker_cannot_import_is_named(module: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module is nowhere on ``sys.path``: the error says which module is missing."""
    own = module("def fill(id): return [id, id, id]\n")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != os.path.dirname(own.__file__)])
    with (
        computed(own.fill, workers=1, dtype="i8") as loader,
        pytest.raises(StartError, match="No module named 'of_the_users_own'"),
    ):
        list(loader)


# Transforms.


@pytest.mark.parametrize("workers", ONE)
@pytest.mark.parametrize(
    "kind", ["in-place", "new-array", "same-row", "view-of-the-row", "list", "without-its-only-channel", "float32"]
)
def test_what_a_transform_may_return(kind: str, workers: int) -> None:
    """None after a change in place, a new array, the row itself, a view of it, and what casts to it."""

    def transform(x: np.ndarray, rng: object) -> Any:
        assert x.shape == (3, 1)
        assert x.flags.writeable
        x[0] += 1
        changed = x[::-1]
        match kind:
            case "in-place" | "same-row":
                x[:] = changed.copy()
                changed = x if kind == "same-row" else None
            case "new-array":
                changed = changed.copy()
            case "list":
                changed = changed.tolist()
            case "without-its-only-channel":
                changed = changed[:, 0].copy()
            case "float32":
                changed = changed.astype(np.float32)
        return changed

    found = rows(computed(transform=transform, shuffle=False, drop_last=False, workers=workers))
    assert found.tolist() == [[number, number, number + 1] for number in range(N)]


@pytest.mark.parametrize("workers", ONE)
def test_a_transform_by_field(workers: int) -> None:
    """A dict of functions changes the fields that it names, a target's scalar among them, and no other."""
    transform = {
        "scan": lambda row, rng: row[::-1],
        "y": lambda row, rng: row + 100,
    }
    with Loader(
        range(N),
        range(N),
        8,
        inputs={"scan": lambda n: np.arange(3) + n, "age": Values(np.arange(N))},
        transform=transform,
        workers=workers,
    ) as loader:
        for X, y in loader:
            assert y.tolist() == [100 + age for age in X["age"].tolist()]
            assert X["scan"].tolist() == [[age + 2, age + 1, age] for age in X["age"].tolist()]


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("how", ["in-place", "returned", "assigned"])
def test_a_transform_of_the_whole_sample_hits_scan_and_mask_alike(folder: Callable, how: str, workers: int) -> None:
    """One random flip for both files' rows and for the scalar target beside them, whichever way it is handed back."""
    data = folder(N, (4, 3))
    for number in range(N):
        np.save(data.file(f"id-{number}"), np.arange(12.0).reshape(4, 3) + number)

    def flip(sample: dict[str, Any], rng: np.random.Generator) -> Any:
        if rng.random() < 0.5:
            return None
        if how == "in-place":
            for name in ("scan", "mask"):
                sample[name][:] = sample[name][::-1].copy()
            sample["flipped"] += 1
        elif how == "assigned":
            sample["scan"], sample["mask"] = sample["scan"][::-1], sample["mask"][::-1].copy()
            sample["flipped"] = 1
        else:
            return {"scan": sample["scan"][::-1], "mask": sample["mask"][::-1], "flipped": sample["flipped"] + 1}
        return None

    with Loader(
        data.ids,
        batch_size=6,
        inputs={"scan": Npy(data.path)},
        targets={"mask": Npy(data.path), "flipped": Values(np.zeros(N, int))},
        transform=flip,
        workers=workers,
    ) as loader:
        flips = []
        for X, y in loader:
            np.testing.assert_array_equal(X["scan"], y["mask"])
            assert ((X["scan"][:, 0, 0] > X["scan"][:, 3, 0]) == y["flipped"]).all()
            flips += y["flipped"].tolist()
    assert len(flips) == N
    assert 4 < sum(flips) < N - 4


@pytest.mark.parametrize("workers", ONE)
@pytest.mark.parametrize("how", ["returned", "assigned", "views"])
def test_a_transform_may_swap_fields(how: str, workers: int) -> None:
    """Left for right, as when a stereo pair is mirrored: no field is overwritten before it is read."""

    def swap(sample: dict[str, Any], rng: object) -> Any:
        if how == "returned":
            return {"left": sample["right"], "right": sample["left"]}
        if how == "views":
            return {"left": sample["right"][::-1], "right": sample["left"][::-1]}
        sample["left"], sample["right"] = sample["right"], sample["left"]
        return None

    inputs = {"left": lambda n: np.full(3, n), "right": lambda n: np.full(3, -n)}
    with Loader(range(1, 9), batch_size=4, shuffle=False, inputs=inputs, transform=swap, workers=workers) as loader:
        found = [(X["left"][:, 0].tolist(), X["right"][:, 0].tolist()) for (X,) in loader]
    assert found == [([-1, -2, -3, -4], [1, 2, 3, 4]), ([-5, -6, -7, -8], [5, 6, 7, 8])]


@pytest.mark.parametrize(
    ("transform", "text"),
    [
        pytest.param({"scna": lambda row, rng: row}, r"expected fields 'scan', found \['scna'\]", id="unknown-field"),
        pytest.param({"scan": "flip"}, "expected a function.*found 'flip'", id="no-function-for-a-field"),
        pytest.param("flip", "expected a function.*found 'flip'", id="no-function"),
    ],
)
def test_a_transform_that_is_none_is_refused(transform: object, text: str) -> None:
    """Names that are no field's, and what is no function."""
    with pytest.raises(InputError, match=text):
        Loader(range(N), None, 8, inputs={"scan": lambda n: np.zeros(3)}, transform=transform)


# 4. One processor.


def usage(id: int) -> tuple[int, float, float]:
    """Threads of this process, and seconds of processor and clock that products of matrices took."""
    square = np.ones((400, 400))
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(6):
        square @ square
    return len(os.listdir("/proc/self/task")), time.process_time() - cpu, time.perf_counter() - wall


def measured(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> np.ndarray:
    for name in list(os.environ):
        if name.endswith(("_NUM_THREADS", "_FOR_THREADS_NUM")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    here = {"np": np, "time": time, "os": os}
    exec(inspect.getsource(usage), here)  # by value: a worker must not import this module
    return rows(computed(here["usage"], workers=1, ids=range(8), shuffle=False, batch_size=4))


def test_a_worker_uses_one_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of matrices take no more processor time than clock time, and make no threads."""
    threads, cpu, wall = measured(monkeypatch, {}).T
    assert threads.max() <= 2, "its own, and the one that ends it with its parent"
    assert cpu.sum() <= 1.2 * wall.sum()


@pytest.mark.parametrize("name", ["OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"])
def test_the_users_number_of_threads_wins(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whoever sets either variable gets the threads that NumPy would have without us."""
    threads, _, _ = measured(monkeypatch, {name: "2"}).T
    assert threads.min() == 3


def test_thread_pools_are_told_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenMP, the BLAS libraries and OpenCV find 1, or what the user has set."""
    names = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"]
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENCV_FOR_THREADS_NUM", "3")

    found = rows(computed(lambda n: [float(os.environ[name]) for name in names], dim=4, workers=1))

    assert found[0].tolist() == [1, 1, 1, 3]
