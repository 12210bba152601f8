"""A contest: the contestants' processes, of which one contestant's run at a time, in turn, round after round."""

from __future__ import annotations

import compileall
import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.cases import CASES, Case, Checksum
from benchmarks.contestant import Turn
from benchmarks.feeds import FEEDS
from benchmarks.machine import busy, drop
from benchmarks.matrix import CONTESTS, FIGURES, Contest
from benchmarks.peers import PEERS
from benchmarks.storage import storage
from benchmarks.team import ROOT, FailedError, Team

OURS = ("shmgen", "shmgen-auto", "shmgen-tensors")
"""What is measured here, against all the others."""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: turns of shmgen and of what nobody can be better than.
        few: turns of the others; and of all, where turns are long.
        seconds: that a turn lasts, at least.
        cut: how many times fewer files than the case has.
        quick: the smaller choice of contestants, and of settings.
        root: folder of the data sets.
    """

    rounds: int
    few: int
    seconds: float
    cut: int
    quick: bool = False
    root: Path = CASES["volume-32"].root

    def contestants(self, contest: Contest) -> list[str]:
        """That take part, because the plan wants them and they are installed."""
        wanted = contest.quick if self.quick else contest.contestants
        return [contestant for contestant in wanted if contestant not in missing()]

    def case(self, contest: Contest) -> Case:
        """The data set, as large as the plan wants it."""
        case = CASES[contest.case]
        return replace(case, files=(contest.files or case.files) // self.cut, repeats=contest.repeats, root=self.root)

    def settings(self, contest: Contest, contestant: str) -> tuple[int, ...]:
        """Reads in flight to be tried."""
        found = contest.settings.get(contestant, (0,))
        return found[:1] if self.quick else found


def is_peer(contestant: str) -> bool:
    """Whether others wrote ``contestant``; the blog's own is no peer."""
    return contestant not in (*OURS, "naive") and not is_bound(contestant)


def is_bound(contestant: str) -> bool:
    """Whether nobody can be better than ``contestant``, which does only what must be done."""
    return contestant == "memory" or PEERS[contestant].limit


FULL = Plan(rounds=5, few=3, seconds=0.5, cut=1)
QUICK = Plan(rounds=3, few=2, seconds=0.25, cut=4, quick=True)


def missing() -> list[str]:
    """Peers that are not installed."""
    return [name for name, peer in PEERS.items() if not peer.installed]


@dataclass(frozen=True)
class Result:
    """What a contest gave.

    Attributes:
        contest: that was held.
        case: that was read.
        values: of every figure, of every contestant, round by round; peers may have fewer rounds.
        failed: why contestants are left out.
        settings: the best number of reads in flight of those that had a choice.
    """

    contest: Contest
    case: Case
    values: dict[str, dict[str, list[float]]]
    failed: dict[str, str] = field(default_factory=dict)
    settings: dict[str, int] = field(default_factory=dict)

    @property
    def main(self) -> str:
        """The figure that the contest is about."""
        return self.contest.figures[0]

    def bounds(self, figure: str) -> list[str]:
        """Those that nobody can be better than."""
        return [name for name in self.values[figure] if is_bound(name)]

    def best_peer(self, figure: str) -> str | None:
        """The best of the loaders that others wrote."""
        choose = max if FIGURES[figure].more else min
        names = filter(is_peer, self.values[figure])
        return choose(names, key=lambda name: median(self.values[figure][name]), default=None)

    def ratios(self, figure: str, contestant: str, other: str) -> list[float]:
        """One's values by the other's, round by round: what slows a machine for a while slows both."""
        both = zip(self.values[figure][contestant], self.values[figure][other], strict=False)
        return [mine / theirs if theirs else float("nan") for mine, theirs in both]


def hold(contest: Contest, plan: Plan) -> Result:
    """Let the contestants take turns.

    Those that have a choice of settings first take a turn with each, which does not count.

    Raises:
        UnavailableError: what the contest needs can't be had here.
    """
    case = plan.case(contest)
    case.make()
    compileall.compile_dir(ROOT / "shmgen", quiet=1)  # as an installation has it: else a first batch would wait for that
    step = contest.step * _limit_step(contest, plan) if contest.step else 0.0
    with storage(contest.storage, case) as seen, ExitStack() as stack:
        floor = _Floor(contest, replace(case, seen=seen), plan, step, stack)
        names = plan.contestants(contest)
        if contest.storage == "cold":
            os.sync()  # or pages that are not written yet would stay
        else:
            for id in case.labels:
                (case.folder / f"{id}.npy").read_bytes()
        for enter in (floor.invite, floor.ready):
            for name in names:
                enter(name)
        dice = random.Random(0)
        for number in range(plan.few if contest.long else plan.rounds):
            with busy(contest.beside):
                for name in _order(names if number < plan.few else list(filter(_is_core, names)), dice):
                    floor.play(name)
        if "memory" in contest.figures:
            for name in names:
                floor.weigh(name)
    return floor.result()


def _is_core(name: str) -> bool:
    """Whether a contestant's figures are compared most: shmgen's, with what nobody can be better than."""
    return name == "shmgen" or is_bound(name)


