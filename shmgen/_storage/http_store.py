"""Files behind http and https: one GET a file, over connections that are kept open.

The client is the standard library's. obstore's (object_store 0.14) ignores ``Retry-After``, refuses answers without a length and
redirections to unquoted paths, sends S3's token on to other hosts, and does not heed Ctrl-C during a request. urllib3 would only
replace the lines on proxies; its requests take 1.5 times the processor time, and its import 0.13 s and 4 MB in each worker.
"""

from __future__ import annotations

import http.client
import io
import re
import socket
import ssl
import time
import weakref
from base64 import b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from shmgen._storage.store import NO_PARTS, TIMEOUT, Body, Store, T, Transient
from shmgen._urls import shown
from shmgen.errors import FormatError, InputError

SLOWEST = 10 << 10
"""Bytes a second: an answer that comes more slowly uses up its time-out."""

MAX_REDIRECTS = 5

MAX_DRAINED = 64 << 10
"""The rest of an answer is read, so that its connection can be used again, if it is shorter than this many bytes."""

MAY_PASS = {408, 425, 429, 500, 502, 503, 504, 509, 520, 521, 522, 523, 524, 529, 530}
"""Statuses of temporary failures, of a server or of a proxy in front of it."""

IN_URL = "/:?#[]@!$&'()*+,;=%~"
"""Characters that are not quoted in a URL; ``%`` is one, since the URL may be quoted already."""

OWN = {"user-agent": "shmgen", "accept-encoding": "identity"}
"""Headers of every request. A range of a compressed answer would be a range of the compressed bytes."""

HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"), re.compile(r"[^\r\n\0]*")
"""What a header's name, and its value, may be."""

CODE = re.compile(rb"<Code>(\w+)</Code>")


class _Paced(io.RawIOBase):
    """The bytes of one answer, with a time budget, the time-out: waiting uses it up, and bytes that arrive refill it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._file = sock, sock.makefile("rb", buffering=0)  # an open file keeps the socket open
        self._patience = self._set = sock.gettimeout() or TIMEOUT
        self._end = time.monotonic() + self._patience

    def makefile(self, mode: str) -> io.BufferedReader:
        """What `http.client.HTTPResponse` reads from."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, data: Any, /) -> int:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if abs(left - self._set) > self._patience / 10:  # seldom, since `settimeout` is a system call
            self._sock.settimeout(left)
            self._set = left
        count = self._sock.recv_into(data)
        self._end = min(self._end + count / SLOWEST, time.monotonic() + self._patience)
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(_Paced(sock), *args, **kwargs)  # type: ignore[arg-type]


class _Connection(NamedTuple):
    """A connection; and the headers for a proxy that forwards its requests, None if there is no proxy, or it is a tunnel."""

    http: http.client.HTTPConnection
    proxy: dict[str, str] | None


