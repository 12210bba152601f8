"""The data sets: what they are, where their files lie, and how what was read is told from what should have been."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from mmap import PAGESIZE
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = 6
MARKS = 251
"""Every sample begins with a mark from 1 to this, which even uint8 holds; a prime, so marks and labels do not go together."""


@dataclass(frozen=True)
class Case:
    """A folder of files, and how it is read.

    Attributes:
        name: for the command line and the folder.
        title: for the table.
        shape: of a sample, channels last.
        batch_size: samples in a batch.
        files: how many there are; a multiple of ``batch_size``, so that an epoch is every sample once, whoever drops the rest.
        repeats: how often each is a sample: makes an epoch longer, without more files.
        root: the folder of all data sets.
        seen: where readers find the files, if not in ``folder``: a mount of it, or its URL.
    """

    name: str
    title: str
    shape: tuple[int, ...]
    dtype: str
    batch_size: int
    files: int
    repeats: int = 1
    root: Path = Path(__file__).parents[1] / ".bench"
    seen: str = ""

    @property
    def folder(self) -> Path:
        return self.root / f"{self.name}-{self.files}"

    @cached_property
    def ids(self) -> list[str]:
        return [f"id-{number}" for number in range(self.files)] * self.repeats

    @cached_property
    def labels(self) -> dict[str, int]:
        return {id: number % CLASSES for number, id in enumerate(self.ids[: self.files])}

    @property
    def samples(self) -> int:
        """In an epoch."""
        return self.files * self.repeats

    @property
    def sample_bytes(self) -> int:
        return prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def header_bytes(self) -> int:
        """Of every file, in front of its sample."""
        return os.path.getsize(self.folder / f"{self.ids[0]}.npy") - self.sample_bytes

    @property
    def file_pages(self) -> int:
        """Bytes of the pages of a file."""
        return -(-(self.header_bytes + self.sample_bytes) // PAGESIZE) * PAGESIZE

    @property
    def checksum(self) -> Checksum:
        """What `checksum` gives for an epoch."""
        total = sum(self._mark(number) * (number % CLASSES + 1) for number in range(self.files))
        return Checksum(self.samples, self.repeats * total)

    @property
    def location(self) -> str:
        """The folder or URL that readers read from."""
        return self.seen or str(self.folder)

    @property
    def url(self) -> str:
        """Of the folder, if it is behind a server; else empty."""
        return self.seen if "://" in self.seen else ""

    def mislabelled(self, X: np.ndarray, y: np.ndarray) -> int:
        """How many of these have a label that no sample of their mark has. One in three of those that are wrong is found."""
        numbers = np.arange(self.files)
        known = np.zeros((MARKS + 1, CLASSES), bool)
        known[self._mark(numbers), numbers % CLASSES] = True
        return int(np.count_nonzero(~known[_marks(X), y]))

    def path(self, id: str) -> str:
        """Or URL."""
        return f"{self.location}/{id}.npy"

    def make(self) -> None:
        """Write the files, unless they are there."""
        if self.folder.exists():
            return
        unfinished = self.folder.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        sample = np.random.default_rng(0).integers(0, 256, self.shape).astype(self.dtype)
        for number, id in enumerate(self.labels):
            sample.flat[0] = self._mark(number)
            np.save(unfinished / f"{id}.npy", sample)
        os.sync()  # or the writing would go on behind the first contestants' backs
        unfinished.rename(self.folder)

    @staticmethod
    def _mark(number: Any) -> Any:
        return 1 + number % MARKS


@dataclass(frozen=True)
class Checksum:
    """Tells whether samples are missing, stand twice, or go with another's label.

    Attributes:
        samples: how many there were.
        total: of every sample's mark times its label, counted from 1.
    """

    samples: int
    total: int

    def __add__(self, other: Checksum) -> Checksum:
        return Checksum(self.samples + other.samples, self.total + other.total)


def checksum(batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> Checksum:
    """Of samples and labels as they were delivered."""
    found = Checksum(0, 0)
    for X, y in batches:
        found += Checksum(len(X), int(_marks(X) @ (y + 1)))
    return found


def _marks(X: np.ndarray) -> np.ndarray:
    return X.reshape(len(X), -1)[:, 0].astype(np.int64)


CASES = {
    case.name: case
    for case in (
        Case("volume-32", "32³ float32", (32, 32, 32, 1), "float32", batch_size=64, files=4096),
        Case("image-224", "224²x3 uint8", (224, 224, 3), "uint8", batch_size=64, files=4096),
        Case("digit-28", "28² uint8", (28, 28, 1), "uint8", batch_size=256, files=20480),
        Case("volume-128", "128³ float32", (128, 128, 128, 1), "float32", batch_size=8, files=128),
    )
}
