"""With ``on_error="replace"``, an unreadable sample is replaced, in all its fields, by another sample, the same in every run."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DataSet
from ways import made, run, shaking

from shmgen import Damaged, FunctionError, Loader, Npy, NpyRows, SampleError, TooManyDamaged, Values

N = 32
BATCH = 4


def cut(length: int) -> Callable[[Path], None]:
    """A function that truncates a file to ``length`` bytes."""
    return lambda path: os.truncate(path, length)


def loop(path: Path) -> None:
    """Replace a file by a link to itself, which even root can't read."""
    path.unlink()
    path.symlink_to(path)


SPOILS = {
    # how to damage a file, and the reason in the error
    "missing": (Path.unlink, "expected a file, found none at this path"),
    "empty": (cut(0), r"expected an .npy file, found an empty one \(0 bytes\)"),
    "truncated": (cut(140), "expected 176 bytes, found 140: the file is truncated"),
    "shape": (lambda path: np.save(path, np.zeros((3, 4), "f4")), r"expected shape \(4, 3\), found \(3, 4\)"),
    "not-npy": (lambda path: path.write_bytes(b"\x89PNG" * 99), "expected an .npy file, found one that begins with"),
    "unreadable": (loop, "expected a readable file, found: Too many levels of symbolic links"),
}


@pytest.fixture
def masked(folder: Callable[..., DataSet]) -> tuple[DataSet, DataSet]:
    """A data set of scans, and one of masks with the same ids and values."""
    return folder(N), folder(N, name="masks")


def of_fields(scans: DataSet, masks: DataSet, **options: Any) -> Loader:
    """A loader with fields of each kind, all of which have the sample's number as their value."""
    options = {"batch_size": BATCH, "on_error": "replace", "max_damaged": 0.1, **options}
    return Loader(
        scans.ids,
        inputs={"scan": Npy(scans.path), "age": Values(scans.labels, dtype="f4")},
        targets={"mask": Npy(masks.path), "class": Values(scans.labels, n_classes=N), "number": Values(scans.labels)},
        weights=scans.labels,
        **options,
    )


def numbers(batch: Any, rows: int = BATCH) -> list[int]:
    """The samples in a batch of `of_fields`; check that all fields of a row are of one sample."""
    X, y, weights = batch
    found: np.ndarray = y["number"]
    assert len(found) == rows
    for array in (X["age"], weights, y["class"].argmax(axis=1), *np.moveaxis(X["scan"], 0, -1).reshape(12, -1)):
        np.testing.assert_array_equal(array, found)
    np.testing.assert_array_equal(y["mask"], X["scan"])
    assert (y["class"].sum(axis=1) == 1).all()
    return found.tolist()


@pytest.mark.parametrize(
    ("spoiled", "field", "workers"),
    [*((spoiled, ("scan", "mask")[place % 2], 0) for place, spoiled in enumerate(SPOILS)), ("missing", "mask", 1)],
)
def test_a_damaged_sample_is_replaced(
    masked: tuple[DataSet, DataSet], caplog: pytest.LogCaptureFixture, spoiled: str, field: str, workers: int
) -> None:
    """A damaged file's sample is replaced, in all fields, by another of the epoch; this is logged, counted and listed."""
    spoil, reason = SPOILS[spoiled]
    path = masked[field == "mask"].file("id-7")
    spoil(path)
    with of_fields(*masked, workers=workers, seed=3) as loader:
        for epoch in (1, 2):
            times = Counter(number for batch in loader for number in numbers(batch))
            assert sorted(times.values()) == [1] * (N - 2) + [2]
            assert times[7] == 0
            assert loader.stats.replaced == epoch
        assert loader.stats.batches == 2 * N // BATCH
        assert loader.stats.restarts == 0
        [damaged] = loader.damaged
    assert damaged == Damaged("id-7", str(path), damaged.reason)
    assert re.match(reason, damaged.reason), damaged.reason
    [record] = caplog.records
    assert (record.name, record.levelname) == ("shmgen", "WARNING")
    assert record.getMessage() == f"{SampleError(*damaged)}\nit is replaced by another sample"


