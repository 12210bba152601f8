"""``shmgen.tune`` and ``python -m shmgen tune``: measurements, and the recommended number of workers."""

from __future__ import annotations

import importlib
import os
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from types import FunctionType
from typing import Any

import numpy as np
import pytest
from conftest import Ran, interrupted_by_ctrl_c

from shmgen import InputError, Loader, Measurement, Source, Tuning, tune
from shmgen._memory.limits import processors
from shmgen._tools.output import print_tuning
from shmgen._tools.recommend import AS_GOOD, is_settled, medians, recommend
from shmgen._tools.tune import MAX_ROUNDS, ROUNDS, in_rounds

COMMAND = [sys.executable, "-W", "error", "-m", "shmgen"]
BATCH = 8


def seen(rate: float, workers: int, load: float = 1.0, io_wait: float = 0.0) -> Measurement:
    """A measurement with the given numbers, on which a recommendation depends."""
    return Measurement(workers, 4, False, 0.1, rate, 8 * rate, 1e6 * rate, 0.1, 1.0, 1 << 20, load, io_wait)


RECOMMENDED = [
    # rates of 0, 1, 2, ... workers, in batches a second; step in ms; load and I/O wait of all; recommended number and reason
    pytest.param(
        [10, 124, 240, 250], 25, 1, 0.9, 1, "1 worker feeds a 25 ms step with 3.1 x to spare; 3 would read 2.0 x", id="one"
    ),
    pytest.param([10, 45, 124, 126], 25, 1, 0.9, 2, "3.1 x to spare; more gain nothing: the disk, or network, is", id="disk"),
    pytest.param([10, 45, 60, 61], 25, 1, 0.1, 2, "more gain nothing: the 2 processors are the limit", id="processors"),
    pytest.param([10, 45, 60, 61], 25, 0.5, 0.1, 2, "more gain nothing: the main process takes no more", id="caller"),
    pytest.param([10, 20, 47, 60], 25, 1, 0, 3, "3 workers feed a 25 ms step with 1.5 x to spare; more were not", id="margin"),
    pytest.param([10, 20, 44, 45], 25, 1, 0, 2, "2 workers feed a 25 ms step with 1.1 x to spare only", id="little-margin"),
    pytest.param([10, 16, 19, 20], 25, 1, 0, 2, "a 25 ms step can't be fed: with 2 workers a batch takes 52.6 ms", id="too-slow"),
    pytest.param([900, 1800], 25, 1, 0, 0, "without workers, reading adds 4% to a 25 ms step; 1 would read 2.0 x", id="none"),
    pytest.param([700, 600], 25, 1, 0, 1, "1 worker feeds a 25 ms step with 15.0 x to spare", id="too-slow-without-workers"),
    pytest.param([900, 1000, 1900, 1960, 1990], None, 1, 0, 2, "2 workers read 1,900.0 batches a second; more", id="no-step"),
    pytest.param([999, 80, 100], None, 1, 0, 2, "more were not measured", id="no-step-never-0-workers"),
    pytest.param([999], None, 1, 0, 0, "0 workers read 999.0 batches a second; more were not measured", id="only-0-measured"),
]


@pytest.mark.parametrize(("rates", "step_ms", "load", "io_wait", "workers", "why"), RECOMMENDED)
def test_recommendations(rates: list[float], step_ms: float | None, load: float, io_wait: float, workers: int, why: str) -> None:
    """The smallest number of workers that is enough, or as good as the best, is recommended, with the reason."""
    measurements = [seen(rate, count, load, io_wait) for count, rate in enumerate(rates)]

    found, reason = recommend(measurements[::-1], step_ms, 2.0)

    assert found == workers
    assert why in reason


def tuned(rates: Sequence[float], step_ms: float | None, noise: float, random: Random) -> tuple[int, int]:
    """The number recommended for these rates with some noise, and the number of rounds."""
    rounds = in_rounds(
        lambda count: seen(rates[count] * random.gauss(1, noise), count),
        range(len(rates)),
        lambda rounds: is_settled(rounds, step_ms, processors()),
    )
    return recommend(medians(rounds), step_ms, processors())[0], len(rounds)


