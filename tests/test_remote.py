"""Files behind http: one request each, over kept connections; passing failures are retried, others are errors with the URL."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import ROOT, Ran, python, wait_until
from servers import Proxy, free_port, nginx
from test_npy import KINDS, number_up
from test_readers import reader

from shmgen import InputError, Loader, Npy, NpyRows, Remote, SampleError
from shmgen._storage import http_store, store
from shmgen._urls import shown, shown_in
from shmgen.errors import FormatError

N = 24

ROW_BYTES = 48

IDS = [f"id-{number}" for number in range(N)]


def got(files: Remote, name: str, start: int = 0, stop: int | None = None) -> bytes:
    """The bytes of a file, or of a part of it."""
    return files.store.get(name, lambda body: body.read(sys.maxsize), start, stop)


def failure(files: Remote, name: str, start: int = 0, stop: int | None = None) -> str:
    """The error for a file that can't be read."""
    with pytest.raises(FormatError) as raised:
        got(files, name, start, stop)
    return str(raised.value)


def refused(url: str, **options: Any) -> str:
    """The error for a URL, or options, that can't be used."""
    with pytest.raises(InputError) as raised:
        Remote(url, options=options)
    return str(raised.value)


@pytest.fixture
def file(root: Path) -> bytes:
    """The content of ``id-7.npy``."""
    return (root / "id-7.npy").read_bytes()


def test_one_request_a_file(root: Path, proxy: Proxy) -> None:
    """Each file takes one GET, over one kept connection, and there are no other requests."""
    source = reader(Npy(proxy.url), IDS)
    proxy.requests.clear()
    assert source.filled(IDS) == list(range(N))
    assert [(request.method, request.target) for request in proxy.requests] == [("GET", f"/{id}.npy") for id in IDS]
    assert proxy.connections == 2


def test_every_kind_of_file(root: Path, proxy: Proxy) -> None:
    """Each kind of file is read behind a URL as in a folder, by one request."""
    ids = [f"{kind}-{number}" for kind in KINDS for number in range(2)]
    for number, id in enumerate(ids):
        (root / f"{id}.npy").write_bytes(KINDS[id.rpartition("-")[0]](number_up((4, 3), np.float32, number)))
    local, remote = (reader(Npy(place, dtype="f4"), ids).reader for place in (root, proxy.url))
    proxy.requests.clear()
    for chosen in (ids, ids[::-3]):
        found = [bytearray(ROW_BYTES * len(chosen)) for _ in range(2)]
        for each, rows in zip((local, remote), found, strict=True):
            each.fill(chosen, memoryview(rows), [0])
        assert found[0] == found[1]
    assert len(proxy.requests) == len(ids) + len(ids[::-3])


NAMES = ["a b", "50%", "%2e%2e", "a%20b", "a#b", "a?b", "µ-ø-漢", "a+b", "a&b=c", "it's", 'a"b', "a\\b", "sub/dir", "..x", "~"]


def test_file_names_are_quoted_in_urls(root: Path, proxy: Proxy) -> None:
    """An id names the same file behind a URL as in a folder; the URL of a folder may be quoted or not."""
    for number, name in enumerate(NAMES):
        (root / f"{name}.npy").parent.mkdir(exist_ok=True)
        np.save(root / f"{name}.npy", np.full((4, 3), number, "f4"))
    assert reader(Npy(f"{proxy.url}/"), NAMES).filled(NAMES) == list(range(len(NAMES)))
    (root / "in here").mkdir()
    shutil.copy(root / "id-5.npy", root / "in here" / "x.npy")
    for folder in ("in here", "in%20here"):
        assert reader(Npy(f"{proxy.url}/{folder}"), ["x"]).filled(["x"]) == [5]
    for id in ("../secret", "/secret", "a/../../secret"):
        proxy.requests.clear()
        with pytest.raises(InputError, match=rf"folder {proxy.url}/sub, found a path out of it; pass the URL of a folder"):
            reader(Npy(f"{proxy.url}/sub"), ["a", id])
        assert proxy.requests == []


