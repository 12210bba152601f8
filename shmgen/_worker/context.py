"""What a worker takes over from the main process, so that the user's functions find there what they find here.

Every worker, whenever it is started, gets all of it as it was when the loader was made. A worker that calls no function of the
user's takes over `sys.path` alone, and does not import this module.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from shmgen.errors import InputError, StartError

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

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
"""Environment of a worker, unless the user's says otherwise: workers that each used all processors would slow each other down.

Most libraries look at their own variable first, and then at OMP_NUM_THREADS: if the user sets that, none of these may be set.
"""

Place = tuple[str | None, list[str] | None]
"""Where a module is: its file, and the folders of its submodules; each None where there is none."""


def interpreter() -> list[str]:
    """The command that starts Python as it was started here, without `site`.

    Raises:
        InputError: this program can't start a Python interpreter.
    """
    if getattr(sys, "frozen", False) or not sys.executable:
        why = "it is frozen, so that would start the program itself" if sys.executable else "sys.executable does not name one"
        raise InputError(f"workers: this program can't start a Python interpreter: {why}; use workers=0")
    options = ["-X", f"utf8={sys.flags.utf8_mode}"]
    if sys.flags.optimize:
        options.append("-" + "O" * sys.flags.optimize)
    if sys.dont_write_bytecode:
        options.append("-B")
    return [sys.executable, *options, "-P", "-S"]


def environment(seed: int) -> tuple[dict[str, str], dict[str, str | None]]:
    """The variables that workers are started with, and those that a worker sets back after its start.

    Args:
        seed: of the hashes of texts in all workers, if the main process has chosen its own at random.
    """
    # Folders in these would come before the standard library; or the main process itself was told to ignore all of them.
    hidden = {name for name in os.environ if name.startswith("PYTHON" if sys.flags.ignore_environment else "PYTHONPATH")}
    variables = {} if "OMP_NUM_THREADS" in os.environ else ONE_PROCESSOR
    variables = {**variables, **{name: value for name, value in os.environ.items() if name not in hidden}}
    variables["PYTHONHASHSEED"] = _hash_seed() or str(seed % (1 << 32))
    return variables, {name: os.environ.get(name) for name in (*hidden, "PYTHONHASHSEED")}


def _hash_seed() -> str | None:
    """The seed that the main process was started with; None if it has chosen one at random, which can't be read."""
    if not sys.flags.ignore_environment:
        with suppress(OSError):
            # A later change of os.environ does not change the hashes of this process.
            for entry in Path("/proc/self/environ").read_bytes().split(b"\0"):
                name, _, value = entry.partition(b"=")
                if name == b"PYTHONHASHSEED" and value.isdigit():
                    return value.decode()
    return None


def search_path() -> list[str]:
    """`sys.path`, its relative entries made absolute, so that they mean the same for a worker that is started later."""
    try:
        folder = os.getcwd()
    except OSError:
        return list(sys.path)
    # Some entries are not paths, but names that a finder understands.
    return [
        os.path.normpath(os.path.join(folder, entry)) if isinstance(entry, str) and os.path.exists(entry or folder) else entry
        for entry in sys.path
    ]


