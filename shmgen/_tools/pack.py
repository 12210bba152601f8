"""Packs many small files into one, which is read several times as fast::

    all.npy     the rows: an ordinary ``.npy`` file
    all.ids     their ids, in the order of the rows: a line each

While they are written their names end in ``.part``. ``all.npy`` gets its name last: where it exists, both files are whole.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal, NamedTuple

import numpy as np

from shmgen._plan.damaged_samples import Damaged
from shmgen._samples.ids import as_lines, read_ids
from shmgen._samples.sample_spec import RowSpec
from shmgen._sources.npy import Npy
from shmgen._tools.scan import Scan
from shmgen._urls import is_url
from shmgen.errors import InputError


class Packed(NamedTuple):
    """The result of a pack. No row is written, and the shape is None, if no sample can be read."""

    samples: int  # that were to be packed
    rows: int  # that were written
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
    """Write the samples ``ids``, in their order, as the rows of one ``.npy`` file, and the ids beside it."""
    begun = time.monotonic()
    check_target(source.folder, target)
    ids = list(dict.fromkeys(ids))
    as_lines(ids)  # refuses ids before hours of work
    beside = _ids_beside(target)
    # A pack that was killed between its two renames has left the same ids.
    if os.path.lexists(beside) and not os.path.lexists(f"{target}.part") and read_ids(beside, beside) != ids:
        raise InputError(f"{beside}: expected no file there, or these ids, found others; remove it, or give another name")
    looked = Scan(source, ids, full=False, workers=workers, timeout=60.0)
    looked.run(progress)
    report = looked.report()
    row, rows, remarks = report.expected, 0, report.remarks
    if row is not None and (skip_damaged or not report.damaged):
        total = len(report.good)
        rows = _write(target, row, looked, lambda done: progress(done, total, "packed"), skip_damaged=skip_damaged)
        if len({kind.dtype for kind in report.kinds if kind.reason is None}) > 1 and source.given.dtype is None:
            remarks = (f"files of other dtypes were cast to {row.numpy_dtype}: --dtype says to which",)
    return Packed(
        samples=report.samples,
        rows=rows,
        shape=row and row.shape,
        dtype=row and str(row.numpy_dtype),
        seconds=time.monotonic() - begun,
        damaged=looked.report().damaged,
        remarks=remarks,
    )


def check_target(folder: str, target: str) -> None:
    name, within = os.path.basename(target), os.path.dirname(os.path.abspath(target))
    if not name.endswith(".npy") or name == ".npy":
        raise InputError(f"{target}: expected the name of a file that ends in .npy; give one such as all.npy")
    if not os.path.isdir(within):
        raise InputError(f"{target}: expected a folder that is there, found none at {within}; make it first")
    real = os.path.realpath(folder)
    if not is_url(folder) and os.path.commonpath([os.path.realpath(within), real]) == real:
        found = "one in it, where each .npy file is a sample; give another"
        raise InputError(f"{target}: expected a place outside of {folder}, found {found}")
    if os.path.lexists(target):
        raise InputError(f"{target}: expected no file there, found one; remove it, or give another name")


def _ids_beside(target: str) -> str:
    return f"{target.removesuffix('.npy')}.ids"


def _write(target: str, row: RowSpec, looked: Scan, progress: Callable[[int], object], *, skip_damaged: bool) -> int:
    """Write rows and ids; returns the number of rows: 0 if nothing was packed, because of damage that was found only now."""
    damaged = looked.damaged
    known = len(damaged)
    written: list[str] = []
    parts = f"{_ids_beside(target)}.part", f"{target}.part"
    try:
        with open(parts[0], "wb") as lines, open(parts[1], "wb") as rows:
            rows.write(_header(row, 0))
            for batch in looked.read_good():
                if not batch.arrays:
                    continue
                [array] = batch.arrays
                good = [place for place, id in enumerate(batch.ids) if id not in damaged]
                if len(damaged) == known or skip_damaged:
                    rows.write((array if len(good) == len(array) else array[good]).reshape(-1).view(np.uint8).data)
                written += [batch.ids[place] for place in good]
                progress(len(written))
            if not written or (len(damaged) > known and not skip_damaged):
                return 0
            lines.write(as_lines(written))
            rows.seek(0)
            rows.write(_header(row, len(written)))
            for file in lines, rows:
                file.flush()
                os.fsync(file.fileno())
        for part in parts:
            os.rename(part, part.removesuffix(".part"))
        return len(written)
    finally:
        for part in parts:
            with suppress(FileNotFoundError):
                os.unlink(part)


def _header(row: RowSpec, rows: int) -> bytes:
    """The header of an ``.npy`` file, as `numpy.save` writes it; its length does not depend on the number of rows."""
    file = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(row.numpy_dtype)
    np.lib.format.write_array_header_1_0(file, {"shape": (rows, *row.shape), "fortran_order": False, "descr": descr})
    return file.getvalue()
