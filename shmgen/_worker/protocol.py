"""What the main process and a worker send each other: messages of bytes on a stream, each after its length.

A worker is sent pickled lists: first of a `Setup`, then of the fields of tasks. It sends one of the words below, some with data
after them.
"""

from __future__ import annotations

from typing import Any

_LENGTH = 4

READY = b"r"
"""The worker has started, and waits for tasks."""

DONE = b"d"
"""The oldest task that the worker has is done."""

WAITED = b"w"
"""Like DONE, and lately reads had to wait for a disk or a network: it pays to give the worker more tasks at once."""

FAILED = b"f"
"""The oldest task that the worker has failed; a pickled pair follows: the number of the row, None if not known, and the error."""

UNABLE = b"u"
"""The worker can't start, or can't go on; the pickled error follows."""

LOGGED = b"l"
"""The user's code has logged something, or warned; what `shmgen._worker.log_forwarding` has pickled follows."""

INTERRUPTED = b"i"
"""Ctrl-C reached the worker; the time of that follows, of `time.monotonic`, as text."""


def frame(message: bytes) -> bytes:
    """``message`` as it is written to the stream."""
    return len(message).to_bytes(_LENGTH, "little") + message


def packed(ids: list[Any]) -> list[Any] | str:
    """``ids`` as they are sent: joined into one text if they are texts, which saves pickling each."""
    try:
        together = "\0".join(ids)
    except TypeError:
        return ids
    return together if together.count("\0") == len(ids) - 1 else ids


def unpacked(ids: list[Any] | str) -> list[Any]:
    """The ids that `packed` was given."""
    return ids.split("\0") if isinstance(ids, str) else ids


def processor_time(process: int | str) -> int:
    """Nanoseconds in which a process's main thread ran, or was ready to run; 0 if the kernel does not say.

    The time in which it waited for a processor is not among what psutil knows, and a worker does without psutil.

    Args:
        process: its process id, or another name under ``/proc``, such as ``self``.
    """
    try:
        with open(f"/proc/{process}/schedstat") as file:
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
