"""Bad input gets an error that names the file or the id, what was expected and what was found, and leaves nothing behind."""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_files import BAD, GOOD, SOUND, npy, put, with_header

from shmgen import InputError, Loader, NpyRows, SampleError

WITHIN = 10.0
"""Seconds in which an error must be there: far more than it takes, far less than a wait without an end."""

WORKERS = [pytest.param(0, id="in-process"), pytest.param(2, id="2-workers")]

PLACES = [pytest.param(0, 0, id="first"), pytest.param(5, 2, id="later-by-workers")]
"""Which file is bad, and by how many workers it is read: the main process itself looks at the first."""


@pytest.mark.timeout(WITHIN)
@pytest.mark.parametrize(("position", "workers"), PLACES)
@pytest.mark.parametrize(("content", "expected", "found"), BAD)
def test_a_bad_file_is_named(
    folder: Callable, content: bytes | Callable[[Path], object] | None, expected: str, found: str, position: int, workers: int
) -> None:
    """Whatever is wrong with a file, a SampleError names id and path, what was expected and what was found."""
    data = folder(8)
    bad = data.ids[position]
    put(data.file(bad), content)

    def read() -> None:
        with Loader(
            data.ids, data.labels, 4, (4,), 3, data_dir=data.path, dtype=np.float32, shuffle=False, workers=workers
        ) as loader:
            for X, y in loader:
                data.check(X, y)

    with pytest.raises(SampleError) as raised:
        read()

    error = raised.value
    assert (error.id, error.path) == (bad, str(data.file(bad)))
    assert re.search(f"expected .*{re.escape(expected)}.*found.*{re.escape(found)}", error.reason), error.reason
    assert str(error) == f"sample {bad!r}, file {error.path}: {error.reason}"
    again = pickle.loads(pickle.dumps(error))
    assert (again.id, again.path, again.reason) == (error.id, error.path, error.reason)


@pytest.mark.parametrize("content", SOUND)
def test_an_odd_file_is_read(folder: Callable, content: Any) -> None:
    """Other byte order, axis order, format version or precision are cast."""
    data = folder(8)
    put(data.path / "good.npy", npy(np.zeros((4, 3), "f4")))
    put(data.file("id-5"), content)

    with Loader(data.ids, None, 8, data_dir=data.path, shuffle=False, workers=0) as loader:
        (X,) = next(iter(loader))

    assert X[5, 0, 0] == 0


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
@pytest.mark.parametrize(("position", "workers"), PLACES)
@pytest.mark.parametrize(("content", "message"), HOSTILE_FILES)
def test_a_hostile_header_is_named(folder: Callable, content: bytes, message: str, position: int, workers: int) -> None:
    """Even where the first file is to decide on shape and dtype: soon, and before any memory is set aside."""
    data = folder(8)
    bad = data.ids[position]
    put(data.file(bad), content)

    def read() -> None:
        with Loader(data.ids, data.labels, 4, data_dir=data.path, shuffle=False, workers=workers) as loader:
            list(loader)

    with pytest.raises(SampleError, match="expected .*found" if position else message) as raised:
        read()

    assert (raised.value.id, raised.value.path) == (bad, str(data.file(bad)))


@pytest.mark.timeout(WITHIN)
@pytest.mark.parametrize(("content", "message"), HOSTILE_FILES)
def test_a_hostile_file_of_rows_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    """The same where one file has all the samples."""
    (tmp_path / "big.npy").write_bytes(content)

    with pytest.raises(InputError, match=rf"big\.npy: .*{message}"):
        Loader([0], None, 1, source=NpyRows(tmp_path / "big.npy"))


