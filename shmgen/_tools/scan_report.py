"""What a scan has found: which files a `Loader` would take, and what is wrong with the others.

A folder of several shapes can't be trained on as it is. The expected shape and dtype are those of most files, if not given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from shmgen._samples.sample_spec import RowSpec, SampleSpec
from shmgen.errors import FormatError


class Kind(NamedTuple):
    """Whole files of one shape and dtype.

    Attributes:
        shape: of each.
        dtype: of each, byte order included.
        files: number of files.
        bytes: of all of them, with headers.
        reason: why a loader would not take them: what was expected, and what was found. None if it would.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    files: int
    bytes: int
    reason: str | None = None


class Damage(NamedTuple):
    """A file that can't be read as a sample, or a sub-folder that can't be listed.

    Attributes:
        id: of the sample; for a sub-folder, its path from the folder.
        path: of the file.
        reason: what was expected, and what was found.
    """

    id: str
    path: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What a scan has found.

    Attributes:
        folder: that was scanned.
        full: whether all data was read.
        complete: whether all files were looked at, and the scan was not interrupted.
        files: number of files that were looked at.
        seconds: duration of the scan.
        given: the shape and dtype that the user expects.
        expected: what a loader takes; None if no file shows it.
        kinds: of whole files, the most frequent first.
        damaged: all other files, and those of kinds that a loader would not take, by path.
    """

    folder: str
    full: bool
    complete: bool
    files: int
    seconds: float
    given: SampleSpec
    expected: RowSpec | None
    kinds: list[Kind]
    damaged: list[Damage]

    @property
    def bytes(self) -> int:
        """Of the whole files, with headers."""
        return sum(kind.bytes for kind in self.kinds)

    @property
    def remarks(self) -> list[str]:
        """What is no damage, but may come as a surprise."""
        taken = {kind.dtype.newbyteorder("=") for kind in self.kinds if kind.reason is None}
        remarks = []
        if self.given.dtype is None and self.expected and len(taken) > 1:
            most = self.expected.numpy_dtype.name
            remarks.append(f"dtypes differ: a loader casts to the first file's; pass it dtype={most!r} to be sure of one")
        if not self.given.dim and any(kind.reason for kind in self.kinds):
            remarks.append("expected is what most files have, unless --dim, --n-channels and --dtype say otherwise")
        return remarks


def judge(kinds: Sequence[Kind], given: SampleSpec) -> tuple[RowSpec | None, list[Kind]]:
    """What a loader for most of the files expects, and the kinds, each with the reason why it would not take them.

    The answer is that of `Npy` with ``given`` if its first file is of the most frequent kind that ``given`` allows.
    """
    ranked = sorted(kinds, key=lambda kind: (-kind.files, kind.shape, kind.dtype.str))
    expected = _expected(ranked, given)
    return expected, [kind._replace(reason=_reason(kind, expected, given)) for kind in ranked]


def _expected(ranked: Iterable[Kind], given: SampleSpec) -> RowSpec | None:
    rows = Counter[RowSpec]()
    for kind in ranked:
        with suppress(FormatError):
            rows[_row(kind, given)] += kind.files
    if not rows:
        return None
    shapes = Counter[tuple[tuple[int, ...], ...]]()
    for row, files in rows.items():
        shapes[row.shapes] += files
    ((most, _),) = shapes.most_common(1)
    return max((row for row in rows if row.shapes == most), key=rows.__getitem__)


def _reason(kind: Kind, expected: RowSpec | None, given: SampleSpec) -> str | None:
    try:
        if expected is None or 0 in kind.shape:
            expected = _row(kind, given)
        expected.check(kind.shape, kind.dtype)
    except FormatError as error:
        return str(error)
    return None


def _row(kind: Kind, given: SampleSpec) -> RowSpec:
    """The row of a loader with ``given`` whose first file is of ``kind``.

    Raises:
        FormatError: it does not take such a first file.
    """
    row = given.row(kind.shape, kind.dtype)
    row.check(kind.shape, kind.dtype)
    return row
