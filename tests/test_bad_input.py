"""Bad input gets an error that names the file or the id, what was expected and what was found, and leaves nothing behind."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from bad_files import BAD, HOSTILE, of_shape, put

from shmgen import InputError, Loader, NpyRows, SampleError


@pytest.mark.timeout(10)
def test_a_bad_first_file_is_named(folder: Callable) -> None:
    """If the first file is bad, the constructor's error names its path, what was expected and what was found."""
    data = folder(2)
    first = data.file("id-0")
    case: Any
    for case in [*BAD, *HOSTILE]:
        content, expected, found = case.values
        put(first, content)

        with pytest.raises(SampleError) as raised:
            Loader(data.ids, None, 1, (4,), 3, data_dir=data.path, dtype=np.float32, workers=0)

        error = raised.value
        assert (error.id, error.path) == ("id-0", str(first)), case.id
        assert re.search(f"expected .*{re.escape(str(expected))}.*found.*{re.escape(str(found))}", error.reason), case.id
        assert str(error) == f"sample 'id-0', file {error.path}: {error.reason}"
        again = pickle.loads(pickle.dumps(error))
        assert (again.id, again.path, again.reason) == (error.id, error.path, error.reason)
        first.rmdir() if first.is_dir() else first.unlink(missing_ok=True)


@pytest.mark.timeout(10)
def test_a_hostile_header_is_named_without_a_given_shape(folder: Callable) -> None:
    """A file with a hostile header is refused without a given shape, too, quickly and before memory is allocated."""
    data = folder(2)
    large = [pytest.param(of_shape(shape), " bytes", "truncated") for shape in ((1 << 28,), (1 << 40,), (1 << 62, 3))]
    case: Any
    for case in [*large, *HOSTILE]:
        content, expected, found = case.values
        put(data.file("id-0"), content)
        message = f"{re.escape(str(expected))}.*found.*{re.escape(str(found))}"
        with pytest.raises(SampleError, match=message) as raised:
            Loader(data.ids, None, 1, data_dir=data.path, workers=0)
        assert (raised.value.id, raised.value.path) == ("id-0", str(data.file("id-0")))
        with pytest.raises(InputError, match=rf"id-0\.npy: .*{message}"):
            Loader([0], None, 1, source=NpyRows(data.file("id-0")))


def test_a_bad_file_is_named_when_a_worker_reads_it(folder: Callable) -> None:
    """Each bad file that a worker reads raises a SampleError for its batch; the good file is read."""
    cases: list[Any] = [*BAD, *HOSTILE]
    data = folder(len(cases) + 1)
    for id, case in zip(data.ids[1:], cases, strict=True):
        put(data.file(id), case.values[0])

    with Loader(data.ids, data.labels, 1, data_dir=data.path, shuffle=False, workers=2) as loader:
        data.check(*loader.batch(0))
        for number, case in enumerate(cases, 1):
            with pytest.raises(SampleError) as raised:
                loader.batch(number)
            assert (raised.value.id, raised.value.path) == (data.ids[number], str(data.file(data.ids[number]))), case.id
            expected, _, found = raised.value.reason.partition("found")
            assert str(case.values[1]) in expected, case.id
            assert str(case.values[2]) in found, case.id
        assert loader.stats.restarts == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_other_batches_are_read_after_an_error_and_the_bad_one_once_repaired(folder: Callable, workers: int) -> None:
    """After a SampleError, by index or in a loop, all other batches are delivered, and the bad one once its file is repaired."""
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


FROM_1 = (0, -4, 2.0, None)

BAD_ARGUMENTS = [
    # an argument, bad values of it, and the error's text
    ("batch_size", FROM_1, "expected an int from 1, found "),
    ("dim", (0, (4, 0), (-4, 3), (4.0, 3)), "expected an int from 1, found "),
    ("n_channels", FROM_1[:3], "expected an int from 1, found "),
    ("n_classes", FROM_1[:3], "expected an int from 1, found "),
    ("workers", (-1, 1.5), "expected an int from 0, found "),
    ("workers", ("many",), "expected a number, or 'auto', found 'many'"),
    ("reads", (0, -1, 129, 1.5, None), "expected an int from 1 to 128, found "),
    ("reads", ("many",), "expected a number, or 'auto', found 'many'"),
    ("slots", (1, 0, -3), "expected an int from 2, found "),
    ("seed", (-1, None), "expected an int from 0, found "),
    ("on_error", ("skip", None, True, ["raise"]), "expected 'raise' or 'replace' or 'collect', found "),
    ("max_damaged", (-0.01, 1.01, 5, float("nan"), "0.1", None), "expected a fraction from 0 to 1, found "),
    ("timeout", (0, -1, float("nan"), "5", [5]), "expected seconds above 0, or None, found "),
    ("dtype", (object, "U5", "f4,i4", "M8[s]", "float31"), "expected .*numbers, found .*(object|U|f4|datetime64|float31)"),
]


def test_bad_arguments_are_named(folder: Callable) -> None:
    """A bad argument raises an InputError, which is a ValueError, and says what was expected and found."""
    data = folder(8)
    arguments = {"list_IDs": data.ids, "labels": data.labels, "batch_size": 2, "data_dir": data.path}
    for name, values, message in BAD_ARGUMENTS:
        for value in values:
            with pytest.raises(InputError, match=rf"{name}: {message}") as raised:
                Loader(**{**arguments, name: value})
            assert isinstance(raised.value, ValueError)


def test_too_few_ids_for_a_batch(folder: Callable) -> None:
    """Too few ids for a batch raise an error with their number."""
    data = folder(1)
    tail: Any
    for ids, tail, message in (
        ([], "drop", "expected at least 2 ids, found 0"),
        ([], "keep", "expected at least 1 ids?, found 0"),
        (np.array([], "U4"), "drop", "expected at least 2 ids, found 0"),
        (["id-0"], "drop", "expected at least 2 ids, found 1.*tail='keep'"),
    ):
        with pytest.raises(InputError, match=message):
            Loader(ids, None, 2, data_dir=data.path, tail=tail)
