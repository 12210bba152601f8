"""Packs many small files into one, which is read several times as fast::

    all.npy     the rows: an ordinary ``.npy`` file
    all.ids     their ids, in the order of the rows: a line each

While they are written their names end in ``.part``. ``all.npy`` gets its name last: where it exists, both files are whole.
"""

from __future__ import annotations

import io
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from shmgen._plan.damage import Damaged
from shmgen._samples.ids import read_ids
from shmgen._sources.npy import Npy
from shmgen._tools.scan import Scan, read_all
from shmgen._urls import is_url
from shmgen.errors import InputError


class Packed(NamedTuple):
    """The result of a pack: the number of samples that were to be packed, that of the rows that were written, a row's shape and
    dtype, the duration in seconds, the samples that can't be read, and remarks.

    No row is written, and the shape is None, if no sample can be read.
    """

    samples: int
    rows: int
    shape: tuple[int, ...] | None
    dtype: str | None
    seconds: float
    damaged: tuple[Damaged, ...]
    remarks: tuple[str, ...]


def pack(
    source: Npy,
    ids: Sequence[str],
    target: str,
    *,
    skip_damaged: bool = False,
    workers: int | Literal["auto"] = "auto",
    progress: Callable[[int, int, str], object] = lambda *_: None,
) -> Packed:
    """Write the samples ``ids``, in their order, as the rows of one ``.npy`` file, and the ids beside it.

    Headers are looked at first, as `scan` does. Where anything is damaged nothing is packed, unless it is to be left out.

    Raises:
        InputError: the target is there, its folder is not, the disk is full, or an id is no line of a text file.
    """
    begun = time.monotonic()
    check_target(source.folder, target)
    require_lines(ids)
    _check_ids(_ids_beside(target), ids, target)
    looked = Scan(source, ids, workers=workers)
    looked.run(progress)
    report = looked.report()
    damaged = {one.id: one for one in report.damaged}
    row, rows, remarks = report.expected, 0, report.remarks
    if row is not None and (skip_damaged or not damaged):
        readable, good = looked.readable()
        rows = _write(target, readable, good, damaged, skip_damaged, workers, progress)
        if len({kind.dtype for kind in report.kinds if kind.reason is None}) > 1 and source.given.dtype is None:
            remarks = (f"files of other dtypes were cast to {row.numpy_dtype}: --dtype says to which",)
    return Packed(
        samples=report.samples,
        rows=rows,
        shape=row and row.shape,
        dtype=row and str(row.numpy_dtype),
        seconds=time.monotonic() - begun,
        damaged=tuple(damaged[id] for id in dict.fromkeys(ids) if id in damaged),
        remarks=remarks,
    )


def check_target(folder: str, target: str) -> None:
    """Raise an InputError if no pack of the files of ``folder`` can be made at ``target``."""
    name, within = os.path.basename(target), os.path.dirname(os.path.abspath(target))
    if not name.endswith(".npy") or name == ".npy":
        raise InputError(f"{target}: expected the name of a file that ends in .npy; give one such as all.npy")
    if not os.path.isdir(within):
        raise InputError(f"{target}: expected a folder that is there, found none at {within}; make it first")
    real = os.path.realpath(folder)
    if not is_url(folder) and os.path.commonpath([os.path.realpath(within), real]) == real:
        raise InputError(
            f"{target}: expected a place outside of {folder}, where each .npy file is a sample, found one in it; give another"
        )
    if os.path.lexists(target):
        raise InputError(f"{target}: expected no file there, found one; remove it, or give another name")


def require_lines(ids: Sequence[str]) -> None:
    """Raise an InputError unless ids are lines of a text file, and are read from there as they are."""
    if twice := [id for id, times in Counter(ids).items() if times > 1]:
        raise InputError(f"id {twice[0]!r}: expected each id once, found it several times")
    for id in ids:
        if "\n" in id or id.endswith("\r") or id.startswith("\ufeff") or not id:
            raise InputError(
                f"id {id!r}: expected one that can be a line of a text file, found one that is empty, has a line break, or "
                "begins with a byte order mark; rename its file"
            )


