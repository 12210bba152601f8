"""Finds every sample that a loader could not read: an epoch of a `Loader` that goes on after each of them."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from shmgen._engine.front_end import map_arrays
from shmgen._plan.damaged_samples import Damaged
from shmgen._samples.ids import kept
from shmgen._samples.sample_spec import RowSpec, SampleSpec, check_smaller
from shmgen._sources.batch_spec import BatchSpec
from shmgen._sources.folder import SCAN
from shmgen._sources.npy import Npy
from shmgen._tools.npy_headers import NpyHeaders, shape_and_dtype
from shmgen.errors import FormatError, InputError, SampleError
from shmgen.loader import Loader

if TYPE_CHECKING:
    from shmgen._sources.base import Reader, Source, SourceField

BATCH_BYTES, MAX_BATCH = 4 << 20, 1024
"""The most bytes, and the most samples, of a batch."""


class Kind(NamedTuple):
    """Whole ``.npy`` files of one shape and dtype: how many, bytes of data, and why a loader would refuse them, or None."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    files: int
    bytes: int
    reason: str | None = None


@dataclass(frozen=True)
class ScanReport:
    """The result of a scan.

    Attributes:
        samples: number of samples that were looked at.
        seconds: duration of the scan.
        damaged: the samples that a loader can't read, with the reasons, in the order of the ids.
        good: the ids of all others, in their order, as ``list_IDs`` takes them.
        kinds: of ``.npy`` files: shapes and dtypes, the most frequent first; of other sources, none.
        expected: of ``.npy`` files: the shapes of files that fit, and the dtype that they are cast to; else None.
        lengths: of a folder of ``.npy`` files: the size of the first axis by id, of all good ids, as ``lengths=`` of a loader
            takes them; empty for other sources, and for files without axes.
        remarks: surprises that are no damage.
        complete: whether all samples were looked at: false where the command was interrupted.
    """

    samples: int
    seconds: float
    damaged: tuple[Damaged, ...]
    good: list[Any] = field(repr=False)
    kinds: tuple[Kind, ...] = ()
    expected: RowSpec | None = None
    lengths: dict[Any, int] = field(default_factory=dict, repr=False)
    remarks: tuple[str, ...] = ()
    complete: bool = True


def scan(
    source: Source | SourceField | Callable[..., Any] | str | os.PathLike[str],
    ids: Iterable[object],
    *,
    full: bool = False,
    workers: int | Literal["auto"] = "auto",
    timeout: float | None = 60.0,
    progress: Callable[[int, int, str], object] = lambda *_: None,
) -> ScanReport:
    """Find every sample that a `Loader` could not read, in worker processes, which may die or hang.

    Of ``.npy`` files, headers and sizes are checked; the expected shape and dtype are those of most files, unless `Npy` is given
    others. All other samples are read, and must have shape and dtype of the first one that can be read. A sample that ends a
    worker, or is not read within ``timeout``, is named too.

    Args:
        source: as for a `Loader`; or the folder of ``.npy`` files, or its URL.
        ids: of all samples. One that is there twice is checked once.
        full: read all data of ``.npy`` files too. Of any source, NaN and infinite numbers are damage then.
        workers: processes that read, as for a `Loader`.
        timeout: seconds after which a read is given up, as for a `Loader`.
        progress: called again and again with the number of samples that are done, that of all, and what was found among them.

    Raises:
        InputError: an argument is wrong, or the source can't be used for these ids. All errors of `Loader` but `SampleError` may
            be raised too.

    Examples:
        >>> report = scan(lambda id: [60 / (id - 5)], range(8))
        >>> [(damaged.id, damaged.reason.splitlines()[0]) for damaged in report.damaged]
        [(5, 'ZeroDivisionError: division by zero')]
        >>> loader = Loader(report.good, batch_size=7, source=lambda id: [60 / (id - 5)])
    """
    work = Scan(source, ids, full=full, workers=workers, timeout=timeout)
    work.run(progress)
    return work.report()


