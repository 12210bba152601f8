"""One contestant: a process that reads a data set in one way, and says how fast. By hand, two turns of shmgen::

    printf '\\n\\n' | python -m benchmarks.contestant load shmgen volume-32

It says "ready" when all is imported, takes a turn for each line that it reads, and prints what it measured as a line of JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path

from benchmarks.bounds import BARE
from benchmarks.cases import CASES, CLASSES, Case, Checksum, checksum
from benchmarks.feeds import FEEDS, Feed, modules
from benchmarks.job import Batches, Job
from benchmarks.machine import cpu_seconds, storage_bytes
from benchmarks.peers import PEERS

PR_SET_TIMERSLACK = 29
STEERING = 4.0
"""Seconds in which a loader that chooses its number of reads in flight itself has done so, where storage is slow."""


@dataclass(frozen=True)
class Turn:
    """What a contestant did when its turn came.

    Attributes:
        samples: delivered while the clock ran.
        seconds: that they took.
        delivered: what was in an epoch; None where no whole epoch was looked at.
        mislabelled: samples, of those that were looked at otherwise.
        first: seconds from the constructor's call to the first batch, of a fresh loader.
        batch_wait: seconds in which the trainer had no batch.
        cpu: seconds of processors, of all processes, while the clock ran.
        own: seconds of processors a batch, of the thread that asked for it.
        fetched: bytes from storage, by all processes, while the clock ran: what was on its way before does not count, for that
            would favour whoever reads many batches at once.
    """

    samples: int
    seconds: float
    delivered: Checksum | None = None
    mislabelled: int = 0
    first: float = 0.0
    batch_wait: float = 0.0
    cpu: float = 0.0
    own: float = 0.0
    fetched: int = 0


def turns_of_loading(
    epochs: Iterator[Batches], case: Case, least: float, step: float, settle: float, steering: float
) -> Iterator[Turn]:
    """Every turn is an epoch off the clock, then as many on it as take ``least`` seconds.

    The first gives back what was read ahead while others had their turn, warms the caches again, and is checked.

    Args:
        epochs: of the loader.
        case: that is read.
        least: seconds.
        step: seconds that a trainer spends on a batch, on a device of its own: this process sleeps meanwhile. 0 for no trainer.
        settle: seconds off the clock, where an epoch would take too long: then turns end with any batch. 0 for whole epochs.
        steering: such seconds before the first turn, in which a loader finds out how many reads in flight pay.
    """
    now, own_now = time.perf_counter, time.thread_time
    delivered, mislabelled = None, 0
    if settle:
        epochs = ([batch] for epoch in epochs for batch in epoch)
    while True:
        if settle:
            settled = now() + max(settle, steering)
            steering = 0.0
            while now() < settled:
                mislabelled += sum(case.mislabelled(X, y) for X, y in next(epochs))
        else:
            delivered = checksum(next(epochs))
        samples, batches, batch_wait, own = 0, 0, 0.0, 0.0
        cpu = cpu_seconds(os.getpid())
        start = asked = now()
        while now() - start < least:
            own_asked = own_now()
            for X, _ in next(epochs):
                own += own_now() - own_asked
                samples += len(X)
                batches += 1
                if step:
                    batch_wait += now() - asked
                    time.sleep(step)
                    asked = now()
                own_asked = own_now()
        seconds = now() - start
        cpu = cpu_seconds(os.getpid()) - cpu
        yield Turn(samples, seconds, delivered, mislabelled, batch_wait=batch_wait, cpu=cpu, own=own / batches)


def turns_of_bare(name: str, job: Job, least: float) -> Iterator[Turn]:
    """Every turn is ``least`` seconds of what nobody can be better than."""
    while True:
        read = BARE[name](job, least)
        yield Turn(read.samples, read.seconds, fetched=read.samples * job.case.file_pages)


def turns_of_starting(epochs: Iterator[Batches]) -> Iterator[Turn]:
    """One turn: the clock for the first batch starts at the constructor's call; that for the others when the first is there."""
    start = time.perf_counter()
    epoch = iter(next(epochs))
    delivered = checksum([next(epoch)])
    first = time.perf_counter() - start
    fetched = storage_bytes(os.getpid())
    begin, samples = time.perf_counter(), delivered.samples
    for batch in epoch:
        delivered += checksum([batch])
    seconds = time.perf_counter() - begin
    fetched = storage_bytes(os.getpid()) - fetched
    yield Turn(delivered.samples - samples, seconds, delivered, first=first, fetched=fetched)


