"""Files in S3, and of any file system that fsspec knows."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import ROOT
from servers import Proxy, moto, put
from test_readers import filled, reader
from test_remote_scan import scan

from shmgen import InputError, Loader, Npy, NpyRows, SampleError
from shmgen._storage import remote, s3_store

pytest.importorskip("s3fs", reason="s3fs is not installed: it is in the extra remote")

N = 12

IDS = [f"a b/id-{number}-µ+%" for number in range(N)]

KEYS = {"key": "a", "secret": "b"}


def as_file(array: np.ndarray) -> bytes:
    """What `numpy.save` writes."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture(scope="module")
def storage() -> Iterator[int]:
    """The port of an S3 with a bucket of N samples, and their rows in ``all.npy``."""
    from urllib.parse import quote

    with moto() as port:
        put(port, "bucket")
        rows = np.repeat(np.arange(N, dtype="f4"), 12).reshape(N, 4, 3)
        for id, row in zip(IDS, rows, strict=True):
            put(port, f"bucket/data/{quote(id)}.npy", as_file(row))
        put(port, "bucket/data/all.npy", as_file(rows))
        put(port, "bucket/data/other.txt", b"text")
        yield port


@pytest.fixture
def proxy(storage: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A `Proxy` before it. What is tried again here is tried at once."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    s3_store._session.cache_clear()  # another test may have found credentials
    proxy = Proxy(storage)
    yield proxy
    proxy.stop()
    s3_store._session.cache_clear()


def options(proxy: Proxy, **more: Any) -> dict[str, Any]:
    """Of s3fs."""
    return {"endpoint_url": proxy.url, **KEYS, **more}


def test_one_request_an_object(proxy: Proxy) -> None:
    """A signed GET each, over one connection; names with any signs in them; nothing is listed."""
    source = reader(Npy("s3://bucket/data", storage_options=options(proxy)), IDS)
    proxy.requests.clear()
    connections = proxy.connections
    assert filled(source, IDS) == list(range(N))
    assert [request.method for request in proxy.requests] == ["GET"] * N
    assert all(request.target.startswith("/bucket/data/a%20b/id-") for request in proxy.requests)
    assert all("Credential=a/" in request.headers["authorization"] for request in proxy.requests)
    assert proxy.connections == connections + 1
    assert source.reader.place(IDS[3]) == "s3://bucket/data/a b/id-3-µ+%.npy"


def test_rows_of_an_object(proxy: Proxy) -> None:
    """A part of the object for each run of neighbours."""
    source = reader(NpyRows("s3://bucket/data/all.npy", storage_options=options(proxy)), range(N))
    proxy.requests.clear()
    assert filled(source, [4, 5, 6, 1]) == [4, 5, 6, 1]
    assert [request.headers["range"] for request in proxy.requests] == ["bytes=320-463", "bytes=176-223"]


@pytest.mark.parametrize("fault", ["503", "500", "reset", "half"])
def test_what_may_pass_is_tried_again(proxy: Proxy, fault: str) -> None:
    """As behind http; each try is signed anew."""
    source = reader(Npy("s3://bucket/data", storage_options=options(proxy)), IDS)
    proxy.faults = {f"id-{number}-%C2%B5%2B%25.npy": [fault, fault] for number in range(N)}
    assert filled(source, IDS[:3]) == [0, 1, 2]


def test_what_is_not_there_is_named(proxy: Proxy) -> None:
    """By its place, with what S3 says; and a bucket as well, which is found when the loader is made."""
    source = reader(Npy("s3://bucket/data", storage_options=options(proxy)), IDS)
    with pytest.raises(SampleError, match=r"s3://bucket/data/none\.npy: expected the file, found 404 .*NoSuchKey"):
        filled(source, ["none"])
    with pytest.raises(SampleError, match=r"s3://other/x/id\.npy: expected the file, found 404 .*NoSuchBucket"):
        Npy("s3://other/x", storage_options=options(proxy)).bind(["id"])


def test_credentials_come_from_the_environment(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """As AWS's own tools find them, and its address too; without any, the error says how to do without."""
    url = "s3://bucket/data"
    with pytest.raises(InputError, match=r"s3://bucket/data: expected credentials .* found none; for a public bucket pass"):
        Npy(url, storage_options={"endpoint_url": proxy.url}).bind(IDS)
    assert filled(reader(Npy(url, storage_options={"endpoint_url": proxy.url, "anon": True}), IDS), IDS[:2]) == [0, 1]
    assert "authorization" not in proxy.requests[-1].headers
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-3")
    s3_store._session.cache_clear()
    assert filled(reader(Npy(url), IDS), IDS[:2]) == [0, 1]
    headers = proxy.requests[-1].headers
    assert "Credential=me/" in headers["authorization"]
    assert "/eu-west-3/s3/aws4_request" in headers["authorization"]
    assert headers["x-amz-security-token"] == "token"


def test_credentials_are_found_anew_before_they_expire(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """And when the server says that they have expired: no sample is lost."""
    from shmgen._storage.s3_store import Keys

    found = iter(
        [Keys("first", "s", "t", time.time() + 1), Keys("second", "s", "t", time.time() + 9999), Keys("third", "s", "t")]
    )
    monkeypatch.setattr(s3_store, "_found", lambda profile: next(found))
    source = reader(Npy("s3://bucket/data", storage_options={"endpoint_url": proxy.url}), IDS)
    name = "id-5-%C2%B5%2B%25.npy"
    assert filled(source, IDS[:2]) == [0, 1]
    assert "Credential=second/" in proxy.requests[-1].headers["authorization"]
    proxy.faults[name] = ["400"]
    proxy.text = b"<Error><Code>ExpiredToken</Code></Error>"
    assert filled(source, IDS[4:7]) == [4, 5, 6]
    assert "Credential=third/" in proxy.requests[-1].headers["authorization"]


def test_a_bucket_of_another_region(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer says of which; from then on it is asked there."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    s3_store._session.cache_clear()
    source = reader(Npy("s3://bucket/data", storage_options=KEYS), IDS)
    proxy.faults["id-5-%C2%B5%2B%25.npy"] = ["301 x-amz-bucket-region: ap-south-1"]
    assert filled(source, IDS[4:7]) == [4, 5, 6]
    s3_store._session.cache_clear()
    assert "/ap-south-1/s3/" in proxy.requests[-1].headers["authorization"]


@pytest.mark.parametrize("token", [None, "to/ken+="])
@pytest.mark.parametrize("key", ["a.npy", "a b/µ+%~é.npy", "x//y.npy", "(1)*'!&=;,@$.npy"])
def test_signatures_are_those_of_botocore(monkeypatch: pytest.MonkeyPatch, key: str, token: str | None) -> None:
    """For any name, with and without a session's token, at the same second."""
    from urllib.parse import quote

    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    from shmgen._storage.s3_store import Keys, signature

    path = f"/bucket/{quote(key)}"
    auth = S3SigV4Auth(Credentials("access", "secret/+", token), "s3", "eu-west-1")
    auth.payload = lambda request: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    theirs: dict[str, str] = {"x-amz-date": ""}
    ours = {"x-amz-date": "-"}
    while theirs["x-amz-date"] != ours["x-amz-date"]:
        request = AWSRequest("GET", f"https://host:99{path}", headers={"x-amz-request-payer": "requester"})
        auth.add_auth(request)
        ours = signature(Keys("access", "secret/+", token), "eu-west-1", "host:99", path, {"x-amz-request-payer": "requester"})
        theirs = {name.lower(): value for name, value in request.headers.items()}
    for name, value in ours.items():
        assert theirs[name.lower()] == value, name


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_of_a_bucket(proxy: Proxy, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """``data_dir`` may be a bucket."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    labels = {id: number for number, id in enumerate(IDS)}
    s3_store._session.cache_clear()
    with Loader(IDS, labels, 4, data_dir="s3://bucket/data", workers=workers) as loader:
        for _ in range(2):
            for X, y in loader:
                assert X[:, 0, 0].tolist() == y.tolist()
    s3_store._session.cache_clear()


def test_a_worker_of_a_bucket_is_lean(proxy: Proxy, workers: Callable[[], list[psutil.Process]]) -> None:
    """It signs by itself, and imports nothing of AWS's."""
    with Loader(IDS, None, 4, source=Npy("s3://bucket/data", storage_options=options(proxy)), workers=1) as loader:
        list(loader)
        [worker] = workers()
        mapped = Path(f"/proc/{worker.pid}/maps").read_text()
    assert [name for name in ("numpy", "aiohttp", "botocore", "multidict") if f"/{name}/" in mapped] == []


# Other file systems.


def test_options_that_only_s3fs_knows(proxy: Proxy) -> None:
    """Then s3fs itself gets the objects; its connections are for the whole process, so it has one of its own."""
    code = f"""
from test_s3 import *
options = {{"endpoint_url": {proxy.url!r}, **KEYS, "cache_regions": False}}
source = reader(Npy("s3://bucket/data", storage_options=options), IDS)
assert type(source._files.remote.store).__name__ == "FsspecStore"
assert filled(source, IDS[:3]) == [0, 1, 2]
rows = reader(NpyRows("s3://bucket/data/all.npy", storage_options=options), range(N))
assert filled(rows, [7, 8, 2]) == [7, 8, 2]
try: filled(source, ["none"])
except SampleError as error: print(error)
"""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path}
    )
    assert re.search(r"s3://bucket/data/none\.npy: expected the file, found: FileNotFoundError", run.stdout), run.stderr
    asked = [request.method for request in proxy.requests if "/id-" in request.target]
    assert asked == ["GET"] * 4  # one of them for the first header


@pytest.mark.parametrize("workers", [0, 2])
def test_any_file_system_of_fsspec(tmp_path: Path, workers: int) -> None:
    """An archive, as one that is nothing like a web server; chained as fsspec chains them."""
    from zipfile import ZipFile

    ids = [f"id-{number}" for number in range(N)]
    with ZipFile(tmp_path / "all.zip", "w") as archive:
        for number, id in enumerate(ids):
            archive.writestr(f"data/{id}.npy", as_file(np.full((4, 3), number, "f4")))
    url = f"zip://data::file://{tmp_path}/all.zip"
    with Loader(ids, dict(zip(ids, range(N), strict=True)), 4, data_dir=url, workers=workers) as loader:
        for X, y in loader:
            assert X[:, 0, 0].tolist() == y.tolist()
    with pytest.raises(SampleError, match=r"zip://data/none\.npy::file://.*/all\.zip: expected the file, found: "):
        Npy(url).bind(["none"])


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("nonsense://host/folder", "nonsense://host/folder: .*Protocol not known: nonsense"),
        ("zip://data::file:///none.zip", r"zip://data::file:///none\.zip: FileNotFoundError"),
    ],
)
def test_file_systems_that_are_none(url: str, text: str) -> None:
    """Found when the loader is made."""
    with pytest.raises(InputError, match=text):
        Npy(url).bind(["id"])


def test_what_may_pass_of_any_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it raises but for a file that is not there: it is tried again, and in the end named."""
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    class Flaky(MemoryFileSystem):
        protocol = ("flaky",)
        left = 2

        def cat_file(self, path: str, *args: Any, **kwargs: Any) -> Any:
            if Flaky.left:
                Flaky.left -= 1
                raise RuntimeError("try again")
            return super().cat_file(path.replace("flaky:", "memory:"), *args, **kwargs)

    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    Flaky().pipe_file("memory://data/id.npy", as_file(np.full((4, 3), 7, "f4")))
    source = reader(Npy("flaky://data"), ["id"])
    Flaky.left = 2
    assert filled(source, ["id"]) == [7]
    Flaky.left = 100
    with pytest.raises(SampleError, match=r"flaky://data/id\.npy: .*found RuntimeError: try again; tried 8 times in"):
        filled(source, ["id"])


# The scan.


@pytest.fixture
def environment(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tells a command where the bucket is, and who asks."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.usefixtures("environment")
def test_a_scan_of_a_bucket(proxy: Proxy, full: bool) -> None:
    """It is listed once; then each object is one request, for its first bytes alone, or for all of them."""
    status, found, err = scan("s3://bucket/data", *["--full"] * full)
    assert (status, err) == (1, ""), found
    assert (found["files"], len(found["damaged"])) == (N + 1, 1)
    assert found["damaged"][0]["id"] == "all"
    asked = [request for request in proxy.requests if request.target.endswith(".npy")]
    assert len(asked) == N + 1
    assert all(("range" in request.headers) != full for request in asked)
    assert len(proxy.requests) - len(asked) <= 3


@pytest.mark.usefixtures("environment")
def test_a_scan_of_given_ids() -> None:
    """Those that are not there are damaged."""
    status, found, err = scan("s3://bucket/data", "--ids", "-", stdin="\n".join([*IDS, "none"]))
    assert (status, err) == (1, "")
    assert [(one["id"], one["path"]) for one in found["damaged"]] == [("none", "s3://bucket/data/none.npy")]
    assert found["damaged"][0]["reason"].startswith("expected the file, found 404")
