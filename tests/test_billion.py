"""A thousand million samples cost what a thousand cost: to make a loader, to get its first batch, and for each batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmgen import InputError, Loader, NpyRows

ROOT = Path(__file__).parents[1]

SAMPLES = 10**9

FIRST_BATCH = 0.5
"""Seconds after which the first batch must be there, at the best of some tries, on a machine that has nothing else to do."""

MEMORY = 150e6
"""Bytes that the main process may take, with Python and NumPy."""

SCRIPT = """
import json, sys, time
import numpy as np
from shmgen import Function, Hdf5, InputError, Loader, Npy, NpyRows, Values

def number(id):
    return np.array([id], np.int64)

def peak():
    return max(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))

n = int(float(sys.argv[1]))
one = np.broadcast_to(np.ones(1, np.uint8), n)
best = float("inf")
for _ in range(3):
    start = time.perf_counter()
    with {loader} as loader:
        batches = iter(loader)
        first = next(batches)
        best = min(best, time.perf_counter() - start)
        ids = [first[0][:, 0].tolist(), next(batches)[0][:, 0].tolist()]
        last = loader.batch(-1)[0][:, 0].tolist()
print(json.dumps([best, peak(), ids, last, len(loader)]))
"""

LOADERS = {
    "shuffled": "Loader(range(n), None, 64, source=Function(number), workers={workers})",
    "unshuffled": "Loader(range(n), None, 64, source=Function(number), workers={workers}, shuffle=False)",
    "small-batches": "Loader(range(n), None, 1, source=Function(number), workers={workers})",
    "of-steps": "Loader(range(5 * n, 0, -5), None, 64, source=Function(number), workers={workers}, tail='keep')",
    "with-replacements": "Loader(range(n), None, 64, source=Function(number), workers={workers}, on_error='replace')",
}


def run(loader: str, samples: int, **options: Any) -> tuple[float, float, list[list[int]], list[int], int]:
    script = SCRIPT.replace("{loader}", loader.format(**options))
    command = [sys.executable, "-c", script, str(samples)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=ROOT, timeout=60)
    return tuple(json.loads(ended.stdout))


def is_soon(seconds: float, loader: str, **options: Any) -> bool:
    """Whether a first batch came as soon as it must; on a busy machine, as soon as of few samples."""
    return seconds < FIRST_BATCH or seconds < 2 * run(loader, 10_000, **options)[0]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
def test_a_loader_of_a_billion_samples(loader: str, workers: int) -> None:
    """The first batch is there at once, in the memory that any loader takes, and ids from all over the range come."""
    seconds, memory, batches, last, length = run(loader, SAMPLES, workers=workers)
    assert is_soon(seconds, loader, workers=workers)
    assert memory < MEMORY
    size = len(batches[0])
    assert length == -(-SAMPLES // size)
    assert 0 < len(last) <= size
    if "shuffle=False" in loader:
        assert batches == [list(range(size)), list(range(size, 2 * size))]
    elif size > 1:
        assert len({id for batch in batches for id in batch}) == 2 * size
        assert max(batches[0]) - min(batches[0]) > SAMPLES // 2


HDF5 = """
import h5py, sys
with h5py.File(sys.argv[1], "w") as file:
    rows = file.create_dataset("rows", (10**9, 2), "uint8", fill_time="never")
    rows[-1] = 7
