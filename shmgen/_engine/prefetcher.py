"""Delivers batches: keeps the slots filled, waits for workers, and hands out leases.

A request for a batch handles the events since the last one, gives free slots new work, and waits if need be. If several threads
wait, one of them listens to the workers and wakes the others. While the trainer waits for no batch, requests only hand out, and a
thread in the background does the rest.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from weakref import WeakKeyDictionary

from shmgen._engine.background_thread import Background
from shmgen._engine.batch_planner import BatchPlanner
from shmgen._engine.error_log import ErrorLog, without_traceback
from shmgen._engine.front_end import FrontEnd
from shmgen._engine.held_slots import HeldSlots, SlotWait
from shmgen._engine.listening import Listening
from shmgen._engine.loader_state import LoaderState, SlotState, WorkerState
from shmgen._engine.supervisor import Supervisor
from shmgen._engine.workers import EventKind, Workers
from shmgen._memory.layout import BatchArrays
from shmgen._memory.records import WAITED_FOR
from shmgen._memory.ring import Ring
from shmgen._plan.activity import Counters
from shmgen._plan.autoscaler import Autoscaler
from shmgen._plan.meter import Meter
from shmgen._plan.passes import Pass, Passes
from shmgen._plan.sampler import BatchId
from shmgen._plan.schedule import Schedule, Slot
from shmgen._plan.stats import Stats
from shmgen.errors import ClosedError, ShmgenError, StartError, TooManyDamaged, WorkerDied

DRAIN_EVERY = 0.001
"""Seconds between two looks at what has been released, while a request waits for a slot."""

OVERSLEPT = 0.2
"""Seconds by which a wait may be late. If it is later, this process was stopped itself, and perhaps the workers with it."""

UNUSED_AFTER, MANY_UNUSED = 10.0, 4
"""Seconds without a batch after which a loader counts as unused; and the number of unused loaders that gives a warning."""

log = logging.getLogger("shmgen")

_open: WeakKeyDictionary[Prefetcher, None] = WeakKeyDictionary()
"""The prefetchers of all loaders that are open in this process."""

_warned_of_unused = threading.Lock()
"""Taken by the warning of unused loaders, and kept: a process gives it once."""


class Prefetcher:
    """Delivers batches; with ``reads_ahead``, they are read before they are requested.

    ``lock`` guards this object and ``passes``. ``ended`` says why there are no more batches.
    """

    def __init__(
        self,
        ring: Ring,
        workers: Workers,
        supervisor: Supervisor,
        schedule: Schedule,
        planner: BatchPlanner,
        passes: Passes,
        autoscaler: Autoscaler,
        front_end: FrontEnd,
        *,
        reads_ahead: bool,
    ) -> None:
        self._ring = ring
        self._workers = workers
        self._supervisor = supervisor
        self._schedule = schedule
        self._planner = planner
        self._passes = passes
        self._reads_ahead = reads_ahead
        self._autoscaler = autoscaler
        self._held = HeldSlots(ring, schedule, front_end)
        self.errors = ErrorLog(logs=front_end.hides_errors)
        self._owner = os.getpid()
        made = time.monotonic()
        self._meter = Meter(made, 0 if supervisor.target.workers else 1, ring.layout.sample_bytes)
        self.ended: ShmgenError | None = None
        self._listening = Listening(workers)
        self.lock = self._listening.lock
        # Requests that wait, the oldest first: since when, and for which batch.
        self._waiting: list[tuple[float, BatchId]] = []
        self._background = Background(self._keep_up_in_background)
        # Other threads may open and close loaders meanwhile: `keyrefs` is a list, made at once.
        others = [other for ref in _open.keyrefs() if (other := ref()) is not None]
        unused = sum(made > other._meter.last + UNUSED_AFTER for other in others)
        if unused >= MANY_UNUSED and _warned_of_unused.acquire(blocking=False):
            log.warning(
                "%d loaders are open that have given no batch for %g seconds or more, and hold shared memory and descriptors: "
                "close() those that are no longer needed, or use them in a with statement",
                unused,
                UNUSED_AFTER,
            )
        _open[self] = None

    def __repr__(self) -> str:
        return f"{len(self._workers.pids)} workers, {f'ended: {self.ended}' if self.ended else repr(self._schedule)}"

    @property
    def stats(self) -> Stats:
        with self._lock_if_ours():
            workers, reads = self._supervisor.target
            return self._meter.stats(
                self._workers.time_spent(),
                grown=self._held.grown,
                restarts=self._supervisor.restarts,
                workers=workers,
                reads=reads,
                slots=len(self._schedule.slots),
                auto=self._autoscaler.scaled,
                decisions=tuple(self._autoscaler.decisions),
            )

    @property
    def state(self) -> LoaderState:
        with self.entered():
            slots, workers = [], []
            if self.ended is None:
                self._schedule.release(self._ring.released())
                slots = [SlotState(slot.state.value, *(slot.batch or ())) for slot in self._schedule.slots]
                for worker, pid in self._workers.pids.items():
                    begun = [claim for claim in self._supervisor.claims(worker).values() if claim.begun]
                    workers.append(WorkerState(pid, tuple(self._planner.ids(claim.ticket)[claim.row or 0] for claim in begun)))
            return LoaderState(
                self._passes.epoch, tuple(slots), tuple(workers), len(self._waiting), closed=self.ended is not None
            )

    def entered(self) -> threading.RLock:
        """The lock; refused in a fork of the process that made this."""
        if os.getpid() != self._owner:
            raise ClosedError(f"it belongs to process {self._owner}: make another in process {os.getpid()}")
        return self.lock

    def _lock_if_ours(self) -> AbstractContextManager[object]:
        """The lock, except in a fork of the process that made this: a thread that is not there may hold it."""
        return self.lock if os.getpid() == self._owner else nullcontext()

    def fetch(self, index: int, of: Pass | None = None) -> BatchArrays:
        """The arrays of the batch that ``index`` means in a pass, as soon as it has been read.

        A batch that is there is handed out before anything else is done. Without a pass, the request is by hand. A batch whose
        sample can't be read may be requested again.
        """
        called = time.monotonic()
        with self.lock if os.getpid() == self._owner else self.entered():
            batch = None
            try:
                batch = self._passes.deal(index, of)
                if self._meter.epoch != batch.epoch:
                    self._meter.begin_epoch(batch.epoch, called, self.stats)
                slot = None if self.ended is not None else self._schedule.hand_out(batch)
                if slot is None or slot.error is not None:
                    slot = self._wait_for(batch, called, of, slot)
                if of is not None:
                    of.got(batch)
                self._listening.wake()  # another request may wait for this slot
                arrays = self._ring.lease(slot.number, slot.rows)
                if self._planner.weights:
                    self._planner.weigh(batch, arrays)
                if self._supervisor.deaths:
                    self._supervisor.deaths.forget(batch)
                now = time.monotonic()
                self._meter.count_batch(slot.rows, len(slot.replaced), now, self._workers.time_spent)
                is_due = self._schedule.runs_low or now >= self._autoscaler.look_at
                if is_due and not (self._schedule.is_unhurried and self._background.request()):
                    self._keep_up()
                return arrays
            except BaseException as error:
                self._on_error(error, batch, of)
                if isinstance(error, ShmgenError):
                    # In the traceback there may be a frame that holds the error: a cycle, with the ring in it.
                    raise error.with_traceback(None) from error.__cause__
                raise

    def _on_error(self, error: BaseException, batch: BatchId | None, of: Pass | None) -> None:
        """A request ends in ``error``.

        An error that the request itself raised, or that interrupted one of its waits, leaves the state consistent. Anything else,
        such as an exception from a signal's handler, may have struck at any point, so the loader is closed.
        """
        if batch is None:
            if type(error) is IndexError:  # there is no such batch, and none has been dealt
                return
        else:
            if of is not None:
                of.failed(batch)
            # It was read for this request alone: a later request gets what the files hold by then.
            self._schedule.cancel(batch)
        if isinstance(error, TooManyDamaged | WorkerDied | StartError):
            self.close(without_traceback(error))
        elif error is not self._listening.clean_error:
            self.close(ClosedError(f"{type(error).__name__} interrupted it while its state was inconsistent: make another"))
        if batch is not None and isinstance(error, Exception) and not isinstance(error, ClosedError):
            # After the end, every request fails for the same reason, which is logged once.
            self.errors.record(batch if self.ended is None else None, error)
        self._listening.clean_error = None

    def _wait_for(self, batch: BatchId, called: float, of: Pass | None, slot: Slot | None) -> Slot:
        """The slot of ``batch``, once it has been read; ``slot`` if that is known to hold an error."""
        self._waiting.append((called, batch))
        if of is not None:
            of.awaits(batch)
        try:
            slot = slot or self._read(batch, called)
            if slot.error is not None:
                raise self._listening.clean(slot.error)
            return slot
        finally:
            self._waiting.remove((called, batch))
            self._listening.wake()  # another request may wait for a slot or an event that this one has taken

    def _read(self, batch: BatchId, called: float) -> Slot:
        slot_wait = SlotWait(self._held)
        self._check(called)
        # There is room to read it ahead, but its request could not be foreseen.
        late = self._reads_ahead and not self._schedule.holds(batch) and self._schedule.can_lease
        if self._held.are_many():
            self._push(0)  # before all are held, so that some are filled ahead
            self._check(called)
        self.read_ahead()
        while (slot := self._schedule.hand_out(batch)) is None:
            if not self._schedule.holds(batch):
                self.read_ahead()
            now = time.monotonic()
            if self._schedule.can_lease:
                self._wait_for_workers(batch, now, late=late)
            elif (generation := slot_wait.next_push(now)) is None:
                self._grow()
            else:
                self._push(generation)
                if not self._ring.has_released:
                    self._wait(DRAIN_EVERY, now)
                self._meter.slot_wait += time.monotonic() - now
            self._check(called)
            if slot_wait.since is not None:
                self.read_ahead()
            self._steer(time.monotonic())
        slot_wait.end()
        return slot

    def _wait_for_workers(self, batch: BatchId, now: float, *, late: bool) -> None:
        """Wait until workers have read more, from ``now`` on."""
        for slot in self._schedule.waited_for(batch):
            self._ring.sheets[slot.number][WAITED_FOR] = True
        # A ticket that was done before this mark was set did not ring, so its report is fetched now.
        if reports := self._workers.poll_reports():
            self._listening.wake()  # it may wait for one of these reports
            self._supervisor.handle(reports)
            return
        self._wait(math.inf, now)
        waited = time.monotonic() - now
        self._meter.batch_wait += waited
        self._meter.late_wait += waited * late

    def _keep_up(self) -> None:
        """Do what is due after a batch was handed out. The next request raises an error that ends the run."""
        try:
            if self._schedule.runs_low:
                if self._held.are_many(needed=1):
                    self._push(0)
                self._handle_events()
                if self.ended is None:
                    self.read_ahead()
            self._steer(time.monotonic())
        except (TooManyDamaged, WorkerDied, StartError) as end:
            self.close(without_traceback(end))

    def _keep_up_in_background(self) -> bool:
        """As `_keep_up`, in a thread that nothing interrupts; whether there may be more to do."""
        with self.lock:
            try:
                if self.ended is None:
                    self._keep_up()
            except Exception as error:
                log.exception("reading ahead failed")
                self.close(ClosedError(f"reading ahead failed: {type(error).__name__}: {error}"))
            return self.ended is None

    def close(self, reason: ShmgenError) -> None:
        """End the workers; requests that wait, and later ones, raise ``reason``."""
        _open.pop(self, None)
        is_ours = os.getpid() == self._owner
        with self._lock_if_ours():
            self.ended = self.ended or reason
            if is_ours:  # a fork only gives up its copies of the descriptors
                self._background.end()
                self._listening.end()  # before descriptors are closed
            self._workers.stop()
            self._ring.close()

    def read_ahead(self) -> None:
        """Take back released slots, and have the next batches read; with the lock held."""
        self._schedule.release(self._ring.released())
        demanded = [batch for _, batch in self._waiting]
        upcoming = self._passes.upcoming() if self._reads_ahead else ()
        workers, reads = self._supervisor.target
        if slots := self._schedule.assign(demanded, upcoming, workers * reads):
            self._planner.prepare(slots)
            for slot in slots:
                self._ring.prepare_lease(slot.number, slot.rows)
        self._supervisor.give_out()

    def _grow(self) -> None:
        try:
            self._held.grow()
        except OSError as error:
            if type(error) is OSError:  # no memory; a subclass may come from a signal's handler
                self._listening.clean(error)
            raise

    def _push(self, generation: int) -> None:
        self._listening.unlocked(lambda: self._held.push(generation))

    def _wait(self, timeout: float, now: float) -> None:
        """Wait for something to happen, at most ``timeout`` seconds, with the lock free."""
        if self._listening.listener is not None:
            self._listening.sleep(timeout)
            return
        until = max(now, min(now + timeout, self._supervisor.next_deadline))
        self._listening.listen(until - now)
        self._handle_events()
        late = time.monotonic()
        overslept = late > until + OVERSLEPT
        if self.ended is None and (overslept or late >= self._supervisor.next_deadline):
            self._supervisor.check_deadlines(late, self._waiting[0][0], overslept=overslept)

    def _steer(self, now: float) -> None:
        """Have as many workers, with as many reads in flight, as the autoscaler asks for, if it is time to ask it."""
        scaler, supervisor, rows, epoch = self._autoscaler, self._supervisor, self._schedule.rows_done, self._meter.epoch
        if epoch is None or self.ended is not None or not scaler.is_due(now, rows):
            return
        busy, cpu, *_ = self._workers.time_spent()
        counters = Counters(now, rows, self._meter.batch_wait, busy, cpu, supervisor.target, supervisor.started)
        target = scaler.see(epoch, counters)
        if target != supervisor.target:
            if not supervisor.resize(target):
                scaler.look_at = math.inf
            self._meter.set_workers(now, supervisor.started)

    def _handle_events(self) -> None:
        if self.ended is not None:
            return
        events = self._workers.poll_events()
        self._listening.wake()  # it may wait for one of these events, and polling has cleared the bell
        if events:
            self._supervisor.handle(events)
            if any(event.what in (EventKind.READY, EventKind.DIED) for event in events):
                self._meter.set_workers(time.monotonic(), self._supervisor.started)

    def _check(self, called: float) -> None:
        """Raise if a request made at ``called`` must not go on."""
        if self.ended is not None:
            raise self._listening.clean(without_traceback(self.ended))
        if (failure := self._supervisor.failure) is not None:
            self._supervisor.failure = None
            raise self._listening.clean(failure)
        # Ctrl-C interrupts the main thread, but that may be waiting inside a framework for this batch.
        if (
            self._supervisor.interrupted_at > called
            and threading.current_thread() is not threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            raise self._listening.clean(KeyboardInterrupt())