def test_replacements_do_not_depend_on_workers_and_slots(masked: tuple[DataSet, DataSet]) -> None:
    """Replacements are the same for any number of workers and slots, random transforms included, but not with another seed."""
    for field, number, spoiled in ((0, 3, "missing"), (0, 4, "shape"), (1, 20, "truncated"), (1, 3, "empty"), (0, 31, "not-npy")):
        SPOILS[spoiled][0](masked[field].file(f"id-{number}"))

    def rows(**options: Any) -> list[list[bytes]]:
        loader = of_fields(*masked, max_damaged=0.2, transform=shaking(), **options)
        found = run(loader)
        assert [damaged.id for damaged in sorted(loader.damaged)] == ["id-20", "id-3", "id-31", "id-4"]
        assert loader.stats.replaced >= 2 * 4  # a replacement may be damaged, too, but each row is counted once
        return found

    expected = rows(workers=0)
    assert rows(workers=2, slots=3) == expected
    assert rows(workers=0, seed=1) != expected


@pytest.mark.parametrize("shuffle", [True, False])
def test_rows_beyond_the_end_of_a_truncated_file_are_replaced(tmp_path: Path, shuffle: bool) -> None:
    """If an array is truncated while in use, its missing rows are replaced, also if neighbours are read together."""
    path = tmp_path / "all.npy"
    np.save(path, np.arange(3.0 * N).reshape(N, 3))
    with Loader(
        range(N), range(N), BATCH, shuffle=shuffle, source=NpyRows(path), workers=0, on_error="replace", max_damaged=0.1
    ) as loader:
        os.truncate(path, path.stat().st_size - 30)
        labels = []
        for X, y in loader:
            np.testing.assert_array_equal(X, y[:, None] * 3.0 + np.arange(3))
            labels += y.tolist()
        assert {damaged.id for damaged in loader.damaged} == {N - 2, N - 1}
        assert len(loader.damaged) == 2
        assert loader.damaged[0].path == str(path)
    assert len(labels) == N
    assert set(labels) <= set(range(N - 2))