"""


def test_rows_of_a_dataset_of_a_billion(tmp_path: Path) -> None:
    """That a file has a row for each of as many ids is seen from the range."""
    pytest.importorskip("h5py")
    file = tmp_path / "all.h5"
    subprocess.run([sys.executable, "-c", HDF5, file], check=True)
    loader = f"Loader(range(n), None, 64, source=Hdf5({str(file)!r}, 'rows'), workers=0)"
    seconds, memory, batches, *_ = run(loader, SAMPLES)
    assert is_soon(seconds, loader)
    assert memory < MEMORY
    assert batches == [[0] * 64] * 2
    with pytest.raises(subprocess.CalledProcessError):
        run(loader, SAMPLES + 1)


ROWS = {
    "shuffled": "Loader(range(n), None, 64, source=NpyRows({file!r}), workers={workers})",
    "unshuffled": "Loader(range(n), None, 64, source=NpyRows({file!r}), workers={workers}, shuffle=False)",
    "backwards": "Loader(range(n - 1, -1, -1), None, 64, source=NpyRows({file!r}), workers={workers}, shuffle=False)",
}


def sparse(file: Path, count: int) -> None:
    """A file of so many rows of int64 that takes hardly any disk: of zeros, but for the first 128 and the last, which are 7."""
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (%d, 1), }" % count
    with file.open("wb") as out:
        out.write(b"\x93NUMPY\x01\x00v\x00" + header.ljust(117) + b"\n")
        sevens = (7).to_bytes(8, "little")
        out.write(128 * sevens)
        out.seek(128 + 8 * (count - 1))
        out.write(sevens)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("loader", ROWS.values(), ids=ROWS)
def test_rows_of_a_file_of_a_billion(tmp_path: Path, loader: str, workers: int) -> None:
    """The first batch is there at once, in the memory that any loader takes; rows of both ends are what they are."""
    file = tmp_path / "all.npy"
    sparse(file, SAMPLES)
    assert file.stat().st_size > 8 * SAMPLES
    assert file.stat().st_blocks * 512 < 1 << 20
    assert np.load(file, mmap_mode="r").shape == (SAMPLES, 1)
    options = {"file": str(file), "workers": workers}
    seconds, memory, batches, last, length = run(loader, SAMPLES, **options)
    sparse(file, 10_000)
    assert seconds < FIRST_BATCH or seconds < 2 * run(loader, 10_000, **options)[0]
    assert memory < MEMORY
    assert length == SAMPLES // 64
    expected = {
        "unshuffled": ([[7] * 64] * 2, [0] * 63 + [7]),
        "backwards": ([[7] + [0] * 63, [0] * 64], [7] * 64),
        "shuffled": ([[0] * 64] * 2, [0] * 64),
    }
    kind = next(name for name in ROWS if ROWS[name] == loader)
    assert (batches, last) == expected[kind]


def test_an_id_beyond_a_billion_rows(tmp_path: Path) -> None:
    """It is named at once, from the ends of the range."""
    file = tmp_path / "all.npy"
    sparse(file, SAMPLES)
    for ids, id in ((range(SAMPLES + 1), SAMPLES), (range(-1, SAMPLES), -1), (range(SAMPLES, 0, -1), SAMPLES)):
        with pytest.raises(InputError, match=f"id {id}: expected a row's number from 0 to {SAMPLES - 1}"):
            Loader(ids, None, 64, source=NpyRows(file), workers=0)


COSTS = """
import json, sys, tracemalloc
from shmgen import Loader, NpyRows

def costs(n):
    '''Calls and lines of Python for a batch, and bytes allocated at most meanwhile, after some batches.'''
    count = 0
    def trace(*_):
        nonlocal count
        count += 1
        return trace
    with Loader(range(n), None, 64, source=NpyRows(sys.argv[1]), workers=0) as loader:
        batches = iter(loader)
        for _ in range(10):
            next(batches)
        tracemalloc.start()
        for _ in range(100):
            next(batches)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        sys.settrace(trace)
        for _ in range(100):
            next(batches)
        sys.settrace(None)
    return count, peak

costs(70_000)  # what is done once in a process
print(json.dumps([costs(10**6), costs(10**9)]))
"""


def test_a_batch_costs_no_more_of_a_billion_rows(tmp_path: Path) -> None:
    """By lines of Python and by memory, which no other program disturbs, as the clock would be."""
    file = tmp_path / "all.npy"
    sparse(file, SAMPLES)
    ended = subprocess.run([sys.executable, "-c", COSTS, file], stdout=subprocess.PIPE, check=True, cwd=ROOT, timeout=60)
    (lines, peak), (lines_of_many, peak_of_many) = json.loads(ended.stdout)
    assert lines > 1000
    assert lines_of_many <= 1.1 * lines
    assert peak_of_many <= 1.1 * peak


LABELS = {
    "by-position": "{}, one",
    "by-id": "{}, Values(one, by='id')",
    "in-another-order": "{}[::-1], Values(one, by='id')",
    "one-hot": "{}, one, n_classes=2",
    "classes": "{}, one, classes=[1, 5]",
    "sorted-classes": "{}, one, classes='sorted'",
    "several": "{}, {{'a': one, 'b': one}}",
    "and-weights": "{}, one, weights=np.broadcast_to(np.ones(1, np.float32), n)",
}


@pytest.mark.parametrize("ids", ["range(n)", "np.arange(n)"], ids=["range", "array"])
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_labels_in_an_array_are_not_gone_through_one_by_one(labels: str, ids: str) -> None:
    """A million ints as labels of ids that are ints: no line of Python is run for each of them."""
    lines = []
    for samples in (10_000, 1_000_000):
        traced = f"""
import sys
import numpy as np
from shmgen import Loader, Values
n = {samples}
one = np.ones(n, np.uint8)
count = 0
def trace(*_):
    global count
    count += 1
    return trace
sys.settrace(trace)
loader = Loader({labels.format(ids)}, batch_size=64, source=lambda id: [1], workers=0)
sys.settrace(None)
loader.close()
print(count)
"""
        ended = subprocess.run([sys.executable, "-c", traced], stdout=subprocess.PIPE, check=True, cwd=ROOT)
        lines.append(int(ended.stdout))
    assert lines[1] < lines[0] + 10_000
