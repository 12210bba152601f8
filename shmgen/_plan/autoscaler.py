"""How many workers there should be, and how many reads each should have in flight: given what was seen, it answers with both.

Pure: no process and no clock, so that each decision is a plain unit test.

Whether more is worth while, only the trainer can tell: one that does not wait changes nothing. How many more, the readers tell.
Of the time that they need for a row they compute for a part, and are blocked for the rest. So ``busy / cpu`` readers keep a
processor busy (Little's law). That many are tried at once, and judged by the rate of rows that follows. What was too much for the
storage is cut back to as many as the gain was worth.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from shmgen._plan.backoff import PATIENCE, Backoff
from shmgen._plan.progress import Limits, Progress, Target, Window
from shmgen._plan.stats import Decision
from shmgen._plan.verdict import WAITING

__all__ = ["Autoscaler", "Limits", "Progress", "Target"]

WAITS = 0.05
"""A trainer that waits for more than this fraction of its time is worth another reader."""

PAYS, LOSES = 0.1, 0.05
"""More is kept if rows a second grow by the first, or half of what they could; less, if they fall by less than the second."""

WORTH, UNLIKELY = 0.5, 1.5
"""Where more have gained less than the first part of what they could, as many as the gain was worth are tried. Where they have
gained more than the second, something else was slow before them, and it proves nothing."""

HARDLY_BUSY = 0.9
"""Readers that are blocked for more than this fraction of their time may be twice as many."""

CONTENDED = 0.5
"""Readers of a worker that computes for more than this fraction of the time may wait for each other."""

SATURATED = 0.8
"""A worker that computes for more than this fraction of the time gains nothing by more readers."""

SPARE, CALM = 0.8, 3
"""A worker is retired if the others would be busy for less than this part of the time, seen in so many windows in a row."""

LOOK, SHORT, LONG = 0.025, 0.15, 1.0
"""Seconds between two looks; of a window after a change; and of one where nothing changes: at least."""

PAUSE = 0.2
"""Seconds between two looks where nothing changes: a look costs some hundred microseconds."""

COVERS, ROUNDS = 1.25, 4
"""A window ends when its tickets make up the readers' time to this factor, when so many batches are read, or nobody waits."""

SETTLES = 2
"""Batches that were cut into tickets before a change are read after it, so many in all."""

log = logging.getLogger("shmgen")

Number = Literal["workers", "reads"]


class Trial(NamedTuple):
    """A change on trial: of which number, in which direction, from what, and what was seen before."""

    number: Number
    sign: int
    before: Target
    window: Window


