"""Rows and windows of a long file, the windows to forecast, and how few reads they take."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import python, wait_until
from hypothesis import given, settings, strategies as st
from test_readers import reader

from shmgen import InputError, Loader, NpyRows, Remote, SampleError, WorkerDied
from shmgen._sources.row_file import Windows

SERIES = np.arange(400, dtype=np.int32).reshape(100, 4)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """A file of 100 rows of 4 numbers, which are their positions in the file."""
    np.save(tmp_path / "series.npy", SERIES)
    return tmp_path / "series.npy"


WAYS = {"read": {}, "hinted": {"io_waits": True}, "mapped": {"in_worker": True}}
"""Ways in which a reader reads rows."""


def filled(source: NpyRows, ids: Any, *, io_waits: bool = False, in_worker: bool = False) -> np.ndarray:
    """The samples, as a thread of the main process or of a worker reads them."""
    bound = source.bind(ids).opened(in_worker=in_worker)
    rows = np.empty((len(ids), *bound.shape), bound.dtype)
    bound.fill(list(ids), rows.data.cast("B"), [0], io_waits=io_waits)
    file = bound._open
    assert file is not None
    may_map = in_worker and not io_waits
    assert (file._mapped is not None) == (may_map and not file._are_neighbours(bound.layout.windows.firsts(ids)))
    return rows


def windows_of(lengths: list[int], window: int | None, stride: int, offset: int, step: int) -> list[Any]:
    """The row numbers of each sample, found by a simple loop."""
    found: list[Any] = []
    begin = 0
    for length in lengths:
        for first in range(begin + offset, begin + length, stride):
            rows = [first + step * number for number in range(window or 1)]
            if rows[-1] < begin + length:
                found.append(rows[0] if window is None else rows)
        begin += length
    return found


@pytest.mark.parametrize("dtype", ["<i4", ">i4"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_rows_and_windows_equal_numpys_indexing(
    tmp_path_factory: pytest.TempPathFactory, way: dict[str, Any], dtype: str, data: st.DataObject
) -> None:
    """Rows and windows, with strides, steps, columns and series, equal NumPy's indexing, in all ways of reading."""
    path = tmp_path_factory.mktemp("rows") / "series.npy"
    np.save(path, SERIES.astype(dtype))
    window = data.draw(st.none() | st.integers(1, 12))
    stride, offset = data.draw(st.integers(1, 12)), data.draw(st.integers(0, 10))
    step = 1 if window is None else data.draw(st.integers(1, 4))
    cuts = sorted(data.draw(st.lists(st.integers(0, 100), max_size=4)))
    lengths = data.draw(st.sampled_from([None, np.diff([0, *cuts, 100]).tolist()]))
    columns = data.draw(st.none() | st.integers(0, 3) | st.lists(st.integers(0, 3), min_size=1, max_size=3))
    source = NpyRows(path, columns=columns, window=window, stride=stride, offset=offset, step=step, series=lengths)
    expected = windows_of(lengths or [100], window, stride, offset, step)
    assert len(source) == len(expected)
    if expected:
        begin = data.draw(st.integers(0, len(expected) - 1))
        neighbours = list(range(begin, min(begin + 9, len(expected))))
        any_ids = st.lists(st.integers(0, len(expected) - 1), min_size=1, max_size=9)
        ids = data.draw(st.permutations(neighbours) | st.just(neighbours) | any_ids)
        rows = np.stack([SERIES[expected[id]] for id in ids])
        np.testing.assert_array_equal(filled(source, ids, **way), rows if columns is None else rows[..., columns])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 7), st.integers(1, 3), st.none() | st.integers(1, 4), st.integers(1, 9), st.booleans())
def test_windows_of_past_and_future(window: int, stride: int, step: int, ahead: int | None, rows: int, several: bool) -> None:
    """Window k of the future begins a given number of rows after window k of the past ends, in the same series."""
    lengths = [40, 0, 13, 47] if several else [100]
    past, future = Windows(window, stride, 0, step, series=lengths if several else None).after(rows, ahead)
    assert past.count(100) == future.count(100)
    ends = np.cumsum(lengths)
    for id in range(past.count(100)):
        last, first = past.first(id) + past.span - 1, future.first(id)
        assert first == last + rows
        assert np.searchsorted(ends, past.first(id), side="right") == np.searchsorted(ends, first + future.span - 1, side="right")
    # No further pair of windows would fit.
    starts = range(0, 40 if several else 100, stride)
    fits = sum(start + past.span - 1 + rows + future.span <= (40 if several else 100) for start in starts)
    assert fits == (past._samples[1] if several else past.count(100))


