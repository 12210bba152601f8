"""The data sets: their shapes, their files, and checks that a contestant read every sample once, with its label."""

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
"""The number of marks. A sample's first value is its mark, from 1: it fits uint8. A prime shares no period with the labels."""


@dataclass(frozen=True)
class Case:
    """A data set: a folder of files.

    Attributes:
        name: name on the command line and of the folder.
        title: title in the table.
        shape: shape of a sample, channels last.
        dtype: dtype of the files.
        batch_size: samples in a batch.
        files: number of files; a multiple of ``batch_size``, so that no contestant drops any.
        repeats: number of times each file is a sample of an epoch, to make epochs longer without more files.
        root: parent folder of all data sets.
        served_at: mount point or URL through which contestants read the files; empty for the folder itself.
    """

    name: str
    title: str
    shape: tuple[int, ...]
    dtype: str
    batch_size: int
    files: int
    repeats: int = 1
    root: Path = Path(__file__).parents[1] / ".bench"
    served_at: str = ""

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
        """Number of samples in an epoch."""
        return self.files * self.repeats

    @property
    def sample_bytes(self) -> int:
        return prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def header_bytes(self) -> int:
        """Size of a file's header."""
        return os.path.getsize(self.folder / f"{self.ids[0]}.npy") - self.sample_bytes

    @property
    def file_pages(self) -> int:
        """Size of a file, rounded up to whole pages."""
        return -(-(self.header_bytes + self.sample_bytes) // PAGESIZE) * PAGESIZE

    @property
    def checksum(self) -> Checksum:
        """The expected `checksum` of an epoch."""
        total = sum(self._mark(number) * (number % CLASSES + 1) for number in range(self.files))
        return Checksum(self.samples, self.repeats * total)

    @property
    def location(self) -> str:
        """The folder or URL that contestants read from."""
        return self.served_at or str(self.folder)

    @property
    def url(self) -> str:
        """The URL that contestants read from; empty if they read from a folder."""
        return self.served_at if "://" in self.served_at else ""

    def mislabelled(self, X: np.ndarray, y: np.ndarray) -> int:
        """Count labels that no sample with the same mark has: with 1,024 files, about one in three wrong labels."""
        numbers = np.arange(self.files)
        known = np.zeros((MARKS + 1, CLASSES), bool)
        known[self._mark(numbers), numbers % CLASSES] = True
        return int(np.count_nonzero(~known[_marks(X), y]))

    def path(self, id: str) -> str:
        """The path or URL of a file."""
        return f"{self.location}/{id}.npy"

    def make(self) -> None:
        """Write the files, unless they exist."""
        if self.folder.exists():
            return
        unfinished = self.folder.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        sample = np.random.default_rng(0).integers(0, 256, self.shape).astype(self.dtype)
        for number, id in enumerate(self.labels):
            sample.flat[0] = self._mark(number)
            np.save(unfinished / f"{id}.npy", sample)
        os.sync()  # else the kernel would still write while the first contestants are measured
        unfinished.rename(self.folder)

    @staticmethod
    def _mark(number: Any) -> Any:
        return 1 + number % MARKS


@dataclass(frozen=True)
class Checksum:
    """A checksum that shows missing, repeated and mislabelled samples.

    Attributes:
        samples: number of samples.
        total: sum over all samples of mark times label, where labels count from 1.
    """

    samples: int
    total: int

    def __add__(self, other: Checksum) -> Checksum:
        return Checksum(self.samples + other.samples, self.total + other.total)


def checksum(batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> Checksum:
    """The checksum of delivered batches."""
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
