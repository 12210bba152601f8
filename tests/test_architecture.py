"""Which part of the package may import which, so that each can be read and tested without the parts that use it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "shmgen"

BASE = {"errors", "_checks", "_urls"}

BELOW_OPTIONS = {*BASE, "_ranks", "_plan", "_memory", "_samples", "_sources", "_storage", "_worker"}

MAY_IMPORT = {
    "_urls": set(),
    "errors": {"_urls"},
    "_checks": {"errors"},
    "_signatures": set(),
    "_plan": BASE,
    "_ranks": {"errors", "_plan"},
    "_memory": BASE,
    "_storage": BASE,
    "_samples": {*BASE, "_memory", "_storage"},
    "_sources": {*BASE, "_memory", "_samples", "_storage", "_worker"},
    "_worker": {*BASE, "_memory", "_samples", "_sources"},
    "options": BELOW_OPTIONS,
    "_engine": {*BELOW_OPTIONS, "options"} - {"_storage"},
    "loader": {*BASE, "_signatures", "_plan", "_engine", "options"},
    "torch": {*BASE, "_engine", "loader"},
    "jax": {*BASE, "_engine", "loader"},
    "keras": {*BASE, "_signatures", "_ranks", "_plan", "_engine", "options", "loader", "jax", "torch"},
    "_tools": {*BELOW_OPTIONS, "_signatures", "_engine", "options", "loader", "__version__"} - {"_ranks"},
    "__main__": {"_tools"},
}
"""For each part (a module or folder of the package), the parts that it may import besides itself."""

FRAMEWORKS = {"keras": {"keras", "tensorflow", "torch"}, "torch": {"torch"}, "jax": {"jax"}}
"""The parts that may import a framework: only its front end may."""


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports anywhere: also inside functions, and for type checkers only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from (f"{node.module}.{name.name}" for name in node.names)


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def test_imports_go_one_way() -> None:
    """A file imports only parts that `MAY_IMPORT` allows, and only the frameworks that its part is for."""
    for part, name in [(part_of(path), name) for path in FILES for name in imports(path)]:
        top, _, rest = name.partition(".")
        if top == "shmgen":
            assert rest.partition(".")[0] in {*MAY_IMPORT[part], part}, f"{part} imports {name}"
        elif top in ("keras", "tensorflow", "jax", "torch"):
            assert top in FRAMEWORKS.get(part, ()), f"{part} imports {name}"


def test_every_module_is_listed_and_no_folder_is_nested() -> None:
    """All files and folders of the package are in `MAY_IMPORT`, and folders are not nested."""
    assert {part_of(path) for path in FILES} == MAY_IMPORT.keys()
    assert all(len(path.relative_to(PACKAGE).parts) <= 2 for path in FILES)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def test_no_import_cycles() -> None:
    """No file imports itself through others, not even inside functions or for type checkers only."""
    modules = {module_of(path) for path in FILES}
    imported: dict[str, set[str]] = {module_of(path): set() for path in FILES}
    for path in FILES:
        for name in imports(path):
            inner = name.removeprefix("shmgen.")
            target = inner if inner in modules else inner.rpartition(".")[0]
            if name.startswith("shmgen.") and target in modules and target != module_of(path):
                imported[module_of(path)].add(target)
    TopologicalSorter(imported).prepare()  # raises CycleError with the files of the circle
