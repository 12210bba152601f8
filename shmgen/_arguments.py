"""Arguments checked once, where they come in."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from numbers import Real
from typing import TYPE_CHECKING, SupportsIndex

from shmgen.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike


def whole(value: SupportsIndex, name: str, least: int) -> int:
    """``value`` as an int from ``least``."""
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name}: expected an int from {least}, found {value!r}") from None
    if number < least:
        raise InputError(f"{name}: expected an int from {least}, found {number}")
    return number


def real(value: object, name: str, expected: str, fits: Callable[[float], bool]) -> float:
    """``value`` as a float that ``fits``, which ``expected`` says in words."""
    if not isinstance(value, Real) or not fits(float(value)):
        raise InputError(f"{name}: expected {expected}, found {value!r}")
    return float(value)


def sizes(dim: int | Iterable[int] | None) -> tuple[int, ...] | None:
    """``dim`` as a shape, or None."""
    if dim is None:
        return None
    return tuple(whole(size, "dim", 1) for size in (dim if isinstance(dim, Iterable) else (dim,)))


def numbers(dtype: DTypeLike | None) -> np.dtype[np.generic] | None:
    """``dtype`` in native byte order, one of numbers; or None."""
    import numpy as np

    if dtype is None:
        return None
    try:
        native = np.dtype(dtype).newbyteorder("=")
    except TypeError:
        raise InputError(f"dtype: expected one of numbers, found {dtype!r}") from None
    if native.kind not in "biufc":
        raise InputError(f"dtype: expected one of numbers, found {native}")
    return native
