"""What a worker takes over from the main process, so that the user's functions find the same in both.

Every worker, whenever it is started, gets it as it was when the loader was made. A worker that calls no function of the user's
takes over `sys.path` alone, and does not import this module.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from shmgen.errors import InputError, StartError

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

FRAMEWORKS = ("tensorflow", "torch", "jax")

ONE_PROCESSOR = dict.fromkeys(
    [
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "BLIS_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "OPENCV_FOR_THREADS_NUM",
    ],
    "1",
)
"""Variables of a worker's environment: workers that each used all processors would slow each other down.

Most libraries look at their own variable first and then at OMP_NUM_THREADS. So where the user sets that, none of these are set.
"""


def interpreter(*, site: bool) -> list[str]:
    """The command that starts Python as it was started here.

    With ``site``, it imports `site`, which virtual environments and packages that are installed in place need. Without, a worker
    starts faster and takes less memory.

    Raises:
        InputError: this program can't start a Python interpreter.
    """
    spawn = sys.modules.get("multiprocessing.spawn")  # a program that embeds Python calls multiprocessing.set_executable
    named = os.fsdecode(spawn.get_executable() or "") if spawn is not None else sys.executable
    if not named or (getattr(sys, "frozen", False) and named == sys.executable):
        why = "it is frozen, so that would start the program itself" if named else "sys.executable does not name one"
        raise InputError(
            f"workers: this program can't start a Python interpreter: {why}; name one by multiprocessing.set_executable, or use "
            "workers=0"
        )
    flags = {"-B": sys.dont_write_bytecode, "-E": sys.flags.ignore_environment, "-s": sys.flags.no_user_site}
    options = ["-X", f"utf8={sys.flags.utf8_mode}", *(flag for flag, is_set in flags.items() if is_set)]
    if sys.flags.optimize:
        options.append("-" + "O" * sys.flags.optimize)
    if not site or sys.flags.no_site:
        options.append("-S")
    return [named, *options, "-P"]


def environment() -> dict[str, str]:
    return {**({} if "OMP_NUM_THREADS" in os.environ else ONE_PROCESSOR), **os.environ}


def search_path() -> list[str]:
    """`sys.path` with absolute entries, which mean the same for a worker that is started later."""
    try:
        folder = os.getcwd()
    except OSError:
        return list(sys.path)
    # Some entries are no paths, but names that a finder understands.
    return [
        os.path.normpath(os.path.join(folder, entry)) if isinstance(entry, str) and os.path.exists(entry or folder) else entry
        for entry in sys.path
    ]


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
        import logging
        import warnings

        folder = None
        with suppress(OSError):
            folder = os.getcwd()
        loggers = logging.root.manager.loggerDict.copy().items()
        return cls(
            folder=folder,
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
        """Take the context over, in a worker, before any module of the user's is imported; ``send`` is as in `forward`.

        Raises:
            StartError: the working folder can't be entered any more.
        """
        import linecache
        import warnings

        from shmgen._worker.log_forwarding import forward

        sys.argv[:] = self.argv
        try:
            # A process may be in a folder that it may not enter: if it is the right one, stay there.
            if self.folder is not None and os.getcwd() != self.folder:
                os.chdir(self.folder)
        except OSError as error:
            raise StartError(
                f"expected the working folder in which the loader was made, {self.folder}, found that a worker started since "
                f"then can't enter it ({error}): bring it back, and make another loader"
            ) from error
        for file, lines in self.sources.items():
            linecache.cache[file] = sum(map(len, lines)), None, lines, file
        # The main process has shown the warnings that importing these modules gives.
        warnings.simplefilter("ignore")
        forward(send, self.levels, self.disabled)

    def filter_warnings(self) -> None:
        """Filter warnings as in the main process, once the modules that define their categories have been imported."""
        import warnings

        warnings.resetwarnings()
        for action, text, (module, name), where, line in self.filters:
            category = sys.modules.get(module)
            for part in name.split("."):
                category = getattr(category, part, None)
            if category is not None:
                warnings.filters.append((action, text, category, where, line))  # type: ignore[attr-defined]


def importable(name: str) -> bool:
    """Whether a worker that imports ``name`` gets the module that is in `sys.modules` here."""
    package = name.rpartition(".")[0]
    if package and not importable(package):
        return False
    spec = _spec(sys.modules.get(name))
    if spec is None or spec.name != name:
        return False
    path = sys.modules[package].__path__ if package else search_path()
    for finder in sys.meta_path:
        if found := finder.find_spec(name, path):
            return _file(found) == _file(spec)
    return False


def _file(spec: ModuleSpec) -> str | None:
    return os.path.abspath(spec.origin) if spec.has_location and spec.origin else spec.origin


def _spec(module: object) -> ModuleSpec | None:
    # Looking up an attribute of some modules loads them, or raises an error.
    return ModuleType.__getattribute__(module, "__dict__").get("__spec__") if issubclass(type(module), ModuleType) else None


class Frameworks:
    """Warns of large frameworks that the user's functions import after this is made."""

    def __init__(self) -> None:
        self._begin, self._resident = time.monotonic(), _resident()

    def warn(self) -> None:
        found = [name for name in FRAMEWORKS if name in sys.modules]
        if found:
            import logging

            logging.getLogger("shmgen").warning(
                "functions that workers call import %s: %.1f s and %.0f MB in each worker; what computes with it there is often "
                "many times slower than with NumPy, Pillow or OpenCV",
                " and ".join(found),
                time.monotonic() - self._begin,
                (_resident() - self._resident) / 1e6,
            )


def _resident() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