class HttpStore(Store):
    """Files behind http and https; the options are described by `shmgen.Remote`."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None, timeout: float = TIMEOUT) -> None:
        self._forget()
        self._timeout = timeout
        self._headers: dict[str, str] = {}
        for name, value in (headers or {}).items():
            if not (isinstance(value, str) and HEADER[0].fullmatch(name) and HEADER[1].fullmatch(value) and value.isascii()):
                raise InputError(f"options: header {name!r}: expected a name and a line of ASCII text, found something else")
            self._headers[name.lower()] = value
        parts = _usable(quote(url, safe=IN_URL))
        if parts is None:
            raise InputError(f"expected a URL such as https://host/folder, found {shown(url)!r}")
        self._user, at, host = parts.netloc.rpartition("@")
        self._parts = parts._replace(netloc=host, fragment="")
        if at:
            self._headers["authorization"] = _basic(self._user)

    def _forget(self) -> None:
        self._free: dict[tuple[str, str], list[_Connection]] = {}
        # Not `__del__`: if the store is part of a garbage cycle, the sockets' own `__del__` might run first.
        weakref.finalize(self, _close, self._free).atexit = False

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_free"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def close(self) -> None:
        _close(self._free)

    def place(self, name: str) -> str:
        return shown(self._at(name).geturl())

    def key(self, name: str) -> str:
        which = {name: value for name, value in self._headers.items() if name not in ("authorization", "cookie")}
        return f"{self._user}@{self._at(name).geturl()} {sorted(which.items())}"

    def _at(self, name: str) -> SplitResult:
        if not name:
            return self._parts
        path = self._parts.path.rstrip("/")
        return self._parts._replace(path=f"{path}/{quote(name, errors='surrogateescape')}")

    def _request(self, name: str) -> tuple[str, dict[str, str]]:
        """The URL of a file, and headers for its host only."""
        return self._at(name).geturl(), self._headers

    def _get(self, name: str, take: Callable[[Body], T], start: int, stop: int | None, patience: float) -> T:
        end = time.monotonic() + patience
        part = {"range": f"bytes={start}-{'' if stop is None else stop - 1}"} if start > 0 or stop is not None else {}
        url, headers = self._request(name)
        parts = urlsplit(url)
        for _ in range(MAX_REDIRECTS + 1):
            connection, response = self._ask(parts, {**OWN, **headers, **part}, end - time.monotonic())
            try:
                self._look_at(response)
                to = response.headers.get("Location") if response.status in (301, 302, 303, 307, 308) else None
                if to is None:
                    return self._answered(response, take, start)
            except (OSError, http.client.HTTPException) as error:
                raise Transient(_what(error)) from None
            finally:
                if response.isclosed() and not response.length:
                    self._free.setdefault(parts[:2], []).append(connection)
                else:  # unread bytes would be taken for the next answer
                    response.close()
                    connection.http.close()
            url = urljoin(parts.geturl(), quote(to.encode("latin-1"), safe=IN_URL))
            there = _usable(url)
            if there is None:
                raise FormatError(f"expected the URL of a file, found a redirection to {shown(url)!r}")
            there = there._replace(netloc=there.netloc.rpartition("@")[2], fragment="")
            if not _is_same_host(parts, there):
                headers = {}
            parts = there
        raise FormatError(f"expected the file, found more than {MAX_REDIRECTS} redirections, the last to {shown(url)}")

    def _ask(self, parts: SplitResult, headers: dict[str, str], patience: float) -> tuple[_Connection, http.client.HTTPResponse]:
        timeout = max(min(self._timeout, patience), 0.001)
        while True:
            try:
                connection, kept = self._free[parts[:2]].pop(), True
            except (KeyError, IndexError):
                connection, kept = _connection(parts), False
            ask, proxy = connection
            target = parts if proxy is not None else parts._replace(scheme="", netloc="", path=parts.path or "/")
            ask.timeout = timeout
            try:
                if ask.sock is not None:
                    ask.sock.settimeout(timeout)
                ask.request("GET", target.geturl(), headers={"host": parts.netloc, **headers, **(proxy or {})})
                return connection, ask.getresponse()
            except (OSError, http.client.HTTPException) as error:
                ask.close()
                # A server may close a connection at any time at which no request is under way.
                if kept and isinstance(error, ConnectionError):
                    continue
                if isinstance(error, ssl.SSLCertVerificationError):
                    raise FormatError(f"expected a certificate that can be trusted, found: {error.verify_message}") from None
                raise Transient(_what(error)) from None

    def _answered(self, response: http.client.HTTPResponse, take: Callable[[Body], T], start: int) -> T:
        status, headers = response.status, response.headers
        described = headers.get("Content-Range", "")
        total = described.rpartition("/")[2]
        if status == 206 or (status == 200 and start == 0):
            if status == 206 and not described.startswith(f"bytes {start}-"):
                expected = f"the part of the file from byte {start:,} on"
                raise FormatError(f"expected {expected}, found Content-Range: {described or None}")
            if encoding := headers.get("Content-Encoding", "").replace("identity", ""):
                raise FormatError(f"expected the file as it is, found it encoded as {encoding}; store it as it is")
            size = response.length if status == 200 else int(total) if total.isdecimal() else None
            version = headers.get("ETag") or headers.get("Last-Modified"), size
            taken = take(Body(response, size, version, is_whole=status == 200))
            if (response.length or 0) < MAX_DRAINED:
                response.read()  # so that the connection can be kept
            return taken
        if status == 200:
            raise FormatError(NO_PARTS)
        if status == 416:
            raise FormatError(f"expected bytes from {start:,} on, found a file of {total} bytes: it is truncated")
        # The body is usually an HTML page, of no use here. S3 is the exception: its errors contain a code.
        found = f"{status} {http.client.responses.get(status, '')}".strip()
        if code := CODE.search(response.read(MAX_DRAINED)):
            found += f" ({code[1].decode()})"
        if status in MAY_PASS:
            raise Transient(found, _asked_wait(headers.get("Retry-After", "")))
        remedy = "; pass credentials in the options" if status in (401, 403) else ""
        raise FormatError(f"expected the file, found {found}{remedy}")

    def _look_at(self, response: http.client.HTTPResponse) -> None:
        """Called with each answer, redirections included; for subclasses."""


def _usable(url: str) -> SplitResult | None:
    """The parts of a URL; None if it is not one of http or https."""
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and parts.port != 0 and bool((parts.hostname or "").encode("idna"))
    except ValueError:  # of brackets, the port, or the host
        return None
    return parts if is_usable else None


def _connection(parts: SplitResult) -> _Connection:
    """A new connection for the URL, through the proxy that the environment names for it."""
    proxy = getproxies().get(parts.scheme)
    if not proxy or proxy_bypass(parts.netloc):
        to, user = parts, None
    else:
        to = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        user = {"proxy-authorization": _basic(to.netloc.rpartition("@")[0])} if "@" in to.netloc else {}
    if parts.scheme == "https":
        made: http.client.HTTPConnection = http.client.HTTPSConnection(to.hostname or "", to.port, context=_context())
        if user is not None:
            made.set_tunnel(parts.hostname or "", parts.port, headers=user)
            user = None
    else:
        made = http.client.HTTPConnection(to.hostname or "", to.port)
    made.response_class = _Response
    return _Connection(made, user)


def _close(free: dict[tuple[str, str], list[_Connection]]) -> None:
    while free:
        for connection in free.popitem()[1]:
            connection.http.close()


def _is_same_host(one: SplitResult, other: SplitResult) -> bool:
    """Whether a redirection stays on its host; it may lead from http to https."""
    upgraded = (one.scheme, other.scheme) == ("http", "https") and one.port in (None, 80) and other.port in (None, 443)
    return one.hostname == other.hostname and (upgraded or (one.scheme, one.port) == (other.scheme, other.port))


def _what(error: Exception) -> str:
    """An error of a request, as a phrase to follow "found" in a message."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


def _asked_wait(text: str) -> float:
    """Seconds to wait by ``Retry-After``, which is a number of seconds or a date; 0 if it is neither."""
    with suppress(ValueError, OverflowError):
        return float(text) if text.isdecimal() else max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return 0.0


def _basic(user: str) -> str:
    """The header for ``user:password``, quoted as in a URL."""
    name, _, password = user.partition(":")
    return "Basic " + b64encode(unquote(f"{name}:{password}").encode()).decode()


@cache
def _context() -> ssl.SSLContext:
    """The trusted certificates; one context for all connections of a process, since making it takes tens of milliseconds."""
    return ssl.create_default_context()
