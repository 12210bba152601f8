"""Measures how fast batches come with several numbers of workers, and says which number to use.

Each measurement reads the first batches of the same epoch, which have been read once before, so that all find the same files in
the page cache. All numbers are measured in turn, in several rounds, so that what else the machine does favours none of them.
There are more rounds as long as leaving one out would change the answer.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import KW_ONLY, dataclass, fields, replace
from itertools import count, islice

import psutil

from shmgen._checks import check_float, check_int
from shmgen._memory.limits import available, processors
from shmgen._plan.sampler import BatchId
from shmgen._plan.stats import MIN_BATCHES, Stats
from shmgen._samples.ids import take
from shmgen._signatures import call_from
from shmgen._tools.recommend import Measurement, counted, is_settled, medians, recommend
from shmgen.errors import InputError
from shmgen.loader import Loader
from shmgen.options import DataOptions

WORKERS = range(9)
"""The numbers of workers that are measured by default."""

ROUNDS, MAX_ROUNDS = 5, 11
"""Rounds in which each number is measured: the fewest, and the most."""

WARM_UP = 2.0
"""Batches are measured that can be read in this many times the duration of a measurement."""

CACHED = 0.5
"""The batches may take this fraction of the free memory, so that they stay in the page cache."""

IDLE = 0.25
"""Load average, for each processor, above which a remark says that other programs use the processors."""


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
        remarks: warnings of the loader, what could not be measured, and what the choice is based on.
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
        progress: called before each measurement with the number of measurements done, that of all, and what is measured.
    """

    _: KW_ONLY
    workers: Iterable[int] = WORKERS
    step_ms: float | None = None
    seconds: float = 2.0
    cold: bool = False
    progress: Callable[[int, int, str], object] = lambda *_: None

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

    def loader(self, workers: int) -> Loader:
        arguments = {field.name: getattr(self, field.name) for field in fields(DataOptions) if field.init}
        return Loader(**arguments, workers=workers)


@call_from(TuneOptions)
def tune(options: TuneOptions) -> Tuning:
    """Measure a `Loader` with several numbers of workers, and recommend one of them.

    Nothing else should run meanwhile. Random numbers and the order of the samples are the loader's, but only a part of the epoch
    is read: as many batches as can be read in a few seconds.

    Raises:
        InputError: an argument is wrong. All errors of `Loader` may be raised too.

    Examples:
        >>> tuning = tune(ids, labels, batch_size=4, workers=[1, 2], seconds=0.01, step_ms=1000)
        >>> tuning.workers
        1
    """
    counts, cpus, done = list(options.workers), processors(), count()

    def tell(now: str) -> None:
        at = next(done)
        options.progress(at, max(at, 1 + ROUNDS * len(counts) * (1 + with_cold)), now)

    def settled(rounds: Rounds) -> bool:
        return is_settled(rounds, options.step_ms, cpus)

    def rounds(*, cold: bool) -> Rounds:
        def measure(workers: int) -> Measurement:
            tell(counted(workers) + ", cold" * cold)
            if cold:
                forget(files)
            return _measure(options, workers, batches, cold=cold)

        return in_rounds(measure, counts, settled)

    remarks, with_cold = [], options.cold
    if (load := os.getloadavg()[0]) > IDLE * cpus:
        remarks.append(f"other programs may have used the {cpus:g} processors: the load was {load:.1f} before it began")
    with _warnings() as said:
        tell("reading")
        batches, samples, sample_bytes = _read_once(options, counts[-1])
        files = _files(options, batches)
        if with_cold and (why := forget(files) if files else "it is not known which files are read"):
            remarks.append(f"cold not measured: {why}")
            with_cold = False
        size, room = len(options.ids) * sample_bytes, available()
        too_large = bool(files) and size > room
        warm = rounds(cold=False)
        colds = rounds(cold=True) if with_cold else []
        tell("")
    deciding = colds if colds and too_large else warm
    if too_large:
        rates = "the cold rates count" if colds else "the rates of cold files would tell more"
        remarks.append(f"{size / 1e9:,.1f} GB of samples do not fit in {room / 1e9:,.1f} GB of memory: {rates}")
    elif colds:
        remarks.append("the samples fit in memory: the warm rates count, the cold ones are the first epoch's")
    best, reason = recommend(medians(deciding), options.step_ms, cpus)
    if not settled(deciding):
        remarks.append(f"after {MAX_ROUNDS} rounds the answer still depends on which of them is left out: it is a close one")
    return Tuning(
        workers=best,
        reason=reason,
        step_ms=options.step_ms,
        batch_size=options.batch_size,
        samples=samples,
        of=len(options.ids),
        processors=cpus,
        measurements=(*medians(warm), *medians(colds)),
        remarks=(*said.values(), *remarks),
    )


Rounds = list[list[Measurement]]
"""Rounds of measurements, each of which has one for each number of workers, in the same order."""


