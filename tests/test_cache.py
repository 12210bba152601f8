"""The disk cache of remote files: entries are whole and within the limit, whichever process is killed."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from servers import Proxy
from test_readers import reader
from test_remote import IDS, N, ranges

from shmgen import InputError, Loader, Npy, NpyRows, Remote
from shmgen._storage.cache import ABANDONED, Cache

FILE_BYTES = 176


def kept(folder: Path) -> list[Path]:
    """The files in the cache, in the order of their last use."""
    return sorted(folder.glob("??/*"), key=lambda path: path.stat().st_mtime_ns)


def total(folder: Path) -> int:
    """Bytes of all files in the cache."""
    sizes = []
    for path in folder.glob("??/*"):
        with suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return sum(sizes)


def caching(url: str, folder: Path, most: int | None = None, *, rows: bool = False) -> Any:
    """A source of the files at ``url``, or of the rows of ``all.npy`` there, with a cache."""
    return (
        NpyRows(Remote(f"{url}/all.npy", cache=folder.parent, cache_bytes=most))
        if rows
        else Npy(Remote(url, cache=folder.parent, cache_bytes=most))
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the cache's files, in the folder that is passed."""
    return tmp_path / "kept/shmgen-cache"


@pytest.mark.parametrize("rows", [False, True], ids=["files", "rows"])
def test_cached_data_is_not_requested_again(root: Path, proxy: Proxy, folder: Path, rows: bool) -> None:
    """The second epoch makes no request; another source of the same URL makes one, for the first file or the header."""
    ids: Any = range(N) if rows else IDS
    source = reader(caching(proxy.url, folder, rows=rows), ids)
    assert source.filled(ids) == list(range(N))
    proxy.requests.clear()
    proxy.always = "404"
    assert source.filled(ids) == list(range(N))
    assert proxy.requests == []
    proxy.always = None
    other = reader(caching(proxy.url, folder, rows=rows), ids)
    assert len(proxy.requests) == 1
    assert other.filled(list(reversed(ids))) == list(reversed(range(N)))
    assert len(proxy.requests) == 1


def test_cached_rows_are_left_out_of_a_request(root: Path, proxy: Proxy, folder: Path) -> None:
    """Rows on both sides of a cached row take two requests."""
    source = reader(caching(proxy.url, folder, rows=True), range(N))
    assert source.filled([5, 9]) == [5, 9]
    proxy.requests.clear()
    ids = [3, 4, 5, 6, 7, 9, 8, 10]
    assert source.filled(ids) == ids
    assert ranges(proxy) == [(3, 5), (6, 8), (8, 9), (10, 11)]


def test_rows_of_a_replaced_file_are_not_used(root: Path, proxy: Proxy, folder: Path) -> None:
    """Rows of a file that was replaced are not taken from the cache."""
    assert reader(caching(proxy.url, folder, rows=True), range(N)).filled([5, 6]) == [5, 6]
    np.save(root / "new.npy", np.repeat(np.arange(100, 100 + N, dtype="f4"), 12).reshape(-1, 4, 3))
    os.replace(root / "new.npy", root / "all.npy")
    os.utime(root / "all.npy", (1, 1))
    assert reader(caching(proxy.url, folder, rows=True), range(N)).filled([5, 6]) == [105, 106]


