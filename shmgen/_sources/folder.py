"""Sources of a folder that has one file a sample, on a disk or behind a URL.

A worker imports this module, so NumPy is imported only in the main process.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from shmgen._sources.base import Source
from shmgen._sources.npy_format import OPEN_FLAGS, explain
from shmgen.errors import FormatError, SampleError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from shmgen._samples.suggest import FileKind

T = TypeVar("T")


class FolderSource(Source):
    """The files ``<folder>/<id><suffix>``, one a sample.

    Args:
        folder: where the files are, or its URL; None where ids are paths, with or without the suffix.
        storage_options: of a URL; see `Npy`.
        cache: of a URL: a folder on a local disk, in which files are kept.
        cache_bytes: that files take there, at most.

    Attributes:
        folder: as it is if it is a URL; else as an absolute path, so that a later change of directory does no harm.
        suffix: of the files' names.
    """

    suffix = ".npy"
    concurrent = True

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        storage_options: Mapping[str, Any] | None,
        cache: str | os.PathLike[str] | None,
        cache_bytes: int | None,
    ) -> None:
        from shmgen._storage.remote import remote

        self._remote = remote(folder, storage_options, cache, cache_bytes)
        self.folder = os.path.abspath(folder or "") if self._remote is None else str(folder)
        self._ids_are_paths = folder is None

    def open(self) -> None:
        if self._remote is not None:
            self._remote = self._remote.for_reader()

    def path(self, id: object) -> str:
        """The file of sample ``id``: its path, or its URL."""
        if self._remote is not None:
            return self._remote.store.place(*self._names([id]))
        return os.path.join(self.folder, *self._names([id]))

    def place(self, id: object) -> str:
        return self.path(id)

    def _names(self, ids: Sequence[object]) -> list[str]:
        """The files of ``ids``, as paths from the folder."""
        suffix = self.suffix
        if self._ids_are_paths:
            return [path if path.endswith(suffix) else f"{path}{suffix}" for path in map(str, ids)]
        return [f"{id}{suffix}" for id in ids]

    def _prepare(self, ids: Sequence[object]) -> None:
        """Refuse ids that lead out of the folder, and get ready for the first request.

        Raises:
            InputError: an id leads out of the folder, or nothing can be asked for.
        """
        from shmgen._samples.ids import as_ints, refuse_ways_out  # late: workers don't need it

        if not self._ids_are_paths and as_ints(ids) is None:  # the text of an int leads nowhere
            name = type(self).__name__
            refuse_ways_out(ids, self.folder, "data_dir=None, or Npy(None)" if name == "Npy" else f"{name}(None)")
        if self._remote is not None:
            self._remote.prepare()

    def _settle(self) -> None:
        """Let go of the connection that the main process had."""
        if self._remote is not None:
            self._remote.store.close()

    def _unreadable_first(self, id: object, error: Exception) -> SampleError:
        """What to raise where the first sample can't be read: with a guess at what was meant."""
        if not isinstance(error, FileNotFoundError):
            return self._unreadable(id, error)
        return SampleError(id, self.path(id), explain(error) + self._meant(id))

    def _unreadable(self, id: object, error: Exception) -> SampleError:
        """What to raise where a sample can't be read: with what to do."""
        path, remedy = self.path(id), ""
        with suppress(OSError):  # this process can open no more files
            from shmgen._samples.remedies import for_unreadable_file

            folder = None if self._ids_are_paths else self.folder
            remedy = for_unreadable_file(error, path, folder, self._scan_options())
        return SampleError(id, path, explain(error) + remedy)

    def _scan_options(self) -> list[str] | None:
        """With which options ``shmgen scan`` finds the files that this can't read; None if it does not know such files."""
        return None

    def _meant(self, id: object) -> str:
        """A guess at what was meant by an id whose file is not there."""
        if self._ids_are_paths and "://" in str(id):
            return "; ids are no URLs: pass the URL of the folder as data_dir, and what follows it as ids"
        from shmgen._samples.suggest import for_missing_file

        return for_missing_file(id, self.path, None if self._ids_are_paths else self.folder, self._kind())

    def _kind(self) -> FileKind:
        """What files there should be, for errors."""
        from shmgen._samples.suggest import FileKind

        return FileKind((self.suffix,), f"{self.suffix} files")

    def _load(self, id: object, parse: Callable[[bytes], T], *, may_wait: bool = True) -> T:
        """What ``parse`` makes of the file of sample ``id``. A file is kept in the cache only if it can be parsed.

        Args:
            id: of the sample.
            parse: is given all bytes of the file.
            may_wait: whether a file may be waited for that does not answer at once, as a FIFO does.

        Raises:
            OSError: it can't be read.
            FormatError: it can't be had from where it is.
        """
        [name] = self._names([id])
        if self._remote is None:
            fd = os.open(os.path.join(self.folder, name), OPEN_FLAGS if may_wait else OPEN_FLAGS | os.O_NONBLOCK)
            try:
                return parse(_all_of(fd))
            finally:
                os.close(fd)
        store, cache = self._remote.store, self._remote.cache
        found: list[T] = []

        def parse_kept(fd: int) -> None:
            try:
                found.append(parse(_all_of(fd)))
            except MemoryError:
                raise
            except Exception as error:  # whatever it is that tells a damaged file: it is removed, and got again
                raise FormatError(str(error)) from error

        if cache is None or not cache.read(store.place(name), parse_kept):
            data = store.get(name, lambda body: body.read(sys.maxsize))
            found.append(parse(data))
            if cache is not None:
                cache.keep(store.place(name), data)
        return found[0]


def _all_of(fd: int) -> bytes:
    """All bytes of an open file."""
    with open(fd, "rb", buffering=0, closefd=False) as file:
        return file.readall() or b""
