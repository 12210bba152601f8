"""Damaged samples: which they are, and how many of them are tolerated."""

from __future__ import annotations

import logging
from typing import Literal, NamedTuple

from shmgen.errors import SampleError, TooManyDamaged

log = logging.getLogger("shmgen")

OnError = Literal["raise", "replace", "collect"]
"""What becomes of a sample that can't be read: its batch is an error, another sample takes its place, or it is only listed."""


class Damaged(NamedTuple):
    """A sample that could not be read.

    Attributes:
        id: the sample's id.
        path: the file, or other place, that was to be read.
        reason: what was expected and what was found.
    """

    id: object
    path: str
    reason: str


class DamageLog:
    """The damaged samples of a data set, of which a fraction of at most ``max_fraction`` may be damaged."""

    def __init__(self, samples: int, on_error: OnError, *, max_fraction: float) -> None:
        self.on_error = on_error
        self.found: dict[int, Damaged] = {}  # by the sample's number
        self.unreadable: set[int] = set()  # numbers of samples that are not tried again, since each try would cost a worker
        self._samples = samples
        self._max_fraction = max_fraction

    def record(self, sample: int, error: SampleError, *, unreadable: bool) -> None:
        """Record that ``sample`` can't be read; a TooManyDamaged if, with it, more are damaged than are tolerated."""
        if unreadable:
            self.unreadable.add(sample)
        if sample in self.found:
            return
        self.found[sample] = Damaged(error.id, error.path, error.reason)
        replaces = self.on_error == "replace"
        if replaces:
            # As text: a handler that keeps log records would keep the error's frames, and the ring with them.
            log.warning("%s\nit is replaced by another sample", str(error))
        if len(self.found) > self._max_fraction * self._samples or (replaces and len(self.found) == self._samples):
            raise self.too_many()

    def too_many(self) -> TooManyDamaged:
        last = list(self.found.values())[-1]
        return TooManyDamaged(len(self.found), self._samples, self._max_fraction, str(SampleError(*last)))
