"""Files behind http: one request each, over connections that are kept; what may pass is tried again, and the rest is named."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from servers import Proxy, nginx
from test_npy import KINDS, number_up
from test_readers import filled, reader

from shmgen import InputError, Loader, Npy, NpyRows, SampleError
from shmgen._storage import remote

N = 24

ROW_BYTES = 48


IDS = [f"id-{number}" for number in range(N)]


@pytest.mark.parametrize("count", [1, N])
def test_one_request_a_file(root: Path, proxy: Proxy, count: int) -> None:
    """A GET each, all over one connection; nothing is listed, and nothing else is asked."""
    source = reader(Npy(proxy.url), IDS)
    proxy.requests.clear()
    before = proxy.connections
    assert filled(source, IDS[:count]) == list(range(count))
    assert [(request.method, request.target) for request in proxy.requests] == [("GET", f"/{id}.npy") for id in IDS[:count]]
    assert proxy.connections == before + 1


def test_many_readers_have_requests_in_flight(root: Path, proxy: Proxy) -> None:
    """Each has a connection of its own, and keeps it; none gets the row of another."""
    source = reader(Npy(proxy.url), IDS)
    proxy.requests.clear()
    proxy._delay = 0.03
    readers = 16
    all_here = threading.Barrier(readers)

    def read(seed: int) -> bool:
        own = source.again()
        chosen = np.random.default_rng(seed).permutation(N)[:8].tolist()
        all_here.wait(20)
        return filled(own, [IDS[number] for number in chosen]) == chosen

    connections = proxy.connections
    with ThreadPoolExecutor(readers) as pool:
        assert all(pool.map(read, range(readers)))
    assert len(proxy.requests) == 8 * readers
    assert proxy.connections == connections + readers
    assert proxy.most_in_flight > readers / 2


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file(root: Path, proxy: Proxy, kind: str) -> None:
    """Whatever a loader reads from a folder, it reads from afar, to the same values, by one request each."""
    for id in range(4):
        (root / f"{id}.npy").write_bytes(KINDS[kind](number_up((4, 3), np.float32, id)))
    source = reader(Npy(proxy.url, dtype="f4"), range(4))
    proxy.requests.clear()
    for ids in ([0, 1, 2, 3], [3, 0]):
        rows = bytearray(ROW_BYTES * len(ids))
        source.reader.fill(ids, memoryview(rows), [0])
        found = np.frombuffer(rows, "f4").reshape(-1, 4, 3)
        np.testing.assert_array_equal(found, [np.load(root / f"{id}.npy") for id in ids])
    assert len(proxy.requests) == 6


MAY_PASS = ["503", "500", "502", "429", "408", "429 Retry-After: 0", "reset", "close", "half", "stall", "hang"]


@pytest.mark.parametrize("rows", [False, True], ids=["files", "rows"])
@pytest.mark.parametrize("fault", MAY_PASS)
def test_what_may_pass_is_tried_again(root: Path, proxy: Proxy, fault: str, rows: bool) -> None:
    """A busy server, a lost connection, an answer that breaks off or never comes: the third try brings the sample."""
    options: Any = {"storage_options": {"timeout": 0.2}}
    ids: Any = range(N) if rows else IDS
    source = reader(NpyRows(f"{proxy.url}/all.npy", **options) if rows else Npy(proxy.url, **options), ids)
    proxy.requests.clear()
    proxy.faults["all.npy" if rows else "id-7.npy"] = [fault, fault]
    chosen = [7, 3, 11]
    assert filled(source, [ids[number] for number in chosen]) == chosen
    assert len(proxy.requests) == 5


def test_an_answer_in_chunks(root: Path, proxy: Proxy) -> None:
    """Some servers say how long a file is only at its end."""
    source = reader(Npy(proxy.url), IDS)
    proxy.always = "chunks"
    assert filled(source, IDS) == list(range(N))


def test_a_connection_that_the_server_closed_meanwhile_is_no_failure(root: Path, proxy: Proxy) -> None:
    """Between requests it may: the next one makes another, and waits for nothing."""
    source = reader(Npy(proxy.url), IDS)
    source.reader.files.remote.store.tries = 1
    assert filled(source, IDS[:1]) == [0]
    proxy.faults["id-1.npy"] = ["close"]
    assert filled(source, IDS[:3]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("503", "503 Broken: it is broken"),
        ("reset", "Connection reset by peer"),
        ("half", "an answer that broke off 88 bytes before its end"),
        ("hang", "no answer in time"),
    ],
)
def test_what_does_not_pass_is_named(root: Path, proxy: Proxy, fault: str, found: str) -> None:
    """The URL, what was answered, and how often it was tried; the row is the one begun."""
    source = reader(Npy(proxy.url, storage_options={"timeout": 0.1}), IDS)
    proxy.requests.clear()
    proxy.faults["id-2.npy"] = [fault] * 100
    with pytest.raises(SampleError) as raised:
        filled(source, IDS)
    error = raised.value
    assert (error.id, error.path) == ("id-2", f"{proxy.url}/id-2.npy")
    assert re.fullmatch(rf"expected the file, found {found}; tried 8 times in \d+\.\d s", error.reason)
    assert str(error) == f"sample 'id-2', {error.path}: {error.reason}"
    assert source.begun == [3]
    # A connection that was kept, and is lost, says nothing about the server.
    assert proxy.targets.count("/id-2.npy") == remote.TRIES + (fault == "reset")


@pytest.mark.parametrize("status", ["404", "403", "401", "410", "400", "418"])
def test_what_will_not_pass_is_not_tried_again(root: Path, proxy: Proxy, status: str) -> None:
    """An error at once, with what the server says."""
    source = reader(Npy(proxy.url), IDS)
    proxy.requests.clear()
    proxy.faults["id-2.npy"] = [status]
    with pytest.raises(SampleError, match=f"id-2.npy: expected the file, found {status} Broken: it is broken$"):
        filled(source, IDS)
    assert proxy.targets == [f"/{id}.npy" for id in IDS[:3]]


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ("Content-Encoding: gzip", "expected the file as it is, found it encoded as gzip; store it as it is"),
        (
            "Content-Range: bytes 0-47/1280",
            "expected the part of the file from byte 272 on, found Content-Range: bytes 0-47/1280",
        ),
    ],
)
def test_an_answer_to_something_else(root: Path, proxy: Proxy, header: str, text: str) -> None:
    """Other bytes than those that were asked for are never taken for them."""
    source = reader(NpyRows(f"{proxy.url}/all.npy"), range(N))
    proxy.faults["all.npy"] = [header]
    with pytest.raises(SampleError, match=f"all.npy: {text}"):
        filled(source, [3])
    (root / "id-0.npy").write_text("<html>please log in</html>")
    with pytest.raises(SampleError, match=r"id-0\.npy: expected an \.npy file, found one that begins with b'<html>'"):
        Npy(proxy.url).bind(IDS)


def test_a_server_says_how_long_to_wait(root: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it asks, but no longer than a minute; else longer each time, and never the same for all readers."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.1)
    source = reader(Npy(proxy.url), IDS)
    proxy.faults["id-0.npy"] = ["429 Retry-After: 7", "503 Retry-After: 100000", *["503"] * 5]
    assert filled(source, IDS[:1]) == [0]
    assert waits[:2] == [7, 60]
    assert all(0.2 * 2**n <= wait <= 0.4 * 2**n for n, wait in enumerate(waits[2:]))
    assert len({wait / 2**n for n, wait in enumerate(waits[2:])}) == 5


NAMES = [
    "a b",
    "50%",
    "%2e%2e",
    "a%20b",
    "a#b",
    "a?b",
    "µ-ø-漢",
    "a+b",
    "a&b=c",
    "it's",
    'a"b',
    "a\\b",
    "sub/dir",
    "a;b,c",
    "..x",
    "~",
]


def test_names_are_quoted(root: Path, proxy: Proxy) -> None:
    """An id names the same file behind a URL as it does in a folder, whatever signs are in it."""
    for number, name in enumerate(NAMES):
        (root / f"{name}.npy").parent.mkdir(exist_ok=True)
        np.save(root / f"{name}.npy", np.full((4, 3), number, "f4"))
    assert filled(reader(Npy(f"{proxy.url}/"), NAMES), NAMES) == list(range(len(NAMES)))
    (root / "in here").mkdir()
    shutil.copy(root / "id-5.npy", root / "in here" / "x.npy")
    for folder in ("in here", "in%20here"):
        assert filled(reader(Npy(f"{proxy.url}/{folder}"), ["x"]), ["x"]) == [5]


@pytest.mark.parametrize("id", ["../secret", "/secret", "a/../../secret"])
def test_no_id_leads_out(root: Path, proxy: Proxy, id: str) -> None:
    """As for a folder; and nothing is asked for."""
    with pytest.raises(InputError, match="expected one that stays in folder http"):
        Npy(f"{proxy.url}/sub").bind(["a", id])
    assert proxy.requests == []


def test_other_ways_to_a_file(root: Path, proxy: Proxy) -> None:
    """A redirection, also to another host, which is told no password; a user's name in the URL; and what follows a ``?``."""
    assert filled(reader(Npy(f"{proxy.url}/moved"), IDS), IDS) == list(range(N))
    headers = {"Authorization": "Bearer x"}
    assert filled(reader(Npy(f"{proxy.url}/away", storage_options={"headers": headers}), IDS), IDS[:2]) == [0, 1]
    assert proxy.requests[-1].headers["authorization"] == "Bearer x"
    source = reader(Npy(proxy.url.replace("//", "//user:pass%20word@") + "/private"), IDS)
    assert filled(source, IDS[:2]) == [0, 1]
    assert source.reader.place("id-0") == f"{proxy.url}/private/id-0.npy"
    source = reader(Npy(f"{proxy.url}/asks?key=secret"), IDS)
    assert filled(source, IDS[:2]) == [0, 1]
    assert source.reader.place("id-0") == f"{proxy.url}/asks/id-0.npy?..."
    with pytest.raises(SampleError, match=r"/round/id-0\.npy: expected the file, found more than 5 redirections"):
        Npy(f"{proxy.url}/round").bind(IDS)


