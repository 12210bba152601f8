"""What users of torch need: `Tensors`, a loader's batches as tensors. Only this module, and Keras's front end, import torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from shmgen._engine.front_end import map_arrays
from shmgen.errors import InputError
from shmgen.loader import Loader

__all__ = ["Tensors"]

ML_DTYPES = {
    name: getattr(torch, name)
    for name in ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
    if hasattr(torch, name)
}
"""What torch calls dtypes that NumPy has from ml_dtypes."""


class Tensors(IterableDataset[Any]):  # type: ignore[misc]
    """The batches of a `shmgen.Loader` as torch tensors that lie in its shared memory: nothing is copied.

    For a ``for`` loop as it is, or ``DataLoader(Tensors(loader), batch_size=None)``. Each iteration is the next epoch of the
    loader, and batches are nested as the loader's are.

    A batch's memory is not reused as long as one of its tensors, or a view of one, exists. It is pageable, so
    ``tensor.to(device, non_blocking=True)`` has read it when it returns.

    Args:
        loader: has the batches. Its workers read ahead, so a DataLoader needs none: leave ``num_workers`` at 0.

    Raises:
        InputError: ``loader`` is no `shmgen.Loader`. From an iteration: torch does not have the dtype of a batch, or a DataLoader
            iterates in workers.

    Examples:
        >>> from torch.utils.data import DataLoader
        >>> loader = Loader(ids, labels, batch_size=4, shuffle=False)
        >>> for X, y in DataLoader(Tensors(loader), batch_size=None):
        ...     print(X.shape, y)
        torch.Size([4, 4, 3]) tensor([0, 1, 2, 3])
        ...
        >>> loader.close()
    """

    def __init__(self, loader: Loader) -> None:
        if not isinstance(loader, Loader):
            raise InputError(f"expected a shmgen.Loader, found {loader!r}: make one of the same arguments, and pass that")
        self._loader = loader

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        """The batches of the next epoch."""
        if get_worker_info() is not None:
            raise InputError("expected num_workers=0, found an iteration in a DataLoader's worker: shmgen has workers of its own")
        # No variable here may hold a batch while the next one is read.
        return map(partial(map_arrays, as_tensor), self._loader)

    def state_dict(self) -> dict[str, Any]:
        """The loader's state; see `shmgen.Loader.state_dict`."""
        return self._loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have the next iteration resume there; see `shmgen.Loader.load_state_dict`."""
        self._loader.load_state_dict(state)


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor on the memory of ``array``, which is writeable and contiguous, with its dtype.

    Raises:
        InputError: torch does not have this dtype.
    """
    if array.dtype.name in ML_DTYPES:
        return torch.from_numpy(array.view(f"u{array.itemsize}")).view(ML_DTYPES[array.dtype.name])
    try:
        return torch.from_numpy(array)
    except TypeError:
        raise InputError(f"expected a dtype that torch has, found {array.dtype}: pass another dtype= to the loader") from None
