"""The base of stores, which fetch the files under one URL: what a request is answered with, and when it is tried again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from random import SystemRandom
from typing import TYPE_CHECKING, TypeVar

from shmgen.errors import FormatError, InputError

if TYPE_CHECKING:
    from http.client import HTTPResponse
    from io import BytesIO

T = TypeVar("T")

TIMEOUT = 20.0
"""Seconds without a byte after which a request is given up, and tried again."""

TRIES, PATIENCE = 8, 60.0
"""The most requests for a file, and the most seconds of all requests without an answer."""

FIRST_TRIES, FIRST_PATIENCE = 4, 30.0
"""The same before the server's first answer: the URL may be mistyped."""

FIRST_WAIT, MAX_WAIT = 0.1, 10.0
"""Seconds before the second try, which double for each further one; and the most."""

MAX_ASKED_WAIT = 60.0
"""The most seconds before the next try that a server may ask for."""

NO_PARTS = (
    "expected a range of the file, found the whole: the server has no ranges; download the file, and pass its path, or write "
    "a file for each sample"
)

EXTRA = "pip install 'shmgen[remote]'"

_random = SystemRandom()  # `random` itself is the user's


class Transient(Exception):
    """A temporary failure, after which the file is requested again; if ``answered``, a part of it had arrived."""

    def __init__(self, found: str, wait: float = 0.0, *, answered: bool = False) -> None:
        super().__init__(found)
        self.wait = wait
        self.answered = answered


class Body:
    """The bytes of an answer, and what is known of the file: its size, and a value that differs once it was replaced."""

    def __init__(
        self, stream: HTTPResponse | BytesIO, total: int | None, version: object = None, *, is_whole: bool = False
    ) -> None:
        self._stream = stream
        self.total = total
        self.version = version
        self.is_whole = is_whole  # the whole file, though a range was asked for

    def read(self, most: int) -> bytes:
        """The next bytes; fewer than ``most`` only where the file ends."""
        parts, left = [], most
        while left > 0 and (part := self._stream.read(min(left, 1 << 20))):
            parts.append(part)
            left -= len(part)
        if left > 0 and (missing := getattr(self._stream, "length", None)):
            raise Transient(f"an answer that broke off {missing:,} bytes before its end", answered=True)
        return b"".join(parts)


class Store:
    """Files under one URL. All readers of a process share it."""

    _has_answered = False

    def get(self, name: str, take: Callable[[Body], T], start: int = 0, stop: int | None = None) -> T:
        """What ``take`` makes of a file's bytes, from ``start`` to before ``stop`` or the end. An empty name is the URL itself.

        If the answer breaks off, ``take`` is called again. If the file can't be fetched, a FormatError says what was answered.
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
                # By chance, so that readers that failed at the same moment don't come back at the same moment.
                asked = min(error.wait, MAX_ASKED_WAIT)
                pause = max(asked, _random.uniform(wait / 2, wait))
                began += asked  # a wait that the server asks for does not count as silence
                if tries == most or now + pause - began >= patience:
                    times = "once" if tries == 1 else f"{tries} times"
                    raise FormatError(f"expected the file, found {error}; tried {times} in {now - begun:.1f} s") from None
                time.sleep(pause)
                wait = min(2 * wait, MAX_WAIT)
            else:
                self._has_answered = True
                return taken

    def _get(self, name: str, take: Callable[[Body], T], start: int, stop: int | None, patience: float) -> T:
        """As `get`, once; a silent server is given up after ``patience`` seconds. `Transient` says that a failure may pass."""
        raise NotImplementedError

    def place(self, name: str) -> str:
        """The file's URL, without secrets."""
        raise NotImplementedError

    def key(self, name: str) -> str:
        """What identifies the file: the whole URL, user and query included, and options that select it."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Find out what all readers need, such as credentials; once, in the main process. An InputError says what is missing."""

    def names(self) -> Iterator[str]:
        """All ``.npy`` files, by their paths from the folder. A folder that can't be listed is an InputError."""
        found = "one that can't be; give the ids, with --ids FILE"
        raise InputError(f"{self.place('')}: expected a folder that can be listed, found {found}")

    def close(self) -> None:
        """Close the connections; the next request makes another."""
