"""Measures how fast batches come with one number of workers."""

from __future__ import annotations

import errno
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from shmgen._memory.limits import available
from shmgen._plan.order import Order
from shmgen._samples.ids import Subset
from shmgen._sources.folder import FolderReader
from shmgen._sources.npy_format import OPEN_FLAGS
from shmgen._sources.npy_rows import NpyRowsReader
from shmgen._tools.recommend import Measurement
from shmgen.loader import Loader

if TYPE_CHECKING:
    from shmgen._tools.tune import TuneOptions

MIN_BATCHES = 3
"""A rate is measured over at least so many batches, however long they take."""

CACHED = 0.5
"""The samples may take this fraction of the free memory, so that they stay in the page cache."""

PROBES = 32
"""The number of files that are looked at to find out whether the page cache has dropped them."""


def read_once(options: TuneOptions, workers: int, seconds: float) -> tuple[Subset, list[str] | None, int, int]:
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
    """The files that a loader reads for ``ids``; None if it calls functions or other code, whose files are not known."""
    files: list[str] = []
    for reader in loader._spec.readers.values():
        if isinstance(reader, FolderReader):
            files += map(reader.place, ids)
        elif isinstance(reader, NpyRowsReader):
            files.append(reader.file)
        elif reader.in_main_process:
            continue
        else:
            return None
    return files or None


def measure(options: TuneOptions, ids: Sequence[Any], workers: int, seconds: float, *, cold: bool) -> Measurement:
    """Read ``ids`` for so many seconds with so many workers; if they are ``cold``, once."""
    begun, used_then = time.monotonic(), _used([])
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
        before, used = loader.stats, _used(pids)
        for _ in batches:
            if time.monotonic() > start + seconds and loader.stats.since(before).batches >= MIN_BATCHES:
                break
        seen, used = loader.stats.since(before), _used(pids) - used
        if not seen.batches:  # a single batch is the whole epoch
            busy, cpu, *_ = loader._workers.use()
            known: dict[str, Any] = {"elapsed": first_batch, "capacity": first_batch * max(1, workers), "startup": 0.0}
            seen, used = replace(loader.stats, busy=busy, cpu=cpu, **known), _used(pids) - used_then
        return Measurement(
            workers,
            loader._ring.slots,
            cold,
            first_batch,
            seen.samples_per_second / loader._sampler.batch_size,
            seen.samples_per_second,
            seen.bytes_per_second,
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
