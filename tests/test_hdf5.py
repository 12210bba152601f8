"""HDF5 files of all kinds: datasets of rows or of samples, groups, scalars; errors explain what can't be read."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmgen import Hdf5, InputError, Loader, SampleError
from shmgen._sources.base import UNKNOWN, Reader

h5py = pytest.importorskip("h5py", reason="h5py is not installed: it is in the extra hdf5")

IDS = [f"id-{number}" for number in range(12)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with the same samples in several groups; those of number n are full of n."""
    with h5py.File(tmp_path / "all.h5", "w") as file:
        for number, id in enumerate(IDS):
            file[f"flat/{id}"] = np.full((4, 3), number, "f4")
            file[f"nested/{id}/image"] = np.full((4, 3), number, ">f8")
            file[f"nested/{id}/label"] = number
            file[f"numbered/{number}"] = np.full((4, 3), number, "u1")
        file["words"] = ["a", "b"]
        file["nothing"] = h5py.Empty("f4")
        file["number"] = 3.0
        file["empty"] = np.zeros((0, 3))
        file["flat-bits"] = np.array([True, False])
    with h5py.File(tmp_path / "top.h5", "w") as file:
        for number, id in enumerate(IDS):
            file[id] = np.full((2,), number, "i2")
    return tmp_path / "all.h5"


@pytest.mark.parametrize(
    ("name", "ids", "dtype", "workers"),
    [("/flat/", IDS, "f4", 0), ("nested/{id}/image", IDS, "f8", 1), ("numbered", range(12), "u1", 0), (None, IDS, "i2", 0)],
)
def test_a_dataset_for_each_sample(file: Path, name: str | None, ids: Any, dtype: str, workers: int) -> None:
    """The datasets of samples are given by their group, by a name with {id}, or as all of a file; scalars serve as labels."""
    labels = Hdf5(file, "nested/{id}/label") if ids is IDS else ids
    source = Hdf5(file, name) if name else Hdf5(file.parent / "top.h5")
    with Loader(ids, labels, 4, source=source, workers=workers) as loader:
        for X, y in loader:
            assert X.shape[1:] == ((4, 3) if name else (2,))
            assert X.dtype == dtype
            assert (X.reshape(4, -1) == y[:, None]).all()


@pytest.mark.parametrize(
    ("name", "ids", "text"),
    [
        ("nested", IDS, "'nested/id-0', found a group with 'image', 'label'; add the name of one"),
        ("flat", ["id-99"], "'flat/id-99', found none; group 'flat' has 'id-0', 'id-1'"),
        ("nested/{id}/pixels", IDS, "'nested/id-0/pixels', found none; group 'nested/id-0' has 'image', 'label'"),
        ("no/rows", [0], "'no/rows', found none; group '/' has 'empty', 'flat'"),
        ("empty", [0], "expected rows, found shape (0, 3); write some"),
        ("number", [0], "expected rows, found a single number; where each sample has one, put '{id}' into the name"),
        ("nothing", [0], "expected a dataset 'nothing' of numbers, found one without any"),
        ("words", [0], "expected numbers, found dtype object in dataset 'words'; read it by a function as source"),
        ("flat-bits", [0, 2], "id 2: expected a row's number from 0 to 1"),
    ],
)  # fmt: skip
def test_unusable_datasets_are_explained(file: Path, name: str, ids: Any, text: str) -> None:
    """The error of a dataset that can't be read says what was found, what else is there, and what to write instead."""
    with pytest.raises((InputError, SampleError), match=re.escape(text)):
        Loader(ids, None, 1, source=Hdf5(file, name))


