"""Two checkouts of shmgen against each other: is one faster than the other, and by how much?

    python -m benchmarks.compare ../before . --rounds 9

Each is measured in a fresh process, in turn, round after round. What slows the machine for a while slows both, so the ratio of a
round is what counts. Bare readers take their turn too.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import psutil

from benchmarks.bounds import HELD, load_limit
from benchmarks.cases import CASES, Case, checksum
from benchmarks.job import Job
from benchmarks.peers import arguments

ROOT = Path(__file__).parents[1]
DEADLINE = 120
"""Seconds for a process; whoever takes longer hangs."""
FIGURES = {
    "rate": "samples/s",
    "first": "first batch, ms",
    "parent": "main process, us/batch",
    "worker": "a worker's memory, MB",
    "cpu": "processor time, s/GB",
}
"""What is measured."""


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        name: in the table.
        checkout: the folder that holds the package ``shmgen``; None for bare readers.
    """

    name: str
    checkout: Path | None = None


def measure(case: Case, checkout: Path, workers: int, seconds: float) -> dict[str, float]:
    """A plain loop over a loader of ``checkout``, in this process, which has no other of its kind.

    The clock for the first batch starts at the constructor's call. The others start when an epoch has been read.
    """
    sys.path.insert(0, str(checkout))
    import shmgen.loader

    if (found := Path(shmgen.__file__).parents[1]) != checkout:
        raise SystemExit(f"expected shmgen of {checkout}, found that of {found}")
    given = arguments(case)
    begin = time.perf_counter()
    with shmgen.loader.Loader(**given, workers=workers) as loader:
        epoch = iter(loader)
        batch = next(epoch)
        first = time.perf_counter() - begin
        delivered = checksum([batch])
        del batch
        for batch in epoch:
            delivered += checksum([batch])
        if delivered != case.checksum:
            raise SystemExit(f"expected {case.checksum}, found {delivered}")
        samples = batches = 0
        cpu = cpu_seconds()
        own, start = time.process_time(), time.perf_counter()
        while (taken := time.perf_counter() - start) < seconds:
            for X, _ in loader:
                samples += len(X)
                batches += 1
        own = time.process_time() - own
        cpu = cpu_seconds() - cpu
        resident = [resident_bytes(child.pid) for child in psutil.Process().children(recursive=True)]
    return {
        "rate": samples / taken,
        "first": 1e3 * first,
        "parent": 1e6 * own / batches,
        "worker": sum(resident) / max(1, len(resident)) / 1e6,
        "cpu": 1e9 * cpu / (samples * case.sample_bytes),
    }


def measure_limit(case: Case, workers: int, seconds: float) -> dict[str, float]:
    """As many bare readers as workers, each a fork of this process."""
    pids, pipes = [], []
    for share in range(workers):
        read, write = os.pipe()
        pids.append(os.fork())
        if not pids[-1]:
            os.write(write, json.dumps(_bare(Job(case, workers, share), seconds)).encode())
            os._exit(0)
        os.close(write)
        pipes.append(read)
    found = []
    for pid, pipe in zip(pids, pipes, strict=True):
        found.append(json.loads(os.read(pipe, 4096)))
        os.waitpid(pid, 0)
    samples = sum(one["samples"] for one in found)
    cpu = sum(one["cpu"] for one in found)
    rate = sum(one["samples"] / one["seconds"] for one in found)
    return {"rate": rate, "cpu": 1e9 * cpu / (samples * case.sample_bytes)}


def _bare(job: Job, seconds: float) -> dict[str, float]:
    epochs = load_limit(job, HELD)
    for _ in next(epochs):
        pass
    samples = 0
    cpu, start = time.process_time(), time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds:
        samples += sum(len(X) for X, _ in next(epochs))
    return {"samples": samples, "seconds": taken, "cpu": time.process_time() - cpu}


def cpu_seconds() -> float:
    """Of this process and all its children, so far."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def resident_bytes(pid: int) -> int:
    """Of a process, without shared memory."""
    fields = dict(line.split(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return 1024 * sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssFile"))


def rounds(case: Case, sides: list[Side], options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """What each side measured, round by round, in another order each time."""
    found: dict[str, list[dict[str, float]]] = {side.name: [] for side in sides}
    dice = random.Random(0)
    for _ in range(options.rounds):
        for side in dice.sample(sides, len(sides)):
            command = [sys.executable, "-m", "benchmarks.compare", "--one", case.name, "--data", str(case.root)]
            command += ["--workers", str(options.workers), "--seconds", str(options.seconds), "--files", str(case.files)]
            command += [str(side.checkout)] if side.checkout else []
            output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, timeout=DEADLINE, check=True).stdout
            found[side.name].append(json.loads(output))
    return found


def lines(case: Case, sides: list[Side], found: dict[str, list[dict[str, float]]]) -> Iterator[str]:
    """A table: medians, and ratios by round."""
    before, after, limit = (side.name for side in sides)
    yield f"{case.title}, {case.files:,} files, batches of {case.batch_size}"
    yield f"  {'':24}{before:>12}{after:>12}{'bare':>12}   {after}/{before}"
    for figure, title in FIGURES.items():
        values = {name: [one[figure] for one in rounds] for name, rounds in found.items() if figure in rounds[0]}
        medians = "".join(f"{median(values[name]):12,.3f}" if name in values else f"{'-':>12}" for name in (before, after, limit))
        ratios = [spread(values[after], values[before])]
        if limit in values:
            ratios += [f"of bare: {spread(values[name], values[limit])}" for name in (before, after)]
        yield f"  {title:24}{medians}   {';  '.join(ratios)}"


def spread(mine: list[float], theirs: list[float]) -> str:
    """The ratios of two sides."""
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    return f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def main() -> None:
    """Compare, or measure one side, whose figures are then a line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__.partition("\n")[0])
    parser.add_argument("checkouts", nargs="*", type=Path, help="two folders that hold shmgen: before, after")
    parser.add_argument("--case", action="append", choices=CASES, help="may be repeated; default: volume-32, digit-28")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each plain loop, or more")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--files", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--one", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    root = options.data.absolute() if options.data else CASES["volume-32"].root
    checkouts = [checkout.resolve() for checkout in options.checkouts]
    if options.one:
        case = replace(CASES[options.one], root=root, files=options.files)
        bound = partial(measure, case, *checkouts) if checkouts else partial(measure_limit, case)
        print(json.dumps(bound(options.workers, options.seconds)))
        return
    if len(checkouts) != 2:
        parser.error(f"expected two checkouts, found {len(checkouts)}")
    names = ["before", "after"]
    for name, checkout in zip(names, checkouts, strict=True):
        if not (checkout / "shmgen" / "__init__.py").exists():
            parser.error(f"expected a folder with the package shmgen in it, found {checkout}")
        compileall.compile_dir(checkout / "shmgen", quiet=1)  # as whoever installs it has it: else the first batch waits for that
        print(f"{name}: {checkout}", flush=True)
    sides = [*map(Side, names, checkouts), Side("limit")]
    for name in options.case or ("volume-32", "digit-28"):
        case = replace(CASES[name], root=root)
        case.make()
        print("\n".join(lines(case, sides, rounds(case, sides, options))), flush=True)


if __name__ == "__main__":
    main()
