"""Runs a contest: in each round the contestants take turns, in random order, one at a time."""

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
from benchmarks.machine import busy, drop_from_page_cache
from benchmarks.matrix import CONTESTS, FIGURES, Contest
from benchmarks.peers import CONTESTANTS
from benchmarks.storage import storage
from benchmarks.team import ROOT, FailedError, Team

OURS = ("shmgen", "shmgen-auto", "shmgen-tensors")
"""shmgen's own contestants."""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: number of rounds of shmgen and the bounds.
        few_rounds: number of rounds of the other contestants, and in contests with long turns, of all.
        seconds: minimum duration of a turn, in seconds.
        cut: divisor of the number of files.
        quick: whether contests are run with fewer contestants, and one setting of each.
        root: folder of the data sets.
    """

    rounds: int
    few_rounds: int
    seconds: float
    cut: int
    quick: bool = False
    root: Path = CASES["volume-32"].root

    def contestants(self, contest: Contest) -> list[str]:
        """The contestants of a contest that the plan includes and that are installed."""
        included = contest.quick if self.quick else contest.contestants
        return [contestant for contestant in included if contestant not in missing()]

    def case(self, contest: Contest) -> Case:
        """The contest's data set, with the plan's number of files."""
        case = CASES[contest.case]
        return replace(case, files=(contest.files or case.files) // self.cut, repeats=contest.repeats, root=self.root)

    def settings(self, contest: Contest, contestant: str) -> tuple[int, ...]:
        """The numbers of reads in flight to try."""
        settings = contest.settings.get(contestant, (0,))
        return settings[:1] if self.quick else settings


def is_peer(contestant: str) -> bool:
    """Whether ``contestant`` is another project's loader; the blog's generator does not count."""
    return contestant not in (*OURS, "naive") and not is_bound(contestant)


def is_bound(contestant: str) -> bool:
    """Whether ``contestant`` only does unavoidable work, so no loader can be faster."""
    return contestant == "memory" or CONTESTANTS[contestant].bound


FULL = Plan(rounds=5, few_rounds=3, seconds=0.5, cut=1)
QUICK = Plan(rounds=3, few_rounds=2, seconds=0.25, cut=4, quick=True)


def missing() -> list[str]:
    """Contestants that are not installed."""
    return [name for name, contestant in CONTESTANTS.items() if not contestant.installed]


@dataclass(frozen=True)
class Result:
    """The result of a contest.

    Attributes:
        contest: the contest.
        case: its data set.
        values: the values of each round, by figure and contestant; peers may have fewer rounds.
        failed: error messages of contestants that failed, and are left out.
        settings: the best number of reads in flight of contestants for which several were tried.
    """

    contest: Contest
    case: Case
    values: dict[str, dict[str, list[float]]]
    failed: dict[str, str] = field(default_factory=dict)
    settings: dict[str, int] = field(default_factory=dict)

    @property
    def main(self) -> str:
        """The contest's main figure."""
        return self.contest.figures[0]

    def bounds(self, figure: str) -> list[str]:
        """The bounds among the contestants, in the contest's order."""
        return [name for name in self.contest.contestants if name in self.values[figure] and is_bound(name)]

    def best_peer(self, figure: str) -> str | None:
        """The peer with the best median; None if there are no peers."""
        choose = max if FIGURES[figure].more_is_better else min
        names = filter(is_peer, self.values[figure])
        return choose(names, key=lambda name: median(self.values[figure][name]), default=None)

    def ratios(self, figure: str, contestant: str, other: str) -> list[float]:
        """Ratios of ``contestant`` to ``other`` in the same rounds, since a temporary slowdown of the machine affects both."""
        pairs = zip(self.values[figure][contestant], self.values[figure][other], strict=False)
        return [mine / theirs if theirs else float("nan") for mine, theirs in pairs]


def run_contest(contest: Contest, plan: Plan) -> Result:
    """Run all rounds of a contest.

    Contestants with several settings first take a turn with each, which does not count.

    Raises:
        UnavailableError: this machine lacks something that the contest needs.
    """
    case = plan.case(contest)
    case.make()
    compileall.compile_dir(ROOT / "shmgen", quiet=1)  # as pip does; else the first batch would wait for it
    step = contest.step * _limit_step(contest, plan) if contest.step else 0.0
    with storage(contest.storage, case) as served_at, ExitStack() as stack:
        runner = _Runner(contest, replace(case, served_at=served_at), plan, step, stack)
        names = plan.contestants(contest)
        if contest.storage == "cold":
            os.sync()  # only clean pages can be dropped from the page cache
        else:
            for id in case.labels:
                (case.folder / f"{id}.npy").read_bytes()
        for name in names:
            runner.start(name)
        for name in names:
            runner.wait_until_ready(name)
        rng = random.Random(0)
        for number in range(plan.few_rounds if contest.long else plan.rounds):
            with busy(contest.busy_processes):
                for name in _order(names if number < plan.few_rounds else list(filter(_is_core, names)), rng):
                    runner.take_turn(name)
        if "memory" in contest.figures:
            for name in names:
                runner.measure_memory(name)
    return runner.result()


