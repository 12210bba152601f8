"""Supervises the workers: gives out tickets, handles events, and replaces workers that die or do not respond.

`shmgen._plan.faults` decides what is to be done; here it is done. The supervisor's caller holds the prefetcher's lock.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from shmgen._engine.batch_planner import BatchPlanner
from shmgen._engine.workers import Event, EventKind, Workers
from shmgen._memory.ring import Ring
from shmgen._plan.activity import Target
from shmgen._plan.faults import Claim, Deaths, Exit, Fate, Outcome, Watch, after_exit, after_failure
from shmgen._plan.schedule import Schedule, Ticket
from shmgen._sources.base import IDLE, row_of
from shmgen._worker.launch import KILL_GRACE
from shmgen.errors import FunctionError, SampleError, StartError, WorkerDied

STARTS = 5
"""The loader ends if this number of workers, each in place of the one before, have died before they read anything."""

START_WITHIN = 60.0
"""Seconds that a worker has to start, or ``timeout`` if that is longer: its imports and open files may take a while. It has as
long to take a ticket: on a busy machine it may not run for a while, and delays no other worker."""

LOOKS = 4
"""Looks within ``timeout`` at the row that a reader is at, to know how long it has been there."""

MAX_NAMED = 8
"""A warning names at most this number of files."""

log = logging.getLogger("shmgen")


@dataclass
class WorkerRecord:
    """What is known of a worker."""

    watch: Watch
    started: bool = False  # it has reported that it is ready
    has_done: bool = False  # at least one ticket
    kill_deadline: float | None = None  # when it should be gone after it was killed; None if it was not killed
    stuck: list[Claim] = field(default_factory=list)  # what it was killed for
    unsure: list[Claim] = field(default_factory=list)  # what did not move, but perhaps only because of another claim
    stopped: bool = False  # it was killed because it had been stopped (SIGSTOP)
    retires: bool = False  # it is to end, since fewer are wanted
    ends: bool = False  # it ends by itself, since it has had nothing to do
    deaths_before_work: int = 0  # workers before it in its place, in a row, that died before they finished anything


class Supervisor:
    """Supervises workers, as many as ``target`` says; 0 if the main process reads.

    A worker that has ended, since it had nothing to do, is started when there is work. A read that has not ended after
    ``timeout`` seconds is given up, together with its worker.
    """

    def __init__(
        self, workers: Workers, target: Target, schedule: Schedule, planner: BatchPlanner, ring: Ring, timeout: float
    ) -> None:
        self._workers = workers
        self._schedule = schedule
        self._planner = planner
        self._ring = ring
        self._timeout = timeout
        self._patience = max(timeout, START_WITHIN)
        now = time.monotonic()
        self._records = {number: WorkerRecord(Watch(now)) for number in range(target.workers or 1)}
        self._is_eager = False
        self.target = target
        self.deaths = Deaths()
        self.next_deadline = now + timeout / LOOKS  # when to call `check_deadlines` next, while a request waits
        self.interrupted_at = 0.0  # when Ctrl-C last reached a worker
        self.restarts = 0
        # Why a lost slot has no successor: there is no memory for one. The next request is to raise it, once.
        self.failure: OSError | None = None

    @property
    def started(self) -> int:
        """How many workers have started, without those that retire."""
        return sum(record.started and not record.retires for record in self._records.values())

    def give_out(self) -> None:
        has_tickets = self._schedule.has_tickets
        if len(self._records) != self.target.workers and (has_tickets or self._schedule.out):
            self._start_missing()
        if not has_tickets and not self._is_eager:
            return
        if tickets := self._schedule.take():
            self._workers.put(tickets)
        if self._schedule.holds_back != self._is_eager:
            self._is_eager = self._schedule.holds_back
            self._workers.set_eager(self._is_eager)

    def _staying(self) -> list[int]:
        return [number for number, record in self._records.items() if not record.retires]

    def _start_missing(self) -> None:
        for _ in range(self.target.workers - len(self._staying())):
            number = self._workers.add(self.target.reads)
            self._records[number] = WorkerRecord(Watch(time.monotonic()))

    def resize(self, target: Target) -> bool:
        """From now on there are this many workers and readers; False if more workers could not be started."""
        if target.reads != self.target.reads:
            self._workers.set_reads(target.reads)
        self.target = target
        try:
            self._start_missing()
        except StartError as error:
            self.target = Target(len(self._staying()), target.reads)
            log.warning("there are %d workers, not %d: %s", self.target.workers, target.workers, error)
            return False
        for number in sorted(self._staying())[target.workers :]:
            self._records[number].retires = True
            self._workers.retire(number)
        return True

    def handle(self, events: Sequence[Event]) -> None:
        """Handle what has happened to workers; raises a StartError, WorkerDied or TooManyDamaged that ends the loader."""
        for number, what, detail in events:
            if what is EventKind.DONE:
                self._schedule.done([report[0] for report in detail], times=[report[3] for report in detail])
                self._schedule.waits = bool(detail[-1][2])
                for worker in {report[1] for report in detail} & self._records.keys():  # one that has retired may report late
                    self._records[worker].has_done = True
            elif what is EventKind.FAILED:
                self._on_failure(number, *detail)
            elif what is EventKind.ABORTED:
                self._schedule.aborted(detail)
            elif what is EventKind.DIED:
                self._on_exit(number, detail)
            elif what is EventKind.UNABLE:
                raise detail
            elif what is EventKind.CTRL_C:
                self.interrupted_at = detail
            elif what is EventKind.ENDS:
                self._records[number].ends = True
            else:
                self._records[number].started = True
                if not self._schedule.out:  # there is nothing for it to do
                    self._records[number].deaths_before_work = 0
        if events:
            self.give_out()

    def _on_failure(self, worker: int, id: int, row: int | None, error: Exception) -> None:
        """A ticket has failed: at the sample in ``row``, if that is known."""
        self._records[worker].has_done = True
        if (ticket := self._schedule.ticket(id)) is None:
            return
        # An error of a file that has all rows need not be met again in each of them, only to be raised.
        tried_singly = FunctionError if self._planner.on_error == "raise" else SampleError
        if not isinstance(error, tried_singly) or not self._schedule.wants(ticket):
            self._give_up(ticket, error)
        else:
            self._carry_out(after_failure(_claim(ticket, row, begun=True)), error)

    def claims(self, worker: int) -> dict[int, Claim]:
        """By reader: the tickets that ``worker`` has taken and not done."""
        return {
            reader: _claim(ticket, row_of(at), begun=at != IDLE)
            for reader, (id, at) in self._workers.claims(worker).items()
            if (ticket := self._schedule.ticket(id)) is not None
        }

    def check_deadlines(self, now: float, asked: float, *, overslept: bool) -> None:
        """See how far the workers have come, and kill those that have taken too long.

        A request has waited since ``asked``; between two requests no worker is late. If this process ``overslept``, since it was
        stopped itself, it can't tell how long a worker has been at its row.
        """
        claims = {worker: self.claims(worker) for worker in self._records}
        waiting = self._schedule.out > sum(map(len, claims.values()))
        for worker, record in list(self._records.items()):
            record.watch.look(claims[worker], now, waiting=waiting and not record.retires, overslept=overslept)
            if record.kill_deadline is not None and overslept:
                record.kill_deadline = now + KILL_GRACE
            if now >= self._deadline(record, asked) or self._seems_stopped(worker, now, asked):
                self._kill_unresponsive(worker, now, asked)
        deadlines = [self._deadline(record, asked) for record in self._records.values()]
        self.next_deadline = min([now + self._timeout / LOOKS, *deadlines])

    def _deadline(self, record: WorkerRecord, asked: float) -> float:
        """When a worker should have come further than it is."""
        if record.kill_deadline is not None:
            return record.kill_deadline
        return record.watch.deadline(asked, self._timeout if record.started else self._patience, self._patience)

    def _seems_stopped(self, worker: int, now: float, asked: float) -> bool:
        """Whether a started worker does nothing, though there is work, because it was stopped."""
        record = self._records[worker]
        late = now >= record.watch.deadline(asked, self._timeout, self._timeout)
        return late and record.started and record.kill_deadline is None and self._workers.is_stopped(worker)

    def _kill_unresponsive(self, worker: int, now: float, asked: float) -> None:
        """Kill a worker that does not respond; abandon one that should have been gone by now."""
        record = self._records[worker]
        if record.kill_deadline is not None:
            self._on_exit(worker, None)
            return
        record.stopped = self._workers.is_stopped(worker)
        if not record.stopped:
            if not record.started:
                raise StartError(
                    f"worker {worker} has not begun within {self._patience:g} seconds; raise timeout= if it needs longer"
                )
            record.stuck = record.watch.stuck(now, asked, self._timeout)
            record.unsure = record.watch.unsure(now, asked, self._timeout)
        record.kill_deadline = now + KILL_GRACE
        self._workers.kill(worker)

    def _on_exit(self, worker: int, death: WorkerDied | None) -> None:
        """``worker`` has died or, without ``death``, can't be killed: have what it held read again, by another in its place."""
        record = self._records[worker]
        claims = list(self.claims(worker).values())
        was_expected = record.retires or record.ends
        if death is None:
            how = Exit.ABANDONED
        else:
            how = Exit.CRASHED if record.kill_deadline is None and not was_expected else Exit.KILLED
        outcomes = after_exit(
            claims, record.stuck, how, self.deaths, timeout=self._timeout, death=str(death), unsure=record.unsure
        )
        if not was_expected:
            log.warning("%s", self._death_message(worker, death, outcomes))
        deaths_before_work = 0 if record.has_done else record.deaths_before_work
        # A started worker that held no ticket was not killed by its work, so its death does not count here.
        if how is Exit.CRASHED and (claims or not record.started) and not any(claim.begun for claim in claims):
            deaths_before_work += 1
            if death is not None and deaths_before_work == STARTS:
                raise death
        # What is read again goes first: others of its batch have been read already, and the batch may be waited for.
        self._schedule.take_back(self._workers.take_back())
        for outcome in outcomes:
            self._carry_out(outcome, unreadable=True, lost=how is Exit.ABANDONED)
        if was_expected:
            self._workers.remove(worker)
            del self._records[worker]
        else:
            self._workers.restart(worker, self.target.reads)
            self.restarts += 1
            self._records[worker] = WorkerRecord(Watch(time.monotonic()), deaths_before_work=deaths_before_work)
        self.give_out()

    def _carry_out(
        self, outcome: Outcome, error: SampleError | None = None, *, unreadable: bool = False, lost: bool = False
    ) -> None:
        """Do what was decided on a ticket that is out.

        The sample that is to blame has this ``error``, by default one made from the outcome's reason. With ``unreadable`` it is
        not tried again. With ``lost``, the reader that has the ticket may yet write into its slot.
        """
        ticket, schedule = outcome.claim.ticket, self._schedule
        failure = skipped = None
        if outcome.fate is Fate.BLAME and schedule.wants(ticket):
            failure = error or self._planner.error(ticket, outcome.row, outcome.reason)
            on_error = self._planner.on_error
            # A row that is left out is no longer read; but one whose reader can't be killed is read again, with its whole batch.
            goes_on = on_error == "replace" or (on_error == "collect" and not lost)
            if goes_on and outcome.claim.row is not None:
                self._planner.record(ticket, outcome.row, failure, unreadable=unreadable)
                skipped = ticket.start + outcome.row if on_error == "collect" else None
                failure = None
        if lost:
            if schedule.lose_slot(ticket):
                try:
                    schedule.add_slots(self._ring.grow())
                except OSError as refused:
                    self.failure = refused
            if failure is not None:
                schedule.deliver_error(ticket.batch, failure)
        elif failure is not None or not schedule.wants(ticket) or (skipped is not None and ticket.stop - ticket.start == 1):
            self._give_up(ticket, failure)
        else:
            self._planner.refill(ticket.slot, ticket.batch, ticket.start, ticket.stop)
            if skipped is not None:
                self._planner.mark_as_read(ticket.slot, skipped, skipped + 1)
            singly = outcome.fate is Fate.RETRY_SINGLY or skipped is not None
            schedule.retry(ticket, singly=singly, alone=outcome.fate is Fate.RETRY_ALONE, without=skipped)

    def _give_up(self, ticket: Ticket, failure: Exception | None) -> None:
        """What is left of a ticket that is out is not read: its batch is not wanted, or can't be delivered because of a failure.

        Another reader may just have read the batch's other rows. It did not ring, since this ticket's rows were still missing, so
        the main process must look at the reports by itself.
        """
        self._planner.mark_as_read(ticket.slot, ticket.start, ticket.stop)
        self._schedule.done([ticket.id], failure)
        self._workers.wake()

    def _death_message(self, worker: int, death: WorkerDied | None, outcomes: Sequence[Outcome]) -> str:
        record = self._records[worker]
        if record.kill_deadline is None:
            told = [str(death)]
        else:
            which = f"worker {worker} (pid {death.pid})" if death else f"worker {worker}"
            given = self._timeout if record.started and (record.stopped or record.stuck) else self._patience
            why = "had been stopped" if record.stopped else "gave no answer"
            told = [f"{which} {why} for {given:g} seconds, and {'was' if death else 'can not be'} killed"]
        claims = record.stuck or [claim for claim, *_ in outcomes]
        places = [(claim.ticket, claim.row) for claim in claims if claim.row is not None]
        if places:
            named = ", ".join(self._planner.named(*place) for place in places[:MAX_NAMED])
            more = f" and {len(places) - MAX_NAMED} more" if len(places) > MAX_NAMED else ""
            told.append(f"it was at {named}{more}")
        again = [claim.ticket for claim, fate, *_ in outcomes if fate is not Fate.BLAME or self._planner.on_error == "replace"]
        if again:
            rows = sum(ticket.stop - ticket.start for ticket in again)
            files = self._planner.listed(again, MAX_NAMED)
            held = "row that it held is" if rows == 1 else f"{rows} rows that it held are"
            told.append(f"another takes its place, and the {held} read again: {files}")
        else:
            told.append(f"it held nothing{' else' if outcomes else ''}; another takes its place")
        return "; ".join(told)


def _claim(ticket: Ticket, row: int | None, *, begun: bool) -> Claim:
    """A claim. If the ticket has a single row, the reader is known to be at that one."""
    return Claim(ticket, begun, 0 if row is None and begun and ticket.stop - ticket.start == 1 else row)
