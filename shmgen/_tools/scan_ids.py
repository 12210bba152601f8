"""Which files a scan looks at: ids, in blocks, as they are found.

Ids are bytes here, as in the file system: a name need not be text.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import IO

from shmgen._sources.npy_format import explain
from shmgen._storage.remote import Remote
from shmgen._storage.urls import is_url
from shmgen.errors import InputError

BLOCK = 1024
"""Ids in a block."""

LONGEST_ID = 4096
"""Bytes. Linux allows no longer path."""


@dataclass
class Folder:
    """Lists the ``.npy`` files under a folder, sub-folders included.

    Links to folders are followed, but not to a folder that the link is in.

    Args:
        path: of the folder.

    Attributes:
        unreadable: sub-folders that can't be listed, each with the reason. It is complete when `ids` has ended.
        others: number of files that are no ``.npy`` files.
        other: name of one of them.
    """

    path: bytes
    unreadable: list[tuple[bytes, str]] = field(default_factory=list)
    others: int = 0
    other: bytes = b""

    def ids(self) -> Iterator[list[bytes]]:
        """The ids, in no particular order: paths from the folder, without ``.npy``."""
        block: list[bytes] = []
        left: list[tuple[bytes, tuple[tuple[int, int], ...]]] = [(b"", ())]
        while left:
            prefix, above = left.pop()
            try:
                here = os.stat(self._at(prefix))
                if (key := (here.st_dev, here.st_ino)) in above:
                    continue
                with os.scandir(self._at(prefix)) as entries:
                    for entry in entries:
                        name = entry.name
                        if name.endswith(b".npy"):
                            block.append(prefix + name[:-4])
                            if len(block) >= BLOCK:
                                yield block
                                block = []
                        elif self._is_folder(entry, prefix):
                            left.append((prefix + name + b"/", (*above, key)))
            except OSError as error:
                self._record(prefix, error)
        if block:
            yield block

    def no_files(self) -> str:
        """The error text if there are no ids."""
        found = "none"
        if self.others:
            found += f" among {self.others:,} others, such as {os.fsdecode(self.other)!r}"
        for path, reason in self.unreadable[:1]:
            found += f"; {f'sub-folder {os.fsdecode(path)!r}: ' if path else ''}{reason}"
        folder = os.fsdecode(self.path)
        return f"{folder}: expected files whose names end in .npy, found {found}; give the folder of the ID.npy files"

    def _is_folder(self, entry: os.DirEntry[bytes], prefix: bytes) -> bool:
        try:
            if entry.is_dir():
                return True
        except OSError as error:  # it is not known where a link leads
            self._record(prefix + entry.name, error)
            return False
        self.others += 1
        self.other = self.other or prefix + entry.name
        return False

    def _record(self, prefix: bytes, error: OSError) -> None:
        self.unreadable.append((prefix.removesuffix(b"/"), explain_folder(error)))

    def _at(self, prefix: bytes) -> bytes:
        return self.path + b"/" + prefix


def explain_folder(error: OSError | ValueError) -> str:
    """Why a folder can't be listed: what was expected and what was found."""
    return explain(error).replace(" file", " folder", 1)


def ids_behind(store: Remote) -> Iterator[list[bytes]]:
    """The ids of all ``.npy`` files behind a URL, in blocks.

    Raises:
        InputError: they can't be listed, or there are none.
    """
    names = store.names()
    none = True
    while block := [os.fsencode(name.removesuffix(".npy")) for name in islice(names, BLOCK)]:
        none = False
        yield block
    if none:
        raise InputError(
            f"{store.place('')}: expected files whose names end in .npy, found none; give the folder of the ID.npy files"
        )


def ids_under(folder: str) -> Iterator[list[bytes]]:
    """The ids of all ``.npy`` files under a folder, or behind a URL, in blocks.

    Raises:
        InputError: it can't be listed, or has no such files.
    """
    if is_url(folder):
        store = Remote(folder)
        store.prepare()
        yield from ids_behind(store)
        return
    try:
        os.scandir(folder).close()
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: {explain_folder(error)}; give the folder of the ID.npy files") from None
    listing = Folder(os.fsencode(folder))
    none = True
    for block in listing.ids():
        none = False
        yield block
    if none:
        raise InputError(listing.no_files())


def ids_in(file: IO[bytes], name: str) -> Iterator[list[bytes]]:
    """The ids in a text file, one a line; empty lines are skipped.

    Raises:
        InputError: it is no such text.
    """
    block = []
    number = 0
    while line := file.readline(LONGEST_ID + 2):
        number += 1
        id = line.removesuffix(b"\n").removesuffix(b"\r")
        if number == 1:
            id = id.removeprefix(b"\xef\xbb\xbf")  # which some editors put before UTF-8
        if len(id) > LONGEST_ID or b"\0" in id:
            found = "a NUL byte" if b"\0" in id else f"more than {LONGEST_ID:,} bytes"
            raise InputError(f"{name}, line {number:,}: expected an id, found {found}; write an id a line, as text in UTF-8")
        if id:
            block.append(id)
            if len(block) >= BLOCK:
                yield block
                block = []
    if block:
        yield block
