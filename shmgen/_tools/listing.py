"""Lists the samples of a command: the files below a folder, or behind a URL, or the ids in a text file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from shmgen._plan.damage import Damaged
from shmgen._samples.files import IMAGES, files_below
from shmgen._samples.ids import read_ids
from shmgen._samples.npy_format import explain, read_header_of
from shmgen._samples.sample_spec import ANY, SampleSpec
from shmgen._sources.hdf5 import Hdf5
from shmgen._sources.images import Images
from shmgen._sources.npy import Npy
from shmgen._sources.npy_rows import NpyRows
from shmgen._sources.npz import Npz
from shmgen._storage.remote import Remote
from shmgen._urls import is_url, shown
from shmgen.errors import FormatError, InputError

if TYPE_CHECKING:
    from shmgen._sources.base import Source

SIZE = 32
"""Height and width, in pixels, of the rows that images are scanned in: a small row is read faster."""


class Listing(NamedTuple):
    """The files below a folder: ids by kind of file, sub-folders that can't be listed, and names of other files.

    Ids are sorted paths from the folder; those of ``.npy`` and ``.npz`` files are without that ending.
    """

    ids: dict[str, list[str]]
    unreadable: list[Damaged]
    others: list[str]


def list_folder(folder: str) -> Listing:
    """List a folder, as `files_below` does."""
    listing = Listing({}, [], [])

    def fail(error: OSError) -> None:
        listing.unreadable.append(Damaged(os.path.relpath(error.filename, folder), error.filename, _explained(error)))

    for name in files_below(folder, fail):
        stem, end = os.path.splitext(name)
        if end in (".npy", ".npz"):
            listing.ids.setdefault(end[1:], []).append(stem)
        elif IMAGES.has(name):
            listing.ids.setdefault("images", []).append(name)
        else:
            listing.others.append(name)
    for ids in listing.ids.values():
        ids.sort()  # without their endings, ids are in another order than names
    return listing


def npy_ids(folder: str, file: str | None = None) -> list[str]:
    """The ids of the ``.npy`` files of a folder, or behind a URL; or those in the text file ``file``, an id a line.

    Raises:
        InputError: there are none, or they can't be listed.
    """
    if file is not None:
        return read_ids(file, f"--ids {file}")
    listing = _listed(folder, "npy")
    for one in listing.unreadable:
        raise InputError(f"{one.path}: {one.reason}; mend it, or give the ids of the other files, with --ids FILE")
    return listing.ids["npy"]


def _listed(folder: str, kind: str | None) -> Listing:
    """The files of a folder, or behind a URL, some of which are of this kind, or of any kind."""
    if is_url(folder):
        remote = Remote(folder)
        remote.prepare()
        listing = Listing({"npy": sorted(name.removesuffix(".npy") for name in remote.store.names())}, [], [])
    else:
        _require_folder(folder)
        listing = list_folder(folder)
    if not (listing.ids.get(kind) if kind else any(listing.ids.values())):
        found = f"none among {len(listing.others):,} others, such as {listing.others[0]!r}" if listing.others else "none"
        found += "".join(f"; sub-folder {one.id!r}: {one.reason}" for one in listing.unreadable[:1])
        what = {"images": "images", None: ".npy, .npz or image files"}.get(kind, f".{kind} files")
        raise InputError(f"{shown(folder)}: expected {what}, found {found}; give the folder of the samples' files")
    return listing


class Samples(NamedTuple):
    """The samples to scan, sub-folders that can't be listed, and remarks on files that were left out."""

    source: Source
    ids: Sequence[Any]
    unreadable: list[Damaged]
    remarks: list[str]


def samples_in(
    data: str, *, ids: str | None = None, kind: str | None = None, dataset: str = "/", given: SampleSpec = ANY
) -> Samples:
    """The samples in a folder, behind its URL, in an HDF5 file, or in an ``.npy`` file of rows; see ``scan --help``.

    Raises:
        InputError: there are none, or they can't be listed.
    """
    chosen = None if ids is None else read_ids(ids, f"--ids {ids}")
    if os.path.isfile(data):
        if given != ANY:
            raise InputError(f"{data}: --dim, --n-channels and --dtype describe the files of a folder; leave them out")
        return Samples(*_in_file(data, dataset, chosen), [], [])
    listing = Listing({}, [], [])
    if chosen is None:
        listing = _listed(data, kind)
        kind = kind or max(listing.ids, key=lambda kind: len(listing.ids[kind]))
        chosen = listing.ids[kind]
    elif not is_url(data):
        _require_folder(data)
        is_npz = os.path.exists(f"{data}/{chosen[0]}.npz")
        kind = kind or ("images" if IMAGES.has(chosen[0]) else "npz" if is_npz else "npy")
    if kind in (None, "npy"):
        source: Source = Npy(data, given.dim, given.n_channels, given.dtype)
    elif given != ANY:
        raise InputError(f"{data}: --dim, --n-channels and --dtype describe .npy files, found {kind}; leave them out")
    else:
        # Any image can be resized to these rows.
        source = Npz(data) if kind == "npz" else Images(data, size=SIZE)
    others = {other: names for other, names in listing.ids.items() if other != kind and names}
    remarks = [
        f"left out: {len(names):,} {other}, such as {names[0]!r}; --kind {other} for these" for other, names in others.items()
    ]
    return Samples(source, chosen, listing.unreadable, remarks)


def _in_file(path: str, dataset: str, chosen: list[str] | None) -> tuple[Source, Sequence[Any]]:
    """The source of what is in a file, and the ids."""
    names: Sequence[Any]
    if path.endswith(".npy"):
        source: Source = NpyRows(path)
        try:
            header, _ = read_header_of(path)
        except (OSError, FormatError) as error:
            raise InputError(f"{path}: {explain(error, path)}") from None
        names = range(header.shape[0] if header.shape else 0)
    else:
        source = Hdf5(path, dataset)
        names = _hdf5_ids(path, dataset)
    if chosen is None:
        return source, names
    if not isinstance(names, range):
        return source, chosen
    if wrong := next((id for id in chosen if not id.isdecimal()), None):
        raise InputError(f"id {wrong!r}: expected the number of a row of {path}, from 0 to {len(names) - 1}")
    return source, list(map(int, chosen))


def _hdf5_ids(path: str, dataset: str) -> Sequence[Any]:
    """The ids of the samples of `Hdf5`; if there are none, an id that it refuses with an explanation."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            found = file.get(dataset.partition("{id}")[0].rstrip("/") or "/")
            if isinstance(found, h5py.Group):
                return list(found) or [""]
            return range(len(found) if isinstance(found, h5py.Dataset) and found.shape else 1)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected an HDF5 file that can be read, found: {error}") from None


def _require_folder(folder: str) -> None:
    try:
        os.stat(f"{folder}/.")
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: {_explained(error)}; give the folder of the samples' files") from None


def _explained(error: OSError | ValueError) -> str:
    """Why a folder can't be listed."""
    return explain(error).replace(" file", " folder", 1)
