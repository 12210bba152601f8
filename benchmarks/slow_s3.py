"""A moto bucket with latency that holds the files of a folder: ``python -m benchmarks.slow_s3 FOLDER MS``.

It prints its endpoint, and ends when its standard input is closed. Both of its keys are ``test``.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

BUCKET = "photos"


def main() -> None:
    """Fill the bucket and serve it."""
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Silent(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, type: str, message: str, *args: object) -> None:
            """Log nothing."""

    answer = DomainDispatcherApplication(create_backend_app)
    delay = 0.0

    def late(environ: Any, start: Callable[..., Any]) -> Iterable[bytes]:
        time.sleep(delay)
        return answer(environ, start)

    server = make_server("127.0.0.1", 0, late, threaded=True, request_handler=Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
    )
    client.create_bucket(Bucket=BUCKET)
    for file in Path(sys.argv[1]).iterdir():
        client.put_object(Bucket=BUCKET, Key=file.name, Body=file.read_bytes())
    delay = float(sys.argv[2]) / 1e3
    print(endpoint, flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
