"""Pickles a filler, and the user's functions in it, for workers: those of the script by value (cloudpickle)."""

from __future__ import annotations

import functools
import io
import marshal
import mmap
import os
import sys
import warnings
from collections import ChainMap
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, ClassVar

from shmgen.errors import InputError

if TYPE_CHECKING:
    from shmgen._worker.ticket_filler import TicketFiller

LARGE = 10_000_000
"""Bytes. A function that is sent with more gets a warning."""


def dumps(filler: TicketFiller) -> tuple[bytes, dict[str, list[str]]]:
    """``filler``, pickled, and the lines of those files of its functions that workers can't read."""
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
        warnings.warn(
            f"each worker gets {len(data) / 1e6:,.1f} MB of data along with your functions, {size / 1e6:,.1f} MB of it with the "
            f"{name}, {_called(part)}: keep what is large in a file that all share, such as np.load(file, mmap_mode='r'), or "
            "make it in the worker, as a Source does in open()",
            stacklevel=7,  # the line that makes the loader
        )
    return data, sources


def _called(part: Any) -> str:
    """The name of a source or function in its module."""
    thing = part if hasattr(part, "__qualname__") else type(part)
    return f"{thing.__qualname__!r} of module {thing.__module__!r}"


def _dumps(thing: object, sources: dict[str, list[str]]) -> bytes:
    # Imported late: a loader without functions need not wait for it.
    import linecache
    import random

    import cloudpickle
    import numpy as np

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
            if kind is functools._lru_cache_wrapper and not _is_found(obj):
                return _cached, (obj.__wrapped__, obj.cache_parameters()), vars(obj)
            if kind is FunctionType:
                file = obj.__code__.co_filename
                if not (os.path.isabs(file) and os.path.exists(file)):
                    sources[file] = linecache.getlines(file, obj.__globals__)
            return super().reducer_override(obj)

    buffer = io.BytesIO()
    Pickler(buffer).dump(thing)
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
}
"""How things are pickled that cloudpickle does not pickle, or not well enough."""
