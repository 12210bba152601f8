"""Files in S3, and in other file systems that fsspec supports."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import numpy as np
import psutil
import pytest
from bad_files import npy
from conftest import Ran
from servers import Proxy, Request, moto, put
from test_readers import reader
from test_remote import SECRET, failure, got

from shmgen import InputError, Loader, Npy, NpyRows, Remote, SampleError
from shmgen._storage import s3_store, store
from shmgen._storage.s3_store import Keys

N = 12

IDS = [f"a b/id-{number}-µ+%" for number in range(N)]

URL = "s3://bucket/data"

KEYS = {"key": "a", "secret": "b"}


@pytest.fixture(scope="module")
def storage(signing: None) -> Iterator[int]:
    """The port of an S3 with a bucket of N samples, and their rows in ``all.npy``."""
    with moto() as port:
        put(port, "bucket")
        rows = np.repeat(np.arange(N, dtype="f4"), 12).reshape(N, 4, 3)
        for id, row in zip(IDS, rows, strict=True):
            put(port, f"bucket/data/{quote(id)}.npy", npy(row))
        put(port, "bucket/data/all.npy", npy(rows))
        put(port, "bucket/data/other.txt", b"text")
        yield port


@pytest.fixture
def proxy(storage: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A `Proxy` before the storage; retries hardly wait, and no credentials are found."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setattr(store, "FIRST_WAIT", 0.001)
    s3_store._session.cache_clear()  # another test may have found credentials
    proxy = Proxy(storage)
    yield proxy
    proxy.stop()
    s3_store._session.cache_clear()


@pytest.fixture
def environment(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets AWS's variables for the bucket's address and keys."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


def files(proxy: Proxy, url: str = URL, **more: Any) -> Remote:
    """The files at ``url``, read with the credentials `KEYS`."""
    return Remote(url, options={"endpoint_url": proxy.url, **KEYS, **more})


def prepared(remote: Remote) -> Remote:
    """``remote``, after `prepare`."""
    remote.prepare()
    return remote


def signed(request: Request) -> dict[str, str]:
    """The parameters of a signed request."""
    return {name: value[0] for name, value in parse_qs(urlsplit(request.target).query).items()}


def test_one_request_an_object(proxy: Proxy) -> None:
    """Each object, of any name, takes one signed GET, over one connection; nothing is listed."""
    source = reader(Npy(files(proxy)), IDS)
    proxy.requests.clear()
    connections = proxy.connections
    assert source.filled(IDS) == list(range(N))
    assert [request.method for request in proxy.requests] == ["GET"] * N
    assert all(request.target.startswith("/bucket/data/a%20b/id-") for request in proxy.requests)
    assert {signed(request)["X-Amz-Credential"].partition("/")[0] for request in proxy.requests} == {"a"}
    assert proxy.connections == connections + 1
    assert source.reader.place(IDS[3]) == "s3://bucket/data/a b/id-3-µ+%.npy"
    rows = reader(NpyRows(files(proxy, f"{URL}/all.npy")), range(N))
    proxy.requests.clear()
    assert rows.filled([4, 5, 6, 1]) == [4, 5, 6, 1]
    assert [request.headers["range"] for request in proxy.requests] == ["bytes=320-463", "bytes=176-223"]


def test_missing_objects_and_buckets_are_named(proxy: Proxy) -> None:
    """The error for a missing object or bucket has its URL and S3's code."""
    source = reader(Npy(files(proxy)), IDS)
    with pytest.raises(SampleError, match=r"s3://bucket/data/none\.npy: expected the file, found 404 Not Found \(NoSuchKey\)$"):
        source.filled(["none"])
    with pytest.raises(SampleError, match=r"s3://other/x/id\.npy: expected the file, found 404 Not Found \(NoSuchBucket\)$"):
        Npy(files(proxy, "s3://other/x")).bind(["id"])
    assert "expected a key of UTF-8 text whose parts are none of" in failure(prepared(files(proxy)), "a//b")


