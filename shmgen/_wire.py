"""What parent and worker say to each other: messages of bytes on a stream, each behind its length."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_LENGTH = struct.Struct("<I")

DONE = b""
"""A worker's word that the oldest piece it holds has been read; any other message is its failure, pickled."""

INTERRUPTED = b"interrupted"
"""A worker's word that Ctrl-C reached it, with the time of `time.monotonic` behind it."""


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
