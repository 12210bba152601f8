"""Bad input gets an error that names the file or the id, what was expected and what was found, and leaves nothing behind."""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from bad_files import BAD, GOOD, SOUND, npy, put, with_header
from conftest import DataSet

from shmgen import InputError, Loader, NpyRows, SampleError

WITHIN = 10.0
"""Seconds in which an error must be there: far more than it takes, far less than an endless wait."""

WORKERS = [pytest.param(0, id="in-process"), pytest.param(2, id="2-workers")]


def spoilt(data: DataSet, cases: list[Any]) -> None:
    """Put the files of a table in the place of the samples after the first."""
    for id, case in zip(data.ids[1:], cases, strict=True):
        put(data.file(id), case.values[0])


@pytest.mark.timeout(WITHIN)
@pytest.mark.parametrize(("content", "expected", "found"), BAD)
def test_a_bad_first_file_is_named(folder: Callable, content: Any, expected: str, found: str) -> None:
    """A first file that is bad is named by the constructor, with its path, what was expected and what was found."""
    data = folder(2)
    put(data.file("id-0"), content)

    with pytest.raises(SampleError) as raised:
        Loader(data.ids, None, 1, (4,), 3, data_dir=data.path, dtype=np.float32, workers=0)

    error = raised.value
    assert (error.id, error.path) == ("id-0", str(data.file("id-0")))
    assert re.search(f"expected .*{re.escape(expected)}.*found.*{re.escape(found)}", error.reason), error.reason
    assert str(error) == f"sample 'id-0', file {error.path}: {error.reason}"
    again = pickle.loads(pickle.dumps(error))
    assert (again.id, again.path, again.reason) == (error.id, error.path, error.reason)


@pytest.mark.parametrize("workers", WORKERS)
def test_bad_files_are_named_when_they_are_read(folder: Callable, workers: int) -> None:
    """Each bad file that is read for a batch has a SampleError of its own; the file beside it is read."""
    data = folder(len(BAD) + 1)
    spoilt(data, BAD)

    with Loader(data.ids, data.labels, 1, data_dir=data.path, shuffle=False, workers=workers) as loader:
        data.check(*loader.batch(0))
        for number, case in enumerate(BAD, 1):
            with pytest.raises(SampleError) as raised:
                loader.batch(number)
            assert (raised.value.id, raised.value.path) == (data.ids[number], str(data.file(data.ids[number]))), case.id
            expected, _, found = raised.value.reason.partition("found")
            assert str(case.values[1]) in expected, case.id
            assert str(case.values[2]) in found, case.id


def test_odd_files_are_read(folder: Callable) -> None:
    """Files of another byte order, axis order, format version or precision are cast."""
    data = folder(len(SOUND) + 1)
    spoilt(data, SOUND)
    put(data.path / "good.npy", npy(GOOD))

    with Loader(data.ids, None, len(data.ids), data_dir=data.path, shuffle=False, workers=0) as loader:
        (X,) = loader.batch(0)

    for row, case in zip(X[1:], SOUND, strict=True):
        np.testing.assert_array_equal(row, 0 if case.id == "python-2" else GOOD, str(case.id))


def of_shape(shape: object, descr: str = "<f4") -> bytes:
    """An .npy file that promises an array of this shape and holds 1,000 bytes."""
    return with_header(f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}}}\n".encode())


HOSTILE_FILES = [
    # what stands in the place of the file, and what its error says
    pytest.param(of_shape((1 << 40,)), r"expected 4,398,046,\d+,\d+ bytes, found 1,\d+: the file is truncated", id="terabytes"),
    pytest.param(of_shape((1 << 28,)), r"expected 1,073,\d+,\d+ bytes, found 1,\d+: the file is truncated", id="a-gigabyte"),
    pytest.param(of_shape((1 << 62, 3)), r"expected [\d,]+ bytes, found 1,\d+: the file is truncated", id="exabytes"),
    pytest.param(of_shape((1 << 32, 1 << 32)), r"expected [\d,]+ bytes, found 1,\d+: the file is truncated", id="2**64"),
    pytest.param(of_shape((1 << 63,)), r"expected an \.npy header, found .*9223372036854775808", id="2**63"),
    pytest.param(of_shape("(0x" + "f" * 9000 + ",)"), r"expected an \.npy header, found .*0xfff", id="a-size-of-too-many-digits"),
    pytest.param(of_shape("(-0x" + "f" * 9000 + ",)"), r"expected an \.npy header, found .*-0xfff", id="minus-many-digits"),
    pytest.param(of_shape((-2, 3)), r"expected a shape of sizes from 0, found \(-2, 3\)", id="negative"),
    pytest.param(of_shape((3 - 2**61, 8)), r"expected a shape of sizes from 0, found \(-", id="negative-that-numpy-works-out"),
    pytest.param(of_shape((True, 3)), r"expected an \.npy header, found .*True", id="bool"),
    pytest.param(of_shape((1,) * 1000), r"expected an \.npy header, found", id="1000-axes"),
    pytest.param(of_shape("(" * 5000), r"expected an \.npy header, found", id="parentheses"),
    pytest.param(of_shape("-" * 9000 + "2"), r"expected an \.npy header, found", id="signs"),
    pytest.param(of_shape("2" + "+2" * 4500), r"expected an \.npy header, found", id="sums"),
    pytest.param(of_shape("__import__('os').abort()"), r"expected an \.npy header, found", id="code"),
    pytest.param(
        b"\x93NUMPY\x02\0" + struct.pack("<I", 10_000_000) + b"{" * 10_000_000,
        r"expected an \.npy header of at most 10,000 characters, found one of 10,000,000",
        id="a-header-of-megabytes",
    ),
]


