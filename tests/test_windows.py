"""Windows of a long file: which rows they are, what follows them, and how few reads they take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_readers import reader

from shmgen import InputError, Loader, NpyRows, Remote, SampleError
from shmgen._sources.row_file import Windows

SERIES = np.arange(300, dtype=np.int32).reshape(100, 3)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """A file of 100 rows of 3 numbers, which tell where they stand."""
    np.save(tmp_path / "series.npy", SERIES)
    return tmp_path / "series.npy"


def expected(ids: Any, window: int | None, stride: int, offset: int) -> np.ndarray:
    """The samples, by NumPy."""
    starts = [offset + id * stride for id in ids]
    return np.stack([SERIES[start] if window is None else SERIES[start : start + window] for start in starts])


@given(st.integers(0, 300), st.none() | st.integers(1, 40), st.integers(1, 40), st.integers(0, 40))
def test_how_many_there_are(rows: int, window: int | None, stride: int, offset: int) -> None:
    """As many as begin, and end, within the file."""
    starts = range(offset, rows, stride)
    assert Windows(window, stride, offset).count(rows) == sum(start + (window or 1) <= rows for start in starts)


CASES = [
    (8, 3, 0),  # overlapping
    (8, 8, 4),  # side by side
    (4, 9, 1),  # apart
    (1, 1, 0),
    (None, 5, 2),
    (100, 1, 0),
]


@pytest.mark.parametrize("shuffle", [False, True], ids=["in-order", "shuffled"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("window", "stride", "offset"), CASES)
def test_windows_are_those_of_the_array(
    series: Path, window: int | None, stride: int, offset: int, workers: int, shuffle: bool
) -> None:
    """Every window once, each the rows of its number, whether neighbours are read together or not."""
    source = NpyRows(series, window=window, stride=stride, offset=offset)
    ids = range(len(source))
    assert offset + ids[-1] * stride + (window or 1) <= 100 < offset + len(ids) * stride + (window or 1)
    options: dict[str, Any] = {"shuffle": shuffle, "workers": workers, "tail": "keep"}
    seen = []
    with Loader(ids, np.array(ids), 5, source=source, **options) as loader:
        for X, y in loader:
            np.testing.assert_array_equal(X, expected(y.tolist(), window, stride, offset))
            seen += y.tolist()
    assert sorted(seen) == list(ids)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_follows_is_forecast(series: Path, workers: int) -> None:
    """A target at an offset, of several rows or one: the rows behind each window, from the same file."""
    past = NpyRows(series, window=10, stride=4)
    future, after = NpyRows(series, window=3, stride=4, offset=10), NpyRows(series, stride=4, offset=13)
    ids = range(min(len(future), len(after)))
    targets = {"future": future, "after": after}
    with Loader(ids, inputs=past, targets=targets, batch_size=4, workers=workers, tail="keep") as loader:
        for X, y in loader:
            np.testing.assert_array_equal(X[:, -1] + 3, y["future"][:, 0])
            np.testing.assert_array_equal(y["future"][:, -1] + 3, y["after"])
            assert X.shape[1:] == (10, 3)
            assert y["after"].shape[1:] == (3,)


def test_neighbouring_windows_are_read_in_one_call(series: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Overlapping ones too, and no byte of them twice; others by a call each."""
    read: list[int] = []
    preadv = os.preadv

    def watched(fd: int, buffers: Any, offset: int) -> int:
        read.append(sum(map(len, buffers)))
        return preadv(fd, buffers, offset)

    for (window, stride), ids, sizes in [
        ((8, 2), range(5, 15), [(8 + 9 * 2) * 12]),
        ((8, 8), range(2, 8), [8 * 6 * 12]),
        ((8, 2), [5, 7, 6], [8 * 12] * 3),
        ((2, 8), range(5), [2 * 12] * 5),
    ]:
        source = reader(NpyRows(series, window=window, stride=stride), ids)
        rows = np.empty((len(ids), window, 3), np.int32)
        source.reader.fill(ids, rows.data.cast("B"), [0])  # opens the file
        read.clear()
        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", watched)
            source.reader.fill(ids, rows.data.cast("B"), [0])
        assert read == sizes
        np.testing.assert_array_equal(rows, expected(ids, window, stride, 0))


