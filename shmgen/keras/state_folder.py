"""A folder of saved states: each is one file, which is complete or does not exist, whenever the process or the machine dies."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shmgen.errors import InputError

NAME = re.compile(r"(\.(?:\w+-)?)?state-\d{6,}\.npz")
"""The name of a state's file; with a dot, of one that is being written."""

STATE = "state.json"
"""The member of a file with everything but the arrays."""


class Saved(NamedTuple):
    """A state that was read: its file, and what `StateFolder.write` was given, the arrays by their names."""

    path: Path
    state: dict[str, Any]
    arrays: dict[str, np.ndarray]


class StateFolder:
    """Files ``state-000001.npz``, ``state-000002.npz``, ...: the one with the highest number is the state.

    A file is first written, and made durable, under a name that begins with a dot. Then it is renamed, in one step, and older
    files are deleted, but ``keep`` stay. So a process that is killed leaves the new state or the old one, and nothing in between.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self.path = path
        self._keep = keep

    def newest(self) -> Path | None:
        """The file of the newest state; None if there is none."""
        return max(self._files(hidden=False), key=_number, default=None)

    def write(self, state: Mapping[str, Any], arrays: Iterable[tuple[str, np.ndarray]]) -> None:
        """Save a state, anything that JSON can hold, and named arrays, each of which is released before the next one is taken."""
        self.path.mkdir(parents=True, exist_ok=True)
        newest = self.newest()
        path = self.path / f"state-{1 if newest is None else _number(newest) + 1:06}.npz"
        # Its name is its own: if two processes save their states here, neither writes into the other's file.
        unfinished = self.path / f".{os.urandom(8).hex()}-{path.name}"
        try:
            with unfinished.open("wb") as file:
                with zipfile.ZipFile(file, "w") as archive:
                    kinds = {name: _add(archive, name, array) for name, array in arrays}
                    archive.writestr(STATE, json.dumps({"state": state, "arrays": kinds}, indent=1))
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except BaseException:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)  # makes the new name durable
        finally:
            os.close(folder)
        # Old states, and unfinished files of processes that were killed.
        old = sorted(self._files(hidden=False), key=_number)[: -self._keep]
        for path in [*old, *self._files(hidden=True)]:
            with suppress(OSError):
                path.unlink()

    def _files(self, *, hidden: bool) -> list[Path]:
        paths = self.path.iterdir() if self.path.exists() else ()
        return [path for path in paths if (name := NAME.fullmatch(path.name)) and bool(name[1]) == hidden]


def read(path: Path) -> Saved:
    """The state in a file; an InputError if that is damaged."""
    with path.open("rb") as file:
        try:
            with np.load(file, allow_pickle=False) as archive:
                content = json.loads(archive[STATE])
                # An array of a dtype that NumPy's format does not know was saved as bytes.
                arrays = {name: archive[name].view(np.dtype(dtype)) for name, (dtype, _) in content["arrays"].items()}
        except Exception as error:
            # A flipped bit may also look like an encrypted member, an unknown compression, or an array of 10 ** 18 elements.
            raise InputError(
                f"{path}: expected a state that Resume saved, found a damaged file: {type(error).__name__}: {error}; delete it, "
                "to go on from the state before it, if that was kept, or else from the beginning"
            ) from error
    return Saved(path, content["state"], arrays)


def kind_of(array: np.ndarray) -> list[Any]:
    """An array's dtype, as a text, and its shape, as a list."""
    return [str(array.dtype), list(array.shape)]


def _add(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> list[Any]:
    """Write an array; returns its dtype and shape."""
    # NumPy's format does not know bfloat16 and the like: their bytes are saved.
    plain = array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "V" else array
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, plain, allow_pickle=False)
    return kind_of(array)


def _number(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])
