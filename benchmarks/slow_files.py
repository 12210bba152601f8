"""A file system that shows a folder with the latency of a network mount: opening a file takes a while, and so does reading it.

    python -m benchmarks.slow_files FOLDER MOUNT MS

It implements the kernel's FUSE protocol (linux/fuse.h) in one loop that answers each request when its delay is over. So any
number of requests can wait at once, and thousands a second leave most of a processor to the readers. It needs ``/dev/fuse`` and
``fusermount3`` (Debian: fuse3), but not root. Files are read-only, and the folder can't be listed. It prints "ready" once
mounted, and ends when its standard input is closed or the file system is unmounted.
"""

from __future__ import annotations

import errno
import heapq
import mmap
import os
import select
import shutil
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self

REQUEST = struct.Struct("=IIQQIIII")
"""Length, opcode, unique, node, uid, gid, pid, padding."""
REPLY = struct.Struct("=IiQ")
"""Length, error, unique."""
INIT_REPLY = struct.Struct("=IIIIHHIIHH32x")
ATTRIBUTES = struct.Struct("=QQQQQQIIIIIIIIII")
OPENED = struct.Struct("=QII")
READ = struct.Struct("=QQI")

LOOKUP, FORGET, GETATTR, OPEN, READING, STATFS, RELEASE, INIT, INTERRUPT, BATCH_FORGET = 1, 2, 3, 14, 15, 17, 18, 26, 36, 42
UNANSWERED = (FORGET, INTERRUPT, BATCH_FORGET)
ASYNC_READ, MAX_PAGES = 1 << 0, 1 << 22
ROOT = 1
"""Node number of the folder; files have the numbers after it."""
FOREVER = 1 << 30
"""Seconds for which the kernel may cache names and attributes, so that only opens and reads are slow."""
IN_FLIGHT = 4096
"""The kernel's limit of background reads; its default of 12 would limit what is measured."""
MAX_REQUEST = 1 << 16


class SlowFiles:
    """The mounted file system, as a context manager.

    Args:
        folder: the folder to show.
        place: the mount point, an empty folder.
        delay: seconds until an open is answered, and the first read of an open file; its further reads wait for the first only.
    """

    def __init__(self, folder: str, place: str, delay: float) -> None:
        self._folder, self._place, self._delay = folder, place, delay
        self._files: list[mmap.mmap] = []
        self._numbers: dict[bytes, int] = {}
        self._opened: dict[int, float] = {}  # by handle: when its reads may be answered; 0 before the first
        self._handles = 0
        self._due: list[tuple[float, int, Sequence[bytes | memoryview]]] = []
        self._device = -1

    def __enter__(self) -> Self:
        self._device = mount(self._place)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._device)
        subprocess.run(["fusermount3", "-u", "-z", "-q", self._place], check=False)

    def serve(self, end: int) -> None:
        """Answer requests until the file of descriptor ``end`` ends, or the file system is unmounted."""
        while True:
            wait = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
            # select waits to the microsecond, poll for whole milliseconds.
            ready, _, _ = select.select([self._device, end], [], [], wait)
            if end in ready:
                return
            if ready:
                try:
                    request = os.read(self._device, MAX_REQUEST)
                except OSError as error:
                    if error.errno == errno.ENODEV:  # unmounted
                        return
                    if error.errno != errno.ENOENT:  # the request was interrupted
                        raise
                else:
                    self._handle(request)
            while self._due and self._due[0][0] <= time.monotonic():
                _, unique, parts = heapq.heappop(self._due)
                self._answer(unique, *parts)

    def _handle(self, request: bytes) -> None:
        _, opcode, unique, node, *_ = REQUEST.unpack_from(request)
        body = memoryview(request)[REQUEST.size :]
        if opcode in UNANSWERED:
            return
        if opcode == READING:
            handle, offset, size = READ.unpack_from(body)
            due = self._opened.get(handle) or time.monotonic() + self._delay
            self._opened[handle] = due
            self._later(due, unique, memoryview(self._files[node - ROOT - 1])[offset : offset + size])
        elif opcode == OPEN:
            self._handles += 1
            self._opened[self._handles] = 0.0
            self._later(time.monotonic() + self._delay, unique, OPENED.pack(self._handles, 0, 0))
        elif opcode == RELEASE:
            del self._opened[OPENED.unpack_from(body)[0]]
            self._answer(unique)
        elif opcode == LOOKUP:
            self._look_up(unique, bytes(body).rstrip(b"\0"))
        elif opcode == GETATTR:
            self._answer(unique, struct.pack("=QII", FOREVER, 0, 0), self._attributes(node))
        elif opcode == STATFS:
            self._answer(unique, bytes(80))
        elif opcode == INIT:
            self._answer(unique, INIT_REPLY.pack(7, 31, 1 << 20, ASYNC_READ | MAX_PAGES, IN_FLIGHT, IN_FLIGHT, 4096, 1, 256, 0))
        else:
            self._answer(unique, error=errno.ENOSYS)

    def _look_up(self, unique: int, name: bytes) -> None:
        if name not in self._numbers:
            try:
                with open(os.path.join(os.fsencode(self._folder), name), "rb") as file:
                    self._files.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            except OSError as error:
                self._answer(unique, error=error.errno or errno.EIO)
                return
            self._numbers[name] = ROOT + len(self._files)
        node = self._numbers[name]
        self._answer(unique, struct.pack("=QQQQII", node, 0, FOREVER, FOREVER, 0, 0), self._attributes(node))

    def _attributes(self, node: int) -> bytes:
        size, mode = (0, stat.S_IFDIR | 0o555) if node == ROOT else (len(self._files[node - ROOT - 1]), stat.S_IFREG | 0o444)
        return ATTRIBUTES.pack(node, size, -(-size // 512), 0, 0, 0, 0, 0, 0, mode, 1, os.getuid(), os.getgid(), 0, 4096, 0)

    def _later(self, due: float, unique: int, *parts: bytes | memoryview) -> None:
        heapq.heappush(self._due, (due, unique, parts))

    def _answer(self, unique: int, *parts: bytes | memoryview, error: int = 0) -> None:
        size = REPLY.size + sum(map(len, parts))
        try:
            os.writev(self._device, [REPLY.pack(size, -error, unique), *parts])
        except OSError as failed:
            if failed.errno != errno.ENOENT:  # the process that made the request was killed
                raise


def missing_requirement() -> str:
    """What this machine lacks for such a file system; empty if nothing."""
    if not shutil.which("fusermount3"):
        return "no fusermount3 (Debian: fuse3)"
    return "" if os.access("/dev/fuse", os.R_OK | os.W_OK) else "no permission to open /dev/fuse"


def mount(place: str) -> int:
    """Mount a FUSE file system, and return its descriptor.

    Raises:
        OSError: fusermount3 failed.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(
            ["fusermount3", "-o", "ro,nosuid,nodev,subtype=slow,fsname=slow", "--", place],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        theirs.close()
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    if done.returncode or not fds:
        raise OSError(f"fusermount3: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return fds[0]


def main() -> None:
    """Mount, serve, unmount."""
    folder, place, milliseconds = sys.argv[1:]
    with SlowFiles(os.path.abspath(folder), os.path.abspath(place), float(milliseconds) / 1e3) as files:
        print("ready", flush=True)
        files.serve(sys.stdin.fileno())


if __name__ == "__main__":
    main()