@pytest.mark.parametrize(
    ("sample", "text"),
    [
        (None, "expected a dataset 'flat/id-5', found none; group 'flat' has"),
        (
            np.zeros((5, 3), "f4"),
            "'flat/id-5': expected shape (4, 3) and dtype float32, as the first has, found (5, 3) and float32",
        ),
    ],
)
def test_a_sample_that_does_not_fit_is_named(file: Path, sample: np.ndarray | None, text: str) -> None:
    """A sample that is missing or does not fit raises an error with its id, or with ``on_error="replace"`` is replaced."""
    with h5py.File(file, "r+") as opened:
        del opened["flat/id-5"]
        if sample is not None:
            opened["flat/id-5"] = sample
    options: dict[str, Any] = {"source": Hdf5(file, "flat"), "shuffle": False, "workers": 0}
    with Loader(IDS, None, 4, **options) as loader, pytest.raises(SampleError, match=re.escape(text)) as caught:
        list(loader)
    assert caught.value.id == "id-5"
    with Loader(IDS, range(12), 4, on_error="replace", max_damaged=0.1, **options) as loader:
        for X, y in loader:
            assert (y[:, None, None] == X).all()
        assert [damaged.id for damaged in loader.damaged] == ["id-5"]


def test_files_that_are_missing_or_not_hdf5(tmp_path: Path) -> None:
    """The error of a file that is missing or not HDF5 has its path and h5py's own error."""
    with pytest.raises(InputError, match=re.escape(f"file {tmp_path}/none.h5: expected an HDF5 file that can be read, found")):
        Loader([0], None, 1, source=Hdf5(tmp_path / "none.h5", "rows"))
    (tmp_path / "no.h5").write_bytes(b"hello")
    with pytest.raises(InputError, match=r"file .*/no\.h5: expected an HDF5 file that can be read, found: .*signature"):
        Loader(["a"], None, 1, source=Hdf5(tmp_path / "no.h5"))


def test_without_h5py_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without h5py, the constructor's error says what to install."""
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r"pip install 'shmgen\[hdf5\]'"):
        Hdf5("all.h5")


ROWS = np.arange(60 * 4, dtype="i4").reshape(60, 4)

STORED: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "chunks": {"chunks": (7, 4)},
    "chunks-of-parts-of-rows": {"chunks": (7, 3)},
    "gzip": {"chunks": (7, 4), "compression": "gzip"},
    "lzf": {"chunks": (1, 4), "compression": "lzf"},
    "with-checksums": {"chunks": (7, 4), "fletcher32": True},
}


@pytest.mark.parametrize(("stored", "dtype"), list(zip(STORED, ["i4", ">i4", "f8", "?", ">f8", ">i2"], strict=True)))
def test_rows_in_any_storage_layout(tmp_path: Path, stored: str, dtype: str) -> None:
    """Rows are right in any order and storage layout, also in a file with a user block."""
    rows = (ROWS % 2 if dtype == "?" else ROWS).astype(dtype)
    with h5py.File(tmp_path / "all.h5", "w", userblock_size=512) as file:
        file.create_dataset("x", data=rows, **STORED[stored])
    for ids in (range(60), np.random.default_rng(0).permutation(60), [3, 3, 4, 59, 0, 3]):
        with Loader(ids, None, 6, source=Hdf5(tmp_path / "all.h5", "x"), shuffle=False, workers=0) as loader:
            found = np.concatenate([X for (X,) in loader])
        assert found.dtype == np.dtype(dtype).newbyteorder("=")
        np.testing.assert_array_equal(found, rows[list(ids)])


def test_workers_read_contiguous_rows_without_h5py(tmp_path: Path) -> None:
    """A worker reads contiguous rows without h5py, like those of an ``.npy`` file; for rows in chunks it needs h5py."""
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file["flat"] = ROWS
        file.create_dataset("packed", data=ROWS, compression="gzip")
    for name, is_flat in (("flat", True), ("packed", False)):
        reader = Hdf5(tmp_path / "all.h5", name).bind(range(60))
        assert (reader.takes_bytes, reader.concurrent) == (is_flat, is_flat)
        assert (b"hdf5_reader" in pickle.dumps(reader)) != is_flat


