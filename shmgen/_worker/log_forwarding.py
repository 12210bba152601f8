"""Log records and warnings in workers: they are sent to the main process, which gives them to its handlers."""

from __future__ import annotations

import logging
import pickle
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from shmgen._sources.base import error_text

log = logging.getLogger("shmgen")


def forward(send: Callable[[bytes], object], levels: dict[str, int], disabled: int) -> None:
    """Send the log records and warnings of this process, a worker, to the main process.

    What the main process would not handle is not sent: ``levels`` are those of its loggers, by name, and up to the level
    ``disabled`` all are silent.
    """
    logging.root.addHandler(_ForwardingHandler(send))
    logging.disable(disabled)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
    ) -> None:
        classes = [(kind.__module__, kind.__qualname__) for kind in category.__mro__]
        send(pickle.dumps((str(message), classes, filename, lineno)))

    warnings.showwarning = show


class _ForwardingHandler(logging.Handler):
    def __init__(self, send: Callable[[bytes], object]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.format(record)  # puts the text of an exception into the record
            fields = {**vars(record), "msg": record.getMessage(), "args": None, "exc_info": None}
            self._send(pickle.dumps({name: _sendable(value) for name, value in fields.items()}))
        except Exception:
            self.handleError(record)


def _sendable(value: Any) -> Any:
    try:
        pickle.dumps(value)
    except Exception:
        return repr(value)
    return value


class ForwardedLogs:
    """Gives what workers forward to the handlers of the main process."""

    def __init__(self) -> None:
        # For each warning, the worker that sent it first. Every worker sends a warning that should be shown once, so those of the
        # other workers are dropped.
        self._first: dict[object, int] = {}

    def handle(self, worker: int, message: bytes) -> None:
        """Handle what the worker with this process id has forwarded."""
        try:
            thing = pickle.loads(message)
            if isinstance(thing, dict):
                record = logging.makeLogRecord(thing)
                logger = logging.getLogger(record.name)
                if logger.isEnabledFor(record.levelno):
                    logger.handle(record)
            elif self._first.setdefault(repr(thing), worker) == worker:
                text, classes, filename, lineno = thing
                warning = _warning(text, classes)
                warnings.showwarning(warning, type(warning), filename, lineno)
        except Exception as error:  # raised by a handler or filter, or for a class that only the worker knows
            log.error("a log record or warning of worker process %d can't be handled: %s", worker, error_text(error))


def _warning(text: str, classes: list[tuple[str, str]]) -> Warning:
    """A warning of the first of these classes that is known here."""
    for module, name in classes:
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type) and issubclass(kind, Warning):
            with suppress(Exception):  # it may need more arguments than a text
                return kind(text)
    return Warning(text)