@pytest.mark.parametrize(
    ("rates", "step_ms", "expected"),
    [
        pytest.param([43, 48, 76, 74, 73, 72, 74, 75, 73], None, 2, id="levels-off"),
        pytest.param([10, 20, 40, 60, 80, 80, 80, 80, 80], None, 4, id="many"),
        pytest.param([43, 46, 76, 74, 73, 72, 74, 75, 73], 25, 2, id="step-nearly-fed"),
        pytest.param([10, 20, 50, 90, 90, 90, 90, 90, 90], 25, 2, id="step-just-fed"),
    ],
)
def test_the_same_is_recommended_each_time(rates: list[float], step_ms: float | None, expected: int) -> None:
    """With errors of 3 % in each measurement, three runs agree nine times out of ten."""
    random = Random(2026)
    found = [tuned(rates, step_ms, 0.03, random)[0] for _ in range(90)]
    agree = sum(found[run : run + 3] == [expected] * 3 for run in range(0, 90, 3))
    assert agree >= 27, Counter(found)


def test_rounds_go_on_until_the_answer_is_clear() -> None:
    """A clear answer takes the fewest rounds; a close one takes more, up to a limit."""
    random = Random(2026)
    assert {tuned([40, 50, 100, 200], None, 0.02, random)[1] for _ in range(50)} == {ROUNDS}
    close = [tuned([40, 100, 110, 110], None, 0.05, random)[1] for _ in range(50)]
    assert max(close) == MAX_ROUNDS
    assert len(set(close)) > 2


def test_the_median_of_rounds() -> None:
    """The result is the measurement of the median rate."""
    assert medians([[seen(90, 1, 0.1)], [seen(120, 1, 0.2)], [seen(100, 1, 0.3)]]) == [seen(100, 1, 0.3)]


@pytest.fixture
def two_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits `tune` to two rounds, each of which starts new workers for each number."""
    monkeypatch.setattr("shmgen._tools.tune.ROUNDS", 2)
    monkeypatch.setattr("shmgen._tools.tune.MAX_ROUNDS", 2)


SECONDS = 0.4
"""Seconds of a measurement."""

COST = 0.02
"""Seconds that a sample takes: much longer than a worker's other work, also on a busy machine."""


def sleep() -> None:
    """Take `COST` seconds, without processor time."""
    time.sleep(COST)


def compute() -> None:
    """Take `COST` seconds of processor time."""
    end = time.thread_time() + COST
    while time.thread_time() < end:
        pass


def costly(cost: Callable[[], None]) -> Source:
    """A source of samples of one byte, each of which calls ``cost``."""
    # Local, and without functions of this module: a worker would have to import it, which takes long.
    clock, code = time, cost.__code__

    class Costly(Source):
        shape = ()
        dtype = "|u1"

        def fill(self, ids: Sequence[object], rows: np.ndarray) -> None:
            pay = FunctionType(code, {"time": clock, "COST": COST})
            for _ in ids:
                pay()

    return Costly()


@pytest.mark.usefixtures("two_rounds")
def test_computing_samples_take_processors() -> None:
    """For samples that compute, the measured processors match the samples' time, and I/O wait is low."""
    tuning = tune(range(64), batch_size=2, source=costly(compute), slots=4, workers=[1, 2], seconds=SECONDS)

    for one in tuning.measurements:
        # At the beginning and the end, workers may be in the middle of a sample, and up to 4 batches of 2 read ahead.
        # Linux counts processor time in hundredths of a second.
        whole = one.processors - one.samples * COST
        assert abs(whole) < ((one.workers + 4 * 2) * COST + 0.06) / SECONDS + 0.1 * one.processors, one
        assert one.io_wait < 0.2
    rates = {one.workers: one.rate for one in tuning.measurements}
    assert tuning.workers == min(count for count, rate in rates.items() if rate >= AS_GOOD * max(rates.values()))


@pytest.mark.usefixtures("two_rounds")
def test_numbers_of_a_measurement(folder: Callable) -> None:
    """A measurement's numbers are consistent; every second round is in reverse order; progress counts the measurements."""
    data = folder(BATCH * 10, (64, 64))
    told: list[tuple[int, int, str]] = []

    def tell(*progress: Any) -> None:
        told.append(progress)

    tuning = tune(data.ids, data.labels, BATCH, data_dir=data.path, workers=[2, 0, 2], seconds=0.2, slots=3, progress=tell)

    assert [one.workers for one in tuning.measurements] == [0, 2]
    assert (tuning.of, tuning.batch_size) == (80, BATCH)
    assert tuning.samples in range(3 * BATCH, 81, BATCH)
    batch_bytes = BATCH * (64 * 64 * 4 + 8)
    for one in tuning.measurements:
        assert (one.slots, one.cold) == (3, False)
        assert one.first_batch > 0
        assert one.samples == pytest.approx(BATCH * one.rate)
        assert one.bytes == pytest.approx(batch_bytes * one.rate)
        assert 0 < one.processors <= (os.cpu_count() or 1)
        assert one.cpu == pytest.approx(one.processors / one.bytes * 1e9)
        assert one.memory >= 3 * batch_bytes
        assert 0 <= one.io_wait <= 1
        assert 0 < one.load <= 1
    without, with_two = tuning.measurements
    assert with_two.memory > without.memory + 2 * 2e6
    # The second round is in reverse order.
    there, back = ["0 workers", "2 workers"], ["2 workers", "0 workers"]
    assert told == [(done, 5, now) for done, now in enumerate(["reading", *there, *back, ""])]