def test_a_chunk_is_decoded_once_for_a_ticket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk is decoded once a ticket, whatever the order of its rows; a gzip chunk only up to the last row needed."""
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file.create_dataset("x", data=ROWS, chunks=(10, 4), compression="gzip")
    sizes = []
    unpack = zlib.decompressobj

    class Counted:
        def decompress(self, data: bytes, size: int) -> bytes:
            sizes.append(size)
            return unpack().decompress(data, size)

    monkeypatch.setattr(zlib, "decompressobj", Counted)
    ids = [32, 5, 38, 7, 31, 50]
    with Loader(ids, None, 6, source=Hdf5(tmp_path / "all.h5", "x"), shuffle=False, workers=0) as loader:
        np.testing.assert_array_equal(loader.batch(0)[0], ROWS[ids])
    assert sizes == [16 * 8, 16 * 9, 16 * 1]


def virtual(file: Any, *, parts: int = 3) -> None:
    """Make a virtual dataset from the rows of other files."""
    layout = h5py.VirtualLayout((20 * parts, 4), "i4")
    for number in range(parts):
        name = f"{Path(file.filename).parent}/part{number}.h5"
        with h5py.File(name, "w") as part:
            part["rows"] = ROWS[20 * number : 20 * number + 20]
        layout[20 * number : 20 * number + 20] = h5py.VirtualSource(f"part{number}.h5", "rows", (20, 4))
    file.create_virtual_dataset("x", layout)


def virtual_slice(file: Any) -> None:
    """Make a virtual dataset from the last rows of another file."""
    with h5py.File(f"{Path(file.filename).parent}/part1.h5", "w") as part:
        part["rows"] = np.concatenate([ROWS, ROWS])
    layout = h5py.VirtualLayout((60, 4), "i4")
    layout[:] = h5py.VirtualSource("part1.h5", "rows", (120, 4))[60:]
    file.create_virtual_dataset("x", layout)


def external(file: Any) -> None:
    """Make a dataset whose raw data are in another file."""
    file.create_dataset("x", (60, 4), "i4", external=[(f"{Path(file.filename).parent}/raw.bin", 0, 960)])[:] = ROWS


def unlimited(file: Any) -> None:
    file.create_dataset("x", (60, 4), "i4", external=f"{Path(file.filename).parent}/raw.bin")[:] = ROWS


def replace(path: Path, rows: np.ndarray | None) -> None:
    """Replace a file by another one, with these rows or without any."""
    with h5py.File(path.with_suffix(".new"), "w") as file:
        if rows is not None:
            file["rows"] = rows
    path.with_suffix(".new").replace(path)


HARM: dict[str, tuple[Any, Any, str]] = {
    "part-missing": (virtual, lambda path: (path / "part1.h5").unlink(), "its part .*part1.h5 can't be read: .*No such file"),
    "part-without-x": (virtual, lambda path: replace(path / "part1.h5", None), "part1.h5 has no dataset 'rows'"),
    "part-short": (
        virtual,
        lambda path: replace(path / "part1.h5", ROWS[:3]),
        r"its part 'rows' of .*part1.h5 has only shape \(3, 4\)",
    ),
    "slice-short": (
        virtual_slice,
        lambda path: replace(path / "part1.h5", np.concatenate([ROWS, ROWS])[:90]),
        r"its part 'rows' of .*part1.h5 has only shape \(90, 4\)",
    ),
    "raw-data-missing": (external, lambda path: (path / "raw.bin").unlink(), "raw.bin, is missing or shorter than 960 bytes"),
    "raw-data-cut": (external, lambda path: os.truncate(path / "raw.bin", 100), "raw.bin, is missing or shorter than 960 bytes"),
    "unlimited-raw-data-cut": (unlimited, lambda path: os.truncate(path / "raw.bin", 100), "shorter than 960 bytes"),
    "no-chunk-written": (
        lambda file: file.create_dataset("x", (60, 4), "i4", chunks=(7, 4)),
        lambda path: None,
        "nothing was ever written to it",
    ),
    "dangling-soft-link": (
        lambda file: file.__setitem__("x", h5py.SoftLink("/gone")),
        lambda path: None,
        "a dangling link, to '/gone' in this file",
    ),
    "dangling-external-link": (
        lambda file: file.__setitem__("x", h5py.ExternalLink("gone.h5", "/rows")),
        lambda path: None,
        "a dangling link, to '/rows' in gone.h5",
    ),
}


@pytest.mark.parametrize("harm", HARM)
def test_missing_data_are_not_read_as_zeros(tmp_path: Path, harm: str) -> None:
    """Missing parts, which HDF5 reads as zeros, raise an error when the source is bound; complete data are read."""
    make, damage, text = HARM[harm]
    with h5py.File(tmp_path / "all.h5", "w") as file:
        made = make(file)
        del made
    source = Hdf5(tmp_path / "all.h5", "x")
    if make in (virtual, external):
        with Loader(range(60), None, 60, source=source, shuffle=False, workers=0) as loader:
            np.testing.assert_array_equal(loader.batch(0)[0], ROWS)
    damage(tmp_path)
    with pytest.raises(InputError, match=text):
        source.bind(range(60))
    with pytest.raises(SampleError, match=text):
        Hdf5(tmp_path / "all.h5", "{id}").bind(["x"])


def test_a_row_that_was_never_written_is_named(tmp_path: Path) -> None:
    """A row that was never written raises an error with its number; the other rows of its dataset are read."""
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file.create_dataset("x", (60, 4), "i4", chunks=(6, 2))[:30] = ROWS[:30]
    source = Hdf5(tmp_path / "all.h5", "x")
    with Loader(range(60), None, 5, source=source, shuffle=False, workers=1) as loader:
        np.testing.assert_array_equal(np.concatenate([loader.batch(number)[0] for number in range(6)]), ROWS[:30])
        with pytest.raises(SampleError, match=r"expected a row that was written, found .* pass allow_unwritten=True") as caught:
            loader.batch(6)
        assert caught.value.id == 30


@pytest.mark.parametrize(("fill", "options"), [(None, {"chunks": (6, 4), "compression": "gzip"}), (-1, {"chunks": (6, 2)})])
def test_unwritten_rows_may_be_allowed(tmp_path: Path, fill: int | None, options: dict[str, Any]) -> None:
    """Unwritten rows have the file's fill value, or 0 with ``allow_unwritten``, in chunks and in datasets of samples."""
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file.create_dataset("x", (60, 4), "i4", fillvalue=fill, **options)[12:30] = ROWS[12:30]
        file.create_dataset("empty", (60, 4), "i4", fillvalue=fill)
        for id in range(3):
            sample = file.create_dataset(f"samples/{id}", (12, 4), "i4", fillvalue=fill, **options)
            if id:
                sample[:6] = ROWS[:6]
    expected = np.full((60, 4), fill or 0, "i4")
    np.testing.assert_array_equal(rows_of(tmp_path / "data.h5", "empty", 60, allow_unwritten=fill is None), expected)
    expected[12:30] = ROWS[12:30]
    np.testing.assert_array_equal(rows_of(tmp_path / "data.h5", "x", 60, allow_unwritten=fill is None), expected)
    found = rows_of(tmp_path / "data.h5", "samples", 3, allow_unwritten=fill is None)
    assert (found[0] == (fill or 0)).all()
    np.testing.assert_array_equal(found[1:, :6], [ROWS[:6]] * 2)


