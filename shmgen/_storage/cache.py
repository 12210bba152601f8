"""A folder on a local disk that caches remote files, up to a number of bytes; any number of processes may share it.

A file is written under a temporary name and then renamed, so that no process ever reads a part of it. When a process ends, the
kernel releases its locks. While a process is suspended with the lock, no other can add files: each makes `ATTEMPTS` attempts,
then goes on without keeping its file. On a file system without locks, two that add at the same moment may count only one
file, until all files are counted again.

Everything lies in a folder of its own, ``shmgen-cache``, so that no file of the user's is ever counted or removed::

    ab/cdef...     cached files, named after the hash of their key; a file's time of modification is that of its last use
    new/...-SIZE   files being written
    bytes          an upper bound of the bytes of all: the last count, and what was written since
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

from shmgen.errors import InputError

log = logging.getLogger("shmgen")

COUNT = 8
"""Bytes of the number in the file ``bytes``."""

ATTEMPTS = 100
"""How often to try to lock the file ``bytes``, with a millisecond in between."""

ABANDONED = 3600.0
"""Seconds without a write after which a file in ``new`` is taken for that of a killed process."""

LEFT_AFTER_REMOVAL = 15 / 16
"""The fraction of the limit that a removal leaves: it looks at all files, so it should be rare."""

_one_at_a_time = threading.Lock()
_numbers = count()


class Cache:
    """Files cached in ``folder``, of ``most`` bytes together; None for as many as the disk has room for."""

    def __init__(self, folder: str | os.PathLike[str], most: int | None) -> None:
        self.folder = os.path.join(os.path.abspath(folder), "shmgen-cache")
        self.most = sys.maxsize if most is None else most
        self._has_logged = False

    def prepare(self) -> None:
        """Make the folder, remove what killed processes left in it, and count its bytes; once, in the main process."""
        try:
            os.makedirs(f"{self.folder}/new", exist_ok=True)
            for path, status in _files(f"{self.folder}/new"):
                if time.time() - status.st_mtime > ABANDONED:
                    with suppress(FileNotFoundError):
                        os.unlink(path)
            with self._locked_count() as fd:
                if fd is not None and os.fstat(fd).st_size < COUNT:
                    self._remove(fd, 0)
        except OSError as error:
            found = f"{error.strerror} (errno {error.errno})"
            raise InputError(f"cache {self.folder}: expected a folder that can be written to, found: {found}") from None

    def read(self, key: str, read: Callable[[int], object]) -> bool:
        """Call ``read`` with a descriptor of the file of ``key``; False if there is none, or it was damaged and removed."""
        path = self._path(key)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            with suppress(OSError):
                os.utime(fd)
            read(fd)
        except MemoryError:
            raise
        except Exception:  # of any kind: each format has a decoder of its own
            with suppress(OSError):
                os.unlink(path)
            return False
        finally:
            os.close(fd)
        return True

    def keep(self, key: str, data: bytes | memoryview) -> None:
        """Add a file. If that is impossible, nothing is added, and each process logs a reason once."""
        # The name ends with the size, for the count; `ftruncate` to that size would leave zeros after a power cut.
        temporary = f"{self.folder}/new/{os.uname().nodename}-{os.getpid()}-{time.time_ns()}-{next(_numbers)}-{len(data)}"
        path = self._path(key)
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                if not self._has_room(len(data)):
                    return
                left = memoryview(data)
                while left:
                    left = left[os.write(fd, left) :]
            finally:
                os.close(fd)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.rename(temporary, path)
        except OSError as error:
            if not self._has_logged:
                self._has_logged = True
                expected = f"expected room for {len(data):,} bytes, found: {error.strerror}"
                remedy = "make room, or pass another cache or cache_bytes"
                log.warning("cache %s: %s; samples are read all the same: %s", self.folder, expected, remedy)
        finally:
            with suppress(OSError):
                os.unlink(temporary)

    def _path(self, key: str) -> str:
        name = sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:40]
        return f"{self.folder}/{name[:2]}/{name[2:]}"

    def _has_room(self, size: int) -> bool:
        """Whether there is room for a new file of ``size`` bytes; the least recently used files are removed to make it."""
        if size > self.most:
            raise OSError(errno.EFBIG, f"cache_bytes allows {self.most:,} bytes")
        with self._locked_count() as fd:
            if fd is None:
                return False
            number = os.pread(fd, COUNT, 0)
            total = int.from_bytes(number, "little") + size
            if len(number) == COUNT and total <= self.most:
                os.pwrite(fd, total.to_bytes(COUNT, "little"), 0)
                return True
            return self._remove(fd, size) <= self.most

    def _remove(self, fd: int, size: int) -> int:
        """Count all files, one of ``size`` in ``new`` among them, and remove the oldest of too many; returns the bytes left."""
        # ``new`` comes first: a file that is renamed meanwhile is counted twice, not left out.
        sizes = (name.rpartition("-")[2] for name in os.listdir(f"{self.folder}/new"))
        total = sum(int(size) for size in sizes if size.isdecimal())
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
    def _locked_count(self) -> Iterator[int | None]:
        """The descriptor of the file ``bytes``, locked; None if another process holds the lock."""
        with _one_at_a_time:
            fd = os.open(f"{self.folder}/bytes", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                yield fd if _locked(fd) else None
            finally:
                os.close(fd)


def _locked(fd: int) -> bool:
    """Whether a file could be locked in `ATTEMPTS` attempts, or its file system has no locks."""
    for _ in range(ATTEMPTS):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.001)
        except OSError:
            return True  # such as ENOSYS from Lustre
        else:
            return True
    return False


def _files(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                yield entry.path, entry.stat()
