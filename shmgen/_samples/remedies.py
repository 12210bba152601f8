"""Remedies that errors name: for an id without a file or a value, and for a file that can't be read.

They are looked for only once an error has occurred.
"""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from shmgen._samples.files import IMAGES, NPY, NPZ, FileKind, some_of
from shmgen.errors import FormatError

LOOKED_AT = 10_000
"""The most entries of a folder that are looked at; it may have millions."""

LONGEST_NUMBER = 12
"""The most digits of a number that is tried with leading zeros."""

FOUND_BY_SCAN = errno.EACCES, errno.EIO
"""Errors, of rights or of the disk, that other files are likely to have too."""

SCAN = "python", "-m", "shmgen", "scan"


def variants(id: object) -> Iterator[tuple[Any, str]]:
    """Ids similar to ``id``: of another type, without blanks, suffix or folder, with a suffix, or with leading zeros; and of each
    the Python expression that makes it.
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
    """The end of an error for an ``id`` without a file: a file that there is, and the remedy.

    ``folder`` is None if ids are paths.
    """
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
    return _beside(path, kind)


def _beside(path: str, kind: FileKind) -> str:
    """Files that are there instead."""
    from difflib import get_close_matches

    folder, name = os.path.split(path)
    if not os.path.isdir(folder):
        return for_missing_folder(folder, kind)
    entries, folders = _entries(folder)
    stem = kind.stem(name)
    # An id may be the name of the file with its suffix.
    others = [entry for entry in entries if entry.startswith(f"{stem}.") or (entry == stem and entry not in folders)]
    if stem and others:
        return f"; {others[0]} is there: {_remedy_for(others[0])}"
    stems = {kind.stem(entry): entry for entry in entries}
    if close := get_close_matches(stem, stems, 1):
        return f"; {folder} has {stems[close[0]]!r}"
    return f"; {folder} has {_shown(entries, kind)}"


def _remedy_for(name: str) -> str:
    """How to read a file of another kind."""
    if NPY.has(name):
        return "of .npy files the source is Npy(folder)"
    if NPZ.has(name):
        return "of .npz files the source is Npz(folder)"
    if IMAGES.has(name):
        return "of images the source is Images(folder, size=(height, width))"
    return "for files of another format pass source=, a function that reads the file of an id"


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
    """The names of a folder's entries, and of those that are folders."""
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


def without_scan(reason: str) -> str:
    """``reason`` without the advice to run a scan."""
    return reason.partition(f"; `{shlex.join(SCAN)} ")[0]


def for_unreadable_file(error: Exception, path: str, folder: str | None, options: Sequence[str]) -> str:
    """The end of an error for a file, or a URL, that can't be read. ``folder`` is None if ids are paths.

    With these options, ``shmgen scan`` expects the same samples.
    """
    if "://" in path:
        return ""  # the server's answer names the cause
    scan = shlex.join([*SCAN, folder or os.path.dirname(path), *options])
    if isinstance(error, FileNotFoundError):
        if folder is not None and not os.path.isdir(folder):
            return f"; the whole folder {folder} is not there any more: mount it, or move it back"
        names_all = f"; `{scan} --ids FILE` names all that are missing of the ids in FILE, one on a line"
        return f"; put it back, or leave its id out{names_all if folder is not None else ''}"
    if isinstance(error, FormatError) or getattr(error, "errno", None) in FOUND_BY_SCAN:
        return f"; `{scan}` finds all such files: repair them, or leave their ids out"
    return ""
