"""A look at the functions that led to a call, and their variables: what Keras knows in ``fit`` and passes on to no callback."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import FrameType
from typing import Any


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
        # Up to Python 3.12 this is a copy, which the frame keeps: with the batch that ``fit`` had then, long after.
        local.clear()
    return value


def is_keras(frame: FrameType) -> bool:
    """Whether the function with this frame belongs to Keras."""
    return str(frame.f_globals.get("__name__")).partition(".")[0] == "keras"
