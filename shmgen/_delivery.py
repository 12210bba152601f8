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

from shmgen._crew import Steering
from shmgen._filler import Task
from shmgen._layout import Arrays
from shmgen._order import Batch
from shmgen._pool import KILL_GRACE, What, Workers
from shmgen._ring import Ring
from shmgen._samples import Samples
from shmgen._schedule import Piece, Schedule
from shmgen._source import IDLE, row_of
from shmgen._stats import Stats
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
"""A row that so many workers died of is damaged."""

STARTS = 5
"""So many workers that die one after the other in the same place, before any has read anything, end the delivery."""

START_WITHIN = 60.0
"""Seconds that a worker has to begin, or ``timeout`` where that is longer: what it imports and opens then may take a while."""

LOOKS = 4
"""So often within ``timeout`` it is looked which row a worker is at, to know how long it has been there."""

LONGEST_WAIT = 86_400.0
"""Seconds; the kernel counts milliseconds in 31 bits."""

OVERSLEPT = 0.2
"""Seconds that a wait may take longer than it should; more, and this process was stopped itself, and the workers with it."""

MOST_NAMED = 8
"""So many files a warning names at most."""

Drain = Callable[[], object]

log = logging.getLogger("shmgen")


@dataclass
class Watched:
    """A worker, as far as what it does is known here.

    Attributes:
        begun: whether it has said that it can begin.
        since: since when it has been at the same row; infinity while there is nothing for it to do.
        at: the row, as `Filler.open` says it.
        gone_by: until when it should be gone, since it has been killed; None where it has not.
        stopped: whether it was killed because it had been stopped.
        blamed: the error of the sample that it was killed for, if for one.
        idle_deaths: how many workers have died in this one's place, one after the other, without having done anything.
    """

    begun: bool = False
    since: float = math.inf
    at: int = IDLE
    gone_by: float | None = None
    stopped: bool = False
    blamed: SampleError | None = None
    idle_deaths: int = 0