@pytest.mark.parametrize(("window", "stride", "offset"), CASES)
def test_windows_are_asked_for_ahead(
    series: Path, monkeypatch: pytest.MonkeyPatch, window: int | None, stride: int, offset: int
) -> None:
    """Where reading waits, the system is told of all windows before one is read, and of nothing but what lies between."""
    ids = [0] if window == 100 else [0, 1, 2, 5, 4]
    source = reader(NpyRows(series, window=window, stride=stride, offset=offset), ids)
    rows = np.empty((len(ids), *source.reader.shape), np.int32)
    asked: set[int] = set()
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, first, size, advice: asked.update(range(first, first + size)))
    source.reader.fill(ids, rows.data.cast("B"), [0], io_waits=True)
    np.testing.assert_array_equal(rows, expected(ids, window, stride, offset))
    needed = {byte for id in ids for row in range(window or 1) for byte in _bytes_of(offset + id * stride + row)}
    assert asked >= needed
    if stride <= (window or 1):
        assert asked == needed


def _bytes_of(row: int) -> range:
    return range(128 + row * 12, 128 + row * 12 + 12)


def test_a_window_behind_the_end_is_the_one_named(series: Path) -> None:
    """Where the file was cut meanwhile, the first window that is no longer there."""
    with Loader(range(23), None, 23, source=NpyRows(series, window=12, stride=4), shuffle=False, workers=0) as loader:
        loader.batch(0)
        os.truncate(series, 128 + 60 * 12)
        with pytest.raises(SampleError, match=r"the file is truncated") as caught:
            loader.batch(0)
        assert caught.value.id == 13
    with pytest.raises(InputError, match="the file is truncated"):
        len(NpyRows(series, window=12))


def test_other_byte_orders(tmp_path: Path) -> None:
    """Overlapping windows of a file of the other byte order are turned once each."""
    np.save(tmp_path / "big.npy", SERIES.astype(">i4"))
    with Loader(range(20), None, 20, source=NpyRows(tmp_path / "big.npy", window=5), shuffle=False, workers=0) as loader:
        np.testing.assert_array_equal(loader.batch(0)[0], expected(range(20), 5, 1, 0))


def test_windows_at_a_url(root: Path, proxy: Any, tmp_path: Path) -> None:
    """One request for neighbours, overlapping or side by side; one each for others; none for what is kept."""
    np.save(root / "series.npy", SERIES)
    url = f"{proxy.url}/series.npy"
    for window, stride, requests in ((8, 2, 1), (8, 8, 1), (2, 8, 6)):
        source = NpyRows(Remote(url, cache=tmp_path / f"{window}-{stride}"), window=window, stride=stride)
        for asked in (requests, 0):
            bound = reader(source, range(6))
            rows = np.empty((6, window, 3), np.int32)
            proxy.requests.clear()
            bound.reader.fill(range(6), rows.data.cast("B"), [0])
            np.testing.assert_array_equal(rows, expected(range(6), window, stride, 0))
            assert len(proxy.requests) == asked
    assert len(NpyRows(url, window=8, stride=2)) == 47


@pytest.mark.parametrize(
    ("options", "ids", "text"),
    [
        ({"window": 0}, [0], "window: expected an int from 1, found 0"),
        ({"stride": 0}, [0], "stride: expected an int from 1, found 0"),
        ({"offset": -1}, [0], "offset: expected an int from 0, found -1"),
        (
            {"window": 8, "stride": 4},
            range(25),
            r"id 24: expected a window's number from 0 to 23: the 100 rows of .*series\.npy have 24 windows of 8 rows, 4 apart",
        ),
        (
            {"window": 90, "offset": 11},
            [0],
            r"id 0: expected at least 101 rows in .*series\.npy, for windows of 90 rows, 1 apart, from row 11 on, found 100",
        ),
        ({"window": 8}, ["a"], "id 'a': expected the number"),
        ({"window": 8, "ids": "all.ids"}, [0], "ids: expected without window, stride, offset and series"),
    ],
)
def test_windows_that_are_not_there(series: Path, options: dict[str, Any], ids: Any, text: str) -> None:
    """The error says how many there are, and why."""
    with pytest.raises(InputError, match=text):
        Loader(ids, None, 1, source=NpyRows(series, **options))