def _is_core(name: str) -> bool:
    """Whether a contestant is shmgen or a bound, which are compared most."""
    return name == "shmgen" or is_bound(name)


def _order(names: list[str], rng: random.Random) -> list[str]:
    """A random order of a round, in which shmgen and the bounds follow one another, to find the machine in the same state."""
    core = [name for name in names if _is_core(name)]
    others = [name for name in names if not _is_core(name)]
    place = rng.randrange(len(others) + 1)
    others = rng.sample(others, len(others))
    return [*others[:place], *rng.sample(core, len(core)), *others[place:]]


class _Runner:
    """Starts the contestants' processes, gives them turns, and collects their values and failures."""

    def __init__(self, contest: Contest, case: Case, plan: Plan, step: float, stack: ExitStack) -> None:
        self._contest, self._case, self._plan, self._stack = contest, case, plan, stack
        self._team = partial(Team, contest, case, seconds=plan.seconds * contest.length, step=step)
        self._teams: dict[str, Team] = {}
        self._settings: dict[str, int] = {}
        self._values: dict[str, dict[str, list[float]]] = {figure: {} for figure in contest.figures}
        self._failed: dict[str, str] = {}

    def start(self, name: str) -> None:
        """Choose a contestant's best setting, and start its processes, unless every turn has fresh processes."""
        settings = self._plan.settings(self._contest, name)
        figure = FIGURES[self._contest.figures[0]]
        found: dict[int, float] = {}
        if len(settings) > 1:
            for setting in settings:
                with suppress(FailedError), self._team(name, reads=setting) as team:
                    team.ready()
                    value = MEASURES[self._contest.figures[0]](self._turn(team, name), self._case)
                    found[setting] = value if figure.more_is_better else -value
        self._settings[name] = max(found, key=lambda setting: found[setting], default=settings[0])
        if self._contest.task != "start":
            self._teams[name] = self._stack.enter_context(self._team(name, reads=self._settings[name]))

    def wait_until_ready(self, name: str) -> None:
        """Wait until the processes of a contestant are ready, if `start` started any."""
        if name in self._teams:
            self._attempt(name, self._teams[name].ready)

    def take_turn(self, name: str) -> None:
        """Run a turn, and record its figures."""
        self._attempt(name, lambda: self._record_turn(name))

    def measure_memory(self, name: str) -> None:
        """Run a separate turn to measure the memory: reading it takes time, so this turn's speed does not count."""
        self._attempt(name, lambda: self._values["memory"].update({name: [self._teams[name].peak_memory() / 1e6]}))

    def result(self) -> Result:
        """The result, without the values of contestants that failed."""
        kept = {
            figure: {name: values for name, values in by_name.items() if name not in self._failed}
            for figure, by_name in self._values.items()
        }
        chosen = {name: setting for name, setting in self._settings.items() if setting}
        return Result(self._contest, self._case, kept, self._failed, chosen)

    def _record_turn(self, name: str) -> None:
        if self._contest.task == "start":
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
            drop_from_page_cache([case.path(id) for id in case.labels])
        turns = team.turn()
        if sum(turn.mislabelled for turn in turns):
            raise FailedError(f"{name} on {case.name}: expected each sample with its own label, found others")
        checked = [turn.delivered for turn in turns if turn.delivered]
        # The contestant "memory" repeats one batch in place of an epoch.
        if checked and name != "memory" and (found := sum(checked, Checksum(0, 0))) != case.checksum:
            raise FailedError(f"{name} on {case.name}: expected {case.checksum}, found {found}")
        return turns

    def _attempt(self, name: str, action: Callable[[], None]) -> None:
        if name not in self._failed:
            try:
                action()
            except FailedError as error:
                self._failed[name] = str(error)


MEASURES: dict[str, Callable[[list[Turn], Case], float]] = {
    "rate": lambda turns, case: sum(turn.samples / turn.seconds for turn in turns),
    "cold": lambda turns, case: sum(turn.fetched / turn.seconds for turn in turns) / case.file_pages,
    "fit": lambda turns, case: sum(turn.samples / turn.seconds for turn in turns),
    "wait": lambda turns, case: 100 * max(turn.batch_wait / turn.seconds for turn in turns),
    "first": lambda turns, case: 1000 * max(turn.first for turn in turns),
    "cpu": lambda turns, case: 1e9 * sum(turn.cpu for turn in turns) / sum(turn.samples * case.sample_bytes for turn in turns),
    "trainer_cpu": lambda turns, case: 1e6 * max(turn.trainer_cpu for turn in turns),
}
"""Functions that compute a figure from one turn of all processes of a contestant."""


def _limit_step(contest: Contest, plan: Plan) -> float:
    """The time that the limit takes for a batch now, in seconds."""
    alone = replace(contest, contestants=("limit",), quick=("limit",), figures=("rate",), step=0.0)
    return plan.case(contest).batch_size / median(run_contest(alone, plan).values["rate"]["limit"])


def contests(plan: Plan) -> Iterator[tuple[Contest, str]]:
    """Every contest of the plan with each of its contestants."""
    for contest in CONTESTS:
        yield from ((contest, contestant) for contestant in plan.contestants(contest))
