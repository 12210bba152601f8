"""Data sets in place of ids: which objects are data sets, which samples they may have, and warnings of frameworks in workers."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import wait_until
from ways import kill

from shmgen import FunctionError, InputError, Loader


def made(sample: Callable[[int], Any], base: type = object, **more: Any) -> Any:
    """A data set of 12 samples."""
    members = {"__len__": lambda self: 12, "__getitem__": lambda self, number: sample(number), **more}
    return type("Squares", (base,), members)()


def base_of(package: str, name: str) -> type:
    """A stand-in for a framework's base class."""
    return type(name, (), {"__module__": f"{package}.utils"})


SAMPLES: dict[str, tuple[Callable[[int], Any], Callable[[int], Any]]] = {
    "pair": (lambda i: (np.full(3, i), i % 3), lambda i: (np.full(3, i), i % 3)),
    "weighted": (lambda i: (np.full(3, i), i, 0.5), lambda i: (np.full(3, i), i, 0.5)),
    "dict": (lambda i: {"a": np.full(3, i), "b": i}, lambda i: ({"a": np.full(3, i), "b": i},)),
    "tensor": (
        lambda i: (SimpleNamespace(detach=lambda: SimpleNamespace(cpu=lambda: np.full(3, i))), i),
        lambda i: (np.full(3, i), i),
    ),
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_samples_of_a_data_set_in_order(kind: str) -> None:
    """Samples may be pairs, triples, dicts or tensors, and are delivered in the order of their numbers."""
    sample, expected = SAMPLES[kind]
    with Loader(made(sample), batch_size=4, shuffle=False, workers=0) as loader:
        assert list(loader.list_IDs) == list(range(12))
        for batch, found in enumerate(loader):
            rows = [expected(number) for number in range(4 * batch, 4 * batch + 4)]
            for field, column in zip(found, zip(*rows, strict=True), strict=True):
                for name in field if isinstance(field, dict) else [None]:
                    array, parts = (field, column) if name is None else (field[name], [part[name] for part in column])
                    np.testing.assert_array_equal(array, np.stack([np.asarray(part) for part in parts]))


@pytest.mark.parametrize("base", [base_of("torch", "Dataset"), base_of("datasets", "Dataset")])
def test_iterable_data_sets_of_frameworks(base: type) -> None:
    """torch's and Hugging Face's data sets may be iterable; any other iterable is a list of ids."""
    with Loader(made(np.square, base, __iter__=lambda self: iter(())), batch_size=4, workers=0) as loader:
        assert sorted(x for (X,) in loader for x in X.tolist()) == [i * i for i in range(12)]
    with pytest.raises(InputError, match="expected at least 4 ids, found 0"):
        Loader(made(np.square, __iter__=lambda self: iter(())), batch_size=4)


def test_workers_read_a_data_set(caplog: pytest.LogCaptureFixture) -> None:
    """Two workers read a data set, with labels by number beside it."""
    dataset = made(lambda i: np.full(3, i * i))
    with Loader(dataset, range(12), batch_size=4, workers=2) as loader:
        assert all(((y * y)[:, None] == X).all() for X, y in loader)
    assert "functions that workers call import" not in caplog.text


REFUSED = [
    (("torch", "IterableDataset"), "it has no samples by number"),
    (("torch", "DataLoader"), "pass its data set, loader.dataset"),
    (("tensorflow", "DatasetV2"), "pass the ids or file names that it was made of"),
    (("keras", "PyDataset"), "it makes batches"),
]


def test_unusable_data_sets_are_refused() -> None:
    """A data set without samples by number, or with a source beside it, is refused with a remedy."""
    for base, said in REFUSED:
        with pytest.raises(InputError, match=f"found a {base[1]} of {base[0]}: {said}"):
            Loader(made(np.square, base_of(*base)), batch_size=4)
    with pytest.raises(InputError, match="found a data set, which has the samples; give one"):
        Loader(made(np.square), batch_size=4, source=np.square)


class Bfloat16:
    """As a tensor of a dtype that NumPy does not have."""

    dtype = "torch.bfloat16"

    def detach(self) -> Bfloat16:
        return self

    cpu = detach

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("Got unsupported ScalarType BFloat16")


def test_tensors_of_bfloat16_are_refused() -> None:
    """A tensor that NumPy can't read is an error with a remedy, without the framework's traceback."""
    with pytest.raises(FunctionError, match=r"found torch.bfloat16; return tensor.float\(\)$"):
        Loader(made(lambda number: Bfloat16()), batch_size=4, workers=0)


def test_frameworks_are_logged_once(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A framework that workers import is logged once, with seconds and memory, however many workers start.

    Here, a module of the test with the name jax replaces the framework.
    """
    (tmp_path / "jax.py").write_text("ones = b'1' * 50_000_000")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "jax", ...)  # what was there is put back in the end
    del sys.modules["jax"]
    jax = importlib.import_module("jax")

    def computes(id: int) -> np.ndarray:
        logging.getLogger("shmgen").warning("called in %d", os.getpid())  # handled after the worker's earlier messages
        return np.full(3, len(jax.__name__) + id)

    def workers() -> set[str]:
        return {text for text in caplog.messages if text.startswith("called in")} - {f"called in {os.getpid()}"}

    with caplog.at_level(logging.WARNING, "shmgen"), Loader(range(12), source=computes, batch_size=4, workers=1) as loader:
        wait_until(lambda: list(loader) and len(workers()) == 1, "a record of the worker has arrived")
        kill(psutil.Process(loader.state.workers[0].pid))
        wait_until(lambda: list(loader) and len(workers()) == 2, "a record of its replacement has arrived")
    [text] = [text for text in caplog.messages if "functions that workers call import" in text]
    assert "import jax: " in text
    assert "MB in each worker" in text
