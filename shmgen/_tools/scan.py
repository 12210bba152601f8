"""Finds every sample that a loader could not read, before days of training.

A scan is an epoch of a `Loader` that goes on where a sample can't be read. Of ``.npy`` files it first reads the headers alone:
these are many times as fast, and show which of several shapes most files have.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from shmgen._plan.damage import Damaged
from shmgen._samples.ids import kept
from shmgen._samples.remedies import without_scan
from shmgen._samples.sample_spec import RowSpec, SampleSpec
from shmgen._sources.batch_spec import BatchSpec
from shmgen._sources.npy import Npy
from shmgen._tools.npy_headers import TEXT, NpyHeaders, shape_and_dtype
from shmgen._tools.progress import Progress
from shmgen.errors import FormatError, InputError, SampleError
from shmgen.loader import Loader

if TYPE_CHECKING:
    import os

    from shmgen._sources.base import Source, SourceField

BATCH_BYTES, MAX_BATCH = 4 << 20, 1024
"""Samples of a batch: as many as take this many bytes, but no more than these."""


class Kind(NamedTuple):
    """Whole ``.npy`` files of one shape and dtype.

    Attributes:
        shape: of each.
        dtype: of each, byte order included.
        files: number of files.
        bytes: of their data.
        reason: why a loader would not take them: what was expected, and what was found. None if it would.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    files: int
    bytes: int
    reason: str | None = None


@dataclass(frozen=True)
class ScanReport:
    """What a scan has found.

    Attributes:
        samples: number of samples that were looked at.
        seconds: duration of the scan.
        damaged: the samples that a loader can't read, with the reasons, in the order of the ids.
        good: the ids of all others, in their order: what ``list_IDs`` takes.
        kinds: of ``.npy`` files: shapes and dtypes, the most frequent first; of other sources, none.
        expected: of ``.npy`` files: the shapes of files that fit, and the dtype that they are cast to; else None.
        remarks: what is no damage, but may come as a surprise.
        complete: whether all samples were looked at: false where the command was interrupted.

    Examples:
        >>> report = scan(Npy("data"), ids)
        >>> report.samples, report.damaged, report.good == ids
        (16, (), True)
    """

    samples: int
    seconds: float
    damaged: tuple[Damaged, ...]
    good: list[Any] = field(repr=False)
    kinds: tuple[Kind, ...] = ()
    expected: RowSpec | None = None
    remarks: tuple[str, ...] = ()
    complete: bool = True


