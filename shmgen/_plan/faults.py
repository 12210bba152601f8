"""Decides what follows from a worker's death, a read that does not end, and a sample that can't be read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from shmgen._plan.sampler import BatchId
from shmgen._plan.schedule import Ticket

DEATHS = 3
"""A row at which this number of workers died is unreadable."""

STAYS = 0.5
"""A reader that has been at a row for this fraction of ``timeout`` may be stuck there."""


class Claim(NamedTuple):
    """A ticket that a reader has taken, and how far it is."""

    ticket: Ticket
    begun: bool  # a ticket that was not begun had no part in what has happened
    row: int | None  # where it is, from the ticket's first row; None if it is at none, or its source does not mark rows

    @property
    def place(self) -> tuple[BatchId, int] | None:
        """The batch and the row in it, if that is known."""
        return None if self.row is None else (self.ticket.batch, self.ticket.start + self.row)


class Exit(Enum):
    """How a worker ended."""

    CRASHED = "it died by itself"
    KILLED = "it was killed, since it gave no answer or had been stopped"
    ABANDONED = "it can't be killed, and is left to itself"


class Fate(Enum):
    """What becomes of a ticket."""

    RETRY = "it is read again"
    RETRY_ALONE = "it is read again while nothing else is read"
    RETRY_SINGLY = "its rows are read again, each by itself, to know which it was"
    BLAME = "its row is unreadable: it is replaced, or else the batch's error"


class Outcome(NamedTuple):
    """What becomes of a ticket, and why."""

    claim: Claim
    fate: Fate
    row: int = 0  # with `Fate.BLAME`, the unreadable row, from the ticket's first
    reason: str = ""  # why it is unreadable, in an error's words


class Deaths(Counter[tuple[BatchId, int]]):
    """How many workers have died at each row.

    With many reads in flight it is not known which was deadly. So a row at which two workers have died is read alone.
    """

    def outcome(self, claim: Claim, death: str, *, alone: bool) -> Outcome:
        """What becomes of a claim that a worker had begun when it crashed; ``alone`` if it had begun no other."""
        if claim.place is None:
            return Outcome(claim, Fate.RETRY_SINGLY)
        self[claim.place] += 1
        if self[claim.place] < DEATHS - 1:
            return Outcome(claim, Fate.RETRY)
        if self[claim.place] < DEATHS or not alone:
            return Outcome(claim, Fate.RETRY_ALONE)
        del self[claim.place]  # if the batch is requested again, the row gets as many tries again
        assert claim.row is not None
        return Outcome(
            claim, Fate.BLAME, claim.row, f"expected a readable sample, found that {DEATHS} workers died at it: {death}"
        )

    def forget(self, batch: BatchId) -> None:
        """``batch`` has been read, so none of its rows was deadly."""
        for place in [place for place in self if place[0] == batch]:
            del self[place]


def after_exit(
    claims: Sequence[Claim],
    stuck: Collection[Claim],
    how: Exit,
    deaths: Deaths,
    *,
    timeout: float,
    death: str,
    unsure: Collection[Claim] = (),
) -> list[Outcome]:
    """What becomes of the tickets of a worker that has ended, which its readers had taken and not done.

    It was killed for the ``stuck`` ones, which did not move for ``timeout`` seconds. Its ``death`` is added to the ``deaths``.
    """
    outcomes = []
    alone = sum(claim.begun for claim in claims) == 1
    reason = f"expected an answer, found none for {timeout:g} seconds (timeout)"
    for claim in claims:
        # After a worker that can't be killed, a claim's rows are not tried one by one, since each might cost a slot.
        if how is Exit.CRASHED and claim.begun:
            outcomes.append(deaths.outcome(claim, death, alone=alone))
        elif claim in stuck and claim.row is None and how is not Exit.ABANDONED:
            outcomes.append(Outcome(claim, Fate.RETRY_SINGLY))
        elif claim in unsure and how is not Exit.ABANDONED:
            outcomes.append(Outcome(claim, Fate.RETRY_ALONE))
        elif claim in stuck:
            where = ", here or behind it" if claim.row is None else ""
            outcomes.append(Outcome(claim, Fate.BLAME, claim.row or 0, reason + where))
        else:
            outcomes.append(Outcome(claim, Fate.RETRY))
    return outcomes


def after_failure(claim: Claim) -> Outcome:
    """What becomes of a ticket whose sample in the claim's row, if that is known, could not be read."""
    return Outcome(claim, Fate.RETRY_SINGLY) if claim.row is None else Outcome(claim, Fate.BLAME, claim.row)


class Watch:
    """Since when a worker's readers have been where they are."""

    def __init__(self, now: float) -> None:
        self._claims: dict[int, Claim] = {}
        self._since: dict[int, float] = {}
        self._moved = now
        self._has_work = False

    def look(self, claims: Mapping[int, Claim], now: float, *, waiting: bool, overslept: bool) -> None:
        """Take in what each reader has taken, by its number; ``waiting`` if there are tickets that no reader has taken."""
        has_work = waiting or bool(claims)
        moved = overslept or claims != self._claims or not (has_work and self._has_work)
        stay = set() if overslept else {reader for reader, claim in claims.items() if self._claims.get(reader) == claim}
        self._since = {reader: self._since[reader] if reader in stay else now for reader in claims}
        self._claims, self._has_work = dict(claims), has_work
        if moved:
            self._moved = now

    def deadline(self, asked: float, timeout: float, patience: float) -> float:
        """By when the worker should make progress, if a request has waited since ``asked``; between requests no worker is late.

        It has ``timeout`` seconds for a row, and ``patience`` to take a ticket, while its process may not be running.
        """
        if not self._has_work:
            return math.inf
        # A reader that has not begun waits for the others.
        begun = [since for reader, since in self._since.items() if self._claims[reader].begun]
        return max(asked, min(begun)) + timeout if begun else max(asked, self._moved) + patience

    def stuck(self, now: float, asked: float, timeout: float) -> list[Claim]:
        """The claims that have not moved for ``timeout`` seconds."""
        return [claim for claim, since in self._at_rows(asked) if now >= since + timeout]

    def unsure(self, now: float, asked: float, timeout: float) -> list[Claim]:
        """The stuck claims that may be innocent: another reader may hold the interpreter and never release it.

        A claim is not innocent if others moved while it was stuck, or if it is the only stuck one.
        """
        stay = [(claim, since + STAYS * timeout) for claim, since in self._at_rows(asked) if now >= since + STAYS * timeout]
        return [claim for claim, time in stay if self._moved < time] if len(stay) > 1 else []

    def _at_rows(self, asked: float) -> list[tuple[Claim, float]]:
        """The claims that have begun, and when the time of each began to count."""
        return [(self._claims[reader], max(asked, since)) for reader, since in self._since.items() if self._claims[reader].begun]
