"""Servers on loopback: nginx, Moto's S3, and a proxy that delays answers, records requests, and fails on request."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import wait_until

NGINX = """
daemon off; master_process off; pid {home}/pid; error_log {home}/errors; user root;
events {{ worker_connections 512; }}
http {{
    access_log off; keepalive_requests 100000;
    client_body_temp_path {home}/a; proxy_temp_path {home}/b; fastcgi_temp_path {home}/c; uwsgi_temp_path {home}/d;
    scgi_temp_path {home}/e;
    server {{
        listen 127.0.0.1:{port};
        {more}
        root {root};
        location /moved/ {{ rewrite ^/moved/(.*)$ http://$http_host/$1 redirect; }}
        location /round/ {{ return 302 http://$http_host$request_uri; }}
        location /private/ {{ if ($http_authorization != "Basic dXNlcjpwYXNzIHdvcmQ=") {{ return 401; }} alias {root}/; }}
        location /whole/ {{ max_ranges 0; alias {root}/; }}
        location /asks/ {{ if ($arg_key != "secret") {{ return 403; }} alias {root}/; }}
    }}
}}
"""


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def listens(port: int) -> bool:
    """Whether a server listens at a port."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextmanager
def running(command: list[str], port: int, **options: Any) -> Iterator[None]:
    """Run a server: enter when it listens, end it on exit."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, start_new_session=True, **options
    )
    try:
        wait_until(lambda: listens(port) or process.poll() is not None, f"{command[0]} listens", 60)
        assert process.poll() is None, f"{command} ended at once"
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def nginx(root: Path, home: Path, more: str = "") -> Iterator[int]:
    """An nginx that serves the files under ``root``; its port."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed: apt-get install nginx-light")
    home.mkdir()
    port = free_port()
    (home / "conf").write_text(NGINX.format(root=root, home=home, port=port, more=more))
    with running([program, "-c", str(home / "conf"), "-e", str(home / "errors")], port):
        yield port


@contextmanager
def moto() -> Iterator[int]:
    """Moto's S3; its port."""
    pytest.importorskip("moto", reason="moto is not installed: it is in the group test")
    port = free_port()
    with running([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port):
        yield port


def put(port: int, path: str, data: bytes = b"") -> None:
    """Make a bucket, or put an object into it."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", data, method="PUT")
    request.add_header("Content-Type", "application/octet-stream")
    request.add_header("x-amz-acl", "public-read")
    request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request, Signature=0")
    with urllib.request.urlopen(request):
        pass


class Request(NamedTuple):
    """A client's request; names of headers are in lower case."""

    method: str
    target: str
    headers: dict[str, str]


class Proxy:
    """Passes requests on to a server, and its answers back, except for faults.

    A fault is the status to answer with, followed by a space and a header if there is one; or "reset", "close", "half", "stall",
    "hang", "chunks", "drip", "drip-head", "nonsense"; or a header that replaces the answer's own; or None for no fault.
    """

    def __init__(self, upstream: int, delay: float = 0.0) -> None:
        self._upstream = upstream  # the server's port
        self._delay = delay  # seconds before each answer
        self.requests: list[Request] = []
        self.connections = self.open = 0  # number of connections made so far, and open now
        self.faults: dict[str, list[str | None]] = {}  # by file name: faults of the next requests for that file
        self.always: str | None = None  # the fault of all other requests
        self.in_flight = self.most_in_flight = 0  # number of unanswered requests
        self.text = b"<html><title>a secret</title></html>"
        self._loop = asyncio.new_event_loop()
        self._never = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._started = threading.Event()
        self._thread.start()
        assert self._started.wait(20)

    @property
    def url(self) -> str:
        """The proxy's URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def targets(self) -> list[str]:
        """The targets of all requests, in order."""
        return [request.target for request in self.requests]

    def stop(self) -> None:
        """Stop serving."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=512, limit=1 << 20))
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        for _ in range(3):  # closed connections end one step later
            self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while head := await _head(reader):
                first, *lines = head.decode("latin-1").split("\r\n")
                method, target, _ = first.split(" ", 2)
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
                self.requests.append(Request(method, target, headers))
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                try:
                    if self._delay:
                        await asyncio.sleep(self._delay)
                    if not await self._answer(head, target, writer):
                        return
                finally:
                    self.in_flight -= 1
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            writer.close()

    async def _answer(self, head: bytes, target: str, writer: asyncio.StreamWriter) -> bool:  # noqa: PLR0911
        """Answer a request; False if the connection ends."""
        queue = self.faults.get(target.partition("?")[0].rpartition("/")[2])
        fault = queue.pop(0) if queue else self.always
        if fault == "hang":
            await self._never.wait()
        if fault == "close":
            return False
        if fault == "reset":
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return False
        if fault is not None and fault[0].isdigit():
            status, _, more = fault.partition(" ")
            text = self.text
            answer = f"HTTP/1.1 {status} <b>secret</b>\r\nContent-Length: {len(text)}\r\n{more}{more and chr(13) + chr(10)}\r\n"
            writer.write(answer.encode("latin-1") + text)
            return True
        if fault == "nonsense":
            writer.write(b"\x00\x01secret nonsense\r\n\r\n")
            return False
        lines, body = await self._ask(head)
        if fault in ("drip", "drip-head"):  # a byte at a time, without end
            writer.write(b"HTTP/1.1 200 OK\r\nX-Never: " if fault == "drip-head" else lines)
            for byte in itertools.cycle(body):
                writer.write(b"%02x" % byte if fault == "drip-head" else bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.02)
        if fault in ("half", "stall"):
            writer.write(lines + body[: len(body) // 2])
            if fault == "stall":
                await writer.drain()
                await self._never.wait()
            return False
        if fault is not None and ":" in fault:
            name = fault.partition(":")[0].lower().encode()
            lines = b"\r\n".join(line for line in lines.split(b"\r\n") if line and not line.lower().startswith(name))
            lines += f"\r\n{fault}\r\n\r\n".encode()
        if fault == "chunks":
            kept = [line for line in lines.split(b"\r\n") if line and not line.lower().startswith(b"content-length")]
            half = len(body) // 2
            writer.write(b"\r\n".join([*kept, b"Transfer-Encoding: chunked", b"", b""]))
            writer.write(b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (half, body[:half], len(body) - half, body[half:]))
            return True
        writer.write(lines + body)
        await writer.drain()
        return True

    async def _ask(self, head: bytes) -> tuple[bytes, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._upstream, limit=1 << 20)
        try:
            first, *lines = [line for line in head.split(b"\r\n") if line and not line.lower().startswith(b"connection:")]
            writer.write(b"\r\n".join([first, *lines, b"Connection: close", b"", b""]))
            answer = await _head(reader)
            body = await reader.read()
        finally:
            writer.transport.abort()
        status, *lines = [line for line in answer.split(b"\r\n") if line and not line.lower().startswith(b"connection:")]
        return b"\r\n".join([b"HTTP/1.1 " + status.partition(b" ")[2], *lines, b"", b""]), body


async def _head(reader: asyncio.StreamReader) -> bytes:
    """The lines before a body; empty at the end of the stream."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
