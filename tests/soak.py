"""Training-like consumption under random faults, for minutes or days: ``make soak``, or ``python -m tests.soak --minutes 10``.

Loaders with random options are read or closed early, and some batches are kept. Meanwhile another thread kills, stops and delays
workers, one by one or all at once, and truncates, deletes, garbles, reshapes and blocks files. Every delivered row is compared
with its sample; memory, descriptors, processes and threads must not grow. Now and then a signal handler raises an error while a
batch is requested: the loader goes on or is closed, and never hangs. The printed seed repeats the choices, but not their timing.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import io
import logging
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from shmgen import ClosedError, Function, Loader, Npy
from shmgen._plan.order import Order

SAMPLES = 600
SHAPE = (24, 24, 3)
TIMEOUT = 1.0
"""Seconds that a read may take, and so the longest wait for a stopped worker."""

FAULTS = 16
"""Faults and repairs a second, on average."""

SLOWLY = 0.003
"""Seconds that a read takes, on average, in `read_slowly`."""

MAX_DAMAGED = 12
"""The most files that are damaged at one time."""

HANGS = 90.0
"""Seconds; a request that takes longer is a hang, and ends the run with all tracebacks."""


class Struck(Exception):
    """Raised by the signal handler."""


class Files:
    """The data set: the file of sample ``number`` holds `Files.content`, unless it is damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ids = [f"{number % 7}/id-{number}" for number in range(SAMPLES)]
        self.labels = {id: number for number, id in enumerate(self.ids)}
        # When each file was last repaired; infinity while it is damaged.
        self.repaired = dict.fromkeys(range(SAMPLES), 0.0)
        for number in range(SAMPLES):
            self.path(number).parent.mkdir(exist_ok=True)
            self.repair(number)

    def path(self, number: int) -> Path:
        return self.folder / f"{self.ids[number]}.npy"

    @staticmethod
    def content(number: int) -> np.ndarray:
        return np.random.default_rng(number).integers(0, 256, SHAPE, np.uint8)

    def damage(self, number: int, how: str) -> None:
        self.repaired[number] = float("inf")
        path = self.path(number)
        if how == "truncated":
            os.truncate(path, path.stat().st_size // 2)
        elif how == "garbled":
            path.write_bytes(b"garbage" * 300)
        elif how == "reshaped":
            np.save(path, np.zeros((3, 3), np.uint8))
        else:
            path.unlink()
            if how == "blocked":
                os.mkfifo(path)

    def repair(self, number: int) -> None:
        whole = self.folder / "whole.tmp"
        with whole.open("wb") as file:
            np.save(file, self.content(number))
        whole.replace(self.path(number))
        self.repaired[number] = time.monotonic()

    @property
    def damaged(self) -> list[int]:
        return [number for number, since in self.repaired.items() if since == float("inf")]


class Faults(threading.Thread):
    """Causes faults until `end`."""

    def __init__(self, files: Files, consumer: Consumer, seed: int) -> None:
        super().__init__(daemon=True)
        self.files = files
        self._consumer = consumer
        self._have_worked: set[int] = set()
        self.count: Counter[str] = Counter()
        self._chance = random.Random(seed)
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(self._chance.expovariate(FAULTS)):
            acts = [self._kill, self._kill_all, self._halt, self._delay, self._damage, self._repair, self._strike]
            self._chance.choices(acts, [4, 0.2, 0.2, 1, 5, 5, 1])[0]()

    def end(self) -> None:
        self._ended.set()
        self.join()
        for number in self.files.damaged:
            self.files.repair(number)

    def _workers(self) -> list[psutil.Process]:
        """Workers that were seen reading before: repeated deaths at the start or at the first read are rightly an error."""
        loader = self._consumer.loader
        if loader is None:
            return []
        workers = loader.state.workers
        found = []
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                if worker.pid in self._have_worked:
                    found.append(psutil.Process(worker.pid))
        self._have_worked |= {worker.pid for worker in workers if worker.busy}
        return found

    def _signal(self, name: str, worker: psutil.Process) -> None:
        with suppress(psutil.NoSuchProcess):
            worker.send_signal(getattr(signal, name))
            self.count[name] += 1

    def _kill(self) -> None:
        for worker in self._chance.sample(workers := self._workers(), min(1, len(workers))):
            self._signal(self._chance.choice(["SIGKILL", "SIGSEGV", "SIGTERM", "SIGABRT"]), worker)

    def _kill_all(self) -> None:
        for worker in self._workers():
            self._signal("SIGKILL", worker)

    def _halt(self) -> None:
        for worker in self._chance.sample(workers := self._workers(), min(1, len(workers))):
            self._signal("SIGSTOP", worker)

    def _delay(self) -> None:
        """Stop a worker for less time than a read may take, so that no sample is blamed."""
        for worker in self._chance.sample(workers := self._workers(), min(1, len(workers))):
            self._signal("SIGSTOP", worker)
            self._ended.wait(TIMEOUT / 5)
            self._signal("SIGCONT", worker)

    def _strike(self) -> None:
        """Let a signal handler raise an error in the consumer, at any point of a request for a batch."""
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def _damage(self) -> None:
        # Not the first file: without it no loader can be made.
        whole = [number for number in range(1, SAMPLES) if self.files.repaired[number] != float("inf")]
        if SAMPLES - 1 - len(whole) < MAX_DAMAGED:
            how = self._chance.choices(["truncated", "garbled", "reshaped", "deleted", "blocked"], [3, 3, 3, 3, 1])[0]
            self.files.damage(self._chance.choice(whole), how)
            self.count[how] += 1

    def _repair(self) -> None:
        if damaged := self.files.damaged:
            self.files.repair(self._chance.choice(damaged))


def flip(row: np.ndarray, rng: np.random.Generator) -> None:
    """Invert a row in place: if its worker dies meanwhile, the row must be read again before it is inverted again."""
    np.invert(row, out=row)


def read_slowly(folder: Path, id: str) -> np.ndarray:
    """Read a sample after a wait as for a network, so that many reads are in flight."""
    time.sleep(random.expovariate(1 / SLOWLY))
    # One read of the whole file: np.load reads the header and then the data, and the file may be garbled in between.
    return np.load(io.BytesIO((folder / f"{id}.npy").read_bytes()))


class Consumer:
    """Reads loaders as training does, and checks each row."""

    def __init__(self, files: Files, seed: int) -> None:
        self.count: Counter[str] = Counter()
        self.loader: Loader | None = None
        self.asks = False
        self._files = files
        self._chance = random.Random(seed)
        self._contents = [files.content(number) for number in range(SAMPLES)]
        self._held: deque[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = deque()

    def run_one(self, until: float) -> None:
        """Make a loader, read a few epochs, and close it."""
        chance = self._chance
        seed, batch_size, shuffle = chance.randrange(1000), chance.choice([1, 7, 16, 32]), chance.random() < 0.8
        began = time.monotonic()
        source, transform = chance.choice(
            [
                (Npy(self._files.folder, SHAPE[:2], SHAPE[2], "uint8"), None),
                (Npy(self._files.folder, SHAPE[:2], SHAPE[2], "uint8"), flip),
                (Function(partial(read_slowly, self._files.folder), SHAPE[:2], SHAPE[2], "uint8", concurrent=True), None),
            ]
        )
        loader = self.loader = Loader(
            self._files.ids,
            self._files.labels,
            batch_size,
            shuffle=shuffle,
            source=source,
            transform=transform,
            workers=chance.choice([1, 2, 2, 3, "auto"]),
            reads=chance.choice([1, 3, 12, "auto", "auto"]),
            slots=chance.choice([None, 2, 4]),
            seed=seed,
            tail="drop" if chance.random() < 0.5 else "keep",
            on_error="replace",
            max_damaged=0.9,
            timeout=TIMEOUT,
        )
        try:
            for epoch in range(chance.randint(1, 12)):
                order = Order(SAMPLES, seed, epoch).part(0, SAMPLES) if shuffle else np.arange(SAMPLES)
                stop = chance.randrange(len(loader)) if chance.random() < 0.15 else len(loader)
                batches, number, struck = iter(loader), 0, False
                while (batch := self._asked_for(batches)) is not None:
                    if isinstance(batch, BaseException):
                        # One batch is lost, and it is unknown which; the loader goes on, or is closed.
                        if isinstance(batch, ClosedError):
                            assert struck, batch
                            self.count["closed"] += 1
                            return
                        struck = True
                        self.count["struck"] += 1
                        continue
                    X, y = batch
                    del batch
                    wanted = None if struck else order[number * batch_size :]
                    self._check(X if transform is None else ~X, y, wanted, began)
                    number += 1
                    if number > stop or time.monotonic() > until:
                        return
                if struck:
                    return
        finally:
            for name in ("restarts", "replaced", "grown"):
                self.count[name] += getattr(loader.stats, name)
            self.count["loaders"] += 1
            self.loader = None
            loader.close()
            while self._held:
                self._let_go()

    def _asked_for(self, batches: Iterator[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...] | BaseException | None:
        """The next batch, or None after the last; or the error that the signal handler raised, or ClosedError after that."""
        faulthandler.dump_traceback_later(HANGS, exit=True)
        try:
            self.asks = True
            return next(batches, None)
        except (Struck, KeyboardInterrupt, TimeoutError, ClosedError) as error:
            return error.with_traceback(None)
        finally:
            self.asks = False

    def strike(self, *_: object) -> None:
        """The signal handler: raise a random error if a batch is being requested."""
        if self.asks:
            self.asks = False
            raise random.choice((Struck, KeyboardInterrupt, TimeoutError))

    def _check(self, X: np.ndarray, y: np.ndarray, order: np.ndarray | None, began: float) -> None:
        self.count["batches"] += 1
        self.count["samples"] += len(y)
        assert self.loader is not None
        labels = y.tolist()
        for row, label, expected in zip(X, labels, labels if order is None else order.tolist(), strict=False):
            found = "other data than its label's" if not np.array_equal(row, self._contents[label]) else ""
            # Only a sample that was damaged after the loader was made may be replaced by another.
            if not found and label != expected and self._files.repaired[expected] < began:
                found = f"sample {label} in place of {expected}, which was whole"
            if found:
                self.count["mismatches"] += 1
                damaged = [damaged for damaged in self.loader.damaged if damaged.id == self._files.ids[expected]]
                print(f"mismatch: {found}; {self.loader}, {damaged}", flush=True)
        if self._chance.random() < 0.2:
            self._held.append((X, y, X.copy(), y.copy()))
        while len(self._held) > self._chance.choice([0, 3, 3, 12]):
            self._let_go()

    def _let_go(self) -> None:
        X, y, X_then, y_then = self._held.popleft()
        self.count["held"] += 1
        self.count["mismatches"] += not (np.array_equal(X, X_then) and np.array_equal(y, y_then))


def usage() -> dict[str, int]:
    """Resources whose use must not grow."""
    gc.collect()
    process = psutil.Process()
    return {
        "memory": process.memory_info().rss,
        "descriptors": process.num_fds(),
        "segments": sum("memfd:shmgen" in line or "/dev/shm/#" in line for line in Path("/proc/self/maps").open()),
        "processes": len([child for child in process.children() if "resource_tracker" not in " ".join(child.cmdline())]),
        "threads": process.num_threads(),
    }


def soak(minutes: float, seed: int) -> int:
    """Run for ``minutes`` minutes, and return the exit status."""
    start = time.monotonic()
    until = start + 60 * minutes
    logging.getLogger("shmgen").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        files = Files(Path(folder))
        consumer = Consumer(files, seed)
        consumer.run_one(until)
        signal.signal(signal.SIGUSR1, consumer.strike)
        faults = Faults(files, consumer, seed + 1)
        faults.start()
        before = None
        try:
            while time.monotonic() < until:
                consumer.run_one(until)
                # Not at once: first uses import modules and allocate memory.
                if before is None and time.monotonic() > start + (until - start) / 5:
                    before = usage()
        finally:
            faults.end()
        after = usage()
    print(f"{(time.monotonic() - start) / 60:.1f} minutes, seed {seed}")
    print("read:", ", ".join(f"{count:,} {name}" for name, count in consumer.count.items()))
    print("faults:", ", ".join(f"{count:,} {name}" for name, count in sorted(faults.count.items())))
    if before:
        print("then and now:", ", ".join(f"{name} {before[name]:,} {after[name]:,}" for name in after))
    grown = [name for name in after if before and after[name] > before[name] + (16 << 20 if name == "memory" else 0)]
    if grown:
        print("grown:", ", ".join(grown))
    print("mismatches:", consumer.count["mismatches"])
    return 1 if consumer.count["mismatches"] or grown else 0


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 16))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    sys.exit(soak(options.minutes, options.seed))


if __name__ == "__main__":
    main()
