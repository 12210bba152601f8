"""Measures how much faster one packed file is read than the folder it was made from: ``python -m benchmarks.packed``."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.machine import UnavailableError, cpu_seconds, drop_from_page_cache
from shmgen import Loader, Npy, NpyRows, Source

WORKERS, SLOTS = 2, 3


@dataclass(frozen=True)
class Sizes:
    """Sizes of a folder of ``.npy`` files, each with ``row_bytes`` bytes of data."""

    row_bytes: int
    files: int
    batch_size: int


CASES = (Sizes(784, 51_200, 256), Sizes(12_288, 25_600, 64), Sizes(131_072, 6_400, 32))


def main() -> None:
    """Make each folder, pack it, read both in turn, and print a table of the rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (default: %(default)s)")
    parser.add_argument("--cut", type=int, default=1, help="divisor of the number of files")
    parser.add_argument("--root", help="folder on the disk to measure")
    arguments = parser.parse_args()
    print(
        "| bytes | page cache | folder, samples/s | packed, samples/s | rate: packed by folder | processor time: folder by packed"
    )
    print("| -: | - | -: | -: | -: | -:")
    for case in CASES:
        with tempfile.TemporaryDirectory(prefix="shmgen-packed-", dir=arguments.root) as place:
            for row in _rows(Path(place), case, arguments.cut, arguments.rounds):
                print(f"| {row}", flush=True)


def _rows(place: Path, case: Sizes, cut: int, rounds: int) -> Iterator[str]:
    batches = max(1, case.files // cut // case.batch_size)
    ids = [f"{number // 1000:03}/{number:07}" for number in range(batches * case.batch_size)]
    rows = np.random.default_rng(0).integers(0, 256, (16, case.row_bytes), np.uint8)
    for number, id in enumerate(ids):
        path = place / "data" / f"{id}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, rows[number % 16])
    os.sync()
    command = [sys.executable, "-m", "shmgen", "pack", str(place / "data"), str(place / "all.npy")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    contestants: tuple[tuple[Source, list[str]], ...] = (
        (Npy(place / "data"), [str(place / "data" / f"{id}.npy") for id in ids]),
        (NpyRows(place / "all.npy", ids=place / "all.ids"), [str(place / "all.npy")]),
    )
    for cold in (False, True):
        found: list[list[tuple[float, float]]] = [[], []]
        try:
            for _ in range(rounds):
                for measured, (source, paths) in zip(found, contestants, strict=True):
                    measured.append(_measured(source, ids, case.batch_size, paths if cold else None))
        except UnavailableError as error:
            yield f"{case.row_bytes:,} | cold | {error}"
            return
        folder, packed = (statistics.median(rate for rate, _ in measured) for measured in found)
        faster = [packed_rate / folder_rate for (folder_rate, _), (packed_rate, _) in zip(*found, strict=True)]
        cheaper = [folder_cpu / packed_cpu for (_, folder_cpu), (_, packed_cpu) in zip(*found, strict=True)]
        ratios = " | ".join(f"{statistics.median(all):.1f} ({min(all):.1f} to {max(all):.1f})" for all in (faster, cheaper))
        yield f"{case.row_bytes:,} | {'cold' if cold else 'warm'} | {folder:,.0f} | {packed:,.0f} | {ratios}"


def _measured(source: Source, ids: list[str], batch_size: int, cold: list[str] | None) -> tuple[float, float]:
    """Samples a second of an epoch in random order, and the processor time of all processes, in seconds.

    Args:
        source: the source to read.
        ids: ids of all samples.
        batch_size: samples in a batch.
        cold: files to drop from the page cache first; None for a warm epoch. Folders and inodes stay in the kernel's memory.
    """
    with Loader(ids, None, batch_size, source=source, workers=WORKERS, slots=SLOTS) as loader:
        for _ in loader:  # a warm-up starts the workers and fills the page cache
            pass
        if cold is not None:
            drop_from_page_cache(cold)
        used, began = cpu_seconds(os.getpid()), time.monotonic()
        batches = sum(1 for _ in loader)
        return batches * batch_size / (time.monotonic() - began), cpu_seconds(os.getpid()) - used


if __name__ == "__main__":
    main()
