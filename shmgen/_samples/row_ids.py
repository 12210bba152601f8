"""Ids of the rows of one file, in a text file beside it. The main process looks them up, once, in a sorted array."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Any

import numpy as np

from shmgen._samples.ids import id_lines, take
from shmgen._samples.npy_format import OPEN_FLAGS, explain
from shmgen._storage.remote import Place, Remote
from shmgen._storage.store import Body
from shmgen.errors import FormatError, InputError, printable

SPREAD, SMALL = 4, 1 << 28
"""All ids take the bytes of the longest in their array. It may be this many times as large as the file; or of this many bytes."""

READ = 1 << 20
"""Bytes of a remote file that are read at once."""


class RowIds:
    """The ids of rows, in the order of the rows. A file that can't be read, or has no ids, is an InputError."""

    def __init__(self, place: Place) -> None:
        self._path = path = place.path
        try:
            data = _contents(path) if place.remote is None else _got(place.remote)
            ids, most = id_lines(data), max(SMALL, SPREAD * len(data))
            if (longest := max(map(len, ids))) * len(ids) > most:
                raise FormatError(f"expected {len(ids):,} ids of at most {most // len(ids):,} bytes, found one of {longest:,}")
            self._table = _table(ids)
        except (OSError, ValueError, FormatError) as error:
            raise InputError(f"ids {path}: {explain(error, path)}") from None

    def row(self, id: object) -> int | None:
        """The number of the row of ``id``; None if it has none."""
        found = np.flatnonzero(self._table == _encoded([str(id)]))
        return int(found[0]) if found.size else None

    def rows(self, ids: Sequence[Any], rows: int) -> range | np.ndarray:
        """The numbers of the rows of ``ids``: a range where they are neighbours, else an array of 4 bytes a row, or 8.

        Refused is a file that has not an id for each of the ``rows``, or has one twice, or lacks one of ``ids``.
        """
        table, count = self._table, len(self._table)
        if count != rows:
            raise InputError(f"ids {self._path}: expected {rows:,}, a line for each row, found {count:,}")
        names = list(map(str, take(ids, np.arange(len(ids)))))
        wanted = _encoded(names)
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


def _contents(path: str) -> bytes:
    fd = os.open(path, OPEN_FLAGS | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise FormatError("expected a file, found something else")
        return file.read()


def _got(remote: Remote) -> bytes:
    def take(body: Body) -> bytes:
        parts: list[bytes] = []
        while not parts or len(parts[-1]) == READ:
            parts.append(body.read(READ))
        return b"".join(parts)

    remote.prepare()
    try:
        return remote.get("", take)
    finally:
        remote.close()


def _table(ids: list[bytes]) -> np.ndarray:
    """Ids as an array of fixed width."""
    return np.array(ids, np.bytes_)


def _encoded(names: list[str]) -> np.ndarray:
    """Names as such an array; one that can't be a line of a file, because of a line break for instance, becomes empty."""
    together = "\n".join(names)
    try:
        lines = together.encode("utf-8", "surrogateescape").split(b"\n")
        if len(lines) == len(names) and "\0" not in together:
            return _table(lines)
    except UnicodeEncodeError:
        pass
    return _table([b"" if _is_no_line(name) else os.fsencode(name) for name in names])


def _is_no_line(name: str) -> bool:
    try:
        name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return True
    return "\n" in name or "\0" in name
