"""Users' functions: what they may return, and the errors of those that fail."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Asking, until_waiting, wait_until
from pace import AT_ONCE, Deadline
from ways import N, computed, rows

from shmgen import ClosedError, FunctionError, InputError, Loader, Source, Values

# Functions are defined inside tests: for a function of this module, workers would import pytest and Keras.


def failing(number: int = 7) -> tuple[Callable[..., Any], str]:
    """A function that raises for one sample, and the line of the ``raise`` as a traceback shows it."""

    def breaks(x: Any, rng: object = None) -> Any:
        if np.ravel(x)[0] == number:
            raise ValueError("no such picture")
        return x if isinstance(x, np.ndarray) else np.full(3, x, np.float64)

    lines, first = inspect.getsourcelines(breaks)
    return breaks, f'File "{__file__}", line {first + next(n for n, line in enumerate(lines) if "raise" in line)}, in breaks'


@pytest.mark.parametrize(
    ("role", "named", "workers"),
    [("source", "source of field 'X'", 1), ("field", "transform of field 'age'", 0), ("sample", "transform", 0)],
)
def test_an_error_names_the_function_that_raised(role: str, named: str, workers: int) -> None:
    """The error names the id, the field, and the function's file and line; other batches can still be read."""
    breaks, line = failing()
    if role == "source":
        loader = computed(breaks, shuffle=False, workers=workers)
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


CELLS = """
import linecache

def cell(code, file):
    # As IPython, ipykernel, doctest and Python 3.13's own prompt do.
    linecache.cache[file] = len(code), None, code.splitlines(True), file
    exec(compile(code, file, "exec"), globals())

cell("def in_a_cell(id):\\n    return outer(id)", "/tmp/ipykernel_1/1234.py")
cell("def outer(id):\\n    return (lambda id: inner(id))(id)", "<ipython-input-1-abc>")
cell("class Inner:\\n    def __call__(self, id): raise ValueError('no such picture')\\ninner = Inner()", "<stdin>")
exec(compile("def unknown(id):\\n\\n    return in_a_cell(id)", "<string>", "exec"))

def in_the_script(id):
    return unknown(id)

with Loader(range(8), None, 4, source=in_the_script, dim=3, n_channels=1, dtype="f8", workers=1) as loader:
    try:
        list(loader)
    except shmgen.FunctionError as error:
        say(error.reason)
"""


def test_a_traceback_shows_the_lines_of_scripts_and_cells(folder: Callable, script: Callable) -> None:
    """A traceback has file, line and (if known) text of each frame of the user's code, and no frame of shmgen."""
    run = script(CELLS, folder(1))

    assert run.end() == 0, run.err
    lines = [line.strip() for line in run.out.splitlines() if set(line) - set(" ^~")]
    path = run.process.args[-3]
    number = 1 + Path(path).read_text().splitlines().index("    return unknown(id)")
    assert lines == [
        "ValueError: no such picture",
        "Traceback (most recent call last):",
        f'File "{path}", line {number}, in in_the_script',
        "return unknown(id)",
        'File "<string>", line 3, in unknown',
        'File "/tmp/ipykernel_1/1234.py", line 2, in in_a_cell',
        "return outer(id)",
        'File "<ipython-input-1-abc>", line 2, in outer',
        "return (lambda id: inner(id))(id)",
        'File "<ipython-input-1-abc>", line 2, in <lambda>',
        "return (lambda id: inner(id))(id)",
        'File "<stdin>", line 2, in __call__',
        "def __call__(self, id): raise ValueError('no such picture')",
        "ValueError: no such picture",
    ]


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


def test_an_exception_that_cannot_be_pickled(module: Callable) -> None:
    """An exception that can't be pickled is raised as a FunctionError with id and traceback."""
    odd = module(ODD)
    kinds = [odd.plain, odd.lock, odd.two, odd.speechless]

    class Fill(Source):
        shape, dtype = (3, 1), np.float64

        def fill(self, ids: Any, rows: np.ndarray) -> None:
            if min(ids) < len(kinds):
                kinds[min(ids)]()

    with computed(Fill(), shuffle=False, workers=1, batch_size=1, ids=range(5)) as loader:
        for id, kind in enumerate(kinds):
            with pytest.raises(FunctionError) as caught:
                loader.batch(id)
            assert caught.value.id == id
            assert "field 'X'" in caught.value.path
            assert f"in {kind.__name__}" in caught.value.reason
        loader.batch(4)


