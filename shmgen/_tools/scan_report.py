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

from shmgen._checks import are_numbers, meant, what_bytes_may_be
from shmgen._sources.base import row_shapes
from shmgen.errors import FormatError


class Given(NamedTuple):
    """The shape and dtype that the user expects; None is decided by the files.

    Attributes:
        dim: shape of a sample without its channels.
        n_channels: size of the last axis.
        dtype: of a row, to which files are cast.
    """

    dim: tuple[int, ...] | None = None
    n_channels: int | None = None
    dtype: np.dtype[np.generic] | None = None


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


class Expected(NamedTuple):
    """What a loader takes.

    Attributes:
        shapes: that files may have; the first is that of a row.
        dtype: of a row, in native byte order.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtype: np.dtype[np.generic]


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
    given: Given
    expected: Expected | None
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
            remarks.append(
                f"dtypes differ: a loader casts to the first file's; pass it dtype={self.expected.dtype.name!r} to be sure of one"
            )
        if not self.given.dim and any(kind.reason for kind in self.kinds):
            remarks.append("expected is what most files have, unless --dim, --n-channels and --dtype say otherwise")
        return remarks


def judge(kinds: Sequence[Kind], given: Given) -> tuple[Expected | None, list[Kind]]:
    """What a loader for most of the files expects, and the kinds, each with the reason why it would not take them.

    The answer is that of `Npy` with ``given`` if its first file is of the most frequent kind that ``given`` allows.
    """
    ranked = sorted(kinds, key=lambda kind: (-kind.files, kind.shape, kind.dtype.str))
    expected = _expected(ranked, given)
    return expected, [kind._replace(reason=_reason(kind, expected, given)) for kind in ranked]


def _expected(ranked: Iterable[Kind], given: Given) -> Expected | None:
    votes = Counter[tuple[tuple[int, ...], ...]]()
    dtypes = Counter[np.dtype[np.generic]]()
    able = []
    for kind in ranked:
        with suppress(FormatError):
            shapes = _shapes(kind, given)
            votes[shapes] += kind.files
            able.append((shapes, kind))
    if not able:
        return None
    ((expected, _),) = votes.most_common(1)
    for shapes, kind in able:
        if shapes == expected:
            dtypes[given.dtype or kind.dtype.newbyteorder("=")] += kind.files
    ((dtype, _),) = dtypes.most_common(1)
    return Expected(expected, dtype)


def _shapes(kind: Kind, given: Given) -> tuple[tuple[int, ...], ...]:
    """The shapes that a loader with ``given`` takes if its first file is of ``kind``.

    Raises:
        FormatError: it does not take such a first file.
    """
    shapes = row_shapes(kind.shape, given.dim, given.n_channels)
    if kind.shape not in shapes:
        raise FormatError(_other_shape(shapes, kind))
    if given.dtype is None and not are_numbers(kind.dtype):
        raise FormatError(f"expected numbers, found dtype {kind.dtype}{what_bytes_may_be(kind.dtype)}")
    if given.dtype is not None and not _casts(kind, given.dtype):
        raise FormatError(_other_dtype(given.dtype, kind))
    return shapes


def _reason(kind: Kind, expected: Expected | None, given: Given) -> str | None:
    if expected is None or 0 in kind.shape:
        try:
            _shapes(kind, given)
        except FormatError as error:
            return str(error)
    assert expected is not None
    if kind.shape not in expected.shapes:
        return _other_shape(expected.shapes, kind)
    return None if _casts(kind, expected.dtype) else _other_dtype(expected.dtype, kind)


def _casts(kind: Kind, dtype: np.dtype[np.generic]) -> bool:
    return np.can_cast(meant(kind.dtype, dtype), dtype, "same_kind")


def _other_shape(shapes: Iterable[tuple[int, ...]], kind: Kind) -> str:
    return f"expected shape {' or '.join(map(str, dict.fromkeys(shapes)))}, found {kind.shape}"


def _other_dtype(dtype: np.dtype[np.generic], kind: Kind) -> str:
    return f"expected dtype {dtype}, found {kind.dtype}, whose cast would lose more than precision"
