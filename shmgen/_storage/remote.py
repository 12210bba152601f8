"""Remote files: a store gets one by a single request, and tries again what may pass.

A worker imports this module only if a source is remote.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from random import SystemRandom
from typing import Any, Protocol, TypeVar

from shmgen._checks import check_int
from shmgen._sources.npy_format import LONGEST, Header, read_header, require_data
from shmgen.errors import FormatError, InputError

T = TypeVar("T")

TRIES = 8
"""How often something that may pass is tried."""

FIRST_TRIES = 4
"""The same while a loader is made: whoever waits for it may have mistyped the URL."""

FIRST_WAIT, MAX_WAIT = 0.1, 10.0
"""Seconds before the second try, after which they double; and the most before any."""

MAX_ASKED_WAIT = 60.0
"""Seconds that a server may ask to be left alone for."""

NO_PARTS = (
    "expected a part of the file, found the whole: the server gives nothing else; download the file, and pass its path, or write "
    "a file for each sample"
)

EXTRA = "pip install 'shmgen[remote]'"

_dice = SystemRandom()  # the user's generators are the user's


class Transient(Exception):
    """What may pass, and is tried again.

    Args:
        found: what was found in place of the file.
        wait: seconds that the server asks for.
    """

    def __init__(self, found: str, wait: float = 0.0) -> None:
        super().__init__(found)
        self.wait = wait


class Body(Protocol):
    """What a request is answered with.

    Attributes:
        total: bytes of the whole file; None if not known.
        version: anything that is different once the file has been replaced; None if not known.
        is_whole: whether it is the whole file, though a part was asked for.
    """

    total: int | None
    version: object
    is_whole: bool

    def readinto(self, data: bytearray | memoryview) -> int:
        """Fill ``data``, and return how many bytes that were: fewer only where the answer ends."""

    def read(self, most: int) -> bytes:
        """The next bytes; fewer than ``most`` only where the answer ends."""


class Store:
    """Where files are, under one URL. Each reader has its own copy, and with it its own connection.

    Args:
        url: of the folder that names are in, or of a file.

    Attributes:
        tries: how often something that may pass is tried.
    """

    def __init__(self, url: str) -> None:
        self.root = url
        self.tries = TRIES

    def get(self, name: str, take: Callable[[Body], T], start: int = 0, stop: int | None = None) -> T:
        """What ``take`` makes of a file's bytes.

        Args:
            name: of the file in the folder; empty for the URL itself.
            take: is given the answer, of which it may read as much as it needs. It is called again where the answer broke off.
            start: the first byte to get.
            stop: one past the last; None for the end of the file.

        Raises:
            FormatError: it can't be had; the text says what was answered, and how often it was tried.
        """
        begun = time.monotonic()
        wait = FIRST_WAIT
        for tries in range(1, self.tries + 1):
            try:
                return self._get(name, take, start, stop)
            except Transient as error:
                if tries == self.tries:
                    seconds = time.monotonic() - begun
                    raise FormatError(f"expected the file, found {error}; tried {tries} times in {seconds:.1f} s") from None
                # Readers that failed together should not come back together.
                time.sleep(max(error.wait, _dice.uniform(wait / 2, wait)))
                wait = min(2 * wait, MAX_WAIT)
        raise AssertionError

    def _get(self, name: str, take: Callable[[Body], T], start: int, stop: int | None) -> T:
        """As `get`, once.

        Raises:
            Transient: it may be different the next time.
        """
        raise NotImplementedError

    def place(self, name: str) -> str:
        """The file's URL, for errors: without what is secret."""
        raise NotImplementedError

    def for_reader(self) -> Store:
        """A copy with a connection of its own."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Find out what all readers need, once, in the main process: credentials for instance.

        Raises:
            InputError: that can't be done.
        """

    def names(self) -> Iterator[str]:
        """All ``.npy`` files, by their paths from the folder.

        Raises:
            InputError: they can't be listed.
        """
        raise InputError(
            f"{self.root}: expected a folder that can be listed, found one that can't be; give the ids, with --ids FILE"
        )

    def close(self) -> None:
        """Let go of the connection; the next request makes another."""