@pytest.mark.timeout(WITHIN)
@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("dtype", ["U5", "S5", "f4,i4", "M8[s]", "m8[s]", "V4"])
def test_the_first_file_decides_on_numbers_only(folder: Callable, dtype: str, workers: int) -> None:
    """With ``dtype`` left out, a first file of text, records or dates is no sample either: no model could take it."""
    data = folder(4)
    for id in data.ids:
        put(data.file(id), npy(np.zeros((4, 3), dtype)))

    with pytest.raises(SampleError, match=r"expected (a dtype of )?numbers, found") as raised:
        Loader(data.ids, data.labels, 2, data_dir=data.path, workers=workers).close()

    assert raised.value.id == "id-0"


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize(
    "first",
    [
        pytest.param(np.asfortranarray, id="fortran"),
        pytest.param(lambda a: a.astype(">f4"), id="big-endian"),
        pytest.param(lambda a: a.astype(np.float64), id="cast"),
    ],
)
@pytest.mark.parametrize("start", [b"\0", b"\x93NUMPY\0", b"\x93NUMPY\x01\0"], ids=repr)
def test_zeros_are_no_sample_whatever_the_first_file_is(folder: Callable, first: Callable, start: bytes, workers: int) -> None:
    """A file of zeros, as a crash of the machine leaves them, is never taken for data."""
    data = folder(4)
    for number, id in enumerate(data.ids):
        np.save(data.file(id), first(data.sample(number)))
    data.file("id-2").write_bytes(start + bytes(1000))

    with (
        Loader(data.ids, data.labels, 4, data_dir=data.path, dtype=np.float32, shuffle=False, workers=workers) as loader,
        pytest.raises(SampleError, match="id-2"),
    ):
        next(iter(loader))


@pytest.mark.timeout(WITHIN)
@pytest.mark.parametrize(("position", "workers"), PLACES)
@pytest.mark.parametrize(
    ("bad", "found"),
    [
        pytest.param("a\0b", r"expected .*found.*(NUL|null|\\x00)", id="nul"),
        pytest.param("a" * 300, "expected a readable file, found: File name too long", id="too-long"),
        pytest.param("\ud800", "expected .*found", id="surrogate"),
    ],
)
def test_an_id_that_makes_no_path(folder: Callable, bad: object, found: str, position: int, workers: int) -> None:
    """An id that no file can be called is named like any other."""
    data = folder(8)
    ids = [*data.ids[:position], bad, *data.ids[position + 1 :]]
    labels = {**data.labels, bad: 0}

    with pytest.raises(SampleError, match=found) as raised, Loader(ids, labels, 4, data_dir=data.path, workers=workers) as loader:
        list(loader)

    assert raised.value.id == bad
    assert raised.value.path.startswith(str(data.path))


@pytest.mark.parametrize("workers", WORKERS)
def test_a_missing_folder_is_named(folder: Callable, workers: int) -> None:
    """A wrong ``data_dir`` shows in the path that the error names, and the error says what makes a path."""
    data = folder(4)

    with pytest.raises(SampleError, match=r"nowhere/id-0\.npy: expected a file, found none at this path"):
        Loader(data.ids, data.labels, 2, data_dir=data.path / "nowhere", workers=workers)


@pytest.mark.parametrize("workers", WORKERS)
def test_the_rest_is_read_after_an_error_and_the_batch_once_mended(folder: Callable, workers: int) -> None:
    """After a SampleError the loader gives all other batches, and the bad one too as soon as its file is good again."""
    data = folder(24)
    data.file("id-9").write_bytes(b"")
    options = {"data_dir": data.path, "shuffle": False, "workers": workers, "slots": 3}

    with Loader(data.ids, data.labels, 4, **options) as loader:
        for _ in range(2):
            loader.on_epoch_end()
            got = []
            for index in range(len(loader)):
                if index == 2:
                    with pytest.raises(SampleError, match="id-9"):
                        loader.batch(index)
                else:
                    got += data.check(*loader.batch(index))
            assert got == [*range(8), *range(12, 24)]
        data.write(9)
        with suppress(SampleError):  # the next epoch's batch may have been read ahead while the file was bad
            loader.batch(2)
        assert data.check(*loader.batch(2)) == [8, 9, 10, 11]
        with suppress(SampleError):
            list(loader)
        assert [label for X, y in loader for label in data.check(X, y)] == list(range(24))