@pytest.mark.usefixtures("two_rounds")
def test_only_a_part_of_slow_data_is_measured() -> None:
    """Of slow data only a part, in whole batches, is measured; ``cold`` gives a remark if the files are unknown."""
    tuning = tune(range(400), batch_size=2, source=costly(sleep), workers=[1], seconds=0.05, cold=True)

    assert tuning.of == 400
    assert 6 <= tuning.samples < 200
    assert tuning.samples % 2 == 0
    assert "cold not measured: it is not known which files are read" in tuning.remarks
    assert not any(one.cold for one in tuning.measurements)


@pytest.mark.usefixtures("two_rounds")
@pytest.mark.parametrize("why", [None, "a tmpfs keeps them"])
def test_cold_files(folder: Callable, monkeypatch: pytest.MonkeyPatch, why: str | None) -> None:
    """With ``cold``, files are also measured after they left the page cache; if that is impossible, a remark says so."""
    monkeypatch.setattr("shmgen._tools.tune.forget", lambda paths: why)
    data = folder(BATCH * 4, (64, 64))

    tuning = tune(data.ids, batch_size=BATCH, data_dir=data.path, workers=[0], seconds=0.05, cold=True)

    assert [one.cold for one in tuning.measurements] == ([False] if why else [False, True])
    assert any(remark.startswith("cold not measured" if why else "the samples fit in memory") for remark in tuning.remarks)