class Scan:
    """A scan whose results so far can be read at any time. Its arguments are those of `scan`."""

    def __init__(
        self, source: Any, ids: Iterable[object], *, full: bool, workers: int | Literal["auto"], timeout: float | None
    ) -> None:
        self._source = Npy(source) if isinstance(source, str | os.PathLike) else source
        self._ids = list(dict.fromkeys(kept(ids)))
        if not self._ids:
            raise InputError("expected ids, found none")
        self._full, self._workers, self._timeout = full, workers, timeout
        self.damaged: dict[Any, Damaged] = {}  # by id, without files whose headers can be read and do not fit
        # By row of `NpyHeaders`: the ids of the files with such a header.
        self._headers: dict[bytes, list[Any]] = {}
        self._samples = 0
        self._seconds = 0.0
        self._complete = False

    def run(self, progress: Callable[[int, int, str], object] = lambda *_: None) -> None:
        """Look at all samples. May be called once."""
        begun = time.monotonic()
        looks = isinstance(self._source, Npy)
        total = len(self._ids) * (1 + (looks and self._full))

        def with_progress(batches: Iterable[Batch]) -> Iterator[Batch]:
            for batch in batches:
                yield batch
                self._samples += len(batch.ids)
                progress(self._samples, total, f"{len(self.damaged):,} damaged" if self.damaged else "")

        try:
            if looks:
                for batch in with_progress(self._read(NpyHeaders(self._source.files), self._ids)):
                    for array in batch.arrays:
                        for id, row in zip(batch.ids, array, strict=True):
                            if id not in self.damaged:
                                self._headers.setdefault(row.tobytes(), []).append(id)
            if self._full or not looks:
                for batch in with_progress(self.read_good()):
                    if self._full:
                        self._refuse_not_finite(batch)
            self._complete = True
        finally:
            self._samples = min(self._samples, len(self._ids))
            self._seconds = time.monotonic() - begun

    def read_good(self) -> Iterator[Batch]:
        """Read all samples that are not known to be damaged; those of ``.npy`` files in the dtype of most."""
        report, source = self.report(), self._source
        if report.expected is not None:
            source = copy(source)
            source.given = source.given._replace(dtype=report.expected.dtype)
        return self._read(source, report.good)

    def report(self) -> ScanReport:
        damaged = dict(self.damaged)
        kinds: list[Kind] = []
        expected, remarks = None, list[str]()
        lengths: dict[Any, int] = {}
        if self._headers:
            given = self._source.given
            for text, ids in self._headers.items():
                shape, dtype = shape_and_dtype(text)
                kinds.append(Kind(shape, dtype, len(ids), math.prod(shape) * dtype.itemsize * len(ids)))
            expected, kinds = judge(kinds, given)
            for kind, ids in zip(kinds, self._headers.values(), strict=True):
                if kind.reason is not None:
                    damaged |= {id: Damaged(id, self._source.files.path(id), kind.reason) for id in ids}
                elif kind.shape:
                    lengths |= dict.fromkeys((id for id in ids if id not in damaged), kind.shape[0])
            remarks = _remarks(kinds, expected, given)
        return ScanReport(
            samples=self._samples,
            seconds=self._seconds,
            damaged=tuple(damaged[id] for id in self._ids if id in damaged),
            good=[id for id in self._ids if id not in damaged],
            kinds=tuple(sorted(kinds, key=lambda kind: -kind.files)),
            expected=expected,
            lengths=lengths,
            remarks=tuple(remarks),
            complete=self._complete,
        )

    def _refuse_not_finite(self, batch: Batch) -> None:
        for array in batch.arrays:
            if array.dtype.kind not in "fc" or np.isfinite(array).all():
                continue
            for id, row in zip(batch.ids, array, strict=True):
                if id not in self.damaged and (wrong := np.count_nonzero(~np.isfinite(row))):
                    reason = f"expected finite numbers, found {wrong:,} that are NaN or infinite"
                    places = dict.fromkeys(reader.place(id) for reader in batch.readers)
                    self.damaged[id] = Damaged(id, ", ".join(places), reason)

    def _read(self, source: Any, ids: Sequence[Any]) -> Iterator[Batch]:
        """Read all samples in their order. Those that can't be read are added to ``damaged`` before their batch comes."""
        start = row_bytes = 0
        while start < len(ids) and not row_bytes:
            try:
                spec = BatchSpec(source, None, None, [ids[start]], is_sample=True)
                row_bytes = sum(field.row_bytes for field in spec.bind())
            except SampleError as error:  # the first sample that can be read decides shape and dtype
                self.damaged[error.id] = _found(error)
                start += 1
                yield Batch([error.id])
        ids = ids[start:]
        if not ids:
            return
        size = max(1, min(MAX_BATCH, BATCH_BYTES // row_bytes, len(ids)))
        with Loader(
            ids,
            None,
            size,
            shuffle=False,
            tail="keep",
            source=source,
            workers=self._workers,
            timeout=self._timeout,
            on_error="collect",
            max_damaged=1.0,
        ) as loader:
            batches, seen = iter(loader), 0
            for first in range(0, len(ids), size):
                some = list(ids[first : first + size])
                try:
                    batch = next(batches)
                except SampleError as error:  # its worker can't be killed, which ends the loader: the others are read again
                    self.damaged[error.id] = _found(error)
                    yield Batch([error.id])
                    rest = [id for id in some if id != error.id]
                    yield from self._read(source, rest)
                    continue
                finally:
                    found = loader.damaged[seen:]
                    seen += len(found)
                    self.damaged |= {one.id: _found(one) for one in found}
                arrays: list[np.ndarray] = []
                map_arrays(arrays.append, batch)
                yield Batch(some, arrays, spec.readers.values())


class Batch(NamedTuple):
    """Samples that were read: the ids, the array of each field, in which rows of damaged samples are undefined, and the readers.

    There are no arrays, and no readers, if all samples are damaged.
    """

    ids: list[Any]
    arrays: Sequence[np.ndarray] = ()
    readers: Collection[Reader] = ()


def _found(error: SampleError | Damaged) -> Damaged:
    return Damaged(error.id, error.path, error.reason.removesuffix(SCAN))


def judge(kinds: Sequence[Kind], given: SampleSpec) -> tuple[RowSpec | None, list[Kind]]:
    """The row that `Npy` expects if its first file is of the most frequent kind; and the kinds, with the reasons of refusals."""
    rows = Counter[RowSpec]()
    for kind in sorted(kinds, key=lambda kind: (-kind.files, kind.shape, kind.dtype.str)):
        with suppress(FormatError):
            rows[_checked(kind, given, None)] += kind.files
    expected = max(rows, key=rows.__getitem__, default=None)
    judged = []
    for kind in kinds:
        try:
            _checked(kind, given, expected)
            judged.append(kind)
        except FormatError as error:
            judged.append(kind._replace(reason=str(error)))
    return expected, judged


def _checked(kind: Kind, given: SampleSpec, row: RowSpec | None) -> RowSpec:
    """``row``; by default that of a loader with ``given`` whose first file is of ``kind``; a FormatError if that does not fit."""
    is_padded = given.pad_value is not None
    if row is None or (0 in kind.shape and not is_padded):
        row = given.row(kind.shape, kind.dtype, varies=is_padded)
    row.check(kind.shape, kind.dtype)
    if is_padded:
        check_smaller(kind.shape, row.shape)
    return row


def _remarks(kinds: Sequence[Kind], expected: RowSpec | None, given: SampleSpec) -> list[str]:
    taken = {kind.dtype.newbyteorder("=") for kind in kinds if kind.reason is None}
    remarks = []
    if given.dtype is None and expected and len(taken) > 1:
        most = expected.numpy_dtype.name
        remarks.append(f"dtypes differ: a loader casts to the first file's; pass it dtype={most!r} to be sure of one")
    if not given.dim and any(kind.reason for kind in kinds):
        remarks.append("expected is what most files have, unless dim, n_channels and dtype say otherwise")
    return remarks