@pytest.mark.parametrize("workers", WORKERS)
def test_an_epoch_goes_on_after_an_error(folder: Callable, workers: int) -> None:
    """An iterator that raised SampleError goes on with the next batch."""
    data = folder(16)
    data.file("id-5").unlink()
    got = []

    with Loader(data.ids, data.labels, 4, data_dir=data.path, shuffle=False, workers=workers) as loader:
        epoch = iter(loader)
        got += data.check(*next(epoch))
        with pytest.raises(SampleError, match="id-5"):
            next(epoch)
        got += [label for X, y in epoch for label in data.check(X, y)]

    assert got == [*range(4), *range(8, 16)]


@pytest.mark.parametrize("workers", WORKERS)
def test_several_bad_files_are_named_one_by_one(folder: Callable, workers: int) -> None:
    """Of several bad files in one batch, one is named at a time, and each turns up until none is left."""
    data = folder(8)
    bad = {1, 4, 7}
    for number in bad:
        data.file(data.ids[number]).unlink()

    with Loader(data.ids, data.labels, 8, data_dir=data.path, shuffle=False, workers=workers) as loader:
        while bad:
            with pytest.raises(SampleError) as raised:
                loader.batch(0)
            number = data.labels[raised.value.id]
            if number in bad:  # else it was read ahead before it was mended
                bad.remove(number)
                data.write(number)


@pytest.mark.parametrize("workers", WORKERS)
def test_an_id_that_stands_twice_is_two_samples(folder: Callable, workers: int) -> None:
    """Users who oversample a class name an id several times: each time is a sample."""
    data = folder(4)
    ids = data.ids + data.ids[:2] * 2

    with Loader(ids, data.labels, 8, data_dir=data.path, workers=workers) as loader:
        ((X, y),) = loader

    assert sorted(data.check(X, y)) == [0, 0, 0, 1, 1, 1, 2, 3]


def without(labels: dict[str, int], id: str) -> dict[str, int]:
    """``labels`` less one."""
    return {key: label for key, label in labels.items() if key != id}


