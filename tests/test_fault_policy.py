"""The policy for faults: which tickets are read again, and which samples are blamed, after a worker died or hung."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from shmgen._plan.faults import DEATHS, Claim, Deaths, Exit, Fate, Outcome, Watch, after_exit
from shmgen._plan.sampler import BatchId
from shmgen._plan.schedule import Ticket

TIMEOUT = 100.0


def claim(number: int = 0, row: int | None = 0, *, begun: bool = True, batch: int = 0) -> Claim:
    """A claim of the ticket of rows ``10 * number`` to ``10 * number + 10``; ``row`` counts from the ticket's first."""
    return Claim(Ticket(number + 1, 0, BatchId(0, batch), 10 * number, 10 * number + 10), begun, row)


WAITS = claim(row=None, begun=False)
"""A claim of a ticket that was taken, but not begun."""

UNKNOWN_ROW = claim(row=None)
"""A claim of a ticket that was begun, at an unknown row."""


def exit_of(claims: Sequence[Claim], how: Exit, *, stuck: Sequence[Claim] = (), deaths: Deaths | None = None) -> list[Outcome]:
    """The outcomes of ``claims`` when their worker ends."""
    return after_exit(claims, stuck, how, Deaths() if deaths is None else deaths, timeout=TIMEOUT, death="it died")


def fates(outcomes: Sequence[Outcome]) -> list[Fate]:
    """The fate in each outcome."""
    return [outcome.fate for outcome in outcomes]


def test_the_place_of_a_claim() -> None:
    """The place of a claim counts rows from the batch's first, and is None if the row is unknown."""
    assert claim(3, 2, batch=7).place == (BatchId(0, 7), 32)
    assert UNKNOWN_ROW.place is None
    assert WAITS.place is None


@pytest.mark.parametrize(
    ("one", "how", "stuck", "fate", "row"),
    [
        pytest.param(WAITS, Exit.CRASHED, False, Fate.RETRY, 0, id="not-begun-crashed"),
        pytest.param(WAITS, Exit.KILLED, False, Fate.RETRY, 0, id="not-begun-killed"),
        pytest.param(WAITS, Exit.ABANDONED, False, Fate.RETRY, 0, id="not-begun-abandoned"),
        pytest.param(claim(row=3), Exit.CRASHED, False, Fate.RETRY, 0, id="begun-crashed"),
        pytest.param(claim(row=3), Exit.KILLED, False, Fate.RETRY, 0, id="begun-killed"),
        pytest.param(claim(row=3), Exit.ABANDONED, False, Fate.RETRY, 0, id="begun-abandoned"),
        pytest.param(UNKNOWN_ROW, Exit.CRASHED, False, Fate.RETRY_SINGLY, 0, id="unknown-row-crashed"),
        pytest.param(UNKNOWN_ROW, Exit.KILLED, False, Fate.RETRY, 0, id="unknown-row-killed"),
        pytest.param(UNKNOWN_ROW, Exit.ABANDONED, False, Fate.RETRY, 0, id="unknown-row-abandoned"),
        pytest.param(claim(row=3), Exit.KILLED, True, Fate.BLAME, 3, id="stuck-killed"),
        pytest.param(claim(row=3), Exit.ABANDONED, True, Fate.BLAME, 3, id="stuck-abandoned"),
        pytest.param(UNKNOWN_ROW, Exit.KILLED, True, Fate.RETRY_SINGLY, 0, id="stuck-unknown-row-killed"),
        pytest.param(UNKNOWN_ROW, Exit.ABANDONED, True, Fate.BLAME, 0, id="stuck-unknown-row-abandoned"),
    ],
)
def test_the_fate_of_a_ticket(one: Claim, how: Exit, stuck: bool, fate: Fate, row: int) -> None:
    """A ticket's fate follows from how its worker ended, whether it was stuck, and its row; tickets not begun are retried."""
    beside = [claim(number, None, begun=False) for number in (5, 6)]
    outcome, *rest = exit_of([one, *beside], how, stuck=[one] if stuck else [])
    assert (outcome.claim, outcome.fate, outcome.row) == (one, fate, row)
    assert rest == [Outcome(other, Fate.RETRY) for other in beside]
    assert bool(outcome.reason) == (fate is Fate.BLAME)
    if fate is Fate.BLAME:
        assert "none for 100 seconds (timeout)" in outcome.reason
        assert outcome.reason.endswith("here or behind it") == (one.row is None)


