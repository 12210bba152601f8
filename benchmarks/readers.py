"""From files to a batch, where that is left to the user of a loader: the fastest way there is."""

from __future__ import annotations

import http.client
import os
import threading
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

import numpy as np

from benchmarks.cases import Case

_local = threading.local()


class _Connection(http.client.HTTPConnection):
    """Closed once its thread has ended."""

    def __del__(self) -> None:
        self.close()


class Reader:
    """The files of a data set by number.

    Args:
        case: whose files they are.
    """

    def __init__(self, case: Case) -> None:
        self.paths = [case.path(id) for id in case.ids]
        self.labels = np.array([case.labels[id] for id in case.ids])
        self.shape = case.shape
        self.dtype = case.dtype
        self.header = case.header_bytes
        """Bytes of every file in front of its sample."""
        self.opens_files = not case.url
        """Whether a file is opened and read whole, without Python's doing more."""
        self._read: Callable[[str, bytearray, np.ndarray], None] = _request if case.url else _preadv

    def batch(self, numbers: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
        """In memory of its own."""
        numbers = np.asarray(numbers)
        X = np.empty((len(numbers), *self.shape), self.dtype)
        return X, self.fill(X, numbers)

    def fill(self, X: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Read samples into ``X`` and return their labels."""
        header = bytearray(self.header)
        for row, number in zip(X, numbers, strict=True):
            self._read(self.paths[number], header, row)
        return self.labels[numbers]

    def sample(self, path: bytes) -> np.ndarray:
        """One, in memory of its own."""
        row = np.empty(self.shape, self.dtype)
        self._read(path.decode(), bytearray(self.header), row)
        return row


def _preadv(path: str, header: bytearray, row: np.ndarray) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    os.preadv(fd, (header, row.data.cast("B")), 0)
    os.close(fd)


def request(url: str, *parts: bytearray | memoryview) -> None:
    """Into ``parts``, over a connection of this thread that is kept.

    Raises:
        OSError: the answer is another, or shorter.
    """
    where = urlsplit(url)
    connections = vars(_local).setdefault("connections", {})
    connection = connections.get(where.netloc) or connections.setdefault(where.netloc, _Connection(where.netloc))
    connection.request("GET", where.path)
    with connection.getresponse() as response:
        if response.status != http.HTTPStatus.OK:
            raise OSError(f"expected {url}, found {response.status} {response.reason}")
        for part in parts:
            view = memoryview(part)
            while view:
                count = response.readinto(view)
                if not count:
                    raise OSError(f"expected {len(view)} bytes more of {url}, found its end")
                view = view[count:]


def _request(url: str, header: bytearray, row: np.ndarray) -> None:
    request(url, header, row.data.cast("B"))