def rows_of(path: Path, dataset: str, count: int, **options: Any) -> np.ndarray:
    """All samples of a dataset, in order."""
    with Loader(range(count), batch_size=count, source=Hdf5(path, dataset, **options), shuffle=False, workers=0) as loader:
        return np.array(loader.batch(0)[0])


@pytest.mark.parametrize(
    ("stored", "harm"),
    [("contiguous", "gone"), ("gzip", "damaged"), ("contiguous", "another"), ("gzip", "another"), ("gzip", "locked")],
)
def test_a_file_that_can_no_longer_be_opened_is_named(tmp_path: Path, stored: str, harm: str) -> None:
    """A file that can't be opened when the first rows are read raises a SampleError for these."""
    path = tmp_path / "all.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=ROWS, **STORED[stored])
    reader: Reader = Hdf5(path, "x").bind(range(60))
    rows = np.zeros((3, 4), "i4")
    with ExitStack() as stack:
        if harm == "gone":
            path.unlink()
        elif harm == "damaged":
            path.write_bytes(b"hello" * 1000)
        elif harm == "another":
            path.unlink()
            with h5py.File(path, "w") as file:
                file["x"] = ROWS[:, :2]
        else:
            code = f"import h5py, time; f = h5py.File({str(path)!r}, 'r+'); print(1, flush=True); time.sleep(60)"
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE))
            stack.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()
        with pytest.raises(SampleError, match=r"all\.h5: expected .*, found") as caught:
            reader.opened().fill([7, 3, 9], rows.data.cast("B") if reader.takes_bytes else rows, [UNKNOWN])
        assert caught.value.id == 7
        if harm == "locked":
            assert "pass swmr=True" in str(caught.value)


