"""Files of any file system that fsspec knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import copy
from typing import Any, TypeVar

from shmgen._storage.remote import EXTRA, Store, Transient
from shmgen.errors import FormatError, InputError

T = TypeVar("T")


class Bytes:
    """A body that is all there; see `Body`."""

    def __init__(self, data: bytes, total: int | None = None) -> None:
        self._data = memoryview(data)
        self.total = total
        self.version: object = None
        self.is_whole = False

    def readinto(self, data: bytearray | memoryview) -> int:
        part = self.read(len(data))
        data[: len(part)] = part
        return len(part)

    def read(self, most: int) -> bytes:
        part, self._data = self._data[:most], self._data[most:]
        return bytes(part)


class FsspecStore(Store):
    """Files of a file system that fsspec knows.

    Args:
        url: of the folder, or of a file.
        options: of the file system.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        super().__init__(url)
        self._options = dict(options)
        self._opened: tuple[Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": None}

    def for_reader(self) -> FsspecStore:
        self.open()
        return copy(self)  # fsspec's file systems are for all threads

    def place(self, name: str) -> str:
        if not name:
            return self.root
        inner, chain, rest = self.root.partition("::")  # zip://folder::https://host/archive.zip
        return f"{inner.rstrip('/')}/{name}{chain}{rest}"

    def prepare(self) -> None:
        self.open()

    def open(self) -> tuple[Any, str]:
        """The file system, and the path in it.

        Raises:
            InputError: a package is missing, or an option is wrong.
        """
        if self._opened is None:
            try:
                from fsspec.core import url_to_fs
            except ImportError:
                raise InputError(f"{self.root} needs fsspec: {EXTRA}") from None
            try:
                self._opened = url_to_fs(self.root, **self._options)
            except Exception as error:
                raise InputError(f"{self.root}: {type(error).__name__}: {error}") from None
        return self._opened

    def _get(self, name: str, take: Callable[[Any], T], start: int, stop: int | None) -> T:
        system, root = self.open()
        path = f"{root.rstrip('/')}/{name}" if name else root
        try:
            total = system.info(path)["size"] if start == 0 and stop is not None else None  # only while a loader is made
            data = system.cat_file(path, start=start or None, end=stop if total is None else min(stop or total, total))
        except (FileNotFoundError, IsADirectoryError, KeyError, PermissionError, NotImplementedError) as error:
            raise FormatError(f"expected the file, found: {type(error).__name__}: {error}") from None
        except Exception as error:  # each file system has its own
            raise Transient(f"{type(error).__name__}: {error}") from None
        return take(Bytes(data, len(data) if stop is None else total))

    def names(self) -> Iterator[str]:
        system, root = self.open()
        try:
            found = system.find(root)
        except Exception as error:
            raise InputError(
                f"{self.root}: expected a folder that can be listed, found: {type(error).__name__}: {error}"
            ) from None
        prefix = root.rstrip("/") + "/"
        yield from (path.removeprefix(prefix) for path in found if path.endswith(".npy"))
