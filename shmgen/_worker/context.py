"""What a worker takes over from the main process, so that the user's functions find the same in both; and what it sends back: log
records and warnings, which the main process gives to its handlers.

Every worker gets it as it was when the loader was made. One that calls no function of the user's takes over `sys.path` alone.
"""

from __future__ import annotations

import linecache
import logging
import os
import pickle
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from shmgen._sources.base import error_text

FRAMEWORKS = ("tensorflow", "torch", "jax")

ONCE = "shmgen_once"
"""The attribute of a log record that names what every worker logs, and users should be told once."""

log = logging.getLogger("shmgen")


class Context(NamedTuple):
    """What a worker takes over, in builtin types, since others might have to be imported first."""

    folder: str | None  # the working folder; None if it was gone
    argv: list[str]
    sources: dict[str, list[str]]  # the lines of files that no worker can read, such as cells of a notebook
    filters: list[tuple[Any, ...]]  # of warnings, each category as its module and its name
    levels: dict[str, int]  # of loggers, by name; "" is the root
    disabled: int  # the level up to which all loggers are silent

    @classmethod
    def capture(cls, sources: dict[str, list[str]]) -> Context:
        """The context of this process, the main one."""
        loggers = logging.root.manager.loggerDict.copy().items()
        return cls(
            folder=_working_folder(),
            argv=list(sys.argv),
            sources=sources,
            filters=[
                (action, text, (category.__module__, category.__qualname__), module, line)
                for action, text, category, module, line in warnings.filters
                if isinstance(category, type)
            ],
            levels={
                "": logging.root.level,
                **{name: logger.level for name, logger in loggers if isinstance(logger, logging.Logger) and logger.level},
            },
            disabled=logging.root.manager.disable,
        )

    def enter(self, send: Callable[[bytes], object]) -> None:
        """Take the context over, in a worker, before any module of the user's is imported; ``send`` is as in `forward`."""
        sys.argv[:] = self.argv
        for file, lines in self.sources.items():
            linecache.cache[file] = sum(map(len, lines)), None, lines, file
        # The main process has shown the warnings that importing these modules gives.
        warnings.simplefilter("ignore")
        forward(send, self.levels, self.disabled)
        here = _working_folder()
        # A process may be in a folder that it may not enter: if it is the right one, stay there.
        if self.folder is not None and here != self.folder:
            try:
                os.chdir(self.folder)
                sys.path_importer_cache.clear()  # relative entries of sys.path were looked up in another folder
            except FileNotFoundError:
                if here is not None:
                    text = "the working folder %s is gone: in workers that start from now on, relative paths are those in %s"
                    log.warning(text, self.folder, here, extra={ONCE: "folder"})

    def filter_warnings(self) -> None:
        """Filter warnings as in the main process, once the modules that define their categories have been imported."""
        warnings.resetwarnings()
        for action, text, (module, name), where, line in self.filters:
            category = sys.modules.get(module)
            for part in name.split("."):
                category = getattr(category, part, None)
            if category is not None:
                warnings.filters.append((action, text, category, where, line))  # type: ignore[attr-defined]


def _working_folder() -> str | None:
    with suppress(OSError):  # it was deleted
        return os.getcwd()
    return None


@contextmanager
def warning_of_frameworks() -> Iterator[None]:
    """Warn of large frameworks that are imported in this context, since the user's functions need them."""
    began, resident = time.monotonic(), _resident()
    yield
    if found := [name for name in FRAMEWORKS if name in sys.modules]:
        log.warning(
            "functions that workers call import %s: %.1f s and %.0f MB in each worker; what computes with it there is often many "
            "times slower than with NumPy, Pillow or OpenCV",
            " and ".join(found),
            time.monotonic() - began,
            (_resident() - resident) / 1e6,
            extra={ONCE: "frameworks"},
        )


def _resident() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


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
        # For what should be shown once, the worker that sent it first. Every worker sends it, so that of the others is dropped.
        self._first: dict[object, int] = {}

    def handle(self, worker: int, message: bytes) -> None:
        """Handle what the worker with this process id has forwarded."""
        try:
            thing = pickle.loads(message)
            is_record = isinstance(thing, dict)
            once = thing.get(ONCE) if is_record else repr(thing)
            if once is not None and self._first.setdefault(once, worker) != worker:
                return
            if is_record:
                record = logging.makeLogRecord(thing)
                logger = logging.getLogger(record.name)
                if logger.isEnabledFor(record.levelno):
                    logger.handle(record)
            else:
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
