"""What can go wrong, by name."""

from __future__ import annotations

import signal


class ShmgenError(Exception):
    """Base of all errors that shmgen raises on its own account.

    Examples:
        >>> try:
        ...     Loader(["no-such-id"], batch_size=1)
        ... except ShmgenError as error:
        ...     print(type(error).__name__)
        SampleError
    """


class InputError(ShmgenError, ValueError):
    """An argument that no training could start from: no ids, a size of zero, an id without a label.

    Examples:
        >>> Loader(ids, labels, batch_size=0)
        Traceback (most recent call last):
        shmgen.errors.InputError: batch_size: expected ..., found 0
    """


class SampleError(ShmgenError):
    """A sample that can't be read.

    Attributes:
        id: the sample's id, as it stands in the list of ids.
        path: what was to be read: a file, as an absolute path, or what else a source reads.
        reason: what was expected and what was found.

    Examples:
        >>> try:
        ...     Loader(["no-such-id"], batch_size=1)
        ... except SampleError as error:
        ...     print(error.id, error.path)
        no-such-id /.../data/no-such-id.npy
    """

    def __init__(self, id: object, path: str, reason: str) -> None:
        super().__init__(id, path, reason)
        self.id = id
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return printable(f"sample {self.id!r}, {'file ' if self.path.startswith('/') else ''}{self.path}: {self.reason}")


class FunctionError(SampleError):
    """A user's function raised, or returned what does not fit.

    Attributes:
        id: the sample's id, as it stands in the list of ids.
        path: what was called, and for which field.
        reason: what was expected and what was found, or the exception and its own traceback.

    Examples:
        >>> loader = Loader(range(8), batch_size=4, source=lambda id: [60 / (id - 5)], shuffle=False)
        >>> try:
        ...     list(loader)
        ... except FunctionError as error:
        ...     print(error.id, error.reason)
        5 ZeroDivisionError: ...
    """


class TooManyDamaged(ShmgenError):
    """More samples can't be had than ``max_damaged`` bears.

    Attributes:
        damaged: how many there are.
        samples: how many the data set has.
        most: the fraction of them that is borne.
        last: the error of the last that was found.

    Examples:
        >>> loader = Loader(range(8), batch_size=4, source=lambda id: [60 / (id - 5)], on_error="replace", max_damaged=0.1)
        >>> try:
        ...     list(loader)
        ... except TooManyDamaged as error:
        ...     print(error.damaged, "of", error.samples)
        1 of 8
    """

    def __init__(self, damaged: int, samples: int, most: float, last: str) -> None:
        super().__init__(damaged, samples, most, last)
        self.damaged = damaged
        self.samples = samples
        self.most = most
        self.last = last

    def __str__(self) -> str:
        return (
            f"{self.damaged:,} of {self.samples:,} samples are damaged, and max_damaged={self.most:g} of them are borne: mend "
            "them (`python -m shmgen scan` finds all that are), leave them out, or choose a larger max_damaged; the last was "
            f"{self.last}"
        )


class StartError(ShmgenError):
    """A worker can't begin: a source can't be opened there, or a function can't be imported; the text says which, and why.

    Examples:
        >>> class Database(Source):
        ...     shape, dtype = (3,), "float32"
        ...
        ...     def open(self):
        ...         raise ConnectionError("nobody answers")
        >>> Loader(range(8), batch_size=4, source=Database(), workers=1).batch(0)
        Traceback (most recent call last):
        shmgen.errors.StartError: source of field 'X' can't be opened: ConnectionError: nobody answers...
    """


class WorkerDied(ShmgenError):
    """A worker process ended that should not have.

    Attributes:
        worker: the worker's number, from 0.
        pid: its process id.
        exitcode: its exit code; the negative of the signal that killed it; None where it could not be killed.

    Examples:
        >>> print(WorkerDied(worker=0, pid=4321, exitcode=-11))
        worker 0 (pid 4321) was killed by SIGSEGV
    """

    def __init__(self, worker: int, pid: int, exitcode: int | None) -> None:
        super().__init__(worker, pid, exitcode)
        self.worker = worker
        self.pid = pid
        self.exitcode = exitcode

    def __str__(self) -> str:
        who = f"worker {self.worker} (pid {self.pid})"
        if self.exitcode is None:
            return f"{who} can't be killed"
        if self.exitcode >= 0:
            return f"{who} ended with exit code {self.exitcode}"
        hint = ""
        if self.exitcode == -signal.SIGKILL:
            hint = "; the kernel does that when memory runs out: try a smaller batch_size, fewer slots or fewer workers"
        return f"{who} was killed by {_signal_name(-self.exitcode)}{hint}"


class FormatError(Exception):
    """What was found is not what was expected; the text says both. Whoever knows the sample makes a `SampleError` of it."""


class ClosedError(ShmgenError):
    """A batch was asked for from a loader that has been closed.

    Examples:
        >>> loader = Loader(ids, labels, batch_size=4)
        >>> loader.close()
        >>> loader.batch(0)
        Traceback (most recent call last):
        shmgen.errors.ClosedError: ...
    """


def printable(text: str) -> str:
    """``text`` as any stream takes it: of a path that is no valid text, what is not is escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