def _check_ids(path: str, ids: Sequence[str], target: str) -> None:
    """Refuse a target beside which other ids are. A pack that was killed between its two renames has left the same ones."""
    if os.path.lexists(path) and not os.path.lexists(f"{target}.part") and read_ids(path, path) != list(ids):
        raise InputError(f"{path}: expected no file there, or these ids, found others; remove it, or give another name")


def _ids_beside(target: str) -> str:
    return f"{target.removesuffix('.npy')}.ids"


def _write(
    target: str,
    source: Npy,
    ids: Sequence[str],
    damaged: dict[Any, Damaged],
    skip_damaged: bool,
    workers: int | Literal["auto"],
    progress: Callable[[int, int, str], object],
) -> int:
    """Write rows and ids; returns the number of rows: 0 if nothing was packed, because of damage that was found only now."""
    known = len(damaged)
    written: list[str] = []
    header: Callable[[int], bytes] | None = None
    with _Part(_ids_beside(target)) as lines, _Part(target) as rows:
        for batch in read_all(source, ids, damaged, workers, 60.0):
            if not batch.arrays:
                continue
            [array] = batch.arrays
            if header is None:
                header = partial(_header, shape=array.shape[1:], dtype=array.dtype)
                rows.write(header(len(ids)))
                rows.require_room(len(ids) * array[0].nbytes)
            good = [row for row, id in enumerate(batch.ids) if id not in damaged]
            if len(damaged) == known or skip_damaged:
                rows.write((array if len(good) == len(array) else array[good]).reshape(-1).view(np.uint8))
            written += [batch.ids[row] for row in good]
            progress(len(written), len(ids), "packed")
        if header is None or not written or (len(damaged) > known and not skip_damaged):
            return 0
        lines.write("".join(f"{id}\n" for id in written).encode("utf-8", "surrogateescape"))
        rows.write(header(len(written)), at=0)
        lines.finish()
        rows.finish()
    return len(written)


def _header(rows: int, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> bytes:
    """The header of an ``.npy`` file, as `numpy.save` writes it; its length does not depend on the number of rows."""
    file = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(file, {"shape": (rows, *shape), "fortran_order": False, "descr": descr})
    return file.getvalue()


class _Part:
    """A file whose name ends in ``.part`` until it is finished; to be used within ``with``. Errors are an `InputError`."""

    def __init__(self, path: str) -> None:
        self._path, self._part = path, f"{path}.part"

    def __enter__(self) -> Self:
        with self._explained():
            # Another pack may still write to a file of that name, so it is not reused.
            with suppress(FileNotFoundError):
                os.unlink(self._part)
            self._file = open(self._part, "xb")  # closed by __exit__
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_ours():
            os.unlink(self._part)
        with suppress(OSError):  # bytes that are still in the buffer are of a file that is deleted
            self._file.close()

    def _is_ours(self) -> bool:
        """Whether the name still belongs to this file, and not to another pack's."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.stat(self._part), os.fstat(self._file.fileno()))
        return False

    def require_room(self, size: int) -> None:
        """Make sure that the disk has room for ``size`` bytes."""
        system = os.fstatvfs(self._file.fileno())
        free = system.f_bavail * system.f_frsize
        if free < size:
            raise InputError(
                f"{self._path}: expected {size:,} bytes of free disk, found {free:,}; make room for {size - free:,} more, or "
                "give a place on another disk"
            )

    def write(self, data: bytes | np.ndarray, at: int | None = None) -> None:
        """Write ``data`` at the end; or at byte ``at``."""
        with self._explained():
            if at is not None:
                self._file.seek(at)
            self._file.write(data)  # type: ignore[arg-type]

    def finish(self) -> None:
        """Give the file its name."""
        with self._explained():
            self._file.flush()
            os.fsync(self._file.fileno())
            if not self._is_ours():
                raise InputError(f"{self._path}: another pack is writing it; wait for that, or give another target")
            os.rename(self._part, self._path)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self._part}: expected to write, found: {error.strerror} (errno {error.errno}); make room on the disk, raise "
                "ulimit -f, or give a place that can be written to"
            ) from None