class Context(NamedTuple):
    """What is taken over. All values are of builtin types, since others might have to be imported first.

    Attributes:
        folder: the working folder; None if it was gone.
        prefixes: `sys.prefix` and `sys.exec_prefix`.
        argv: `sys.argv`.
        environ: the variables to set, or to unset if None.
        places: of modules; see `places`.
        site: the folders whose ``.pth`` files `site` has run.
        sources: the lines of files that no worker can read, such as cells of a notebook.
        filters: of warnings; each category is given by its module and its name.
        levels: of loggers, by name; ``""`` is the root.
        disabled: the level up to which all loggers are silent.
    """

    folder: str | None
    prefixes: tuple[str, str]
    argv: list[str]
    environ: dict[str, str | None]
    places: dict[str, Place]
    site: list[str]
    sources: dict[str, list[str]]
    filters: list[tuple[Any, ...]]
    levels: dict[str, int]
    disabled: int

    @classmethod
    def capture(cls, environ: dict[str, str | None], places: dict[str, Place], sources: dict[str, list[str]]) -> Context:
        """The context of this process, the main one."""
        import logging
        import warnings

        folder = None
        with suppress(OSError):
            folder = os.getcwd()
        loggers = logging.root.manager.loggerDict.copy().items()
        return cls(
            folder=folder,
            prefixes=(sys.prefix, sys.exec_prefix),
            argv=list(sys.argv),
            environ=environ,
            places=places,
            site=_site(),
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
        """Take the context over, in a worker, before any module of the user's is imported.

        Args:
            send: sends a message with a log record or a warning to the main process.

        Raises:
            StartError: the working folder can't be entered any more.
        """
        import linecache
        import warnings

        from shmgen._worker.log_forwarding import forward

        for name, value in self.environ.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        sys.prefix, sys.exec_prefix = self.prefixes
        sys.argv[:] = self.argv
        try:
            # A process may be in a folder that it may not enter: it is not left if it is the right one.
            if self.folder is not None and os.getcwd() != self.folder:
                os.chdir(self.folder)
        except OSError as error:
            raise StartError(
                f"expected the working folder in which the loader was made, {self.folder}, found that a worker started since "
                f"then can't enter it ({error}): bring it back, and make another loader"
            ) from error
        sys.meta_path.insert(0, _PlacesFinder(self.places))
        sys.meta_path.append(_SiteFinder(self.site))
        for file, lines in self.sources.items():
            linecache.cache[file] = sum(map(len, lines)), None, lines, file
        # When the main process imported these modules, their warnings were shown there.
        warnings.simplefilter("ignore")
        forward(send, self.levels, self.disabled)

    def filter_warnings(self) -> None:
        """Filter warnings as in the main process; to be called when the modules that define them have been imported."""
        import warnings

        warnings.resetwarnings()
        for action, text, (module, name), where, line in self.filters:
            category = sys.modules.get(module)
            for part in name.split("."):
                category = getattr(category, part, None)
            if category is not None:
                warnings.filters.append((action, text, category, where, line))  # type: ignore[attr-defined]


def places() -> dict[str, Place]:
    """Where each module here comes from, without those that a worker is certain to find in the same place.

    A module may have been found by a finder that a worker does not have, or along another `sys.path`, or have been loaded from a
    given file.
    """
    library = os.path.dirname(os.__file__)
    certain = {library, f"{library}/lib-dynload", *_site()}
    found: dict[str, Place] = {}
    for name, module in sys.modules.copy().items():
        spec = _spec(module)
        if spec is None or spec.name != name:  # this name is an alias
            continue
        folders = spec.submodule_search_locations and list(spec.submodule_search_locations)
        if spec.has_location and spec.origin is not None:
            standard = spec.origin.rpartition("/" + name.replace(".", "/"))[0] in certain
            if not standard and spec.origin.endswith(_suffixes()) and os.path.isfile(spec.origin):
                found[name] = os.path.abspath(spec.origin), folders
        elif folders:
            found[name] = None, folders
    return found


def importable(name: str, placed: dict[str, Place]) -> bool:
    """Whether a worker that knows these places can import module ``name`` of `sys.modules`, and gets the same module."""
    from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

    package = name.rpartition(".")[0]
    if package and not importable(package, placed):
        return False
    if name in placed:
        return True
    spec = _spec(sys.modules.get(name))
    if spec is None or spec.name != name:
        return False
    path = sys.modules[package].__path__ if package else None
    for finder in (BuiltinImporter, FrozenImporter, PathFinder):
        if found := finder.find_spec(name, path):
            return found.origin == spec.origin
    return False


def _spec(module: object) -> ModuleSpec | None:
    # Some modules are loaded, or raise an error, when an attribute is looked up.
    return ModuleType.__getattribute__(module, "__dict__").get("__spec__") if issubclass(type(module), ModuleType) else None


def _suffixes() -> tuple[str, ...]:
    from importlib.machinery import all_suffixes

    return tuple(all_suffixes())


def _site() -> list[str]:
    if sys.flags.no_site:
        return []
    import site

    folders = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    return [folder for folder in folders if folder in sys.path]


class _PlacesFinder:
    """First of a worker's finders: finds modules where the main process found them."""

    def __init__(self, places: dict[str, Place]) -> None:
        self._places = places

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in self._places:
            return None
        from importlib.machinery import ModuleSpec
        from importlib.util import spec_from_file_location

        file, folders = self._places[name]
        if file is not None:
            return spec_from_file_location(name, file, submodule_search_locations=folders)
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = folders
        return spec


class _SiteFinder:
    """Last of a worker's finders: when a module is not found, it does what `site` would have done, and tries again.

    Packages that are installed in place have a finder of their own, which a line of a ``.pth`` file installs.
    """

    def __init__(self, folders: list[str]) -> None:
        self._folders = folders

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        folders, self._folders = self._folders, []
        before = list(sys.meta_path)
        for file in (file for folder in folders for file in sorted(Path(folder).glob("[!.]*.pth"))):
            with suppress(Exception):  # `site` ignores errors as well, and has printed them
                for line in file.read_text().splitlines():
                    if line.startswith(("import ", "import\t")):
                        exec(line, {})  # noqa: S102 # the main process has run it, too
        for finder in sys.meta_path:
            if finder not in before and (spec := finder.find_spec(name, path, target)):
                return spec
        return None
