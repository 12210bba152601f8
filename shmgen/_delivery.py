"""Delivers batches by name: keeps the slots filled, waits for workers, hands out leases, or copies where all slots are held.

Nothing runs in the background. Whoever asks for a batch takes in what has happened since, gives free slots new work, and waits if
need be; of several who wait, one listens to the workers and tells the others.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from shmgen._filler import Task
from shmgen._layout import Arrays
from shmgen._order import Batch
from shmgen._pool import KILL_GRACE, What, Workers
from shmgen._ring import Ring
from shmgen._samples import Samples
from shmgen._schedule import Piece, Schedule
from shmgen._source import IDLE, row_of
from shmgen.errors import ClosedError, SampleError, ShmgenError, StartError, TooManyDamaged, WorkerDied

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

DEATHS = 3
"""A row that so many workers died of is damaged; so many that die in a row without having done anything end the delivery."""

OVERSLEPT = 1.0
"""Seconds that a wait may take longer than it should; more, and this process was stopped itself, and the workers with it."""

MOST_NAMED = 8
"""So many files a warning names at most."""

Drain = Callable[[], object]

log = logging.getLogger("shmgen")


@dataclass
class Counts:
    """What has been done so far; `shmgen.Stats` explains the fields."""

    batches: int = 0
    samples: int = 0
    bytes: int = 0
    waited: float = 0.0
    copied: int = 0
    restarts: int = 0
    replaced: int = 0


class Delivery:
    """Delivers batches.

    Args:
        ring: where they are read into.
        workers: who reads them.
        schedule: who reads what, and where.
        samples: what they hold.
        upcoming: the batches that will be asked for next, as far as can be foreseen.
        crew: how many workers there are.
        timeout: seconds after which a read that has not ended is given up, together with its worker.

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
        samples: Samples,
        upcoming: Callable[[], Iterator[Batch]],
        crew: int,
        timeout: float,
    ) -> None:
        self._ring = ring
        self._workers = workers
        self._schedule = schedule
        self._samples = samples
        self._upcoming = upcoming
        self._timeout = timeout
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
        self._harmless: BaseException | None = None
        # Since when each worker has been at the oldest piece that it holds, as far as is known here.
        self._since = [math.inf] * crew
        # Those that have been killed, until when they should be gone, and the error of the sample to blame, if any.
        self._killed: dict[int, tuple[float, SampleError | None]] = {}
        self._deaths: Counter[tuple[Batch, int]] = Counter()
        self._idle_deaths = [0] * crew

    def read_ahead(self) -> None:
        """Have workers read the batches that will be asked for next."""
        with self.lock:
            self._dispatch()

    def entered(self) -> threading.RLock:
        """The lock; refused in a fork of the process that made this."""
        if os.getpid() != self._owner:
            raise ClosedError(f"it belongs to process {self._owner}: make another in process {os.getpid()}")
        return self.lock

    def fetch(self, batch: Batch, drain: Drain | None = None) -> Arrays:
        """The arrays of ``batch``, as soon as it has been read.

        Args:
            batch: which one.
            drain: makes a framework let go of the batches that it no longer needs; called while all slots are held.

        Raises:
            SampleError: a file of the batch can't be read; the batch may be asked for again.
            TooManyDamaged: more samples can't be had than are borne.
            WorkerDied: workers can't begin, or die again and again.
            ClosedError: `close` was called.
        """
        called = time.monotonic()
        with self.lock:
            self._demanded.append(batch)
            try:
                return self._fetch(batch, drain, called)
            except (TooManyDamaged, WorkerDied, StartError) as end:
                self.close(end)
                raise
            except BaseException as error:
                if isinstance(error, Exception) or error is self._harmless:
                    # It was read for this request alone: who asks for it later wants what its files hold by then.
                    self._schedule.discard(batch)
                else:
                    # An interrupt that struck anywhere but in a wait may have left the books wrong.
                    self.close(ClosedError(f"{type(error).__name__} struck amid its bookkeeping: make another"))
                raise
            finally:
                self._demanded.remove(batch)
                if self._demanded and self._listener is not None:
                    self._workers.wake()  # what others wait for may depend on the slot that this one took, or freed

    def _fetch(self, batch: Batch, drain: Drain | None, called: float) -> Arrays:
        starved_from: float | None = None
        collected = False
        if self._schedule.ready(batch) is not None:
            self._take_in()  # who need not wait would not hear of a worker's death
        self._check(called)
        self._dispatch()
        while (arrays := self._hand_out(batch)) is None:
            if not self._schedule.holds(batch):
                self._dispatch()
            now = time.monotonic()
            if self._schedule.can_lease or self._all_held:
                self._wait(math.inf, batch, now, called)
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
                    self._wait(DRAIN_EVERY, batch, now, called)
            self._check(called)
            if starved_from is not None:
                self._dispatch()
        if starved_from is not None and not self._all_held:
            self._patience = min(COPY_AFTER, 2 * self._patience)
        return arrays

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

    def _dispatch(self) -> None:
        """Take back the slots that were let go of, and have what is wanted read."""
        for slot in self._ring.released():
            self._schedule.free(slot)
            self._all_held = False
        pieces = self._schedule.assign(self._demanded, self._upcoming())
        if not pieces:
            return
        slot = -1
        for _, piece in pieces:
            if piece.slot != slot:
                slot = piece.slot
                self._samples.prepare(slot, piece.batch, ahead=piece.batch not in self._demanded)
        self._send(pieces)

    def _send(self, pieces: Sequence[tuple[int, Piece]]) -> None:
        tasks: defaultdict[int, list[Task]] = defaultdict(list)
        for (worker, _), task in zip(pieces, self._samples.tasks([piece for _, piece in pieces]), strict=True):
            tasks[worker].append(task)
        for worker, his in tasks.items():
            if self._since[worker] == math.inf:
                self._since[worker] = time.monotonic()
            self._workers.send(worker, his)

    def _hand_out(self, batch: Batch) -> Arrays | None:
        """The arrays of ``batch``; None if it is not there yet, or there is no slot that may be leased."""
        schedule = self._schedule
        slot = schedule.ready(batch)
        if slot is None:
            return None
        if not self._samples.holds(batch):
            for old in (batch, *self._samples.outdated()):
                schedule.discard(old)
            return None
        if error := schedule.error(slot):
            schedule.free(slot)
            raise error
        rows = self._samples.size(batch)
        counts = self.counts
        if schedule.can_lease:
            schedule.lease(slot)
            arrays = self._ring.lease(slot, rows)
        elif self._all_held:
            arrays = tuple(array[:rows].copy() for array in self._ring.arrays(slot))
            schedule.free(slot)
            counts.copied += 1
        else:
            return None
        counts.batches += 1
        counts.samples += rows
        counts.bytes += rows * self._ring.layout.sample_bytes
        counts.replaced += self._samples.delivered(batch)
        return arrays

    def _resort_to_copies(self) -> None:
        """All slots are held for good, it seems: until one is let go of, batches are read into a spare one and copied from it."""
        if not self._schedule.has_spare:
            self._ring.grow()
            self._schedule.add_slot()
            self._schedule.keep_spare()
        self._all_held = True
        self._patience = max(COPY_AFTER_LEAST, self._patience / 2)

    def _push(self, drain: Drain | None, *, collect: bool) -> None:
        """Have those who hold batches without need let go of them."""

        def push() -> None:
            if drain is not None:
                drain()
            if collect:
                gc.collect()  # a fit that was left early keeps its batches in a cycle

        self._unlocked(push)

    def _wait(self, timeout: float, batch: Batch, now: float, called: float) -> None:
        """Wait until something has happened that may bring ``batch``, at most ``timeout`` seconds; let others in meanwhile."""
        if self._listener is not None:
            if self._listens_to is not None:
                self._workers.wake()  # to listen to all
            self._changed.wait(None if timeout == math.inf else timeout)
            return
        # Who waits alone need not be woken, and take a processor from the workers, before the last piece of the batch is there.
        only = self._listens_to = self._schedule.last_to_finish(batch) if len(self._demanded) == 1 else None
        until = min(timeout + now, *(self._due(worker, called) for worker in range(len(self._since))))
        limit = None if until == math.inf else max(0.0, until - now)
        try:
            self._listener = threading.get_ident()
            self._unlocked(lambda: self._workers.wait(limit, only))
        finally:
            self._listener = None
            self._changed.notify_all()
        self._take_in()
        if limit is not None and (late := time.monotonic()) >= until:
            if late > until + OVERSLEPT:
                self._since = [late if since < late else since for since in self._since]
            self._give_up(late, called)

    def _unlocked(self, act: Callable[[], None]) -> None:
        """Do something while the lock is free; an interrupt does no harm there."""
        try:
            self.lock.release()
            act()
        except BaseException as error:
            self._harmless = error
            raise
        finally:
            if not self.lock._is_owned():  # type: ignore[attr-defined] # an interrupt may strike on either side of the release
                self.lock.acquire()

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
                self._moves_on(worker)
            elif what is What.FAILED:
                self._failed(worker, *detail)
            elif what is What.DROPPED:
                self._schedule.drop(worker)
            elif what is What.DIED:
                self._bury(worker, detail)
            elif what is What.INTERRUPTED:
                self._interrupted = detail
            elif what is What.UNABLE:
                raise detail
            elif not self._schedule.held(worker):  # ready, and there is nothing for it to do
                self._idle_deaths[worker] = 0

    def _moves_on(self, worker: int) -> None:
        """``worker`` has come to the next piece that it holds, if any."""
        self._since[worker] = time.monotonic() if self._schedule.held(worker) else math.inf
        self._idle_deaths[worker] = 0

    def _failed(self, worker: int, row: int | None, error: Exception) -> None:
        """``worker`` can't do its oldest piece, because of the sample in ``row``, if that is known."""
        piece = self._schedule.held(worker)[0]
        if row is None and piece.stop - piece.start == 1:
            row = 0
        if not self._samples.replaces or not isinstance(error, SampleError):
            self._schedule.done(worker, error)
        else:
            if row is not None:
                self._samples.replace(piece, row, error)
            again = self._schedule.retry(worker, singly=row is None, next=False)
            self._send([(worker, piece) for piece in again])
        self._moves_on(worker)

    def _due(self, worker: int, called: float) -> float:
        """When ``worker`` should be done with what it is doing.

        A read is given `timeout` seconds of being waited for: what goes on between two requests is nobody's fault.
        """
        if worker in self._killed:
            return self._killed[worker][0]
        return max(self._since[worker], called) + self._timeout

    def _give_up(self, now: float, called: float) -> None:
        """Kill the workers whose reads have been waited for too long."""
        for worker in range(len(self._since)):
            if now < self._due(worker, called):
                continue
            if worker in self._killed:  # in vain
                self._bury(worker, None)
                continue
            error = None
            if not self._workers.is_stopped(worker):
                reason = f"expected an answer, found none for {self._timeout:g} seconds (timeout)"
                error = self._samples.error(self._schedule.held(worker)[0], row_of(self._workers.at(worker)), reason)
            self._killed[worker] = now + KILL_GRACE, error
            self._workers.kill(worker)

    def _bury(self, worker: int, death: WorkerDied | None) -> None:
        """``worker`` has died, or hangs so that it can't be killed: another takes its place, and what it held is read again."""
        schedule, at = self._schedule, self._workers.at(worker)
        held = schedule.held(worker)
        row = row_of(at)
        if held and row is None and held[0].stop - held[0].start == 1:
            row = 0
        hangs, (_, error) = worker in self._killed, self._killed.pop(worker, (0.0, None))
        log.warning("%s", self._obituary(worker, death, held, row, stopped=hangs and error is None))
        if not hangs and at == IDLE:
            self._idle_deaths[worker] += 1
            if self._idle_deaths[worker] == DEATHS:
                assert death is not None
                raise death
        elif not hangs and held and row is not None:
            self._deaths[held[0].batch, held[0].start + row] += 1
            if self._deaths[held[0].batch, held[0].start + row] == DEATHS:
                error = self._samples.error(held[0], row, f"expected to be read, found that {DEATHS} workers died of it: {death}")
        if error is not None and self._samples.replaces and row is not None:
            self._samples.replace(held[0], row, error, hopeless=True)
        if death is None and held:
            schedule.abandon(worker)
            self._ring.grow()
            schedule.add_slot()
            if error is not None and not self._samples.replaces:
                schedule.fail(held[0].batch, error)
        elif error is not None and not self._samples.replaces:
            schedule.done(worker, error)
        elif held and row is None and at != IDLE:
            schedule.retry(worker, singly=True, next=True)
        self.counts.restarts += 1
        try:
            self._workers.restart(worker)
        except OSError as failure:
            raise StartError(f"a worker that has died can't be replaced: {failure}") from failure
        self._since[worker] = math.inf
        self._send([(worker, piece) for piece in schedule.held(worker)])

    def _obituary(self, worker: int, death: WorkerDied | None, held: Sequence[Piece], row: int | None, *, stopped: bool) -> str:
        """What the user is told of a worker that is replaced."""
        who = str(death) if death else f"worker {worker} hangs and can't be killed"
        if stopped:
            who += f", after it had been stopped for {self._timeout:g} seconds"
        if not held:
            return f"{who}; it held nothing, and another takes its place"
        rows = sum(piece.stop - piece.start for piece in held)
        reading = ""
        if row is not None:
            reading = f" while it was at {self._samples.named(held[0], row)}"
        files = self._samples.listed(held, MOST_NAMED)
        return f"{who}{reading}; another takes its place, and the {rows} rows that it held are read again: {files}"

    def _check(self, called: float) -> None:
        """Whether to go on with a request made at ``called``."""
        if self.ended is not None:
            raise type(self.ended)(*self.ended.args)
        # Ctrl-C is for the main thread to act on; but it may be waiting inside a framework for this very batch.
        elsewhere = threading.current_thread() is not threading.main_thread()
        if self._interrupted > called and elsewhere and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            raise KeyboardInterrupt
