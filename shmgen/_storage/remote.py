"""Remote files: a store fetches them, and a cache keeps copies. Workers import this module only if a source is remote."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from shmgen._checks import check_int
from shmgen._urls import is_url, shown
from shmgen.errors import InputError

if TYPE_CHECKING:
    from shmgen._storage.store import Store

T = TypeVar("T")


class Remote:
    """Files behind a URL: a folder of them, or one. A source takes it in place of a path, as it takes the URL itself.

    Args:
        url: ``https://host/folder``, ``s3://bucket/folder``, or any other that fsspec knows, such as ``gs://``. A query, after a
            ``?``, is sent with every request.
        cache: a folder on a local disk; in it, ``shmgen-cache`` has copies of files, or of rows of one. Any number of loaders
            and processes may share it. Remote files are assumed never to change.
        cache_bytes: the most bytes of the copies; those that were not used for the longest time are removed first.
        options: of the requests. For https: ``headers``, a mapping, which are not sent to other hosts, and ``timeout``, in
            seconds without a byte. For s3: ``key``, ``secret`` and ``token``, or ``anon`` for a public bucket, or a ``profile``
            (by default the credentials that AWS's own tools find), ``endpoint_url``, ``region``, ``requester_pays``,
            ``timeout``. For others, what their file systems take.

    Raises:
        InputError: the URL or an option is wrong.

    Examples:
        >>> files = Remote("s3://bucket/data", cache="/scratch/cache", cache_bytes=200 * 10**9, options={"anon": True})
        >>> files
        Remote('s3://bucket/data')
        >>> source = Npy(files)
    """

    def __init__(
        self,
        url: str,
        *,
        cache: str | os.PathLike[str] | None = None,
        cache_bytes: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if not is_url(url):
            raise InputError(f"expected a URL, such as 's3://bucket/folder', found {shown(url)!r}")
        self.store = _store(url, dict(options or {}))
        if cache is None and cache_bytes is not None:
            raise InputError("cache_bytes: expected with cache, the folder to keep files in")
        self._cache = None
        if cache is not None:
            from shmgen._storage.cache import Cache

            self._cache = Cache(cache, None if cache_bytes is None else check_int(cache_bytes, "cache_bytes", 1))

    def __repr__(self) -> str:
        return f"Remote({self.store.place('')!r})"

    def prepare(self) -> None:
        """Get ready, once, in the main process. Missing credentials, or a cache that can't be used, are an InputError."""
        self.store.prepare()
        if self._cache is not None:
            self._cache.prepare()

    def load(self, name: str, read: Callable[[int | bytes], T], most: int = sys.maxsize) -> T:
        """What ``read`` makes of a file: of a descriptor of its cached copy, or of its first ``most`` bytes, which are cached."""
        found: list[T] = []
        if not self.read_kept(name, lambda fd: found.append(read(fd))):
            data = self.store.get(name, lambda body: body.read(most))
            found.append(read(data))
            self.keep(name, data)
        return found[0]

    def read_kept(self, name: str, read: Callable[[int], object], part: object = "") -> bool:
        """Call ``read`` with a descriptor of the cached copy of a file, or of a part of it; False if it has no good one."""
        return self._cache is not None and self._cache.read(self._key(name, part), read)

    def keep(self, name: str, data: bytes | memoryview, part: object = "") -> None:
        """Add a file, or a part of it, to the cache, if there is one."""
        if self._cache is not None:
            self._cache.keep(self._key(name, part), data)

    def _key(self, name: str, part: object) -> str:
        return f"{self.store.key(name)} {part}"


class Place(NamedTuple):
    """Where files are, or one: the absolute path, or the URL without secrets and what fetches the files."""

    path: str
    remote: Remote | None


def local_or_remote(place: str | os.PathLike[str] | Remote) -> Place:
    if is_url(place):
        place = Remote(str(place))
    if isinstance(place, Remote):
        return Place(place.store.place(""), place)
    return Place(os.path.abspath(place), None)


def _store(url: str, options: dict[str, Any]) -> Store:
    scheme = url.partition("://")[0].lower()
    if scheme in ("http", "https"):
        from shmgen._storage.http_store import HttpStore

        _check(options, HttpStore, scheme)
        return HttpStore(url, **options)
    if scheme in ("s3", "s3a"):
        from shmgen._storage.s3_store import S3Store

        _check(options, S3Store, scheme)
        return S3Store(url, **options)
    from shmgen._storage.fsspec_store import FsspecStore

    return FsspecStore(url, options)


def _check(options: dict[str, Any], store: type[Store], scheme: str) -> None:
    from inspect import signature  # late: workers don't need it

    known = list(signature(store).parameters)[1:]
    types: dict[str, Any] = {"headers": Mapping, "timeout": (int, float), "anon": bool, "requester_pays": bool}
    for name, value in options.items():
        if name not in known:
            raise InputError(f"options: expected {', '.join(map(repr, known))} for {scheme}, found {name!r}")
        kind = types.get(name, str)
        if not isinstance(value, kind) or (name == "timeout" and not 0 < value < inf):
            expected = "seconds" if name == "timeout" else "True or False" if kind is bool else f"a {kind.__name__}"
            raise InputError(f"options: {name!r}: expected {expected}, found {type(value).__name__}")
