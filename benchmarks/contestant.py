"""The process of one contestant, which takes a turn for each line on standard input.

It prints "ready" once everything is imported, and its figures as JSON after each turn. To run two turns of shmgen::

    printf '\\n\\n' | python -m benchmarks.contestant load shmgen volume-32
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

from benchmarks.bounds import BARE_READERS
from benchmarks.cases import CASES, CLASSES, Case, Checksum, checksum
from benchmarks.feeds import FEEDS, Feed, modules
from benchmarks.job import TUNING, Batches, Job
from benchmarks.machine import cpu_seconds, storage_bytes
from benchmarks.peers import CONTESTANTS

PR_SET_TIMERSLACK = 29


@dataclass(frozen=True)
class Turn:
    """The figures of one turn of a contestant.

    Attributes:
        samples: number of samples delivered while the clock ran.
        seconds: duration of the turn, in seconds.
        delivered: checksum of an epoch off the clock; None if no whole epoch was checked.
        mislabelled: number of wrong labels found in the batches off the clock, if there was no whole epoch.
        first: time from the constructor's call to the first batch, in seconds.
        batch_wait: time that the trainer waited for batches, in seconds.
        cpu: processor time of all processes while the clock ran, in seconds.
        trainer_cpu: processor time of the trainer's thread, in seconds a batch.
        fetched: bytes that all processes read from storage while the clock ran; not those read before, or contestants that read
            many batches at once would seem faster.
    """

    samples: int
    seconds: float
    delivered: Checksum | None = None
    mislabelled: int = 0
    first: float = 0.0
    batch_wait: float = 0.0
    cpu: float = 0.0
    trainer_cpu: float = 0.0
    fetched: int = 0


def turns_of_loading(
    epochs: Iterator[Batches], case: Case, min_seconds: float, step: float, warmup: float, tuning: float
) -> Iterator[Turn]:
    """Yield turns of one epoch off the clock, and then as many on the clock as take ``min_seconds``.

    The epoch off the clock is checked. It also uses up batches read ahead during other contestants' turns, and warms the caches.

    Args:
        epochs: epochs of the loader.
        case: the data set.
        min_seconds: minimum duration of a turn, in seconds.
        step: time that a trainer spends on a batch, in seconds, while this process sleeps; 0 for no trainer.
        warmup: time off the clock in place of a whole epoch, in seconds; turns then end after any batch. 0 for whole epochs.
        tuning: minimum warm-up before the first turn, in seconds, in which a loader finds its best number of reads in flight.
    """
    now, cpu_now = time.perf_counter, time.thread_time
    delivered, mislabelled = None, 0
    if warmup:
        epochs = ([batch] for epoch in epochs for batch in epoch)
    while True:
        if warmup:
            warm = now() + max(warmup, tuning)
            tuning = 0.0
            while now() < warm:
                mislabelled += sum(case.mislabelled(X, y) for X, y in next(epochs))
        else:
            delivered = checksum(next(epochs))
        samples, batches, batch_wait, trainer_cpu = 0, 0, 0.0, 0.0
        cpu = cpu_seconds(os.getpid())
        start = asked = now()
        while now() - start < min_seconds:
            cpu_asked = cpu_now()
            for X, _ in next(epochs):
                trainer_cpu += cpu_now() - cpu_asked
                samples += len(X)
                batches += 1
                if step:
                    batch_wait += now() - asked
                    time.sleep(step)
                    asked = now()
                cpu_asked = cpu_now()
        seconds = now() - start
        cpu = cpu_seconds(os.getpid()) - cpu
        trainer_cpu /= batches
        yield Turn(samples, seconds, delivered, mislabelled, batch_wait=batch_wait, cpu=cpu, trainer_cpu=trainer_cpu)


def turns_of_bare_reading(name: str, job: Job, seconds: float) -> Iterator[Turn]:
    """Yield turns of a bound that makes no batches."""
    while True:
        read = BARE_READERS[name](job, seconds)
        yield Turn(read.samples, read.seconds, fetched=read.samples * job.case.file_pages)


def turns_of_starting(epochs: Iterator[Batches]) -> Iterator[Turn]:
    """Yield one turn: the first batch is timed from the constructor's call, the others from the arrival of the first."""
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