@pytest.mark.timeout(WITHIN)
@pytest.mark.parametrize(("content", "message"), HOSTILE_FILES)
def test_a_hostile_header_is_named(folder: Callable, content: bytes, message: str) -> None:
    """A first file, or a file of all rows, with such a header is refused soon, before any memory is set aside."""
    data = folder(2)
    put(data.file("id-0"), content)

    with pytest.raises(SampleError, match=message) as raised:
        Loader(data.ids, None, 1, data_dir=data.path, workers=0)
    assert (raised.value.id, raised.value.path) == ("id-0", str(data.file("id-0")))
    with pytest.raises(InputError, match=rf"id-0\.npy: .*{message}"):
        Loader([0], None, 1, source=NpyRows(data.file("id-0")))


@pytest.mark.timeout(WITHIN)
def test_hostile_headers_are_named_by_a_worker(folder: Callable) -> None:
    """A worker that reads such files names each, and does not die."""
    data = folder(len(HOSTILE_FILES) + 1)
    spoilt(data, HOSTILE_FILES)

    with Loader(data.ids, data.labels, 1, data_dir=data.path, shuffle=False, workers=1) as loader:
        data.check(*loader.batch(0))
        for id in data.ids[1:]:
            with pytest.raises(SampleError, match=r"expected .*found") as raised:
                loader.batch(data.labels[id])
            assert raised.value.id == id
        assert loader.stats.restarts == 0


def test_the_first_file_decides_on_numbers_only(folder: Callable) -> None:
    """With ``dtype`` left out, a first file of text, records or dates is refused, since no model takes it."""
    data = folder(2)
    for dtype in ("U5", "S5", "f4,i4", "M8[s]", "m8[s]", "V4"):
        put(data.file("id-0"), npy(np.zeros((4, 3), dtype)))
        with pytest.raises(SampleError, match=r"'id-0'.*expected (a dtype of )?numbers, found"):
            Loader(data.ids, None, 2, data_dir=data.path, workers=0)


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(np.asfortranarray, id="fortran"),
        pytest.param(lambda a: a.astype(">f4"), id="big-endian"),
        pytest.param(lambda a: a.astype(np.float64), id="cast"),
    ],
)
def test_zeros_are_no_sample_whatever_the_first_file_is(folder: Callable, first: Callable) -> None:
    """A file of zeros, as a crash of the machine leaves it, is never taken for data."""
    data = folder(4)
    np.save(data.file("id-0"), first(data.sample(0)))
    for id, start in zip(data.ids[1:], (b"\0", b"\x93NUMPY\0", b"\x93NUMPY\x01\0"), strict=True):
        data.file(id).write_bytes(start + bytes(1000))

    with Loader(data.ids, None, 1, data_dir=data.path, dtype=np.float32, shuffle=False, workers=0) as loader:
        for number in (1, 2, 3):
            with pytest.raises(SampleError, match=f"id-{number}"):
                loader.batch(number)


@pytest.mark.parametrize("workers", WORKERS)
def test_the_rest_is_read_after_an_error_and_the_batch_once_mended(folder: Callable, workers: int) -> None:
    """After a SampleError, by index or in a loop, all other batches come, and the bad one once its file is mended."""
    data = folder(24)
    data.file("id-9").write_bytes(b"")
    options = {"data_dir": data.path, "shuffle": False, "workers": workers, "slots": 3}

    with Loader(data.ids, data.labels, 4, **options) as loader:
        for by_index in (True, False):
            epoch = map(loader.batch, range(6)) if by_index else iter(loader)
            got = []
            for index in range(6):
                if index == 2:
                    with pytest.raises(SampleError, match="id-9"):
                        next(epoch)
                else:
                    got += data.check(*next(epoch))
            assert got == [*range(8), *range(12, 24)]
            loader.on_epoch_end()
        data.write(9)
        with suppress(SampleError):  # the next epoch's batch may have been read ahead while the file was bad
            loader.batch(2)
        assert data.check(*loader.batch(2)) == [8, 9, 10, 11]
        with suppress(SampleError):
            list(loader)
        assert [label for X, y in loader for label in data.check(X, y)] == list(range(24))


