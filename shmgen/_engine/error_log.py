"""Keeps the errors that requests end in, without what their tracebacks hold, and logs those that a framework would hide."""

from __future__ import annotations

import logging
from copy import copy
from typing import TypeVar

from shmgen._plan.sampler import BatchId
from shmgen.errors import ShmgenError

ErrorT = TypeVar("ErrorT", bound=Exception)

log = logging.getLogger("shmgen")


class ErrorLog:
    """The errors of a loader's requests: `last` is without its traceback. With ``logs``, they are logged, too."""

    def __init__(self, *, logs: bool) -> None:
        self.last: Exception | None = None
        self._logs = logs
        self._logged: set[tuple[BatchId | None, str]] = set()

    def record(self, batch: BatchId | None, error: Exception) -> None:
        """A request ended in ``error``; the same error is logged once for each batch, or once if ``batch`` is None."""
        self.last = without_traceback(error)
        entry = batch, _text(error)
        if self._logs and entry not in self._logged:
            self._logged.add(entry)
            log.error("%s", entry[1])


def without_traceback(error: ErrorT) -> ErrorT | ShmgenError:
    """A copy of ``error`` without its traceback and cause, whose frames would keep the ring alive."""
    try:
        return copy(error)
    except Exception:  # the constructor of a user's class may not accept `args`
        return ShmgenError(_text(error))


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, ShmgenError | OSError) else f"{type(error).__name__}: {error}"
