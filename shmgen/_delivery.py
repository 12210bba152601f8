"""Delivers batches by name: keeps the slots filled, waits for workers, hands out leases, or copies where all slots are held.

Nothing runs in the background. Whoever asks for a batch takes in what has happened since, gives free slots new work, and waits if
need be; of several who wait, one listens to the workers and tells the others.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, TypeVar

from shmgen._filler import Task
from shmgen._layout import Arrays
from shmgen._order import Batch
from shmgen._pool import What, Workers
from shmgen._ring import Ring
from shmgen._schedule import Schedule
from shmgen.errors import ClosedError, ShmgenError

COPY_AFTER = 1.0
"""Seconds that a batch waits for a slot to be let go of before it is handed out as a copy; half of it after each wait in vain."""

COPY_AFTER_LEAST = 0.02
"""Seconds that it waits at least."""

COLLECT_AFTER = 0.25
"""Seconds after which garbage is collected, in case that holds the slots."""

LEAVE_WITHIN = 1.0
"""Seconds that whoever waits for a batch has to leave when a delivery is closed."""

DRAIN_EVERY = 0.002
"""Seconds between two looks at what has been let go of, while a batch waits for a slot."""

Drain = Callable[[], object]

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class Counts:
    """What has been done so far; `shmgen.Stats` explains the fields."""

    batches: int = 0
    samples: int = 0
    bytes: int = 0
    waited: float = 0.0
    copied: int = 0
    restarts: int = 0


def _bookkeeping(method: Callable[Concatenate[Delivery, P], R]) -> Callable[Concatenate[Delivery, P], R]:
    """``method`` writes the books. An interrupt that strikes in its midst leaves them wrong, which ends the delivery."""

    def whole(self: Delivery, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        except Exception:
            raise
        except BaseException as interrupt:
            self.close(ClosedError(f"{type(interrupt).__name__} struck amid its bookkeeping: make another"))
            raise

    return whole


class Delivery:
    """Delivers batches.

    Args:
        ring: where they are read into.
        workers: who reads them.
        schedule: who reads what, and where.
        rows: how many rows a batch has.
        prepare: fills what the workers don't of the batch in a slot, and returns the ids of its rows.
        holds: whether a batch that has been read is still what it should be; if not, it is read again.
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
        holds: Callable[[Batch], bool],
        upcoming: Callable[[], Iterator[Batch]],
    ) -> None:
        self._ring = ring
        self._workers = workers
        self._schedule = schedule
        self._rows = rows
        self._prepare = prepare
        self._holds = holds
        self._upcoming = upcoming
        self._owner = os.getpid()
        self.counts = Counts()
        self.ended: ShmgenError | None = None
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self._listener: int | None = None
        self._listens_to: int | None = None
        self._demanded: list[Batch] = []
        self._all_held = False
        self._patience = COPY_AFTER
        self._interrupted = 0.0

    def read_ahead(self) -> None:
        """Have workers read the batches that will be asked for next."""
        with self.lock:
            self._dispatch()

    def fetch(self, batch: Batch, drain: Drain | None = None) -> Arrays:
        """The arrays of ``batch``, as soon as it has been read.

        Args:
            batch: which one.
            drain: makes a framework let go of the batches that it no longer needs; called while all slots are held.

        Raises:
            SampleError: a file of the batch can't be read; the batch may be asked for again.
            WorkerDied: a worker has died.
            ClosedError: `close` was called.
        """
        called = time.monotonic()
        starved_from: float | None = None
        collected = False
        with self.lock:
            self._demanded.append(batch)
            try:
                if self._schedule.ready(batch) is not None:
                    self._take_in()  # who need not wait would not hear of a worker's death
                self._check(called)
                self._dispatch()
                while (arrays := self._hand_out(batch)) is None:
                    if not self._schedule.holds(batch):
                        self._dispatch()
                    now = time.monotonic()
                    if self._schedule.can_lease or self._all_held:
                        self._wait(None, batch)
                        self.counts.waited += time.monotonic() - now
                    else:
                        # Whoever holds all the slots may need but a push to let go; if that does not help, copies must do.
                        starved_from = starved_from or now
                        if now > starved_from + self._patience:
                            self._resort_to_copies()
                        else:
                            due = not collected and now > starved_from + COLLECT_AFTER
                            collected = collected or due
                            self._push(drain, collect=due)
                            self._wait(DRAIN_EVERY, batch)
                    self._check(called)
                    if starved_from is not None:
                        self._dispatch()
                if starved_from is not None and not self._all_held:
                    self._patience = min(COPY_AFTER, 2 * self._patience)
                return arrays
            finally:
                self._demanded.remove(batch)

    def close(self, reason: ShmgenError) -> None:
        """End the workers; whoever waits for a batch, or asks for one later, gets ``reason``."""
        if os.getpid() != self._owner:
            # A fork of the owner: its lock may be held by a thread that is not here. It gives up its copies of the descriptors.
            self.ended = self.ended or reason
            self._workers.stop()
            self._ring.close()
            return
        with self.lock:
            self.ended = self.ended or reason
            self._changed.notify_all()
            self._workers.wake()
            # Who listens must have left before descriptors are closed. It is this very thread where a signal handler calls.
            deadline = time.monotonic() + LEAVE_WITHIN
            while self._listener not in (None, threading.get_ident()) and time.monotonic() < deadline:
                self._changed.wait(deadline - time.monotonic())
            self._workers.stop()
            self._ring.close()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Hold the lock; refused in a fork of the process that made this."""
        if os.getpid() != self._owner:
            raise ClosedError(f"it belongs to process {self._owner}: make another in process {os.getpid()}")
        with self.lock:
            yield

    @_bookkeeping
    def _dispatch(self) -> None:
        """Take back the slots that were let go of, and have what is wanted read."""
        for slot in self._ring.released():
            self._schedule.free(slot)
            self._all_held = False
        pieces = self._schedule.assign(self._demanded, self._upcoming())
        if not pieces:
            return
        ids: dict[int, list[object]] = {}
        tasks: defaultdict[int, list[Task]] = defaultdict(list)
        for worker, piece in pieces:
            if piece.slot not in ids:
                ids[piece.slot] = self._prepare(piece.slot, piece.batch)
            slot, batch, start, stop = piece
            position = batch.number * self._ring.layout.batch_size + start
            tasks[worker].append(Task(slot, start, stop, batch.epoch, position, ids[slot][start:stop]))
        for worker, his in tasks.items():
            self._workers.send(worker, his)

    @_bookkeeping
    def _hand_out(self, batch: Batch) -> Arrays | None:
        """The arrays of ``batch``; None if it is not there yet, or there is no slot that may be leased."""
        schedule = self._schedule
        slot = schedule.ready(batch)
        if slot is None:
            return None
        if not self._holds(batch):
            schedule.discard(batch)
            return None
        if error := schedule.error(slot):
            schedule.free(slot)
            raise error
        rows = self._rows(batch)
        if schedule.can_lease:
            schedule.lease(slot)
            arrays = self._ring.lease(slot, rows)
        elif self._all_held:
            arrays = tuple(array[:rows].copy() for array in self._ring.arrays(slot))
            schedule.free(slot)
            self.counts.copied += 1
        else:
            return None
        self.counts.batches += 1
        self.counts.samples += rows
        self.counts.bytes += rows * self._ring.layout.sample_bytes
        return arrays

    @_bookkeeping
    def _resort_to_copies(self) -> None:
        """All slots are held for good, it seems: until one is let go of, batches are read into a spare one and copied from it."""
        if not self._schedule.has_spare:
            self._ring.grow()
            self._schedule.add_spare()
        self._all_held = True
        self._patience = max(COPY_AFTER_LEAST, self._patience / 2)

    def _push(self, drain: Drain | None, *, collect: bool) -> None:
        """Have those who hold batches without need let go of them. The lock is free meanwhile."""
        with self._unlocked():
            if drain is not None:
                drain()
            if collect:
                gc.collect()  # a fit that was left early keeps its batches in a cycle

    def _wait(self, timeout: float | None, batch: Batch) -> None:
        """Wait until something has happened that may bring ``batch``, at most ``timeout`` seconds. The lock is free meanwhile."""
        if self._listener is not None:
            if self._listens_to is not None:
                self._workers.wake()  # to listen to all
            self._changed.wait(timeout)
            return
        # Who waits alone need not be woken, and take a processor from the workers, before the last piece of the batch is there.
        self._listens_to = self._schedule.last_to_finish(batch) if len(self._demanded) == 1 else None
        try:
            self._listener = threading.get_ident()
            with self._unlocked():
                self._workers.wait(timeout, self._listens_to)
        finally:
            self._listener = None
            self._changed.notify_all()
        self._take_in()

    @contextmanager
    def _unlocked(self) -> Iterator[None]:
        """Let go of the lock for a while."""
        try:
            self.lock.release()
            yield
        finally:
            if not self.lock._is_owned():  # type: ignore[attr-defined] # an interrupt may strike on either side of the release
                self.lock.acquire()

    @_bookkeeping
    def _take_in(self) -> None:
        """Note what workers have said."""
        if self.ended is not None:
            return
        heard = self._workers.heard()
        if heard and self._listener is not None:
            self._workers.wake()  # it may have been waiting for just this
        for worker, what, detail in heard:
            if what is What.DONE:
                self._schedule.done(worker)
            elif what is What.FAILED:
                self._schedule.done(worker, detail)
            elif what is What.DROPPED:
                self._schedule.drop(worker)
            elif what is What.INTERRUPTED:
                self._interrupted = detail
            else:
                self.close(detail)
                return

    def _check(self, called: float) -> None:
        """Whether to go on with a request made at ``called``."""
        if self.ended is not None:
            raise type(self.ended)(*self.ended.args)
        # Ctrl-C is for the main thread to act on; but it may be waiting inside a framework for this very batch.
        elsewhere = threading.current_thread() is not threading.main_thread()
        if self._interrupted > called and elsewhere and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            raise KeyboardInterrupt