@pytest.mark.parametrize("workers", [0, 2])
def test_forecast_makes_sources_of_past_and_future(series: Path, workers: int) -> None:
    """``forecast`` makes the sources of past and future, and a loader gives each window with the rows that follow it."""
    past, future = NpyRows(series, window=10, stride=3).forecast(2, window=3, columns=1)
    with Loader(range(len(past)), future, batch_size=4, source=past, workers=workers, tail="keep") as loader:
        for _ in range(3):
            for X, y in loader:
                np.testing.assert_array_equal(X[:, -1, 1, None] + [8, 12, 16], y)
                assert X.shape[1:] == (10, 4)


def test_neighbouring_windows_are_read_in_one_call(series: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbouring rows or windows are read in one call, without reading a byte twice; others in one call each."""
    read: list[int] = []
    preadv = os.preadv

    def watched(fd: int, buffers: Any, offset: int) -> int:
        read.append(sum(map(len, buffers)))
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", watched)
    for (window, stride), ids, sizes in [
        ((8, 2), range(5, 15), [(8 + 9 * 2) * 16]),
        ((8, 8), range(2, 8), [8 * 6 * 16]),
        ((8, 2), [5, 7, 6], [8 * 16] * 3),
        ((2, 8), range(5), [2 * 16] * 5),
        ((None, 1), range(5, 15), [10 * 16]),
        ((None, 1), [5, 9, 8], [16] * 3),
    ]:
        read.clear()
        filled(NpyRows(series, window=window, stride=stride), ids)
        assert read == sizes


@pytest.mark.parametrize(("window", "stride", "offset"), [(8, 3, 0), (8, 8, 4), (4, 9, 1), (None, 5, 2), (100, 1, 0)])
def test_windows_are_requested_ahead(
    series: Path, monkeypatch: pytest.MonkeyPatch, window: int | None, stride: int, offset: int
) -> None:
    """If reads wait, all windows are requested ahead; nothing else is, unless there are gaps between them."""
    ids = [0] if window == 100 else [0, 1, 2, 5, 4]
    asked: set[int] = set()
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, first, size, advice: asked.update(range(first, first + size)))
    filled(NpyRows(series, window=window, stride=stride, offset=offset), ids, io_waits=True)
    rows = {row for id in ids for row in range(offset + id * stride, offset + id * stride + (window or 1))}
    needed = {byte for row in rows for byte in range(128 + row * 16, 144 + row * 16)}
    assert asked >= needed
    if stride <= (window or 1):
        assert asked == needed


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_first_missing_window_is_named(series: Path, way: dict[str, Any]) -> None:
    """If a file was truncated, the first missing window is named; those before it can still be read."""
    source = NpyRows(series, window=12, stride=4)
    bound = source.bind(range(23)).opened(in_worker="in_worker" in way)
    rows, begun = np.empty((23, 12, 4), np.int32), [0]
    io_waits = "io_waits" in way
    bound.fill(list(range(23)), rows.data.cast("B"), begun, io_waits=io_waits)
    os.truncate(series, 128 + 60 * 16)
    with pytest.raises(SampleError, match=r"series.npy: expected .* bytes, found .*: the file is truncated") as caught:
        bound.fill(list(range(23)), rows.data.cast("B"), begun, io_waits=io_waits)
    assert caught.value.id == 13
    bound.fill([3, 1], rows[:2].data.cast("B"), begun, io_waits=io_waits)
    np.testing.assert_array_equal(rows[:2], np.stack([SERIES[12:24], SERIES[4:16]]))
    with pytest.raises(InputError, match="the file is truncated"):
        len(source)


def test_a_file_written_during_a_read_is_named(series: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is written to while its rows are read is an error."""
    bound = reader(NpyRows(series), range(100))
    preadv = os.preadv

    def written(fd: int, buffers: Any, offset: int) -> int:
        with series.open("r+b") as file:
            file.write(b"\x93")
        os.utime(series, ns=(1, 1))
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", written)
    with pytest.raises(SampleError, match="found one that was written to meanwhile"):
        bound.filled([1, 5, 3])


TRUNCATES = """
import os, sys
from shmgen import NpyRows
reader = NpyRows(sys.argv[1]).bind(range(2048)).opened(in_worker=True)
rows = bytearray(2 * 4096)
reader.fill([0, 2047], memoryview(rows), [0])
fstat, cut = os.fstat, []
def late(fd):
    status = fstat(fd)
    os.truncate(sys.argv[1], 8192)  # after the look at the size
    return status
os.fstat = late
reader.fill([0, 2047], memoryview(rows), [0])
"""


def test_a_file_that_is_truncated_while_it_is_copied(tmp_path: Path) -> None:
    """A worker whose mapped file is truncated dies of SIGBUS; its error says why, and the next worker names the sample."""
    np.save(tmp_path / "all.npy", np.zeros((2048, 4096), "u1"))
    assert python("-c", "import numpy" + TRUNCATES, tmp_path / "all.npy").returncode == -signal.SIGBUS
    assert "a file that it has mapped was truncated while it was read" in str(WorkerDied(0, 1, -signal.SIGBUS))
    np.save(tmp_path / "all.npy", np.zeros((2048, 4096), "u1"))
    with Loader(range(2048), None, 32, source=NpyRows(tmp_path / "all.npy"), workers=1, shuffle=False, slots=2) as loader:
        epoch = iter(loader)
        for _ in range(10):
            next(epoch)
        worker = psutil.Process(loader.state.workers[0].pid)
        worker.suspend()  # or a read under way could name its sample, since the file is written to meanwhile
        wait_until(lambda: worker.status() == psutil.STATUS_STOPPED, "the worker has stopped")
        os.truncate(tmp_path / "all.npy", 128 + 1024 * 4096)
        worker.send_signal(signal.SIGBUS)
        worker.resume()
        with pytest.raises(SampleError, match="the file is truncated") as caught:
            list(epoch)
        assert int(str(caught.value.id)) >= 1024


@pytest.mark.parametrize(("memory", "flag"), [(0, True), (1 << 40, False)])
def test_a_file_larger_than_memory(series: Path, memory: int, flag: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux reads nothing around the rows of a mapped file that memory can't hold (flag ``rr``); of others it may."""
    monkeypatch.setattr("shmgen._sources.row_file.available", lambda: memory)
    bound = NpyRows(series).bind(range(100)).opened(in_worker=True)
    bound.fill(range(99, -1, -1), np.empty((100, 4), np.int32).data.cast("B"), [0])
    mapped = Path("/proc/self/smaps").read_text().partition(str(series))[2]
    assert ("rr" in re.search("VmFlags: (.*)", mapped)[1].split()) == flag  # type: ignore[index]


def test_windows_at_a_url(root: Path, proxy: Any, tmp_path: Path) -> None:
    """Neighbouring windows behind a URL take one request together, others one each, and cached ones none."""
    np.save(root / "series.npy", SERIES)
    url = f"{proxy.url}/series.npy"
    for window, stride, step, requests in ((8, 2, 1, 1), (8, 8, 1, 1), (2, 8, 1, 6), (3, 2, 2, 1)):
        source = NpyRows(
            Remote(url, cache=tmp_path / f"{window}-{stride}"), window=window, stride=stride, step=step, columns=[2, 0]
        )
        for asked in (requests, 0):
            bound = reader(source, range(6))
            rows = np.empty((6, window, 2), np.int32)
            proxy.requests.clear()
            bound.reader.fill(range(6), rows.data.cast("B"), [0])
            expected = windows_of([100], window, stride, 0, step)[:6]
            np.testing.assert_array_equal(rows, SERIES[expected][..., [2, 0]])
            assert len(proxy.requests) == asked


@pytest.mark.parametrize(
    ("options", "ids", "text"),
    [
        ({"window": 0}, [0], "window: expected an int from 1, found 0"),
        ({"stride": 0}, [0], "stride: expected an int from 1, found 0"),
        ({"offset": -1}, [0], "offset: expected an int from 0, found -1"),
        ({"step": 2}, [0], "step: expected with window"),
        ({"series": [60, 41]}, [0], r"series\.npy: expected series of 100 rows together, found 101"),
        ({"columns": [1, 4]}, [0], r"series\.npy: expected rows that have column 4, counted from 0, found rows of 4 columns"),
        ({"columns": []}, [0], "columns: expected numbers of columns, found none"),
        ({"window": 8, "stride": 4}, range(25), r"id 24: expected a window's number from 0 to 23, of 100 rows, in .*series\.npy"),
        ({"window": 8, "series": [10, 90]}, [86], r"id 86: expected a window's number from 0 to 85, of 100 rows"),
        ({"window": 90, "offset": 11}, [0], r"id 0: expected at least 101 rows for a window of 90, found 100, in .*series\.npy"),
        ({"window": 8}, ["a"], "id 'a': expected a window's number"),
        ({"window": 8, "ids": "all.ids"}, [0], "ids: expected without window, stride, offset and series"),
    ],
)
def test_impossible_windows_are_refused(series: Path, options: dict[str, Any], ids: Any, text: str) -> None:
    """Windows that do not exist, and options that make none, are an error with the numbers and the reason."""
    with pytest.raises(InputError, match=text):
        NpyRows(series, **options).bind(ids)


def test_forecasts_have_no_ids(series: Path) -> None:
    """Ids name rows, and the rows before the last have a future: a forecast of rows with ids is refused."""
    with pytest.raises(InputError, match="forecast: expected a source without ids"):
        NpyRows(series, ids="all.ids").forecast()
