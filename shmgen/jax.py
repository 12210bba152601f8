"""What users of JAX need: `Arrays`, a loader's batches as JAX's arrays. Only this module imports JAX."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

import jax
import numpy as np

from shmgen._engine.front_end import map_arrays
from shmgen.errors import InputError
from shmgen.loader import Loader

__all__ = ["Arrays"]

SLOTS_AHEAD = 3
"""Slots that are needed to send one batch ahead: one for it, one for the batch in use, one for the batch that is read."""


class Arrays:
    """The batches of a `shmgen.Loader` as arrays of JAX, nested as the loader's are.

    On the CPU they lie in the loader's shared memory, without a copy, unless JAX converts their dtype: without
    ``jax_enable_x64``, int64 becomes int32, and float64 becomes float32. To any other device, or one that is given, each batch is
    sent while the one before it is in use, if the loader has 3 slots or more.

    Each iteration is the next epoch of the loader. A batch's memory is not reused while JAX, an array or a view needs it.

    Args:
        loader: has the batches.
        to_device: a device, or a sharding of the batch axis: each process sends its own rows to its devices. By default,
            JAX's default device.

    Raises:
        InputError: ``loader`` is no `shmgen.Loader`. From an iteration: an int does not fit in the 32 bits that JAX makes of it.

    Examples:
        >>> loader = Loader(ids, labels, batch_size=4, shuffle=False)
        >>> for X, y in Arrays(loader):
        ...     print(X.shape, X.dtype, y)
        (4, 4, 3) float32 [0 1 2 3]
        ...
        >>> loader.close()
    """

    def __init__(self, loader: Loader, to_device: jax.Device | jax.sharding.Sharding | None = None) -> None:
        if not isinstance(loader, Loader):
            raise InputError(f"expected a shmgen.Loader, found {loader!r}: make one of the same arguments, and pass that")
        self._loader = loader
        if isinstance(to_device, jax.sharding.Sharding):
            self._put: Any = partial(map_arrays, partial(jax.make_array_from_process_local_data, to_device))
        else:
            self._put = partial(jax.device_put, device=to_device)
        self._is_sent = to_device is not None or jax.default_backend() != "cpu"
        self._state: dict[str, Any] | None = None

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        """The batches of the next epoch."""
        # No variable here may hold a batch while the next one is read.
        batches = map(self._put, map(partial(map_arrays, checked), self._loader))
        return self._one_ahead(batches) if self._is_sent and len(self._loader.state.slots) >= SLOTS_AHEAD else batches

    def _one_ahead(self, batches: Iterator[Any]) -> Iterator[Any]:
        sent = deque(islice(batches, 1))
        while sent:
            self._state = self._loader.state_dict()
            sent.extend(islice(batches, 1))
            yield sent.popleft()

    def state_dict(self) -> dict[str, Any]:
        """The state behind the last batch that was returned, not behind one sent ahead; see `shmgen.Loader.state_dict`."""
        return self._loader.state_dict() if self._state is None else self._state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have the next iteration resume there; see `shmgen.Loader.load_state_dict`."""
        self._loader.load_state_dict(state)
        self._state = None


def checked(array: np.ndarray) -> np.ndarray:
    """``array``; an InputError if JAX, without ``jax_enable_x64``, would wrap an int of it when it converts it to 32 bits."""
    if array.dtype.kind in "iu" and array.itemsize == 8 and array.size and not jax.config.jax_enable_x64:
        bounds, low, high = np.iinfo(f"{array.dtype.kind}4"), array.min(), array.max()
        if not bounds.min <= low <= high <= bounds.max:
            raise InputError(
                f"expected numbers that JAX's {bounds.dtype} holds, found {low} to {high} in dtype {array.dtype}: call "
                "jax.config.update('jax_enable_x64', True) first, or have the loader make smaller numbers"
            )
    return array
