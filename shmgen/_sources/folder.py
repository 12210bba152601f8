"""Files of a folder, one a sample, on a disk or behind a URL."""

from __future__ import annotations

import errno
import os
from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from shmgen._samples.npy_format import OPEN_FLAGS, explain
from shmgen._sources.base import BuiltinSource, Reader, row_of
from shmgen._storage.local import again
from shmgen.errors import FormatError, SampleError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shmgen._samples.files import FileKind
    from shmgen._storage.remote import Remote

T = TypeVar("T")

FOUND_BY_SCAN = errno.ENOENT, errno.EACCES, errno.EIO
"""Errors of paths, permissions and disks, which other files are likely to have too."""

SCAN = "; `python -m shmgen scan` finds all such files: repair them, or leave their ids out"


class Files:
    """Where the files of samples are: ``<folder>/<id><suffix>``; or, if the folder is None, ``<id><suffix>``: ids are paths."""

    kind: FileKind | None = None  # where other suffixes fit too

    def __init__(self, folder: str | os.PathLike[str] | Remote | None, suffix: str) -> None:
        from shmgen._storage.remote import local_or_remote

        self.folder, self.remote = local_or_remote(folder or "")
        self.suffix = suffix
        self.ids_are_paths = folder is None

    def path(self, id: object) -> str:
        """The file of sample ``id``: its path, or its URL."""
        return self.place(self.name(id))

    def place(self, name: str) -> str:
        """The path of a file in the folder, or its URL."""
        return os.path.join(self.folder, name) if self.remote is None else self.remote.store.place(name)

    def name(self, id: object) -> str:
        """The file of ``id``, as a path from the folder."""
        name = str(id)
        return name if self.ids_are_paths and name.endswith(self.suffix) else name + self.suffix

    def prepare(self, ids: Sequence[object], source: str) -> None:
        """Refuse ids that lead out of the folder of this ``source``, and get ready for the first request."""
        from shmgen._samples.ids import as_ints, refuse_ways_out  # late: workers don't need it

        if not self.ids_are_paths and as_ints(ids) is None:  # the text of an int leads nowhere
            none = "data_dir=None, or Npy(None)," if source == "Npy" else f"{source}(None)"
            remedy = f"pass {none} where ids are meant as paths" if self.remote is None else "pass the URL of a folder above it"
            refuse_ways_out(ids, self.folder, remedy)
        if self.remote is not None:
            self.remote.prepare()

    def disconnect(self) -> None:
        """Close the connections that the main process had."""
        if self.remote is not None:
            self.remote.store.close()

    def unreadable_first(self, id: object, error: Exception) -> SampleError:
        """The error for a first sample that can't be read, with a guess at what was meant by an id without a file."""
        if not isinstance(error, FileNotFoundError):
            return self.unreadable(id, error)
        from shmgen._samples.files import FileKind
        from shmgen._samples.remedies import for_missing_file

        kind = self.kind or FileKind((self.suffix,), f"{self.suffix} files")
        remedy = for_missing_file(id, self.path, None if self.ids_are_paths else self.folder, kind)
        return SampleError(id, path := self.path(id), explain(error, path) + remedy)

    def unreadable(self, id: object, error: Exception) -> SampleError:
        """The error for a sample that can't be read, with its remedy."""
        path = self.path(id)
        has_scan = isinstance(error, FormatError) or getattr(error, "errno", None) in FOUND_BY_SCAN
        return SampleError(id, path, explain(error, path) + (SCAN if has_scan and self.remote is None else ""))

    def read(self, id: object, take: Callable[[int | bytes], T]) -> T:
        """What ``take`` makes of sample ``id``'s file: of a descriptor, or of all its bytes. What it refuses is not cached."""
        name = self.name(id)
        if self.remote is not None:
            return self.remote.load(name, take)
        # An ordinary open of a FIFO would wait for ever.
        fd = os.open(os.path.join(self.folder, name), OPEN_FLAGS | os.O_NONBLOCK)
        try:
            return take(fd)
        finally:
            os.close(fd)

    def load(self, id: object, parse: Callable[[bytes], T]) -> T:
        """As `read`; ``parse`` gets all bytes of the file."""
        return self.read(id, lambda file: parse(_all_of(file) if isinstance(file, int) else file))


class FolderSource(BuiltinSource):
    """The files ``<folder>/<id><suffix>``, one a sample."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.folder = files.folder

    def bind(self, ids: Sequence[object], *, field: str = "X", varies: bool = False) -> Any:
        """As `Source.bind`. The first file is read: it says what was left out, and whether the folder is the right one."""
        files, first = copy(self.files), ids[0]
        files.prepare(ids, type(self).__name__)
        try:
            return again(lambda: self._reader(files, first, varies))
        except FileReader.damage as error:
            raise files.unreadable_first(first, error) from None
        finally:
            files.disconnect()

    def _reader(self, files: Files, first: object, varies: bool) -> FileReader:
        """What reads these files. `OSError`, `ValueError` and `FormatError` are damage of the first."""
        raise NotImplementedError


class FileReader(Reader):
    """Reads files. Errors of a mount that may pass are tried again; any other is damage of the sample that was being read."""

    concurrent = True
    damage: ClassVar[tuple[type[Exception], ...]] = (OSError, ValueError, FormatError)
    """What reading a damaged file may raise."""

    def fill(self, keys: Sequence[Any], rows: Any, begun: Any, *, io_waits: bool = False) -> list[int] | None:
        """As `Reader.fill`. A sample that can't be read is a `SampleError`, which names the file."""
        try:
            return again(lambda: self._fill(keys, rows, begun, io_waits), self._forget)
        except self.damage as error:
            raise self._damaged(keys[row_of(begun[0]) or 0], error) from None

    def read(self, key: Any, row: Any, rng: object = None) -> Any:
        try:
            return again(lambda: self._read(key, row), self._forget)
        except self.damage as error:
            raise self._damaged(key, error) from None

    def _fill(self, keys: Sequence[Any], rows: Any, begun: Any, io_waits: bool) -> list[int] | None:
        raise NotImplementedError

    def _read(self, key: Any, row: Any) -> Any:
        raise NotImplementedError

    def _forget(self) -> None:
        """Close what is open."""

    def _damaged(self, key: Any, error: Exception) -> SampleError:
        raise NotImplementedError


class FolderReader(FileReader):
    def __init__(self, files: Files) -> None:
        self.files = files

    def place(self, id: object) -> str:
        return self.files.path(id)

    def _damaged(self, key: Any, error: Exception) -> SampleError:
        return self.files.unreadable(key, error)


def _all_of(fd: int) -> bytes:
    """All bytes of an open file."""
    with open(fd, "rb", buffering=0, closefd=False) as file:
        return file.readall() or b""