def test_a_row_that_kills_is_retried_then_blamed() -> None:
    """A row at which workers die is retried, then retried alone, then blamed; after that, its deaths count from 0 again."""
    deaths = Deaths()
    one = claim(row=3)
    for _ in range(2):
        seen = [exit_of([one], Exit.CRASHED, deaths=deaths)[0] for _ in range(DEATHS)]
        assert fates(seen) == [Fate.RETRY] * (DEATHS - 2) + [Fate.RETRY_ALONE, Fate.BLAME]
        assert seen[-1].row == 3
        assert seen[-1].reason == f"expected a readable sample, found that {DEATHS} workers died at it: it died"


def test_a_row_is_identified_by_its_place_in_the_batch() -> None:
    """A row is identified by its place in the batch, since tickets are cut anew for a retry."""
    deaths = Deaths()
    [first] = exit_of([claim(1, 4)], Exit.CRASHED, deaths=deaths)
    single = Claim(Ticket(99, 5, BatchId(0, 0), 14, 15), begun=True, row=0)
    [second] = exit_of([single], Exit.CRASHED, deaths=deaths)
    [third] = exit_of([single], Exit.CRASHED, deaths=deaths)
    assert fates([first, second, third]) == [Fate.RETRY, Fate.RETRY_ALONE, Fate.BLAME]


def test_rows_and_batches_are_counted_apart() -> None:
    """Deaths at other rows, or at the same row of other batches, do not count for a row."""
    deaths = Deaths()
    for number in range(10):
        assert fates(exit_of([claim(row=number)], Exit.CRASHED, deaths=deaths)) == [Fate.RETRY]
        assert fates(exit_of([claim(row=0, batch=number + 1)], Exit.CRASHED, deaths=deaths)) == [Fate.RETRY]


def test_deaths_with_several_suspects_blame_none() -> None:
    """If several readers were at rows when workers died, none is blamed, but the rows are read alone after two deaths."""
    deaths = Deaths()
    claims = [claim(0, 1), claim(1, 2), WAITS]
    assert fates(exit_of(claims, Exit.CRASHED, deaths=deaths)) == [Fate.RETRY] * 3
    for _ in range(5):
        assert fates(exit_of(claims, Exit.CRASHED, deaths=deaths)) == [Fate.RETRY_ALONE] * 2 + [Fate.RETRY]
    assert fates(exit_of([claims[0], WAITS], Exit.CRASHED, deaths=deaths)) == [Fate.BLAME, Fate.RETRY]


def test_a_row_beside_an_unknown_row_is_not_blamed() -> None:
    """A row is not blamed if another reader was at an unknown row, since that one may be the cause."""
    deaths = Deaths()
    claims = [claim(0, 1), claim(1, None)]
    for fate in (Fate.RETRY, Fate.RETRY_ALONE, Fate.RETRY_ALONE):
        assert fates(exit_of(claims, Exit.CRASHED, deaths=deaths)) == [fate, Fate.RETRY_SINGLY]


@pytest.mark.parametrize(("how", "fate"), [(Exit.KILLED, Fate.RETRY_ALONE), (Exit.ABANDONED, Fate.BLAME)])
def test_a_row_that_may_have_waited_for_another_is_read_alone(how: Exit, fate: Fate) -> None:
    """A stuck row that may have waited for another is read alone, but blamed if its worker can't be killed."""
    one = claim(row=3)
    [outcome] = after_exit([one], [one], how, Deaths(), timeout=TIMEOUT, death="", unsure=[one])
    assert outcome.fate is fate


