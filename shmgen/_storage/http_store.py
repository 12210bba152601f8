"""Files behind http and https, each by one GET over a connection that is kept."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from base64 import b64encode
from collections.abc import Callable, Mapping
from copy import copy
from functools import cache
from typing import Any, TypeVar
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from shmgen._storage.remote import MAX_ASKED_WAIT, NO_PARTS, Store, Transient
from shmgen.errors import FormatError, InputError

T = TypeVar("T")

TIMEOUT = 20.0
"""Seconds without a byte after which a request is given up, and tried again."""

MAX_REDIRECTS = 5

REDIRECTS = 301, 302, 303, 307, 308

MAX_DRAINED = 64 << 10
"""Bytes of an answer that are read though nobody wants them, rather than make another connection."""

MAX_TEXT = 200
"""Characters of an error's text that are shown."""

MAY_PASS = {408, 425, 429, 500, 502, 503, 504, 509, 529}
"""Statuses of a server that is busy or broken for a moment."""

IN_URL = "/:?#[]@!$&'()*+,;=%~"
"""Characters that stand in a URL as they are; ``%`` is one, since a URL may be quoted already."""


class Answer:
    """The body of an answer; see `Body`.

    Args:
        response: whose status says that it has one.
    """

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response
        headers = response.headers
        length = response.length  # None: as long as the connection
        self.total = length
        self.is_whole = response.status == 200
        if response.status == 206:
            total = headers.get("Content-Range", "").rpartition("/")[2]
            self.total = int(total) if total.isdecimal() else None
        self.version = headers.get("ETag") or headers.get("Last-Modified"), self.total

    def readinto(self, data: bytearray | memoryview) -> int:
        view, filled = memoryview(data), 0
        while filled < len(view):
            count = self._response.readinto(view[filled:])
            if not count:
                self._check_end()
                break
            filled += count
        return filled

    def read(self, most: int) -> bytes:
        parts = []
        while most > 0 and (part := self._response.read(min(most, 1 << 20))):
            parts.append(part)
            most -= len(part)
        if most > 0:
            self._check_end()
        return b"".join(parts)

    def _check_end(self) -> None:
        if self._response.length:
            raise Transient(f"an answer that broke off {self._response.length:,} bytes before its end")


class _NoRange(Exception):
    """The file does not have the bytes that were asked for, though they are its first."""


