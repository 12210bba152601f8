"""Sources as a worker's readers use them: copies in threads of one process, which request data ahead if reads wait for I/O."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Semaphore, Thread
from typing import Any

import numpy as np
import pytest
from conftest import wait_until

from shmgen import Npy, NpyRows, SampleError
from shmgen._sources import npy
from shmgen._sources.base import BuiltinSource, Source

N = 40

ROW_BYTES = 48


class Bound:
    """A reader of a source, as in a worker's thread."""

    def __init__(self, reader: Any, *, io_waits: bool = False) -> None:
        self.reader = reader.opened()
        self.begun = [0]  # the current row, counted from 1, as on a status page
        self._io_waits = io_waits

    def filled(self, ids: Sequence[Any]) -> list[float]:
        """Fill rows for ``ids``, and return the number that all elements of a row have."""
        rows = bytearray(b"\xff" * (ROW_BYTES * len(ids)))
        self.reader.fill(ids, memoryview(rows), self.begun, io_waits=self._io_waits)
        array = np.frombuffer(rows, "f4").reshape(len(ids), -1)
        assert (array == array[:, :1]).all()
        return array[:, 0].tolist()


def reader(source: Source, ids: Sequence[Any]) -> Bound:
    """A source, bound to ``ids`` and opened."""
    assert isinstance(source, BuiltinSource)
    return Bound(source.bind(ids))