def test_a_file_that_is_written_in_swmr_mode(tmp_path: Path) -> None:
    """With ``swmr=True``, a file can be read while it is written; without it, the error advises that."""
    path = tmp_path / "all.h5"
    code = f"""
import h5py, numpy as np, sys
file = h5py.File({str(path)!r}, "w", libver="latest")
data = file.create_dataset("x", data=np.arange(240, dtype="i4").reshape(60, 4), chunks=(7, 4), maxshape=(None, 4))
file.swmr_mode = True
print("written", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        with pytest.raises(InputError, match=r"one that a process has open to write .* pass swmr=True"):
            Hdf5(path, "x").bind(range(60))
        with Loader(range(60), None, 6, source=Hdf5(path, "x", swmr=True), shuffle=False, workers=1) as loader:
            np.testing.assert_array_equal(np.concatenate([X for (X,) in loader]), ROWS)
        writer.communicate()


def test_rows_behind_a_link_to_another_file(tmp_path: Path) -> None:
    """Rows behind a link to another file, or to a group of one, are read from that file."""
    with h5py.File(tmp_path / "part.h5", "w") as part, h5py.File(tmp_path / "all.h5", "w") as file:
        part["before"] = ROWS + 1
        part["rows"] = ROWS
        file["own"] = np.zeros(10_000)
        file["x"] = h5py.ExternalLink("part.h5", "/rows")
        file["group"] = h5py.ExternalLink("part.h5", "/")
    for name in ("x", "group/rows"):
        np.testing.assert_array_equal(rows_of(tmp_path / "all.h5", name, 60), ROWS)


def test_the_checksum_of_a_gzip_chunk_is_compared(tmp_path: Path) -> None:
    """A gzip chunk whose checksum is wrong is damaged, if its last row is wanted; also a chunk that the rows do not fill."""
    with h5py.File(tmp_path / "all.h5", "w") as file:
        stored = file.create_dataset("x", data=ROWS, chunks=(8, 4), compression="gzip")
        infos = [stored.id.get_chunk_info(number) for number in (0, 7)]
    with (tmp_path / "all.h5").open("r+b") as file:
        for info in infos:
            file.seek(info.byte_offset + info.size - 4)
            file.write(bytes(4))
    reader: Reader = Hdf5(tmp_path / "all.h5", "x").bind(range(60))
    rows = np.zeros((2, 4), "i4")
    reader.opened().fill([8, 15], rows, [UNKNOWN])
    np.testing.assert_array_equal(rows, ROWS[[8, 15]])
    for row in (7, 59):
        with pytest.raises(SampleError, match="incorrect data check"):
            reader.opened().fill([12, row], rows, [UNKNOWN])