def test_https_with_a_certificate_of_ones_own(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is trusted if SSL_CERT_FILE names it; else it is refused at once, and nothing is read."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    pem, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x -addext subjectAltName=IP:127.0.0.1 -keyout {key}"
    subprocess.run([*command.split(), "-out", str(pem)], check=True, capture_output=True)
    more = f"listen 127.0.0.1:%d ssl; ssl_certificate {pem}; ssl_certificate_key {key};"
    from servers import free_port

    from shmgen._storage import http_store

    secure = free_port()
    with nginx(root, tmp_path / "nginx", more % secure):
        url = f"https://127.0.0.1:{secure}"
        http_store._context.cache_clear()
        with pytest.raises(SampleError, match=r"expected a certificate that can be trusted, found: self.signed certificate"):
            Npy(url).bind(IDS)
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        http_store._context.cache_clear()
        assert filled(reader(Npy(url), IDS), IDS) == list(range(N))
        http_store._context.cache_clear()


def test_a_proxy_of_the_environment(root: Path, served: tuple[Path, int], proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """http_proxy is used, unless no_proxy names the host."""
    monkeypatch.setenv("http_proxy", proxy.url)
    assert filled(reader(Npy(f"http://127.0.0.1:{served[1]}"), IDS), IDS[:2]) == [0, 1]
    assert proxy.requests == []
    monkeypatch.setenv("no_proxy", "")
    url = f"http://127.0.0.1:{served[1]}"
    assert filled(reader(Npy(url), IDS), IDS[:2]) == [0, 1]
    assert proxy.targets == [f"{url}/id-0.npy", f"{url}/id-0.npy", f"{url}/id-1.npy"]


# Rows of one file.


def ranges(proxy: Proxy) -> list[tuple[int, int]]:
    """The rows that were asked for: first, and one past the last."""
    found = [re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers["range"]) for request in proxy.requests]
    pairs = [(int(match[1]) - 128, int(match[2]) + 1 - 128) for match in found if match]
    assert all(first % ROW_BYTES == stop % ROW_BYTES == 0 for first, stop in pairs)
    return [(first // ROW_BYTES, stop // ROW_BYTES) for first, stop in pairs]


def test_rows_are_got_by_one_request_for_neighbours(root: Path, proxy: Proxy) -> None:
    """A part of the file for each run of rows that are next to each other, and no more bytes than these."""
    source = reader(NpyRows(f"{proxy.url}/all.npy"), range(N))
    proxy.requests.clear()
    ids = [5, 6, 7, 3, 20, 21, 0, 1, 9]
    assert filled(source, ids) == ids
    assert ranges(proxy) == [(5, 8), (3, 4), (20, 22), (0, 2), (9, 10)]


def test_a_file_of_rows_that_is_replaced(root: Path, proxy: Proxy) -> None:
    """Another in its place is an error: rows of two files would be mixed."""
    source = reader(NpyRows(f"{proxy.url}/all.npy"), range(N))
    assert filled(source, [1, 2]) == [1, 2]
    np.save(root / "new.npy", np.repeat(np.arange(100, 100 + 2 * N, dtype="f4"), 12).reshape(-1, 4, 3))
    os.replace(root / "new.npy", root / "all.npy")
    with pytest.raises(SampleError, match=r"all\.npy: expected the file that was there when .* make another loader") as raised:
        filled(source, [3])
    assert raised.value.id == 3


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("none.npy", "none.npy: expected the file, found 404 Not Found"),
        ("short.npy", "short.npy: expected 1,280 bytes, found 500: the file is truncated"),
        ("empty.npy", r"empty.npy: expected an .npy file, found an empty one \(0 bytes\)"),
        ("whole/large.npy", "large.npy: expected a part of the file, found the whole"),
    ],
)
def test_a_file_of_rows_that_can_not_be_used(root: Path, proxy: Proxy, path: str, text: str) -> None:
    """Found when the loader is made; a server that gives whole files only is one as well."""
    np.save(root / "large.npy", np.zeros((1000, 20)))
    (root / "short.npy").write_bytes((root / "all.npy").read_bytes()[:500])
    (root / "empty.npy").touch()
    with pytest.raises(InputError, match=text):
        NpyRows(f"{proxy.url}/{path}").bind(range(N))


# Whole loaders.


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_of_a_url(root: Path, proxy: Proxy, workers: int) -> None:
    """``data_dir`` may be a URL: an epoch is one request a file, and one for the first header."""
    labels = {id: number for number, id in enumerate(IDS)}
    proxy.faults = {"id-3.npy": ["503"], "id-9.npy": ["half", "reset"]}
    with Loader(IDS, labels, 6, data_dir=proxy.url, workers=workers) as loader:
        for X, y in loader:
            assert X[:, 0, 0].tolist() == y.tolist()
    assert {request.method for request in proxy.requests} == {"GET"}
    if not workers:  # they read the next epoch ahead
        assert len(proxy.requests) == N + 1 + 3


def test_a_loader_has_many_requests_in_flight(root: Path, proxy: Proxy) -> None:
    """As many as ``reads`` says in each worker, over as many connections; rows come as in any other order of answers."""
    proxy._delay = 0.03
    labels = {id: number for number, id in enumerate(IDS)}
    with Loader(IDS, labels, 12, data_dir=proxy.url, workers=2, reads=8) as loader:
        for _ in range(10):
            for X, y in loader:
                assert X[:, 0, 0].tolist() == y.tolist()
    assert 8 < proxy.most_in_flight <= 16
    assert proxy.connections <= 1 + 16


def test_the_main_process_keeps_no_connection(root: Path, proxy: Proxy, until: Callable) -> None:
    """It asks for one header, and closes the connection, though the source lives on."""
    sources: list[Any] = [Npy(proxy.url), NpyRows(f"{proxy.url}/all.npy")]
    sources[0].bind(IDS)
    sources[1].bind(range(N))
    assert proxy.connections == 2
    until(lambda: proxy.open == 0, "both are closed")


def test_a_worker_of_remote_files_is_lean(root: Path, proxy: Proxy, workers: Callable[[], list[psutil.Process]]) -> None:
    """It maps neither NumPy nor what fsspec and s3fs bring along."""
    with Loader(IDS, None, 6, data_dir=proxy.url, workers=1) as loader:
        list(loader)
        [worker] = workers()
        mapped = Path(f"/proc/{worker.pid}/maps").read_text()
    assert [name for name in ("numpy", "aiohttp", "botocore", "multidict") if f"/{name}/" in mapped] == []


def test_who_reads_a_folder_imports_nothing_of_this() -> None:
    """A worker of local files knows no network."""
    code = "import sys, shmgen._sources.npy, shmgen._sources.npy_rows, shmgen._worker.main\nprint(*sys.modules)"
    found = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"http.client", "ssl", "shmgen._storage.remote", "shmgen._storage.cache"}.isdisjoint(found)