def test_the_token_is_sent_to_no_other_host(proxy: Proxy, storage: int) -> None:
    """A request redirected to another host has neither token nor signature."""
    other = Proxy(storage)
    try:
        remote = prepared(files(proxy, token=SECRET, anon=False))
        proxy.faults["all.npy"] = [f"307 Location: {other.url}/bucket/data/all.npy"]
        assert len(got(remote, "all.npy")) == 128 + N * 48
        assert signed(proxy.requests[-1])["X-Amz-Security-Token"] == SECRET
        [request] = other.requests
        assert request.target == "/bucket/data/all.npy"
        assert request.headers.keys() == {"host", "user-agent", "accept-encoding"}
    finally:
        other.stop()


def test_credentials_come_from_the_environment(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Address and credentials come from AWS's variables; without credentials, the error says how to read a public bucket."""
    with pytest.raises(InputError, match=r"s3://bucket/data: expected credentials .* found none; for a public bucket pass"):
        Remote(URL, options={"endpoint_url": proxy.url}).prepare()
    public = prepared(Remote(URL, options={"endpoint_url": proxy.url, "anon": True}))
    assert len(got(public, "all.npy")) == 128 + N * 48
    assert proxy.requests[-1].target == "/bucket/data/all.npy"
    assert sorted(public.store.names()) == sorted(["all.npy", *[f"{id}.npy" for id in IDS]])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-3")
    s3_store._session.cache_clear()
    assert len(got(prepared(Remote(URL)), "all.npy")) == 128 + N * 48
    sent = signed(proxy.requests[-1])
    assert sent["X-Amz-Credential"].startswith("me/")
    assert sent["X-Amz-Credential"].endswith("/eu-west-3/s3/aws4_request")
    assert sent["X-Amz-Security-Token"] == "token"
    # Credentials given as options are not mixed with those of the environment.
    got(prepared(files(proxy)), "all.npy")
    assert "X-Amz-Security-Token" not in signed(proxy.requests[-1])


def test_signatures_are_those_of_botocore(proxy: Proxy) -> None:
    """Signatures equal botocore's for any name; with ``requester_pays`` the request says so."""
    from botocore.config import Config
    from botocore.session import Session

    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "config": Config(signature_version="s3v4")}
    client = Session().create_client("s3", region_name="eu-west-1", endpoint_url=proxy.url, **keys)
    remote = prepared(files(proxy, "s3://bucket", region="eu-west-1"))
    for key in ("a.npy", "a b/µ+%~é.npy", "(1)*'!&=;,@$.npy"):
        ours, theirs = {"X-Amz-Date": "-"}, {"X-Amz-Date": ""}
        while theirs["X-Amz-Date"] != ours["X-Amz-Date"]:
            url = client.generate_presigned_url("get_object", {"Bucket": "bucket", "Key": key}, ExpiresIn=3600)
            theirs = {name: value[0] for name, value in parse_qs(urlsplit(url).query).items()}
            failure(remote, key)
            ours = signed(proxy.requests[-1])
        assert ours == theirs
    got(prepared(files(proxy, requester_pays=True)), "all.npy")
    assert signed(proxy.requests[-1])["x-amz-request-payer"] == "requester"


