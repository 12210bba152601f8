"""Which pass a request of Keras's belongs to, found by looking at who asks."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from itertools import islice, takewhile
from types import CodeType, FrameType
from typing import Any

from shmgen._plan.passes import Pass
from shmgen.loader import Loader

MAX_ITERATIONS = 16
"""Iterations over one object that are told apart; with more, the oldest is forgotten."""


class Iterations:
    """Finds the iteration that a request belongs to, and tells iterations from mere looks at the data.

    An iteration, Keras's or that of a ``for`` loop, is a generator that reads ``num_batches`` when it begins, and then requests
    batches. It is recognised by its frame, in any thread. So an iteration that was left early, but for which TensorFlow still
    requests batches ahead, takes none from the next one.

    Keras looks at a batch or two before it trains: on TensorFlow outside of an iteration, on JAX and torch in one. Then it resets
    its `EpochIterator`, which reads ``num_batches`` through its adapter, and calls ``on_epoch_end``. So an iteration that is
    reset before it has ended was a look, unless another `EpochIterator` was made meanwhile: that reads the number too.
    """

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        # By the id of the generator's frame. If another frame gets the id of one that is gone, it runs other code, or begins.
        self._passes: dict[int, tuple[CodeType, Pass]] = {}
        self._last: Pass | None = None
        self._keras: Pass | None = None
        # How often an `EpochIterator` has read ``num_batches`` since the last iteration began or ended.
        self._reads = 0
        self._seen_keras = False

    def begin(self, frame: FrameType, *, by_hand: bool) -> Pass:
        """An iteration begins, in the generator with this frame."""
        with self._loader.passes() as passes:
            self._last = passes.open(by_hand=by_hand, asks_ahead=not by_hand)
        if not by_hand:
            self._keras = self._last
        self._reads = 0
        self._seen_keras = self._seen_keras or not by_hand
        self._passes.pop(id(frame), None)
        self._passes[id(frame)] = frame.f_code, self._last
        if len(self._passes) > MAX_ITERATIONS:
            del self._passes[next(iter(self._passes))]
        return self._last

    @property
    def of_keras(self) -> Pass | None:
        """The last iteration of Keras's that has begun; None before the first."""
        return self._keras

    def on_read(self) -> None:
        """Keras makes or resets an `EpochIterator`."""
        self._reads += 1
        self._seen_keras = True

    def find(self, frame: FrameType) -> Pass | None:
        """The pass of the iteration in which a batch is requested; None outside of iterations."""
        if self._passes:
            for caller in stack(frame):
                code, found = self._passes.get(id(caller), (None, None))
                if code is caller.f_code:
                    return found
        return None

    def end(self, *, by_keras: bool) -> None:
        """An epoch has ended, or Keras resets its iterator."""
        # If Keras is hidden by a wrapper of the user's, which forwards only batches and this call, nothing more is known.
        if not (by_keras and self._seen_keras):
            self._loader.on_epoch_end()
        elif self._reads:
            with self._loader.passes() as passes:
                if self._reads == 1 and self._last is not None:
                    passes.take_back(self._last)
                passes.forget()
        self._last = None
        self._reads = 0


def stack(frame: FrameType | None) -> Iterator[FrameType]:
    """``frame``, its caller, the caller's caller, and so on."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def caller_behind(name: str) -> tuple[list[FrameType], FrameType]:
    """The frames of functions of this ``name`` that forward the call, Keras's or a subclass's, and the frame that called them."""
    forwarding = list(takewhile(lambda frame: frame.f_code.co_name == name, stack(sys._getframe(2))))
    return forwarding, next(islice(stack(sys._getframe(2)), len(forwarding), None))


def variable(frame: FrameType, name: str) -> Any:
    """What a function's frame has under this name; None if there is nothing, or the frame is no function's."""
    if not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
        return None
    local = frame.f_locals
    value = local.get(name)
    if isinstance(local, dict):
        # Up to Python 3.12 it is a copy, which the frame keeps: the batch in ``fit``'s own would be held long after.
        local.clear()
    return value


def is_keras(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] == "keras"
