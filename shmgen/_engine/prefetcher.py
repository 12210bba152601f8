"""Delivers batches: keeps the slots filled, waits for workers, and hands out leases.

No thread runs in the background. A request for a batch handles the events since the last one, gives free slots new work, and
waits if need be. If several threads wait, one of them listens to the workers and wakes the others.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from copy import copy
from typing import TypeVar

from shmgen._engine.batch_builder import BatchBuilder
from shmgen._engine.front_end import NO_FRAMEWORK, FrontEnd
from shmgen._engine.meter import Meter
from shmgen._engine.state import LoaderState, SlotState, WorkerState
from shmgen._engine.supervisor import Supervisor
from shmgen._engine.workers import EventKind, Workers
from shmgen._memory.layout import Arrays
from shmgen._memory.limit_errors import open_loaders
from shmgen._memory.ring import Ring
from shmgen._plan.autoscaler import Autoscaler, Progress
from shmgen._plan.sampler import BatchId
from shmgen._plan.schedule import Schedule, State
from shmgen._plan.stats import Stats
from shmgen.errors import ClosedError, ShmgenError, StartError, TooManyDamaged, WorkerDied

GROW_AFTER = 1.0
"""Seconds that a batch waits for a slot to be released before the ring grows; half of that after each vain wait."""

GROW_AFTER_LEAST = 0.02
"""The least number of seconds that it waits."""

GROW_BY = 4
"""The ring grows by one slot for every so many that it has. So even who holds a whole epoch waits only a few times."""

COLLECT_AFTER = 0.25
"""Seconds after which garbage is collected, in case it holds the slots."""

LEAVE_WITHIN = 1.0
"""Seconds that waiting threads have to leave when the prefetcher is closed."""

DRAIN_EVERY = 0.001
"""Seconds between two looks at what has been released, while a batch waits for a slot."""

LONGEST_WAIT = 86_400.0
"""Seconds; the kernel counts milliseconds in 31 bits."""

OVERSLEPT = 0.2
"""Seconds by which a wait may be late. If it is later, this process was stopped itself, and perhaps the workers with it."""

MAX_SAID = 1000
"""How many logged errors are remembered."""

ErrorT = TypeVar("ErrorT", bound=Exception)

log = logging.getLogger("shmgen")


class Prefetcher:
    """Delivers batches.

    Args:
        ring: where they are read into.
        workers: the workers that read them.
        supervisor: supervises the workers.
        schedule: which slot holds which batch.
        builder: knows what batches consist of.
        upcoming: the batches that will be asked for next, as far as that is known.
        autoscaler: decides on the numbers of workers and reads; None if both are fixed.
        front_end: knows the framework; it is asked to release batches while all slots are held.

    Attributes:
        lock: guards this object and what ``upcoming`` reads.
        ended: why there are no more batches; None while there are.
        error: the last error that a request ended in, without its traceback; None if there was none. A plain close is none.
    """

    def __init__(
        self,
        ring: Ring,
        workers: Workers,
        supervisor: Supervisor,
        schedule: Schedule,
        builder: BatchBuilder,
        upcoming: Callable[[], Iterator[BatchId]],
        autoscaler: Autoscaler | None,
        front_end: FrontEnd = NO_FRAMEWORK,
    ) -> None:
        self._ring = ring
        self._workers = workers
        self._supervisor = supervisor
        self._schedule = schedule
        self._builder = builder
        self._upcoming = upcoming
        self._autoscaler = autoscaler
        self._decisions = [] if autoscaler is None else autoscaler.decisions
        self._front_end = front_end
        self._owner = os.getpid()
        self._meter = Meter(time.monotonic(), 0 if workers.are_processes else 1)
        self.ended: ShmgenError | None = None
        self.error: Exception | None = None
        self._said: set[tuple[BatchId | None, str]] = set()
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self._listener: int | None = None
        # Requests that wait, the oldest first: since when, and for which batch.
        self._waiting: list[tuple[float, BatchId]] = []
        self._patience = GROW_AFTER
        self._harmless: BaseException | None = None
        open_loaders.add(self)

    @property
    def stats(self) -> Stats:
        """What has been done so far."""
        with self.lock:
            return self._meter.stats(
                self._workers.use(),
                restarts=self._supervisor.restarts,
                workers=self._supervisor.workers if self._workers.are_processes else 0,
                reads=self._supervisor.reads,
                slots=len(self._schedule.slots),
                auto=() if self._autoscaler is None else self._autoscaler.scaled,
                decisions=tuple(self._decisions),
            )

    def state(self, epoch: int) -> LoaderState:
        """What is done at this moment; ``epoch`` is that of the iteration. To be called with the lock held."""
        closed = self.ended is not None
        slots, workers = [], []
        if not closed:
            for number, slot in enumerate(self._schedule.slots):
                if slot.state is State.LEASED and not self._ring.is_held(number):
                    slots.append(SlotState("free"))  # which the next request takes note of
                else:
                    epoch_of, batch = slot.batch or (None, None)
                    slots.append(SlotState(slot.state.value, epoch_of, batch))
            for worker, pid in self._workers.pids.items():
                begun = [claim for claim in self._supervisor.claims(worker).values() if claim.begun]
                reading = [self._builder.id(claim.ticket.batch, claim.ticket.start + (claim.row or 0)) for claim in begun]
                workers.append(WorkerState(pid, tuple(reading)))
        return LoaderState(epoch, tuple(slots), tuple(workers), len(self._waiting), closed)

    def read_ahead(self) -> None:
        """Have workers read the batches that will be asked for next."""
        with self.lock:
            self._dispatch()

    def entered(self) -> threading.RLock:
        """The lock; refused in a fork of the process that made this."""
        if os.getpid() != self._owner:
            raise ClosedError(f"it belongs to process {self._owner}: make another in process {os.getpid()}")
        return self.lock

    def fetch(self, batch: BatchId) -> Arrays:
        """The arrays of ``batch``, as soon as it has been read.

        Args:
            batch: which one.

        Raises:
            SampleError: a file of the batch can't be read; the batch may be asked for again.
            TooManyDamaged: more samples are damaged than are tolerated.
            WorkerDied: workers can't start, or die again and again.
            ClosedError: `close` was called.
        """
        called = time.monotonic()
        with self.lock:
            if self._meter.begins(batch.epoch):
                self._meter.begin(batch.epoch, called, self.stats)
            self._waiting.append((called, batch))
            try:
                arrays = self._fetch(batch, called)
                now = time.monotonic()
                if self._meter.delivered(now):
                    self._meter.start(self._workers.use())
                self._steer(batch.epoch, now)
                return arrays
            except (TooManyDamaged, WorkerDied, StartError) as end:
                self.close(_bare(end))
                self._record_error(batch, end)
                # In the traceback there may be a frame that holds the error: a cycle, with the ring in it.
                raise end.with_traceback(None) from end.__cause__
            except BaseException as error:
                if isinstance(error, Exception) or error is self._harmless:
                    # It was read for this request alone: a later request wants what the files hold by then.
                    self._schedule.discard(batch)
                    if isinstance(error, Exception):
                        self._record_error(batch, error)
                    if isinstance(error, ShmgenError):
                        raise error.with_traceback(None) from error.__cause__
                else:
                    # An interrupt outside of a wait may have left inconsistent state.
                    self.close(
                        ClosedError(f"{type(error).__name__} interrupted it while its state was inconsistent: make another")
                    )
                raise
            finally:
                self._waiting.remove((called, batch))
                if self._waiting and self._listener is not None:
                    self._workers.wake()  # what others wait for may depend on the slot that this one took, or freed

    def _fetch(self, batch: BatchId, called: float) -> Arrays:
        starved_from: float | None = None
        collected = grown = late = False
        if self._schedule.ready(batch) is not None:
            self._handle_events()  # a request that need not wait would not notice a worker's death
        else:
            late = self._is_late(batch)
        if self._ring.held > self._ring.slots // 2:
            self._push(0)  # once all were held, none would have been filled ahead
        self._check(called)
        self._dispatch()
        while (arrays := self._hand_out(batch)) is None:
            if not self._schedule.holds(batch):
                self._dispatch()
            now = time.monotonic()
            if self._schedule.can_lease:
                self._wait(math.inf, now)
                waited = time.monotonic() - now
                self._meter.batch_wait += waited
                self._meter.late_wait += waited * late
            else:
                # Whoever holds all the slots may only need a push to let go of some; if that does not help, there must be more.
                starved_from = starved_from or now
                if now > starved_from + self._patience:
                    self._grow()
                    grown = True
                else:
                    due = not collected and now > starved_from + COLLECT_AFTER
                    collected = collected or due
                    self._push(2 if due else 0)
                    if not self._ring.has_released:
                        self._wait(DRAIN_EVERY, now)
                    self._meter.slot_wait += time.monotonic() - now
            self._check(called)
            if starved_from is not None:
                self._dispatch()
            self._steer(batch.epoch, time.monotonic())
        if starved_from is not None and not grown:
            self._patience = min(GROW_AFTER, 2 * self._patience)
        return arrays

    def _is_late(self, batch: BatchId) -> bool:
        """Whether there was room to read ``batch`` ahead, but nobody knew that it would be asked for."""
        return self._workers.are_processes and not self._schedule.holds(batch) and self._schedule.can_lease

    def _record_error(self, batch: BatchId, error: Exception) -> None:
        """Keep ``error``, in which a request for ``batch`` ends; log it where a framework hides it in a traceback of its own."""
        if isinstance(error, ClosedError):
            return
        self.error = _bare(error)
        if not self._front_end.hides_errors:
            return
        text = _text(error)
        # The same failure of the same batch is logged once; after the end, every request fails for the same reason.
        said = (batch if self.ended is None else None, text)
        if said not in self._said:
            if len(self._said) == MAX_SAID:
                self._said.clear()
            self._said.add(said)
            log.error("%s", text)

    def close(self, reason: ShmgenError) -> None:
        """End the workers; requests that wait, and later ones, raise ``reason``."""
        open_loaders.discard(self)
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
            # The listening thread must have left before descriptors are closed. It is this thread if a signal handler calls.
            deadline = time.monotonic() + LEAVE_WITHIN
            while self._listener not in (None, threading.get_ident()) and time.monotonic() < deadline:
                self._changed.wait(deadline - time.monotonic())
            self._workers.stop()
            self._ring.close()

    def _dispatch(self) -> None:
        """Take back released slots, and have the next batches read."""
        for slot in self._ring.released():
            self._schedule.free(slot)
        demanded = [batch for _, batch in self._waiting]
        for slot, batch in self._schedule.assign(demanded, self._upcoming()):
            self._builder.prepare(slot, batch)
        self._supervisor.give_out()

    def _hand_out(self, batch: BatchId) -> Arrays | None:
        """The arrays of ``batch``; None if it is not ready."""
        schedule = self._schedule
        slot = schedule.ready(batch)
        if slot is None:
            return None
        if error := schedule.error(slot):
            schedule.free(slot)
            raise error
        rows = schedule.lease(slot)
        arrays = self._ring.lease(slot, rows)
        self._meter.deliver(rows, rows * self._ring.layout.sample_bytes, self._builder.delivered(batch, arrays))
        self._supervisor.delivered(batch)
        return arrays

    def _grow(self) -> None:
        """All slots seem to be held for good: have more."""
        added = self._ring.grow(max(1, self._ring.slots // GROW_BY))
        self._schedule.add_slots(added)
        if not self._meter.grown:
            log.info(
                "all %d slots are held, by batches that were handed out: there are more from now on, of %s bytes each",
                self._ring.slots - added,
                f"{self._ring.layout.slot_bytes:,}",
            )
        self._meter.grown += added
        self._patience = max(GROW_AFTER_LEAST, self._patience / 2)

    def _push(self, generation: int) -> None:
        """Make the framework, and the garbage of so many generations, let go of batches that nobody needs.

        JAX lets go of what it has done with whenever garbage is collected: of the youngest generation alone, that takes
        microseconds. An older one may hold the cycle in which ``fit`` leaves its batches when it is left early.
        """

        def push() -> None:
            self._front_end.release()
            gc.collect(generation)

        self._unlocked(push)

    def _wait(self, timeout: float, now: float) -> None:
        """Wait for something to happen, at most ``timeout`` seconds, with the lock free."""
        if self._listener is not None:
            try:
                self._changed.wait(min(timeout, LONGEST_WAIT))
            except BaseException as error:
                self._harmless = error
                raise
            return
        until = max(now, min(now + timeout, self._supervisor.next_deadline))
        limit = None if until == math.inf else min(until - now, LONGEST_WAIT)
        try:
            self._listener = threading.get_ident()
            self._unlocked(lambda: self._workers.wait(limit))
        finally:
            self._listener = None
            self._changed.notify_all()
        self._handle_events()
        late = time.monotonic()
        overslept = late > until + OVERSLEPT
        if self.ended is None and (overslept or late >= self._supervisor.next_deadline):
            self._supervisor.check_deadlines(late, self._waiting[0][0], overslept=overslept)

    def _steer(self, epoch: int, now: float) -> None:
        """Have as many workers, with as many reads in flight, as the autoscaler asks for."""
        scaler, supervisor = self._autoscaler, self._supervisor
        if scaler is None or self.ended is not None or not scaler.is_due(now, supervisor.rows):
            return
        busy, cpu, *_ = self._workers.use()
        waited, crew = self._meter.batch_wait, (supervisor.workers, supervisor.ready, supervisor.reads)
        target = scaler.see(epoch, Progress(now, supervisor.rows, waited, busy, cpu, *crew))
        if not supervisor.resize(*target):
            self._autoscaler = None
        self._meter.resized(now, supervisor.ready if self._workers.are_processes else 1)

    def _unlocked(self, act: Callable[[], None]) -> None:
        """Call ``act`` while the lock is free; an interrupt does no harm there."""
        try:
            self.lock.release()
            act()
        except BaseException as error:
            self._harmless = error
            raise
        finally:
            if not self.lock._is_owned():  # type: ignore[attr-defined] # an interrupt may strike on either side of the release
                self.lock.acquire()

    def _handle_events(self) -> None:
        """Handle what workers have reported."""
        if self.ended is not None:
            return
        events = self._workers.poll_events()
        if events:
            if self._listener is not None:
                self._workers.wake()  # it may have been waiting for just this
            self._supervisor.handle(events)
            if any(event.what in (EventKind.READY, EventKind.DIED) for event in events):
                self._meter.resized(time.monotonic(), self._supervisor.ready)

    def _check(self, called: float) -> None:
        """Raise if a request made at ``called`` must not go on."""
        if self.ended is not None:
            raise type(self.ended)(*self.ended.args)
        # Ctrl-C interrupts the main thread, but that may be waiting inside a framework for this batch.
        if (
            self._supervisor.interrupted > called
            and threading.current_thread() is not threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            raise KeyboardInterrupt


def _bare(error: ErrorT) -> ErrorT | ShmgenError:
    """``error`` without traceback and cause: if it is kept, their frames, and the ring with them, must not be."""
    try:
        return copy(error)
    except Exception:  # a class of the user's may not take the arguments that it passed on
        return ShmgenError(_text(error))


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, ShmgenError | OSError) else f"{type(error).__name__}: {error}"
