"""``shmgen.scan`` and ``python -m shmgen scan`` find exactly the samples that a loader could not read."""

from __future__ import annotations

import errno
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_files import BAD, GOOD, SOUND, STALLING, npy, put
from conftest import ROOT, Ran, interrupted_by_ctrl_c, python

from shmgen import Hdf5, Images, InputError, Loader, Npy, NpyRows, Npz, ScanReport, scan
from shmgen._samples.sample_spec import SampleSpec
from shmgen._tools.listing import list_folder
from shmgen._tools.scan import Kind, judge

SCAN = ["-W", "error", "-m", "shmgen", "scan"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of five good files, ``good-0`` to ``good-4``."""
    for number in range(5):
        put(tmp_path / "data" / f"good-{number}.npy", npy(GOOD))
    return tmp_path / "data"


def reasons(report: ScanReport) -> dict[Any, str]:
    """The reasons of a report, by id."""
    return {one.id: one.reason for one in report.damaged}


@pytest.mark.parametrize(("full", "workers"), [(False, 0), (True, 2)])
def test_exactly_the_damaged_files_are_named(tmp_path: Path, full: bool, workers: int) -> None:
    """All damaged files, and no others, are reported with path, what was expected and what was found."""
    cases: list[Any] = [*BAD, *STALLING, *SOUND]
    case: Any
    for case in cases:
        put(tmp_path / case.id / "bad.npy", case.values[0])
        put(tmp_path / case.id / "good.npy", npy(GOOD))
    ids = [f"{case.id}/{name}" for case in cases for name in ("bad", "good")]

    report = scan(tmp_path, ids, full=full, workers=workers)

    assert (report.samples, report.complete) == (len(ids), True)
    assert [one.id for one in report.damaged] == [f"{case.id}/bad" for case in (*BAD, *STALLING)]
    assert sorted([*report.good, *(one.id for one in report.damaged)]) == sorted(ids)
    assert report.good == [id for id in ids if id in set(report.good)]
    for case, (_, path, reason) in zip((*BAD, *STALLING), report.damaged, strict=True):
        assert path == str(tmp_path / str(case.id) / "bad.npy")
        expected, found = reason.split("found", 1)
        assert reason.startswith("expected ")
        assert case.values[1] in expected or "numbers" in expected, (case.id, reason)
        assert case.values[2] in found, (case.id, reason)


def spoilt(kind: str, folder: Path) -> tuple[Any, list[Any], dict[Any, str]]:
    """A source, its ids, and the expected reasons of the damaged ones, which mostly include the first."""
    if kind == "function":

        def failing(id: int) -> np.ndarray:
            if id == 5:
                raise KeyError("none such")
            return np.zeros(4 if id == 7 else 3)

        return failing, list(range(12)), {5: "KeyError: 'none such'", 7: "expected shape (3,), found (4,)"}
    ids = [f"{number}.png" if kind == "images" else str(number) for number in range(8)]
    if kind == "npz":
        for id in ids:
            np.savez(folder / id, x=np.zeros(3), y=np.zeros(2 if id == "3" else 1))
        (folder / "0.npz").write_bytes(b"")
        os.truncate(folder / "5.npz", 300)
        return Npz(folder), ids, {"0": "expected", "3": "expected shape (1,) or (), found (2,)", "5": "expected"}
    if kind == "images":
        image = pytest.importorskip("PIL.Image")
        for number, id in enumerate(ids):
            image.new("RGB", (40 + number, 30)).save(folder / id)
        (folder / ids[0]).write_bytes(b"no image")
        os.truncate(folder / ids[4], 60)
        return Images(folder, size=8), [*ids, "none.png"], {ids[0]: "expected", ids[4]: "expected", "none.png": "found none"}
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "all.h5", "w") as file:
        for id in ids[1:]:
            file[id] = np.zeros(4 if id == "6" else 3)
    return Hdf5(folder / "all.h5", "{id}"), ids, {"0": "found none", "6": "expected shape (3,)"}


@pytest.mark.parametrize(("kind", "workers"), [("function", 2), ("npz", 0), ("images", 0), ("hdf5", 0)])
def test_any_source(tmp_path: Path, kind: str, workers: int) -> None:
    """A scan of any source finds all errors in one pass, including the first sample's; a loader reads the good ids."""
    source, ids, wrong = spoilt(kind, tmp_path)

    report = scan(source, [*ids, ids[-1]], workers=workers)

    found = reasons(report)
    assert found.keys() == wrong.keys()
    for id, reason in wrong.items():
        assert reason in found[id]
    assert (report.samples, report.good) == (len(ids), [id for id in ids if id not in wrong])
    assert not any("shmgen scan" in reason for reason in found.values())
    with Loader(report.good, None, 1, source=source, workers=0) as loader:
        assert len(list(loader)) == len(report.good)


def test_samples_that_kill_or_block_a_worker(caplog: pytest.LogCaptureFixture) -> None:
    """A sample that kills its worker and one that hangs are reported, and all others are checked."""

    def deadly(id: int) -> np.ndarray:
        if id == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        if id == 17:
            time.sleep(3600)
        return np.zeros(3)

    report = scan(deadly, range(40), workers=2, timeout=1.0)

    found = reasons(report)
    assert found.keys() == {5, 17}
    assert "3 workers died at it" in found[5]
    assert "found none for 1 seconds (timeout)" in found[17]
    assert (report.samples, len(report.good)) == (40, 38)
    assert "was killed by SIGKILL" in caplog.text


def test_every_sample_may_be_damaged(tmp_path: Path) -> None:
    """A scan in which every sample is damaged is complete."""
    report = scan(Npz(tmp_path), [f"none-{number}" for number in range(100)], workers=0)

    assert (len(report.damaged), report.good, report.samples, report.complete) == (100, [], 100, True)


def test_a_full_scan_reports_nan_and_infinity(tmp_path: Path) -> None:
    """A full scan reports files with numbers that are not finite, and counts these; a scan of headers does not."""
    for name, good in {
        "nan": GOOD.astype("f2"),
        "both": np.asfortranarray(GOOD),
        "complex": GOOD,
        "big": GOOD.astype(">f8"),
        "fine": GOOD.astype("i2"),
    }.items():
        array = good.copy("K")
        if name != "fine":
            array[1, 2] = np.nan if name in ("nan", "both", "complex") else np.inf
        if name == "both":
            array[2, 0] = -np.inf
        put(tmp_path / f"{name}.npy", npy(array))
    ids = ["fine", "nan", "both", "complex", "big"]

    assert scan(tmp_path, ids, workers=0).damaged == ()
    found = reasons(scan(Npy(tmp_path, dtype="f4"), ids, full=True, workers=0))

    expected = {"nan": 1, "both": 2, "complex": 1, "big": 1}
    assert found == {id: f"expected finite numbers, found {n} that are NaN or infinite" for id, n in expected.items()}
    rows = reasons(scan(lambda id: {"x": np.zeros(2), "y": np.full(2, np.nan if id == 3 else 0)}, range(8), full=True, workers=0))
    assert rows.keys() == {3}


def test_a_full_scan_reports_numbers_out_of_range(tmp_path: Path) -> None:
    """A full scan reports numbers that the rows' dtype can't hold: 300 beside files of uint8, and 1e300 beside float32."""
    for number in range(8):
        np.save(tmp_path / f"{number}.npy", np.full(3, 300 if number == 5 else 1, "u2" if number == 5 else "u1"))
    for source in (Npy(tmp_path), lambda id: np.full(3, 1e300 if id == 5 else 1, "f8" if id == 5 else "f4")):
        found = reasons(scan(source, range(8), full=True, workers=0))
        assert found.keys() == {5}
        assert re.search("expected numbers that dtype (uint8|float32) holds, found (300|1e[+]300) and 2 more of 3", found[5])


@pytest.mark.parametrize("full", [False, True])
def test_lengths_of_padded_files(tmp_path: Path, full: bool) -> None:
    """A scan of sequences reports those that are too long, and the lengths of the others, which a loader accepts."""
    lengths = {str(number): 3 + number for number in range(9)}
    for id, length in lengths.items():
        np.save(tmp_path / id, np.zeros(length if id != "8" else (3, 2), "f8" if id == "1" else "f4"))
    source = Npy(tmp_path, dim=9, pad_value=0)

    report = scan(source, list(lengths), full=full, workers=0)

    assert report.lengths == {str(number): 3 + number for number in range(7)}
    assert reasons(report) == {
        "7": "expected shape (9,), or a smaller one of 1 axis, found (10,)",
        "8": "expected shape (9,), or a smaller one of 1 axis, found (3, 2)",
    }
    with Loader(report.good, None, 2, source=source, lengths=report.lengths, trim="longest", tail="keep", workers=0) as loader:
        assert sum(len(X) for (X,) in loader) == 7


def kind(shape: tuple[int, ...], files: int, dtype: str = "f4") -> Kind:
    return Kind(shape, np.dtype(dtype), files, files)


JUDGED: list[tuple[list[Kind], SampleSpec, Any, Any, set[Any]]] = [
    # kinds, the given arguments, the shapes and dtype expected, and the shapes of refused kinds
    ([kind((4,), 2), kind((5,), 3)], SampleSpec(), ((5,), (5,)), "f4", {(4,)}),
    ([kind((4,), 2), kind((5,), 3)], SampleSpec((4,)), ((4,), (4,)), "f4", {(5,)}),
    ([kind((4,), 2), kind((4, 1), 2)], SampleSpec(), ((4,), (4,)), "f4", {(4, 1)}),
    ([kind((4,), 2), kind((4, 1), 2)], SampleSpec(n_channels=1), ((4, 1), (4,)), "f4", set()),
    ([kind((4, 3), 2), kind((4,), 9)], SampleSpec(n_channels=3), ((4, 3),) * 2, "f4", {(4,)}),
    ([kind((0, 3), 9), kind((4, 3), 1)], SampleSpec(), ((4, 3),) * 2, "f4", {(0, 3)}),
    ([kind((4,), 9, "U3"), kind((5,), 1)], SampleSpec(), ((5,), (5,)), "f4", {(4,)}),
    ([kind((4,), 2, "f8"), kind((4,), 3)], SampleSpec(), ((4,), (4,)), "f4", set()),
    ([kind((4,), 2, ">f4"), kind((4,), 1), kind((4,), 2, "f8")], SampleSpec(), ((4,),) * 2, "f4", set()),
    ([kind((4,), 3), kind((4,), 1, "f8")], SampleSpec(dtype="f8"), ((4,), (4,)), "f8", set()),
]


def test_the_kind_of_most_files_is_expected() -> None:
    """Without arguments the kind of most files is expected, and each refused kind has a reason."""
    for kinds, given, shapes, dtype, refused in JUDGED:
        expected, judged = judge(kinds, given)

        assert (expected and (expected.shapes, expected.numpy_dtype)) == (shapes and (shapes, np.dtype(dtype)))
        assert {kind.shape for kind in judged if kind.reason} == refused


def test_sub_folders_and_links_to_folders(data: Path, tmp_path: Path) -> None:
    """Ids are paths relative to the folder; links are followed once; hidden files are left out."""
    for name in ("cats/black/1.npy", "._good-1.npy", ".cache/2.npy", "9.npz", "photo.PNG", "photo.NPY"):
        put(data / name, npy(GOOD))
    put(tmp_path / "elsewhere" / "2.npy", npy(GOOD))
    put(tmp_path / "elsewhere" / "notes.txt", b"")
    (data / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "cats" / "up").symlink_to("..")
    (data / "cats" / "linked").symlink_to("../linked")
    (tmp_path / "elsewhere" / "back").symlink_to(data / "cats")

    cats = ["cats/black/1", "cats/linked/2"]
    npys = [*cats, *(f"good-{number}" for number in range(5)), "linked/2", "linked/back/black/1"]
    assert list_folder(str(data)) == {"npy": npys, "npz": ["9"], "images": ["photo.PNG"]}


def test_an_unlistable_folder_is_named(data: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    """A sub-folder that can't be listed (simulated, since root can list all) is an error that names it."""
    scandir = os.scandir
    (data / "sub").mkdir()

    def refuse(path: str) -> Any:
        if Path(path) == data / "sub":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for words in (["scan", data], ["pack", data, data.parent / "all.npy"]):
        done = cli(*words, "--workers", 0)
        assert done.status == 2
        assert "sub: expected a readable folder, found: Permission denied (errno 13)" in done.err


NAMES = ["ä/ö-日本", "[red]x[/]:smile:", "line\nbreak", "\x1b[2Jescape", "n" * 250, os.fsdecode(b"\xff\xfe")]


def test_any_name_a_file_can_have(data: Path, cli: Callable[..., Ran]) -> None:
    """Unusual file names are reported correctly in JSON, and do not break the table."""
    for name in NAMES:
        put(data / f"{name}.npy", npy(GOOD)[:-1])

        (damaged,) = cli("scan", data, "--json", "--workers", 0).json["damaged"]
        assert (damaged["id"], damaged["path"]) == (name, f"{data}/{name}.npy")
        done = cli("scan", data, "--workers", 0)
        assert (done.status, done.err) == (1, "")
        assert "175" in done.out
        assert "\x1b" not in done.out
        assert (name if name.isprintable() else repr(name)).strip() in done.out.replace("\n", "") or len(name) > 100
        (data / f"{name}.npy").unlink()


def test_only_given_ids_are_checked(data: Path, tmp_path: Path, cli: Callable[..., Ran]) -> None:
    """With ``--ids`` only these samples are checked, and missing ones are damaged."""
    put(data / "sub" / "ö.npy", npy(GOOD))
    put(data / "bad.npy", b"")
    (tmp_path / "ids.txt").write_text("\ufeffgood-1\r\n\ngood-2\ngood-2\nsub/ö\n./good-3\nnone\ngood-4.npy")

    done = cli("scan", data, "--ids", "ids.txt", "--json", "--workers", 0)

    assert (done.json["samples"], done.json["kinds"][0]["files"], done.status) == (6, 4, 1)
    assert (done.json["remarks"], [one["id"] for one in done.json["damaged"]]) == ([], ["none", "good-4.npy"])
    assert done.json["damaged"][0]["reason"].startswith("expected a file, found none at this path")


@pytest.mark.parametrize("kind", ["npz", "images"])
def test_the_kind_of_given_ids_is_that_of_most_of_their_files(tmp_path: Path, cli: Callable[..., Ran], kind: str) -> None:
    """The kind is found in the folder, whether the first id is there, and whether ids have a suffix; ids that match decide."""
    data = tmp_path / "data"
    data.mkdir()
    spoilt(kind, data)
    put(data / "one.npy", npy(GOOD))
    (tmp_path / "ids").write_text("99\n1\n2\n6\n")
    done = cli("scan", data, "--ids", "ids", "--json", "--workers", 0)
    assert ([one["id"] for one in done.json["damaged"]], done.json["remarks"]) == (["99"], [])
    (tmp_path / "ids").write_text("one\n")
    assert cli("scan", data, "--ids", "ids", "--json", "--workers", 0).status == 0


@pytest.mark.parametrize(
    "shapes", [{"x": (5, 2)}, {"x": (5, 2), "y": (5,)}, {"group/x": (5, 2)}, {}], ids=["one", "columns", "group", "none"]
)
def test_datasets_that_are_no_samples_need_a_name(tmp_path: Path, cli: Callable[..., Ran], shapes: dict[str, Any]) -> None:
    """If each row of a dataset is a sample, an HDF5 file is scanned by the dataset's name, for which the error asks."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "all.h5", "w") as file:
        for name, shape in shapes.items():
            file[name] = np.zeros(shape)
    done = cli("scan", "all.h5", "--json", "--workers", 0)
    assert done.status == 2
    assert "expected a dataset for each sample, found" in done.err
    assert "give --dataset NAME" in done.err
    for name in shapes:
        assert cli("scan", "all.h5", "--dataset", name, "--json", "--workers", 0).json["samples"] == 5
    if "x" in shapes:
        assert cli("scan", "all.h5", "--dataset", "/", "--json", "--workers", 0).json["samples"] == len(shapes)


def test_one_dataset_of_another_shape_is_a_damaged_sample(tmp_path: Path, cli: Callable[..., Ran]) -> None:
    """Where most datasets of an HDF5 file are alike, one that is not is damaged, also if it has as many rows."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "all.h5", "w") as file:
        for name, columns in {"a": 2, "b": 2, "c": 3, "d": 2}.items():
            file[name] = np.zeros((5, columns))
    done = cli("scan", "all.h5", "--json", "--workers", 0)
    assert [one["id"] for one in done.json["damaged"]] == ["c"]


def test_good_ids_can_be_trained_on(data: Path, tmp_path: Path, cli: Callable[..., Ran]) -> None:
    """``--good`` writes a list of ids that ``--ids`` accepts."""
    put(data / "bad.npy", b"")
    put(data / "sub" / "ö.npy", npy(GOOD))

    assert cli("scan", data, "--good", "good.txt", "--workers", 0).status == 1
    assert cli("scan", data, "--ids", "good.txt", "--workers", 0).status == 0
    good = (tmp_path / "good.txt").read_text().splitlines()
    assert good == [*(f"good-{number}" for number in range(5)), "sub/ö"]


def test_good_rows_can_be_trained_on(tmp_path: Path, cli: Callable[..., Ran]) -> None:
    """A list of good rows, passed as a file, is an error that says how to read it; this works for ``.npy`` and HDF5 files."""
    h5py = pytest.importorskip("h5py")
    np.save(tmp_path / "all.npy", np.arange(3))
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file["x"] = np.arange(3)
    for source, words in ((NpyRows(tmp_path / "all.npy"), []), (Hdf5(tmp_path / "all.h5", "x"), ["--dataset", "x"])):
        assert cli("scan", source.file, "--good", "good.txt", *words, "--workers", 0).status == 0
        with pytest.raises(InputError, match=r"list_IDs=np\.loadtxt\(file, int, ndmin=1\)"):
            Loader(tmp_path / "good.txt", None, 3, source=source)
        ids = np.loadtxt(tmp_path / "good.txt", int, ndmin=1)
        with Loader(ids, None, 3, source=source, shuffle=False, workers=0) as loader:
            assert loader.batch(0)[0].tolist() == [0, 1, 2]


def test_ids_that_cannot_be_lines_are_refused(data: Path, tmp_path: Path, cli: Callable[..., Ran]) -> None:
    """Commands refuse to write a list with an id that would be read back as another one, and leave no file behind."""
    put(data / "a\nb.npy", npy(GOOD))
    for words in (["scan", data, "--good", "good.txt"], ["pack", data, "all.npy"]):
        done = cli(*words, "--workers", 0)
        assert (done.status, done.out) == (2, "")
        assert r"id 'a\nb': expected 1 to 4,096 bytes without a line break" in done.err
    assert os.listdir(tmp_path) == ["data"]


@pytest.mark.parametrize("what", ["npz", "images", "hdf5", "rows"])
def test_the_kind_of_data_is_detected(tmp_path: Path, cli: Callable[..., Ran], what: str) -> None:
    """The command detects the kind of data by the files' names."""
    place = tmp_path / "data"
    place.mkdir()
    if what == "rows":
        np.save(place / "all.npy", np.zeros((7, 3)))
        (tmp_path / "ids").write_text("5\n0\n")
        done = cli("scan", place / "all.npy", "--workers", 0, "--json")
        assert (done.status, done.json["samples"], done.json["damaged"]) == (0, 7, [])
        assert cli("scan", place / "all.npy", "--ids", "ids", "--workers", 0, "--json").json["samples"] == 2
        return
    _, _, wrong = spoilt(what, place)
    if what == "hdf5":
        done = cli("scan", place / "all.h5", "--workers", 0, "--json")
        wrong.pop("0")  # it is missing, so it is not listed
    else:
        put(place / "one.npy", npy(GOOD))
        done = cli("scan", place, "--workers", 0, "--json")
        assert done.json["remarks"] == ["left out: 1 npy, such as 'one'; --kind npy for these"]
        assert cli("scan", place, "--kind", "npy", "--workers", 0).status == 0
        wrong.pop("none.png", None)
    assert (done.status, {one["id"] for one in done.json["damaged"]}) == (1, set(wrong))


def test_a_mixed_folder_is_pointed_out(tmp_path: Path, cli: Callable[..., Ran]) -> None:
    """All files of the rarer shape are damaged; the table says why, and what to do."""
    for number in range(7):
        put(tmp_path / f"{number}.npy", npy(np.zeros((4, 4 if number in (1, 5) else 3), "f8" if number == 2 else "f4")))

    done = cli("scan", tmp_path, "--workers", 0)

    assert done.status == 1
    assert "expected shape (4, 3), found (4, 4)   1, 5" in done.out
    assert "dtypes differ" in done.out
    assert "dtype='float32'" in done.out
    assert "unless dim, n_channels and dtype say otherwise" in done.out
    assert "damaged: 2 of 7 samples" in done.out
    assert cli("scan", tmp_path, "--dim", "4,4", "--workers", 0).out.splitlines()[-1] == "damaged: 5 of 7 samples"
    assert cli("scan", tmp_path, "--dim", "4", "--n-channels", "3", "--dtype", "f8", "--json", "--workers", 0).status == 1


def test_output_as_table_and_json(data: Path, cli: Callable[..., Ran]) -> None:
    """The command prints a table, or one JSON object, on standard output, and nothing on standard error."""
    good = cli("scan", "data", "--workers", 0)
    assert (good.status, good.err) == (0, "")
    first, *lines, last = good.out.splitlines()
    assert first.startswith("data: headers and sizes of 5 samples checked in ")
    assert " (4, 3)   float32       5   240 bytes   good" in lines
    assert last == "damaged: 0 of 5 samples"

    put(data / "short.npy", npy(GOOD)[:-1])
    done = cli("scan", "data", "--full", "--json", "--workers", 0)
    found = done.json
    assert found.pop("seconds") > 0
    assert found == {
        "data": "data",
        "full": True,
        "complete": True,
        "samples": 6,
        "expected": {"shapes": [[4, 3]], "dtype": "float32"},
        "kinds": [{"shape": [4, 3], "dtype": "float32", "files": 5, "bytes": 240, "reason": None}],
        "remarks": [],
        "damaged": [
            {"id": "short", "path": f"{data}/short.npy", "reason": "expected 176 bytes, found 175: the file is truncated"}
        ],
    }
    assert (done.status, done.err) == (1, "")


WRONG: list[tuple[list[str], str]] = [
    # arguments, and a part of the message
    (["scan"], "the following arguments are required: DATA"),
    ([], "the following arguments are required: COMMAND"),
    (["scan", "nowhere"], "nowhere: expected a folder, found none at this path; give another"),
    (["scan", "empty"], "expected .npy, .npz or image files, found none; give the folder"),
    (["scan", "others"], "found none; give"),
    (["scan", "ids"], "ids: expected an HDF5 file that can be read"),
    (["scan", "data", "--ids", "no-ids"], "expected ids, an id a line, found none"),
    (["scan", "data", "--ids", "utf-16"], "utf-16: line 1: expected an id, found a NUL byte; write"),
    (["scan", "data", "--good", "no/file"], "No such file or directory: 'no/file'"),
    (["scan", "data", "--dim", "3,x"], "argument --dim: invalid shape value: '3,x'"),
    (["scan", "data", "--kind", "npz", "--dim", "3"], "expected .npz files, found none"),
    (["scan", "data", "--dtype", "float33"], "dtype: expected one of numbers, found 'float33'"),
    (["scan", "data", "--timeout", "0"], "timeout: expected seconds above 0, or None, found 0.0"),
    (["scan", "rows.npy", "--ids", "ids"], "id 'good-0': expected a row's number from 0 to 2, of 3 rows, in"),
    (["scan", "rows.npy", "--dim", "3"], "describe the files of a folder"),
]


def test_wrong_usage(data: Path, tmp_path: Path, cli: Callable[..., Ran]) -> None:
    """Wrong usage gives exit status 2 and a line that says what to do, before any file is checked."""
    (tmp_path / "empty").mkdir()
    put(tmp_path / "others" / "sub" / "notes.txt", b"")
    put(tmp_path / "others" / "sub" / "sub" / "notes.txt", b"")
    (tmp_path / "ids").write_text("good-0\n")
    (tmp_path / "no-ids").write_text("\n\n")
    (tmp_path / "utf-16").write_text("good-0\n", encoding="utf-16-le")
    np.save(tmp_path / "rows.npy", np.zeros((3, 2)))

    for words, message in WRONG:
        done = cli(*words)

        assert (done.status, done.out) == (2, "")
        assert message in done.err


def test_a_terminal_gets_a_progress_bar(data: Path) -> None:
    """On a terminal there is a progress bar on standard error; standard output has only the result."""
    ours, theirs = pty.openpty()
    options: dict[str, Any] = {"env": {"TERM": "xterm", "COLUMNS": "100"}, "capture_output": False, "stdout": subprocess.PIPE}
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        try:
            done = python(*SCAN, data, "--json", "--workers", 0, stderr=theirs, check=True, **options)
        finally:
            os.close(theirs)
        seen = read_all(terminal)

    assert "5 of 5 samples" in seen
    assert json.loads(done.stdout)["samples"] == 5


def read_all(terminal: io.FileIO) -> str:
    """Everything that is written to a terminal until no process has it open."""
    seen = b""
    try:
        while data := terminal.read(1 << 16):
            seen += data
    except OSError:  # the end of a terminal's output
        pass
    return seen.decode()


def test_without_rich(data: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without rich, a scan with ``--json`` works, and one with a table is an error that says how to install rich."""
    monkeypatch.setitem(sys.modules, "rich", None)

    table, with_json = cli("scan", data), cli("scan", data, "--json", "--workers", 0)

    assert (table.status, table.out) == (2, "")
    assert table.err.strip().endswith("the table needs rich: pip install rich; or use --json in place of the table")
    assert (with_json.status, with_json.json["samples"]) == (0, 5)


def test_ascii_output(data: Path) -> None:
    """If the output's encoding is ASCII, the table has only ASCII characters."""
    put(data / "日本.npy", b"")

    done = python(*SCAN, data, "--workers", 0, env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})

    assert done.returncode == 1
    assert "\\u65e5\\u672c" in done.stdout
    assert done.stdout.isascii()
    assert "\\u2500" not in done.stdout


def in_bash(command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command line of bash to its end, with this checkout importable."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(["bash", "-c", command], env=environment, stderr=subprocess.PIPE, text=True, check=False, **options)


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "| true"])
def test_closed_streams(data: Path, closed: str) -> None:
    """With streams closed, as by cron or `head`, the exit status is right, and there is no traceback."""
    put(data / "bad.npy", b"")
    words = f"{sys.executable} -m shmgen scan {data} --workers 0 --good good"

    done = in_bash(f"set -o pipefail; {words} {closed}", cwd=data.parent, stdout=subprocess.DEVNULL)

    assert done.returncode == 1 or (closed == "| true" and done.returncode == 2)
    assert done.stderr == ""
    assert (data.parent / "good").read_text().splitlines() == [f"good-{number}" for number in range(5)]


def test_ctrl_c_prints_the_result_so_far(tmp_path: Path) -> None:
    """Ctrl-C ends a scan with exit status 130, the result so far, no traceback, and no worker left."""
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (40, 30)).save(tmp_path / "good.png")
    os.mkfifo(tmp_path / "stalls.png")
    status, out, err = interrupted_by_ctrl_c("scan", tmp_path, "--workers", 2, "--timeout", 600, "--json")
    assert (status, err) == (130, b"")
    assert not json.loads(out)["complete"]