def in_rounds(measure: Callable[[int], Measurement], counts: Sequence[int], settled: Callable[[Rounds], bool]) -> Rounds:
    """Measure each number of workers in `ROUNDS` rounds, and in more until they are ``settled``."""
    rounds: Rounds = []
    while len(rounds) < ROUNDS or (len(rounds) < MAX_ROUNDS and not settled(rounds)):
        # Back and forth: what changes while a round lasts favours neither few workers nor many.
        measured = {workers: measure(workers) for workers in counts[:: -1 if len(rounds) % 2 else 1]}
        rounds.append([measured[workers] for workers in counts])
    return rounds


@contextmanager
def _warnings() -> Iterator[dict[object, str]]:
    """The first warning of each kind that loaders log, which would otherwise be shown for each of dozens of loaders."""
    said: dict[object, str] = {}

    def note(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            said.setdefault((record.pathname, record.lineno), record.getMessage())
        return record.levelno < logging.WARNING

    logger = logging.getLogger("shmgen")
    logger.addFilter(note)
    try:
        yield said
    finally:
        logger.removeFilter(note)


def _read_once(options: TuneOptions, workers: int) -> tuple[int, int, float]:
    """Read the batches that are to be measured; returns their number, the number of samples, and the bytes of a sample."""
    with options.loader(workers) as loader:
        deadline = math.inf
        for _ in loader:
            stats, now = loader.stats, time.monotonic()
            deadline = min(deadline, now + WARM_UP * options.seconds)  # the workers' start does not count
            if stats.batches >= MIN_BATCHES and (now > deadline or stats.bytes > CACHED * available()):
                break
        stats = loader.stats
        # A last batch that is left out is ignored.
        return stats.batches, stats.samples, stats.bytes / stats.samples


def _measure(options: TuneOptions, workers: int, batches: int, *, cold: bool) -> Measurement:
    """Read the first ``batches`` for a round's part of the time; all batches of an epoch again and again, unless ``cold``."""
    seconds, begun = options.seconds / ROUNDS, time.monotonic()
    with options.loader(workers) as loader:
        again = not cold and batches == len(loader)
        taken = (batch for _ in (count() if again else range(1)) for batch in islice(loader, batches))
        next(taken)
        start, before = time.monotonic(), Stats()
        first_batch = start - begun
        pids, slots = [worker.pid for worker in loader.state.workers], len(loader.state.slots)
        if not cold and (again or batches > slots + MIN_BATCHES):
            # Batches that were read ahead say nothing about the rate.
            for _ in islice(taken, slots):
                if time.monotonic() > start + seconds:
                    break
            start, before = time.monotonic(), loader.stats
        used = _used(pids)
        for _ in taken:
            if time.monotonic() > start + seconds and loader.stats.since(before).batches >= MIN_BATCHES:
                break
        seen, used = loader.stats.since(before), max(0.0, _used(pids) - used)
        if not seen.elapsed:  # a single batch is all there is
            seen = replace(seen, elapsed=first_batch, startup=0.0)
        return Measurement(
            workers,
            slots,
            cold,
            first_batch,
            seen.rate,
            seen.samples_per_second,
            seen.bytes_per_second,
            used / (seen.bytes / 1e9),
            used / seen.elapsed,
            round(slots * seen.bytes / seen.batches) + sum(map(_memory, pids)),
            seen.load,
            seen.io_wait,
        )


def _files(options: TuneOptions, batches: int) -> list[str]:
    """The files that the epoch's first ``batches`` are read from; none if that is not known."""
    samples = (options.sampler[BatchId(options.epoch, batch)] for batch in range(batches))
    ids = [id for batch in samples for id in take(options.ids, batch)]
    options.spec.bind(options.transformed)
    readers = [reader for reader in options.spec.readers.values() if not reader.in_main_process]
    places = list(dict.fromkeys(getattr(reader, "file", None) or reader.place(id) for reader in readers for id in ids))
    return places if all(place.startswith("/") for place in places) else []


def _used(pids: Iterable[int]) -> float:
    """Seconds of processors that this process and others, with all their threads, have used so far."""
    used = time.process_time()
    for pid in pids:
        with suppress(psutil.Error):  # it has died
            times = psutil.Process(pid).cpu_times()
            used += times.user + times.system
    return used


def _memory(pid: int) -> int:
    """Bytes of a process, without the ring: its PSS, in which a page that several processes share counts once among them."""
    with suppress(psutil.Error):  # it has died
        return sum(part.pss for part in psutil.Process(pid).memory_maps() if not part.path.startswith("/memfd:shmgen"))
    return 0


def forget(files: Sequence[str]) -> str | None:
    """Drop ``files`` from the page cache; returns why that can't be done, or None."""
    os.sync()  # data that are not on the disk yet can't be dropped
    try:
        for name in files:
            with open(name, "rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        return str(error)
    return None
