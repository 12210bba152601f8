"""How many workers there should be, and how many reads each should have in flight.

Only the trainer can tell whether more would help: where it does not wait, nothing is changed. The readers tell how many more
would help: they compute for a part of the time of each row and are blocked for the rest, so it takes ``busy / cpu`` readers to
keep one processor busy (Little's law). The autoscaler tries that many at once, and judges them by the rate of rows that follows.
Where they were too many for the storage, it cuts them back to the number that the gain was worth.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from shmgen._plan.activity import Counters, Target, Window
from shmgen._plan.stats import WAITING, Decision

WAITS = 0.05
"""A trainer that waits for more than this fraction of its time is worth another reader."""

PAYS, LOSES = 0.1, 0.05
"""More readers are kept if rows a second grow by the first fraction, or by half of what they could; fewer are kept if rows
a second fall by less than the second fraction."""

WORTH, UNLIKELY = 0.5, 1.5
"""Where more readers gained less than the first fraction of what they could, as many as the gain was worth are tried. Where they
gained more than the second, something else was slow before the change, and the gain proves nothing."""

HARDLY_BUSY = 0.9
"""Readers that are blocked for more than this fraction of their time may be doubled."""

CONTENDED = 0.5
"""Readers of a worker that computes for more than this fraction of the time may wait for each other."""

SATURATED = 0.8
"""A worker that computes for more than this fraction of the time gains nothing by more readers."""

SPARE, CALM = 0.8, 3
"""A worker is retired if the others would be busy for less than this fraction of their time, this many windows in a row."""

SHORT, LONG = 0.15, 1.0
"""Least seconds of a window after a change; and of one where nothing changes."""

LOOK, PAUSE = 0.025, 0.2
"""Least seconds between two looks while a change is judged, and where nothing changes: a look costs some hundred microseconds. If
the trainer does not wait, `LONG` lies between two."""

COVERS, ROUNDS = 1.25, 4
"""A window ends when its tickets make up the readers' time to within the first, a factor; when this number of batches has been
read; or when it is long and the trainer does not wait."""

SETTLES = 2
"""Batches, in all, that were cut into tickets before a change and are read after it."""

PATIENCE = 4.0
"""Seconds until a change that did not help is tried again; doubled each time."""

CHANGED = 1.4
"""A refused change is tried again at once where the rate of rows has changed by this factor."""

log = logging.getLogger("shmgen")

Number = Literal["workers", "reads"]


class Backoff:
    """Whether one kind of change may be tried."""

    def __init__(self) -> None:
        self.left = 0.0  # seconds until it may be
        self.cost = PATIENCE  # seconds that the next refusal costs
        self.rate = 0.0  # rows a second when it was refused

    def refuse(self, rate: float, times: float = 1.0) -> None:
        """Refuse it for ``times * cost`` seconds; the next refusal costs twice that."""
        self.left, self.rate = times * self.cost, rate
        self.cost = 2 * self.left

    def allows(self, rate: float) -> bool:
        return not self.left or not self.rate / CHANGED < rate < self.rate * CHANGED


class Trial(NamedTuple):
    """A change on trial: of which number, in which direction, from what, and what was seen before."""

    number: Number
    sign: int
    before: Target
    window: Window


class Autoscaler:
    """Steers the numbers of workers and of reads in flight together, as far as they are ``scaled``: reads first, which are cheap.

    ``limits`` gives the largest target for a number of workers, and for the fraction of their busy time in which readers are
    blocked. ``look_at`` is when to take the next look.
    """

    def __init__(self, scaled: Sequence[Number], limits: Callable[[int, float], Target], batch_rows: int) -> None:
        self.target = Target(1, 1)
        self.decisions: list[Decision] = []
        self.scaled = tuple(scaled)
        self.look_at = 0.0 if scaled else math.inf
        self._limits = limits
        self._batch_rows = batch_rows
        self._last: Counters | None = None
        self._time = 0.0  # since the first look
        self._epoch = -1
        self._window = Window()
        self._length = SHORT
        self._settling = 0  # rows that have yet to be read before a change shows
        self._at_first = True
        self._trial: Trial | None = None
        self._backoffs = {(number, sign): Backoff() for number in self.scaled for sign in (1, -1)}
        self._calm = 0

    def is_due(self, time: float, rows: int) -> bool:
        """Whether it is time for another look, at ``time`` seconds, with ``rows`` read: a look without progress tells nothing."""
        return time >= self.look_at and (self._last is None or rows > self._last.rows)

    def see(self, epoch: int, counters: Counters) -> Target:
        """Take a look; what there should be from now on.

        Time between two epochs is ignored, as the caller may have done anything, and so is the time in which a worker starts.
        """
        last, self._last = self._last, counters
        self.target = counters.target
        self._time += counters.time - last.time if last is not None else 0.0
        same_epoch, self._epoch = epoch == self._epoch, epoch
        if counters.started < counters.target.workers:
            self._window = Window()
        elif self._at_first and counters.busy >= SHORT:
            self._at_first = False
            # The first tickets show whether readers are blocked. A trainer that waits this early waits for them alone.
            (_, rows, waited, busy, cpu, *_), readers = counters, self.target.readers
            self._more_reads(Window(busy / readers, rows, min(busy / readers, waited), busy, cpu, readers))
        elif last is not None and same_epoch:
            self._see_window(self._window.plus(last, counters))
        if last is not None and counters.waited <= last.waited:
            pause = LONG
        else:
            pause = LOOK if self._length < LONG or self._settling or self._at_first else PAUSE
        self.look_at = counters.time + pause
        return self.target

    def _see_window(self, window: Window) -> None:
        self._window = window
        if self._settling:
            self._window, self._settling = Window(), max(0, self._settling - window.rows)
            return
        if window.seconds < self._length:
            return
        patient = window.wait <= WAITS and window.seconds >= LONG
        if not (1 / COVERS <= window.cover <= COVERS or window.rows >= ROUNDS * self._batch_rows or patient):
            return
        self._window, self._length = Window(), LONG
        for backoff in self._backoffs.values():
            backoff.left = max(0.0, backoff.left - window.seconds)
        if (self._trial is not None and not self._judge(self._trial, window)) or not self._fits():
            return
        if window.wait > WAITS:
            self._calm = 0
            _ = self._more_reads(window) or self._fewer_reads(window) or self._more_workers(window)
        else:
            self._fewer_workers(window)

    def _fits(self) -> bool:
        """Whether there is room for the present target; if not, it is reduced."""
        # 1.0, as if readers were always blocked: workers that were added for it may be why they are blocked less now.
        fitting = self._with_room(self.target.workers, 1.0)
        if fitting == self.target:
            return True
        self._change(fitting, f"there is room for {fitting} only")
        return False

    def _more_reads(self, window: Window) -> bool:
        """Try as many readers as keep a processor busy, or twice the present number where it is hardly busy at all."""
        workers, reads = self.target
        # `fill` is too low where readers wait for each other, or for processors that other processes have.
        wanted = max(round(window.fill), 2 * reads if window.blocked > HARDLY_BUSY else 0)
        wanted = min(self._limits(workers, window.blocked).reads, wanted)
        if window.wait <= WAITS or window.blocked <= WAITING or wanted < reads * 5 / 4:
            return False
        return self._try("reads", 1, Target(workers, wanted), window, f"readers were blocked for {window.blocked:.0%} of theirs")

    def _fewer_reads(self, window: Window) -> bool:
        """Try a quarter of the readers if they compute much: they may be waiting for their worker's interpreter."""
        workers, reads = self.target
        if reads == 1 or window.cpu < CONTENDED * window.seconds * workers:
            return False
        fewer = Target(workers, reads // 4 or 1)
        return self._try("reads", -1, fewer, window, f"{reads} readers of a worker may be in each other's way")

    def _more_workers(self, window: Window) -> bool:
        """Try as many workers as the trainer needs at this rate, but no more than would find work."""
        target, room = self.target, self._limits(self.target.workers, window.blocked)
        wanted = target.workers / max(1e-6, 1 - window.wait)
        blocked = window.blocked > WAITING and window.cpu < SATURATED * window.seconds * target.workers
        if blocked:
            wanted = min(wanted, target.workers * (2 if "reads" in self.scaled else window.fill))
        more = self._with_room(math.ceil(wanted), window.blocked)
        # Where readers wait, only more readers help, and more of them in each worker are cheaper.
        useless = blocked and (more.readers <= target.readers or ("reads" in self.scaled and target.reads < room.reads))
        if useless or more.workers <= target.workers:
            return False
        return self._try("workers", 1, more, window, f"each worker did {window.pace / target.workers:,.0f} rows a second")

    def _fewer_workers(self, window: Window) -> None:
        """Try one worker less if the others have had time for its work for a while."""
        workers, reads = self.target
        load = window.busy / window.seconds
        self._calm = self._calm + 1 if load < SPARE * (workers - 1) * reads else 0
        if self._calm >= CALM:
            self._calm = 0
            self._try("workers", -1, Target(workers - 1, reads), window, f"{load:.1f} of {workers * reads} readers had work")

    def _judge(self, trial: Trial, window: Window) -> bool:
        """Whether the change stays as it is: it helped or, if it was for less, did no harm. If not, it is undone or refined."""
        self._trial = None
        number, sign, before, seen = trial
        gain = window.pace / seen.pace if seen.pace else 1.0
        count: int = getattr(self.target, number)
        ratio = count / getattr(before, number)
        enough = 1 + min(PAYS, (ratio - 1) / 2) if sign > 0 else 1 - LOSES
        rates = f"{seen.pace:,.0f} rows a second became {window.pace:,.0f}"
        if window.wait > WAITS and gain < enough:
            self._backoffs[number, sign].refuse(seen.pace)
            self._change(before, f"with {self.target}, {rates}")
            self._length = LONG
            return False
        self._length = SHORT
        self._backoffs[number, sign].cost = PATIENCE  # it has helped: the next refusal costs what the first one did
        for backoff in self._backoffs.values():
            backoff.rate *= gain  # the change itself is no reason to try again what was refused
        if window.wait > WAITS and gain < UNLIKELY * max(1.0, ratio):
            # The more it gained, the longer the opposite change is not tried.
            self._backoffs[number, -sign].refuse(window.pace, max(1.0, gain))
        if sign > 0 and window.wait > WAITS and gain < WORTH * ratio:
            worth = math.ceil(count * max(1.0, gain) / ratio)
            self._begin(number, -1, self.target._replace(**{number: worth}), window, f"with {ratio:.0f} times as many, {rates}")
        return self._trial is None

    def _try(self, number: Number, sign: int, target: Target, window: Window, reason: str) -> bool:
        """Change to ``target`` on trial, unless the number is fixed or the change was refused lately."""
        allowed = number in self.scaled and self._backoffs[number, sign].allows(window.pace)
        if allowed:
            self._begin(number, sign, target, window, f"the trainer waited {window.wait:.0%} of the time, {reason}")
        return allowed

    def _begin(self, number: Number, sign: int, target: Target, window: Window, reason: str) -> None:
        self._trial = Trial(number, sign, self.target, window)
        self._change(target, reason)
        if sign > 0:
            # A change that was refused before is watched for longer.
            self._length = min(LONG, SHORT * self._backoffs[number, sign].cost / PATIENCE)

    def _change(self, target: Target, reason: str) -> None:
        self._settling = SETTLES * self._batch_rows
        self._length = SHORT
        self.target = target
        self.decisions.append(Decision(self._time, *target, reason))
        log.info("%s from now on: %s", target, reason)

    def _with_room(self, workers: int, blocked: float) -> Target:
        """``workers`` workers with as many reads each as now, as far as these numbers are not fixed and there is room."""
        now, reads = self.target
        workers = max(1, min(workers, self._limits(now, blocked).workers)) if "workers" in self.scaled else now
        most = self._limits(workers, blocked).reads if "reads" in self.scaled else reads
        return Target(workers, max(1, min(reads, most)))