def descriptors() -> list[str]:
    """The paths of this process's open descriptors."""
    fds = os.listdir("/proc/self/fd")
    return sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in fds if os.path.exists(f"/proc/self/fd/{fd}"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """A list of all opens, reads and read-ahead requests (posix_fadvise), in order."""
    noted: list[tuple[str, Any]] = []
    names: dict[int, str] = {}
    open, preadv, fadvise = os.open, os.preadv, os.posix_fadvise

    def opened(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        fd = open(path, flags, *args, **kwargs)
        if not flags & os.O_PATH:
            names[fd] = Path(path).stem
            noted.append(("open", names[fd]))
        return fd

    def read(fd: int, *args: Any) -> int:
        noted.append(("read", names.get(fd)))
        return preadv(fd, *args)

    def advised(fd: int, offset: int, size: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED
        noted.append(("ask", (names.get(fd), offset, size)))
        fadvise(fd, offset, size, advice)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "preadv", read)
    monkeypatch.setattr(os, "posix_fadvise", advised)
    return noted


@pytest.mark.parametrize("count", [1, 16, N])
def test_files_are_requested_ahead_and_opened_once(folder: Callable, calls: list, count: int) -> None:
    """If reads wait, 16 files are opened and requested before the first is read; each is opened once, and all are closed."""
    data = folder(N)
    source = Bound(Npy(data.path).bind(data.ids), io_waits=True)
    before = descriptors()
    calls.clear()
    assert source.filled(data.ids[:count]) == list(range(count))
    assert [name for call, name in calls if call == "open"] == data.ids[:count]
    assert [name for call, (name, *_) in calls if call == "ask"] == data.ids[:count]
    assert calls.index(("read", data.ids[0])) == 2 * min(count, npy.FILES_AHEAD)
    assert descriptors() == before


def test_nothing_is_requested_ahead_if_reads_do_not_wait(folder: Callable, calls: list) -> None:
    """If reads do not wait, each file takes one open and one read, and no request ahead."""
    data = folder(N)
    source = Bound(Npy(data.path).bind(data.ids))
    calls.clear()
    assert source.filled(data.ids) == list(range(N))
    assert calls == [(call, id) for id in data.ids for call in ("open", "read")]


@pytest.mark.parametrize(("bad", "waits"), [(7, False), (0, True), (30, True)])
@pytest.mark.parametrize("harm", ["gone", "folder", "short", "null"])
def test_a_failing_file_is_named_at_its_row(folder: Callable, harm: str, bad: int, waits: bool) -> None:
    """A file that fails is named when its row's turn comes: earlier rows are filled, and no descriptor is left."""
    data = folder(N)
    ids = list(data.ids)
    source = Bound(Npy(data.path).bind(ids), io_waits=waits)
    match harm:
        case "gone":
            data.file(ids[bad]).unlink()
        case "folder":
            data.file(ids[bad]).unlink()
            data.file(ids[bad]).mkdir()
        case "short":
            os.truncate(data.file(ids[bad]), 150)
        case "null":
            ids[bad] = "a\0b"
    before = descriptors()
    rows = bytearray(ROW_BYTES * N)
    with pytest.raises(SampleError, match=r"expected .* found") as raised:
        source.reader.fill(ids, memoryview(rows), source.begun, io_waits=waits)
    assert raised.value.id == ids[bad]
    assert source.begun == [bad + 1]
    assert np.frombuffer(rows, "f4")[:: ROW_BYTES // 4].tolist()[:bad] == list(range(bad))
    assert descriptors() == before


def test_a_file_missing_ahead_may_exist_at_its_row(folder: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that could not be opened ahead, but can be when its row's turn comes, is no error."""
    data = folder(N)
    source = Bound(Npy(data.path).bind(data.ids), io_waits=True)
    open = os.open
    fails = iter([True])

    def opened(path: Any, *args: Any, **kwargs: Any) -> int:
        if path == f"{data.ids[20]}.npy" and next(fails, False):
            raise OSError(5, "Input/output error")
        return open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", opened)
    assert source.filled(data.ids) == list(range(N))
    assert next(fails, None) is None


@pytest.mark.parametrize("number", [0, 3, 15, 25, N - 1])
def test_a_hanging_open_is_the_current_row(folder: Callable, number: int) -> None:
    """While a file's open hangs, its row is the current one, though it was opened ahead; then the reader goes on."""
    data = folder(N)
    source = Bound(Npy(data.path).bind(data.ids), io_waits=True)
    fifo = data.fifo(number)
    errors: list[Any] = []

    def fill() -> None:
        try:
            source.filled(data.ids)
        except SampleError as error:
            errors.append(error)

    before = descriptors()
    thread = Thread(target=fill, daemon=True)
    thread.start()
    wait_until(lambda: source.begun == [number + 1], "the FIFO's row is the current one")
    os.close(os.open(fifo, os.O_WRONLY))  # waits for the reader
    thread.join()
    assert [error.id for error in errors] == [data.ids[number]]
    assert descriptors() == before


def test_readers_share_a_limit_of_files_opened_ahead(folder: Callable, calls: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """All readers of a process share a limit of files opened ahead, so that the file of the current row can be opened."""
    data = folder(N)
    monkeypatch.setattr(npy, "_spare", spare := Semaphore(3))
    source = Bound(Npy(data.path).bind(data.ids), io_waits=True)
    for _ in range(2):
        calls.clear()
        assert source.filled(data.ids) == list(range(N))
        assert calls.index(("read", data.ids[0])) == 2 * 3
    for _ in range(3):
        assert spare.acquire(blocking=False)
    calls.clear()
    assert source.filled(data.ids) == list(range(N))
    assert calls == [(call, id) for id in data.ids for call in ("open", "read")]


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("kind", ["files", "rows"])
def test_copies_read_at_once_in_threads(folder: Callable, kind: str, waits: bool) -> None:
    """Copies of a reader in threads read their own rows at once, and a deleted copy closes no file of another."""
    data = folder(N)
    np.save(data.path / "all.npy", np.stack([data.sample(number) for number in range(N)]))
    ids: Any = data.ids if kind == "files" else range(N)
    source = Npy(data.path) if kind == "files" else NpyRows(data.path / "all.npy")
    reader = source.bind(ids)
    assert reader.concurrent

    def read(seed: int) -> bool:
        chosen = np.random.default_rng(seed).permutation(N)[:11].tolist()
        return Bound(reader, io_waits=waits).filled([ids[number] for number in chosen]) == chosen

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(200)))


def test_neighbouring_rows_are_requested_together(folder: Callable, calls: list) -> None:
    """If reads wait, all rows are requested before the first is read, neighbours together; otherwise none is requested."""
    data = folder(N)
    np.save(data.path / "all.npy", np.stack([data.sample(number) for number in range(N)]))
    source = Bound(NpyRows(data.path / "all.npy").bind(range(N)), io_waits=True)
    ids = [7, 8, 9, 3, 2, 20, 21, 0]
    assert source.filled(ids) == ids
    asked = [(first, size) for call, (_, first, size) in calls if call == "ask"]
    assert asked == [(128 + 48 * first, 48 * count) for first, count in [(7, 3), (3, 1), (2, 1), (20, 2), (0, 1)]]
    assert [call for call, _ in calls[-13:]] == ["ask"] * 5 + ["read"] * 8
    calls.clear()
    assert Bound(source.reader).filled(ids) == ids
    assert [call for call, _ in calls] == ["open", *["read"] * 8]
