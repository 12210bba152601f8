"""Errors reach the user: they are logged once, kept in ``error``, and keep nothing else alive."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import Asking, until_waiting

from shmgen import ClosedError, FunctionError, Loader, SampleError, Source, StartError, TooManyDamaged, WorkerDied
from shmgen._engine.batch_planner import BatchPlanner
from shmgen._engine.front_end import FrontEnd


def own() -> Counter[str]:
    """The number of living objects of each class that a loader consists of."""
    homes = ("shmgen.loader", "shmgen._engine", "shmgen._memory")
    return Counter(type(object).__name__ for object in gc.get_objects() if str(type(object).__module__).startswith(homes))


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The error messages in the log."""
    return [record.getMessage() for record in caplog.records if (record.name, record.levelno) == ("shmgen", logging.ERROR)]


def opening(act: Callable[[], object]) -> Source:
    """A user's source that calls ``act`` when it is opened; its class is sent to workers by value."""

    class Own(Source):
        shape, dtype = (3,), "f4"

        def open(self) -> None:
            act()

        def read(self, id: Any, row: np.ndarray) -> None: ...

    return Own()


def five_is_odd() -> Callable[[str], np.ndarray]:
    """A function that raises for ``id-5``."""

    def function(id: str) -> np.ndarray:
        if id == "id-5":
            raise ValueError("five is odd")
        return np.zeros(3)

    return function


ENDS: dict[str, tuple[Callable[[], dict[str, Any]], type[Exception], str]] = {
    # fault -> options of the loader, error of its second batch of four, and the error's text
    "sample": (dict, SampleError, "sample 'id-5', file .*: expected a file, found none"),
    "function": (lambda: {"source": five_is_odd()}, FunctionError, "sample 'id-5', source of field 'X': ValueError: five is odd"),
    "damaged": (
        lambda: {"on_error": "replace", "max_damaged": 0.0},
        TooManyDamaged,
        "1 of 8 samples are damaged, and max_damaged=0 of them may be",
    ),
    "start": (
        lambda: {"source": opening(lambda: 1 / 0)},
        StartError,
        "source of field 'X' can't be opened: ZeroDivisionError: division by zero",
    ),
    "death": (lambda: {"source": opening(lambda: os._exit(7))}, WorkerDied, r"worker 0 \(pid \d+\) ended with exit code 7"),
}


def failing(kind: str, folder: Callable) -> Loader:
    """A loader whose second batch raises the error of `ENDS`."""
    data = folder(8)
    options = ENDS[kind][0]()
    if "source" not in options:
        options["data_dir"] = data.path
    loader = Loader(data.ids, data.labels, 4, shuffle=False, workers=1, **options)
    data.file("id-5").unlink()
    return loader


@pytest.mark.parametrize(("kind", "hides"), [("sample", False), *((kind, True) for kind in ENDS)])
def test_an_error_is_logged_once_and_kept(
    folder: Callable, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, kind: str, hides: bool
) -> None:
    """An error is logged once if a framework hides errors; it is in ``error`` afterwards, also after `close`."""
    monkeypatch.setattr(FrontEnd, "hides_errors", hides)
    loader = failing(kind, folder)
    assert loader.error is None
    raised = []
    for _ in range(2):
        with pytest.raises(ENDS[kind][1], match=ENDS[kind][2]) as caught:
            loader.batch(1)
        raised.append(caught.value)
    loader.close()

    assert said(caplog) == ([str(raised[0])] if hides else [])
    kept: Any = loader.error
    assert (type(kept), kept.args) == (type(raised[0]), raised[0].args)
    assert vars(loader.error) == vars(raised[0])
    assert str(loader.error) == str(raised[1])


@pytest.mark.parametrize("kind", ["function", "damaged", "death"])
def test_a_kept_error_keeps_no_objects_alive(folder: Callable, kind: str, no_collection: None) -> None:
    """A kept error has no traceback, so that all other objects are freed with the loader, without garbage collection."""
    before = own()
    loader = failing(kind, folder)
    assert {"Loader", "Prefetcher", "Ring"} <= (own() - before).keys()
    with contextlib.suppress(ENDS[kind][1]):
        loader.batch(1)
    error = loader.error
    assert error is not None
    assert (error.__traceback__, error.__cause__, error.__context__) == (None, None, None)
    del loader
    assert own() == before


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has loaders log their errors, as they do if a framework hides them."""
    monkeypatch.setattr(FrontEnd, "hides_errors", True)


@pytest.mark.usefixtures("hidden")
def test_each_batch_that_fails_is_logged_in_each_epoch(folder: Callable, caplog: pytest.LogCaptureFixture) -> None:
    """Two failing batches are logged once each, and again in the next epoch."""
    data = folder(8)
    with Loader(data.ids, data.labels, 2, data_dir=data.path, shuffle=False, workers=1) as loader:
        for number in (1, 5):
            data.file(data.ids[number]).unlink()
        for _ in range(2):
            for index in (0, 0, 1, 2, 2, 3):
                with contextlib.suppress(SampleError):
                    loader.batch(index)
            loader.on_epoch_end()
        assert [re.findall("id-.", text)[0] for text in said(caplog)] == ["id-1", "id-5"] * 2
        assert isinstance(loader.error, SampleError)
        assert loader.error.id == "id-5"


@pytest.mark.usefixtures("hidden")
def test_another_failure_of_a_batch_is_logged(folder: Callable, caplog: pytest.LogCaptureFixture) -> None:
    """Two failures of one batch are logged once each; the same failure again is not."""
    data = folder(8)
    with Loader(data.ids, data.labels, 2, data_dir=data.path, shuffle=False, workers=0) as loader:
        for content in (b"", b"", b"PNG" * 9):
            data.file("id-1").write_bytes(content)
            with pytest.raises(SampleError):
                loader.batch(0)
        assert [text.partition("found ")[2].partition(";")[0] for text in said(caplog)] == [
            "an empty one (0 bytes)",
            "one that begins with b'PNGPNG'",
        ]


def test_close_is_not_an_error(folder: Callable, caplog: pytest.LogCaptureFixture) -> None:
    """After `close`, a waiting and a later request raise ClosedError, and no error is kept or logged."""
    data = folder(8)
    loader = Loader(data.ids, data.labels, 4, data_dir=data.path, shuffle=False, workers=1)
    data.fifo(0)
    waiting = Asking(lambda: [loader.batch(index) for index in (1, 0) * 10])
    until_waiting(loader)
    loader.close()
    assert isinstance(waiting.outcome(), ClosedError)
    with pytest.raises(ClosedError):
        loader.batch(1)
    assert loader.error is None
    assert said(caplog) == []


@pytest.mark.usefixtures("hidden")
def test_other_errors_are_kept_too(folder: Callable, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception from the main process whose class needs several arguments is logged and kept, too."""

    class Odd(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"{one} and {two}")

    def fails_once(self: BatchPlanner, slots: Any) -> None:
        if failures.pop():
            raise Odd(1, 2)
        prepare(self, slots)

    data, failures, prepare = folder(8), [True, False], BatchPlanner.prepare
    with Loader(data.ids, None, 4, data_dir=data.path, workers=0, shuffle=False) as loader:
        monkeypatch.setattr(BatchPlanner, "prepare", fails_once)
        with pytest.raises(Odd):
            list(loader)
        assert said(caplog) == ["Odd: 1 and 2"]
        assert str(loader.error) == "Odd: 1 and 2"
