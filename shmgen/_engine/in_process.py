"""Runs tickets in the main process, where a debugger can stop in the user's code."""

from __future__ import annotations

import select
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from shmgen._engine.workers import Event, EventKind, Wakeup
from shmgen._memory.limit_errors import named
from shmgen._memory.records import BUSY, EPOCH, FUNCTION, POSITION, ROW, SAMPLES, TURN
from shmgen._memory.ring import Ring
from shmgen._plan.meter import TimeSpent
from shmgen._plan.schedule import Ticket
from shmgen._samples.ids import take
from shmgen._sources.base import IDLE, row_of
from shmgen._worker.rng import own_random_state
from shmgen._worker.ticket_filler import Task, TicketFiller


class InProcess:
    """Runs tickets in the main process, one at each `wait`; ``tables`` are those of `key_tables`."""

    def __init__(self, ring: Ring, tables: Sequence[Sequence[Any]], filler: TicketFiller) -> None:
        self.pids: dict[int, int] = {}
        # The words of a record on a worker's status page, from `ROW` on.
        self._at = [IDLE, *[0] * (TURN - ROW)]
        self._cpu = 0
        filler.set_up()
        self._filler = filler.opened(self._at)
        with named():
            self._wakeup = Wakeup()
        self._poll = select.poll()
        self._poll.register(self._wakeup.fd, select.POLLIN)
        self._ring = ring
        self._tables = [partial(take, table) for table in tables]
        self._tickets: list[Ticket] = []
        self._events: list[Event] = []

    def put(self, tickets: Sequence[Ticket]) -> None:
        self._tickets += tickets

    def wait(self, timeout: float | None) -> None:
        if self._events:  # an earlier caller was interrupted before it handled them
            return
        if self._tickets:
            ticket = self._tickets[0]
            event = Event(0, EventKind.ABORTED, ticket.id)
            began, used = time.monotonic_ns(), time.thread_time_ns()
            try:
                with own_random_state() if self._filler.calls_functions else nullcontext():
                    sheet = self._ring.sheets[ticket.slot]
                    samples = sheet[SAMPLES + ticket.start : SAMPLES + ticket.stop]
                    task = Task(ticket.start, int(sheet[EPOCH]), int(sheet[POSITION]) + ticket.start, samples, self._tables)
                    self._filler.fill(self._ring.bytes(ticket.slot), task)
                event = Event(0, EventKind.DONE, [(ticket.id, 0, 0, 0)])
            except Exception as error:
                event = Event(0, EventKind.FAILED, (ticket.id, row_of(self._at[0]), error))
            finally:
                self._at[BUSY - ROW] += time.monotonic_ns() - began
                self._cpu += time.thread_time_ns() - used
                # One statement, so that a signal's handler can't raise halfway: the ticket is done again, or the event recorded.
                self._tickets, self._events = self._tickets[1:], [*self._events, event]
        else:
            self._poll.poll(None if timeout is None else 1000 * timeout)
            self._wakeup.clear()

    def wake(self) -> None:
        self._wakeup.set()

    def poll_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def poll_reports(self) -> list[Event]:
        return []

    def claims(self, worker: int) -> Mapping[int, tuple[int, int]]:
        return {0: (self._tickets[0].id, self._at[0])} if self._tickets else {}

    def time_spent(self) -> TimeSpent:
        busy, function, turn = (self._at[word - ROW] / 1e9 for word in (BUSY, FUNCTION, TURN))
        return TimeSpent(busy, self._cpu / 1e9, function, turn)

    def _never(self, *_: object) -> Any:
        raise NotImplementedError("there are no processes")

    take_back = is_stopped = kill = restart = retire = remove = add = set_reads = _never

    def set_eager(self, eager: bool) -> None:
        pass

    def stop(self) -> None:
        self._tickets.clear()
        self._wakeup.close()