def scan(
    source: Source | SourceField | Callable[..., Any] | str | os.PathLike[str],
    ids: Iterable[object],
    *,
    full: bool = False,
    workers: int | Literal["auto"] = "auto",
    timeout: float | None = 60.0,
    progress: Callable[[Progress], object] = lambda _: None,
) -> ScanReport:
    """Find every sample that a `Loader` could not read: with one look at each, in worker processes, whatever happens there.

    Of ``.npy`` files the headers and sizes are looked at; the expected shape and dtype are those of most files, where `Npy` is
    not given any. All other samples are read, and must be as the first one that can be read. A sample that ends a worker, or
    does not end within ``timeout``, is named too.

    Args:
        source: as for a `Loader`; or the folder of ``.npy`` files, or its URL.
        ids: of all samples. One that is there twice is looked at once.
        full: read all data of ``.npy`` files too. Of any source, NaN and infinite numbers are damage then.
        workers: processes that read, as for a `Loader`.
        timeout: seconds after which a read that has not ended is given up, as for a `Loader`.
        progress: called whenever there is progress.

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
    """A scan that can be asked what it has found so far. Its arguments are those of `scan`."""

    def __init__(
        self,
        source: Any,
        ids: Iterable[object],
        *,
        full: bool = False,
        workers: int | Literal["auto"] = "auto",
        timeout: float | None = 60.0,
    ) -> None:
        self._source = Npy(source) if isinstance(source, str) or hasattr(source, "__fspath__") else source
        self._ids = list(dict.fromkeys(kept(ids)))
        if not self._ids:
            raise InputError("expected ids, found none")
        self._full = full
        self._workers = workers
        self._timeout = timeout
        self._damaged: dict[Any, Damaged] = {}
        # What `NpyHeaders` say, and the ids of the files that say it.
        self._headers: dict[bytes, list[Any]] = {}
        self._samples = 0
        self._seconds = 0.0
        self._complete = False

    def run(self, progress: Callable[[Progress], object] = lambda _: None) -> None:
        """Look at all samples. May be called once."""
        begun = time.monotonic()
        source, ids = self._source, self._ids
        looks = isinstance(source, Npy) and source.given.pad_value is None  # rows of padded files may have any shape
        total = len(ids) * (1 + (looks and self._full))

        def told(passed: Iterator[Batch]) -> Iterator[Batch]:
            for batch in passed:
                yield batch
                self._samples += len(batch.ids)
                progress(Progress(self._samples, total, f"{len(self._damaged):,} damaged" if self._damaged else ""))

        try:
            if looks:
                for batch in told(read_all(NpyHeaders(source.files), ids, self._damaged, self._workers, self._timeout)):
                    text = batch.arrays[0].tobytes()
                    for row, id in enumerate(batch.ids):
                        if id not in self._damaged:
                            self._headers.setdefault(text[row * TEXT : (row + 1) * TEXT], []).append(id)
                source, ids = self.readable()
            if self._full or not looks:
                for batch in told(read_all(source, ids, self._damaged, self._workers, self._timeout)):
                    if self._full:
                        self._refuse_not_finite(batch)
            self._complete = True
        finally:
            self._samples = min(self._samples, len(self._ids))
            self._seconds = time.monotonic() - begun

    def readable(self) -> tuple[Any, list[Any]]:
        """The source, with the dtype of most files, and the ids of the files that it can read, as far as headers tell."""
        report, source = self.report(), copy(self._source)
        if report.expected is not None:
            source.given = source.given._replace(dtype=report.expected.dtype)
        return source, report.good

    def report(self) -> ScanReport:
        """What has been found so far."""
        damaged = dict(self._damaged)
        kinds, expected, remarks = [], None, []
        if self._headers:
            given = self._source.given
            headers = [(shape_and_dtype(text), ids) for text, ids in self._headers.items()]
            kinds = [Kind(shape, dtype, len(ids), _bytes(shape, dtype, len(ids))) for (shape, dtype), ids in headers]
            expected, reasons = judge(kinds, given)
            for place, (_, ids) in enumerate(headers):
                if (reason := reasons[place]) is not None:
                    kinds[place] = kinds[place]._replace(reason=reason)
                    damaged |= {id: Damaged(id, self._source.path(id), reason) for id in ids}
            remarks = _remarks(kinds, expected, given)
        return ScanReport(
            samples=self._samples,
            seconds=self._seconds,
            damaged=tuple(damaged[id] for id in self._ids if id in damaged),
            good=[id for id in self._ids if id not in damaged],
            kinds=tuple(sorted(kinds, key=lambda kind: -kind.files)),
            expected=expected,
            remarks=tuple(remarks),
            complete=self._complete,
        )

    def _refuse_not_finite(self, batch: Batch) -> None:
        for array in batch.arrays:
            if array.dtype.kind not in "fc" or np.isfinite(array).all():
                continue
            for id, row in zip(batch.ids, array, strict=True):
                if id not in self._damaged and (reason := _not_finite(row)):
                    self._damaged[id] = Damaged(id, self._place(id), reason)

    def _place(self, id: Any) -> str:
        spec = BatchSpec(self._source, None, None, [id], is_sample=True)
        spec.bind()
        return ", ".join(dict.fromkeys(reader.place(id) for reader in spec.readers.values()))


class Batch(NamedTuple):
    """Some samples as they were read.

    Attributes:
        ids: of the samples.
        arrays: of all fields; the rows of damaged samples may hold anything. None where no sample could be read.
    """

    ids: list[Any]
    arrays: list[np.ndarray]


def read_all(
    source: Any, ids: Sequence[Any], damaged: dict[Any, Damaged], workers: int | Literal["auto"], timeout: float | None
) -> Iterator[Batch]:
    """Read all samples, in their order, and go on where one can't be read: each is in one of the batches.

    Args:
        source: as for a `Loader`.
        ids: of the samples; each is there once.
        damaged: by id: samples that can't be read are added to it before the batch that they are in is returned.
        workers: as for a `Loader`.
        timeout: as for a `Loader`.
    """
    start = row_bytes = 0
    while start < len(ids) and not row_bytes:
        try:
            spec = BatchSpec(source, None, None, [ids[start]], is_sample=True)
            row_bytes = sum(field.row_bytes for field in spec.bind())
        except SampleError as error:  # shape and dtype are those of the first that can be read
            damaged[error.id] = _found(error)
            start += 1
            yield Batch([error.id], [])
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
        workers=workers,
        timeout=timeout,
        on_error="collect",
        max_damaged=1.0,
    ) as loader:
        batches, seen = iter(loader), 0
        for first in range(0, len(ids), size):
            some = list(ids[first : first + size])
            try:
                batch = next(batches)
            except SampleError as error:  # what reads it can't be killed: the others are read again
                damaged[error.id] = _found(error)
                yield Batch([error.id], [])
                rest = [id for id in some if id != error.id]
                yield from read_all(source, rest, damaged, workers, timeout)
                continue
            finally:
                found = loader.damaged[seen:]
                seen += len(found)
                damaged |= {one.id: _found(one) for one in found}
            yield Batch(some, list(_leaves(batch)))


def _leaves(nest: Any) -> Iterator[np.ndarray]:
    """The arrays of a batch."""
    if isinstance(nest, np.ndarray):
        yield nest
    else:
        for member in nest.values() if isinstance(nest, Mapping) else nest:
            yield from _leaves(member)


def _found(error: SampleError | Damaged) -> Damaged:
    return Damaged(error.id, error.path, without_scan(error.reason))


def _bytes(shape: tuple[int, ...], dtype: np.dtype[np.generic], files: int) -> int:
    return math.prod(shape) * dtype.itemsize * files


def _not_finite(row: np.ndarray) -> str:
    """What is wrong with a row that holds NaN or infinite numbers; empty where it holds none."""
    finite = np.isfinite(row)
    if finite.all():
        return ""
    nan = int(np.count_nonzero(np.isnan(row)))
    infinite = int(finite.size - np.count_nonzero(finite)) - nan
    counts = " and ".join(f"{count:,} {what}" for count, what in ((nan, "NaN"), (infinite, "infinite")) if count)
    index = tuple(map(int, np.unravel_index(int(finite.argmin()), finite.shape)))
    return f"expected finite numbers, found {counts}, the first at index {index}"


def judge(kinds: Sequence[Kind], given: SampleSpec) -> tuple[RowSpec | None, list[str | None]]:
    """What a loader for most of the files expects; and for each kind why it would not take it, None if it would.

    The answer is that of `Npy` with ``given`` if its first file is of the most frequent kind that ``given`` allows.
    """
    rows = Counter[RowSpec]()
    for kind in sorted(kinds, key=lambda kind: (-kind.files, kind.shape, kind.dtype.str)):
        with suppress(FormatError):
            rows[_row(kind, given)] += kind.files
    shapes = Counter[tuple[tuple[int, ...], ...]]()
    for row, files in rows.items():
        shapes[row.shapes] += files
    expected = max((row for row in rows if row.shapes == shapes.most_common(1)[0][0]), key=rows.__getitem__, default=None)
    return expected, [_reason(kind, expected, given) for kind in kinds]


def _reason(kind: Kind, expected: RowSpec | None, given: SampleSpec) -> str | None:
    try:
        row = _row(kind, given) if expected is None or 0 in kind.shape else expected
        row.check(kind.shape, kind.dtype)
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


def _remarks(kinds: Sequence[Kind], expected: RowSpec | None, given: SampleSpec) -> list[str]:
    taken = {kind.dtype.newbyteorder("=") for kind in kinds if kind.reason is None}
    remarks = []
    if given.dtype is None and expected and len(taken) > 1:
        most = expected.numpy_dtype.name
        remarks.append(f"dtypes differ: a loader casts to the first file's; pass it dtype={most!r} to be sure of one")
    if not given.dim and any(kind.reason for kind in kinds):
        remarks.append("expected is what most files have, unless dim, n_channels and dtype say otherwise")
    return remarks