FAULTS = ["reset", "close", "half", "stall", "hang", "drip", "drip-head", "nonsense", "429 Retry-After: 0", "408", "503", "520"]


def test_passing_failures_are_retried(file: bytes, proxy: Proxy) -> None:
    """After two passing failures of any kind, the third try reads the file."""
    files = Remote(proxy.url, options={"timeout": 0.2})
    proxy.faults["id-7.npy"] = ["chunks"]  # an answer without a length, which is no failure
    assert got(files, "id-7.npy") == file
    for number, fault in enumerate(FAULTS):
        start, stop = (0, None) if number % 2 else (12, 40)
        proxy.requests.clear()
        proxy.faults["id-7.npy"] = [fault, fault]
        assert got(files, "id-7.npy", start, stop) == file[start:stop], fault
        assert len(proxy.requests) == 3, fault


def test_a_connection_closed_by_the_server_is_replaced(file: bytes, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kept connection that the server has closed is replaced at once, without counting as a try."""
    files = Remote(proxy.url)
    got(files, "id-0.npy")
    monkeypatch.setattr(store, "TRIES", 1)
    proxy.faults["id-7.npy"] = ["close"]
    assert got(files, "id-7.npy") == file


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("503", "503 Service Unavailable"),
        ("reset", "Connection reset by peer"),
        ("half", "an answer that broke off 88 bytes before its end"),
        ("hang", "no answer in time"),
    ],
)
def test_lasting_failures_are_named(root: Path, proxy: Proxy, fault: str, found: str) -> None:
    """The error of a lasting failure has the URL, the answer, the number of tries and the time."""
    source = reader(Npy(Remote(proxy.url, options={"timeout": 0.1})), IDS)
    proxy.requests.clear()
    proxy.faults["id-2.npy"] = [fault] * 100
    with pytest.raises(SampleError) as raised:
        source.filled(IDS)
    error = raised.value
    assert (error.id, error.path) == ("id-2", f"{proxy.url}/id-2.npy")
    assert re.fullmatch(rf"expected the file, found {found}; tried 8 times in \d+\.\d s", error.reason)
    assert str(error) == f"sample 'id-2', {error.path}: {error.reason}"
    assert source.begun == [3]
    # A lost connection that had been kept does not count as a try.
    assert proxy.targets.count("/id-2.npy") == store.TRIES + (fault == "reset")


def test_a_silent_server_is_given_up_in_the_promised_time(root: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent server is given up after the promised time, or half of it if it never answered; the error gives the time."""
    monkeypatch.setattr(store, "PATIENCE", 1.0)
    monkeypatch.setattr(store, "FIRST_PATIENCE", 0.5)
    files = Remote(proxy.url, options={"timeout": 0.4})
    for known, fault, patience in ((False, "hang", 0.5), (True, "drip", 1.0)):
        files.store._has_answered = known
        proxy.always = fault
        begun = time.thread_time(), time.monotonic()
        text = failure(files, "id-7.npy")
        took = time.monotonic() - begun[1]
        said = re.fullmatch(r"expected the file, found no answer in time; tried (\d) times in (\d\.\d) s", text)
        assert said, text
        assert 2 <= int(said[1]) <= 4
        assert abs(float(said[2]) - took) < 0.2 + took / 2
        assert patience * 0.6 <= float(said[2])
        assert time.thread_time() - begun[0] < 0.3


def test_a_slow_answer_is_read_to_its_end(root: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that arrives slowly, but steadily, is read to its end."""
    (root / "id-7.npy").write_bytes(bytes(40))
    monkeypatch.setattr(http_store, "SLOWEST", 20)
    proxy.always = "drip"
    begun = time.monotonic()
    files = Remote(proxy.url, options={"timeout": 0.3})
    assert got(files, "id-7.npy") == bytes(40)
    assert time.monotonic() - begun > 0.6


def test_lasting_failures_are_not_retried(root: Path, proxy: Proxy) -> None:
    """A lasting status is an error at once; it shows the code of S3, but not the page that was sent."""
    files = Remote(proxy.url)
    proxy.requests.clear()
    found = {}
    for status in ("404", "403", "401", "410", "400", "418", "599"):
        proxy.faults["id-2.npy"] = [status]
        found[status] = failure(files, "id-2.npy")
    assert found == {
        "404": "expected the file, found 404 Not Found",
        "403": "expected the file, found 403 Forbidden; pass credentials in the options",
        "401": "expected the file, found 401 Unauthorized; pass credentials in the options",
        "410": "expected the file, found 410 Gone",
        "400": "expected the file, found 400 Bad Request",
        "418": "expected the file, found 418 I'm a Teapot",
        "599": "expected the file, found 599",
    }
    proxy.text = b"<?xml?><Error><Code>NoSuchKey</Code><Message>The secret</Message></Error>"
    proxy.faults["id-2.npy"] = ["404"]
    assert failure(files, "id-2.npy") == "expected the file, found 404 Not Found (NoSuchKey)"
    assert len(proxy.requests) == len(found) + 1


def test_an_answer_with_other_bytes_is_refused(root: Path, proxy: Proxy) -> None:
    """An answer with other bytes than those requested is refused."""
    files = Remote(proxy.url)
    for header, text in {
        "Content-Encoding: gzip": "expected the file as it is, found it encoded as gzip; store it as it is",
        "Content-Range: bytes 0-47/1280": (
            "expected the part of the file from byte 272 on, found Content-Range: bytes 0-47/1280"
        ),
    }.items():
        proxy.faults["all.npy"] = [header]
        assert failure(files, "all.npy", 272, 320) == text
    assert failure(files, "all.npy", 5000, 5001) == "expected bytes from 5,000 on, found a file of 1280 bytes: it is truncated"
    assert "found the whole: the server has no ranges" in failure(files, "whole/all.npy", 272, 320)
    (root / "id-0.npy").write_text("<html>please log in</html>")
    with pytest.raises(SampleError, match=r"id-0\.npy: expected an \.npy file, found one that begins with b'<html>'"):
        reader(Npy(proxy.url), IDS)


def test_retry_after_is_obeyed(file: bytes, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry-After, in seconds or as a date, is obeyed up to a minute; without it, waits double each time, with random jitter."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(store, "FIRST_WAIT", 0.1)
    files = Remote(proxy.url)
    files.store._has_answered = True
    date = formatdate(time.time() + 20, usegmt=True)
    asked = ["429 Retry-After: 7", "503 Retry-After: 100000", f"503 Retry-After: {date}", "503 Retry-After: soon"]
    proxy.faults["id-7.npy"] = [*asked, *["503"] * 3]
    assert got(files, "id-7.npy") == file
    assert waits[:2] == [7, 60]
    assert 15 < waits[2] <= 20
    assert all(0.4 * 2**n <= wait <= 0.8 * 2**n for n, wait in enumerate(waits[3:]))
    assert len({wait / 2**n for n, wait in enumerate(waits[3:])}) == 4


def test_ctrl_c_ends_a_wait_for_a_silent_server(root: Path, proxy: Proxy) -> None:
    """Ctrl-C ends a constructor that waits for a silent server."""
    proxy.always = "hang"
    code = f"from shmgen import Loader\nLoader(['a'], None, 1, data_dir={proxy.url!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    wait_until(lambda: proxy.in_flight, "the request is in flight", 60)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - begun < 10
    assert err.count("Traceback") == 1
    assert err.endswith("KeyboardInterrupt\n")


def test_redirections(root: Path, proxy: Proxy, file: bytes) -> None:
    """Up to five redirections are followed, and only to http URLs."""
    assert got(Remote(f"{proxy.url}/moved"), "id-7.npy") == file
    (root / "é b").mkdir()
    shutil.copy(root / "id-7.npy", root / "é b" / "x.npy")
    files = Remote(proxy.url)
    for place in (
        "é b/x.npy".encode().decode("latin-1"),
        "/%C3%A9%20b/x.npy",
        f"{proxy.url}/é b/x.npy".encode().decode("latin-1"),
    ):
        proxy.faults["x"] = [f"302 Location: {place}"]
        assert got(files, "x") == file
        assert "secret" not in str(proxy.requests[-1])
    assert "found more than 5 redirections, the last to http" in failure(Remote(f"{proxy.url}/round"), "id-0.npy")
    for place in ("file:///etc/passwd?secret", "//127.0.0.1:secret/", "http://me:secret@:80/", "https://host:secret/"):
        proxy.faults["x"] = [f"301 Location: {place}"]
        text = failure(files, "x")
        assert text.startswith("expected the URL of a file, found a redirection to ")
        assert "secret" not in text


def test_headers_are_not_sent_to_another_host(root: Path, proxy: Proxy, served: tuple[Path, int], file: bytes) -> None:
    """A request redirected to another host has none of the user's headers; one redirected to the same host has all."""
    other = Proxy(served[1])
    headers = {"authorization": "Bearer a", "COOKIE": "b", "X-Api-Key": "c", "user-agent": "me"}
    try:
        for url in (proxy.url, proxy.url.replace("//", "//user:d@")):
            files = Remote(url, options={"headers": headers})
            proxy.faults["id-1.npy"] = [f"307 Location: {other.url}/id-7.npy"]
            assert got(files, "id-1.npy", 3, 50) == file[3:50]
            proxy.faults["id-1.npy"] = ["307 Location: id-7.npy"]
            assert got(files, "id-1.npy") == file
        for request in other.requests:
            assert request.headers.keys() == {"host", "user-agent", "accept-encoding", "range"}
            assert request.headers["user-agent"] == "shmgen"
        for request in proxy.requests:
            assert (request.headers["x-api-key"], request.headers["cookie"], request.headers["user-agent"]) == ("c", "b", "me")
            assert "authorization" in request.headers
    finally:
        other.stop()


def test_user_and_query_of_a_url_are_sent_but_not_shown(root: Path, proxy: Proxy, file: bytes) -> None:
    """The user and the query of a URL are sent, but never shown."""
    private = Remote(proxy.url.replace("//", "//user:pass%20word@") + "/private")
    assert got(private, "id-7.npy") == file
    assert private.store.place("id-7.npy") == f"{proxy.url}/private/id-7.npy"
    asks = Remote(f"{proxy.url}/asks?key=secret#part")
    assert got(asks, "id-7.npy") == file
    assert asks.store.place("id-7.npy") == f"{proxy.url}/asks/id-7.npy?..."


SECRET = "s3cr3t"

UNUSABLE: list[tuple[str, dict[str, Any], str]] = [
    (f"https://host:{SECRET}/x", {}, "expected a URL such as https://host/folder, found 'https://host:.../x'"),
    (f"https://me:{SECRET}@host:port/x?{SECRET}", {}, "found 'https://host:.../x?...'"),
    (f"https://me:{SECRET[:2]}/{SECRET}@host/x", {}, "found 'https://host/x'"),
    (f"s3://me:{SECRET}@/x", {}, "expected a URL such as s3://bucket/folder, found 's3:///x'"),
    ("https://[x/", {}, "expected a URL such as https://host/folder"),
    ("https://host/x", {"anon": True}, "expected 'headers', 'timeout' for https, found 'anon'"),
    ("https://host/x", {"timeout": SECRET}, "'timeout': expected seconds, found str"),
    ("https://host/x", {"headers": [SECRET]}, "'headers': expected a Mapping, found list"),
    ("https://host/x", {"headers": {"X": f"Bearer {SECRET}\n"}}, "header 'X': expected a name and a line"),
    ("https://host/x", {"headers": {"X:Y": SECRET}}, "header 'X:Y': expected"),
    ("s3://bucket/x", {"secret": [SECRET]}, "'secret': expected a str, found list"),
]


def test_unusable_urls_and_options_are_refused() -> None:
    """An unusable URL or option is an error of the constructor that shows no secret."""
    for url, options, text in UNUSABLE:
        said = refused(url, **options)
        assert text in said
        assert SECRET not in said


def test_urls_are_shown_without_secrets() -> None:
    """URLs, alone or in a message, are shown without user and query."""
    for url, text in {
        "https://host/a b?sig=x": "https://host/a b?...",
        "ftp://me:p@ss@host:21/a@b": "ftp://host:21/a@b",
        "https://[::1]:80/x": "https://[::1]:80/x",
        "zip://a.npy::https://me:pw@host/z.zip?sig=x": "zip://a.npy::https://host/z.zip?...",
    }.items():
        assert shown(url) == text
    message = "cannot reach (https://me:pw@host/x?sig=y), https://host/x?...: or /d/HTTPS://me:pw@host, is it there?"
    assert shown_in(message) == "cannot reach (https://host/x?..., https://host/x?...: or /d/HTTPS://host, is it there?"


@pytest.fixture
def secure(root: Path, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The URL of a server with a certificate of its own, and the certificate's file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    pem, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x -addext subjectAltName=IP:127.0.0.1 -keyout {key}"
    subprocess.run([*command.split(), "-out", str(pem)], check=True, capture_output=True)
    port = free_port()
    with nginx(root, tmp_path / "nginx", f"listen 127.0.0.1:{port} ssl; ssl_certificate {pem}; ssl_certificate_key {key};"):
        yield f"https://127.0.0.1:{port}", pem
    http_store._context.cache_clear()


def test_self_signed_certificates(secure: tuple[str, Path], file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A self-signed certificate is refused at once, unless SSL_CERT_FILE names it."""
    url, pem = secure
    http_store._context.cache_clear()
    text = failure(Remote(url), "id-7.npy")
    assert re.match(r"expected a certificate that can be trusted, found: self.signed certificate", text)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    http_store._context.cache_clear()
    files = Remote(url)
    assert got(files, "id-7.npy") == got(files, "id-7.npy") == file


def test_proxies_of_the_environment(served: tuple[Path, int], file: bytes, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy of the variable http_proxy is used, with its password, unless no_proxy names the host."""
    url = f"http://127.0.0.1:{served[1]}"
    monkeypatch.setenv("http_proxy", proxy.url.replace("//", "//me:pass%20word@"))
    assert got(Remote(url), "id-7.npy") == file
    assert proxy.requests == []
    monkeypatch.setenv("no_proxy", "")
    assert got(Remote(url), "id-7.npy") == file
    [request] = proxy.requests
    assert request.target == f"{url}/id-7.npy"
    assert request.headers["proxy-authorization"] == "Basic bWU6cGFzcyB3b3Jk"


def ranges(proxy: Proxy) -> list[tuple[int, int]]:
    """The requested rows, as pairs of the first row and one past the last."""
    found = [re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers["range"]) for request in proxy.requests]
    pairs = [(int(match[1]) - 128, int(match[2]) + 1 - 128) for match in found if match]
    assert all(first % ROW_BYTES == stop % ROW_BYTES == 0 for first, stop in pairs)
    return [(first // ROW_BYTES, stop // ROW_BYTES) for first, stop in pairs]


def test_neighbouring_rows_take_one_request(root: Path, proxy: Proxy) -> None:
    """Each run of neighbouring rows is one request for their bytes."""
    source = reader(NpyRows(f"{proxy.url}/all.npy"), range(N))
    proxy.requests.clear()
    ids = [5, 6, 7, 3, 20, 21, 0, 1, 9]
    assert source.filled(ids) == ids
    assert ranges(proxy) == [(5, 8), (3, 4), (20, 22), (0, 2), (9, 10)]


def test_a_replaced_file_of_rows_is_an_error(root: Path, proxy: Proxy) -> None:
    """Reading rows from a file that was replaced after the loader was made is an error."""
    source = reader(NpyRows(f"{proxy.url}/all.npy"), range(N))
    assert source.filled([1, 2]) == [1, 2]
    np.save(root / "new.npy", np.repeat(np.arange(100, 100 + 2 * N, dtype="f4"), 12).reshape(-1, 4, 3))
    os.replace(root / "new.npy", root / "all.npy")
    with pytest.raises(SampleError, match=r"all\.npy: expected the file that was there when the loader was made") as raised:
        source.filled([3])
    assert raised.value.id == 3


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("none.npy", "none.npy: expected the file, found 404 Not Found"),
        ("short.npy", "short.npy: expected 1,280 bytes, found 500: the file is truncated"),
        ("empty.npy", r"empty.npy: expected an .npy file, found an empty one \(0 bytes\)"),
        ("whole/large.npy", "large.npy: expected a range of the file, found the whole"),
    ],
)
def test_an_unusable_file_of_rows_is_refused(root: Path, proxy: Proxy, path: str, text: str) -> None:
    """A file of rows that is missing, short or empty, or a server without ranges, is an error of the constructor."""
    np.save(root / "large.npy", np.zeros((1000, 20)))
    (root / "short.npy").write_bytes((root / "all.npy").read_bytes()[:500])
    (root / "empty.npy").touch()
    with pytest.raises(InputError, match=text):
        reader(NpyRows(f"{proxy.url}/{path}"), range(N))


def test_a_loader_of_a_url(root: Path, proxy: Proxy) -> None:
    """A loader of a URL has ``reads`` requests in flight in each worker, and reads on after failures."""
    labels = {id: number for number, id in enumerate(IDS)}
    proxy.faults = {"id-3.npy": ["503"], "id-9.npy": ["half", "reset"]}
    proxy._delay = 0.03
    with Loader(IDS, labels, 12, data_dir=proxy.url, workers=2, reads=8) as loader:
        for _ in range(4):
            for X, y in loader:
                assert X[:, 0, 0].tolist() == y.tolist()
    assert {request.method for request in proxy.requests} == {"GET"}
    assert 8 < proxy.most_in_flight <= 16
    assert proxy.connections <= 1 + 16 + 3  # 3 replace lost ones


def test_the_main_process_keeps_no_connection(root: Path, proxy: Proxy) -> None:
    """The main process reads one header, then closes its connection; a bound source can be pickled."""
    sources: list[Any] = [Npy(proxy.url), NpyRows(f"{proxy.url}/all.npy")]
    bound = [sources[0].bind(IDS), sources[1].bind(range(N))]
    assert proxy.connections == 2
    wait_until(lambda: proxy.open == 0, "both connections are closed")
    pickle.loads(pickle.dumps(bound))


def test_a_worker_of_remote_files_is_lean(root: Path, proxy: Proxy, workers: Callable[[], list[psutil.Process]]) -> None:
    """A worker that reads files behind http loads neither NumPy nor the libraries of S3."""
    with Loader(IDS, None, 6, data_dir=proxy.url, workers=1) as loader:
        list(loader)
        [worker] = workers()
        mapped = Path(f"/proc/{worker.pid}/maps").read_text()
    assert [name for name in ("numpy", "aiohttp", "obstore", "multidict") if f"/{name}/" in mapped] == []


def test_reading_a_folder_imports_no_network_modules() -> None:
    """The modules that a worker needs for local files import no network modules."""
    code = "import sys, shmgen._sources.npy, shmgen._sources.npy_rows, shmgen._worker.main\nprint(*sys.modules)"
    found = python("-S", "-c", code, check=True).stdout.split()
    of_storage = [name for name in found if name.startswith("shmgen._storage.")]
    assert of_storage == ["shmgen._storage.local"]
    assert not {"http.client", "ssl"} & set(found)


def test_a_cache_beside_data_dir(root: Path, proxy: Proxy, tmp_path: Path) -> None:
    """With ``cache`` beside a URL, workers make no requests once all is cached; elsewhere it is refused, with a remedy."""
    with Loader(IDS, range(N), 6, data_dir=proxy.url, cache=tmp_path, workers=2) as loader:
        for epoch in range(3):
            assert all((X[:, 0, 0] == y).all() for X, y in loader)
            if epoch == 1:
                proxy.requests.clear()
    assert proxy.requests == []
    for options, text in (
        ({"data_dir": root}, "cache: expected with the URL of a folder as data_dir"),
        ({"data_dir": Remote(proxy.url)}, "give it to Remote itself"),
        ({"source": Npy(proxy.url)}, r"give it to Remote itself: Npy\(Remote"),
    ):
        with pytest.raises(InputError, match=text):
            Loader(IDS, None, 6, cache=tmp_path, **options)
    with pytest.raises(InputError, match="cache_bytes: expected with cache"):
        Remote(proxy.url, cache_bytes=1)
    with pytest.raises(InputError, match="expected a URL"):
        Remote(str(root))


def test_ids_that_are_urls_are_refused() -> None:
    """Ids that are URLs are refused; the error says to pass the folder's URL as ``data_dir``."""
    with pytest.raises(SampleError, match="ids are no URLs: pass the URL of the folder as data_dir"):
        reader(Npy(None), ["https://host/folder/a.npy"])


@pytest.fixture
def ids_file(tmp_path: Path) -> Path:
    """A file with the ids of all served files, and of a missing one."""
    (tmp_path / "ids").write_text("\n".join([*IDS, "none"]))
    return tmp_path / "ids"


@pytest.mark.parametrize("full", [False, True])
def test_a_scan_of_a_url(root: Path, proxy: Proxy, cli: Callable[..., Ran], ids_file: Path, full: bool) -> None:
    """A scan of a URL reads the first bytes of each file, and with ``--full`` whole files; it names damaged ones."""
    (root / "id-3.npy").write_bytes((root / "id-3.npy").read_bytes()[:150])
    (root / "id-4.npy").write_bytes(b"")
    np.save(root / "id-5.npy", np.full((4, 3), np.nan, "f4"))
    np.save(root / "id-6.npy", np.zeros((4, 4), "f4"))
    (root / "id-7.npy").write_bytes(KINDS["version-3-by-hand"](np.zeros((4, 3), "f4")))
    np.save(root / "id-8.npy", np.zeros((500, 500), "f4"))
    proxy.faults["id-9.npy"] = ["503", "half"]
    done = cli("scan", proxy.url, "--ids", ids_file, "--json", *["--full"] * full)
    found = done.json
    assert (done.status, done.err) == (1, "")
    assert found["samples"] == N + 1
    damaged = {one["id"]: one["reason"] for one in found["damaged"]}
    assert set(damaged) == {"id-3", "id-4", "id-6", "id-8", "none", *["id-5"] * full}
    assert damaged["id-3"] == "expected 176 bytes, found 150: the file is truncated"
    assert damaged["none"].startswith("expected the file, found 404 Not Found")
    assert {one["path"] for one in found["damaged"]} == {f"{proxy.url}/{id}.npy" for id in damaged}
    looked = [request for request in proxy.requests if "range" in request.headers]
    assert {request.target for request in looked} == {f"/{id}.npy" for id in (*IDS, "none")}
    assert (
        max(Counter(request.target for request in looked).values()) <= 2 + 2
    )  # once more if a neighbour is damaged, or after a fault
    whole = {request.target for request in proxy.requests if "range" not in request.headers}
    assert whole == ({f"/{id}.npy" for id in IDS if id not in set(damaged) - {"id-5"}} if full else set())


def test_commands_show_no_secrets(proxy: Proxy, root: Path, cli: Callable[..., Ran], ids_file: Path, tmp_path: Path) -> None:
    """No table, JSON output or error shows the user or the query of a URL."""
    url = proxy.url.replace("//", f"//me:{SECRET}@") + f"/?sig={SECRET}"
    dead = url.replace(str(proxy.port), "1")
    commands: dict[str, list[object]] = {
        # what the output names -> the command
        proxy.url: ["scan", url, "--ids", ids_file, "--json"],
        f"{proxy.url}/?": ["scan", url, "--ids", url],
        "http://127.0.0.1:1/": ["scan", dead, "--ids", ids_file],
        "none": ["pack", url, tmp_path / "o.npy", "--ids", ids_file],
    }
    for place, words in commands.items():
        done = cli(*words, "--workers", 0)
        assert place in done.out + done.err
        assert SECRET not in done.out + done.err


def test_a_scan_of_an_unlistable_url_needs_ids(proxy: Proxy, cli: Callable[..., Ran]) -> None:
    """Without ids a URL that can't be listed is refused; the error says how to pass them."""
    done = cli("scan", proxy.url)
    assert done.status == 2
    assert (
        f"{proxy.url}: expected a folder that can be listed, found one that can't be; give the ids, with --ids FILE" in done.err
    )
