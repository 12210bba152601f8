"""The messages between the main process and the workers.

Tickets, and reports of done tickets, go through two pipes that all workers share, as records of fixed size that are written and
read whole. All else goes through each worker's own socket, as messages of bytes, each after its length: a worker is sent a
pickled `Start`, and sends one of the words below, some with data after them.
"""

from __future__ import annotations

import os
from contextlib import suppress

LENGTH_BYTES = 4
"""Bytes of a message's length, before it in the stream."""

ATOMIC = 4096
"""Bytes that are written to a pipe whole, or not at all (PIPE_BUF)."""

# What a worker's message begins with, and the pickle that follows.
READY = b"r"
"""The worker has started, and takes tickets."""

FAILED = b"f"
"""A ticket has failed; a pickled triple follows: its number, that of the row (None if not known), and the error."""

UNABLE = b"u"
"""The worker can't start, or can't go on; the pickled error follows."""

ENDS = b"e"
"""The worker ends, since it has had nothing to do for a while; its death follows."""

LOGGED = b"l"
"""The user's code has logged something, or warned; a pickle by `shmgen._worker.context.forward` follows."""

CTRL_C = b"i"
"""Ctrl-C reached the worker; the pickled time follows, of `time.monotonic`."""


def frame(message: bytes) -> bytes:
    """``message`` as it is written to the stream."""
    return len(message).to_bytes(LENGTH_BYTES, "little") + message


def processor_times(process: int | str) -> dict[str, int]:
    """Nanoseconds in which each thread of a process that is alive ran or was ready to run, by the thread's id; none if unknown.

    ``process`` is its id, or ``self``. psutil does not know the time for which a thread was ready to run.
    """
    times: dict[str, int] = {}
    with suppress(OSError):
        for task in os.listdir(f"/proc/{process}/task"):
            with suppress(OSError, ValueError), open(f"/proc/{process}/task/{task}/schedstat") as file:
                ran, ready, _ = map(int, file.read().split())
                times[task] = ran + ready
    return times


def take_messages(stream: bytearray) -> list[bytes]:
    """Take the whole messages out of the beginning of what has arrived."""
    messages = []
    start = 0
    while (first := start + LENGTH_BYTES) <= len(stream):
        stop = first + int.from_bytes(stream[start:first], "little")
        if stop > len(stream):
            break
        messages.append(bytes(stream[first:stop]))
        start = stop
    del stream[:start]
    return messages