def _order(names: list[str], dice: random.Random) -> list[str]:
    """Of a round: a new one each time, in which those that are compared most follow each other, on the same machine."""
    core = [name for name in names if _is_core(name)]
    others = [name for name in names if not _is_core(name)]
    place = dice.randrange(len(others) + 1)
    others = dice.sample(others, len(others))
    return [*others[:place], *dice.sample(core, len(core)), *others[place:]]


class _Floor:
    """Where the contestants of a contest meet: their processes, what they reached, and who failed."""

    def __init__(self, contest: Contest, case: Case, plan: Plan, step: float, stack: ExitStack) -> None:
        self._contest, self._case, self._plan, self._stack = contest, case, plan, stack
        self._team = partial(Team, contest, case, seconds=plan.seconds * contest.length, step=step)
        self._teams: dict[str, Team] = {}
        self._settings: dict[str, int] = {}
        self._values: dict[str, dict[str, list[float]]] = {figure: {} for figure in contest.figures}
        self._failed: dict[str, str] = {}

    def invite(self, name: str) -> None:
        """Choose the setting, and start its processes, unless each turn has fresh ones."""
        settings = self._plan.settings(self._contest, name)
        figure = FIGURES[self._contest.figures[0]]
        found: dict[int, float] = {}
        if len(settings) > 1:
            for setting in settings:
                with suppress(FailedError), self._team(name, reads=setting) as team:
                    team.ready()
                    value = MEASURES[self._contest.figures[0]](self._turn(team, name), self._case)
                    found[setting] = value if figure.more else -value
        self._settings[name] = max(found, key=lambda setting: found[setting], default=settings[0])
        if self._contest.what != "start":
            self._teams[name] = self._stack.enter_context(self._team(name, reads=self._settings[name]))

    def ready(self, name: str) -> None:
        """Wait until its processes are, if it has any by now."""
        if name in self._teams:
            self._attempt(name, self._teams[name].ready)

    def play(self, name: str) -> None:
        """A turn that counts."""
        self._attempt(name, lambda: self._note(name))

    def weigh(self, name: str) -> None:
        """A turn of its own for the memory, which is not timed, because looking takes time."""
        self._attempt(name, lambda: self._values["memory"].update({name: [self._teams[name].peak_memory() / 1e6]}))

    def result(self) -> Result:
        """Of those that did not fail."""
        kept = {
            figure: {name: found for name, found in of.items() if name not in self._failed} for figure, of in self._values.items()
        }
        chosen = {name: setting for name, setting in self._settings.items() if setting}
        return Result(self._contest, self._case, kept, self._failed, chosen)

    def _note(self, name: str) -> None:
        if self._contest.what == "start":
            with self._team(name, reads=self._settings[name]) as team:
                team.ready()
                turns = self._turn(team, name)
        else:
            turns = self._turn(self._teams[name], name)
        for figure in self._contest.figures:
            if figure in MEASURES:
                self._values[figure].setdefault(name, []).append(MEASURES[figure](turns, self._case))

    def _turn(self, team: Team, name: str) -> list[Turn]:
        case = self._case
        if self._contest.storage == "cold":
            drop([case.path(id) for id in case.labels])
        turns = team.turn()
        if sum(turn.mislabelled for turn in turns):
            raise FailedError(f"{name} on {case.name}: found samples with another's label")
        looked_at = [turn.delivered for turn in turns if turn.delivered]
        # What is repeated from memory is no epoch.
        if looked_at and name != "memory" and (found := sum(looked_at, Checksum(0, 0))) != case.checksum:
            raise FailedError(f"{name} on {case.name}: expected {case.checksum}, found {found}")
        return turns

    def _attempt(self, name: str, what: Callable[[], None]) -> None:
        if name not in self._failed:
            try:
                what()
            except FailedError as error:
                self._failed[name] = str(error)


MEASURES: dict[str, Callable[[list[Turn], Case], float]] = {
    "rate": lambda turns, case: sum(turn.samples / turn.seconds for turn in turns),
    "cold": lambda turns, case: sum(turn.fetched / turn.seconds for turn in turns) / case.file_pages,
    "fit": lambda turns, case: sum(turn.samples / turn.seconds for turn in turns),
    "wait": lambda turns, case: 100 * max(turn.batch_wait / turn.seconds for turn in turns),
    "first": lambda turns, case: 1000 * max(turn.first for turn in turns),
    "cpu": lambda turns, case: 1e9 * sum(turn.cpu for turn in turns) / sum(turn.samples * case.sample_bytes for turn in turns),
    "own": lambda turns, case: 1e6 * max(turn.own for turn in turns),
}
"""Figures of a turn, by the processes that took it together."""


def _limit_step(contest: Contest, plan: Plan) -> float:
    """Seconds that the limit takes for a batch, now."""
    alone = replace(contest, what="load", contestants=("limit",), quick=("limit",), figures=("rate",), step=0.0)
    return plan.case(contest).batch_size / median(hold(alone, plan).values["rate"]["limit"])


def contests(plan: Plan) -> Iterator[tuple[Contest, str]]:
    """Every contestant's part in every contest of the plan."""
    for contest in CONTESTS:
        known = FEEDS if contest.what == "fit" else PEERS
        yield from ((contest, contestant) for contestant in plan.contestants(contest) if contestant in known)
