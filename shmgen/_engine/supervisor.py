"""Supervises the workers: gives them work, handles their events, and replaces those that die or do not respond.

It knows neither requests nor locks: the caller holds the prefetcher's lock.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shmgen._engine.batch_builder import BatchBuilder
from shmgen._engine.pool import Event, EventKind, Workers
from shmgen._memory.ring import Ring
from shmgen._plan.sampler import BatchId
from shmgen._plan.schedule import Piece, Schedule
from shmgen._sources.base import IDLE, row_of
from shmgen._worker.assembler import Task
from shmgen._worker.launch import KILL_GRACE
from shmgen.errors import SampleError, StartError, WorkerDied

DEATHS = 3
"""A row at which so many workers died is damaged."""

STARTS = 5
"""If so many workers with the same number die one after the other before any has read anything, the loader ends."""

START_WITHIN = 60.0
"""Seconds that a worker has to start, or ``timeout`` if that is longer: its imports and open files may take a while."""

LOOKS = 4
"""How often within ``timeout`` the row that a worker is at is looked up, to know how long it has been there."""

MAX_NAMED = 8
"""A warning names at most so many files."""

log = logging.getLogger("shmgen")


class Place(NamedTuple):
    """How far a worker with work to do has come.

    Attributes:
        begun: whether it has reported that it is ready.
        done: how many pieces it has finished.
        at: the row, as `BatchAssembler.open` says it.
    """

    begun: bool
    done: int
    at: int


@dataclass
class WorkerRecord:
    """What is known of a worker.

    Attributes:
        begun: whether it has reported that it is ready.
        done: how many pieces it has finished.
        place: where it was at the last look; None if it had nothing to do.
        since: since when it has been there.
        kill_deadline: when it should be gone after it was killed; None if it was not.
        stopped: whether it was killed because it had been stopped (SIGSTOP).
        blamed: the error of the sample that it was killed for, if any.
        deaths_before_work: how many workers with this number have died one after the other without finishing anything.
    """

    begun: bool = False
    done: int = 0
    place: Place | None = None
    since: float = 0.0
    kill_deadline: float | None = None
    stopped: bool = False
    blamed: SampleError | None = None
    deaths_before_work: int = 0


class Supervisor:
    """Supervises workers.

    Args:
        workers: the workers.
        count: how many there are.
        schedule: who reads what, and where.
        builder: what there is to read.
        ring: where to read it; grows by a slot when one can't be used any more.
        timeout: seconds after which a read that has not ended is given up, together with its worker.

    Attributes:
        next_deadline: when to call `check_deadlines` next, while somebody waits for a batch.
        interrupted: when Ctrl-C last reached a worker.
        restarts: how many workers have been replaced.
    """

    def __init__(
        self, workers: Workers, count: int, schedule: Schedule, builder: BatchBuilder, ring: Ring, timeout: float
    ) -> None:
        self._workers = workers
        self._schedule = schedule
        self._builder = builder
        self._ring = ring
        self._timeout = timeout
        self._records = [WorkerRecord() for _ in range(count)]
        self._deaths: Counter[tuple[BatchId, int]] = Counter()
        self.next_deadline = time.monotonic() + timeout / LOOKS
        self.interrupted = 0.0
        self.restarts = 0

    def __repr__(self) -> str:
        return f"{len(self._records)} workers, {self.restarts} replaced"

    def send(self, pieces: Sequence[tuple[int, Piece]]) -> None:
        """Have workers read ``pieces``: each names who, and what."""
        tasks: defaultdict[int, list[Task]] = defaultdict(list)
        for (worker, _), task in zip(pieces, self._builder.tasks([piece for _, piece in pieces]), strict=True):
            tasks[worker].append(task)
        for worker, its_tasks in tasks.items():
            self._workers.send(worker, its_tasks)

    def resize(self, count: int) -> bool:
        """From now on so many workers get work; False if others could not be started, and there are fewer."""
        enough = True
        while len(self._records) < count:
            try:
                self._workers.add()
            except OSError as error:
                log.warning("there are %d workers, since another can't be started: %s", len(self._records), error)
                enough, count = False, len(self._records)
                break
            self._records.append(WorkerRecord())
        self._schedule.resize(count)
        self._dismiss()
        return enough

    def _dismiss(self) -> None:
        """End workers that get no more work, once they have finished what they held."""
        while len(self._records) > self._schedule.workers and not self._schedule.held(len(self._records) - 1):
            self._workers.dismiss()
            self._records.pop()
            self._schedule.forget_last()

    def handle(self, events: Sequence[Event]) -> None:
        """Handle what workers have reported.

        Raises:
            StartError: one can't start, or one that died can't be replaced.
            WorkerDied: one died like others before it, without finishing anything.
            TooManyDamaged: more samples are damaged than are tolerated.
        """
        for worker, what, detail in events:
            record = self._records[worker]
            if what is EventKind.DONE:
                record.done += 1
                self._schedule.done(worker)
                self._schedule.waits = detail
            elif what is EventKind.FAILED:
                record.done += 1
                self._failed(worker, *detail)
            elif what is EventKind.DROPPED:
                self._schedule.drop(worker)
            elif what is EventKind.DIED:
                self._on_exit(worker, detail)
            elif what is EventKind.INTERRUPTED:
                self.interrupted = detail
            elif what is EventKind.UNABLE:
                raise detail
            else:
                record.begun = True
                if not self._schedule.held(worker):  # there is nothing else for it to do
                    record.deaths_before_work = 0
        self._dismiss()

    def check_deadlines(self, now: float, asked: float, *, overslept: bool) -> None:
        """See how far the workers have come, and kill those that have taken too long.

        Args:
            now: the time.
            asked: since when somebody has waited for a batch. Between two requests no worker is late.
            overslept: whether this process was stopped itself: it can't tell then how long a worker has been at its row.

        Raises:
            StartError: one has not started in time, or can't be replaced.
        """
        for worker, record in enumerate(self._records):
            place = self._place(worker)
            if overslept or place != record.place:
                record.since, record.place = now, place
            if record.kill_deadline is not None and overslept:
                record.kill_deadline = now + KILL_GRACE
            if now >= self._deadline(record, asked):
                self._kill_unresponsive(worker, now)
        self.next_deadline = min(now + self._timeout / LOOKS, *(self._deadline(record, asked) for record in self._records))

    def _place(self, worker: int) -> Place | None:
        record = self._records[worker]
        return Place(record.begun, record.done, self._workers.at(worker)) if self._schedule.held(worker) else None

    def _deadline(self, record: WorkerRecord, asked: float) -> float:
        """When a worker should have come further than it is."""
        if record.kill_deadline is not None:
            return record.kill_deadline
        return math.inf if record.place is None else max(record.since, asked) + self._allowed(record)

    def _allowed(self, record: WorkerRecord) -> float:
        """Seconds that a worker is given for what it is doing."""
        return self._timeout if record.begun else max(self._timeout, START_WITHIN)

    def _kill_unresponsive(self, worker: int, now: float) -> None:
        """Kill a worker that does not respond; abandon one that should have been gone by now."""
        record = self._records[worker]
        if record.kill_deadline is not None:
            self._on_exit(worker, None)
            return
        record.stopped = self._workers.is_stopped(worker)
        if not record.stopped and not record.begun:
            raise StartError(f"worker {worker} has not begun within {self._allowed(record):g} seconds")
        piece = self._schedule.held(worker)[0]
        row = None if record.place is None else _row(record.place.at, piece)
        if not record.stopped and row is not None:
            reason = f"expected an answer, found none for {self._timeout:g} seconds (timeout)"
            record.blamed = self._builder.error(piece, row, reason)
        record.kill_deadline = now + KILL_GRACE
        self._workers.kill(worker)

    def _failed(self, worker: int, row: int | None, error: Exception) -> None:
        """``worker`` has failed at its oldest piece: at the sample in ``row``, if that is known."""
        piece = self._schedule.held(worker)[0]
        if row is None and piece.stop - piece.start == 1:
            row = 0
        if not self._builder.replaces or not isinstance(error, SampleError) or not self._schedule.wants(piece):
            self._schedule.done(worker, error)
            return
        if row is not None:
            self._builder.replace(piece, row, error)
        self._send_again(worker, self._schedule.retry(worker, singly=row is None, next=False))

    def _send_again(self, worker: int, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            self._builder.refill(piece)
        self.send([(worker, piece) for piece in pieces])

    def _on_exit(self, worker: int, death: WorkerDied | None) -> None:
        """``worker`` has died, or can't be killed: start another in its place, and have what it held read again."""
        record, at = self._records[worker], self._workers.at(worker)
        held = self._schedule.held(worker)
        row = _row(at, held[0]) if held else None
        # If it has come further since the decision to kill it, it was not stuck.
        blamed = record.blamed if self._place(worker) == record.place else None
        if death is not None and record.kill_deadline is None and row is not None:
            place = held[0].batch, held[0].start + row
            self._deaths[place] += 1
            if self._deaths[place] == DEATHS:
                del self._deaths[place]  # if it is asked for again, it gets as many tries again
                reason = f"expected a readable sample, found that {DEATHS} workers died at it: {death}"
                blamed = self._builder.error(held[0], row, reason)
        log.warning("%s", self._death_message(worker, death, held, row, blamed))
        deaths_before_work = 0 if record.done else record.deaths_before_work
        if death is not None and at == IDLE and not record.stopped:
            deaths_before_work += 1
            if deaths_before_work == STARTS:
                raise death
        try:
            if held:
                self._reassign(worker, held[0], row, blamed, at=at, hangs=death is None)
            self._workers.restart(worker)
        except OSError as failure:
            raise StartError(f"a worker that has died can't be replaced: {failure}") from failure
        self.restarts += 1
        self._records[worker] = WorkerRecord(deaths_before_work=deaths_before_work)
        self._send_again(worker, self._schedule.held(worker))

    def _reassign(self, worker: int, piece: Piece, row: int | None, blamed: SampleError | None, *, at: int, hangs: bool) -> None:
        """Decide on the ``piece`` that ``worker`` was at, in ``row`` if that is known, when it died or was abandoned."""
        schedule, builder = self._schedule, self._builder
        wanted = schedule.wants(piece)
        error = None
        if blamed is not None and wanted:
            if not builder.replaces:
                error = blamed
            elif row is not None:
                builder.replace(piece, row, blamed, unreadable=True)
        if hangs:
            if row is None and wanted and at != IDLE:  # its rows can't be tried one by one: each might cost a slot
                reason = f"expected an answer, found none for {self._timeout:g} seconds (timeout), here or behind it"
                error = builder.error(piece, 0, reason)
            if schedule.abandon(worker):
                self._ring.grow()
                schedule.add_slot()
            if error is not None:
                schedule.fail(piece.batch, error)
        elif error is not None or not wanted:
            schedule.done(worker, error)
        elif row is None and at != IDLE:
            schedule.retry(worker, singly=True, next=True)

    def _death_message(
        self, worker: int, death: WorkerDied | None, held: Sequence[Piece], row: int | None, blamed: SampleError | None
    ) -> str:
        """The log message about a worker that is replaced."""
        record = self._records[worker]
        said = []
        if record.kill_deadline is None:
            said.append(str(death))
        else:
            who = f"worker {worker} (pid {death.pid})" if death else f"worker {worker}"
            why = "had been stopped" if record.stopped else "gave no answer"
            said.append(f"{who} {why} for {self._allowed(record):g} seconds, and {'was' if death else 'can not be'} killed")
        if row is not None:
            said.append(f"it was at {self._builder.named(held[0], row)}")
        again = held[1:] if blamed is not None and not self._builder.replaces else held
        if again:
            rows = sum(piece.stop - piece.start for piece in again)
            files = self._builder.listed(again, MAX_NAMED)
            said.append(f"another takes its place, and reads again the {rows} row{'s'[: rows > 1]} that it held: {files}")
        else:
            said.append(f"it held nothing{' else' if held else ''}; another takes its place")
        return "; ".join(said)


def _row(at: int, piece: Piece) -> int | None:
    """The row of ``piece``, counted from its first, that a worker is ``at``; None if it is at none, or that is not known."""
    row = row_of(at)
    return 0 if row is None and at != IDLE and piece.stop - piece.start == 1 else row