BAD_ARGUMENTS = [
    # arguments to replace, and what the error says
    pytest.param({"list_IDs": []}, r"expected at least 2 ids, found 0", id="no-ids"),
    pytest.param({"list_IDs": [], "tail": "keep"}, r"expected at least 1 ids?, found 0", id="no-ids-keep-last"),
    pytest.param({"list_IDs": np.array([], "U4")}, r"expected at least 2 ids, found 0", id="no-ids-array"),
    pytest.param({"batch_size": 9}, r"expected at least 9 ids, found 8.*tail='keep'", id="fewer-ids-than-a-batch"),
    pytest.param({"labels": {}}, r"id-0', field 'y': expected a value for each of the 8 ids, found none", id="no-labels"),
    pytest.param(
        {"labels": lambda labels: without(labels, "id-6")},
        r"id-6', field 'y': expected a value.*found none",
        id="a-label-missing",
    ),
    pytest.param(
        {"labels": lambda labels: {**labels, "id-3": 3.0}}, r"id-3', field 'y': expected an int, found 3\.0", id="float"
    ),
    pytest.param(
        {"labels": lambda labels: {**labels, "id-3": None}}, r"id-3', field 'y': expected an int, found None", id="none"
    ),
    pytest.param({"labels": lambda labels: {**labels, "id-3": "3"}}, r"id-3', field 'y': expected an int, found '3'", id="str"),
    pytest.param(
        {"labels": lambda labels: {**labels, "id-3": [0, 1]}}, r"id-3', field 'y': expected an int, found \[0, 1\]", id="list"
    ),
    pytest.param(
        {"labels": lambda labels: {**labels, "id-3": 2**63}},
        r"id-3', field 'y': expected an int from .*, found 9223372036854775808",
        id="huge",
    ),
    pytest.param({"n_classes": 7}, r"id-7', field 'y': expected an int from 0 to 6, found 7", id="label-above-the-classes"),
    pytest.param(
        {"labels": lambda labels: {**labels, "id-3": -1}, "n_classes": 8},
        r"id-3', field 'y': expected an int from 0 to 7, found -1",
        id="label-below-the-classes",
    ),
    pytest.param({"batch_size": 0}, r"batch_size: expected an int from 1, found 0", id="batch_size-zero"),
    pytest.param({"batch_size": -4}, r"batch_size: expected an int from 1, found -4", id="batch_size-negative"),
    pytest.param({"batch_size": 2.0}, r"batch_size: expected an int from 1, found 2\.0", id="batch_size-float"),
    pytest.param({"batch_size": None}, r"batch_size: expected an int from 1, found None", id="batch_size-none"),
    pytest.param({"dim": (4, 0)}, r"dim: expected an int from 1, found 0", id="dim-zero"),
    pytest.param({"dim": (-4, 3)}, r"dim: expected an int from 1, found -4", id="dim-negative"),
    pytest.param({"dim": 0}, r"dim: expected an int from 1, found 0", id="dim-int-zero"),
    pytest.param({"dim": (4.0, 3)}, r"dim: expected an int from 1, found 4\.0", id="dim-float"),
    pytest.param({"n_channels": 0}, r"n_channels: expected an int from 1, found 0", id="n_channels-zero"),
    pytest.param({"n_channels": -1}, r"n_channels: expected an int from 1, found -1", id="n_channels-negative"),
    pytest.param({"n_classes": 0}, r"n_classes: expected an int from 1, found 0", id="n_classes-zero"),
    pytest.param({"n_classes": -2}, r"n_classes: expected an int from 1, found -2", id="n_classes-negative"),
    pytest.param({"workers": -1}, r"workers: expected an int from 0, found -1", id="workers-negative"),
    pytest.param({"workers": 1.5}, r"workers: expected an int from 0, found 1\.5", id="workers-float"),
    pytest.param({"workers": "many"}, r"workers: expected a number from 0, or 'auto', found 'many'", id="workers-text"),
    pytest.param({"reads": 0}, r"reads: expected an int from 1 to 128, found 0", id="reads-zero"),
    pytest.param({"reads": -1}, r"reads: expected an int from 1 to 128, found -1", id="reads-negative"),
    pytest.param({"reads": 129}, r"reads: expected an int from 1 to 128, found 129", id="reads-too-many"),
    pytest.param({"reads": 1.5}, r"reads: expected an int from 1 to 128, found 1\.5", id="reads-float"),
    pytest.param({"reads": None}, r"reads: expected an int from 1 to 128, found None", id="reads-none"),
    pytest.param({"reads": "many"}, r"reads: expected an int from 1 to 128, or 'auto', found 'many'", id="reads-text"),
    pytest.param({"slots": 1}, r"slots: expected an int from 2, found 1", id="slots-one"),
    pytest.param({"slots": 0}, r"slots: expected an int from 2, found 0", id="slots-zero"),
    pytest.param({"slots": -3}, r"slots: expected an int from 2, found -3", id="slots-negative"),
    pytest.param({"seed": -1}, r"seed: expected an int from 0, found -1", id="seed-negative"),
    pytest.param({"seed": None}, r"seed: expected an int from 0, found None", id="seed-none"),
    *(
        pytest.param({"on_error": value}, r"on_error: expected 'raise' or 'replace' or 'collect', found ", id=f"on_error-{value}")
        for value in ("skip", None, True, ["raise"])
    ),
    *(
        pytest.param({"max_damaged": value}, r"max_damaged: expected a fraction from 0 to 1, found ", id=f"max_damaged-{value}")
        for value in (-0.01, 1.01, 5, float("nan"), "0.1", None)
    ),
    *(
        pytest.param({"timeout": value}, r"timeout: expected seconds above 0, or None, found ", id=f"timeout-{value}")
        for value in (0, -1, float("nan"), "5", [5])
    ),
    pytest.param({"dtype": object}, r"dtype: expected .*numbers, found object", id="dtype-object"),
    pytest.param({"dtype": "U5"}, r"dtype: expected .*numbers, found <U5", id="dtype-str"),
    pytest.param({"dtype": "f4,i4"}, r"dtype: expected .*numbers, found", id="dtype-structured"),
    pytest.param({"dtype": "M8[s]"}, r"dtype: expected .*numbers, found datetime64", id="dtype-datetime"),
    pytest.param({"dtype": "float31"}, r"dtype: expected .*numbers, found .*float31", id="dtype-unknown"),
]


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize(("changed", "message"), BAD_ARGUMENTS)
def test_bad_arguments_are_named(folder: Callable, changed: dict[str, object], message: str, workers: int) -> None:
    """Arguments that no training could start from raise InputError, a ValueError, before anything is started."""
    data = folder(8)
    arguments = {"list_IDs": data.ids, "labels": data.labels, "batch_size": 2, "data_dir": data.path, "workers": workers}
    for name, value in changed.items():
        arguments[name] = value(data.labels) if callable(value) and name == "labels" else value

    with pytest.raises(InputError, match=message) as raised:
        Loader(**arguments).close()

    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param({k: np.int16(k) for k in range(4)}, id="numpy-ints"),
        pytest.param({k: bool(k % 2) for k in range(4)}, id="bools"),
        pytest.param({k: np.array(k) for k in range(4)}, id="arrays-of-no-axis"),
        pytest.param({k: -(2**62) + k for k in range(4)}, id="large-ints"),
        pytest.param({k: k for k in range(400)}, id="more-labels-than-ids"),
        pytest.param([3, 1, 2, 0], id="list"),
        pytest.param(np.array([3, 1, 2, 0]), id="array"),
    ],
)
def test_whatever_is_an_int_is_a_label(tmp_path: Path, labels: Any) -> None:
    """Labels may be any kind of int, in any mapping: it need only have one for each id."""
    for id in range(4):
        np.save(tmp_path / f"{id}.npy", np.float32(id))

    with Loader(range(4), labels, 4, data_dir=tmp_path, shuffle=False, workers=0) as loader:
        ((_, y),) = loader

    assert y.dtype == np.int64
    assert y.tolist() == [int(labels[id]) for id in range(4)]


