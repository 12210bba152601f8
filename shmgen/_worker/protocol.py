"""What the main process and the workers tell each other.

Work goes through two pipes that all workers share, as records of fixed size, which are written and read whole: tickets one way,
and reports of what is done the other. All else goes through a socket that each worker has of its own, as messages of bytes, each
after its length: a worker is sent a pickled `Start`, and sends one of the words below, some with data after them.
"""

from __future__ import annotations

import os
import struct

_LENGTH = 4

TICKET = struct.Struct("<QIIII")
"""A ticket: its number, the slot, the first row, one past the last, and nothing."""

REPORT = struct.Struct("<QII")
"""A ticket that is done: its number, that of the worker, and 1 if reads had to wait lately for a disk or a network, else 0."""

ATOMIC = 4096
"""Bytes that are written to a pipe whole, or not at all (PIPE_BUF)."""

READY = b"r"
"""The worker has started, and takes tickets."""

FAILED = b"f"
"""A ticket has failed; a pickled triple follows: its number, that of the row, None if not known, and the error."""

UNABLE = b"u"
"""The worker can't start, or can't go on; the pickled error follows."""

ENDS = b"e"
"""The worker ends, since it has had nothing to do for a while."""

LOGGED = b"l"
"""The user's code has logged something, or warned; what `shmgen._worker.log_forwarding` has pickled follows."""

CTRL_C = b"i"
"""Ctrl-C reached the worker; the time of that follows, of `time.monotonic`, as text."""


def frame(message: bytes) -> bytes:
    """``message`` as it is written to the stream."""
    return len(message).to_bytes(_LENGTH, "little") + message


def processor_time(process: int | str) -> int:
    """Nanoseconds in which a process's threads ran, or were ready to run; 0 if the kernel does not say.

    The time of threads that have ended is not in it.

    Args:
        process: its process id, or ``self``.
    """
    try:
        return sum(thread_time(f"{process}/task/{task}") for task in os.listdir(f"/proc/{process}/task"))
    except OSError:
        return 0


def thread_time(thread: str) -> int:
    """As `processor_time`, for one thread.

    The time in which it waited for a processor is not among what psutil knows, and a worker does without psutil.

    Args:
        thread: its name under ``/proc``, such as ``thread-self``.
    """
    try:
        with open(f"/proc/{thread}/schedstat") as file:
            ran, wanted, _ = file.read().split()
    except (OSError, ValueError):
        return 0
    return int(ran) + int(wanted)


class Unframer:
    """Cuts a stream, which arrives in parts of any size, into messages."""

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
