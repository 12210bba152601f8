"""Which samples a command looks at: the files under a folder, or behind a URL, or the ids in a text file."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from shmgen._plan.damage import Damaged
from shmgen._samples.ids import read_ids
from shmgen._samples.npy_format import explain, read_header_of
from shmgen._samples.sample_spec import ANY, SampleSpec
from shmgen._samples.suggest import IMAGES
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
"""Pixels that images are made as high and wide as, to be scanned: a smaller row is read faster."""

KIND_OF = {".npy": "npy", ".npz": "npz", **dict.fromkeys(IMAGES.suffixes, "images")}
"""The kind of a sample's file, by the end of its name."""


@dataclass
class Listing:
    """The files under a folder, those in sub-folders too.

    Attributes:
        ids: by kind of file: paths from the folder; of ``.npy`` and ``.npz`` files without that ending. Sorted.
        unreadable: sub-folders that can't be listed.
        others: number of files of no such kind.
        other: the name of one of them.
    """

    ids: dict[str, list[str]] = field(default_factory=dict)
    unreadable: list[Damaged] = field(default_factory=list)
    others: int = 0
    other: str = ""


def files_under(folder: str) -> Listing:
    """List a folder. Names that begin with a dot are left out: macOS writes ``._x.npy`` beside ``x.npy``, for instance.

    Links to folders are followed, but not to a folder that the link is in.

    Raises:
        InputError: it can't be listed.
    """
    listing = Listing()
    left: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while left:
        prefix, above = left.pop()
        path = f"{folder}/{prefix}"
        try:
            status = os.stat(path)
            if (here := (status.st_dev, status.st_ino)) in above:
                continue
            with os.scandir(path) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith("."):
                        continue
                    end = name[name.rfind(".") :]
                    kind = KIND_OF.get(end) or (KIND_OF.get(end.lower()) if end.lower() in IMAGES.suffixes else None)
                    if kind is not None:
                        listing.ids.setdefault(kind, []).append(prefix + (name if kind == "images" else name.removesuffix(end)))
                    elif _is_folder(entry):
                        left.append((f"{prefix}{name}/", above | {here}))
                    else:
                        listing.others += 1
                        listing.other = listing.other or prefix + name
        except (OSError, ValueError) as error:
            if not prefix:
                raise _no_folder(folder, error) from None
            listing.unreadable.append(Damaged(prefix[:-1], path[:-1], _explained(error)))
    for ids in listing.ids.values():
        ids.sort()
    return listing


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # it is not known where a link leads: listing it says why
        return True


def npy_ids(folder: str, file: str | None = None) -> list[str]:
    """The ids of the ``.npy`` files of a folder, or behind a URL; those in ``file``, as `ids_in` takes it, if it is given.

    Raises:
        InputError: there are none, or they can't be listed.
    """
    if file is not None:
        return ids_in(file)
    listing = _listed(folder, "npy")
    for one in listing.unreadable:
        raise InputError(f"{one.path}: {one.reason}; mend it, or give the ids of the other files, with --ids FILE")
    return listing.ids["npy"]


def _listed(folder: str, kind: str | None) -> Listing:
    """The files of a folder, or behind a URL, some of which are of this kind, or of any kind."""
    if is_url(folder):
        remote = Remote(folder)
        remote.prepare()
        listing = Listing({"npy": sorted(name.removesuffix(".npy") for name in remote.names())})
    else:
        listing = files_under(folder)
    if not (listing.ids.get(kind) if kind else any(listing.ids.values())):
        found = f"none among {listing.others:,} others, such as {listing.other!r}" if listing.others else "none"
        found += "".join(f"; sub-folder {one.id!r}: {one.reason}" for one in listing.unreadable[:1])
        what = {"images": "images", None: ".npy, .npz or image files"}.get(kind, f".{kind} files")
        raise InputError(f"{shown(folder)}: expected {what}, found {found}; give the folder of the samples' files")
    return listing


class Samples(NamedTuple):
    """What is to be scanned.

    Attributes:
        source: of the samples.
        ids: of the samples.
        unreadable: sub-folders that can't be listed.
        remarks: what was left out.
    """

    source: Source
    ids: Sequence[Any]
    unreadable: list[Damaged]
    remarks: list[str]


def samples_in(
    data: str, *, ids: str | None = None, kind: str | None = None, dataset: str = "/", given: SampleSpec = ANY
) -> Samples:
    """The samples in a folder, an HDF5 file, or an ``.npy`` file of rows.

    Args:
        data: the folder or its URL, or the file.
        ids: the file of their ids; None for all that are there.
        kind: of a folder's files; by default that of most.
        dataset: of an HDF5 file, as `Hdf5` takes it.
        given: what the user says of ``.npy`` files.

    Raises:
        InputError: there are none, or they can't be listed.
    """
    chosen = None if ids is None else ids_in(ids)
    if os.path.isfile(data):
        if given != ANY:
            raise InputError(f"{data}: --dim, --n-channels and --dtype describe the files of a folder; leave them out")
        return Samples(*_in_file(data, dataset, chosen), [], [])
    listing = Listing()
    if chosen is None:
        listing = _listed(data, kind)
        kind = kind or max(listing.ids, key=lambda kind: len(listing.ids[kind]))
        chosen = listing.ids[kind]
    elif not is_url(data):
        try:
            os.stat(f"{data}/.")
        except (OSError, ValueError) as error:
            raise _no_folder(data, error) from None
        kind = kind or KIND_OF.get(os.path.splitext(chosen[0])[1].lower())
        kind = kind or ("npz" if os.path.exists(f"{data}/{chosen[0]}.npz") else "npy")
    if kind in (None, "npy"):
        source: Source = Npy(data, given.dim, given.n_channels, given.dtype)
    elif given != ANY:
        raise InputError(f"{data}: --dim, --n-channels and --dtype describe .npy files, found {kind}; leave them out")
    else:
        # Every image can be made one of this size.
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
    """The ids of what `Hdf5` takes for samples; one, which `Hdf5` refuses, where there are none."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            found = file.get(dataset.partition("{id}")[0].rstrip("/") or "/")
            if isinstance(found, h5py.Group):
                return list(found) or [""]
            return range(len(found) if isinstance(found, h5py.Dataset) and found.shape else 1)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected an HDF5 file that can be read, found: {error}") from None


def ids_in(name: str) -> list[str]:
    """The ids in a text file, a line each; ``-`` is standard input.

    Raises:
        InputError: it can't be read, or holds no ids.
    """
    if name != "-":
        return read_ids(name, f"--ids {name}")
    if sys.stdin is None:
        raise InputError("--ids -: expected ids on standard input, found it closed")
    return read_ids(sys.stdin.fileno(), "--ids -")


def _no_folder(folder: str, error: OSError | ValueError) -> InputError:
    return InputError(f"{folder}: {_explained(error)}; give the folder of the samples' files")


def _explained(error: OSError | ValueError) -> str:
    """Why a folder can't be listed."""
    return explain(error).replace(" file", " folder", 1)
