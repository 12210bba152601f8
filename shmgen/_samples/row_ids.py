"""The ids of the rows of one file: a text file, an id a line. Texts are looked up here, once, in the main process."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator, Sequence
from hashlib import shake_128
from itertools import count
from typing import Any, Self

import numpy as np

from shmgen._sources.npy_format import OPEN_FLAGS, explain
from shmgen._storage.remote import Place, Remote
from shmgen._storage.store import Body
from shmgen.errors import FormatError, InputError, printable

BLOCK = 10_000
"""Ids that are looked at at once."""

READ = 1 << 20
"""Bytes of the file that are looked at at once."""

LONGEST = 4096
"""Bytes of an id. Linux allows no longer path."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""Which some editors put before UTF-8."""

NEWLINE = ord("\n")


class RowIds:
    """The ids of rows, in the order of the rows; to be used within ``with``.

    Args:
        place: of the file.

    Raises:
        InputError: it can't be read, or is empty.
    """

    def __init__(self, place: Place) -> None:
        self._path = path = place.path
        try:
            data = _mapped(path) if place.remote is None else _got(place.remote)
            # Each id ends in a newline, and nothing else is there.
            self._data = _plain(data)
            if not self._data:
                raise FormatError("expected ids, a line each, found none")
        except (OSError, ValueError, FormatError) as error:
            raise InputError(f"ids {path}: {explain(error)}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._data = b""

    def row(self, id: object) -> int | None:
        """The number of the row of ``id``; None if it has none."""
        text = _text([str(id)])
        start = -1 if text is None else _find(self._data, text)
        return None if start < 0 else int(np.count_nonzero(np.frombuffer(self._data[:start], np.uint8) == NEWLINE))

    def rows(self, ids: Sequence[Any], rows: int) -> range | np.ndarray:
        """The numbers of the rows of ``ids``: a range where they are neighbours, else an array of 4 bytes a row, or 8.

        Texts take a few array operations, many at a time, and no more memory than that array once it is done.

        Args:
            ids: of samples, as `shmgen._samples.ids.kept` makes them.
            rows: how many there are.

        Raises:
            InputError: there is not an id for each row, or one is there twice, or one of ``ids`` is not there.
        """
        edges = _edges(self._data)
        if len(edges) - 1 != rows:
            raise InputError(f"ids {self._path}: expected {rows:,}, a line for each row, found {len(edges) - 1:,}")
        found = self._neighbours(edges, ids)
        return self._scattered(edges, ids) if found is None else found

    def _neighbours(self, edges: np.ndarray, ids: Sequence[Any]) -> range | None:
        """The rows of ``ids``, if they are neighbours in the file and in its order, as all of them are, or the first part."""
        data, text = self._data, _text(_names(ids, 0, 1))
        start = -1 if text is None else _find(data, text)
        first = int(np.searchsorted(edges, start))
        if start < 0 or first + len(ids) > len(edges) - 1:
            return None
        for begin, end in _spans(len(ids)):
            text = _text(_names(ids, begin, end))
            if text is None or text.count(b"\n") != end - begin or data[edges[first + begin] : edges[first + end]] != text:
                return None
        return range(first, first + len(ids))

    def _scattered(self, edges: np.ndarray, ids: Sequence[Any]) -> np.ndarray:
        """The rows of ``ids``, by hashes of all lines; what is found is compared."""
        every = np.frombuffer(self._data, np.uint8)
        hashes, order, factors = self._hashed(edges)
        rows = np.empty(len(ids), order.dtype)
        for first, last in _spans(len(ids)):
            names = _names(ids, first, last)
            text = _text(names)
            some = None if text is None else _edges(text)
            if text is None or some is None or len(some) - 1 != len(names) or np.diff(some).max() > LONGEST + 1:
                raise self._missing(names)
            found = order[np.minimum(np.searchsorted(hashes, _hashes(text, some, factors)), len(order) - 1)]
            sizes, starts = np.diff(some), edges[found]
            if not (edges[1:][found] - starts == sizes).all():
                raise self._missing(names)
            there = np.repeat(starts - some[:-1], sizes) + np.arange(len(text))
            if not (every[there] == np.frombuffer(text, np.uint8)).all():
                raise self._missing(names)
            rows[first:last] = found
        return rows

    def _hashed(self, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hashes of all lines, which are all different, in their order; the row of each; and what they were made with."""
        data, total = self._data, len(edges) - 1
        hashes = np.empty(total, np.uint64)
        for first, last in _spans(total):
            lengths = np.diff(edges[first : last + 1])
            if lengths.max() > LONGEST + 1:
                line = first + int(lengths.argmax()) + 1
                raise InputError(f"ids {self._path}, line {line:,}: expected an id of at most {LONGEST:,} bytes, found more")
        for salt in count():
            factors = _factors(salt)
            for first, last in _spans(total):
                some = edges[first : last + 1]
                hashes[first:last] = _hashes(data[some[0] : some[-1]], some - some[0], factors)
            order = np.argsort(hashes).astype(np.uint32 if total < 1 << 32 else np.int64)
            hashes.sort()
            same = np.flatnonzero(hashes[1:] == hashes[:-1])
            if not same.size:
                return hashes, order, factors
            one, other = (data[edges[row] : edges[1:][row]] for row in order[same[0] : same[0] + 2])
            if one == other:
                id = os.fsdecode(one[:-1])
                raise InputError(printable(f"ids {self._path}: expected each id once, found {id!r} several times; leave it out"))
        raise AssertionError

    def _missing(self, names: list[str]) -> InputError:
        """The error for the first of ``names`` that has no line; one of them has none."""
        from shmgen._samples.suggest import variants

        def is_there(name: object) -> bool:
            text = _text([str(name)])
            return text is not None and _find(self._data, text) >= 0

        id = next(name for name in names if "\n" in name or not is_there(name))
        near = next((f", but {other!r}: pass [{how} for id in ids]" for other, how in variants(id) if is_there(other)), "")
        return InputError(
            printable(f"id {id!r}: expected one of the ids in {self._path}, a line for each row, found it not{near}")
        )


def _mapped(path: str) -> bytes | mmap.mmap:
    fd = os.open(path, OPEN_FLAGS | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise FormatError("expected a file, found something else")
        return mmap.mmap(fd, 0, access=mmap.ACCESS_READ) if os.fstat(fd).st_size else b""
    finally:
        os.close(fd)


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


def _plain(data: bytes | mmap.mmap) -> bytes | mmap.mmap:
    """``data`` without a byte order mark, carriage returns, and empty lines, and with a newline at its end."""
    marked, ends = data[:3] == BYTE_ORDER_MARK, data[-1:] == b"\n"
    if ends and not marked and data[:1] != b"\n" and data.find(b"\n\n") < 0 and data.find(b"\r\n") < 0:
        return data
    lines = data[3 * marked :].replace(b"\r\n", b"\n").split(b"\n")
    return b"".join([line + b"\n" for line in lines if line])


def _names(ids: Sequence[Any], first: int, last: int) -> list[str]:
    """Some of ``ids``, as texts."""
    from shmgen._samples.ids import take

    return list(map(str, take(ids, np.arange(first, last))))


def _text(names: list[str]) -> bytes | None:
    """A line for each name; None if one can't be encoded, so that it is in no file."""
    try:
        return ("\n".join(names) + "\n").encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return None


def _find(data: bytes | mmap.mmap, line: bytes) -> int:
    """Where a line begins; -1 if it is not there."""
    if data[: len(line)] == line:
        return 0
    found = data.find(b"\n" + line)
    return found + 1 if found >= 0 else -1


def _edges(data: bytes | mmap.mmap) -> np.ndarray:
    """Where each line begins, and where the last ends."""
    every = np.frombuffer(data, np.uint8)
    edges = [np.flatnonzero(every[first : first + READ] == NEWLINE) + (first + 1) for first in range(0, len(every), READ)]
    return np.concatenate([[0], *edges])


def _spans(total: int) -> Iterator[tuple[int, int]]:
    for first in range(0, total, BLOCK):
        yield first, min(first + BLOCK, total)


def _factors(salt: int) -> np.ndarray:
    """Odd numbers, for the bytes of a line."""
    return np.frombuffer(shake_128(b"%d" % salt).digest(8 * (LONGEST + 1)), np.uint64) | np.uint64(1)


def _hashes(data: bytes, edges: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """A hash of each line: the sum of its bytes, each times a number that depends on where in the line it is."""
    places = np.arange(len(data)) - np.repeat(edges[:-1], np.diff(edges))
    return np.add.reduceat(factors[places] * (np.frombuffer(data, np.uint8) + np.uint64(1)), edges[:-1])


def row_of_id(place: Place, id: object) -> int | None:
    """The number of the row of ``id``, as the file at ``place`` says; None if it has none, or the file can't be read."""
    try:
        with RowIds(place) as ids:
            return ids.row(id)
    except InputError:
        return None
