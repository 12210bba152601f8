"""What a worker of a scan does with files behind a URL: one request each, many in flight."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

from shmgen._sources.npy_format import LONGEST, require_data
from shmgen._storage.remote import Remote
from shmgen._storage.store import Body
from shmgen._tools.scan_worker import Format, NotFinite, Tally, pack, read_format
from shmgen.errors import FormatError

READS = 16
"""Requests of a worker in flight."""

START = 512
"""Bytes that are got of a file to see its header; nearly all headers are shorter."""


class RemoteExaminer:
    """Looks at files behind a URL; see `Examiner`.

    Args:
        store: where they are.
        full: whether to get all data.
    """

    def __init__(self, store: Remote, *, full: bool) -> None:
        self._store = store
        self._full = full
        self._pool = ThreadPoolExecutor(READS)

    def examine(self, ids: list[bytes]) -> Tally:
        """Look at the files of ``ids``."""
        begun = time.monotonic()
        sound: dict[Format, list[bytes]] = {}
        damaged = []
        read = 0
        for id, found in zip(ids, self._pool.map(self._look_at, ids), strict=True):
            if isinstance(found, str):
                damaged.append((id, found))
            else:
                sound.setdefault(found, []).append(id)
                read += found.data_bytes * self._full
        kinds = [
            (format.shape, format.descr, len(held), len(held) * (len(format.raw) + format.data_bytes), pack(held))
            for format, held in sound.items()
        ]
        return Tally(len(ids), time.monotonic() - begun, read, kinds, damaged)

    def _look_at(self, id: bytes) -> Format | str:
        """The format of a file; or what is wrong with it."""
        store = self._store
        name = f"{os.fsdecode(id)}.npy"
        try:
            if self._full:
                return store.get(name, _whole)
            start, total = store.get(name, _start, 0, START)
            try:
                format = read_format(memoryview(start))
            except FormatError:
                if len(start) < START:
                    raise
                start, total = store.get(name, _start, 0, LONGEST)
                format = read_format(memoryview(start))
            if total is not None:
                require_data(total, len(format.raw) + format.data_bytes)
        except FormatError as error:
            return str(error)
        return format


def _start(body: Body) -> tuple[bytes, int | None]:
    return body.read(LONGEST), body.total


def _whole(body: Body) -> Format:
    """Read a file to its end."""
    start = body.read(LONGEST)
    format = read_format(memoryview(start))
    size = len(format.raw) + format.data_bytes
    data = memoryview(start + body.read(size - len(start)))
    require_data(len(data), size)
    if format.inexact:
        found = NotFinite(format)
        found.look(data[len(format.raw) : size])
        found.check()
    return format