@pytest.mark.filterwarnings("ignore::UserWarning:keras")
def test_fit_names_the_bad_file(folder: Callable) -> None:
    """Through ``fit`` the error arrives as TensorFlow's own, whose text holds path and reason; nothing is left."""
    import keras

    from shmgen import Sequence

    model = keras.Sequential([keras.layers.Input((4, 3)), keras.layers.Flatten(), keras.layers.Dense(1)])
    model.compile(loss="mse")
    cases = {
        "missing": (None, "expected a file, found none"),
        "truncated": (npy(GOOD)[:-8], "expected 176 bytes, found 168"),
        "shape": (npy(GOOD.reshape(3, 4)), "expected shape (4, 3), found (3, 4)"),
        "object": (npy(GOOD.astype(object)), "found Python objects"),
    }
    for name, (content, reason) in cases.items():
        for position in (0, 17):
            data = folder(24, name=f"{name}-{position}")
            put(data.file(data.ids[position]), content)
            options = {"dim": (4,), "n_channels": 3, "dtype": np.float32, "data_dir": data.path, "workers": 2}

            def fit(data: Any = data, options: dict = options) -> None:
                with Sequence(data.ids, data.labels, 4, shuffle=False, **options) as sequence:
                    model.fit(sequence, verbose=0, shuffle=False)

            with pytest.raises(Exception, match=re.escape(str(data.file(data.ids[position])))) as raised:
                fit()
            assert reason in str(raised.value), (name, position)
