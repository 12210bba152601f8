"""Reads files into batches in the fastest way there is, for peers that leave reading to their users."""

from __future__ import annotations

import http.client
import os
import threading
from collections.abc import Iterable
from urllib.parse import urlsplit

import numpy as np

from benchmarks.cases import Case

_local = threading.local()


class _Connection(http.client.HTTPConnection):
    """A connection that closes when its thread ends."""

    def __del__(self) -> None:
        self.close()


class Reader:
    """Reads the files of a data set by number."""

    def __init__(self, case: Case) -> None:
        self.paths = [case.path(id) for id in case.ids]
        self.labels = np.array([case.labels[id] for id in case.ids])
        self.shape = case.shape
        self.dtype = case.dtype
        self.header = case.header_bytes
        """Size of a file's header."""
        self.opens_files = not case.url
        """Whether samples are files, not URLs."""
        self._read = request if case.url else read_file

    def batch(self, numbers: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
        """Read samples and their labels into a new batch."""
        numbers = np.asarray(numbers)
        X = np.empty((len(numbers), *self.shape), self.dtype)
        return X, self.fill(X, numbers)

    def fill(self, X: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Read samples into ``X`` and return their labels."""
        header = bytearray(self.header)
        for row, number in zip(X, numbers, strict=True):
            self._read(self.paths[number], header, row.data.cast("B"))
        return self.labels[numbers]

    def sample(self, path: bytes) -> np.ndarray:
        """Read one sample into a new array."""
        row = np.empty(self.shape, self.dtype)
        self._read(path.decode(), bytearray(self.header), row.data.cast("B"))
        return row


def read_file(path: str, *parts: bytearray | memoryview) -> None:
    """Read a file into ``parts``."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    os.preadv(fd, parts, 0)
    os.close(fd)


def request(url: str, *parts: bytearray | memoryview) -> None:
    """Request a URL into ``parts``, over a connection that this thread keeps open.

    Raises:
        OSError: the response has another status than 200, or is too short.
    """
    where = urlsplit(url)
    connections = vars(_local).setdefault("connections", {})
    connection = connections.get(where.netloc) or connections.setdefault(where.netloc, _Connection(where.netloc))
    connection.request("GET", where.path)
    with connection.getresponse() as response:
        if response.status != http.HTTPStatus.OK:
            raise OSError(f"{url}: expected status 200, found {response.status} {response.reason}")
        for part in parts:
            view = memoryview(part)
            while view:
                count = response.readinto(view)
                if not count:
                    raise OSError(f"{url}: expected {len(view)} more bytes, found the end")
                view = view[count:]