@pytest.mark.parametrize(
    ("role", "bad", "expected", "found"),
    [
        pytest.param("source", np.zeros((2, 2)), "shape (3, 1) or (3,)", "(2, 2)", id="source-shape"),
        pytest.param("source", np.zeros(3, complex), "dtype float64", "complex128", id="source-dtype"),
        pytest.param("source", None, "an array", "None", id="source-none"),
        pytest.param("transform", 1.0, "shape (3, 1) or (3,)", "()", id="transform-scalar"),
    ],
)
def test_results_of_a_wrong_shape_or_dtype_are_named(role: str, bad: object, expected: str, found: str) -> None:
    """A result of a wrong shape or dtype raises an error with id and field; it is not broadcast or truncated."""

    def function(x: Any, *rng: object) -> Any:
        if np.ravel(x)[0] == 7:
            return bad
        return np.full(3, np.ravel(x)[0], np.float64) if not rng else x

    with computed(**{role: function}, shuffle=False, workers=0) as loader, pytest.raises(FunctionError) as caught:
        list(loader)
    assert str(caught.value).startswith(f"sample 7, {role} of field 'X': expected {expected}, found {found}")


@pytest.mark.parametrize(
    ("result", "text"),
    [
        pytest.param({"sacn": np.zeros(3)}, "expected fields 'scan', 'mask', found 'sacn'", id="unknown-field"),
        pytest.param({"mask": np.zeros(2)}, "field 'mask': expected shape (3,), found (2,)", id="shape"),
        pytest.param(np.zeros(3), "expected a dict", id="not-a-dict"),
        pytest.param((np.zeros(3), np.zeros(3)), "expected a dict", id="tuple"),
    ],
)
def test_the_result_of_a_sample_transform_is_checked(result: object, text: str) -> None:
    """A transform of the whole sample must return a dict of its fields with the right shapes and dtypes."""
    fields = {"scan": lambda n: np.full(3, n, np.float64), "mask": lambda n: np.full(3, n)}
    with (
        Loader(range(4), batch_size=2, inputs=fields, transform=lambda sample, rng: result, workers=0) as loader,
        pytest.raises(FunctionError, match=r"^sample \d, transform: ") as caught,
    ):
        list(loader)
    assert text in str(caught.value)


def test_close_ends_a_function_that_never_ends(tmp_path: Path) -> None:
    """`close` from another thread ends a worker that is stuck in one call into C, and the wait for its batch."""
    path = tmp_path / "begun"

    def endless(x: Any, rng: object) -> None:
        path.touch()
        (1 << 40_000_000) ** 3  # one call into C, during which no other thread of the process runs

    loader = computed(transform=endless, workers=2)
    thread = Asking(lambda: list(loader))
    until_waiting(loader)
    wait_until(path.exists, "the function has begun")

    promptly = Deadline(AT_ONCE)
    loader.close()

    assert isinstance(thread.outcome(AT_ONCE), ClosedError)
    assert not promptly.passed


def test_printed_text_reaches_the_scripts_streams(folder: Callable, script: Callable) -> None:
    """Text that functions print, in process or in a worker, reaches the script's stdout and stderr whole."""
    code = """
def loud(id):
    match id % 4:
        case 0: print('word', id)
        case 1: print('word ', end='')
        case 2: print('word', id, file=sys.stderr)
        case 3: os.write(1, b'word ')
    return np.zeros(3)

for workers in (0, 1):
    with Loader(range(8), None, 4, dim=3, n_channels=1, dtype="f8", source=loud, workers=workers) as loader:
        list(loader)
"""
    run = script(code, folder(1))

    assert run.end() == 0, run.err
    assert run.out.count("word") >= 12, run.out
    assert run.err.count("word") >= 4, run.err
    assert set(re.findall("[a-z]+", run.out + run.err)) == {"word"}


def test_rows_of_an_interrupted_batch_are_transformed_once() -> None:
    """After Ctrl-C in the middle of a batch in process, each row of that batch is still transformed only once."""
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


def test_results_that_a_transform_may_return() -> None:
    """A transform may change the row in place, or return the row, a view, a new array, or a value that casts to it."""

    def in_place(x: np.ndarray, rng: object) -> None:
        x[:] = x[::-1].copy()

    def same_row(x: np.ndarray, rng: object) -> np.ndarray:
        x[:] = x[::-1].copy()
        return x

    ways: list[Callable[[np.ndarray, object], Any]] = [
        in_place,
        same_row,
        lambda x, rng: x[::-1],
        lambda x, rng: x[::-1].copy(),
        lambda x, rng: x[::-1].tolist(),
        lambda x, rng: x[::-1, 0].copy(),  # without its only channel
        lambda x, rng: x[::-1].astype(np.float32),
    ]
    for way in ways:
        loader = computed(lambda n: np.array([n + 1.0, n, n]), way, shuffle=False, tail="keep", workers=0)
        assert rows(loader).tolist() == [[number, number, number + 1] for number in range(N)]