@pytest.mark.parametrize("how", [Exit.KILLED, Exit.ABANDONED])
def test_deaths_by_the_main_process_do_not_count(how: Exit) -> None:
    """The death of a worker that the main process killed does not count for its rows."""
    deaths = Deaths()
    for _ in range(2 * DEATHS):
        assert fates(exit_of([claim()], how, deaths=deaths)) == [Fate.RETRY]
    assert fates(exit_of([claim()], Exit.CRASHED, deaths=deaths)) == [Fate.RETRY]


# Time limits


def watched(*looks: tuple[float, Sequence[Claim]], waiting: bool = False, begun: float = 0.0) -> Watch:
    """A watch since ``begun`` that has seen, at each time in ``looks``, the claims of readers 0, 1, ..."""
    watch = Watch(begun)
    for now, claims in looks:
        watch.look(dict(enumerate(claims)), now, waiting=waiting, overslept=False)
    return watch


def test_an_idle_worker_has_no_deadline() -> None:
    """A worker without tickets has no deadline while none waits in the queue."""
    assert watched((0, []), (50, [])).deadline(0, TIMEOUT, TIMEOUT) == math.inf
    assert Watch(0).deadline(0, TIMEOUT, TIMEOUT) == math.inf
    assert watched((0, [claim()]), (50, [])).deadline(0, TIMEOUT, TIMEOUT) == math.inf


def test_a_rows_deadline_counts_from_the_first_look() -> None:
    """A row's deadline counts from the first look at it; the next row or ticket has a new deadline."""
    assert watched((10, [claim()])).deadline(0, TIMEOUT, TIMEOUT) == 110
    assert watched((10, [claim()]), (40, [claim()]), (70, [claim()])).deadline(0, TIMEOUT, TIMEOUT) == 110
    assert watched((10, [claim(row=0)]), (40, [claim(row=1)])).deadline(0, TIMEOUT, TIMEOUT) == 140
    assert watched((10, [claim(0)]), (40, [claim(1)])).deadline(0, TIMEOUT, TIMEOUT) == 140
    assert watched((10, [claim(0)]), (40, []), (70, [claim(0)])).deadline(0, TIMEOUT, TIMEOUT) == 170


def test_the_deadline_is_that_of_the_slowest_reader() -> None:
    """The deadline is that of the reader longest at its row, whatever others do; a reader is stuck once its time is over."""
    slow, quick = claim(0, 3), claim(1, 1)
    watch = watched((0, [slow, quick]), (40, [slow, claim(1, 2)]), (80, [slow, claim(2, 0)]))
    assert watch.deadline(0, TIMEOUT, TIMEOUT) == 100
    assert watch.stuck(99.9, 0, TIMEOUT) == []
    assert watch.stuck(100, 0, TIMEOUT) == [slow]
    assert watch.stuck(179, 0, TIMEOUT) == [slow]
    assert watch.stuck(180, 0, TIMEOUT) == [slow, claim(2, 0)]


def test_two_stuck_readers_may_be_waiting_for_each_other() -> None:
    """Two readers stuck for half their time may be waiting for each other, unless a third has got further since then."""
    one, two = claim(0), claim(1)
    both = watched((0, [one, two]))
    assert both.unsure(49, 0, TIMEOUT) == []
    assert both.unsure(50, 0, TIMEOUT) == both.unsure(100, 0, TIMEOUT) == [one, two]
    assert both.unsure(100, 60, TIMEOUT) == []
    assert watched((0, [one])).unsure(100, 0, TIMEOUT) == []
    assert watched((0, [one]), (60, [one, two])).unsure(100, 0, TIMEOUT) == []
    for moved, unsure in ((49, [one, two]), (50, [])):
        assert watched((0, [one, two]), (moved, [one, two, claim(2)])).unsure(90, 0, TIMEOUT) == unsure
