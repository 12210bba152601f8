"""What parent and worker say to each other: messages of bytes on a stream, each behind its length, and words on a board.

To a worker go pickled lists: of a `Setup` first, then of `Task` fields. To the parent goes one of the words below, and what
belongs to it.
"""

from __future__ import annotations

from typing import Any

AT, BUSY, USED = range(3)
"""A worker's words on the board: the row that it is at, as sources say it; the nanoseconds in which it has had a task so far; and
those in which it had or wanted a processor before its first task."""

WORDS = 4
"""So many words of 8 bytes each worker has on the board."""

_LENGTH = 4

READY = b"r"
"""The worker can begin."""

DONE = b"d"
"""The oldest task that the worker holds has been done."""

WAITED = b"w"
"""As DONE; and lately there were waits, for a disk or a network: it is worth its while to have more under way."""

FAILED = b"f"
"""The oldest task that the worker holds can't be done; pickled, the row's number, if it is known, and the error follow."""

UNABLE = b"u"
"""The worker can't begin; the pickled error follows."""

SAID = b"s"
"""The user's code has logged or warned; what `shmgen._echo` has pickled follows."""

INTERRUPTED = b"i"
"""Ctrl-C reached the worker; the time follows, of `time.monotonic`, as text."""


def frame(message: bytes) -> bytes:
    """``message`` as it goes on the stream."""
    return len(message).to_bytes(_LENGTH, "little") + message


def packed(ids: list[Any]) -> list[Any] | str:
    """``ids`` as they are sent: as one text, where they are texts, which saves pickling each."""
    try:
        together = "\0".join(ids)
    except TypeError:
        return ids
    return together if together.count("\0") == len(ids) - 1 else ids


def unpacked(ids: list[Any] | str) -> list[Any]:
    """What `packed` was given."""
    return ids.split("\0") if isinstance(ids, str) else ids


def processor_time(process: int | str) -> int:
    """Nanoseconds in which a process's main thread has had a processor, or wanted one; 0 where the kernel does not tell."""
    try:
        with open(f"/proc/{process}/schedstat") as file:
            ran, wanted, _ = file.read().split()
    except (OSError, ValueError):
        return 0
    return int(ran) + int(wanted)


class Unframer:
    """Takes messages out of a stream that comes in parts of any size."""

    def __init__(self) -> None:
        self._unfinished = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that ``data`` completes."""
        stream: bytes | bytearray = data
        if self._unfinished:
            self._unfinished += data
            stream = self._unfinished
        messages = []
        start = 0
        while (first := start + _LENGTH) <= len(stream):
            stop = first + int.from_bytes(stream[start:first], "little")
            if stop > len(stream):
                break
            messages.append(bytes(stream[first:stop]))
            start = stop
        if start or stream is data:
            self._unfinished = bytearray(stream[start:])
        return messages