def test_several_bad_files_are_named_one_by_one(folder: Callable) -> None:
    """Of several bad files in a batch, one is named each time, until all are mended."""
    data = folder(8)
    bad = {1, 4, 7}
    for number in bad:
        data.file(data.ids[number]).unlink()

    with Loader(data.ids, data.labels, 8, data_dir=data.path, shuffle=False, workers=2) as loader:
        while bad:
            with pytest.raises(SampleError) as raised:
                loader.batch(0)
            number = data.labels[raised.value.id]
            if number in bad:  # else it was read ahead before it was mended
                bad.remove(number)
                data.write(number)


FROM_1 = (0, -4, 2.0, None)

BAD_ARGUMENTS = [
    # an argument, values of it, and what the error says
    ("batch_size", FROM_1, "expected an int from 1, found "),
    ("dim", (0, (4, 0), (-4, 3), (4.0, 3)), "expected an int from 1, found "),
    ("n_channels", FROM_1[:3], "expected an int from 1, found "),
    ("n_classes", FROM_1[:3], "expected an int from 1, found "),
    ("workers", (-1, 1.5), "expected an int from 0, found "),
    ("workers", ("many",), "expected a number from 0, or 'auto', found 'many'"),
    ("reads", (0, -1, 129, 1.5, None), "expected an int from 1 to 128, found "),
    ("reads", ("many",), "expected an int from 1 to 128, or 'auto', found 'many'"),
    ("slots", (1, 0, -3), "expected an int from 2, found "),
    ("seed", (-1, None), "expected an int from 0, found "),
    ("on_error", ("skip", None, True, ["raise"]), "expected 'raise' or 'replace' or 'collect', found "),
    ("max_damaged", (-0.01, 1.01, 5, float("nan"), "0.1", None), "expected a fraction from 0 to 1, found "),
    ("timeout", (0, -1, float("nan"), "5", [5]), "expected seconds above 0, or None, found "),
    ("dtype", (object, "U5", "f4,i4", "M8[s]", "float31"), "expected .*numbers, found .*(object|U|f4|datetime64|float31)"),
]


@pytest.mark.parametrize(("name", "values", "message"), BAD_ARGUMENTS, ids=lambda value: value if isinstance(value, str) else "")
def test_bad_arguments_are_named(folder: Callable, name: str, values: tuple[Any, ...], message: str) -> None:
    """Bad arguments are an InputError, which is a ValueError, with what was expected and found."""
    data = folder(8)
    for value in values:
        with pytest.raises(InputError, match=rf"{name}: {message}") as raised:
            Loader(**{"list_IDs": data.ids, "labels": data.labels, "batch_size": 2, "data_dir": data.path, name: value})
        assert isinstance(raised.value, ValueError)


BAD_LABELS = [
    # labels to replace, and what the error says
    pytest.param({"id-3": None}, r"expected an int, found None", id="none"),
    pytest.param({"id-3": [0, 1]}, r"expected an int, found \[0, 1\]", id="list"),
    pytest.param({"id-3": -1}, r"expected an int from 0 to 7, found -1", id="below-the-classes"),
]


@pytest.mark.parametrize(("changed", "message"), BAD_LABELS)
def test_bad_labels_are_named(folder: Callable, changed: dict[str, Any], message: str) -> None:
    """A label that is no class is named with its id, what was expected and what was found."""
    data = folder(8)
    with pytest.raises(InputError, match=rf"id 'id-3', field 'y': {message}"):
        Loader(data.ids, {**data.labels, **changed}, 2, data_dir=data.path, n_classes=8 if "to 7" in message else None)


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        pytest.param([], {}, r"expected at least 2 ids, found 0", id="none"),
        pytest.param([], {"tail": "keep"}, r"expected at least 1 ids?, found 0", id="none-keep"),
        pytest.param(np.array([], "U4"), {}, r"expected at least 2 ids, found 0", id="none-in-an-array"),
        pytest.param(["id-0"], {}, r"expected at least 2 ids, found 1.*tail='keep'", id="fewer-than-a-batch"),
    ],
)
def test_too_few_ids(folder: Callable, ids: Any, options: dict[str, Any], message: str) -> None:
    """Too few ids for a batch are an error with their number."""
    with pytest.raises(InputError, match=message):
        Loader(ids, None, 2, data_dir=folder(1).path, **options)
