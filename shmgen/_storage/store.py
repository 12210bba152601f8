"""Stores: each gets files that lie under one URL, and tries again where an error may pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from random import SystemRandom
from typing import Protocol, TypeVar

from shmgen.errors import FormatError, InputError

T = TypeVar("T")

TIMEOUT = 20.0
"""Seconds without a byte after which a request is given up, and tried again."""

TRIES, PATIENCE = 8, 60.0
"""How often a file is asked for, at most, and for how many seconds if the server says nothing."""

FIRST_TRIES, FIRST_PATIENCE = 4, 30.0
"""The same for a server that has not answered yet: the URL may be mistyped."""

FIRST_WAIT, MAX_WAIT = 0.1, 10.0
"""Seconds before the second try, after which they double; and the most before any."""

MAX_ASKED_WAIT = 60.0
"""Seconds that a server may ask for before the next try."""

NO_PARTS = (
    "expected a part of the file, found the whole: the server gives nothing else; download the file, and pass its path, or write "
    "a file for each sample"
)

EXTRA = "pip install 'shmgen[remote]'"

_dice = SystemRandom()  # the user's generators are left alone


class Transient(Exception):
    """An error that may pass, after which the file is asked for again.

    Args:
        found: what was found in place of the file.
        wait: seconds that the server asks for.
        answered: whether a part of the file had come, so that the server is there.
    """

    def __init__(self, found: str, wait: float = 0.0, *, answered: bool = False) -> None:
        super().__init__(found)
        self.wait = wait
        self.answered = answered


class Stream(Protocol):
    """What bytes are read from: an `http.client.HTTPResponse`, for example, or an `io.BytesIO`."""

    def readinto(self, data: memoryview, /) -> int:
        """Fill ``data``, or a part of it; returns the number of bytes, 0 at the end."""

    def read(self, most: int, /) -> bytes:
        """The next bytes, at most so many; none at the end."""


class Body:
    """The bytes that a request is answered with.

    Args:
        stream: of the bytes. If it has a ``length``, that is the number of bytes which are still to come.
        total: bytes of the whole file; None if not known.
        version: anything that differs once the file has been replaced; None if not known.
        is_whole: whether it is the whole file, though a part was asked for.
    """

    def __init__(self, stream: Stream, total: int | None, version: object = None, *, is_whole: bool = False) -> None:
        self._stream = stream
        self.total = total
        self.version = version
        self.is_whole = is_whole

    def readinto(self, data: bytearray | memoryview) -> int:
        """Fill ``data``, and return the number of bytes: fewer only where the file ends."""
        view, filled = memoryview(data), 0
        while filled < len(view) and (count := self._stream.readinto(view[filled:])):
            filled += count
        if filled < len(view):
            self._check_end()
        return filled

    def read(self, most: int) -> bytes:
        """The next bytes; fewer than ``most`` only where the file ends."""
        parts, left = [], most
        while left > 0 and (part := self._stream.read(min(left, 1 << 20))):
            parts.append(part)
            left -= len(part)
        if left > 0:
            self._check_end()
        return b"".join(parts)

    def _check_end(self) -> None:
        if left := getattr(self._stream, "length", None):
            raise Transient(f"an answer that broke off {left:,} bytes before its end", answered=True)


class Store:
    """Files under one URL. All readers of a process share it."""

    _has_answered = False

    def get(self, name: str, take: Callable[[Body], T], start: int = 0, stop: int | None = None) -> T:
        """What ``take`` makes of a file's bytes.

        Args:
            name: of the file in the folder; empty for the URL itself.
            take: is given the answer, of which it may read as much as it needs. It is called again where the answer broke off.
            start: the first byte to get.
            stop: one past the last; None for the end of the file.

        Raises:
            FormatError: it can't be had; the text says what was answered, and how often it was tried.
        """
        begun = began = time.monotonic()
        most, patience = (TRIES, PATIENCE) if self._has_answered else (FIRST_TRIES, FIRST_PATIENCE)
        wait = FIRST_WAIT
        tries = 0
        while True:
            tries += 1
            try:
                taken = self._get(name, take, start, stop, patience - (time.monotonic() - began))
            except Transient as error:
                now = time.monotonic()
                if error.answered:
                    began = now
                # Readers that failed together should not come back together.
                pause = min(max(error.wait, _dice.uniform(wait / 2, wait)), MAX_ASKED_WAIT)
                began += min(error.wait, MAX_ASKED_WAIT)  # the server is there, and is obeyed
                if tries == most or now + pause - began >= patience:
                    times = "once" if tries == 1 else f"{tries} times"
                    raise FormatError(f"expected the file, found {error}; tried {times} in {now - begun:.1f} s") from None
                time.sleep(pause)
                wait = min(2 * wait, MAX_WAIT)
            else:
                self._has_answered = True
                return taken

    def _get(self, name: str, take: Callable[[Body], T], start: int, stop: int | None, patience: float) -> T:
        """As `get`, once, for ``patience`` seconds at most if the server says nothing.

        Raises:
            Transient: it may be different the next time.
        """
        raise NotImplementedError

    def place(self, name: str) -> str:
        """The file's URL, for people: without what is secret."""
        raise NotImplementedError

    def key(self, name: str) -> str:
        """All that says where the file is and which it is: two that are equal are the same file."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Find out what all readers need, once, in the main process: credentials for instance.

        Raises:
            InputError: that can't be done.
        """

    def names(self) -> Iterator[str]:
        """All ``.npy`` files, by their paths from the folder.

        Raises:
            InputError: they can't be listed.
        """
        raise InputError(
            f"{self.place('')}: expected a folder that can be listed, found one that can't be; give the ids, with --ids FILE"
        )

    def close(self) -> None:
        """Close the connections; the next request makes another."""