def is_url(place: object) -> bool:
    """Whether ``place`` is the URL of something that is not a file of this machine."""
    return isinstance(place, str) and re.match(r"[a-z][a-z0-9+.-]*(::.*)?://", place) is not None


def store_of(url: str, options: Mapping[str, Any] | None) -> Store:
    """The store for what lies at ``url``.

    Args:
        url: ``http://``, ``https://``, ``s3://``, or any that fsspec knows.
        options: for the server: of http and https, ``headers`` and ``timeout``; for others what fsspec takes.
    """
    options = dict(options or {})
    scheme = url.partition("://")[0]
    if scheme in ("http", "https"):
        from shmgen._storage.http_store import HttpStore

        return HttpStore(url, **checked(options, {"headers": Mapping, "timeout": (int, float)}, scheme))
    from shmgen._storage.s3_store import S3Store

    if scheme in ("s3", "s3a"):
        if S3Store.takes(options):
            return S3Store(url, options)
        options.setdefault("max_concurrency", 1)  # else s3fs asks for the size of each object first
    from shmgen._storage.fsspec_store import FsspecStore

    return FsspecStore(url, options)


def checked(options: dict[str, Any], known: Mapping[str, Any], scheme: str) -> dict[str, Any]:
    """``options`` if all are known, and of the right types."""
    for name, value in options.items():
        if name not in known:
            raise InputError(f"storage_options: expected {' or '.join(map(repr, known))} for {scheme}, found {name!r}")
        if not isinstance(value, known[name]):
            raise InputError(f"storage_options: {name!r}: found {value!r}")
    return options


class Remote:
    """What a source of remote files reads from: a store, and what is kept of it on a local disk.

    Args:
        url: of a folder, or of a file.
        options: for the server; see `store_of`.
        folder: where files are kept; None for nowhere.
        most: how many bytes are kept, at most; None for as many as there is room for.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None, folder: Any, most: int | None) -> None:
        self.store = store_of(url, options)
        if folder is None and most is not None:
            raise InputError("cache_bytes: expected with cache, the folder to keep files in")
        self.cache = None
        if folder is not None:
            from shmgen._storage.cache import Cache

            self.cache = Cache(folder, None if most is None else check_int(most, "cache_bytes", 1))

    def for_reader(self) -> Remote:
        """A copy with a connection of its own."""
        other = copy(self)
        other.store = self.store.for_reader()
        other.store.tries = TRIES
        return other

    def prepare(self) -> None:
        """Get ready, once, in the main process."""
        self.store.prepare()
        self.store.tries = FIRST_TRIES
        if self.cache is not None:
            self.cache.prepare()

    def header(self, name: str, *, in_parts: bool = False) -> tuple[Header, bytes, object]:
        """The header of an ``.npy`` file, its bytes, and the version of the file, of which no more is read.

        Args:
            name: as for `Store.get`.
            in_parts: whether parts of the file will be asked for, as here for its first one.

        Raises:
            FormatError: it can't be had, or is none, or the file is not as long as it says.
        """

        def take(body: Body) -> tuple[Header, bytes, object]:
            if in_parts and body.is_whole and (body.total is None or body.total > LONGEST):
                raise FormatError(NO_PARTS)
            header, raw = read_header(memoryview(body.read(LONGEST)))
            if body.total is not None:
                require_data(body.total, header.size + header.data_bytes)
            return header, raw, body.version

        return self.store.get(name, take, 0, LONGEST if in_parts else None)


def remote(place: object, options: Mapping[str, Any] | None, cache: Any, cache_bytes: int | None) -> Remote | None:
    """What a source at ``place`` reads from if that is a URL; else None.

    Raises:
        InputError: an argument is of no use.
    """
    if is_url(place):
        return Remote(str(place), options, cache, cache_bytes)
    for name, value in (("storage_options", options), ("cache", cache), ("cache_bytes", cache_bytes)):
        if value is not None:
            raise InputError(f"{name}: expected with a URL, such as 's3://bucket/folder', found with {place!r}")
    return None