def test_a_transform_by_field() -> None:
    """A dict of transforms changes the fields it names, a scalar target among them, and no others."""
    transform = {"scan": lambda row, rng: row[::-1], "y": lambda row, rng: row + 100}
    with Loader(
        range(N),
        range(N),
        8,
        inputs={"scan": lambda n: np.arange(3) + n, "age": Values(np.arange(N))},
        transform=transform,
        workers=0,
    ) as loader:
        for X, y in loader:
            assert y.tolist() == [100 + age for age in X["age"].tolist()]
            assert X["scan"].tolist() == [[age + 2, age + 1, age] for age in X["age"].tolist()]


def test_a_transform_may_swap_fields() -> None:
    """A transform may swap two fields, by assignment or by views: neither is overwritten before it is read."""

    def assign(sample: dict[str, Any], rng: object) -> None:
        sample["left"], sample["right"] = sample["right"], sample["left"]

    def views(sample: dict[str, Any], rng: object) -> dict[str, Any]:
        return {"left": sample["right"][::-1], "right": sample["left"][::-1]}

    inputs = {"left": lambda n: np.full(3, n), "right": lambda n: np.full(3, -n)}
    for swap in (assign, views):
        with Loader(range(1, 5), batch_size=4, shuffle=False, inputs=inputs, transform=swap, workers=0) as loader:
            ((X,),) = loader
            assert (X["left"][:, 0].tolist(), X["right"][:, 0].tolist()) == ([-1, -2, -3, -4], [1, 2, 3, 4])


def test_unusable_transforms_are_refused() -> None:
    """A transform is refused if its field is unknown, if it is no function, or if the generator would become its option."""
    transform: Any
    for transform, text in (
        ({"scna": lambda row, rng: row}, r"expected fields 'scan', found \['scna'\]"),
        ({"scan": "flip"}, "expected a function.*found 'flip'"),
        ("flip", "expected a function.*found 'flip'"),
        (lambda x, augment=False: x, r"expected a function of a row and a generator, .* found .*\(x, augment=False\)"),
    ):
        with pytest.raises(InputError, match=text):
            Loader(range(N), None, 8, inputs={"scan": lambda n: np.zeros(3)}, transform=transform)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_transform_without_effect_is_warned_of_once(workers: int) -> None:
    """A transform that returns None and changes no row causes one warning; one that changes or returns rows causes none."""

    def forgets(x: np.ndarray, rng: Any) -> None:
        x = x + 1

    def in_place(x: np.ndarray, rng: Any) -> None:
        x += x[0] % 2 == 0

    def read(transform: Any, workers: int = 0) -> None:
        with computed(ids=range(200), transform=transform, workers=workers, shuffle=False) as loader:
            for _ in loader:
                pass

    with pytest.warns(UserWarning, match=r"^the transform of field 'X' has returned None for its first 64 rows") as caught:
        read(forgets, workers)
    assert len(caught) == 1
    for transform in (in_place, lambda x, rng: x):
        read(transform)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_exception_of_a_function_keeps_its_class(module: Callable, workers: int) -> None:
    """A FunctionError is an instance of the exception's class, too, except for IndexError and StopIteration, which end loops."""
    own = module("""
class Own(Exception):
    def __init__(self, one, two):
        super().__init__(one, two)
""")
    cases: list[tuple[Exception, tuple[type[Exception], ...]]] = [
        (own.Own(1, 2), (own.Own,)),
        (FileNotFoundError(2, "gone"), (FileNotFoundError, OSError)),
        (KeyError("k"), (KeyError, LookupError)),
        (IndexError("i"), (LookupError,)),
        (StopIteration(), ()),
    ]
    errors = [error for error, _ in cases]

    def source(id: int) -> Any:
        raise errors[id]

    with computed(source, ids=range(len(errors)), batch_size=1, shuffle=False, workers=workers) as loader:
        for id, (error, kinds) in enumerate(cases):
            kind: Any
            for kind in (FunctionError, *kinds):
                with pytest.raises(kind, match=rf"source of field 'X': .*{type(error).__name__}") as caught:
                    loader.batch(id)
                assert not isinstance(caught.value, IndexError | StopIteration)
                assert caught.value.path == "source of field 'X'"


def test_reading_from_a_terminal_in_a_worker_is_an_error() -> None:
    """A function that reads from a terminal fails in a worker, and the error says to use workers=0."""

    def source(id: int) -> None:
        exec(("input()", "breakpoint()")[id])

    with computed(source, workers=1, ids=range(2), batch_size=1, shuffle=False) as loader:
        for id in range(2):
            with pytest.raises(FunctionError, match=r"with workers=0, functions run in the main"):
                loader.batch(id)
