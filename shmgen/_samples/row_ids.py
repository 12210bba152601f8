"""Ids of the rows of one file, in a text file beside it. The main process looks them up, once, in a sorted array."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from shmgen._samples.ids import id_lines
from shmgen._samples.npy_format import OPEN_FLAGS, explain
from shmgen._samples.remedies import variants
from shmgen._storage.remote import Place
from shmgen.errors import FormatError, InputError


def rows_of(ids: Sequence[Any], place: Place, rows: int) -> range | np.ndarray:
    """The numbers of the rows of ``ids``, in the order of the file at ``place``: a range, or an array of 4 or 8 bytes a row."""
    try:
        table = np.array(id_lines(_contents(place)), np.bytes_)
    except (OSError, ValueError, FormatError) as error:
        raise InputError(f"ids {place.path}: {explain(error, place.path)}") from None
    if len(table) != rows:
        raise InputError(f"ids {place.path}: expected {rows:,}, a line for each row, found {len(table):,}")
    wanted = np.array(list(map(_line, ids)), np.bytes_)
    order = np.argsort(table, kind="stable").astype(np.uint32 if rows < 1 << 32 else np.int64)
    ordered = table[order]
    if (twice := ordered[1:] == ordered[:-1]).any():
        id = os.fsdecode(ordered[int(twice.argmax())])
        raise InputError(f"ids {place.path}: expected each id once, found {id!r} several times; leave it out")
    first = np.flatnonzero(table == wanted[0])
    if first.size and np.array_equal(table[first[0] : first[0] + len(wanted)], wanted):
        return range(int(first[0]), int(first[0]) + len(wanted))
    by_name = np.argsort(wanted, kind="stable")  # sorted names are found several times as fast
    places = np.empty(len(wanted), np.int64)
    places[by_name] = np.minimum(np.searchsorted(ordered, wanted[by_name]), rows - 1)
    missing = ordered[places] != wanted
    if missing.any():
        id = ids[int(missing.argmax())]
        similar = (f"; {other!r} is there: pass [{how} for id in ids]" for other, how in variants(id) if _line(other) in table)
        expected = f"it among the ids in {place.path}, a line for each row"
        raise InputError(f"id {id!r}: expected {expected}, found it nowhere{next(similar, '')}")
    return order[places]


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


def _line(id: Any) -> bytes:
    """An id as in a file; empty if it can't be a line of one."""
    try:
        line = os.fsencode(str(id))
    except UnicodeEncodeError:
        return b""
    return b"" if b"\0" in line else line  # an array drops these at the end
