"""What a batch costs the trainer's thread, counted in calls of Python functions: no clock, so the load does not matter."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import islice
from types import FrameType
from typing import Any

import pytest
from conftest import DataSet, wait_until

from shmgen import Loader, Sequence

MOST = 45
"""Calls for each batch, planning and reports of workers included."""

BATCHES = 200

Folder = Callable[..., DataSet]


def calls(batches: Iterator[Any], until_ready: Callable[[], object]) -> float:
    """Calls of Python functions for each batch, in steady state, once `until_ready` has returned."""
    for _ in islice(batches, BATCHES // 4):
        until_ready()
    count = 0

    def called(frame: FrameType, event: str, _: object) -> None:
        nonlocal count
        count += event == "call"

    for _ in range(BATCHES):
        until_ready()
        before = sys.getprofile()
        sys.setprofile(called)
        try:
            next(batches)
        finally:
            sys.setprofile(before)
    return count / BATCHES


@pytest.mark.parametrize("ready", [True, False], ids=["ready", "waited-for"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_calls_of_a_loader(folder: Folder, shuffle: bool, ready: bool) -> None:
    """Whether the batch has been read when it is asked for, or is waited for."""
    data = folder(24)
    ids = data.ids * 60
    with Loader(ids, data.labels, 4, data_dir=data.path, shuffle=shuffle, workers=2, reads=1) as loader:
        assert calls(iter(loader), lambda: until_one_is_ready(loader) if ready else None) <= MOST


def test_calls_of_a_sequence(folder: Folder) -> None:
    """The same, where Keras iterates."""
    data = folder(24)
    with Sequence(data.ids * 60, data.labels, 4, data_dir=data.path, workers=2, reads=1) as sequence:
        batches = iter(sequence)
        assert calls(batches, lambda: until_one_is_ready(sequence)) <= MOST


def until_one_is_ready(loader: Loader | Sequence) -> None:
    """The next batch has been read: no worker is at any row."""
    wait_until(lambda: not any(worker.busy for worker in loader.state.workers), "the workers are done")
