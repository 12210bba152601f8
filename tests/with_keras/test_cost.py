"""The cost of a batch in the trainer's thread, counted in calls of Python functions, so the machine's load does not matter."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from types import FrameType
from typing import Any, NamedTuple

import pytest
from conftest import DataSet, wait_until

from shmgen import Loader, Sequence
from shmgen._plan import schedule

MOST, MOST_ENTRIES, MOST_FILES = 45, 5, 20
"""The most calls for each batch, with planning and workers' reports; the most of these that enter the schedule from outside; and
the most files of the package whose code runs."""

BATCHES = 200

SCHEDULE = schedule.__file__

PACKAGE = SCHEDULE.removesuffix("_plan/schedule.py")

Folder = Callable[..., DataSet]


class Cost(NamedTuple):
    """The cost of a batch in steady state: function calls, calls that enter the schedule, and files whose code runs.

    A file counts if its code runs for at least every fiftieth batch.
    """

    calls: float
    entries: float
    files: int


def cost(batches: Iterator[Any], until_ready: Callable[[], object]) -> Cost:
    """The cost of batches, each of which is requested when `until_ready` has returned."""
    for _ in islice(batches, BATCHES // 4):
        until_ready()
    calls = entries = 0
    files: Counter[str] = Counter()
    seen: set[str] = set()

    def called(frame: FrameType, event: str, _: object) -> None:
        nonlocal calls, entries
        if event == "call":
            calls += 1
            file, caller = frame.f_code.co_filename, frame.f_back
            seen.add(file)
            entries += file == SCHEDULE and caller is not None and caller.f_code.co_filename != SCHEDULE

    for _ in range(BATCHES):
        until_ready()
        before = sys.getprofile()
        sys.setprofile(called)
        try:
            next(batches)
        finally:
            sys.setprofile(before)
        files.update(seen)
        seen.clear()
    often = [file for file, times in files.items() if file.startswith(PACKAGE) and 50 * times >= BATCHES]
    return Cost(calls / BATCHES, entries / BATCHES, len(often))


@pytest.mark.parametrize(("shuffle", "ready"), [(True, True), (False, False)], ids=["ready", "waited-for"])
def test_cost_of_a_loader(folder: Folder, shuffle: bool, ready: bool) -> None:
    """A loader's batch has a limited cost, whether it has been read when it is requested or not."""
    data = folder(24)
    ids = data.ids * 60
    with Loader(ids, data.labels, 4, data_dir=data.path, shuffle=shuffle, workers=2, reads=1) as loader:
        found = cost(iter(loader), lambda: until_one_is_ready(loader) if ready else None)
        assert found.calls <= MOST
        assert found.entries <= MOST_ENTRIES
        assert found.files <= MOST_FILES


def test_cost_of_a_sequence(folder: Folder) -> None:
    """A batch of a `Sequence` has the same limit."""
    data = folder(24)
    with Sequence(data.ids * 60, data.labels, 4, data_dir=data.path, workers=2, reads=1) as sequence:
        batches = iter(sequence)
        assert cost(batches, lambda: until_one_is_ready(sequence)).calls <= MOST


def until_one_is_ready(loader: Loader | Sequence) -> None:
    """Wait until the workers are idle, so the next batch has been read."""
    wait_until(lambda: not any(worker.busy for worker in loader.state.workers), "the workers are done")
