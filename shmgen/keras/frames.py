"""Looks at the variables of the functions that led to a call, for what Keras passes to no data set and no callback."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import FrameType
from typing import Any

from keras.src.trainers.epoch_iterator import EpochIterator


def stack(frame: FrameType | None) -> Iterator[FrameType]:
    """``frame``, its caller, the caller's caller, and so on."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def variable(frame: FrameType, name: str) -> Any:
    """The value of a local variable of the function with this frame; None if it has none of this name."""
    if not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
        return None
    local = frame.f_locals
    value = local.get(name)
    if isinstance(local, dict):
        # Up to Python 3.12 this is a copy that the frame keeps: it would hold the batch that ``fit`` had then, long after.
        local.clear()
    return value


def running(frame: FrameType) -> tuple[Any, FrameType] | tuple[None, None]:
    """The `EpochIterator` of the innermost ``fit``, ``evaluate`` or ``predict`` that led to a call, and that method's frame."""
    for caller in stack(frame):
        iterator = variable(caller, "epoch_iterator")
        if isinstance(iterator, EpochIterator):
            return iterator, caller
    return None, None
