"""A data set of torch, or any object with ``__len__`` and ``__getitem__``, as ids and a function of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeGuard

import numpy as np

from shmgen.errors import FormatError, InputError

OWN_TYPES = (str, bytes, list, tuple, range, set, frozenset, Mapping)
"""Types that are never data sets, even if they can't be ids either."""

DATASETS = {("torch", "Dataset"), ("datasets", "Dataset")}
"""Base classes of data sets: the package, and the name."""

REFUSED = {
    ("torch", "IterableDataset"): "it has no samples by number; pass ids of its files or rows, and a function of them as source=",
    ("torch", "DataLoader"): "pass its data set, loader.dataset, and batch_size",
    ("tensorflow", "DatasetV2"): "pass the ids or file names that it was made of, and a function of them as source=",
    ("keras", "PyDataset"): "it makes batches; pass the ids that it was made of, and a function that reads one sample as source=",
}
"""Base classes of objects that are refused, with the remedy."""


class Dataset(Protocol):
    """What a data set must have; and no ``__iter__``, unless it is one of torch."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Any: ...


def is_dataset(value: object) -> TypeGuard[Dataset]:
    """Whether ``value`` is a data set, and not a list of ids. One whose samples can't be read one by one is refused."""
    kind = type(value)
    if isinstance(value, OWN_TYPES) or hasattr(kind, "__array__"):
        return False
    bases = {(base.__module__.partition(".")[0], base.__name__) for base in kind.__mro__}
    for base in REFUSED.keys() & bases:
        raise InputError(f"list_IDs: expected ids, or a data set, found a {base[1]} of {base[0]}: {REFUSED[base]}")
    is_map = hasattr(kind, "__len__") and hasattr(kind, "__getitem__")
    return is_map and (bool(DATASETS & bases) or not hasattr(kind, "__iter__"))


class Sample:
    """Reads the sample of a number from a data set; a function for `Function`."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self.__qualname__ = f"{type(dataset).__name__}.__getitem__"

    def __call__(self, number: int) -> Any:
        sample = self._dataset[number]
        if isinstance(sample, Mapping):
            return {name: _array(part) for name, part in sample.items()}
        if isinstance(sample, tuple | list):
            return tuple(map(_array, sample))
        return _array(sample)


def _array(part: Any) -> np.ndarray:
    if not hasattr(part, "detach"):
        return np.asarray(part)
    tensor = part.detach().cpu()
    try:
        return np.asarray(tensor)
    except TypeError:  # torch's, of bfloat16 and other dtypes that NumPy does not have
        raise FormatError(f"expected a dtype that NumPy has, found {tensor.dtype}; return tensor.float()") from None
