"""Pickles a filler, and the user's functions in it, for workers: by value what no worker can import (cloudpickle)."""

from __future__ import annotations

import functools
import io
import marshal
import mmap
import os
import pickle
import sys
import warnings
from collections import ChainMap
from collections.abc import Callable
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

from shmgen._sources.base import error_text
from shmgen.errors import InputError, StartError

if TYPE_CHECKING:
    from shmgen._worker.ticket_filler import TicketFiller

LARGE = 10_000_000
"""Bytes. A function that is sent with more gets a warning."""


def dumps(filler: TicketFiller) -> tuple[bytes, dict[str, list[str]]]:
    """``filler``, pickled, and the lines of those files of its functions that workers can't read.

    Raises:
        InputError: something in it can't be sent; the error says what.
    """
    sources: dict[str, list[str]] = {}
    try:
        data = _dumps(filler, sources)
    except Exception as error:
        for name, part in filler.named():
            try:
                _dumps(part, sources)
            except Exception as culprit:
                raise InputError(
                    f"the {name} can't be sent to a worker process: {_called(part)}: {culprit}; "
                    "make what it holds in the worker, as a Source does in open(), or use workers=0"
                ) from error
        raise
    if len(data) > LARGE:
        size, name, part = max(((len(_dumps(part, {})), name, part) for name, part in filler.named()), key=lambda found: found[0])
        _warn(
            f"each worker gets {len(data) / 1e6:,.1f} MB of data along with your functions, {size / 1e6:,.1f} MB of it with the "
            f"{name}, {_called(part)}: keep what is large in a file that all share, such as np.load(file, mmap_mode='r'), or "
            "make it in the worker, as a Source does in open()"
        )
    return data, sources


def _warn(text: str) -> None:
    """Warn, at the line of the user's that calls shmgen."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("shmgen."):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)


def _called(part: Any) -> str:
    """The name of a source or function in its module."""
    thing = part if hasattr(part, "__qualname__") else type(part)
    return f"{thing.__qualname__!r} of module {thing.__module__!r}"


def loads(data: bytes) -> Any:
    """Unpickle, in a worker, what `dumps` has pickled.

    Raises:
        StartError: something can't be imported here; the error says what.
    """
    return _Unpickler(io.BytesIO(data)).load()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except Exception as error:
            raise _missing(f"{name!r} of module {module!r}", error) from error


def _module(name: str) -> ModuleType:
    try:
        __import__(name)
        return sys.modules[name]
    except Exception as error:
        raise _missing(f"module {name!r}", error) from error


def _missing(what: str, error: Exception) -> StartError:
    return StartError(
        f"a worker can't import {what}, which functions of yours need: make it importable in a process that does not run your "
        f"script, define what you need of it in the script itself, or use workers=0; {error_text(error)}"
    )


def _dumps(thing: object, sources: dict[str, list[str]]) -> bytes:
    # Imported late: a loader without functions need not wait for it.
    import linecache
    import random

    import cloudpickle
    import numpy as np

    from shmgen._worker.context import importable

    by_value: dict[str, bool] = {}

    def is_sent_by_value(name: object) -> bool:
        """Whether no worker can import module ``name``, so that its contents must be sent."""
        if not isinstance(name, str) or name not in sys.modules or name == "__main__":  # cloudpickle sends that by value anyway
            return False
        if name not in by_value:
            by_value[name] = not importable(name)
            if by_value[name] and name not in cloudpickle.list_registry_pickle_by_value():
                cloudpickle.register_pickle_by_value(sys.modules[name])
                registered.append(sys.modules[name])
        return by_value[name]

    class Pickler(cloudpickle.CloudPickler):  # type: ignore[misc]
        dispatch_table: ClassVar = ChainMap(_REDUCERS, cloudpickle.CloudPickler.dispatch_table)

        def reducer_override(self, obj: Any) -> Any:
            # `from random import random` names a method of the global generator. Pickled with it, every worker would have a copy
            # of the main process's generator, which is not seeded anew for each sample.
            for module, generator in ((random, random._inst), (np.random, np.random.mtrand._rand)):
                if getattr(obj, "__self__", None) is generator:
                    return getattr, (module, obj.__name__)
            kind = type(obj)
            if kind is np.memmap and isinstance(obj.base, mmap.mmap) and obj.mode != "c" and os.path.exists(obj.filename or ""):
                # A whole file, as of np.load(file, mmap_mode="r"): pickled, it would be read into memory.
                order = "C" if obj.flags.c_contiguous else "F"
                return np.memmap, (obj.filename, obj.dtype, "r" if obj.mode == "r" else "r+", obj.offset, obj.shape, order)
            if issubclass(kind, ModuleType):
                name = ModuleType.__getattribute__(obj, "__name__")
                if sys.modules.get(name) is obj and not is_sent_by_value(name):
                    return _module, (name,)
            elif kind is functools._lru_cache_wrapper:
                if is_sent_by_value(obj.__module__) or not _is_found(obj):
                    return _cached, (obj.__wrapped__, obj.cache_parameters()), vars(obj)
            elif kind is FunctionType or issubclass(kind, type):
                is_sent_by_value(obj.__module__)
                if kind is FunctionType:
                    file = obj.__code__.co_filename
                    if not (os.path.isabs(file) and os.path.exists(file)):
                        sources[file] = linecache.getlines(file, obj.__globals__)
            return super().reducer_override(obj)

    registered: list[ModuleType] = []
    buffer = io.BytesIO()
    try:
        Pickler(buffer).dump(thing)
    finally:
        for module in registered:
            cloudpickle.unregister_pickle_by_value(module)
    return buffer.getvalue()


def _is_found(thing: Any) -> bool:
    """Whether its module has ``thing`` under its name, in a worker too."""
    found: Any = sys.modules.get(thing.__module__)
    for part in thing.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is thing and thing.__module__ != "__main__"


def _reduced_code(code: CodeType) -> Any:
    # cloudpickle changes the name of the file.
    return marshal.loads, (marshal.dumps(code),)


def _cached(function: Any, parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _cached_property(function: Any, name: str | None) -> Any:
    made = functools.cached_property(function)
    made.attrname = name
    return made


_REDUCERS: dict[type, Callable[[Any], Any]] = {
    CodeType: _reduced_code,
    # It holds a lock in Python 3.11.
    functools.cached_property: lambda made: (_cached_property, (made.func, made.attrname)),
    # functools.singledispatch holds one.
    WeakKeyDictionary: lambda found: (WeakKeyDictionary, (dict(found),)),
}
"""How things are pickled that cloudpickle does not pickle, or not well enough."""
