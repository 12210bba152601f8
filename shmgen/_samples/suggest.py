"""What was probably meant by an id that has no file, or no value. Looked for only once one is missing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

LOOKED_AT = 10_000
"""Entries of a folder that are looked at, at most: it may have millions."""

SHOWN = 3

LONGEST_NUMBER = 12
"""Digits, at most, of a number that is tried with leading zeros."""


class FileKind(NamedTuple):
    """The files that a source reads.

    Attributes:
        suffixes: that their names end in, in lower case.
        plural: what they are called.
    """

    suffixes: tuple[str, ...]
    plural: str

    def has(self, name: str) -> bool:
        """Whether a file of this name is one."""
        return name.lower().endswith(self.suffixes)

    def stem(self, name: str) -> str:
        """A file's name without the suffix."""
        return name[: name.rindex(".")] if self.has(name) else name


NPY = FileKind((".npy",), ".npy files")

NPZ = FileKind((".npz",), ".npz files")

IMAGES = FileKind((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".ppm", ".pgm", ".jp2"), "images")


def variants(id: object) -> Iterator[tuple[Any, str]]:
    """What an id may have been meant as: of another type, without blanks, suffix or folder, with a suffix, or with leading zeros.

    Yields:
        The other id, and the Python expression that makes it from ``id``.
    """
    text, how = (id, "id") if isinstance(id, str) else (str(id), "str(id)")
    if isinstance(id, bytes):
        text, how = id.decode(errors="replace"), "id.decode()"
    if text != id:
        yield text, how
    is_number = len(text) <= LONGEST_NUMBER and text.isascii() and text.isdigit()
    if is_number and not isinstance(id, int):
        yield int(text), f"int({how})"
    if text.strip() != text:
        yield text.strip(), f"{how}.strip()"
    stem, suffix = os.path.splitext(text)
    if suffix:
        yield stem, f"os.path.splitext({how})[0]"
    if "/" in text:
        yield os.path.basename(text), f"os.path.basename({how})"
    yield f"{text}.npy", f"{how} + '.npy'"
    for digits in range(len(text) + 1, LONGEST_NUMBER + 1) if is_number else ():
        yield text.zfill(digits), f"{how}.zfill({digits})"


def for_missing_file(id: object, path_of: Callable[[object], str], folder: str | None, kind: FileKind = NPY) -> str:
    """What an error adds if the file of ``id`` is not there: what there is, and the remedy.

    Args:
        id: of the sample.
        path_of: returns the path of an id's file.
        folder: that the files are in; None if ids are paths.
        kind: of the files.
    """
    path, name = path_of(id), str(id)
    if folder is None and (expanded := _expanded(name)):
        return expanded
    if folder is not None:
        if not os.path.isdir(folder):
            return for_missing_folder(folder, kind)
        if any(os.path.isfile(name + suffix) for suffix in ("", *kind.suffixes)):
            return "; from the working folder it is the path of a file: pass data_dir=None where ids are paths"
    for other, how in variants(id):
        if (there := path_of(other)) != path and os.path.isfile(there):
            return f"; {there} is there: pass [{how} for id in ids]"
    return _beside(path, kind)


def _beside(path: str, kind: FileKind) -> str:
    """What is there instead of a file."""
    from difflib import get_close_matches

    folder, name = os.path.split(path)
    if not os.path.isdir(folder):
        return for_missing_folder(folder, kind)
    entries, folders = _entries(folder)
    stem = kind.stem(name)
    # An id may be the name of the file, suffix and all.
    others = [entry for entry in entries if entry.startswith(f"{stem}.") or (entry == stem and entry not in folders)]
    if stem and others:
        return f"; {others[0]} is there: {_remedy_for(others[0])}"
    stems = {kind.stem(entry): entry for entry in entries}
    if close := get_close_matches(stem, stems, 1):
        return f"; {folder} has {stems[close[0]]!r}"
    return f"; {folder} has {_shown(entries, kind)}"


def _remedy_for(name: str) -> str:
    """How a file is read that is not of the kind that was asked for."""
    if NPY.has(name):
        return "of .npy files the source is Npy(folder)"
    if NPZ.has(name):
        return "of .npz files the source is Npz(folder)"
    if IMAGES.has(name):
        return "of images the source is Images(folder, size=(height, width))"
    return "for files of another format pass source=, a function that reads the file of an id"


def for_missing_folder(folder: str, kind: FileKind) -> str:
    """What an error adds if a folder is not there: what was probably meant, and the remedy."""
    if expanded := _expanded(folder):
        return expanded
    from difflib import get_close_matches

    above, name = os.path.split(folder)
    while not os.path.isdir(above):
        above, name = os.path.split(above)
    entries, folders = _entries(above)
    close = get_close_matches(name, folders, 1)
    found = f"{close[0]!r}" if close else _shown(entries, kind)
    return f"; there is no folder {os.path.join(above, name)}, and {above} has {found}: give the folder that the files are in"


def _expanded(path: str) -> str:
    """The remedy for a path whose ``~`` a shell would have replaced by the home folder."""
    given = path[path.find("/~") + 1 :]
    expanded = os.path.expanduser(given)
    if not given.startswith("~") or expanded == given:
        return ""
    return f"; '~' is not replaced, and was probably meant as {expanded}: pass os.path.expanduser({given!r})"


def _entries(folder: str) -> tuple[list[str], list[str]]:
    """The names of a folder's entries, and of those that are folders."""
    try:
        with os.scandir(folder) as scanned:
            seen = islice(scanned, LOOKED_AT)
            entries = sorted((entry for entry in seen if not entry.name.startswith("._")), key=lambda entry: entry.name)
        return [entry.name for entry in entries], [entry.name for entry in entries if entry.is_dir()]
    except OSError:
        return [], []


def _shown(entries: list[str], kind: FileKind) -> str:
    """Some of a folder's entries; only files of the kind that was asked for, if there are any."""
    files = [entry for entry in entries if kind.has(entry)]
    shown = ", ".join(map(repr, (files or entries)[:SHOWN])) + (" and others" if len(files or entries) > SHOWN else "")
    if files:
        return shown
    return f"no {kind.plural}, but {shown}" if entries else "nothing in it"