class HttpStore(Store):
    """Files behind http and https.

    Args:
        url: of the folder, or of a file. What follows a ``?`` in it is asked with every file.
        headers: of every request, such as ``{"Authorization": "Bearer ..."}``.
        timeout: seconds without a byte after which a request is given up, and tried again.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None, timeout: float = TIMEOUT) -> None:
        self._connections: dict[tuple[str, str], http.client.HTTPConnection] = {}
        super().__init__(quote(url, safe=IN_URL))
        self._parts = urlsplit(self.root)
        self._timeout = timeout
        # Compressed, a part of a file would be one of the compressed file.
        self._headers = {"User-Agent": "shmgen", "Accept-Encoding": "identity", **(headers or {})}
        try:
            usable = bool(self._parts.hostname) and self._parts.port != 0
        except ValueError:  # of the port
            usable = False
        if not usable:
            raise InputError(f"expected a URL such as https://host/folder, found {url!r}")
        user, at, self._host = self._parts.netloc.rpartition("@")
        if at:
            self._headers["Authorization"] = "Basic " + b64encode(unquote(user).encode()).decode()
        self._proxies: dict[str, str] | None = None

    def place(self, name: str) -> str:
        parts = self._at(name)
        return parts._replace(netloc=self._host, query="..." if parts.query else "", fragment="").geturl()

    def for_reader(self) -> HttpStore:
        other = copy(self)
        other._connections = {}
        return other

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_connections": {}}

    def _at(self, name: str) -> SplitResult:
        if not name:
            return self._parts
        path = self._parts.path.rstrip("/")
        return self._parts._replace(path=f"{path}/{quote(name, errors='surrogateescape')}")

    def _signed(self, name: str, headers: dict[str, str]) -> tuple[str, dict[str, str]]:
        """The URL to ask for a file, and all headers; ``headers`` are those of this request."""
        return self._at(name)._replace(netloc=self._host, fragment="").geturl(), {**self._headers, **headers}

    def _get(self, name: str, take: Callable[[Any], T], start: int, stop: int | None) -> T:
        try:
            return self._follow(name, take, start, stop)
        except _NoRange:  # the file is empty, or shorter
            return self._follow(name, take, 0, None)

    def _follow(self, name: str, take: Callable[[Any], T], start: int, stop: int | None) -> T:
        part = start > 0 or stop is not None
        url, headers = self._signed(name, {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"} if part else {})
        for _ in range(MAX_REDIRECTS + 1):
            connection, response = self._ask(url, headers)
            try:
                to = response.headers.get("Location") if response.status in REDIRECTS else None
                if to is None:
                    return self._answered(response, take, start)
            except (OSError, http.client.HTTPException) as error:
                raise Transient(_what(error)) from None
            finally:
                if not response.isclosed():  # what was not read would be taken for the next answer
                    response.close()
                    connection.close()
            there = urljoin(url, to)
            if urlsplit(there)[:2] != urlsplit(url)[:2]:
                headers = {name: value for name, value in headers.items() if name not in ("Authorization", "Cookie")}
            url = there
        last = urlsplit(url)._replace(query="").geturl()
        raise FormatError(f"expected the file, found more than {MAX_REDIRECTS} redirections, the last to {last}")

    def _ask(self, url: str, headers: Mapping[str, str]) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise FormatError(f"expected the URL of a file, found a redirection to {url!r}")
        target = parts._replace(scheme="", netloc="", fragment="", path=parts.path or "/").geturl()
        connection, forwarded = self._connection(parts)
        if forwarded:
            target = parts._replace(fragment="").geturl()
        while True:
            kept = connection.sock is not None
            try:
                connection.request("GET", target, headers={"Host": parts.netloc, **headers})
                return connection, connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                # A server may close a connection at any time at which nothing is under way.
                if kept and isinstance(error, ConnectionError):
                    continue
                if isinstance(error, ssl.SSLCertVerificationError):
                    raise FormatError(f"expected a certificate that can be trusted, found: {error.verify_message}") from None
                raise Transient(_what(error)) from None

    def _connection(self, parts: SplitResult) -> tuple[http.client.HTTPConnection, bool]:
        """The connection that serves a URL, and whether that is one to a proxy which forwards requests."""
        if self._proxies is None:
            self._proxies = getproxies()
        proxy = self._proxies.get(parts.scheme)
        if proxy and proxy_bypass(parts.netloc):
            proxy = None
        key = parts.scheme, parts.netloc
        if key not in self._connections:
            to = urlsplit(proxy if "://" in proxy else f"http://{proxy}") if proxy else parts
            if parts.scheme == "https":
                made: http.client.HTTPConnection = http.client.HTTPSConnection(
                    to.hostname or "", to.port, timeout=self._timeout, context=_context()
                )
                if proxy:
                    made.set_tunnel(parts.hostname or "", parts.port, headers=_proxy_headers(to))
            else:
                made = http.client.HTTPConnection(to.hostname or "", to.port, timeout=self._timeout)
            self._connections[key] = made
        return self._connections[key], bool(proxy) and parts.scheme == "http"

    def _answered(self, response: http.client.HTTPResponse, take: Callable[[Any], T], start: int) -> T:
        status = response.status
        if status == 206 or (status == 200 and start == 0):
            if status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                found = response.headers.get("Content-Range")
                raise FormatError(f"expected the part of the file from byte {start:,} on, found Content-Range: {found}")
            if encoding := response.headers.get("Content-Encoding", "").replace("identity", ""):
                raise FormatError(f"expected the file as it is, found it encoded as {encoding}; store it as it is")
            taken = take(Answer(response))
            if (response.length or 0) < MAX_DRAINED:
                response.read()  # so that the connection can be kept
            return taken
        if status == 200:
            raise FormatError(NO_PARTS)
        if status == 416:
            if start == 0:
                raise _NoRange
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
            raise FormatError(f"expected bytes from {start:,} on, found a file of {total} bytes: it is truncated")
        found = f"{status} {response.reason}".strip()
        if text := _text(response.read(4096)):
            found += f": {text}"
        if status in MAY_PASS:
            asked = response.headers.get("Retry-After", "")
            raise Transient(found, min(float(asked), MAX_ASKED_WAIT) if asked.isdecimal() else 0.0)
        raise FormatError(f"expected the file, found {found}")


def _what(error: Exception) -> str:
    """What an attempt has ended with, as what was found."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, http.client.IncompleteRead):
        return "an answer that broke off"
    if isinstance(error, socket.gaierror):
        return f"no such host ({error.strerror})"
    if isinstance(error, OSError):
        return str(error.strerror or error)
    return f"{type(error).__name__}: {error}"


def _text(body: bytes) -> str:
    """What an error's body says, without tags."""
    text = re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", body.decode("utf-8", "replace"), flags=re.DOTALL)
    text = " ".join(text.split())
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}..."


def _proxy_headers(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    user = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": "Basic " + b64encode(user.encode()).decode()}


@cache
def _context() -> ssl.SSLContext:
    """What certificates are trusted: one for all connections of a process, since it takes tens of milliseconds to make."""
    return ssl.create_default_context()
