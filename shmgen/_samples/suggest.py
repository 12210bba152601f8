"""Guesses at what was meant by an id that has no file, or no value. They are made only once something is missing."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

LOOKED_AT = 10_000
"""Entries of a folder that are looked at, at most: it may have millions."""

FOLDERS_LOOKED_INTO = 100

SHOWN = 3

MAX_CHANGES = 3
"""Changes made to one id, at most."""

MAX_ALTERNATIVES = 300

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


def alternatives(id: object) -> Iterator[tuple[Any, str]]:
    """Other ids that ``id`` may have been meant as, those with the fewest changes first.

    Yields:
        The other id, and the Python expression that makes it from ``id``.
    """
    if isinstance(id, bytes):
        known = {id.decode(errors="replace"): "id.decode()"}
    elif isinstance(id, float) and id.is_integer():
        known = {str(int(id)): "str(int(id))"}
    else:
        known = {str(id): "id" if isinstance(id, str) else "str(id)"}
    latest = known
    for _ in range(MAX_CHANGES + 1):
        for text, how in latest.items():
            if text != id:
                yield text, how
            if _is_number(text) and int(text) != id:
                yield int(text), f"int({how})"
        if len(known) > MAX_ALTERNATIVES:
            return
        changes = ((other, form.format(how)) for text, how in latest.items() for other, form in _changes(text))
        changed = list(islice(changes, MAX_ALTERNATIVES))
        latest = {text: how for text, how in reversed(changed) if text not in known}
        known |= latest


def _changes(text: str) -> Iterator[tuple[str, str]]:
    """``text`` after one change, and the expression that makes it, with ``{}`` for what is changed."""
    from unicodedata import normalize

    yield text.strip(), "{}.strip()"
    yield text.removesuffix(".npy"), "{}.removesuffix('.npy')"
    yield text.replace("\\", "/"), "{}.replace('\\\\', '/')"
    for end in (at for at, sign in enumerate(text[:-1], 1) if sign == "/"):
        yield text[end:], f"{{}}.removeprefix({_braced(text[:end])!r})"
    if _is_number(text):
        yield str(int(text)), "str(int({}))"
        for digits in range(len(text) + 1, LONGEST_NUMBER + 1):
            yield text.zfill(digits), f"{{}}.zfill({digits})"
    for kind in ("NFC", "NFD"):
        yield normalize(kind, text), f"unicodedata.normalize({kind!r}, {{}})"
    if not text.endswith(".npy"):
        yield f"{text}.npy", "({} + '.npy')"


def _is_number(text: str) -> bool:
    return len(text) <= LONGEST_NUMBER and text.isascii() and text.isdigit()


def _braced(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def for_missing_file(id: object, path_of: Callable[[object], str], folder: str | None, kind: FileKind = NPY) -> str:
    """What an error adds if the file of ``id`` is not there: what there is, and the remedy.

    Args:
        id: of the sample.
        path_of: returns the path of an id's file.
        folder: that the files are in; None if ids are paths.
        kind: of the files.
    """
    path, name = path_of(id), str(id)
    if os.path.islink(path):
        return f"; it is a link to {os.readlink(path)}, and nothing is there"
    if id is None or (isinstance(id, float) and math.isnan(id)):
        return "; such an id is a missing value: leave it out, as df.dropna() does"
    if folder is None:
        return _expanded(name) or _alternative(id, path_of, within=False) or _beside(path, kind)
    if not os.path.isdir(folder):
        return for_missing_folder(folder, kind)
    hint = _alternative(id, path_of, within=True)
    if not hint and any(os.path.isfile(name + suffix) for suffix in ("", *kind.suffixes)):
        hint = "; from the working folder it is the path of a file: pass data_dir=None where ids are paths"
    return hint or _beside(path, kind)


def _alternative(id: object, path_of: Callable[[object], str], *, within: bool) -> str:
    """Another id that has a file; if ``within`` a folder, one that does not lead out of it."""
    path = path_of(id)
    for other, how in alternatives(id):
        if within and (str(other).startswith("/") or ".." in str(other).split("/")):
            continue
        if (there := path_of(other)) != path and os.path.isfile(there):
            return f"; {there} is there: pass [{how} for id in ids]"
    return ""


def _beside(path: str, kind: FileKind) -> str:
    """What is there instead of a file."""
    folder, name = os.path.split(path)
    if not os.path.isdir(folder):
        return for_missing_folder(folder, kind)
    entries, folders = _entries(folder)
    stem = kind.stem(name)
    # An id may be the name of the file, suffix and all.
    others = [entry for entry in entries if entry.startswith(f"{stem}.") or (entry == stem and entry not in folders)]
    if stem and others:
        return f"; {others[0]} is there: {_remedy_for(others[0])}"
    for sub in folders[:FOLDERS_LOOKED_INTO]:
        if os.path.isfile(os.path.join(folder, sub, name)):
            return f"; {sub}/{name} is there: ids name sub-folders, too, as {sub}/{stem} does"
    return f"; {folder} has {_shown(entries, kind)}"


def _remedy_for(name: str) -> str:
    """How a file is read that is not of the kind that was asked for."""
    if NPY.has(name):
        return "of .npy files the source is Npy(folder)"
    if NPZ.has(name):
        return "of .npz files the source is Npz(folder)"
    if name.endswith(".npz"):
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
            entries = sorted(islice(scanned, LOOKED_AT), key=lambda entry: entry.name)
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
