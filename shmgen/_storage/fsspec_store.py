"""Files behind any other URL that fsspec knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from typing import Any

from shmgen._storage.store import EXTRA, Body, Store, T, Transient
from shmgen._urls import shown, shown_in
from shmgen.errors import FormatError, InputError


class FsspecStore(Store):
    """Files of a file system that fsspec knows; the options are what it takes."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._url = url
        self._options = dict(options)
        self._opened: tuple[Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": None}

    def place(self, name: str) -> str:
        return shown(self._at(name))

    def key(self, name: str) -> str:
        return f"{self._at(name)} {sorted(self._options.items())}"

    def _at(self, name: str) -> str:
        if not name:
            return self._url
        inner, chain, rest = self._url.partition("::")  # zip://folder::https://host/archive.zip
        return f"{inner.rstrip('/')}/{name}{chain}{rest}"

    def prepare(self) -> None:
        self._open()

    def _open(self) -> tuple[Any, str]:
        """The file system, and the path in it. A missing package or a wrong option is an InputError."""
        if self._opened is None:
            try:
                from fsspec.core import url_to_fs
            except ImportError:
                raise InputError(f"{self.place('')} needs fsspec: {EXTRA}") from None
            try:
                self._opened = url_to_fs(self._url, **self._options)
            except Exception as error:
                raise InputError(f"{self.place('')}: {self._said(error)}") from None
        return self._opened

    def _said(self, error: Exception) -> str:
        return f"{type(error).__name__}: {shown_in(str(error).replace(self._url, self.place('')))}"

    def _get(self, name: str, take: Callable[[Body], T], start: int, stop: int | None, patience: float) -> T:
        system, root = self._open()
        path = f"{root.rstrip('/')}/{name}" if name else root
        try:
            # The size is requested only when a loader is made.
            total = system.info(path)["size"] if start == 0 and stop is not None else None
            data = system.cat_file(path, start=start or None, end=stop if total is None else min(stop or total, total))
        except (FileNotFoundError, IsADirectoryError, KeyError, PermissionError, NotImplementedError) as error:
            raise FormatError(f"expected the file, found: {self._said(error)}") from None
        except Exception as error:  # each file system raises exceptions of its own
            raise Transient(self._said(error)) from None
        return take(Body(BytesIO(data), len(data) if stop is None else total))

    def names(self) -> Iterator[str]:
        system, root = self._open()
        try:
            found = system.find(root)
        except Exception as error:
            raise InputError(f"{self.place('')}: expected a folder that can be listed, found: {self._said(error)}") from None
        prefix = root.rstrip("/") + "/"
        yield from (path.removeprefix(prefix) for path in found if path.endswith(".npy"))
