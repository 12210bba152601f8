"""`shmgen.torch`: batches as tensors in the ring's memory, in a plain loop and through a DataLoader."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from ways import in_a_ring

if os.environ.get("KERAS_BACKEND") != "torch":
    pytest.skip("torch has a process of its own: KERAS_BACKEND=torch", allow_module_level=True)

import torch
from torch.utils.data import DataLoader

from shmgen import Function, InputError, Loader, Values
from shmgen.torch import Tensors

N = 40


def made(**options: Any) -> Loader:
    """A loader of rows of 4 x 3 float32, full of the id, which is also the label."""
    arguments = {"source": lambda id: np.full((4, 3), id, np.float32), "targets": Values(np.arange(N)), "workers": 1}
    return Loader(range(N), batch_size=4, **{**arguments, **options})


def as_it_is(loader: Loader) -> Iterator[Any]:
    return iter(Tensors(loader))


def by_data_loader(loader: Loader) -> Iterator[Any]:
    return iter(DataLoader(Tensors(loader), batch_size=None))


WAYS = pytest.mark.parametrize("way", [as_it_is, by_data_loader])


@WAYS
@pytest.mark.parametrize("slots", [2, 4])
def test_batches_are_the_rings_memory(poison: None, way: Callable[..., Any], slots: int) -> None:
    """All tensors of two epochs are the ring's memory, in the loader's order, and are released without a wait for slots."""
    with made(slots=slots) as loader, made() as same:
        for _ in range(2):
            expected = [y.tolist() for _, y in same]
            found = []
            for X, y in way(loader):
                assert in_a_ring(X.data_ptr())
                assert in_a_ring(y.data_ptr())
                assert (y[:, None, None] == X).all()
                found.append(y.tolist())
            assert found == expected
        assert (loader.stats.grown, loader.stats.slot_wait) == (0, 0)


@WAYS
def test_views_hold_the_batch(poison: None, way: Callable[..., Any]) -> None:
    """A slice and other views of a tensor (transposed, detached, by DLPack, by NumPy) are not overwritten while they are held."""
    views: list[Any] = [
        lambda x: x[1:2],
        lambda x: x.transpose(0, 2),
        lambda x: x.detach().view(-1),
        torch.from_dlpack,
        lambda x: x.numpy(),
    ]
    with made(slots=2) as loader:
        held = [(view(X), y.tolist()) for _ in views for view, (X, y) in zip(views, way(loader), strict=False)]
        for _ in loader:
            pass
        for view, labels in held:
            assert {int(one) for one in np.unique(np.asarray(view))} <= set(labels)
        assert loader.stats.grown > 0


@WAYS
def test_tensors_have_the_structure_of_the_loader(way: Callable[..., Any]) -> None:
    """Tensors come in the loader's dicts and tuples, with weights, and without targets."""
    one, two = Function(lambda id: np.full(2, id, np.uint8)), Values(np.arange(N, dtype=np.float64))
    with Loader(range(N), inputs={"one": one, "two": [two, two]}, targets=one, weights=two, batch_size=4, workers=0) as loader:
        inputs, target, weights = next(way(loader))
        assert inputs["one"].dtype == target.dtype == torch.uint8
        assert [tensor.shape for tensor in inputs["two"]] == [(4,), (4,)]
        assert weights.dtype == torch.float32
    with made(targets=None) as loader:
        assert [tensor.shape for tensor in next(way(loader))] == [(4, 4, 3)]


DTYPES = [
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float16", "float32", "float64", "complex64", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
]


def test_dtypes() -> None:
    """Each dtype that torch has, also of ml_dtypes, is kept, without a copy."""
    for dtype in DTYPES:
        of_numpy = np.dtype(getattr(ml_dtypes, dtype, dtype))
        source = lambda id, of=of_numpy: np.full((4, 3), id % 2, np.float32).astype(of)  # noqa: E731
        with made(source=source, dim=4, n_channels=3, dtype=of_numpy, workers=0) as loader:
            X, y = next(iter(Tensors(loader)))
            assert str(X.dtype) == f"torch.{dtype}"
            assert (X.real.to(torch.float32) == (y % 2)[:, None, None]).all()
            assert in_a_ring(X.data_ptr())


def test_a_dtype_that_torch_lacks_is_refused() -> None:
    """A dtype that torch does not have raises an error that names it, with a remedy."""
    of_numpy = np.dtype(ml_dtypes.float8_e3m4)
    said = "expected a dtype that torch has, found float8_e3m4: pass another dtype="
    with (
        made(source=lambda id: np.zeros((4, 3)), dim=4, n_channels=3, dtype=of_numpy) as loader,
        pytest.raises(InputError, match=said),
    ):
        next(iter(Tensors(loader)))


def test_workers_of_a_data_loader_are_refused() -> None:
    """Workers of a DataLoader, each of which would copy everything, are refused, and the error says what to leave out."""
    with made() as loader, pytest.raises(InputError, match="expected num_workers=0"):
        list(DataLoader(Tensors(loader), batch_size=None, num_workers=1, multiprocessing_context="fork"))
    with pytest.raises(InputError, match=r"expected a shmgen.Loader, found \[1\]"):
        Tensors([1])  # type: ignore[arg-type]


def test_length_and_passes() -> None:
    """``len`` is that of the loader; each loop is the next epoch, also if the last was left early."""
    with made() as loader, made() as same:
        tensors = Tensors(loader)
        assert len(tensors) == len(DataLoader(tensors, batch_size=None)) == 10
        epochs = [[y.tolist() for _, y in same] for _ in range(3)]
        assert next(iter(tensors))[1].tolist() == epochs[0][0]
        assert [y.tolist() for _, y in tensors] == epochs[1]
        assert [y.tolist() for _, y in DataLoader(tensors, batch_size=None)] == epochs[2]


@pytest.mark.parametrize("taken", [1, 7, 10])
def test_state(taken: int) -> None:
    """The state is that of the loader: another loader resumes after the batches that were returned."""
    with made() as loader, made(workers=2) as other, made() as same:
        epochs = [[y.tolist() for _, y in same] for _ in range(2)]
        batches = iter(Tensors(loader))
        for _ in range(taken):
            next(batches)
        resumed = Tensors(other)
        resumed.load_state_dict(Tensors(loader).state_dict())
        assert [y.tolist() for _, y in resumed] == (epochs[0][taken:] or epochs[1])


def test_a_torch_loop_trains_as_from_memory(poison: None) -> None:
    """A plain torch loop trains to exactly the same weights as with the same arrays from memory."""

    def trained(batches: Any) -> list[float]:
        torch.manual_seed(0)
        model = torch.nn.Linear(12, 1)
        optimizer = torch.optim.SGD(model.parameters(), 1e-4)
        for X, y in batches:
            optimizer.zero_grad()
            loss: Any = ((model(X.reshape(len(X), -1))[:, 0] - y) ** 2).mean()
            loss.backward()
            optimizer.step()
        return model.weight.flatten().tolist()

    with made(slots=2) as loader, made() as same:
        assert trained(Tensors(loader)) == trained([(torch.tensor(X), torch.tensor(y)) for X, y in same])
