"""Files by their names: which a source reads, and which lie below a folder."""

from __future__ import annotations

import os
from collections.abc import Collection
from itertools import islice
from pathlib import PurePath
from typing import Any, NamedTuple


class FileKind(NamedTuple):
    """The files that a source reads: the suffixes that their names end in, in lower case, and what they are called."""

    suffixes: tuple[str, ...]
    plural: str

    def has(self, name: str) -> bool:
        return name.lower().endswith(self.suffixes)

    def stem(self, name: str) -> str:
        return name[: name.rindex(".")] if self.has(name) else name


NPY = FileKind((".npy",), ".npy files")

IMAGES = FileKind((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".tga", ".ico",
), "images")  # fmt: skip


def files_below(folder: str) -> list[str]:
    """The paths, from ``folder`` on, of all files below it, sorted; an OSError if any folder can't be listed."""

    def refuse(error: OSError) -> None:
        raise error

    # Names that begin with a dot are left out: macOS writes ``._x.npy`` beside ``x.npy``.
    found = []
    for path, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".") and not _leads_back(os.path.join(path, name))]
        prefix = os.path.join(path[len(folder) :].lstrip("/"), "")
        found += [prefix + name for name in files if not name.startswith(".")]
    return sorted(found)


def _leads_back(path: str) -> bool:
    return os.path.islink(path) and any(os.path.samefile(path, above) for above in PurePath(path).parents)


def some_of(names: Collection[Any], most: int = 3) -> str:
    """The first of these names, for an error, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return (", ".join(map(repr, islice(names, most))) or "nothing") + more
