"""With a billion samples, a loader, its first batch and every other batch cost as little as with a thousand."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import lines, python

from shmgen import Hdf5, InputError, Loader, NpyRows, Values

SAMPLES = 10**9

MEMORY = 150e6
"""Maximum memory of the main process in bytes, including Python, NumPy and h5py."""

LOADERS = {
    "shuffled": "Loader(range(n), None, 64, source=Function(number), workers=1)",
    "shuffled, no worker": "Loader(range(n), None, 64, source=Function(number), workers=0)",
    "unshuffled": "Loader(range(n), None, 64, source=Function(number), workers=0, shuffle=False)",
    "small batches": "Loader(range(n), None, 1, source=Function(number), workers=0)",
    "of steps": "Loader(range(5 * n, 0, -5), None, 64, source=Function(number), workers=0, tail='keep')",
    "with replacements": "Loader(range(n), None, 64, source=Function(number), workers=0, on_error='replace')",
    "rows": "Loader(range(n), None, 64, source=NpyRows('all.npy'), workers=0)",
    "rows, unshuffled": "Loader(range(n), None, 64, source=NpyRows('all.npy'), workers=0, shuffle=False)",
    "rows, backwards": "Loader(range(n - 1, -1, -1), None, 64, source=NpyRows('all.npy'), workers=0, shuffle=False)",
    "rows of HDF5": "Loader(range(n), None, 64, source=Hdf5('all.h5', 'rows'), workers=0)",
}

SCRIPT = f"""
import json, time
import numpy as np
from shmgen import Function, Hdf5, Loader, NpyRows

FIRST_BATCH = 0.5  # seconds until the first batch must be there, on a quiet machine

def number(id):
    return np.array([id], np.int64)

def looked_at(code, n={SAMPLES}):
    start = time.perf_counter()
    with eval(code) as loader:
        batches = iter(loader)
        first = next(batches)
        seconds = time.perf_counter() - start
        return seconds, [len(loader), *(X[:, 0].tolist() for X, in (first, next(batches), loader.batch(-1)))]

def is_soon(seconds, code):
    return seconds < FIRST_BATCH or any(looked_at(code)[0] < 2 * looked_at(code, 10_000)[0] for _ in range(3))

results = {{}}
for name, code in {LOADERS!r}.items():
    seconds, found = looked_at(code)
    results[name] = [is_soon(seconds, code), *found]
peak = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([peak, results]))
"""


def sparse(file: Path) -> None:
    """Write a sparse file of SAMPLES rows of int64: 7 in the first 128 rows and the last one, and 0 in the others."""
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (%d, 1), }" % SAMPLES
    with file.open("wb") as out:
        out.write(b"\x93NUMPY\x01\x00v\x00" + header.ljust(117) + b"\n")
        sevens = (7).to_bytes(8, "little")
        out.write(128 * sevens)
        out.seek(128 + 8 * (SAMPLES - 1))
        out.write(sevens)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with two files of SAMPLES rows each: ``all.npy`` and ``all.h5``."""
    h5py = pytest.importorskip("h5py")
    sparse(tmp_path / "all.npy")
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file.create_dataset("rows", (SAMPLES, 2), "uint8", fill_time="never")[-1] = 7
    return tmp_path


def test_loaders_of_a_billion_samples(files: Path) -> None:
    """The first batch is soon there, memory stays small, and the first two batches and the last are right."""
    peak, results = json.loads(python("-c", SCRIPT, check=True, cwd=files, timeout=100).stdout)
    assert peak < MEMORY
    assert all(soon for soon, *_ in results.values()), results
    found = {name: result[1:] for name, result in results.items()}
    length, zeros = SAMPLES // 64, [0] * 64
    ids = [*range(SAMPLES - 64, SAMPLES)]
    assert found.pop("unshuffled") == [length, [*range(64)], [*range(64, 128)], ids]
    assert found.pop("rows") == [*found.pop("rows of HDF5")[:3], zeros] == [length, zeros, zeros, zeros]
    assert found.pop("rows, unshuffled") == [length, [7] * 64, [7] * 64, [0] * 63 + [7]]
    assert found.pop("rows, backwards") == [length, [7] + [0] * 63, zeros, [7] * 64]
    assert found.pop("small batches")[0] == SAMPLES
    for length, first, second, last in found.values():
        assert length == -(-SAMPLES // 64)
        assert 0 < len(last) <= 64
        assert len({*first, *second}) == 2 * 64
        assert max(first) - min(first) > SAMPLES // 2


def test_an_id_beyond_a_billion_rows_is_named(files: Path) -> None:
    """An id that is no row's number is named at once: a range is checked by its ends."""
    bad: list[tuple[Any, int]] = [
        (range(SAMPLES + 1), SAMPLES),
        (range(-1, SAMPLES), -1),
        (range(SAMPLES, 0, -1), SAMPLES),
        (range(0, 1 << 80, 1 << 70), (1 << 80) - (1 << 70)),
        ([3, -2, SAMPLES], -2),
    ]
    for ids, id in bad:
        for source in (NpyRows(files / "all.npy"), Hdf5(files / "all.h5", "rows")):
            with pytest.raises(InputError, match=f"id {id}: expected a row's number from 0 to {SAMPLES - 1}"):
                source.bind(ids)


def test_a_batch_costs_no_more_of_a_billion_rows(files: Path) -> None:
    """Costs are lines of Python and memory: unlike time, they do not depend on other programs."""

    def costs(samples: int) -> tuple[int, int]:
        with Loader(range(samples), None, 64, source=NpyRows(files / "all.npy"), workers=0) as loader:
            batches = iter(loader)

            def some() -> None:
                for _ in range(100):
                    next(batches)

            some()
            tracemalloc.start()
            some()
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return lines(some), peak

    costs(70_000)  # what is done only once in a process
    (few_lines, few_bytes), (many_lines, many_bytes) = costs(10**6), costs(SAMPLES)
    assert few_lines > 1000
    assert many_lines <= 1.1 * few_lines
    assert many_bytes <= 1.1 * few_bytes


LABELS: dict[str, Callable[[Any, Any], tuple[Any, Any, dict[str, Any]]]] = {
    "by position": lambda ids, one: (ids, one, {}),
    "by id": lambda ids, one: (ids, Values(one, by="id"), {}),
    "in another order": lambda ids, one: (ids[::-1], Values(one, by="id"), {}),
    "one-hot": lambda ids, one: (ids, one, {"n_classes": 2}),
    "classes": lambda ids, one: (ids, one, {"classes": [1, 5]}),
    "sorted classes": lambda ids, one: (ids, one, {"classes": "sorted"}),
    "several": lambda ids, one: (ids, {"a": one, "b": one}, {}),
    "and weights": lambda ids, one: (ids, one, {"weights": one.astype("f4")}),
}


@pytest.mark.parametrize("labels", LABELS)
def test_labels_in_an_array_are_not_iterated_in_python(labels: str) -> None:
    """With 100,000 int labels of int ids, no line of Python is executed for each label."""

    def costs(samples: int, ids: Any) -> int:
        arguments = LABELS[labels](ids, np.ones(samples, np.uint8))
        return lines(lambda: Loader(*arguments[:2], 64, source=lambda id: [1], workers=0, **arguments[2]).close())

    costs(1_000, range(1_000))  # what is done once in a process
    for kind in (range, np.arange):
        assert costs(100_000, kind(100_000)) < costs(1_000, kind(1_000)) + 10_000