class Delivery:
    """Delivers batches.

    Args:
        ring: where they are read into.
        workers: who reads them.
        schedule: who reads what, and where.
        samples: what they hold.
        upcoming: the batches that will be asked for next, as far as can be foreseen.
        crew: how many workers there are.
        steering: says how many workers there should be; None if that is to stay as it is.
        timeout: seconds after which a read that has not ended is given up, together with its worker.

    Attributes:
        lock: guards this object and what ``upcoming`` reads.
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
        steering: Steering | None,
        timeout: float,
    ) -> None:
        self._ring = ring
        self._workers = workers
        self._schedule = schedule
        self._samples = samples
        self._upcoming = upcoming
        self._steering = steering
        self._timeout = timeout
        self._owner = os.getpid()
        self._batches = self._rows = self._bytes = self._copied = self._restarts = self._replaced = 0
        self._waited = self._held_up = 0.0
        # Of the first request and the last delivery.
        self._first, self._last = math.inf, 0.0
        self.ended: ShmgenError | None = None
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self._listener: int | None = None
        self._listens_to: int | None = None
        # Those who wait, the first to come first: since when, and for which batch.
        self._waiting: list[tuple[float, Batch]] = []
        self._all_held = False
        self._patience = COPY_AFTER
        self._interrupted = 0.0
        self._harmless: BaseException | None = None
        self._watched = [Watched() for _ in range(crew)]
        self._deaths: Counter[tuple[Batch, int]] = Counter()

    @property
    def stats(self) -> Stats:
        """What has been done so far."""
        with self.lock:
            busy, cpu = self._workers.use()
            return Stats(
                batches=self._batches,
                samples=self._rows,
                bytes=self._bytes,
                elapsed=max(0.0, self._last - self._first),
                waited=self._waited,
                held_up=self._held_up,
                copied=self._copied,
                restarts=self._restarts,
                replaced=self._replaced,
                workers=self._schedule.crew,
                busy=busy,
                cpu=cpu,
                decisions=() if self._steering is None else tuple(self._steering.decisions),
            )

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
            self._first = min(self._first, called)
            self._waiting.append((called, batch))
            try:
                arrays = self._fetch(batch, drain, called)
                self._last = time.monotonic()
                if self._steering is not None and self._steering.is_over(batch.epoch, self._last - self._first, self._batches):
                    self._steer(self._steering, batch.epoch)
                return arrays
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
                self._waiting.remove((called, batch))
                if self._waiting and self._listener is not None:
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
                self._wait(math.inf, batch, now)
                if self._all_held:  # nothing was read ahead, for want of a slot
                    self._held_up += time.monotonic() - now
                else:
                    self._waited += time.monotonic() - now
            else:
                # Whoever holds all the slots may need but a push to let go; if that does not help, copies must do.
                starved_from = starved_from or now
                if now > starved_from + self._patience:
                    self._resort_to_copies()
                else:
                    due = not collected and now > starved_from + COLLECT_AFTER
                    collected = collected or due
                    self._push(drain, collect=due)
                    self._wait(DRAIN_EVERY, batch, now)
                    self._held_up += time.monotonic() - now
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
        demanded = [batch for _, batch in self._waiting]
        pieces = self._schedule.assign(demanded, self._upcoming())
        if not pieces:
            return
        slot = -1
        for _, piece in pieces:
            if piece.slot != slot:
                slot = piece.slot
                self._samples.prepare(slot, piece.batch, ahead=piece.batch not in demanded)
        self._send(pieces)

    def _send(self, pieces: Sequence[tuple[int, Piece]]) -> None:
        tasks: defaultdict[int, list[Task]] = defaultdict(list)
        for (worker, _), task in zip(pieces, self._samples.tasks([piece for _, piece in pieces]), strict=True):
            tasks[worker].append(task)
        for worker, his in tasks.items():
            if self._watched[worker].since == math.inf:
                self._moves_on(worker)
            self._workers.send(worker, his)

    def _send_again(self, worker: int, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            self._samples.refill(piece)
        self._send([(worker, piece) for piece in pieces])

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
        if schedule.can_lease:
            schedule.lease(slot)
            arrays = self._ring.lease(slot, rows)
        elif self._all_held:
            arrays = tuple(array[:rows].copy() for array in self._ring.arrays(slot))
            schedule.free(slot)
            self._copied += 1
        else:
            return None
        self._batches += 1
        self._rows += rows
        self._bytes += rows * self._ring.layout.sample_bytes
        self._replaced += self._samples.delivered(batch)
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

    def _wait(self, timeout: float, batch: Batch, now: float) -> None:
        """Wait until something has happened that may bring ``batch``, at most ``timeout`` seconds; let others in meanwhile."""
        if self._listener is not None:
            if self._listens_to is not None:
                self._workers.wake()  # to listen to all
            try:
                self._changed.wait(min(timeout, LONGEST_WAIT))
            except BaseException as error:
                self._harmless = error
                raise
            return
        # Who waits alone need not be woken, and take a processor from the workers, before the last piece of the batch is there.
        only = self._listens_to = self._schedule.last_to_finish(batch) if len(self._waiting) == 1 else None
        until = min(now + timeout, now + self._timeout / LOOKS, *map(self._due, self._watched))
        limit = None if until == math.inf else min(max(0.0, until - now), LONGEST_WAIT)
        try:
            self._listener = threading.get_ident()
            self._unlocked(lambda: self._workers.wait(limit, only))
        finally:
            self._listener = None
            self._changed.notify_all()
        self._take_in()
        if (late := time.monotonic()) >= until:
            self._look(late, overslept=late > until + OVERSLEPT)
            self._give_up(late)

    def _steer(self, steering: Steering, epoch: int) -> None:
        """Have as many workers as there should be."""
        crew = steering.see(epoch, self._last - self._first, self._batches, self._waited, self._workers.use())
        while len(self._watched) < crew:
            try:
                self._workers.add()
            except OSError as error:
                log.warning("there are %d workers, since another can't be started: %s", len(self._watched), error)
                self._steering, crew = None, len(self._watched)
                break
            self._watched.append(Watched())
        self._schedule.resize(crew)
        self._dismiss()

    def _dismiss(self) -> None:
        """Part with workers that get no more work, once they have done what they held."""
        while len(self._watched) > self._schedule.crew and not self._schedule.held(len(self._watched) - 1):
            self._workers.dismiss()
            self._watched.pop()
            self._schedule.forget_last()

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
            if worker >= len(self._watched):  # it has been dismissed meanwhile
                continue
            if what is What.DONE:
                self._schedule.done(worker)
                self._progressed(worker)
            elif what is What.FAILED:
                self._failed(worker, *detail)
                self._progressed(worker)
            elif what is What.DROPPED:
                self._schedule.drop(worker)
            elif what is What.DIED:
                self._bury(worker, detail)
            elif what is What.INTERRUPTED:
                self._interrupted = detail
            elif what is What.UNABLE:
                raise detail
            else:
                self._watched[worker].begun = True
                self._moves_on(worker)
                if not self._schedule.held(worker):  # there is nothing else for it to do
                    self._watched[worker].idle_deaths = 0

    def _progressed(self, worker: int) -> None:
        """``worker`` is through with a piece."""
        watched = self._watched[worker]
        watched.idle_deaths = 0
        watched.blamed = None  # if it has been killed since, it was not stuck after all
        self._moves_on(worker)
        self._dismiss()

    def _moves_on(self, worker: int) -> None:
        """``worker`` has come to the next piece that it holds, if any."""
        watched = self._watched[worker]
        watched.since = time.monotonic() if self._schedule.held(worker) else math.inf
        watched.at = self._workers.at(worker)

    def _failed(self, worker: int, row: int | None, error: Exception) -> None:
        """``worker`` can't do its oldest piece, because of the sample in ``row``, if that is known."""
        piece = self._schedule.held(worker)[0]
        if row is None and piece.stop - piece.start == 1:
            row = 0
        if not self._samples.replaces or not isinstance(error, SampleError) or not self._schedule.wants(piece):
            self._schedule.done(worker, error)
            return
        if row is not None:
            self._samples.replace(piece, row, error)
        self._send_again(worker, self._schedule.retry(worker, singly=row is None, next=False))

    def _due(self, watched: Watched) -> float:
        """When a worker should have come further than it is.

        It is given `timeout` seconds of being waited for: what goes on between two requests is nobody's fault.
        """
        if watched.gone_by is not None:
            return watched.gone_by
        return max(watched.since, self._waiting[0][0]) + self._allowed(watched)

    def _allowed(self, watched: Watched) -> float:
        """Seconds that a worker is given for what it is doing."""
        return self._timeout if watched.begun else max(self._timeout, START_WITHIN)

    def _look(self, now: float, *, overslept: bool) -> None:
        """See which rows the workers are at now; if this process ``overslept``, it can't tell since when."""
        for worker, watched in enumerate(self._watched):
            at = self._workers.at(worker)
            if watched.since != math.inf and (overslept or at != watched.at):
                watched.since, watched.at = now, at
            if watched.gone_by is not None and overslept:
                watched.gone_by = now + KILL_GRACE

    def _give_up(self, now: float) -> None:
        """Kill the workers that have been waited for too long."""
        for worker, watched in enumerate(self._watched):
            if now < self._due(watched):
                continue
            if watched.gone_by is not None:
                self._bury(worker, None)
                continue
            watched.stopped = self._workers.is_stopped(worker)
            if not watched.stopped and not watched.begun:
                raise StartError(f"worker {worker} has not begun within {self._allowed(watched):g} seconds")
            piece = self._schedule.held(worker)[0]
            row = _row(watched.at, piece)
            if not watched.stopped and row is not None:
                reason = f"expected an answer, found none for {self._timeout:g} seconds (timeout)"
                watched.blamed = self._samples.error(piece, row, reason)
            watched.gone_by = now + KILL_GRACE
            self._workers.kill(worker)

    def _bury(self, worker: int, death: WorkerDied | None) -> None:
        """``worker`` has died, or hangs so that it can't be killed: another takes its place, and what it held is read again."""
        watched, at = self._watched[worker], self._workers.at(worker)
        held = self._schedule.held(worker)
        row = _row(at, held[0]) if held else None
        blamed = watched.blamed if at == watched.at else None
        if death is not None and watched.gone_by is None and row is not None:
            place = held[0].batch, held[0].start + row
            self._deaths[place] += 1
            if self._deaths[place] == DEATHS:
                del self._deaths[place]  # asked for again, it is tried as often again
                reason = f"expected to be read, found that {DEATHS} workers died of it: {death}"
                blamed = self._samples.error(held[0], row, reason)
        log.warning("%s", self._obituary(worker, death, held, row, blamed))
        if death is not None and at == IDLE and not watched.stopped:
            watched.idle_deaths += 1
            if watched.idle_deaths == STARTS:
                raise death
        try:
            if held:
                self._settle(worker, held[0], row, blamed, at=at, hangs=death is None)
            self._workers.restart(worker)
        except OSError as failure:
            raise StartError(f"a worker that has died can't be replaced: {failure}") from failure
        self._restarts += 1
        self._watched[worker] = Watched(idle_deaths=watched.idle_deaths)
        self._send_again(worker, self._schedule.held(worker))

    def _settle(self, worker: int, piece: Piece, row: int | None, blamed: SampleError | None, *, at: int, hangs: bool) -> None:
        """What becomes of the ``piece`` that ``worker`` was at, in ``row`` if that is known, when it died or was given up."""
        schedule, samples = self._schedule, self._samples
        wanted = schedule.wants(piece)
        error = None
        if blamed is not None and wanted:
            if not samples.replaces:
                error = blamed
            elif row is not None:
                samples.replace(piece, row, blamed, hopeless=True)
        if hangs:
            if row is None and wanted and at != IDLE:  # its rows can't be tried one by one: each might cost a slot
                reason = f"expected an answer, found none for {self._timeout:g} seconds (timeout), here or behind it"
                error = samples.error(piece, 0, reason)
            if schedule.abandon(worker):
                self._ring.grow()
                schedule.add_slot()
            if error is not None:
                schedule.fail(piece.batch, error)
        elif error is not None or not wanted:
            schedule.done(worker, error)
        elif row is None and at != IDLE:
            schedule.retry(worker, singly=True, next=True)

    def _obituary(
        self, worker: int, death: WorkerDied | None, held: Sequence[Piece], row: int | None, blamed: SampleError | None
    ) -> str:
        """What the user is told of a worker that is replaced."""
        watched = self._watched[worker]
        said = []
        if watched.gone_by is None:
            said.append(str(death))
        else:
            who = f"worker {worker} (pid {death.pid})" if death else f"worker {worker}"
            why = "had been stopped" if watched.stopped else "gave no answer"
            said.append(f"{who} {why} for {self._allowed(watched):g} seconds, and {'was' if death else 'can not be'} killed")
        if row is not None:
            said.append(f"it was at {self._samples.named(held[0], row)}")
        again = held[1:] if blamed is not None and not self._samples.replaces else held
        if again:
            rows = sum(piece.stop - piece.start for piece in again)
            files = self._samples.listed(again, MOST_NAMED)
            said.append(f"another takes its place, and reads again the {rows} row{'s'[: rows > 1]} that it held: {files}")
        else:
            said.append(f"it held nothing{' else' if held else ''}; another takes its place")
        return "; ".join(said)

    def _check(self, called: float) -> None:
        """Whether to go on with a request made at ``called``."""
        if self.ended is not None:
            raise type(self.ended)(*self.ended.args)
        # Ctrl-C is for the main thread to act on; but it may be waiting inside a framework for this very batch.
        elsewhere = threading.current_thread() is not threading.main_thread()
        if self._interrupted > called and elsewhere and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            raise KeyboardInterrupt


def _row(at: int, piece: Piece) -> int | None:
    """The row of ``piece``, counted from its first, that a worker is ``at``; None if it is at none, or that is not known."""
    row = row_of(at)
    return 0 if row is None and at != IDLE and piece.stop - piece.start == 1 else row