@pytest.mark.usefixtures("two_rounds")
def test_cold_files_are_those_of_the_first_batches(folder: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the files that a loader with the same arguments reads first leave the page cache, also in batches by length."""
    dropped: list[str] = []
    monkeypatch.setattr("shmgen._tools.tune.forget", lambda paths: dropped.extend(paths) or "it is kept")  # type: ignore[func-returns-value]
    monkeypatch.setattr("shmgen._tools.tune.WARM_UP", 0.0)
    data = folder(BATCH * 40)
    options: dict[str, Any] = {"batch_size": BATCH, "data_dir": data.path, "lengths": [len(id) + 1 for id in data.ids], "seed": 3}

    tune(data.ids, workers=[0], seconds=0.01, cold=True, **options)

    with Loader(data.ids, data.labels, workers=0, **options) as loader:
        read = [str(data.file(data.ids[label])) for _, y in loader for label in y.tolist()]
    assert 0 < len(dropped) < BATCH * 40
    assert set(dropped) == set(read[: len(dropped)])


@pytest.mark.usefixtures("two_rounds")
def test_a_single_batch(folder: Callable) -> None:
    """A data set of a single batch can be measured, also with ``cold``."""
    data = folder(BATCH)

    tuning = tune(data.ids, batch_size=BATCH, data_dir=data.path, workers=[0], seconds=0.05, cold=True)

    assert all(one.rate > 0 for one in tuning.measurements)


@pytest.mark.usefixtures("two_rounds")
def test_frameworks_are_remarked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """If workers import a framework, there is one remark, and no warning of each measured loader."""
    (tmp_path / "tensorflow.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)

    framework = importlib.import_module("tensorflow")

    def function(id: int) -> np.ndarray:
        return np.zeros(3) if framework else np.ones(3)

    tuning = tune(range(8), source=function, batch_size=2, workers=[1], seconds=0.01)

    sys.modules.pop("tensorflow")
    assert [remark for remark in tuning.remarks if "import tensorflow: " in remark] == [tuning.remarks[0]]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param({"workers": []}, "workers: expected one number from 0, or several, found none", id="no-counts"),
        pytest.param({"workers": [-1]}, "workers: expected an int from 0, found -1", id="count"),
        pytest.param({"step_ms": 0}, "step_ms: expected milliseconds above 0, or None, found 0", id="step"),
        pytest.param({"seconds": -1.0}, "seconds: expected a number above 0, found -1.0", id="seconds"),
        pytest.param({"batch_size": 9}, "expected at least 9 ids, found 8", id="loaders-own"),
    ],
)
def test_wrong_arguments(folder: Callable, arguments: dict[str, Any], said: str) -> None:
    """Wrong arguments are refused before anything is measured."""
    data = folder()
    with pytest.raises(InputError, match="expected") as raised:
        tune(data.ids, data_dir=data.path, **arguments)
    assert said in str(raised.value)


@pytest.mark.usefixtures("two_rounds")
def test_the_command_line(folder: Callable, tmp_path: Path, cli: Callable[..., Ran]) -> None:
    """The command prints a table with the recommendation, or JSON, and draws a plot without a display."""
    pytest.importorskip("matplotlib")
    data = folder(40)
    (tmp_path / "ids").write_text("\n".join(data.ids[:32]))
    words = ["--batch-size", 8, "--step-ms", 25, "--workers", "0-1,3", "--seconds", 0.1, "--ids", "ids"]

    result = cli("tune", "data", *words, "--json").json
    assert [one["workers"] for one in result["measurements"]] == [0, 1, 3]
    assert (result["data_dir"], result["batch_size"], result["step_ms"], result["of"]) == ("data", 8, 25.0, 32)

    done = cli("tune", "data", *words, "--workers", "0,1", "--plot", "plot.svg")
    assert (done.status, done.err) == (0, "")
    assert (tmp_path / "plot.svg").read_bytes().startswith(b"<?xml")
    lines = done.out.splitlines()
    assert lines[0].endswith("samples in batches of 8, 16 slots, read again and again")
    assert [line.split()[0] for line in lines if line.split()[:1] in (["0"], ["1"])] == ["0", "1"]
    [chosen] = [line.split()[0] for line in lines if line.endswith("use this")]
    assert f" workers={chosen}: " in " ".join(done.out.split())


def test_the_table_never_breaks_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    """The table never breaks a number, even with the columns for cold files: only titles are broken."""
    measured = [replace(seen(12_345.6 * n + 1, n, io_wait=1.0), cold=cold) for cold in (False, True) for n in range(2)]
    print_tuning(Tuning(1, "because", None, 64, 64, 64, 2.0, tuple(measured), ()), "data")

    lines = capsys.readouterr().out.splitlines()
    [chosen] = [line.split() for line in lines if line.endswith("use this")]
    assert (chosen[0], chosen[1], chosen[-5]) == ("1", "98,773", "98,773")


WRONG = [
    pytest.param(["tune", "nowhere"], "nowhere: expected a folder", id="no-folder"),
    pytest.param(["tune", "empty"], "empty: expected .npy files, found none", id="no-files"),
    pytest.param(
        ["tune", "data", "--batch-size", "33"], "--batch-size: expected at most 32, the number of samples", id="too-few"
    ),
    pytest.param(
        ["tune", "data", "--workers", "3-1"], "workers: expected one number from 0, or several, found none", id="backwards"
    ),
    pytest.param(["tune", "data", "--workers", "many"], "argument --workers: invalid numbers value: 'many'", id="no-counts"),
    pytest.param(["tune", "data", "--plot", "plot.x"], "expected a name that ends in one of .", id="plot"),
]


@pytest.mark.parametrize(("words", "said"), WRONG)
def test_wrong_usage(folder: Callable, tmp_path: Path, cli: Callable[..., Ran], words: list[str], said: str) -> None:
    """Wrong usage gives exit status 2 and a line that says what to do, before anything is measured."""
    pytest.importorskip("matplotlib")
    folder(32)
    (tmp_path / "empty").mkdir()

    done = cli(*words)

    assert (done.status, done.out) == (2, "")
    assert said in done.err


def test_without_matplotlib(folder: Callable, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without matplotlib, ``--plot`` is an error that says how to get it."""
    folder(32)
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)

    done = cli("tune", "data", "--plot", "a.png")

    assert (done.status, done.out) == (2, "")
    assert "--plot needs matplotlib: pip install matplotlib" in done.err


def test_ctrl_c(folder: Callable) -> None:
    """Ctrl-C ends a measurement and its workers, with one line and status 130."""
    struck = interrupted_by_ctrl_c("tune", folder(32).path, "--workers", 2, "--seconds", 60)
    assert struck == (130, b"", b"python -m shmgen tune: interrupted\n")


@pytest.mark.usefixtures("two_rounds")
def test_any_number_of_ids_is_measured() -> None:
    """Of 10**9 ids, only the measured ones take memory and time."""
    for shuffle in (True, False):
        tracemalloc.start()
        try:
            tuning = tune(range(10**9), None, 4, source=lambda id: np.zeros(2), workers=[0], seconds=0.02, shuffle=shuffle)
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert 0 < tuning.samples < tuning.of == 10**9
        assert most < 50_000_000
