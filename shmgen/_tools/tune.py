"""Measures how fast batches come with several numbers of workers, and says which number to use.

Each measurement reads the same samples, which have all been read once before: so none finds more of them in the page cache than
another. `recommend` is pure, so that each answer is a plain unit test.
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
from typing import Any, NamedTuple

import numpy as np
import psutil

from shmgen._checks import check_float, check_int
from shmgen._memory.limits import available, processors
from shmgen._plan.order import Order
from shmgen._plan.verdict import LITTLE, WAITING
from shmgen._sources.ids import Subset
from shmgen._sources.npy import Npy
from shmgen._sources.npy_format import OPEN_FLAGS
from shmgen._sources.npy_rows import NpyRows
from shmgen._worker.protocol import thread_time
from shmgen.errors import InputError
from shmgen.loader import Loader
from shmgen.options import DataOptions, call_from

MARGIN = 1.2
"""A rate is enough if it is so many times what the trainer needs: in training, others use the processors too."""

AS_GOOD = 0.95
"""A rate of at least this fraction of the best one is as good as the best."""

BUSY = 0.8
"""If workers have something to read for less than this fraction of the time, they wait for the main process to take batches."""

IDLE = 0.25
"""Load average, for each processor, above which a remark says that others use the processors."""

WORKERS = range(9)
"""The numbers of workers that are measured by default."""

MIN_BATCHES = 3
"""A rate is measured over at least so many batches, however long they take."""

WARM_UP = 2.0
"""The samples that are measured are those that can be read in so many times the duration of a measurement."""

CACHED = 0.5
"""The samples may take this fraction of the free memory, so that they stay in the page cache."""

PROBES = 32
"""The number of files that are looked at to find out whether the page cache has dropped them."""


class Progress(NamedTuple):
    """How far it has come: measurements done, their total number, and what is measured now."""

    done: int
    total: int
    now: str


@dataclass(frozen=True)
class Measurement:
    """A measurement with one number of workers.

    Attributes:
        workers: number of workers.
        slots: batches that shared memory had room for.
        cold: whether the files had been dropped from the page cache.
        first_batch: seconds until the first batch was ready, including the start of the workers.
        rate: batches a second, each taken as soon as it was ready.
        samples: samples a second.
        bytes: bytes a second.
        cpu: processor seconds for 1e9 bytes, including those of the main process.
        processors: number of processors in use, on average.
        memory: bytes of the workers, in which what they share counts once, and of the slots.
        load: the fraction of the time in which workers had something to read, from 0 to 1.
        io_wait: the fraction of that time in which they waited for a disk or network, from 0 to 1.

    Examples:
        >>> tuning = tune(ids, labels, batch_size=4, workers=[0, 1], seconds=0.01)
        >>> [(measured.workers, measured.rate > 0) for measured in tuning.measurements]
        [(0, True), (1, True)]
    """

    workers: int
    slots: int
    cold: bool
    first_batch: float
    rate: float
    samples: float
    bytes: float
    cpu: float
    processors: float
    memory: int
    load: float
    io_wait: float


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
        seconds: how long each number is measured, at least.
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
    counts = list(options.workers)
    remarks = []
    if (load := os.getloadavg()[0]) > IDLE * processors():
        remarks.append(f"others may have taken part of the {processors():g} processors: the load was {load:.1f} before it began")
    total = 1 + len(counts) * (2 if options.cold else 1)
    options.progress(Progress(0, total, "reading"))
    ids, files, sample_bytes, batch_size = _read_once(options, counts[-1], WARM_UP * options.seconds)
    warm = []
    for done, count in enumerate(counts, 1):
        options.progress(Progress(done, total, _counted(count)))
        warm.append(_measure(options, ids, count, cold=False))
    colds = []
    if options.cold and (why := "it is not known which files are read" if files is None else _forget(files)):
        remarks.append(f"cold not measured: {why}")
    elif options.cold:
        assert files is not None
        for done, count in enumerate(counts, 1 + len(counts)):
            options.progress(Progress(done, total, f"{_counted(count)}, cold"))
            _forget(files)
            colds.append(_measure(options, ids, count, cold=True))
    options.progress(Progress(total, total, ""))
    size, room = len(options.ids) * sample_bytes, available()
    too_large = files is not None and size > room
    if too_large:
        rates = "the cold rates count" if colds else "the rates of cold files would tell more"
        remarks.append(f"{size / 1e9:,.1f} GB of samples do not fit in {room / 1e9:,.1f} GB of memory: {rates}")
    elif colds:
        remarks.append("the samples fit in memory: the warm rates count, the cold ones are the first epoch's")
    best, reason = recommend(colds if too_large and colds else warm, options.step_ms, processors())
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


def recommend(measurements: Sequence[Measurement], step_ms: float | None, processors: float) -> tuple[int, str]:
    """The number of workers to use, and why.

    It is the smallest number that is enough for the trainer. If none is enough, or no step is given, it is the smallest that is
    as good as the best. With 0 workers the trainer waits while a batch is read: that is enough only if it hardly slows it down.

    Args:
        measurements: of different numbers of workers, at least one.
        step_ms: milliseconds that the trainer takes for a batch.
        processors: number of available processors.
    """
    ranked = sorted(measurements, key=lambda one: one.workers)
    if step_ms is not None:
        for one in ranked:
            spare = one.rate * step_ms / 1000
            if spare >= (MARGIN if one.workers else 1 / LITTLE):
                return one.workers, f"{_feeds(one, step_ms, spare)}; {_beyond(one, ranked, processors)}"
    with_workers = [one for one in ranked if one.workers] or ranked
    best = max(one.rate for one in with_workers)
    chosen = next(one for one in with_workers if one.rate >= AS_GOOD * best)
    if step_ms is None:
        words = f"{_counted(chosen.workers)} {_verb(chosen, 'read')} {chosen.rate:,.1f} batches a second"
    else:
        words = _feeds(chosen, step_ms, chosen.rate * step_ms / 1000)
    return chosen.workers, f"{words}; {_beyond(chosen, ranked, processors)}"


def _feeds(one: Measurement, step_ms: float, spare: float) -> str:
    if not one.workers:
        return f"without workers, reading adds {1 / spare:.0%} to a {step_ms:g} ms step"
    if spare < 1:
        return f"a {step_ms:g} ms step can't be fed: with {_counted(one.workers)} a batch takes {1000 / one.rate:,.1f} ms"
    enough = "" if spare >= MARGIN else " only"
    return f"{_counted(one.workers)} {_verb(one, 'feed')} a {step_ms:g} ms step with {spare:,.1f} x to spare{enough}"


def _beyond(chosen: Measurement, ranked: Sequence[Measurement], processors: float) -> str:
    """What more workers than ``chosen`` would gain, or why they would gain nothing."""
    more = [one for one in ranked if one.workers > chosen.workers]
    if not more:
        return "more were not measured"
    best = max(more, key=lambda one: one.rate)
    if best.rate * AS_GOOD > chosen.rate:
        return f"{best.workers} would read {best.rate / chosen.rate:.1f} x as fast"
    if chosen.io_wait > WAITING:
        return "more gain nothing: the disk, or network, is the limit"
    if chosen.load < BUSY:
        return "more gain nothing: the main process takes no more"
    return f"more gain nothing: {'the processor is' if processors == 1 else f'the {processors:g} processors are'} the limit"


def _counted(workers: int) -> str:
    return f"{workers} {'worker' if workers == 1 else 'workers'}"


def _verb(one: Measurement, verb: str) -> str:
    return f"{verb}s" if one.workers == 1 else verb


def _read_once(options: TuneOptions, workers: int, seconds: float) -> tuple[Subset, list[str] | None, int, int]:
    """Read as many samples as can be read in so many seconds, and will stay in memory.

    Returns:
        The ids that were read, their files (None if they are not known), bytes of a sample, samples in a batch.
    """
    ids = options.ids
    with options.loader(ids, workers, shuffle=options.shuffle) as loader:
        sample_bytes = sum(field.row_bytes for field in loader._layout.fields)
        batch_size = loader._sampler.batch_size
        room = CACHED * available() / sample_bytes
        deadline = math.inf
        for _ in loader:
            samples, now = loader.stats.samples, time.monotonic()
            deadline = min(deadline, now + seconds)  # the workers' start does not count
            if samples >= MIN_BATCHES * batch_size and (now > deadline or samples > room):
                break
        # A last batch that is left out is ignored.
        samples = loader.stats.samples
        read = Order(len(ids), options.seed, options.epoch).part(0, samples) if options.shuffle else np.arange(samples)
        part = Subset(ids, read)
        return part, _files(loader, part), sample_bytes, batch_size


def _files(loader: Loader, ids: Sequence[Any]) -> list[str] | None:
    """The ``.npy`` files that a loader reads for ``ids``; None if it calls functions or other code, whose files are not known."""
    files: list[str] = []
    for source in loader._spec.sources.values():
        if isinstance(source, Npy):
            files += map(source.path, ids)
        elif isinstance(source, NpyRows):
            files.append(source.file)
        elif not source.in_main_process:
            return None
    return files or None


def _measure(options: TuneOptions, ids: Sequence[Any], workers: int, *, cold: bool) -> Measurement:
    seconds = options.seconds
    begun, used_then, own_then = time.monotonic(), _used([]), thread_time("thread-self")
    with options.loader(ids, workers, shuffle=options.shuffle) as loader:
        # In a second epoch, cold files would be warm.
        batches = iter(loader) if cold else _endless(loader)
        next(batches)
        start = time.monotonic()
        first_batch = start - begun
        pids = list(loader._workers.pids.values())
        if not cold:
            # Batches that were read ahead say nothing about the rate.
            for _ in islice(batches, loader._ring.slots):
                if time.monotonic() > start + seconds:
                    break
            start = time.monotonic()
        before, used, own = loader.stats, _used(pids), thread_time("thread-self")
        for _ in batches:
            if time.monotonic() > start + seconds and loader.stats.since(before).batches >= MIN_BATCHES:
                break
        seen, used = loader.stats.since(before), _used(pids) - used
        if not seen.batches:  # a single batch is the whole epoch
            seen, used, own = replace(loader.stats, elapsed=first_batch), _used(pids) - used_then, own_then
        if not workers:  # this thread does their work
            seen = replace(seen, workers=1, busy=seen.elapsed, cpu=(thread_time("thread-self") - own) / 1e9)
        return Measurement(
            workers,
            loader._ring.slots,
            cold,
            first_batch,
            seen.samples / loader._sampler.batch_size / seen.elapsed,
            seen.samples / seen.elapsed,
            seen.bytes / seen.elapsed,
            max(0.0, used) / (seen.bytes / 1e9),
            max(0.0, used) / seen.elapsed,
            loader._ring.slots * loader._layout.slot_bytes + sum(map(_memory, pids)),
            seen.load,
            seen.io_wait,
        )


def _endless(loader: Loader) -> Iterator[object]:
    while True:
        yield from loader


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


def _forget(files: Sequence[str]) -> str | None:
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
