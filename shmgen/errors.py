"""What can go wrong."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from functools import lru_cache
from typing import Any, cast

from shmgen._urls import shown_in

HINTS: dict[int, str] = {
    signal.SIGKILL: "; the kernel does that when memory runs out: try a smaller batch_size, fewer slots or fewer workers",
    signal.SIGBUS: ": a file that it has mapped was truncated while it was read, or the memory of the ring is gone",
}
"""By the signal that killed a worker: its probable cause."""


class ShmgenError(Exception):
    """Base of the errors of shmgen."""

    def __str__(self) -> str:
        return printable(super().__str__())


class InputError(ShmgenError, ValueError):
    """An argument that can't be used: no ids, a size of zero, an id without a label."""


class SampleError(ShmgenError):
    """A sample can't be read.

    Attributes:
        id: the sample's id, as in ``list_IDs``.
        path: the absolute path of the file, or a description of another source.
        reason: what was expected and what was found.
    """

    def __init__(self, id: object, path: str, reason: str) -> None:
        Exception.__init__(self, id, path, reason)  # not super(): a FunctionError may also be of a user's class
        self.id = id
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        file = "file " if self.path.startswith("/") else ""
        return printable(f"sample {self.id!r}, {file}{self.path}: {self.reason}")


class FunctionError(SampleError):
    """A user's function raised an exception, or returned something of another shape or dtype.

    Attributes:
        id: the sample's id, as in ``list_IDs``.
        path: the function, and its field.
        reason: what was expected and what was found, or the exception with its traceback.

    It is also an instance of the exception's class, if the main process has imported that.

    Examples:
        >>> loader = Loader(range(8), batch_size=4, source=lambda id: [60 / (id - 5)], shuffle=False)
        >>> try:
        ...     list(loader)
        ... except ZeroDivisionError as error:
        ...     print(isinstance(error, FunctionError), error.id, error.reason)
        True 5 ZeroDivisionError: ...
    """

    kinds: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, id: object, path: str, reason: str, kinds: tuple[tuple[str, str], ...] = ()) -> FunctionError:
        """An error that is also an instance of the first of ``kinds``, modules and names of classes, that is imported here."""
        error = cls(id, path, reason)
        for module, name in kinds:
            kind = getattr(sys.modules.get(module), name, None)
            # Python takes the first three for the end of an iteration.
            others = (StopIteration, StopAsyncIteration, IndexError, Exception)
            if isinstance(kind, type) and issubclass(kind, Exception) and kind not in others:
                # A TypeError: its constructor takes other arguments, or the classes can't be combined.
                with suppress(TypeError):
                    error = _as_both(cast("Any", kind))(id, path, reason)
                    break
        error.kinds = kinds
        return error

    def __reduce__(self) -> tuple[object, ...]:
        return FunctionError.of, (self.id, self.path, self.reason, self.kinds)


@lru_cache(64)
def _as_both(users: Any) -> type[FunctionError]:
    """A class of errors that are a `FunctionError` and one of the user's."""
    return type(FunctionError.__name__, (FunctionError, users), {"__module__": FunctionError.__module__})


class TooManyDamaged(ShmgenError):
    """More samples are damaged than ``max_damaged`` allows.

    Attributes:
        damaged: number of damaged samples.
        samples: number of all samples.
        most: the fraction of the samples that may be damaged, from 0 to 1.
        last: the last damaged sample's error.
    """

    def __init__(self, damaged: int, samples: int, most: float, last: str) -> None:
        super().__init__(damaged, samples, most, last)
        self.damaged = damaged
        self.samples = samples
        self.most = most
        self.last = last

    def __str__(self) -> str:
        return (
            f"{self.damaged:,} of {self.samples:,} samples are damaged, and max_damaged={self.most:g} of them may be; repair "
            "them (`python -m shmgen scan` finds all), leave them out, or pass a larger max_damaged; the last one was "
            f"{self.last}"
        )


class StartError(ShmgenError):
    """A worker can't start, since it can't open a source or import a function; the text says which, and why."""


class WorkerDied(ShmgenError):
    """A worker process ended unexpectedly.

    Attributes:
        worker: the worker's number, from 0.
        pid: its process id.
        exitcode: its exit code, or the negative number of the signal that killed it. None if it could not be killed.
    """

    def __init__(self, worker: int, pid: int, exitcode: int | None) -> None:
        super().__init__(worker, pid, exitcode)
        self.worker = worker
        self.pid = pid
        self.exitcode = exitcode

    def __str__(self) -> str:
        name = f"worker {self.worker} (pid {self.pid})"
        if self.exitcode is None:
            return f"{name} can't be killed"
        if self.exitcode >= 0:
            return f"{name} ended with exit code {self.exitcode}"
        number = -self.exitcode
        by = signal.Signals(number).name if number in {*signal.Signals} else f"signal {number}"
        return f"{name} was killed by {by}{HINTS.get(number, '')}"


class FormatError(Exception):
    """Something was found that was not expected; the text says both. The caller makes a `SampleError` of it."""


class ClosedError(ShmgenError):
    """A batch was requested from a closed loader."""


def printable(text: str) -> str:
    """``text`` as any stream can encode it: bytes of a path that are not valid UTF-8 are escaped; URLs show no secrets."""
    return shown_in(text.encode("utf-8", "backslashreplace").decode())
