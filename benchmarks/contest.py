"""A contest: the contestants' processes, of which one contestant's run at a time, in turn, round after round."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.cases import CASES, Case, Checksum
from benchmarks.contestant import Turn
from benchmarks.feeds import FEEDS
from benchmarks.machine import drop, memory
from benchmarks.matrix import CONTESTS, FIGURES, Contest
from benchmarks.peers import PEERS

if TYPE_CHECKING:
    from typing import Self

DEADLINE = 300
"""Seconds for a turn; whoever takes longer hangs."""
OURS = ("shmgen", "naive")
"""Contestants that are no peers."""


class FailedError(RuntimeError):
    """A contestant's process ended, hung, or delivered something else than the data set."""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: turns of every contestant.
        few: rounds, where turns are long.
        seconds: that a turn lasts, at least.
        cut: how many times fewer files than the case has.
        quick: the smaller choice of contestants.
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
        return replace(case, files=case.files // self.cut, repeats=contest.repeats, root=self.root)


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
        values: of every figure, of every contestant, in every round.
        failed: why contestants are left out.
    """

    contest: Contest
    case: Case
    values: dict[str, dict[str, list[float]]]
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def main(self) -> str:
        """The figure that the contest is about."""
        return self.contest.figures[0]

    def limit(self, figure: str) -> str | None:
        """The best of the bounds."""
        return self._best(figure, [name for name in self.values[figure] if is_bound(name)])

    def best_peer(self, figure: str) -> str | None:
        """The best of the loaders that others wrote; the blog's own is no peer."""
        return self._best(figure, [name for name in self.values[figure] if name not in OURS and not is_bound(name)])

    def ratios(self, figure: str, contestant: str, other: str) -> list[float]:
        """One's values by the other's, round by round: what slows a machine for a while slows both."""
        values = self.values[figure]
        return [mine / theirs if theirs else float("nan") for mine, theirs in zip(values[contestant], values[other], strict=True)]

    def _best(self, figure: str, names: list[str]) -> str | None:
        choose = max if FIGURES[figure].more else min
        return choose(names, key=lambda name: median(self.values[figure][name]), default=None)


def hold(contest: Contest, plan: Plan) -> Result:
    """Let the contestants take turns, in another order each round.

    Raises:
        FailedError: shmgen, the blog's generator or a bound did not deliver the data set.
        CannotDropError: there is no cold page cache to be had.
    """
    case = plan.case(contest)
    case.make()
    contestants = plan.contestants(contest)
    step = contest.step * _limit_step(contest, plan) if contest.step else 0.0
    values: dict[str, dict[str, list[float]]] = {figure: {name: [] for name in contestants} for figure in contest.figures}
    failed: dict[str, str] = {}
    paths = [case.path(id) for id in case.labels]
    if contest.cold:
        os.sync()  # or pages that are not written yet would stay
    elif contest.what == "start":
        for path in paths:
            Path(path).read_bytes()
    with ExitStack() as stack:
        teams: dict[str, Team] = {}

        def team(name: str) -> Team:
            return stack.enter_context(Team(contest, case, name, plan, step))

        def turn(name: str) -> None:
            if contest.what == "start":
                with Team(contest, case, name, plan, step) as fresh:
                    fresh.ready()
                    if contest.cold:
                        drop(paths)
                    turns = fresh.turn()
            else:
                turns = teams[name].turn()
            delivered = reduce(add, (turn.delivered for turn in turns))
            # What is repeated from memory is no epoch.
            if name != "memory" and delivered != case.checksum:
                raise FailedError(f"{name} on {case.name}: expected {case.checksum}, found {delivered}")
            for figure in contest.figures:
                if figure in MEASURES:
                    values[figure][name].append(MEASURES[figure](turns, case))

        def all_do(what: Callable[[str], None], names: list[str]) -> None:
            for name in names:
                if name not in failed:
                    try:
                        what(name)
                    except FailedError as error:
                        if name in OURS or is_bound(name):
                            raise
                        failed[name] = str(error)

        if contest.what != "start":
            teams.update({name: team(name) for name in contestants})
            all_do(lambda name: teams[name].ready(), contestants)
        dice = random.Random(0)
        for _ in range(plan.few if contest.few else plan.rounds):
            all_do(turn, dice.sample(contestants, len(contestants)))
        if "memory" in contest.figures:
            # One turn of its own, which is not timed, because looking takes time.
            all_do(lambda name: values["memory"][name].append(teams[name].peak_memory() / 1e6), contestants)
    kept = {figure: {name: found for name, found in of.items() if name not in failed} for figure, of in values.items()}
    return Result(contest, case, kept, failed)


MEASURES: dict[str, Callable[[list[Turn], Case], float]] = {
    "rate": lambda turns, case: sum(turn.samples / turn.seconds for turn in turns),
    "cold": lambda turns, case: sum(turn.fetched / turn.seconds for turn in turns) / case.file_pages,
    "fit": lambda turns, case: sum(turn.samples / turn.seconds for turn in turns),
    "wait": lambda turns, case: 100 * max(turn.batch_wait / turn.seconds for turn in turns),
    "first": lambda turns, case: 1000 * max(turn.first for turn in turns),
    "cpu": lambda turns, case: 1e9 * sum(turn.cpu for turn in turns) / sum(turn.samples * case.sample_bytes for turn in turns),
}
"""Figures of a turn, by the processes that took it together."""


def _limit_step(contest: Contest, plan: Plan) -> float:
    """Seconds that the limit takes for a batch, now."""
    alone = replace(contest, what="load", contestants=("limit",), quick=("limit",), figures=("rate",), step=0.0)
    return plan.case(contest).batch_size / median(hold(alone, plan).values["rate"]["limit"])


class Team:
    """A contestant's processes, fresh for this contest and kept through its rounds: one, or as many as share the limit."""

    def __init__(self, contest: Contest, case: Case, contestant: str, plan: Plan, step: float) -> None:
        peer = PEERS.get(contestant)
        workers = 1 if peer and peer.alone else contest.workers
        command = [sys.executable, "-m", "benchmarks.contestant", contest.what, contestant, case.name]
        command += ["--data", str(case.root.absolute()), "--files", str(case.files), "--repeats", str(case.repeats)]
        command += ["--seconds", str(plan.seconds), "--workers", str(workers), "--step", str(step)]
        command += ["--cold"] if contest.cold else []
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  __exit__ closes it
        self._processes = [
            subprocess.Popen(
                [*command, "--share", str(share)],
                cwd=Path(__file__).parents[1],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                start_new_session=True,  # so that what it may leave behind can be ended, too
            )
            for share in range(workers if peer and peer.limit else 1)
        ]

    def ready(self) -> None:
        """Wait until all is imported."""
        for process in self._processes:
            self._events(process)

    def turn(self) -> list[Turn]:
        """Let all processes read at once."""
        self._begin()
        return [self._turn(process) for process in self._processes]

    def peak_memory(self) -> int:
        """Bytes, as seen every 50 ms of a turn."""
        self._begin()
        pids = [process.pid for process in self._processes]
        found = [memory(pids)]
        end = time.monotonic() + DEADLINE
        last = self._processes[-1].stdout
        assert last is not None
        while time.monotonic() < end and not select.select([last], [], [], 0.05)[0]:
            found.append(memory(pids))
        for process in self._processes:
            self._events(process)
        return max(found)

    def _begin(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # _heard tells why
                process.stdin.write(b"\n")
                process.stdin.flush()

    def _turn(self, process: subprocess.Popen[bytes]) -> Turn:
        turn = json.loads(self._events(process))
        return Turn(**turn | {"delivered": Checksum(**turn["delivered"])})

    def _events(self, process: subprocess.Popen[bytes]) -> bytes:
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], DEADLINE)
        line = process.stdout.readline() if readable else b""
        if not line:
            found = f"its end, with exit code {process.wait()}" if readable else f"nothing for {DEADLINE} seconds"
            self._stderr.seek(0)
            said = self._stderr.read().decode(errors="replace").strip().splitlines()[-8:]
            raise FailedError("\n".join([f"expected a line of JSON, found {found}: {process.args!r}", *said]))
        return line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            self._end_group(process.pid)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        self._stderr.close()

    @staticmethod
    def _end_group(group: int) -> None:
        """Whatever a contestant left behind, as its session; resource trackers first get the time to unlink what they know of."""
        with suppress(ProcessLookupError):
            for _ in range(20):
                os.killpg(group, 0)
                time.sleep(0.1)
            os.killpg(group, signal.SIGKILL)


def contests(plan: Plan) -> Iterator[tuple[Contest, str]]:
    """Every contestant's part in every contest of the plan."""
    for contest in CONTESTS:
        known = FEEDS if contest.what == "fit" else PEERS
        yield from ((contest, contestant) for contestant in plan.contestants(contest) if contestant in known)