def test_cache_keys_hold_all_parts_of_an_address(proxy: Proxy, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another host, user, query, header, bucket, endpoint or option has entries of its own; other credentials do not."""
    pytest.importorskip("obstore")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    url = proxy.url.partition("://")[2]
    keys = {"key": "a", "secret": "b"}
    places: list[tuple[str, dict[str, Any]]] = [
        *[(f"http://{place}", {}) for place in (f"{url}/d", f"{url}/e", f"a@{url}/d", f"b@{url}/d", f"{url}/d?ref=1")],
        *[(f"http://{place}", {}) for place in (f"{url}/d?ref=2", f"localhost:{proxy.port}/d")],
        *[(f"http://{url}/d", {"headers": {"X-Version": text}}) for text in "12"],
        *[(f"s3://{place}", {"endpoint_url": "http://one", **keys}) for place in ("a/b", "a/c", "b/b", "a/b?ref=1")],
        *[("s3://a/b", {"endpoint_url": place, **keys}) for place in ("http://two", "https://one", "http://one:81")],
        *[(f"memory://{place}", {}) for place in ("a", "b", "a?ref=1")],
        *[("memory://a", {"asynchronous": value}) for value in (True, False)],
    ]
    for number, (place, options) in enumerate(places):
        remote = Remote(place, cache=folder, options=options)
        remote.prepare()
        assert not remote.read_kept("id.npy", lambda _: None), place
        remote.keep("id.npy", b"%d" % number)
        remote.keep("id.npy", b"part", part=("a", 1))
    found: list[bytes] = []
    for place, options in places:
        remote = Remote(place, cache=folder, options=options)
        remote.prepare()
        assert remote.read_kept("id.npy", lambda fd: found.append(os.pread(fd, 9, 0))), place
    assert found == [b"%d" % number for number in range(len(places))]
    for other in ({"headers": {"Authorization": "x"}}, {"headers": {"cookie": "x"}}, {"timeout": 3}):
        assert Remote(f"http://{url}/d", cache=folder, options=other).read_kept("id.npy", lambda _: None)


@pytest.mark.parametrize("rows", [False, True], ids=["files", "rows"])
def test_a_truncated_cache_file_is_requested_again(root: Path, proxy: Proxy, folder: Path, rows: bool) -> None:
    """A cached file that was truncated is requested again, once."""
    ids: Any = range(N) if rows else IDS
    source = reader(caching(proxy.url, folder, rows=rows), ids)
    source.filled(ids[:3])
    for size in (0, 5, 40, 47, 150):
        for path in kept(folder):
            os.truncate(path, min(size, path.stat().st_size - 1))
        proxy.requests.clear()
        for _ in range(2):
            assert source.filled(ids[:3]) == [0, 1, 2]
            assert len(proxy.requests) == (1 if rows else 3)


def test_the_least_recently_used_is_removed_first(root: Path, proxy: Proxy, folder: Path) -> None:
    """Files that were used longest ago are removed first, and the limit is never exceeded."""
    source = reader(caching(proxy.url, folder, 10 * FILE_BYTES), IDS)
    source.filled(IDS[:10])
    assert len(kept(folder)) == 10
    source.filled(IDS[:3])  # now the latest used
    source.filled(IDS[10:14])
    assert total(folder) <= 10 * FILE_BYTES
    proxy.requests.clear()
    source.filled([*IDS[:3], *IDS[10:14]])
    assert proxy.requests == []
    source.filled(IDS[3:5])
    assert len(proxy.requests) == 2
    # A lower limit takes effect with the next file.
    reader(caching(proxy.url, folder, 5 * FILE_BYTES), IDS).filled(IDS[20:21])
    assert 0 < total(folder) <= 5 * FILE_BYTES


@pytest.mark.parametrize("where", ["write", "rename"])
def test_a_full_disk(
    root: Path, proxy: Proxy, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """On a full disk all samples are delivered, no half-written file is left, and one warning is logged."""
    source = reader(caching(proxy.url, folder), IDS)

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, where, fails)
        assert source.filled(IDS) == list(range(N))
    [record] = caplog.records
    assert f"cache {folder}: expected room for 176 bytes, found: {os.strerror(errno.ENOSPC)}" in record.getMessage()
    assert kept(folder) == list(folder.glob("new/*")) == []
    assert source.filled(IDS) == list(range(N))
    assert len(kept(folder)) == N


def test_a_cache_folder_that_cannot_be_made_is_named(root: Path, proxy: Proxy, tmp_path: Path) -> None:
    """A cache folder that can't be made raises an error that names it."""
    (tmp_path / "file").touch()
    with pytest.raises(
        InputError, match=f"cache {tmp_path}/file/kept/shmgen-cache: expected a folder that can be written to, found: Not a dir"
    ):
        caching(proxy.url, tmp_path / "file/kept/shmgen-cache").bind(IDS)


def test_caching_works_without_file_locks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system without locks, files are cached, and the limit is kept."""

    def fails(*_: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", fails)
    cache = Cache(folder.parent, 1000)
    cache.prepare()
    for number in range(100):
        cache.keep(str(number), bytes(95))
        assert cache.read(str(number), lambda _: None)
        assert total(folder) <= 1000
    assert len(kept(folder)) >= 9


KEEPER = """
import os, random, sys, threading
from shmgen._storage.cache import Cache
cache = Cache(sys.argv[1], int(sys.argv[2]))
chance = random.Random(int(sys.argv[3]))
def work(chance):
    for _ in range(int(sys.argv[4])):
        key = str(chance.randrange(200))
        def check(fd):
            found = os.pread(fd, 1 << 20, 0)
            assert found and found == (key + ",").encode() * (len(found) // (len(key) + 1)), found[:20]
        if not cache.read(key, check):
            cache.keep(key, (key + ",").encode() * chance.randrange(100, 400))
threads = [threading.Thread(target=work, args=(random.Random(chance.random()),)) for _ in range(3)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
print("done")
"""


def keeper(folder: Path, most: int, seed: int, count: int) -> subprocess.Popen[str]:
    """Start a process that reads from a cache, and adds what it does not find there."""
    return subprocess.Popen(
        [sys.executable, "-c", KEEPER, str(folder.parent), str(most), str(seed), str(count)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_many_processes_keep_within_the_limit(folder: Path) -> None:
    """Two processes that use a cache at once find whole files, and keep within the limit."""
    most = 40_000
    cache = Cache(folder.parent, most)
    cache.prepare()
    processes = [keeper(folder, most, seed, 30) for seed in range(2)]
    largest = 0
    while any(process.poll() is None for process in processes):
        with (folder / "bytes").open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # so that nothing changes while sizes are added up
            largest = max(largest, total(folder))
        select.select([], [], [], 0.01)
    for process in processes:
        out, err = process.communicate()
        assert (out, err) == ("done\n", "")
    assert most / 2 < largest <= most
    assert list(folder.glob("new/*")) == []


def test_processes_that_are_killed_leave_nothing_behind(folder: Path) -> None:
    """A file that a killed process was writing is never read, and removed after an hour; the limit is kept."""
    most = 40_000
    Cache(folder.parent, most).prepare()
    for seed in range(2):
        process = keeper(folder, most, seed, 100_000)
        before = set(folder.glob("??/*"))
        while len(set(folder.glob("??/*")) - before) < 3:
            assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert total(folder) <= most
    left = folder / "new/left-100"
    left.write_bytes(b"x" * 100)
    Cache(folder.parent, most).prepare()
    assert left.exists()  # a process may still be writing it
    os.utime(left, (0, time.time() - ABANDONED - 1))
    Cache(folder.parent, most).prepare()
    assert not left.exists()
    process = keeper(folder, most, 100, 20)
    assert process.communicate() == ("done\n", "")
    assert total(folder) <= most


def test_a_stopped_process_does_not_block_others(root: Path, proxy: Proxy, folder: Path) -> None:
    """While a stopped process holds the cache's lock, others deliver samples without caching them."""
    source = reader(caching(proxy.url, folder), IDS)
    with (folder / "bytes").open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        begun = time.monotonic()
        assert source.filled(IDS[:3]) == [0, 1, 2]
        assert time.monotonic() - begun < 10
        assert kept(folder) == []
    assert source.filled(IDS[:3]) == [0, 1, 2]
    assert len(kept(folder)) == 3


def test_other_files_in_the_folder_stay(tmp_path: Path) -> None:
    """Files that were in the folder of a cache before, whatever their names, are neither removed nor counted."""
    others = [tmp_path / "new/old", tmp_path / "db/large", tmp_path / "new/run/log"]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1000))
        os.utime(path, (0, 0))
    cache = Cache(tmp_path, 100)
    cache.prepare()
    for number in range(10):
        cache.keep(str(number), bytes(40))
        assert cache.read(str(number), lambda _: None)
    assert all(path.stat().st_size == 1000 for path in others)


def test_a_file_that_is_being_written_is_counted_whole(folder: Path) -> None:
    """A file that another process is writing takes its place within the limit before its bytes are there."""
    cache = Cache(folder.parent, 100)
    cache.prepare()
    (folder / "new/host-1-2-3-70").touch()
    (folder / "bytes").write_bytes(b"")
    cache.keep("large", bytes(31))
    cache.keep("small", bytes(30))
    assert [path.stat().st_size for path in kept(folder)] == [30]


def test_a_file_above_the_limit_is_logged_by_the_main_process(
    root: Path, proxy: Proxy, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file above the limit is delivered but not cached, which the main process logs once for the worker that found it."""
    labels = {id: number for number, id in enumerate(IDS)}
    with Loader(IDS, labels, 6, source=caching(proxy.url, folder, 100), workers=1) as loader:
        for _ in range(2):
            for X, y in loader:
                assert X[:, 0, 0].tolist() == y.tolist()
    assert kept(folder) == []
    said = "expected room for 176 bytes, found: cache_bytes allows 100 bytes; samples are read all the same"
    assert len([record for record in caplog.records if said in record.getMessage()]) == 1
