"""Checks of arguments. Each returns the value in its final form, or raises an error that says what was expected."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, Generic, Never, NoReturn, SupportsIndex, TypeVar

from shmgen.errors import InputError

T = TypeVar("T")


class Fixed(Generic[T]):
    """A read-only attribute for an argument of a constructor, which ``read`` gets from an object."""

    def __init__(self, read: Callable[[Any], T]) -> None:
        self._read = read

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object | None, owner: type) -> T:
        return self if instance is None else self._read(instance)  # type: ignore[return-value]

    def __set__(self, instance: object, value: Never) -> NoReturn:
        self._read(instance)  # raises its own error if the object is not initialised yet
        kind = type(instance).__name__
        raise AttributeError(
            f"{self._name} can't be changed: the workers of this {kind} were started with it; close() it and make another: "
            f"{kind}(..., {self._name}=...)"
        )


def check_index(index: SupportsIndex, batches: int) -> int:
    """``index`` as the number of one of ``batches`` batches. Negative indexes count from the end."""
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


def check_int(value: SupportsIndex, name: str, least: int, most: int | None = None) -> int:
    """``value`` as an int, at least ``least`` and, unless that is None, at most ``most``."""
    expected = f"an int from {least}" if most is None else f"an int from {least} to {most}"
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name}: expected {expected}, found {value!r}") from None
    if number < least or (most is not None and number > most):
        raise InputError(f"{name}: expected {expected}, found {number}")
    return number


def check_choice(value: T, name: str, known: Sequence[object]) -> T:
    """``value``, if it is one of the ``known`` ones."""
    if value not in known:
        raise InputError(f"{name}: expected {' or '.join(map(repr, known))}, found {value!r}")
    return value


def check_float(value: object, name: str, expected: str, fits: Callable[[float], bool]) -> float:
    """``value`` as a float, if ``fits`` returns True for it; ``expected`` describes such numbers."""
    if not isinstance(value, Real) or not fits(float(value)):
        raise InputError(f"{name}: expected {expected}, found {value!r}")
    return float(value)
