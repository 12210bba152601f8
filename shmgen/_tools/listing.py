"""Lists the samples of a command: the files below a folder, or behind a URL, or the ids in a text file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

from shmgen._samples.files import IMAGES, files_below, some_of
from shmgen._samples.ids import read_ids
from shmgen._samples.npy_format import explain
from shmgen._samples.sample_spec import ANY, SampleSpec
from shmgen._sources.hdf5 import Hdf5
from shmgen._sources.images import Images
from shmgen._sources.npy import Npy
from shmgen._sources.npy_rows import NpyRows
from shmgen._sources.npz import Npz
from shmgen._storage.remote import Remote
from shmgen._urls import is_url, shown
from shmgen.errors import InputError

if TYPE_CHECKING:
    from shmgen._sources.base import Source

SIZE = 32
"""Height and width, in pixels, of the rows that images are scanned in: a small row is read faster."""


def list_folder(folder: str) -> dict[str, list[str]]:
    """The ids of the files below a folder, by kind: sorted paths, without the endings ``.npy`` and ``.npz``."""
    try:
        names = files_below(folder)
    except OSError as error:
        reason = explain(error).replace(" file", " folder", 1)
        raise InputError(f"{error.filename}: {reason}; give another, or ids, with --ids FILE") from None
    found: dict[str, list[str]] = {}
    for name in names:
        stem, end = os.path.splitext(name)
        if end in (".npy", ".npz"):
            found.setdefault(end[1:], []).append(stem)
        elif IMAGES.has(name):
            found.setdefault("images", []).append(name)
    return {kind: sorted(ids) for kind, ids in found.items()}


def npy_ids(folder: str, file: str | None = None) -> list[str]:
    """The ids of the ``.npy`` files of a folder, or behind a URL; or those in the text file ``file``, an id a line."""
    if file is not None:
        return read_ids(file, f"--ids {file}")
    return _listed(folder, "npy")["npy"]


def _listed(folder: str, kind: str | None) -> dict[str, list[str]]:
    """The ids of the files of a folder, or behind a URL, by kind; an error if none are of ``kind``, or of any."""
    if is_url(folder):
        remote = Remote(folder)
        remote.prepare()
        found = {"npy": sorted(name.removesuffix(".npy") for name in remote.store.names())}
    else:
        found = list_folder(folder)
    if not (found.get(kind) if kind else any(found.values())):
        what = {"images": "images", None: ".npy, .npz or image files"}.get(kind, f".{kind} files")
        raise InputError(f"{shown(folder)}: expected {what}, found none; give the folder of the samples' files")
    return found


def samples_in(
    data: str, *, ids: str | None = None, kind: str | None = None, dataset: str | None = None, given: SampleSpec = ANY
) -> tuple[Source, Sequence[Any], list[str]]:
    """The source and ids of a folder, its URL, an HDF5 file, or an ``.npy`` file of rows; and remarks on what is left out."""
    chosen = None if ids is None else read_ids(ids, f"--ids {ids}")
    if os.path.isfile(data):
        if given != ANY:
            raise InputError(f"{data}: --dim, --n-channels and --dtype describe the files of a folder; leave them out")
        return *_in_file(data, dataset, chosen), []
    listed: dict[str, list[str]] = {}
    if chosen is None:
        listed = _listed(data, kind)
    elif kind is None and not is_url(data):
        with suppress(InputError):  # ids may be given because the folder can't be listed
            listed = list_folder(data)
    wanted = set(chosen or ())
    kind = kind or max(listed, key=lambda kind: (len(wanted.intersection(listed[kind])), len(listed[kind])), default="npy")
    if kind == "npy":
        source: Source = Npy(data, given.dim, given.n_channels, given.dtype)
    elif given != ANY:
        raise InputError(f"{data}: --dim, --n-channels and --dtype describe .npy files, found {kind}; leave them out")
    else:
        # Any image can be resized to these rows.
        source = Npz(data) if kind == "npz" else Images(data, size=SIZE)
    remarks = [
        f"left out: {len(names):,} {other}, such as {names[0]!r}; --kind {other} for these"
        for other, names in listed.items()
        if other != kind and chosen is None
    ]
    return source, chosen or listed[kind], remarks


def _in_file(path: str, dataset: str | None, chosen: list[str] | None) -> tuple[Source, Sequence[Any]]:
    if path.endswith(".npy"):
        source: Any = NpyRows(path)
        names: Sequence[Any] = range(len(source))
    else:
        source, names = Hdf5(path, dataset or "/"), _hdf5_ids(path, dataset)
    if chosen is None or not isinstance(names, range):
        return source, chosen or names
    return source, [int(id) if id.isdecimal() else id for id in chosen]


def _hdf5_ids(path: str, dataset: str | None) -> Sequence[Any]:
    """The ids of the samples of `Hdf5`; if there are none, an id that it refuses with an explanation."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if dataset is None:
                _refuse_columns(file)
            found = file.get((dataset or "/").partition("{id}")[0].rstrip("/") or "/")
            if isinstance(found, h5py.Group):
                return list(found) or [""]
            return range(len(found) if isinstance(found, h5py.Dataset) and found.shape else 1)
    except OSError as error:
        raise InputError(f"{path}: expected an HDF5 file that can be read, found: {error}") from None


def _refuse_columns(file: Any) -> None:
    """An InputError if the datasets are no samples: there is one, or most differ, but are equally long, as images and labels."""
    datasets = [item for item in islice(file.values(), 100) if hasattr(item, "shape")]  # enough to tell
    kinds = {(item.shape, item.dtype) for item in datasets}
    lengths = {(shape or ())[:1] for shape, _ in kinds}
    if len(datasets) < 2 or (2 * len(kinds) > len(datasets) and len(lengths) == 1):
        remedy = "give --dataset NAME for the one whose rows are the samples, or --dataset / if each is a sample"
        raise InputError(f"{file.filename}: expected a dataset for each sample, found {some_of(list(file))}; {remedy}")