class Autoscaler:
    """Steers workers and reads in flight together: reads first, since they are cheap.

    Args:
        target: what there is at first.
        scales_workers: whether the number of workers may be changed.
        scales_reads: whether that of the readers of each may be.
        limits: the largest numbers, given how many workers there would be and the fraction of their busy time in which readers
            are blocked, from 0 to 1.
        batch_rows: rows of a batch; each reader has a ticket in it.

    Attributes:
        target: what there should be now.
        decisions: the changes so far.
    """

    def __init__(
        self,
        target: Target,
        *,
        scales_workers: bool,
        scales_reads: bool,
        limits: Callable[[int, float], Limits],
        batch_rows: int = 64,
    ) -> None:
        self.target = target
        self.decisions: list[Decision] = []
        self._scales: dict[Number, bool] = {"workers": scales_workers, "reads": scales_reads}
        self._limits = limits
        self._batch_rows = batch_rows
        self._last: Progress | None = None
        self._time = 0.0  # since the first look
        self._epoch = -1
        self._window = Window()
        self._length = SHORT
        self._settling = 0  # rows that have yet to end before a change shows
        self._at_first = True
        self._trial: Trial | None = None
        self._backoffs = {(number, sign): Backoff() for number in self._scales for sign in (1, -1)}
        self._calm = 0

    @property
    def scaled(self) -> tuple[str, ...]:
        """Which of the numbers are steered."""
        return tuple(number for number, scales in self._scales.items() if scales)

    @property
    def pause(self) -> float:
        """Seconds until the next look is worth its while: few while a change is judged, more where nothing changes."""
        return LOOK if self._length < LONG or self._settling or self._at_first else PAUSE

    def is_due(self, time: float, rows: int) -> bool:
        """Whether it is time for another look, at ``time`` seconds, with so many rows finished."""
        return self._last is None or (rows > self._last.rows and time >= self._last.time + LOOK)

    def see(self, epoch: int, progress: Progress) -> Target:
        """Take a look: what there should be from now on.

        What lies between looks in two epochs is ignored: nobody knows what the caller does there. So is what is seen while a
        worker starts.

        Args:
            epoch: whose batches are asked for.
            progress: what has been done so far.
        """
        last, self._last = self._last, progress
        self._time += progress.time - last.time if last is not None else 0.0
        same_epoch, self._epoch = epoch == self._epoch, epoch
        if progress.ready < progress.workers:
            self._window = Window()
        elif self._at_first and progress.busy >= SHORT:
            self._at_first = False
            # The first tickets show whether readers are blocked. A trainer that waits so early waits for them alone.
            (_, rows, waited, busy, cpu, *_), readers = progress, self.target.readers
            self._more_reads(Window(busy / readers, rows, min(busy / readers, waited), busy, cpu, readers))
        elif last is not None and same_epoch:
            self._see_window(self._window.plus(last, progress))
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
            backoff.elapse(window.seconds)
        if (self._trial is not None and not self._judge(self._trial, window)) or not self._fits():
            return
        if window.wait > WAITS:
            self._calm = 0
            _ = self._more_reads(window) or self._fewer_reads(window) or self._more_workers(window)
        else:
            self._fewer_workers(window)

    def _fits(self) -> bool:
        """Whether there is room for what there is; else there is less from now on."""
        workers, reads = self.target
        # Even if readers wait all the time: that they wait less may come of the workers that were started for it.
        fitting = self._with_room(Target(min(workers, self._limits(workers, 1.0).workers), reads), 1.0)
        if fitting == self.target:
            return True
        self._change(fitting, f"there is room for {fitting} only")
        return False

    def _more_reads(self, window: Window) -> bool:
        """Try as many readers as keep a processor busy; twice as many as there are where it is hardly busy at all."""
        workers, reads = self.target
        # What readers compute is overestimated where they wait for each other, or for processors that others have.
        wanted = max(round(window.fill), 2 * reads if window.blocked > HARDLY_BUSY else 0)
        wanted = min(self._limits(workers, window.blocked).reads, wanted)
        if window.wait <= WAITS or window.blocked <= WAITING or wanted < reads * 5 / 4:
            return False
        return self._try("reads", 1, Target(workers, wanted), window, f"readers were blocked for {window.blocked:.0%} of theirs")

    def _fewer_reads(self, window: Window) -> bool:
        """Try a quarter of the readers, if they compute much: they may be in each other's way, for their interpreter."""
        workers, reads = self.target
        if reads == 1 or window.cpu < CONTENDED * window.seconds * workers:
            return False
        fewer = Target(workers, reads // 4 or 1)
        return self._try("reads", -1, fewer, window, f"{reads} readers of a worker may be in each other's way")

    def _more_workers(self, window: Window) -> bool:
        """Try as many workers as the trainer needs at this rate, but no more than would find something to do."""
        target, room = self.target, self._limits(self.target.workers, window.blocked)
        wanted = target.workers / max(1e-6, 1 - window.wait)
        blocked = window.blocked > WAITING and window.cpu < SATURATED * window.seconds * target.workers
        if blocked:
            wanted = min(wanted, target.workers * (2 if self._scales["reads"] else window.fill))
        more = self._with_room(Target(min(room.workers, math.ceil(wanted)), target.reads), window.blocked)
        # Where readers wait, only more of them help, and more of each worker are cheaper.
        useless = blocked and (more.readers <= target.readers or (self._scales["reads"] and target.reads < room.reads))
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
        """Whether the change is kept as it is: if it helped, or did no harm if it was for less. Else it is undone, or refined."""
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
        self._backoffs[number, sign].forgive()
        for backoff in self._backoffs.values():
            backoff.rate *= gain  # that is no other case
        if window.wait > WAITS and gain < UNLIKELY * max(1.0, ratio):
            # The more it gained, the longer nobody need ask whether the opposite would.
            self._backoffs[number, -sign].refuse(window.pace, max(1.0, gain))
        if sign > 0 and window.wait > WAITS and gain < WORTH * ratio:
            worth = math.ceil(count * max(1.0, gain) / ratio)
            self._begin(number, -1, self.target._replace(**{number: worth}), window, f"with {ratio:.0f} times as many, {rates}")
        return self._trial is None

    def _try(self, number: Number, sign: int, target: Target, window: Window, reason: str) -> bool:
        """Change to ``target`` on trial, unless that is fixed, or was refused lately."""
        allowed = self._scales[number] and self._backoffs[number, sign].allows(window.pace)
        if allowed:
            self._begin(number, sign, target, window, f"the trainer waited {window.wait:.0%} of the time, {reason}")
        return allowed

    def _begin(self, number: Number, sign: int, target: Target, window: Window, reason: str) -> None:
        self._trial = Trial(number, sign, self.target, window)
        self._change(target, reason)
        if sign > 0:
            # What was refused before is watched for longer.
            self._length = min(LONG, SHORT * self._backoffs[number, sign].cost / PATIENCE)

    def _change(self, target: Target, reason: str) -> None:
        self._settling = SETTLES * self._batch_rows
        self._length = SHORT
        self.target = target
        self.decisions.append(Decision(self._time, *target, reason))
        log.info("%s from now on: %s", target, reason)

    def _with_room(self, target: Target, blocked: float) -> Target:
        """As much of ``target`` as is not fixed and finds room."""
        workers = max(1, target.workers) if self._scales["workers"] else self.target.workers
        reads = self._limits(workers, blocked).reads if self._scales["reads"] else target.reads
        return Target(workers, max(1, min(target.reads, reads)))