def turns_of_fit(feed: Feed, samples: int, least: float) -> Iterator[Turn]:
    """Every turn is a ``fit`` whose clock starts when its first epoch ends, and runs for ``least`` seconds or more.

    Args:
        feed: to be trained on.
        samples: in an epoch.
        least: seconds.
    """
    import keras

    class Clock(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: object = None) -> None:
            if epoch == 0:
                self.start = time.perf_counter()
            self.epochs = epoch
            self.seconds = time.perf_counter() - self.start
            self.model.stop_training = self.seconds >= least

    delivered = checksum(feed.epoch)
    # So small that to feed it is the work.
    model = keras.Sequential([keras.layers.GlobalAveragePooling3D(), keras.layers.Dense(CLASSES)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    while True:
        clock = Clock()
        model.fit(**feed.arguments, epochs=sys.maxsize, verbose=0, callbacks=[clock])
        yield Turn(clock.epochs * samples, clock.seconds, delivered)


def main() -> None:
    """Take a turn for every line on standard input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contestant", description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["load", "start", "fit"], help="read batches, read the first ones, or train on them")
    parser.add_argument("contestant", choices=list(PEERS | FEEDS))
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--files", type=int, help="how many there are")
    parser.add_argument("--repeats", type=int, default=1, help="of each file in an epoch")
    parser.add_argument("--seen", default="", help="mount or URL of the case's folder")
    parser.add_argument("--seconds", type=float, default=1.0, help="that a turn lasts, or more")
    parser.add_argument("--settle", type=float, default=0.0, help="seconds in place of a whole epoch before each turn")
    parser.add_argument("--workers", type=int, default=2, help="that read")
    parser.add_argument("--reads", type=int, default=0, help="in flight, in place of what the contestant likes")
    parser.add_argument("--share", type=int, default=0, help="of every batch, from 0 to one less than workers, for the limit")
    parser.add_argument("--step", type=float, default=0.0, help="seconds that a trainer spends on a batch")
    parser.add_argument("--cold", action="store_true", help="the files are not in the page cache")
    options = parser.parse_args()
    case = CASES[options.case]
    case = replace(
        case, files=options.files or case.files, repeats=options.repeats, root=options.data or case.root, seen=options.seen
    )
    case.make()
    name = options.contestant
    job = Job(case, options.workers, options.share, options.cold, options.reads)
    for module in modules(name) if options.what == "fit" else PEERS[name].modules:
        import_module(module)
    if "tensorflow" in sys.modules:
        sys.modules["tensorflow"].constant(0)  # starts what any program that uses it has started by then
    assert len(case.labels) == case.files  # made now, as any program has them by then
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)  # or a trainer's step would last 0.05 ms longer
    epochs: Iterator[Batches] = iter(())
    if options.what == "fit":
        turns = turns_of_fit(FEEDS[name](job), case.samples, options.seconds)
    elif name in BARE:
        turns = turns_of_bare(name, job, options.seconds)
    else:
        load = PEERS[name].load
        assert load is not None
        epochs = load(job)
        if options.what == "start":
            turns = turns_of_starting(epochs)
        else:
            steering = 0.0 if job.reads else STEERING
            turns = turns_of_loading(epochs, case, options.seconds, options.step, options.settle, steering)
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(asdict(next(turns))), flush=True)
    if hasattr(epochs, "close"):
        epochs.close()


if __name__ == "__main__":
    main()
