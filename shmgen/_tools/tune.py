"""Measures how fast batches come with several numbers of workers, and says which number to use.

Each measurement reads the first batches of the same epoch, which have been read once before: so none finds more of them in the
page cache than another. All numbers are measured in turn, in several rounds, so that no number alone suffers from what else the
machine does. There are more rounds as long as leaving one out would change the answer.
"""

from __future__ import annotations

import errno
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, fields, replace
from itertools import islice
from typing import Any

import psutil

from shmgen._arguments import call_from
from shmgen._checks import check_float, check_int
from shmgen._memory.limits import available, processors
from shmgen._plan.sampler import BatchId
from shmgen._plan.stats import Stats
from shmgen._samples.ids import take
from shmgen._samples.npy_format import OPEN_FLAGS
from shmgen._tools.progress import Progress
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

MIN_BATCHES = 3
"""A rate is measured over this many batches at least, however long they take."""

CACHED = 0.5
"""The batches may take this fraction of the free memory, so that they stay in the page cache."""

PROBES = 32
"""Files that are looked at to find out whether the page cache has dropped them."""

SPREAD = 0.25
"""A fraction by which the rates of rounds differ; above it, a remark says so."""

IDLE = 0.25
"""Load average, for each processor, above which a remark says that others use the processors."""


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

    def loader(self, workers: int) -> Loader:
        """A loader with this number of workers."""
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
    remarks = []
    if (load := os.getloadavg()[0]) > IDLE * processors():
        remarks.append(f"others may have taken part of the {processors():g} processors: the load was {load:.1f} before it began")
    rounds = Rounds(list(options.workers), options.step_ms, options.progress)
    rounds.tell("reading")
    batches, samples, sample_bytes = _read_once(options, rounds.counts[-1])
    files = _files(options, _first_ids(options, batches)) if options.cold else []
    why = ("not asked for" if not options.cold else "it is not known which files are read") if not files else forget(files)
    if options.cold and why:
        remarks.append(f"cold not measured: {why}")
    size, room = len(options.ids) * sample_bytes, available()
    too_large = size > room and bool(_files(options, [options.ids[0]]))
    cold_rounds = 0 if why else ROUNDS if too_large else 1
    rounds.total += cold_rounds * len(rounds.counts)

    def measure(count: int, *, cold: bool) -> Measurement:
        if cold:
            forget(files)
        return _measure(options, count, batches, options.seconds / (cold_rounds if cold else ROUNDS), cold=cold)

    warm = rounds.measure(measure, decides=not (too_large and cold_rounds))
    colds = rounds.measure(measure, cold=True, least=cold_rounds, decides=too_large) if cold_rounds else []
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
        workers=best,
        reason=reason,
        step_ms=options.step_ms,
        batch_size=options.batch_size,
        samples=samples,
        of=len(options.ids),
        processors=processors(),
        measurements=(*warm, *colds),
        remarks=tuple(remarks),
    )


class Rounds:
    """Measures all numbers of workers in turn, in as many rounds as it takes.

    Args:
        counts: the numbers of workers.
        step_ms: milliseconds that the trainer takes for a batch.
        progress: called before each measurement.

    Attributes:
        counts: see above.
        total: how many measurements there will be, as far as is known.
        settled: whether the answer no longer depends on which round is left out.
    """

    def __init__(self, counts: list[int], step_ms: float | None, progress: Callable[[Progress], object]) -> None:
        self.counts = counts
        self.total = 1 + ROUNDS * len(counts)
        self.settled = True
        self._step_ms = step_ms
        self._progress = progress
        self._done = -1

    def tell(self, now: str) -> None:
        """Say what is measured now; empty for the end."""
        self._done = self._done + 1 if now else self.total
        self._progress(Progress(self._done, self.total, now))

    def measure(
        self, measure: Callable[..., Measurement], *, cold: bool = False, least: int = ROUNDS, decides: bool = True
    ) -> list[Measurement]:
        """The median measurement with each number of workers, of ``least`` rounds, or of more if these decide the answer."""
        rounds: list[list[Measurement]] = []
        while len(rounds) < least or (decides and len(rounds) < MAX_ROUNDS and not self._is_settled(rounds)):
            if len(rounds) >= least:
                self.total += len(self.counts)
            measured = {}
            # To and fro: what changes while a round lasts is to favour neither few workers nor many.
            for count in self.counts[:: -1 if len(rounds) % 2 else 1]:
                self.tell(counted(count) + ", cold" * cold)
                measured[count] = measure(count, cold=cold)
            rounds.append([measured[count] for count in self.counts])
        if decides:
            self._is_settled(rounds)
        return medians(rounds)

    def _is_settled(self, rounds: list[list[Measurement]]) -> bool:
        self.settled = is_settled(rounds, self._step_ms, processors())
        return self.settled


def _read_once(options: TuneOptions, workers: int) -> tuple[int, int, float]:
    """Read as many batches as can be read soon, and will stay in memory.

    Returns:
        Their number, that of their samples, and bytes of a sample.
    """
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


def _measure(options: TuneOptions, workers: int, batches: int, seconds: float, *, cold: bool) -> Measurement:
    """Read the first ``batches`` for ``seconds``; again and again if they are all, and not to be ``cold``."""
    begun, used = time.monotonic(), _used([])
    with options.loader(workers) as loader:
        again = not cold and batches == len(loader)
        taken = _endless(loader) if again else islice(loader, batches)
        next(taken)
        start = time.monotonic()
        first_batch = start - begun
        state, before = loader.state, Stats()
        pids, slots = [worker.pid for worker in state.workers], len(state.slots)
        if again or batches > slots + MIN_BATCHES:
            if not cold:  # batches that were read ahead say nothing about the rate
                for _ in islice(taken, slots):
                    if time.monotonic() > start + seconds:
                        break
                start = time.monotonic()
            before, used = loader.stats, _used(pids)
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
            seen.samples_per_second * options.sampler.shard.world / options.batch_size,
            seen.samples_per_second,
            seen.bytes_per_second,
            used / (seen.bytes / 1e9),
            used / seen.elapsed,
            round(slots * seen.bytes / seen.batches) + sum(map(_memory, pids)),
            seen.load,
            seen.io_wait,
        )


def _endless(loader: Loader) -> Iterator[object]:
    while True:
        yield from loader


def _first_ids(options: TuneOptions, batches: int) -> list[Any]:
    """The ids of the first ``batches`` of the epoch."""
    batches_ids = (take(options.ids, options.sampler[BatchId(options.epoch, number)]) for number in range(batches))
    return [id for ids in batches_ids for id in ids]


def _files(options: TuneOptions, ids: Sequence[Any]) -> list[str]:
    """The files that these samples are read from; none if that is not known."""
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
    """Drop ``files`` from the page cache; the reason if it still has them."""
    os.sync()  # data that are not on the disk yet can't be dropped
    held = 0
    probes = frozenset(range(0, len(files), max(1, len(files) // PROBES)))
    for number, name in enumerate(files):
        try:
            fd = os.open(name, OPEN_FLAGS | os.O_NONBLOCK)
        except OSError as error:
            return f"{name}: {error.strerror}"
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            held += number in probes and _is_held(fd)
        except OSError as error:
            return "this file system can't tell what is in memory" if error.errno == errno.EOPNOTSUPP else str(error)
        finally:
            os.close(fd)
    return "this file system keeps its files in memory" if 2 * held > len(probes) else None


def _is_held(fd: int) -> bool:
    """Whether the beginning of a file is in the page cache."""
    try:
        os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    return True