def test_credentials_are_renewed_before_they_expire(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials are renewed before they expire, and when the server answers that they have expired."""
    found = iter(
        [Keys("first", "s", "t", time.time() + 1), Keys("second", "s", "t", time.time() + 9999), Keys("third", "s", "t")]
    )
    monkeypatch.setattr(s3_store, "_found", lambda profile: next(found))
    remote = prepared(Remote(URL, options={"endpoint_url": proxy.url}))
    got(remote, "all.npy")
    assert signed(proxy.requests[-1])["X-Amz-Credential"].startswith("second/")
    proxy.faults["all.npy"] = ["400"]
    proxy.text = b"<Error><Code>ExpiredToken</Code></Error>"
    got(remote, "all.npy")
    assert signed(proxy.requests[-1])["X-Amz-Credential"].startswith("third/")


@pytest.mark.usefixtures("environment")
def test_a_bucket_of_another_region(proxy: Proxy) -> None:
    """If an answer names the bucket's region, that is used for all later requests."""
    remote = prepared(Remote(URL))
    proxy.faults["all.npy"] = ["301 x-amz-bucket-region: ap-south-1"]
    for _ in range(2):
        got(remote, "all.npy")
        assert "/ap-south-1/s3/" in signed(proxy.requests[-1])["X-Amz-Credential"]
    assert len(proxy.requests) == 3


@pytest.mark.usefixtures("environment")
def test_a_loader_of_a_bucket(proxy: Proxy, tmp_path: Path, workers: Callable[[], list[psutil.Process]]) -> None:
    """``data_dir`` may be a bucket, with a cache; of the libraries, a worker loads only obstore."""
    labels = {id: number for number, id in enumerate(IDS)}
    with Loader(IDS, labels, 4, data_dir=URL, cache=tmp_path, workers=1, reads=1) as loader:
        for _ in range(2):
            for X, y in loader:
                assert X[:, 0, 0].tolist() == y.tolist()
        [worker] = workers()
        mapped = Path(f"/proc/{worker.pid}/maps").read_text()
        threads = worker.num_threads()
    assert [name for name in ("numpy", "aiohttp", "botocore", "multidict") if f"/{name}/" in mapped] == []
    assert "/obstore/" in mapped
    assert threads <= 3  # the main thread, the reader, and obstore's


@pytest.mark.usefixtures("environment")
def test_a_scan_of_a_bucket(proxy: Proxy, cli: Callable[..., Ran], tmp_path: Path) -> None:
    """A scan lists a bucket once and requests each object once; a given id without an object is damaged."""
    done = cli("scan", URL, "--json")
    found = done.json
    assert (done.status, done.err) == (1, ""), found
    assert (found["samples"], [one["id"] for one in found["damaged"]]) == (N + 1, ["all"])
    asked = [request for request in proxy.requests if urlsplit(request.target).path.endswith(".npy")]
    assert len(asked) == N + 1
    assert len(proxy.requests) - len(asked) == 1
    (tmp_path / "ids").write_text("\n".join([*IDS, "none"]))
    done = cli("scan", URL, "--ids", "ids", "--json")
    found = done.json
    assert (done.status, done.err) == (1, "")
    assert [(one["id"], one["path"]) for one in found["damaged"]] == [("none", f"{URL}/none.npy")]
    assert found["damaged"][0]["reason"].startswith("expected the file, found 404")


def test_any_file_system_of_fsspec(tmp_path: Path) -> None:
    """Files behind a chained URL of fsspec, such as one into an archive, are read."""
    from zipfile import ZipFile

    ids = [f"id-{number}" for number in range(N)]
    with ZipFile(tmp_path / "all.zip", "w") as archive:
        for number, id in enumerate(ids):
            archive.writestr(f"data/{id}.npy", npy(np.full((4, 3), number, "f4")))
    url = f"zip://data::file://{tmp_path}/all.zip"
    with Loader(ids, dict(zip(ids, range(N), strict=True)), 4, data_dir=url, workers=1) as loader:
        for X, y in loader:
            assert X[:, 0, 0].tolist() == y.tolist()
    with pytest.raises(SampleError, match=r"zip://data/none\.npy::file://.*/all\.zip: expected the file, found: "):
        Npy(url).bind(["none"])
    assert sorted(Remote(url).store.names()) == sorted(f"{id}.npy" for id in ids)


def test_unknown_file_systems_are_refused() -> None:
    """An unknown file system or a missing archive is an error that shows no secret."""
    for url, text in {
        f"nonsense://me:{SECRET}@host/folder?{SECRET}": "nonsense://host/folder?...: ValueError: Protocol not known: nonsense",
        "zip://data::file:///none.zip": "zip://data::file:///none.zip: FileNotFoundError",
    }.items():
        with pytest.raises(InputError) as raised:
            Npy(url).bind(["id"])
        assert text in str(raised.value)
        assert SECRET not in str(raised.value)


def test_errors_of_file_systems_are_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any error of fsspec but a missing file is retried, and named when the tries are used up."""
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

    monkeypatch.setattr(store, "FIRST_WAIT", 0.001)
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    Flaky().pipe_file("memory://data/id.npy", npy(np.full((4, 3), 7, "f4")))
    remote = Remote("flaky://data")
    Flaky.left = 2
    assert got(remote, "id.npy") == npy(np.full((4, 3), 7, "f4"))
    Flaky.left = 100
    assert failure(remote, "id.npy").startswith("expected the file, found RuntimeError: try again; tried 8 times in")
