"""Ids of the rows of one file, in a text file beside it. The main process looks them up, once, in a sorted array."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from shmgen._samples.ids import id_lines, take
from shmgen._samples.npy_format import OPEN_FLAGS, explain
from shmgen._storage.remote import Place
from shmgen.errors import FormatError, InputError, printable


class RowIds:
    """The ids of rows, in the order of the rows. A file that can't be read, or has no ids, is an InputError."""

    def __init__(self, place: Place) -> None:
        self._path = path = place.path
        try:
            self._table = np.array(id_lines(_contents(place)), np.bytes_)
        except (OSError, ValueError, FormatError) as error:
            raise InputError(f"ids {path}: {explain(error, path)}") from None

    def row(self, id: object) -> int | None:
        """The number of the row of ``id``; None if it has none."""
        found = np.flatnonzero(self._table == _line(str(id)))
        return int(found[0]) if found.size else None

    def rows(self, ids: Sequence[Any], rows: int) -> range | np.ndarray:
        """The numbers of the rows of ``ids``: a range where they are neighbours, else an array of 4 bytes a row, or 8.

        A file that has not one id for each of the ``rows``, has an id twice, or lacks one of ``ids``, is an InputError.
        """
        table, count = self._table, len(self._table)
        if count != rows:
            raise InputError(f"ids {self._path}: expected {rows:,}, a line for each row, found {count:,}")
        names = list(map(str, take(ids, np.arange(len(ids)))))
        wanted = np.array(list(map(_line, names)), np.bytes_)
        first = self.row(names[0])
        if first is not None and np.array_equal(table[first : first + len(wanted)], wanted):
            return range(first, first + len(wanted))
        order = np.argsort(table, kind="stable").astype(np.uint32 if count < 1 << 32 else np.int64)
        ordered = table[order]
        if (twice := ordered[1:] == ordered[:-1]).any():
            id = os.fsdecode(ordered[int(twice.argmax())])
            raise InputError(printable(f"ids {self._path}: expected each id once, found {id!r} several times; leave it out"))
        by_name = np.argsort(wanted, kind="stable")  # sorted names are found several times as fast
        places = np.empty(len(wanted), np.int64)
        places[by_name] = np.minimum(np.searchsorted(ordered, wanted[by_name]), count - 1)
        missing = ordered[places] != wanted
        if missing.any():
            raise self._missing(names[int(missing.argmax())])
        return order[places]

    def _missing(self, id: str) -> InputError:
        """The error for an id that has no line."""
        from shmgen._samples.remedies import variants

        near = next((f", but {o!r}: pass [{how} for id in ids]" for o, how in variants(id) if self.row(o) is not None), "")
        return InputError(
            printable(f"id {id!r}: expected one of the ids in {self._path}, a line for each row, found it not{near}")
        )


def row_of_id(place: Place, id: object) -> int | None:
    """The number of the row of ``id``, as the file at ``place`` says; None if it has none, or the file can't be read."""
    try:
        return RowIds(place).row(id)
    except InputError:
        return None


def _contents(place: Place) -> bytes:
    if place.remote is None:
        fd = os.open(place.path, OPEN_FLAGS | os.O_NONBLOCK)  # an ordinary open of a FIFO would wait for ever
        with open(fd, "rb") as file:
            return file.read()
    place.remote.prepare()
    try:
        return place.remote.store.get("", lambda body: body.read(sys.maxsize))
    finally:
        place.remote.store.close()


def _line(name: str) -> bytes:
    """An id as in a file; empty if it can't be a line of one."""
    try:
        line = os.fsencode(name)
    except UnicodeEncodeError:
        return b""
    return b"" if b"\0" in line else line  # an array drops these at the end
