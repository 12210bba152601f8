"""How an assembler, with the user's functions in it, is sent to a worker: by value if no worker can import it (cloudpickle)."""

from __future__ import annotations

import functools
import io
import marshal
import os
import pickle
import sys
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from operator import itemgetter
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

from shmgen._sources.base import error_text
from shmgen._sources.function import Function
from shmgen.errors import InputError, StartError

if TYPE_CHECKING:
    import numpy as np

    from shmgen._worker.assembler import BatchAssembler
    from shmgen._worker.context import Place

LARGE = 10_000_000
"""Bytes. A function that is sent with more gets a warning."""


def dumps(assembler: BatchAssembler, places: dict[str, Place]) -> tuple[bytes, dict[str, list[str]]]:
    """``assembler``, pickled, and the lines of the files of its functions that workers can't read.

    Args:
        assembler: to be sent.
        places: where workers find modules that are not found along `sys.path`.

    Raises:
        InputError: something in it can't be sent; the error says what.
    """
    sources: dict[str, list[str]] = {}
    try:
        data = _dumps(assembler, places, sources)
    except Exception as error:
        for name, part in assembler.named():
            try:
                _dumps(part, places, sources)
            except Exception as culprit:
                raise InputError(
                    f"the {name} can't be sent to a worker process: {_called(part)}: {culprit}; "
                    "make what it holds in the worker, as a Source does in open(), or use workers=0"
                ) from error
        raise
    if len(data) > LARGE:
        _warn_of_the_largest(assembler, places)
    return data, sources


def _called(part: Any) -> str:
    """The name of a source or function in its module."""
    thing = part._function if isinstance(part, Function) else part
    thing = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{thing.__qualname__!r} of module {thing.__module__!r}"


def loads(data: bytes) -> Any:
    """What `dumps` has pickled; to be called in a worker.

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


def _dumps(thing: object, places: dict[str, Place], sources: dict[str, list[str]]) -> bytes:
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
            by_value[name] = not importable(name, places)
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
            if isinstance(obj, np.ndarray):
                return _reduced_array(obj)
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


def _reduced_array(array: np.ndarray) -> Any:
    """How a worker makes ``array``, if its data are those of a mapped file; else NotImplemented."""
    import numpy as np

    base: Any = array
    root = None
    while isinstance(base, np.ndarray):
        root = base if isinstance(base, np.memmap) else root
        base = base.base
    # An array that is copied on write may differ from the file.
    if root is None or root.mode == "c" or not array.size or not _is_mapped(root):
        return NotImplemented
    mode = "r" if root.mode == "r" else "r+"
    # The lowest and the highest of its bytes: strides may be negative.
    steps = [(size - 1) * stride for size, stride in zip(array.shape, array.strides, strict=True)]
    low = sum(step for step in steps if step < 0)
    size = sum(step for step in steps if step > 0) - low + array.itemsize
    start = root.offset + array.ctypes.data + low - root.ctypes.data
    shown = array.dtype, array.shape, array.strides
    return _mapped, (type(array), root.filename, mode, start, size, -low, shown, array.flags.writeable)


def _is_mapped(root: np.memmap) -> bool:
    """Whether the mapped file is still the one that has its name.

    psutil takes the mark of a deleted file away from its name, and so can't tell it from another of the same name.
    """
    try:
        address = root.ctypes.data
        with open("/proc/self/maps") as maps:
            for line in maps:
                span, _, _, _, _, *path = line.rstrip("\n").split(maxsplit=5)
                low, _, high = span.partition("-")
                if int(low, 16) <= address < int(high, 16):
                    return bool(path) and root.filename is not None and os.path.samefile(path[0], root.filename)
    except OSError:
        pass
    return False


def _mapped(kind: Any, file: str, mode: Any, start: int, size: int, first: int, shown: Any, writeable: bool) -> np.ndarray:
    import numpy as np
    from numpy.lib.stride_tricks import as_strided

    dtype, shape, strides = shown
    bytes = np.memmap(file, np.uint8, mode, start, (size,))
    array = as_strided(bytes[first : first + dtype.itemsize].view(dtype), shape, strides, subok=True, writeable=writeable)
    return array if kind is np.memmap else array.view(np.ndarray)


def _warn_of_the_largest(assembler: BatchAssembler, places: dict[str, Place]) -> None:
    """Warn of the largest thing that is sent, if it is larger than LARGE."""
    import warnings

    def size(thing: object) -> int:
        try:
            return len(_dumps(thing, places, {}))
        except Exception:  # it can only be sent as part of something else
            return 0

    role = what = ""
    parts: Iterable[tuple[str, Any]] = assembler.named()
    seen: set[int] = set()
    # From a function to what it holds, and on to what that holds, as long as that is large. A function may hold itself.
    while found := [(bytes, name, part) for name, part in parts if id(part) not in seen and (bytes := size(part)) > LARGE]:
        bytes, name, thing = max(found, key=itemgetter(0))
        what = f"{bytes / 1e6:,.1f} MB" if not role else f"{name!r} ({type(thing).__name__}, {bytes / 1e6:,.1f} MB)"
        role = role or name
        seen.add(id(thing))
        parts = _parts(thing)
    if not role:
        return
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("shmgen."):
        level, frame = level + 1, frame.f_back
    warnings.warn(
        f"the {role} holds {what}, of which each worker gets a copy: keep it in a file that all of them share, as "
        "np.load(file, mmap_mode='r') does, or make it in the worker, as a Source does in open()",
        stacklevel=level,
    )


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _parts(thing: Any) -> Iterator[tuple[str, Any]]:
    """What is sent with ``thing``, and the names that the user gave it."""
    if isinstance(thing, FunctionType):
        code = thing.__code__
        for name, cell in zip(code.co_freevars, thing.__closure__ or (), strict=True):
            with suppress(ValueError):  # the variable has no value yet
                yield name, cell.cell_contents
        yield from ((name, thing.__globals__[name]) for name in _names(code) if name in thing.__globals__)
        defaults = thing.__defaults__ or ()
        yield from zip(code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount], defaults, strict=True)
        yield from (thing.__kwdefaults__ or {}).items()
    elif isinstance(thing, MethodType):
        yield from _parts(thing.__self__)
        yield from _parts(thing.__func__)
    elif isinstance(thing, functools.partial):
        yield thing.func.__name__ if hasattr(thing.func, "__name__") else "func", thing.func
        yield from ((f"argument {number} of a partial", value) for number, value in enumerate(thing.args, 1))
        yield from thing.keywords.items()
    elif hasattr(thing, "__wrapped__"):
        yield thing.__name__, thing.__wrapped__
    elif not isinstance(thing, type | ModuleType) and type(thing).__module__ != "builtins":
        yield from getattr(thing, "__dict__", {}).items()
