"""Delivers batches by name: keeps the slots filled, waits for workers, hands out leases, or copies where all slots are held.

Nothing runs in the background. Whoever asks for a batch takes in what has happened since, gives the free slots new work, and
waits if need be; of several who wait, one listens to the workers and tells the others.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import numpy as np

from shmgen._order import Batch
from shmgen._pool import Workers
from shmgen._ring import Ring
from shmgen._schedule import Piece, Schedule
from shmgen._wire import DONE, INTERRUPTED
from shmgen._worker import Task
from shmgen.errors import ClosedError, ShmgenError

COPY_AFTER = 1.0
"""Seconds that a batch waits for a slot to be given back before it is handed out as a copy."""

COLLECT_AFTER = COPY_AFTER / 4
"""Seconds after which Python's cyclic garbage is collected to that end."""

DRAIN_EVERY = 0.002
"""Seconds between two looks at what a framework has let go of, while a batch waits for a slot."""

Arrays = tuple[np.ndarray, ...]


@dataclass
class Counts:
    """What has been done so far; the fields are those of `shmgen.Stats`."""

    batches: int = 0
    samples: int = 0
    bytes: int = 0
    waited: float = 0.0
    copied: int = 0
    restarts: int = 0


class Delivery:
    """Delivers batches.

    Args:
        ring: where they are read into.
        workers: who reads them.
        schedule: who reads what, and where.
        rows: how many rows a batch has.
        prepare: fills what the workers don't of the batch in a slot, and returns the ids of its rows.
        upcoming: the batches that will be asked for next, as far as can be foreseen.

    Attributes:
        lock: guards this object and what ``upcoming`` reads.
        counts: what has been done.
        ended: why no more batches can be had; None while they can.
    """

    def __init__(
        self,
        ring: Ring,
        workers: Workers,
        schedule: Schedule,
        *,
        rows: Callable[[Batch], int],
        prepare: Callable[[int, Batch], list[object]],
        upcoming: Callable[[], Iterator[Batch]],
    ) -> None:
        self._ring = ring
        self._workers = workers
        self._schedule = schedule
        self._rows = rows
        self._prepare = prepare
        self._upcoming = upcoming
        self._owner = os.getpid()
        self.counts = Counts()
        self.ended: ShmgenError | None = None
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self._listener: int | None = None
        self._demanded: list[Batch] = []
        self._all_held = False
        self._interrupted = 0.0

    def read_ahead(self) -> None:
        """Give free slots the batches that will be asked for next."""
        with self.lock, self._bookkeeping():
            self._dispatch()

    def fetch(self, batch: Batch, drain: Callable[[], object] | None = None) -> Arrays:
        """The arrays of ``batch``, as soon as it has been read.

        Args:
            batch: which one.
            drain: makes a framework let go of the batches that it no longer needs; called while all slots are held.

        Raises:
            SampleError: a file of the batch can't be read; the batch may be asked for again.
            WorkerDied: a worker has died.
            ClosedError: `close` was called.
        """
        if os.getpid() != self._owner:
            raise ClosedError(f"it belongs to process {self._owner}: make another in process {os.getpid()}")
        called = time.monotonic()
        ready = None
        collected = False
        with self.lock:
            self._demanded.append(batch)
            try:
                while True:
                    self._check(called)
                    with self._bookkeeping():
                        self._dispatch()
                        slot = self._schedule.ready(batch)
                        if slot is not None:
                            if ready is None:
                                ready = time.monotonic()
                                self.counts.waited += ready - called
                            arrays = self._hand_out(slot, batch, patient=time.monotonic() < ready + COPY_AFTER)
                            if arrays is not None:
                                return arrays
                    if slot is None:
                        self._wait(None)
                    else:
                        collect = not collected and time.monotonic() > ready + COLLECT_AFTER
                        collected = collected or collect
                        self._let_go(drain, collect=collect)
                        self._wait(DRAIN_EVERY)
            finally:
                self._demanded.remove(batch)

    def close(self, reason: ShmgenError) -> None:
        """End the workers; whoever waits for a batch, or asks for one later, gets ``reason``."""
        with self.lock:
            self.ended = self.ended or reason
            self._changed.notify_all()
            self._ring.wake()
            # Who listens must leave the workers' descriptors before they are closed; a signal handler may be running in that call.
            while self._listener not in (None, threading.get_ident()):
                self._changed.wait()
            self._workers.stop()
            self._ring.close()

    def _hand_out(self, slot: int, batch: Batch, *, patient: bool) -> Arrays | None:
        """The arrays in ``slot``: a lease, or a copy if a slot has been waited for long enough; None to wait on."""
        schedule = self._schedule
        rows = self._rows(batch)
        if error := schedule.error(slot):
            schedule.free(slot)
            raise error
        if schedule.can_lease:
            schedule.lease(slot)
            arrays = self._ring.lease(slot, rows)
        elif self._all_held or not patient:
            # Whoever holds every batch need not wait each time anew.
            self._all_held = True
            arrays = tuple(array.copy() for array in self._ring.arrays(slot, rows))
            schedule.free(slot)
            self.counts.copied += 1
        else:
            return None
        self.counts.batches += 1
        self.counts.samples += rows
        self.counts.bytes += sum(array.nbytes for array in arrays)
        return arrays

    def _dispatch(self) -> None:
        """Take back the slots that were let go of, and have what is wanted read."""
        for slot in self._ring.released():
            self._schedule.free(slot)
            self._all_held = False
        ids: dict[int, list[object]] = {}
        for worker, piece in self._schedule.assign(chain(self._demanded, self._upcoming())):
            if piece.slot not in ids:
                ids[piece.slot] = self._prepare(piece.slot, piece.batch)
            self._workers.send(worker, self._task(piece, ids[piece.slot]))

    def _task(self, piece: Piece, ids: list[object]) -> Task:
        row_bytes = self._ring.layout.fields[0].row_bytes
        first = piece.slot * self._ring.layout.slot_bytes + self._ring.layout.offsets[0]
        return Task(first + piece.start * row_bytes, first + piece.stop * row_bytes, ids[piece.start : piece.stop])

    def _wait(self, timeout: float | None) -> None:
        """Wait until something has happened, at most ``timeout`` seconds. The lock is let go of meanwhile."""
        if self._listener is not None:
            self._changed.wait(timeout)
            return
        self._listener = threading.get_ident()
        self.lock.release()
        try:
            self._workers.wait(timeout)
        finally:
            self.lock.acquire()
            self._listener = None
            self._changed.notify_all()
        if self.ended is None:
            with self._bookkeeping():
                self._take_in()

    def _take_in(self) -> None:
        for worker, message in self._workers.heard():
            if message == DONE:
                self._schedule.done(worker)
            elif message is None:
                self.close(self._workers.death(worker))
                return
            elif message.startswith(INTERRUPTED):
                self._interrupted = float(message[len(INTERRUPTED) :])
            else:
                self._schedule.done(worker, pickle.loads(message))

    def _check(self, called: float) -> None:
        """Whether to go on with a request made at ``called``."""
        if self.ended is not None:
            raise type(self.ended)(*self.ended.args)
        if self._interrupted > called and threading.current_thread() is not threading.main_thread():
            # Ctrl-C is for the main thread, which may be waiting inside a framework for this very batch.
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                raise KeyboardInterrupt

    def _let_go(self, drain: Callable[[], object] | None, *, collect: bool) -> None:
        """Have those who hold batches without need let go of them. The lock is let go of meanwhile."""
        self.lock.release()
        try:
            if drain is not None:
                drain()
            if collect:
                gc.collect()  # a fit that was left early keeps its batches in a cycle
        finally:
            self.lock.acquire()

    @contextmanager
    def _bookkeeping(self) -> Iterator[None]:
        """An interrupt can strike between any two steps; where that leaves the books half written, no batch can be trusted."""
        try:
            yield
        except Exception:
            raise
        except BaseException as interrupt:
            self.close(ClosedError(f"{type(interrupt).__name__} struck amid its bookkeeping: make another"))
            raise
