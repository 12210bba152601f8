"""Measures how fast batches come with several numbers of workers, and says which number to use.

Each measurement reads the same samples, which have all been read once before: so none finds more of them in the page cache than
another. All numbers are measured in turn, in several rounds, so that no number alone suffers from what the machine does besides.
There are more rounds as long as leaving one out would change the answer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, NamedTuple

from shmgen._checks import check_float, check_int
from shmgen._memory.limits import available, processors
from shmgen._tools.measure import forget, measure, read_once
from shmgen._tools.recommend import Measurement, counted, is_settled, medians, recommend
from shmgen.errors import InputError
from shmgen.loader import Loader
from shmgen.options import DataOptions, call_from

SPREAD = 0.25
"""A fraction by which the rates of rounds differ; above it, a remark says so."""

IDLE = 0.25
"""Load average, for each processor, above which a remark says that others use the processors."""

WORKERS = range(9)
"""The numbers of workers that are measured by default."""

WARM_UP = 2.0
"""The samples that are measured are those that can be read in so many times the duration of a measurement."""

ROUNDS, MAX_ROUNDS = 5, 11
"""In so many rounds each number is measured, at least and at most."""


class Progress(NamedTuple):
    """How far it has come: measurements done, their total number, and what is measured now."""

    done: int
    total: int
    now: str


@dataclass(frozen=True)
class Tuning:
    """How many workers to use.

    Attributes:
        workers: the recommended number.
        reason: why.
        step_ms: milliseconds that the trainer takes for a batch, as given.
        batch_size: samples in a batch.
        samples: number of samples that were read.
        of: number of all samples.
        processors: number of available processors.
        measurements: those with files in the page cache, by workers, then those with cold files.
        remarks: what could not be measured, and what the choice is based on.

    Examples:
        >>> tuning = tune(ids, labels, batch_size=4, workers=[1], seconds=0.01)
        >>> print(tuning.reason)
        1 worker reads ... batches a second; more were not measured
    """

    workers: int
    reason: str
    step_ms: float | None
    batch_size: int
    samples: int
    of: int
    processors: float
    measurements: tuple[Measurement, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True, eq=False, repr=False)
class TuneOptions(DataOptions):
    """The arguments of `tune`.

    Args:
        workers: the numbers of workers to measure.
        step_ms: milliseconds that the trainer takes for a batch; without it, the highest rate is aimed at.
        seconds: how long each number is measured, at least, in all rounds together.
        cold: also measure each number with files that are not in the page cache.
        progress: called before each measurement.
    """

    _: KW_ONLY
    workers: Iterable[int] = WORKERS
    step_ms: float | None = None
    seconds: float = 2.0
    cold: bool = False
    progress: Callable[[Progress], object] = lambda _: None

    def __post_init__(self) -> None:
        if self.step_ms is not None:
            self._keep(step_ms=check_float(self.step_ms, "step_ms", "milliseconds above 0, or None", lambda number: number > 0))
        self._keep(
            seconds=check_float(self.seconds, "seconds", "a number above 0", lambda number: number > 0),
            workers=sorted({check_int(count, "workers", 0) for count in self.workers}),
        )
        if not self.workers:
            raise InputError("workers: expected one number from 0, or several, found none")
        super().__post_init__()

    def loader(self, ids: Sequence[Any], workers: int, *, shuffle: bool) -> Loader:
        """A loader of these ids, with so many workers."""
        arguments = {field.name: getattr(self, field.name) for field in fields(DataOptions) if field.init}
        return Loader(**{**arguments, "list_IDs": ids, "workers": workers, "shuffle": shuffle})


@call_from(TuneOptions)
def tune(options: TuneOptions) -> Tuning:
    """Measure a `Loader` with several numbers of workers, and recommend one of them.

    Nothing else should run meanwhile. Random numbers and the order of the samples are the loader's, but only a random part of the
    samples is read, as many as can be read in a few seconds.

    Raises:
        InputError: an argument is wrong. All errors of `Loader` may be raised too.

    Examples:
        >>> tuning = tune(ids, labels, batch_size=4, workers=[1, 2], seconds=0.01, step_ms=1000)
        >>> tuning.workers
        1
    """
    remarks = []
    if (load := os.getloadavg()[0]) > IDLE * processors():
        remarks.append(f"others may have taken part of the {processors():g} processors: the load was {load:.1f} before it began")
    rounds = _Rounds(options)
    rounds.tell("reading")
    ids, files, sample_bytes, batch_size = read_once(options, rounds.counts[-1], WARM_UP * options.seconds)
    size, room = len(options.ids) * sample_bytes, available()
    too_large = files is not None and size > room
    why = ("it is not known which files are read" if files is None else forget(files)) if options.cold else "not asked for"
    if options.cold and why:
        remarks.append(f"cold not measured: {why}")
    rounds.total += 0 if why else len(rounds.counts) * (ROUNDS if too_large else 1)

    def measure_warm(count: int, seconds: float) -> Measurement:
        return measure(options, ids, count, seconds, cold=False)

    def measure_cold(count: int, seconds: float) -> Measurement:
        forget(files or [])
        return measure(options, ids, count, seconds, cold=True)

    warm = rounds.measure(measure_warm, decides=bool(why) or not too_large)
    colds = [] if why else rounds.measure(measure_cold, ", cold", decides=too_large)
    rounds.tell("")
    if too_large:
        rates = "the cold rates count" if colds else "the rates of cold files would tell more"
        remarks.append(f"{size / 1e9:,.1f} GB of samples do not fit in {room / 1e9:,.1f} GB of memory: {rates}")
    elif colds:
        remarks.append("the samples fit in memory: the warm rates count, the cold ones are the first epoch's")
    best, reason = recommend(colds if too_large and colds else warm, options.step_ms, processors())
    if (spread := max(one.spread for one in (*warm, *colds))) > SPREAD:
        remarks.append(f"the rates of a number differ by up to {spread:.0%} from round to round: others may use the machine")
    if not rounds.settled:
        remarks.append(f"after {MAX_ROUNDS} rounds the answer still depends on which of them is left out: it is a close one")
    return Tuning(
        best,
        reason,
        options.step_ms,
        batch_size,
        len(ids),
        len(options.ids),
        processors(),
        (*warm, *colds),
        tuple(remarks),
    )


class _Rounds:
    """Measures all numbers of workers in turn, in as many rounds as it takes.

    Attributes:
        counts: the numbers of workers.
        total: how many measurements there will be, as far as is known.
        settled: whether the answer no longer depends on which round is left out.
    """

    def __init__(self, options: TuneOptions) -> None:
        self.counts = list(options.workers)
        self.total = 1 + ROUNDS * len(self.counts)
        self.settled = True
        self._options = options
        self._done = -1

    def tell(self, now: str) -> None:
        """Say what is measured now."""
        self._done = self._done + 1 if now else self.total
        self._options.progress(Progress(self._done, self.total, now))

    def measure(self, measure: Callable[[int, float], Measurement], words: str = "", *, decides: bool) -> list[Measurement]:
        """The median measurement with each number of workers; if these do not decide, of cold files, a single round is enough."""
        rounds: list[list[Measurement]] = []
        least = ROUNDS if decides or not words else 1
        while len(rounds) < least or (decides and not self._is_settled(rounds)):
            if len(rounds) >= least:
                self.total += len(self.counts)
            measured = {}
            # What changes while a round lasts is to favour neither few workers nor many.
            for count in self.counts[:: -1 if len(rounds) % 2 else 1]:
                self.tell(counted(count) + words)
                measured[count] = measure(count, self._options.seconds / least)
            rounds.append([measured[count] for count in self.counts])
        return medians(rounds)

    def _is_settled(self, rounds: list[list[Measurement]]) -> bool:
        self.settled = is_settled(rounds, self._options.step_ms, processors())
        return self.settled or len(rounds) >= MAX_ROUNDS