def turns_of_fit(feed: Feed, samples: int, min_seconds: float) -> Iterator[Turn]:
    """Yield turns of one ``fit`` each, timed from the end of its first epoch, for at least ``min_seconds``."""
    import keras

    class Clock(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: object = None) -> None:
            if epoch == 0:
                self.start = time.perf_counter()
            self.epochs = epoch
            self.seconds = time.perf_counter() - self.start
            self.model.stop_training = self.seconds >= min_seconds

    delivered = checksum(feed.epoch)
    # The model is so small that feeding it takes most of the time.
    model = keras.Sequential([keras.layers.GlobalAveragePooling3D(), keras.layers.Dense(CLASSES)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    while True:
        clock = Clock()
        model.fit(**feed.arguments, epochs=sys.maxsize, verbose=0, callbacks=[clock])
        yield Turn(clock.epochs * samples, clock.seconds, delivered)


def main() -> None:
    """Take a turn for each line on standard input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contestant", description=__doc__.partition("\n")[0])
    parser.add_argument("task", choices=["load", "start", "fit"], help="read batches, read the first batches, or train")
    parser.add_argument("contestant", choices=list(CONTESTANTS | FEEDS))
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--files", type=int, help="number of files")
    parser.add_argument("--repeats", type=int, default=1, help="number of times each file is read in an epoch")
    parser.add_argument("--served-at", default="", help="mount point or URL of the data set's folder")
    parser.add_argument("--seconds", type=float, default=1.0, help="minimum duration of a turn")
    parser.add_argument("--warmup", type=float, default=0.0, help="seconds before each turn in place of an epoch")
    parser.add_argument("--workers", type=int, default=2, help="number of processes or threads that read")
    parser.add_argument("--reads", type=int, default=0, help="number of reads in flight; 0 for the contestant's default")
    parser.add_argument("--share", type=int, default=0, help="index of this process's part of every batch, for the limit")
    parser.add_argument("--step", type=float, default=0.0, help="seconds that the trainer spends on a batch")
    parser.add_argument("--cold", action="store_true", help="the files are not in the page cache")
    options = parser.parse_args()
    case = CASES[options.case]
    case = replace(
        case,
        files=options.files or case.files,
        repeats=options.repeats,
        root=options.data or case.root,
        served_at=options.served_at,
    )
    case.make()
    name = options.contestant
    job = Job(case, options.workers, options.share, options.cold, options.reads)
    for module in modules(name) if options.task == "fit" else CONTESTANTS[name].modules:
        import_module(module)
    if "tensorflow" in sys.modules:
        sys.modules["tensorflow"].constant(0)  # start the runtime before the clock, as any program that uses TensorFlow does
    assert len(case.labels) == case.files  # computed before the clock, as a program knows its labels
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)  # else a trainer's step would last 0.05 ms longer
    epochs: Iterator[Batches] = iter(())
    if options.task == "fit":
        turns = turns_of_fit(FEEDS[name](job), case.samples, options.seconds)
    elif name in BARE_READERS:
        turns = turns_of_bare_reading(name, job, options.seconds)
    else:
        load = CONTESTANTS[name].load
        assert load is not None
        epochs = load(job)
        if options.task == "start":
            turns = turns_of_starting(epochs)
        else:
            tuning = 0.0 if job.reads else TUNING
            turns = turns_of_loading(epochs, case, options.seconds, options.step, options.warmup, tuning)
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(asdict(next(turns))), flush=True)
    if hasattr(epochs, "close"):
        epochs.close()


if __name__ == "__main__":
    main()
