"""Checks of arguments. Each returns the value in its final form, or raises an error that says what was expected."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from numbers import Real
from typing import TYPE_CHECKING, Any, Generic, SupportsIndex, TypeVar, overload

from shmgen.errors import InputError

if TYPE_CHECKING:
    from typing import Never, NoReturn, Self

    import numpy as np
    from numpy.typing import DTypeLike


T = TypeVar("T")


class Fixed(Generic[T]):
    """A read-only attribute for an argument of a constructor.

    Args:
        read: gets the value from an object.
    """

    def __init__(self, read: Callable[[Any], T]) -> None:
        self._read = read

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: object | None, owner: type) -> Self | T:
        return self if instance is None else self._read(instance)

    def __set__(self, instance: object, value: Never) -> NoReturn:
        kind = type(instance).__name__
        raise AttributeError(
            f"{self._name} can't be changed: the workers of this {kind} were started with it; close() it and make another: "
            f"{kind}(..., {self._name}=...)"
        )


def check_index(index: SupportsIndex, batches: int) -> int:
    """``index`` as the number of one of ``batches`` batches. Negative indexes count from the end.

    Raises:
        IndexError: there is no such batch.
        TypeError: ``index`` is no int.
    """
    try:
        number = operator.index(index)
    except TypeError:
        raise TypeError(
            f"batch {index!r}: expected an int, found {type(index).__name__}; for several, ask for one after the other: "
            "[sequence[i] for i in range(...)]"
        ) from None
    if not -batches <= number < batches:
        raise IndexError(f"batch {number}: expected an int from {-batches} to {batches - 1}, since there are {batches} batches")
    return number % batches


def check_int(value: SupportsIndex, name: str, least: int) -> int:
    """``value`` as an int, at least ``least``."""
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name}: expected an int from {least}, found {value!r}") from None
    if number < least:
        raise InputError(f"{name}: expected an int from {least}, found {number}")
    return number


def check_float(value: object, name: str, expected: str, fits: Callable[[float], bool]) -> float:
    """``value`` as a float, if ``fits`` returns True for it; ``expected`` says that in words."""
    if not isinstance(value, Real) or not fits(float(value)):
        raise InputError(f"{name}: expected {expected}, found {value!r}")
    return float(value)


def check_shape(dim: int | Iterable[int] | None) -> tuple[int, ...] | None:
    """``dim`` as a shape, or None."""
    if dim is None:
        return None
    return tuple(check_int(size, "dim", 1) for size in (dim if isinstance(dim, Iterable) else (dim,)))


def check_dtype(dtype: DTypeLike | None) -> np.dtype[np.generic] | None:
    """``dtype`` in native byte order, or None. It must be a dtype of numbers, of NumPy or of ml_dtypes."""
    if dtype is None:
        return None
    try:
        native = dtype_of(dtype)
    except TypeError:
        raise InputError(f"dtype: expected one of numbers, found {dtype!r}") from None
    if not are_numbers(native):
        raise InputError(f"dtype: expected one of numbers, found {native}{what_bytes_may_be(native)}")
    return native


def dtype_of(dtype: DTypeLike) -> np.dtype[np.generic]:
    """``dtype`` in native byte order. A name that NumPy does not know is looked up in ml_dtypes.

    Raises:
        TypeError: there is no such dtype.
    """
    import numpy as np

    try:
        return np.dtype(dtype).newbyteorder("=")
    except TypeError:
        if not isinstance(dtype, str):
            raise
    try:
        import ml_dtypes  # needed only for its own dtypes

        extended: np.dtype[np.generic] = np.dtype(getattr(ml_dtypes, dtype))
    except (ImportError, AttributeError):
        raise TypeError(f"data type {dtype!r} not understood") from None
    return extended


def dtype_text(dtype: np.dtype[np.generic]) -> str:
    """A text from which `dtype_of` makes ``dtype`` again. Unlike the dtype, it can be unpickled without NumPy."""
    return dtype.name if _is_extended(dtype) else dtype.str


def are_numbers(dtype: np.dtype[np.generic]) -> bool:
    """Whether elements of ``dtype`` are numbers."""
    return dtype.kind in "biufc" or _is_extended(dtype)


def meant(found: np.dtype[np.generic], dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    """What elements of dtype ``found`` mean if ``dtype`` is expected.

    Of a dtype of ml_dtypes `numpy.save` keeps only the size, so `numpy.load` finds raw bytes.
    """
    return dtype if _is_bare(found) and _is_extended(dtype) and found.itemsize == dtype.itemsize else found


def what_bytes_may_be(dtype: np.dtype[np.generic]) -> str:
    """A remedy, if ``dtype`` is raw bytes, as which numbers of ml_dtypes may be stored; else an empty text."""
    if not _is_bare(dtype) or dtype.itemsize > 2:
        return ""
    name = "bfloat16" if dtype.itemsize == 2 else "float8_e4m3fn"
    return f", as {name}, for one, is stored: if it is that, pass dtype={name!r}"


def _is_extended(dtype: np.dtype[np.generic]) -> bool:
    """Whether ``dtype`` is one of ml_dtypes. NumPy says of most of these that they are raw bytes."""
    return dtype.type.__module__ == "ml_dtypes"


def _is_bare(dtype: np.dtype[np.generic]) -> bool:
    return dtype.char == "V" and dtype.fields is None and dtype.subdtype is None
