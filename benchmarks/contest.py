"""A contest: the contestants' processes, of which one contestant's run at a time, in turn, round after round."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.cases import Case, Checksum
from benchmarks.contestant import WORKERS, Turn

if TYPE_CHECKING:
    from typing import Self

DEADLINE = 300
"""Seconds for a turn; whoever takes longer hangs."""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: turns of every contestant.
        seconds: that a turn lasts, at least.
        cut: how many times fewer files than the case has.
    """

    rounds: int
    seconds: float
    cut: int


FULL = Plan(rounds=5, seconds=1.0, cut=1)
QUICK = Plan(rounds=3, seconds=0.25, cut=4)


@dataclass(frozen=True)
class Result:
    """What a contest gave.

    Attributes:
        what: "load" or "fit".
        case: that was read.
        rates: samples a second of every contestant in every round.
    """

    what: str
    case: Case
    rates: dict[str, list[float]]

    def median(self, contestant: str) -> float:
        """Samples a second."""
        return median(self.rates[contestant])

    def ratios(self, contestant: str, other: str) -> list[float]:
        """How many times as fast ``contestant`` was as ``other``, round by round: what slows a machine for a while slows both."""
        return [mine / theirs for mine, theirs in zip(self.rates[contestant], self.rates[other], strict=True)]


def hold(what: str, case: Case, contestants: list[str], plan: Plan) -> Result:
    """Let ``contestants`` read ``case`` in turn."""
    rates: dict[str, list[float]] = {contestant: [] for contestant in contestants}
    with ExitStack() as stack:
        teams = {contestant: stack.enter_context(Team(what, case, contestant, plan)) for contestant in contestants}
        for _ in range(plan.rounds):
            for contestant, team in teams.items():
                turns = team.turn()
                delivered = reduce(add, (turn.delivered for turn in turns))
                # What is repeated from memory is no epoch.
                if contestant != "memory" and delivered != case.checksum:
                    raise AssertionError(f"{contestant} on {case.name}: expected {case.checksum}, found {delivered}")
                rates[contestant].append(sum(turn.rate for turn in turns))
    return Result(what, case, rates)


class Team:
    """A contestant's processes, fresh for this contest and kept through its rounds: one, or as many as share the limit."""

    def __init__(self, what: str, case: Case, contestant: str, plan: Plan) -> None:
        command = [sys.executable, "-m", "benchmarks.contestant", what, contestant, case.name]
        command += ["--data", str(case.root.absolute()), "--files", str(case.files), "--repeats", str(case.repeats)]
        command += ["--seconds", str(plan.seconds)]
        self._processes = [
            subprocess.Popen(
                [*command, "--share", str(share)],
                cwd=Path(__file__).parents[1],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for share in range(WORKERS if contestant == "limit" else 1)
        ]

    def turn(self) -> list[Turn]:
        """Let all processes read at once."""
        for process in self._processes:
            process.stdin.write(b"\n")
            process.stdin.flush()
        return [self._heard(process) for process in self._processes]

    @staticmethod
    def _heard(process: subprocess.Popen[bytes]) -> Turn:
        readable, _, _ = select.select([process.stdout], [], [], DEADLINE)
        line = process.stdout.readline() if readable else b""
        if not line:
            found = f"its end, with exit code {process.wait()}" if readable else f"nothing for {DEADLINE} seconds"
            raise RuntimeError(f"expected a line of JSON, found {found}: {' '.join(process.args)}")
        turn = json.loads(line)
        return Turn(turn["samples"], turn["seconds"], Checksum(**turn["delivered"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.stdin.close()
        for process in self._processes:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
