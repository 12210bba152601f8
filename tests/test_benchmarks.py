"""What `make bench` measures with: storage that takes its time, and the tables."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cases import CASES, Case
from benchmarks.contest import QUICK, Result
from benchmarks.machine import UnavailableError
from benchmarks.matrix import CONTESTS
from benchmarks.readers import Reader
from benchmarks.report import Report
from benchmarks.storage import ANSWER_MS, FILE_MS, storage

slow_kinds = pytest.mark.parametrize("kind", ["server", "mount"])


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """A small one."""
    case = replace(CASES["digit-28"], files=64, batch_size=16, root=tmp_path)
    case.make()
    return case


@contextmanager
def slow(kind: str, case: Case) -> Iterator[str]:
    """`storage`, where it can be had."""
    with ExitStack() as stack:
        try:
            seen = stack.enter_context(storage(kind, case))
        except UnavailableError as error:
            pytest.skip(str(error))
        yield seen


@slow_kinds
def test_slow_storage_shows_the_same_files(kind: str, case: Case) -> None:
    """Each of the ways to read a file finds what is in it, and what is not there is an error."""
    expected, labels = Reader(case).batch(range(64))
    with slow(kind, case) as seen, ThreadPoolExecutor(8) as pool:
        there = replace(case, seen=seen)
        for how in ("fast", "np.load"):
            reader = Reader(there, how)
            batches = list(pool.map(reader.batch, np.arange(64).reshape(8, 8)))
            assert np.array_equal(np.concatenate([X for X, _ in batches]), expected)
            assert np.array_equal(np.concatenate([y for _, y in batches]), labels)
            missing = pool.submit(reader.sample, there.path("none").encode())
            assert isinstance(missing.exception(), OSError)


@slow_kinds
def test_slow_storage_serves_many_at_once(kind: str, case: Case) -> None:
    """One read takes the time that it is said to take; many at once take less than half of what they take after each other."""
    delay = (2 * FILE_MS if kind == "mount" else ANSWER_MS) / 1e3
    with slow(kind, case) as seen, ThreadPoolExecutor(32) as pool:
        reader = Reader(replace(case, seen=seen))

        def seconds(of: int) -> float:
            begin = time.perf_counter()
            list(pool.map(lambda number: reader.batch([number % 64]), range(of)))
            return time.perf_counter() - begin

        assert seconds(1) >= delay
        assert seconds(160) < 160 * delay / 2


def test_a_label_of_another_sample_is_found(case: Case) -> None:
    """Batches of storage that is too slow for whole epochs are checked sample by sample."""
    X, y = Reader(case).batch(range(64))
    assert case.mislabelled(X, y) == 0
    assert case.mislabelled(X, np.roll(y, 1)) == 64


def test_tables_are_renewed_between_their_marks(case: Case, tmp_path: Path) -> None:
    """A run puts its tables where they are shown, and leaves the rest alone."""
    contest = next(contest for contest in CONTESTS if contest.name == "28")
    values = {"rate": {"naive": [1.0, 2.0], "spdl": [2.0, 4.0], "shmgen": [6.0, 8.0], "limit-held": [8.0, 16.0]}}
    report = Report([Result(contest, case, values)], [], QUICK, {"latency": "no fusermount3"})
    file = tmp_path / "README.md"
    file.write_text("before\n<!-- bench: main -->\nold\n<!-- end -->\nbetween\n<!-- bench: all -->\nold\n<!-- end -->\nafter\n")
    report.put_into(file)
    once = file.read_text()
    report.put_into(file)
    assert file.read_text() == once
    assert "old" not in once
    main, all = once.split("between")
    assert main.startswith("before\n")
    assert all.endswith("<!-- end -->\nafter\n")
    assert re.search(r"0\.62 \(0\.50 to 0\.75\) \| +spdl: 2\.50 \(2\.00 to 3\.00\)", main)
    assert "Left out: latency: no fusermount3." in main
    assert "| naive" in all
