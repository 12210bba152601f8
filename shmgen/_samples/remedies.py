"""Remedies for an id without a file or a value. They are looked for only once an error has occurred."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from shmgen._samples.files import IMAGES, NPY, FileKind, some_of

LOOKED_AT = 10_000
"""The most entries of a folder that are looked at; it may have millions."""

LONGEST_NUMBER = 12
"""The most digits of a number that is tried with leading zeros."""


def variants(id: object) -> Iterator[tuple[Any, str]]:
    """Ids similar to ``id``, and of each the Python expression that makes it."""
    text, how = (id, "id") if isinstance(id, str) else (str(id), "str(id)")
    if isinstance(id, bytes):
        text, how = os.fsdecode(id), "id.decode()"
    if text != id:
        yield text, how
    is_number = len(text) <= LONGEST_NUMBER and text.isascii() and text.isdigit()
    if is_number and not isinstance(id, int):
        yield int(text), f"int({how})"
    if text.strip() != text:
        yield text.strip(), f"{how}.strip()"
    for form in ("NFC", "NFD"):  # macOS writes an "é" as two characters, which look the same
        yield unicodedata.normalize(form, text), f"unicodedata.normalize({form!r}, {how})"
    stem, suffix = os.path.splitext(text)
    if suffix:
        yield stem, f"os.path.splitext({how})[0]"
    if "/" in text:
        yield os.path.basename(text), f"os.path.basename({how})"
    for digits in range(len(text) + 1, LONGEST_NUMBER + 1) if is_number else ():
        yield text.zfill(digits), f"{how}.zfill({digits})"


def for_missing_file(id: object, path_of: Callable[[object], str], folder: str | None, kind: FileKind = NPY) -> str:
    """The end of an error for an ``id`` without a file; ``folder`` is None if ids are paths."""
    path, name = path_of(id), str(id)
    if folder is None and "://" in name:
        return "; ids are no URLs: pass the URL of the folder as data_dir, and what follows it as ids"
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
    return _beside(path, kind, name)


def _beside(path: str, kind: FileKind, id: str) -> str:
    from difflib import get_close_matches

    folder, name = os.path.split(path)
    if not os.path.isdir(folder):
        return for_missing_folder(folder, kind)
    entries, folders = _entries(folder)
    stem = kind.stem(name)
    # An id may be the name of the file with its suffix.
    others = [entry for entry in entries if entry.startswith(f"{stem}.") or (entry == stem and entry not in folders)]
    if stem and others:
        other = min(others, key=lambda entry: entry.lower() != name.lower())
        if kind.has(id):
            return f"; {folder} has {other!r}"
        if kind is IMAGES:
            return f"; {other} is there: pass suffix={other.removeprefix(os.path.basename(id))!r} if it is an image"
        return f"; {other} is there: pass the source of such files, as Images(folder), or a function that reads one"
    stems = {kind.stem(entry): entry for entry in entries}
    if close := get_close_matches(stem, stems, 1):
        return f"; {folder} has {stems[close[0]]!r}"
    return f"; {folder} has {_shown(entries, kind)}"


def for_missing_folder(folder: str, kind: FileKind) -> str:
    """The end of an error for a missing folder: one with a similar name, and the remedy."""
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
    """The remedy for a path that begins with ``~``, which a shell would have replaced by the home folder."""
    given = path[path.find("/~") + 1 :]
    expanded = os.path.expanduser(given)
    if not given.startswith("~") or expanded == given:
        return ""
    return f"; '~' is not replaced, and was probably meant as {expanded}: pass os.path.expanduser({given!r})"


def _entries(folder: str) -> tuple[list[str], list[str]]:
    try:
        with os.scandir(folder) as scanned:
            seen = islice(scanned, LOOKED_AT)
            entries = sorted((entry for entry in seen if not entry.name.startswith("._")), key=lambda entry: entry.name)
        return [entry.name for entry in entries], [entry.name for entry in entries if entry.is_dir()]
    except OSError:
        return [], []


def _shown(entries: list[str], kind: FileKind) -> str:
    """Some entries of a folder; only files of this kind, if there are any."""
    if files := [entry for entry in entries if kind.has(entry)]:
        return some_of(files)
    return f"no {kind.plural}, but {some_of(entries)}" if entries else "nothing in it"
