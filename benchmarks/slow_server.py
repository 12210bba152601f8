"""An HTTP server for a folder, with the latency of a bucket: it answers each request after a delay.

    python -m benchmarks.slow_server FOLDER MS

It prints its URL, keeps connections open, ignores a URL's query, and ends when its standard input is closed.
"""

from __future__ import annotations

import asyncio
import mmap
import socket
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote

SEND_BUFFER = 1 << 21
"""Size of a connection's send buffer: it holds a whole file, so sending never waits for the client."""


class Connection(asyncio.Protocol):
    """A connection to one client, which gets each answer ``delay`` seconds after its request."""

    def __init__(self, folder: Path, delay: float) -> None:
        self._folder, self._delay, self._received = folder, delay, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection, and enlarge its send buffer."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)

    def data_received(self, data: bytes) -> None:
        """Schedule answers to all requests that are complete, and keep the rest."""
        *requests, self._received = (self._received + data).split(b"\r\n\r\n")
        for request in requests:
            method, target, _ = request.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
            asyncio.get_running_loop().call_later(self._delay, self._answer, method, target)

    def _answer(self, method: str, target: str) -> None:
        try:
            body = _file(self._folder / unquote(target.partition("?")[0]).lstrip("/")) if method in ("GET", "HEAD") else None
        except (OSError, ValueError):
            body = None
        status = "200 OK" if body is not None else "404 Not Found"
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/octet-stream\r\nContent-Length: {len(body or b'')}\r\n\r\n"
        self._transport.write(head.encode())
        if body is not None and method == "GET":
            self._transport.write(body)


@cache
def _file(path: Path) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


async def serve(folder: Path, delay: float) -> None:
    """Serve the folder until standard input is closed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(folder, delay), "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    ended = asyncio.Event()
    loop.add_reader(sys.stdin, ended.set)
    await ended.wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), float(sys.argv[2]) / 1e3))