def test_without_shuffling_other_samples_keep_their_places(masked: tuple[DataSet, DataSet]) -> None:
    """Without shuffling, all other samples keep their places, also if one of the last, shorter batch is damaged."""
    scans, masks = masked
    scans.file("id-2").unlink()
    masks.file(f"id-{N - 1}").unlink()
    with of_fields(scans, masks, batch_size=6, shuffle=False, tail="keep", workers=0) as loader:
        assert len(loader) == math.ceil(N / 6)
        for _ in range(2):
            epoch = [numbers(batch, rows) for batch, rows in zip(loader, [6] * (N // 6) + [N % 6], strict=True)]
            found = sum(epoch, [])
            assert [place for place, number in enumerate(found) if number != place] == [2, N - 1]
            assert not {2, N - 1} & set(found)
        assert loader.stats.replaced == 4


def test_a_damaged_replacement_is_replaced(folder: Callable) -> None:
    """If half of the samples are damaged, every row is still a readable sample, the same with any number of workers."""
    data = folder(N)
    for number in range(1, N, 2):
        data.file(f"id-{number}").unlink()
    options = {"batch_size": BATCH, "on_error": "replace", "max_damaged": 0.5}
    with made("files", data, workers=0, **options) as loader:
        for _ in range(2):
            labels = [label for X, y in loader for label in data.check(X, y)]
            assert len(labels) == N
            assert not any(label % 2 for label in labels)
        assert {damaged.id for damaged in loader.damaged} == {f"id-{number}" for number in range(1, N, 2)}
        assert loader.stats.replaced == 2 * N // 2
    assert run(made("files", data, workers=0, **options)) == run(made("files", data, workers=1, **options))


@pytest.mark.parametrize("on_error", ["replace", "collect"])
def test_the_first_samples_may_be_damaged(masked: tuple[DataSet, DataSet], on_error: Any) -> None:
    """The first readable sample determines shape and dtype; damaged ones before it are replaced or listed, like any others."""
    scans, masks = masked
    scans.file("id-0").unlink()
    masks.file("id-0").write_bytes(b"")
    scans.file("id-1").unlink()
    with of_fields(*masked, workers=0, on_error=on_error) as loader:
        found = [X["scan"].shape if on_error == "collect" else numbers((X, *rest)) for X, *rest in loader]
        assert {damaged.id for damaged in loader.damaged} == {"id-0", "id-1"}
    assert on_error == "collect" or not {0, 1} & set(sum(found, []))

    with pytest.raises(SampleError, match="sample 'id-0'"):
        of_fields(*masked, on_error="raise")
    for id in scans.ids:
        scans.file(id).unlink(missing_ok=True)
    with pytest.raises(SampleError, match="sample 'id-0'"):
        of_fields(*masked, on_error=on_error)


def test_the_first_sample_of_a_function_may_be_damaged() -> None:
    """Fields of a function are those of the first sample at which it does not fail; a function of labels must not fail."""
    options: Any = {"batch_size": 4, "on_error": "replace", "max_damaged": 0.5, "workers": 0}
    with Loader(range(8), source=lambda id: {"x": [60 / id]}, **options) as loader:
        assert all(np.isfinite(X["x"]).all() for (X,) in loader)
        assert [damaged.id for damaged in loader.damaged] == [0]
    with pytest.raises(FunctionError, match="sample 0, values of field 'y'"):
        Loader(range(8), source=lambda id: [id], targets=Values(lambda id: 60 // id), **options)


def test_a_repaired_file_is_read_again(masked: tuple[DataSet, DataSet]) -> None:
    """A repaired file is read normally, from the first epoch on that is not read ahead before the repair."""
    data = masked[0]
    data.file("id-7").write_bytes(b"")
    with of_fields(*masked, workers=1, slots=2) as loader:
        assert 7 not in [number for batch in loader for number in numbers(batch)]
        data.write(7)
        for _ in loader:
            pass
        assert sorted(number for batch in loader for number in numbers(batch)) == list(range(N))
        assert [damaged.id for damaged in loader.damaged] == ["id-7"]


@pytest.mark.parametrize("count", [0, 1])
def test_more_than_one_percent_damaged_ends_the_run(folder: Callable, workers: Callable, count: int) -> None:
    """Of 200 samples, 2 may be damaged; the third raises an error with the number, the last sample and a remedy."""
    data = folder(200)
    for number in (20, 70):
        data.file(f"id-{number}").unlink()
    with made("files", data, batch_size=20, workers=count, on_error="replace") as loader:
        assert len([label for X, y in loader for label in data.check(X, y)]) == 200
        data.file("id-120").unlink()
        with pytest.raises(TooManyDamaged, match=r"^3 of 200 samples are damaged, and max_damaged=0\.01") as caught:
            list(loader)
        assert (caught.value.damaged, caught.value.samples, caught.value.most) == (3, 200, 0.01)
        assert caught.value.last.startswith(f"sample 'id-120', file {data.file('id-120')}: expected a file, found none")
        assert caught.value.last in str(caught.value)
        with pytest.raises(TooManyDamaged, match="3 of 200"):
            loader.batch(0)
        assert "3 of 200" in repr(loader)
        assert len(loader.damaged) == 3
        assert not workers()


@pytest.mark.parametrize(("count", "most", "found"), [(N, 0.0, "1"), (N, 0.5, str(N // 2 + 1)), (N, 1.0, r"\d+"), (1, 1.0, "1")])
def test_a_run_with_only_damaged_samples_ends(folder: Callable, count: int, most: float, found: str) -> None:
    """If all samples are damaged, the run ends at any ``max_damaged``, since none is left as a replacement."""
    data = folder(count)
    with made("files", data, batch_size=min(count, BATCH), workers=0, on_error="replace", max_damaged=most) as loader:
        for id in data.ids:
            data.file(id).unlink()
        with pytest.raises(TooManyDamaged, match=rf"^{found} of {count} samples are damaged, and max_damaged={most:g} "):
            run(loader, epochs=3)