@pytest.mark.parametrize("name", ["cache", "cache_bytes", "storage_options"])
def test_what_is_for_urls_only(tmp_path: Path, name: str) -> None:
    """For a folder it would do nothing, so it is refused; and a size without a cache is."""
    sources: list[Any] = [Npy, NpyRows]
    for source in sources:
        with pytest.raises(InputError, match=f"{name}: expected with a URL"):
            source(tmp_path, **{name: 1})
    with pytest.raises(InputError, match="cache_bytes: expected with cache"):
        Npy("https://host/folder", cache_bytes=1)


@pytest.mark.parametrize(
    ("url", "options", "text"),
    [
        ("https://", {}, "expected a URL such as https://host/folder"),
        ("https://host:port/x", {}, "expected a URL such as https://host/folder"),
        ("https://host/x", {"anon": True}, "expected 'headers' or 'timeout' for https, found 'anon'"),
        ("https://host/x", {"timeout": "1"}, "'timeout': found '1'"),
        ("s3:///x", {}, "expected a URL such as s3://bucket/folder"),
    ],
)
def test_urls_and_options_that_can_not_be_used(url: str, options: dict[str, Any], text: str) -> None:
    """Found when the source is made."""
    with pytest.raises(InputError, match=text):
        Npy(url, storage_options=options)


def test_ids_that_are_urls() -> None:
    """The error says what to pass instead."""
    with pytest.raises(SampleError, match="ids are no URLs: pass the URL of the folder as data_dir"):
        Npy(None).bind(["https://host/folder/a.npy"])


def test_a_request_that_hangs_is_named_by_the_loader(root: Path, proxy: Proxy) -> None:
    """With many in flight, and a server that never answers for one: the loader's time limit blames that sample, and no other."""
    proxy.faults["id-13.npy"] = ["hang"] * 100
    labels = {id: number for number, id in enumerate(IDS)}
    options: Any = {"on_error": "replace", "max_damaged": 0.1, "timeout": 1.0, "shuffle": False}
    with Loader(IDS, labels, 6, data_dir=proxy.url, workers=2, **options) as loader:
        seen = [label for X, y in loader for label in y.tolist() if (X[:, 0, 0] == y).all()]
        assert [damaged.id for damaged in loader.damaged] == ["id-13"]
    assert len(seen) == N
    assert set(range(N)) - set(seen) == {13}
