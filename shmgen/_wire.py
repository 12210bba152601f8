"""What parent and worker say to each other: messages of bytes on a stream, each behind its length.

To a worker go pickled lists: of a `Setup` first, then of `Task` tuples. To the parent goes one of the words below, and what
belongs to it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_LENGTH = struct.Struct("<I")

DONE = b"d"
"""The oldest task that the worker holds has been done."""

FAILED = b"f"
"""The oldest task that the worker holds can't be done; the pickled error follows."""

UNABLE = b"u"
"""The worker can't begin; the pickled error follows."""

INTERRUPTED = b"i"
"""Ctrl-C reached the worker; the time follows, of `time.monotonic`, as text."""


def frame(message: bytes) -> bytes:
    """``message`` as it goes on the stream."""
    return _LENGTH.pack(len(message)) + message


class Unframer:
    """Takes messages out of a stream that comes in parts of any size."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that ``data`` completes."""
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, start)
            stop = start + _LENGTH.size + length
            if len(buffer) < stop:
                break
            yield bytes(memoryview(buffer)[start + _LENGTH.size : stop])
            start = stop
        del buffer[:start]
