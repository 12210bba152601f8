"""The parts of `make bench`: slow storage, the check of labels, the tables, and the contestants."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.beside import KINDS
from benchmarks.cases import CASES, Case
from benchmarks.contest import QUICK, Result
from benchmarks.machine import UnavailableError
from benchmarks.matrix import CONTESTS
from benchmarks.readers import Reader
from benchmarks.report import Beside, Report
from benchmarks.storage import ANSWER_MS, FILE_MS, serving, storage


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """A small case."""
    case = replace(CASES["digit-28"], files=64, batch_size=16, root=tmp_path)
    case.make()
    return case


@pytest.mark.parametrize("kind", ["server", "mount"])
def test_slow_storage(kind: str, case: Case) -> None:
    """Slow storage has the same files; one read takes the delay, many at once take less than half of their sum."""
    expected, labels = Reader(case).batch(range(64))
    delay = (2 * FILE_MS if kind == "mount" else ANSWER_MS) / 1e3
    with ExitStack() as stack:
        try:
            served_at = stack.enter_context(storage(kind, case))
        except UnavailableError as error:
            pytest.skip(str(error))
        pool = stack.enter_context(ThreadPoolExecutor(32))
        there = replace(case, served_at=served_at)
        reader = Reader(there)
        batches = list(pool.map(reader.batch, np.arange(64).reshape(8, 8)))
        assert np.array_equal(np.concatenate([X for X, _ in batches]), expected)
        assert np.array_equal(np.concatenate([y for _, y in batches]), labels)
        missing = pool.submit(reader.sample, there.path("none").encode())
        assert isinstance(missing.exception(), OSError)

        def seconds(of: int) -> float:
            begin = time.perf_counter()
            list(pool.map(lambda number: reader.batch([number % 64]), range(of)))
            return time.perf_counter() - begin

        assert seconds(1) >= delay
        assert seconds(160) < 160 * delay / 2


def test_a_label_of_another_sample_is_found(case: Case) -> None:
    """In a batch with shifted labels, all samples are found to be mislabelled."""
    X, y = Reader(case).batch(range(64))
    assert case.mislabelled(X, y) == 0
    assert case.mislabelled(X, np.roll(y, 1)) == 64


def test_a_report_replaces_tables_between_their_marks(case: Case, tmp_path: Path) -> None:
    """A report replaces the tables between their marks, and nothing else."""
    contest = next(contest for contest in CONTESTS if contest.name == "32")
    values = {"rate": {"naive": [1.0, 2.0], "spdl": [2.0, 4.0], "shmgen": [6.0, 8.0], "limit-held": [8.0, 16.0]}}
    beside = [Beside("JPEG", {"tf.data": [4.0, 2.0], "shmgen": [6.0, 6.0]})]
    fit = Result(next(contest for contest in CONTESTS if contest.name == "fit"), case, {"fit": {"naive": [7.0], "shmgen": [9.0]}})
    report = Report([fit, Result(contest, case, values)], beside, QUICK, {"latency": "no fusermount3"})
    file = tmp_path / "README.md"
    marks = [f"<!-- bench: {which} -->\nold\n<!-- end -->\n" for which in ("fit", "main", "all")]
    file.write_text(f"before\n{marks[0]}above\n{marks[1]}between\n{marks[2]}after\n")
    report.put_into(file)
    once = file.read_text()
    report.put_into(file)
    assert file.read_text() == once
    assert "old" not in once
    first, rest = once.split("above")
    assert first.startswith("before\n")
    assert "**9 samples a second**;\nwith the blog's generator 7." in first
    main, all = rest.split("between")
    assert all.endswith("<!-- end -->\nafter\n")
    assert re.search(r"0\.62 \(0\.50 to 0\.75\) \| +spdl: 2\.50 \(2\.00 to 3\.00\)", main)
    assert "Left out: latency: no fusermount3." in main
    assert "| naive" in all
    assert re.search(r"JPEG +\| +tf\.data \| +3 \| +6 \| 2\.25 \(1\.50 to 3\.00\)", all)


@pytest.mark.parametrize(
    "name",  # png differs from jpg only in the files
    [pytest.param(name, marks=pytest.mark.slow if name == "s3" else ()) for name in sorted({*KINDS} - {"png"})],
)
def test_every_contestant_delivers_batches(name: str, tmp_path: Path, signing: None) -> None:
    """shmgen reads each kind of data in the comparison tables."""
    kind = KINDS[name]
    if kind.server == "slow_s3":
        pytest.importorskip("moto")
    kind.make(tmp_path, 256)
    with ExitStack() as stack:
        place = stack.enter_context(serving(kind.server, str(tmp_path), "1")) if kind.server else str(tmp_path)
        batches = kind.contestants["shmgen"](place, kind.batch_size)
        assert [next(batches), next(batches)] == [kind.batch_size, kind.batch_size]
