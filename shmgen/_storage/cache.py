"""A folder on a local disk that keeps what was got from afar, up to a number of bytes; for any number of processes at once.

A file is written under a temporary name and then renamed: no process reads a part of it, whenever another is killed. The kernel
drops the locks of a process that ends. A process that is stopped while it holds one only keeps others from adding to the cache:
they wait for `PATIENCE`, and go on. On a file system without locks, of two processes that add at once one may go uncounted until
files are next counted.

Layout of the folder::

    ab/cdef...     what is kept, named after the hash of its key; the time of modification is that of its last use
    new/...        what is being written
    bytes          how many bytes there may be, at most: what was written since files were last counted is added
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from itertools import count

from shmgen.errors import FormatError, InputError

log = logging.getLogger("shmgen")

COUNT = 8
"""Bytes of the number that says how many bytes are kept."""

PATIENCE = 0.1
"""Seconds to wait for another process to leave the count of bytes."""

ABANDONED = 3600.0
"""Seconds after which a file that is still being written is taken for that of a process which was killed."""

LEFT_AFTER_REMOVAL = 15 / 16
"""The part of the bytes that is left once files are removed, which takes a look at all of them."""

_one_at_a_time = threading.Lock()
_numbers = count()


class Cache:
    """Files that are kept in a folder.

    Args:
        folder: where; made if it is not there.
        most: how many bytes, at most; None for as many as the disk has room for.

    Attributes:
        folder: as an absolute path.
        most: how many bytes, at most.
    """

    def __init__(self, folder: str | os.PathLike[str], most: int | None) -> None:
        self.folder = os.path.abspath(folder)
        self.most = sys.maxsize if most is None else most

    def prepare(self) -> None:
        """Make the folder, remove what killed processes left in it, and count its bytes; once, in the main process.

        Raises:
            InputError: there can't be such a folder.
        """
        try:
            os.makedirs(f"{self.folder}/new", exist_ok=True)
            with suppress(FileNotFoundError):
                os.unlink(f"{self.folder}/full")  # what was said may be said again
            for path, status in _files(f"{self.folder}/new"):
                if time.time() - status.st_mtime > ABANDONED:
                    with suppress(FileNotFoundError):
                        os.unlink(path)
            with self._counted() as fd:
                if fd is not None and os.fstat(fd).st_size < COUNT:
                    self._remove(fd, 0)
        except OSError as error:
            raise InputError(
                f"cache {self.folder}: expected a folder that can be written to, found: {error.strerror} (errno {error.errno})"
            ) from None

    def read(self, key: str, read: Callable[[int], object]) -> bool:
        """Have ``read`` read what is kept of ``key``, from a descriptor; False if nothing is, or it was damaged, and removed."""
        path = self._path(key)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            with suppress(OSError):
                os.utime(fd)
            read(fd)
        except (OSError, FormatError):
            with suppress(OSError):
                os.unlink(path)
            return False
        finally:
            os.close(fd)
        return True

    def keep(self, key: str, data: bytes | memoryview) -> None:
        """Keep ``data``. If that can't be done, it is said once, and nothing is kept."""
        temporary = f"{self.folder}/new/{os.uname().nodename}-{os.getpid()}-{time.time_ns()}-{next(_numbers)}"
        path = self._path(key)
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                os.ftruncate(fd, len(data))  # so that it is counted
                if not self._has_room(len(data)):
                    return
                _write(fd, data)
            finally:
                os.close(fd)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.rename(temporary, path)
        except FileNotFoundError:
            pass  # this process was stopped for so long that another took the file for abandoned
        except OSError as error:
            self._say(len(data), error)
        finally:
            with suppress(OSError):
                os.unlink(temporary)

    def _path(self, key: str) -> str:
        name = sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:40]
        return f"{self.folder}/{name[:2]}/{name[2:]}"

    def _has_room(self, size: int) -> bool:
        """Whether a new file of ``size`` bytes may be kept: files that were not used for the longest time make room for it."""
        if size > self.most:
            raise OSError(errno.EFBIG, f"cache_bytes allows {self.most:,} bytes")
        with self._counted() as fd:
            if fd is None:
                return False
            number = os.pread(fd, COUNT, 0)
            total = int.from_bytes(number, "little") + size
            if len(number) == COUNT and total <= self.most:
                os.pwrite(fd, total.to_bytes(COUNT, "little"), 0)
                return True
            return self._remove(fd, size) <= self.most

    def _remove(self, fd: int, size: int) -> int:
        """Count all files, and remove the oldest if they are too many; returns the bytes that are left.

        Args:
            fd: of the count.
            size: of what is about to be kept, which is among the files being written.
        """
        # A file that is renamed meanwhile is counted twice, not left out.
        total = sum(status.st_size for _, status in _files(f"{self.folder}/new"))
        with os.scandir(self.folder) as entries:
            folders = [entry.path for entry in entries if len(entry.name) == 2]
        files = [(status.st_mtime_ns, status.st_size, path) for folder in folders for path, status in _files(folder)]
        total += sum(size for _, size, _ in files)
        if total > self.most:
            files.sort()
            enough = max(size, int(self.most * LEFT_AFTER_REMOVAL))
            for _, size_there, path in files:
                if total <= enough:
                    break
                with suppress(FileNotFoundError):
                    os.unlink(path)
                total -= size_there
        os.pwrite(fd, total.to_bytes(COUNT, "little"), 0)
        return total

    @contextmanager
    def _counted(self) -> Iterator[int | None]:
        """The descriptor of the count of bytes, locked; None if another process does not unlock it."""
        with _one_at_a_time:
            fd = os.open(f"{self.folder}/bytes", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                yield fd if _locked(fd) else None
            finally:
                os.close(fd)

    def _say(self, size: int, error: OSError) -> None:
        """Say that nothing is kept, if no process has said so since the cache was made ready."""
        try:
            os.close(os.open(f"{self.folder}/full", os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        except FileExistsError:
            return
        except OSError:
            pass  # rather twice than not at all
        log.warning(
            "cache %s: expected room for %s bytes, found: %s; samples are read all the same, and not kept: make room, or pass "
            "another cache or cache_bytes",
            self.folder,
            f"{size:,}",
            error.strerror,
        )


def _locked(fd: int) -> bool:
    """Whether a file could be locked within `PATIENCE`, or can't be at all."""
    until = time.monotonic() + PATIENCE
    wait = 0.0002
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(wait)
            wait *= 1.5
        except OSError:
            return True  # a file system without locks, such as Lustre
        else:
            return True


def _write(fd: int, data: bytes | memoryview) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def _files(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                yield entry.path, entry.stat()
