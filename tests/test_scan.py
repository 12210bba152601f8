"""``python -m shmgen scan``: what is wrong with a folder is found, all of it, and nothing else."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from shmgen import InputError, Loader, SampleError
from shmgen._samples.sample_spec import SampleSpec
from shmgen._tools.scan import Progress, Scan
from shmgen._tools.scan_ids import Folder, ids_in
from shmgen._tools.scan_report import Kind, Report, judge
from shmgen._tools.scan_worker import BLOCK, Examiner, Format, pack, unpack

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-W", "error", "-m", "shmgen"]
GOOD = np.arange(12, dtype=np.float32).reshape(4, 3)

NOT_ROOT = pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")


def npy(array: np.ndarray, **options: Any) -> bytes:
    """The bytes of an .npy file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **options)
    return file.getvalue()


def with_header(header: bytes, version: bytes = b"\x01\x00") -> bytes:
    """An .npy file with this header and room for the data."""
    return b"\x93NUMPY" + version + struct.pack("<H" if version[0] == 1 else "<I", len(header)) + header + bytes(1000)


def put(path: Path, content: bytes | Callable[[Path], object]) -> None:
    """Make ``path`` a file of these bytes, or whatever the function makes of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def scanned(folder: Path, ids: Sequence[str] | None = None, workers: int = 2, full: bool = False, **given: Any) -> Report:
    """The report of a scan in this process."""
    blocks = None if ids is None else iter([[os.fsencode(id) for id in ids]])
    scan = Scan(folder, blocks, SampleSpec(**given), full=full, workers=workers)
    scan.run()
    return scan.report()


def run(*words: object, cwd: Path | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command line, run to its end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    command = [*options.pop("command", COMMAND), *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, **options)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of five good files, ``good-0`` to ``good-4``."""
    for number in range(5):
        put(tmp_path / "data" / f"good-{number}.npy", npy(GOOD))
    return tmp_path / "data"


BAD = [
    # what stands there, what its reason says was expected, and what was found
    pytest.param(b"", "an .npy file", "an empty one (0 bytes)", id="empty"),
    pytest.param(npy(GOOD)[:-1], "176 bytes", "175: the file is truncated", id="truncated-by-a-byte"),
    pytest.param(npy(GOOD)[:128], "176 bytes", "128: the file is truncated", id="truncated-after-header"),
    pytest.param(npy(GOOD)[:100], "header of 128 bytes", "the end of the file after 100", id="truncated-in-header"),
    pytest.param(npy(GOOD)[:9], "header", "the end of the file after 9 bytes", id="truncated-in-prefix"),
    pytest.param(npy(GOOD)[:3], "an .npy file", "begins with b'\\x93NU'", id="truncated-in-magic"),
    pytest.param(npy(np.asfortranarray(GOOD))[:-8], "176 bytes", "168", id="truncated-fortran"),
    pytest.param(npy(GOOD.astype(np.float64))[:-8], "224 bytes", "216", id="truncated-cast"),
    pytest.param(npy(GOOD, version=(2, 0))[:-8], "176 bytes", "168", id="truncated-version-2"),
    pytest.param(b"PK\x03\x04" + bytes(1000), "an .npy file", "begins with b'PK", id="npz"),
    pytest.param(bytes(1000), "an .npy file", "begins with b'\\x00", id="all-zeros"),
    pytest.param(npy(GOOD.reshape(3, 4)), "shape (4, 3)", "(3, 4)", id="other-shape-of-the-same-size"),
    pytest.param(npy(GOOD[None]), "shape (4, 3)", "(1, 4, 3)", id="one-axis-more"),
    pytest.param(npy(GOOD[0]), "shape (4, 3)", "(3,)", id="one-axis-less"),
    pytest.param(npy(GOOD[:0]), "at least one element", "(0, 3)", id="no-elements"),
    pytest.param(npy(GOOD.astype(object)), "numbers", "Python objects", id="object-array"),
    pytest.param(npy(GOOD.astype(np.complex64)), "dtype float32", "complex64", id="cast-loses-more-than-precision"),
    pytest.param(npy(np.zeros((4, 3), "U5")), "dtype float32", "<U5", id="str"),
    pytest.param(npy(np.zeros((4, 3), "f4,i4")), "dtype float32", "[('f0', '<f4'), ('f1', '<i4')]", id="structured"),
    pytest.param(npy(np.zeros((4, 3), [("a" * 300, "f4")])), "dtype float32", "aaa", id="structured-of-a-long-header"),
    pytest.param(with_header(b"no dict\n"), "an .npy header", "no dict", id="header-is-no-dict"),
    pytest.param(with_header(b"'\\d'\n"), "an .npy header", "b\"'", id="header-python-warns-of"),
    pytest.param(with_header(b"{}", version=b"\x07\x00"), "version 1.0, 2.0 or 3.0", "7.0", id="version-unknown"),
    pytest.param(
        with_header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (%b, %b)}\n" % (b"9" * 4000, b"9" * 4000)),
        "an .npy header",
        "'shape': (999",
        id="header-of-absurd-sizes",
    ),
    pytest.param(Path.mkdir, "a file", "a directory", id="directory"),
    pytest.param(
        lambda path: path.symlink_to("nowhere"), "a file", "a link to 'nowhere', which does not exist", id="dangling-link"
    ),
    pytest.param(lambda path: path.symlink_to(path.name), "a readable file", "Too many levels", id="link-to-itself"),
]

STALLING = [
    # what would keep an ordinary open or read waiting; a loader is not asked
    pytest.param(os.mkfifo, "a file", "a FIFO", id="fifo"),
    pytest.param(listen, "a file", "a socket", id="socket"),
    pytest.param(lambda path: path.symlink_to("/dev/ptmx"), "a file", "a device", id="terminal"),
    pytest.param(lambda path: path.symlink_to("/dev/zero"), "an .npy file", "begins with b'\\x00", id="endless-device"),
]

SOUND = [
    pytest.param(npy(np.asfortranarray(GOOD)), id="fortran"),
    pytest.param(npy(GOOD.astype(">f4")), id="big-endian"),
    pytest.param(npy(GOOD.astype(np.float64)), id="wider"),
    pytest.param(npy(GOOD.astype(np.int16)), id="integers"),
    pytest.param(npy(GOOD, version=(2, 0)), id="version-2"),
    pytest.param(npy(GOOD, version=(3, 0)), id="version-3"),
    pytest.param(npy(GOOD) + b"more", id="bytes-behind-the-data"),
    pytest.param(with_header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (4L, 3L), }\n"), id="python-2"),
    pytest.param(lambda path: path.symlink_to("good-1.npy"), id="link"),
]


ALL = [*BAD, *STALLING, *SOUND]
EXPECTED = [pytest.param(case.id, *case.values[1:], id=case.id) for case in (*BAD, *STALLING)]


@pytest.fixture(scope="module", params=[False, True], ids=["headers", "full"])
def everything(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of a folder of all cases, each in a sub-folder of its own, named by its id, and of more good files."""
    folder = tmp_path_factory.mktemp("data")
    for case in ALL:
        put(folder / str(case.id) / "bad.npy", case.values[0])  # type: ignore[arg-type]
        put(folder / str(case.id) / "good-1.npy", npy(GOOD))
    return scanned(folder, full=request.param)


@pytest.mark.parametrize(("case", "expected", "found"), EXPECTED)
def test_what_is_damaged_is_named(everything: Report, case: str, expected: str, found: str) -> None:
    """Whatever is wrong with a file, it is in the list, with what was expected and what was found."""
    ((id, path, reason),) = [damage for damage in everything.damaged if damage.id.startswith(f"{case}/")]

    assert (id, path) == (f"{case}/bad", f"{everything.folder}/{case}/bad.npy")
    assert reason.startswith("expected ")
    assert expected in reason.split("found")[0]
    assert found in reason.split("found", 1)[1]


def test_all_else_is_good(everything: Report) -> None:
    """Other byte order, axis order, format version or precision is no damage; no file is left out, none stands twice."""
    assert {damage.id for damage in everything.damaged} == {f"{case.id}/bad" for case in (*BAD, *STALLING)}
    assert len(everything.damaged) == len(BAD) + len(STALLING)
    assert (everything.files, everything.complete) == (2 * len(ALL), True)


@pytest.mark.parametrize("content", [pytest.param(p.values[0], id=p.id) for p in (*BAD, *SOUND)])
def test_scan_and_loader_agree(data: Path, content: Any) -> None:
    """What the scan calls damaged a loader refuses, and the other way round; also where it is the first file."""
    put(data / "other.npy", content)
    ids = ["other", *(f"good-{number}" for number in range(5))]
    refused = set()
    with Loader(ids[::-1], None, 6, shuffle=False, data_dir=data, workers=0) as loader:
        try:
            next(iter(loader))
        except SampleError as error:
            refused.add(error.id)

    assert {damage.id for damage in scanned(data, ids, workers=1).damaged} == refused


@NOT_ROOT
def test_what_may_not_be_read_is_damaged(data: Path) -> None:
    """A file, and a sub-folder, without the right to read it."""
    (data / "good-3.npy").chmod(0)
    put(data / "closed" / "in.npy", npy(GOOD))
    (data / "closed").chmod(0)
    try:
        report = scanned(data)
    finally:
        (data / "closed").chmod(0o700)

    assert [(damage.id, damage.reason) for damage in report.damaged] == [
        ("closed", "expected a readable folder, found: Permission denied (errno 13)"),
        ("good-3", "expected a readable file, found: Permission denied (errno 13)"),
    ]


def test_a_folder_that_cant_be_listed_is_damaged(data: Path) -> None:
    """Its files would be missing without a word otherwise."""
    (data / "sub").symlink_to("sub")  # too many levels of links, whoever asks

    (damage,) = scanned(data).damaged

    assert (damage.id, damage.path) == ("sub", f"{data}/sub")
    assert damage.reason == "expected a readable folder, found: Too many levels of symbolic links (errno 40)"


def test_sub_folders_and_links_to_folders(data: Path, tmp_path: Path) -> None:
    """Ids are paths from the folder; links are followed, but not in circles."""
    put(data / "cats" / "black" / "1.npy", npy(GOOD))
    put(tmp_path / "elsewhere" / "2.npy", npy(GOOD))
    put(tmp_path / "elsewhere" / "notes.txt", b"")
    (data / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "cats" / "up").symlink_to("..")
    (data / "cats" / "dangling").symlink_to("nowhere")

    ids = sorted(id for block in Folder(os.fsencode(data)).ids() for id in block)

    assert ids == [b"cats/black/1", *(b"good-%d" % number for number in range(5)), b"linked/2"]
    assert scanned(data).files == len(ids)


@pytest.mark.parametrize(
    "name",
    [
        "ä/ö-日本",
        "[red]x[/]:smile:",
        " space ",
        "line\nbreak",
        "\x1b[2Jescape",
        "",
        ".hidden",
        "x.npy",
        "'quote\"",
        os.fsdecode(b"\xff\xfe"),
        "n" * 250,
    ],
    ids=ascii,
)
def test_any_name_a_file_can_have(data: Path, name: str) -> None:
    """It gets through as it is to the report and to JSON, and cannot harm the table."""
    put(data / f"{name}.npy", npy(GOOD)[:-1])

    done = run("scan", data, "--json", data / "result")

    (damage,) = json.loads((data / "result").read_text())["damaged"]
    assert (damage["id"], damage["path"]) == (name, f"{data}/{name}.npy")
    assert done.returncode == 1
    assert done.stderr == ""
    assert "175" in done.stdout
    assert "\x1b" not in done.stdout
    assert (name if name.isprintable() else repr(name)).strip() in done.stdout.replace("\n", "") or len(name) > 100


@pytest.mark.parametrize("workers", [1, 3])
def test_every_file_is_looked_at_once(tmp_path: Path, workers: int) -> None:
    """Thousands of files, with names so long that messages are cut short by bytes, not by number."""
    names = [f"{number:05}-{'long' * (number % 50)}" for number in range(3000)]
    for number, name in enumerate(names):
        put(tmp_path / "data" / str(number % 7) / f"{name}.npy", npy(GOOD)[: -1 if number % 100 == 0 else None])
    heard: list[Progress] = []
    scan = Scan(tmp_path / "data", workers=workers)

    scan.run(heard.append)

    report = scan.report()
    assert [damage.id for damage in report.damaged] == sorted(f"{k % 7}/{names[k]}" for k in range(0, 3000, 100))
    assert (report.files, report.kinds[0].files, report.bytes) == (3000, 2970, 2970 * 176)
    assert heard[-1] == Progress(3000, 3000, True, 0, 30)
    assert [progress.files for progress in heard] == sorted(progress.files for progress in heard)


NOT_FINITE = [
    # dtype, values put at flat positions, what was found
    pytest.param("<f2", {5: np.nan}, "1 NaN, the first at index (1, 2)", id="float16"),
    pytest.param("<f4", {5: np.nan, 7: np.nan, 8: -np.inf}, "2 NaN and 1 infinite, the first at index (1, 2)", id="float32"),
    pytest.param("<f8", {11: np.inf}, "1 infinite, the first at index (3, 2)", id="float64"),
    pytest.param(">f4", {0: np.inf}, "1 infinite, the first at index (0, 0)", id="big-endian"),
    pytest.param(">f8", {1: np.nan}, "1 NaN, the first at index (0, 1)", id="big-endian-64"),
    pytest.param("<g", {3: np.nan}, "1 NaN, the first at index (1, 0)", id="long-double"),
    pytest.param("<c8", {3: complex(0, np.nan), 4: complex(np.inf, np.nan)}, "2 NaN, the first at index (1, 0)", id="complex64"),
    pytest.param(">c16", {4: complex(0, np.inf)}, "1 infinite, the first at index (1, 1)", id="big-endian-complex"),
]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(("dtype", "values", "found"), NOT_FINITE)
def test_numbers_that_are_not_finite_are_found_by_a_full_scan(
    tmp_path: Path, dtype: str, values: dict[int, complex], found: str, order: Any
) -> None:
    """NaN and infinities are counted, and the first in the file is named; headers alone tell nothing of them."""
    array = GOOD.astype(dtype)
    for position, value in values.items():
        array.flat[position] = value
    put(tmp_path / "data" / "one.npy", npy(array.copy(order)))
    put(tmp_path / "data" / "two.npy", npy(GOOD.astype(dtype)))

    assert scanned(tmp_path / "data").damaged == []
    (damage,) = scanned(tmp_path / "data", full=True).damaged
    if order == "F" and len(values) > 1:  # another one is the first
        found = found.partition(" at index")[0]
    assert damage.id == "one"
    assert damage.reason.startswith(f"expected finite numbers, found {found}")


def test_files_longer_than_a_block(tmp_path: Path) -> None:
    """They are read in blocks, and positions and the end of the data are right across them."""
    array = np.ones(3 * BLOCK // 8 + 1000)
    array[2 * BLOCK // 8 + 7] = np.inf
    array[-1] = np.nan
    put(tmp_path / "nan.npy", npy(array))
    put(tmp_path / "bytes.npy", npy(np.full(len(array), 255, np.uint8).repeat(8).view("u8")))
    put(tmp_path / "short.npy", npy(np.ones_like(array))[:-BLOCK])
    heard: list[Progress] = []
    scan = Scan(tmp_path, full=True, workers=1)

    scan.run(heard.append)

    reasons = {damage.id: damage.reason for damage in scan.report().damaged if damage.id != "bytes"}
    assert reasons == {
        "nan": f"expected finite numbers, found 1 NaN and 1 infinite, the first at index ({2 * BLOCK // 8 + 7},)",
        "short": f"expected {128 + array.nbytes:,} bytes, found {128 + array.nbytes - BLOCK:,}: the file is truncated",
    }
    assert heard[-1].read == 2 * array.nbytes


def test_a_long_file_is_told_of_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may take minutes; the sum of what is told is what was read."""
    monkeypatch.setattr("shmgen._tools.scan_worker.REPORT_EVERY", BLOCK)
    array = np.zeros(5 * BLOCK // 2, np.uint8)
    put(tmp_path / "one.npy", npy(array))
    told: list[int] = []

    tally = Examiner(os.fsencode(tmp_path), full=True, formats=[], progress=told.append).examine([b"one"])

    assert told == [BLOCK, BLOCK]
    assert sum(told) + tally.read == array.nbytes


def kind(shape: tuple[int, ...], files: int, dtype: str = "f4") -> Kind:
    return Kind(shape, np.dtype(dtype), files, files)


F4, F8, U1 = np.dtype("f4"), np.dtype("f8"), np.dtype("u1")

JUDGED = [
    # kinds, what is given, the shapes and dtype expected, and the kinds that are refused
    pytest.param([kind((4,), 2), kind((5,), 3)], SampleSpec(), ((5,), (5,)), F4, {(4,)}, id="most-decide"),
    pytest.param([kind((4,), 2), kind((5,), 3)], SampleSpec((4,)), ((4, 1), (4,)), F4, {(5,)}, id="dim"),
    pytest.param([kind((4,), 2), kind((4, 1), 2)], SampleSpec(), ((4,), (4,)), F4, {(4, 1)}, id="tie"),
    pytest.param([kind((4,), 2), kind((4, 1), 2)], SampleSpec(n_channels=1), ((4, 1), (4,)), F4, set(), id="one-channel"),
    pytest.param([kind((4, 3), 2), kind((4,), 9)], SampleSpec(n_channels=3), ((4, 3),) * 2, F4, {(4,)}, id="channels"),
    pytest.param([kind((4, 3), 2), kind((4, 1), 3)], SampleSpec((4,)), ((4, 1), (4,)), F4, {(4, 3)}, id="dim-alone"),
    pytest.param([kind((4,), 9)], SampleSpec((4,), 3), None, None, {(4,)}, id="none-fits"),
    pytest.param([kind((4,), 9)], SampleSpec((5,)), None, None, {(4,)}, id="none-fits-dim"),
    pytest.param([kind((0, 3), 9), kind((4, 3), 1)], SampleSpec(), ((4, 3),) * 2, F4, {(0, 3)}, id="no-elements"),
    pytest.param([kind((4,), 9, "U3"), kind((5,), 1)], SampleSpec(), ((5,), (5,)), F4, {(4,)}, id="text-decides-nothing"),
    pytest.param([kind((4,), 9, "U3")], SampleSpec(), None, None, {(4,)}, id="text-alone"),
    pytest.param([kind((4,), 2, "f8"), kind((4,), 3)], SampleSpec(), ((4,), (4,)), F4, set(), id="precision"),
    pytest.param(
        [kind((4,), 2, ">f4"), kind((4,), 1, "f4"), kind((4,), 2, "f8")], SampleSpec(), ((4,),) * 2, F4, set(), id="byte-order"
    ),
    pytest.param([kind((4,), 3), kind((4,), 1, "f8")], SampleSpec(dtype="f8"), ((4,), (4,)), F8, set(), id="dtype"),
    pytest.param(
        [kind((4,), 3), kind((5,), 1, "u1")], SampleSpec(dtype="u1"), ((5,), (5,)), U1, {(4,)}, id="dtype-decides-shape"
    ),
    pytest.param([kind((), 3)], SampleSpec(), ((), ()), F4, set(), id="scalars"),
]


@pytest.mark.parametrize(("kinds", "given", "shapes", "dtype", "refused"), JUDGED)
def test_what_is_expected(kinds: list[Kind], given: SampleSpec, shapes: Any, dtype: Any, refused: set[Any]) -> None:
    """What most files are decides where nothing is given; every kind refused has a reason."""
    expected, judged = judge(kinds, given)

    assert (expected and (expected.shapes, expected.dtype)) == (shapes and (shapes, dtype))
    assert {kind.shape for kind in judged if kind.reason} == refused
    assert [kind.files for kind in judged] == sorted((kind.files for kind in kinds), reverse=True)


def test_a_mixed_folder_is_pointed_out(tmp_path: Path) -> None:
    """Those of the rarer shape are damaged, all of them, and it is said why, and what to do about it."""
    for number in range(7):
        put(tmp_path / f"{number}.npy", npy(np.zeros((4, 4 if number in (1, 5) else 3), "f8" if number == 2 else "f4")))

    done = run("scan", tmp_path)

    assert done.returncode == 1
    assert "expected shape (4, 3), found (4, 4)   1, 5" in done.stdout
    assert "dtypes differ" in done.stdout
    assert "dtype='float32'" in done.stdout
    assert "--dim" in done.stdout
    assert "damaged: 2 of 7 files" in done.stdout
    assert run("scan", tmp_path, "--dim", "4,4").stdout.splitlines()[-1] == "damaged: 5 of 7 files"
    assert run("scan", tmp_path, "--dim", "4", "--n-channels", "3", "--dtype", "f8", "--json").returncode == 1


def test_a_good_folder(data: Path) -> None:
    """Exit status 0, a table on standard output, and nothing on standard error, which is no terminal."""
    done = run("scan", "data", cwd=data.parent)

    assert (done.returncode, done.stderr) == (0, "")
    first, *lines, last = done.stdout.splitlines()
    assert first.startswith("data: headers and sizes of 5 files checked in ")
    assert " (4, 3)   float32       5   880 bytes   good" in lines
    assert last == "damaged: 0 of 5 files"


def test_json(data: Path) -> None:
    """One object on standard output, without the table: all that the table says, and every damaged file."""
    put(data / "short.npy", npy(GOOD)[:-1])

    done = run("scan", "data", "--full", "--json", cwd=data.parent)

    found = json.loads(done.stdout)
    assert found.pop("seconds") > 0
    assert found == {
        "data_dir": "data",
        "full": True,
        "complete": True,
        "files": 6,
        "bytes": 880,
        "expected": {"shapes": [[4, 3]], "dtype": "float32"},
        "kinds": [{"shape": [4, 3], "dtype": "float32", "files": 5, "bytes": 880, "reason": None}],
        "remarks": [],
        "damaged": [
            {"id": "short", "path": "data/short.npy", "reason": "expected 176 bytes, found 175: the file is truncated"},
        ],
    }
    assert (done.returncode, done.stderr) == (1, "")


def test_ids(data: Path, tmp_path: Path) -> None:
    """Only the files of the ids are looked at; those that are missing are damaged, and all else that is in the file is its."""
    put(data / "sub" / "ö.npy", npy(GOOD))
    put(data / "bad.npy", b"")
    text = "\ufeffgood-1\r\n\ngood-2\ngood-2\nsub/ö\n./good-3\nnone\ngood-4.npy"
    (tmp_path / "ids.txt").write_text(text)

    by_file = run("scan", data, "--ids", tmp_path / "ids.txt", "--json")
    by_stdin = run("scan", data, "--ids", "-", "--json", input=text)

    for done in by_file, by_stdin:
        found = json.loads(done.stdout)
        assert (found["files"], found["kinds"][0]["files"], done.returncode) == (7, 5, 1)
        assert [(damage["id"], damage["reason"]) for damage in found["damaged"]] == [
            ("good-4.npy", "expected a file, found none at this path; an id is what stands before .npy"),
            ("none", "expected a file, found none at this path"),
        ]


@pytest.mark.parametrize("size", [1, 2, 4095, 4096, 4097])
def test_ids_of_any_length_a_path_can_have(size: int) -> None:
    """Longer lines are no ids, but a file of something else, which is said at once."""
    blocks = ids_in(io.BytesIO(b"first\n" + b"i" * size + b"\r\nlast"), "FILE")

    if size <= 4096:
        assert list(blocks) == [[b"first", b"i" * size, b"last"]]
    else:
        with pytest.raises(InputError, match="FILE, line 2: expected an id, found more than 4,096 bytes"):
            list(blocks)


def test_more_ids_than_a_block() -> None:
    """None is lost between blocks, and packing keeps them."""
    ids = [b"%d" % number for number in range(5000)]

    blocks = list(ids_in(io.BytesIO(b"\n".join(ids)), "FILE"))

    assert [id for block in blocks for id in block] == ids
    assert len(blocks) == 5
    assert [unpack(pack(block)) for block in blocks] == blocks


WRONG = [
    # words, and what the message says
    pytest.param(["scan"], "the following arguments are required: DATA_DIR", id="no-folder"),
    pytest.param([], "the following arguments are required: COMMAND", id="no-command"),
    pytest.param(["scan", "nowhere"], "nowhere: expected a folder, found none at this path; give the folder of", id="missing"),
    pytest.param(["scan", "nowhere", "--ids", "ids"], "nowhere: expected a folder, found none", id="missing-with-ids"),
    pytest.param(["scan", "ids"], "ids: expected a readable folder, found: Not a directory", id="a-file"),
    pytest.param(["scan", "ids", "--ids", "ids"], "expected a readable folder, found: Not a directory", id="a-file-with-ids"),
    pytest.param(["scan", "empty"], "empty: expected files whose names end in .npy, found none; give", id="empty"),
    pytest.param(["scan", "others"], "found none among 2 others, such as 'sub/photo.png'; give", id="other-files"),
    pytest.param(["scan", "data", "--ids", "none"], "--ids none: No such file or directory", id="no-ids-file"),
    pytest.param(["scan", "data", "--ids", "no-ids"], "expected ids, an id a line, found none", id="no-ids"),
    pytest.param(["scan", "data", "--ids", "utf-16"], "utf-16, line 1: expected an id, found a NUL byte; write", id="utf-16"),
    pytest.param(["scan", "data", "--json", "no/file"], "--json no/file: No such file or directory", id="json-nowhere"),
    pytest.param(["scan", "data", "--dim", "3,x"], "expected ints from 1, separated by commas, found '3,x'", id="dim"),
    pytest.param(["scan", "data", "--dim", "3,0"], "found '3,0'", id="dim-zero"),
    pytest.param(["scan", "data", "--n-channels", "0"], "expected an int from 1, found '0'", id="channels"),
    pytest.param(["scan", "data", "--workers", "two"], "expected an int from 1, found 'two'", id="workers"),
    pytest.param(["scan", "data", "--dtype", "float33"], "expected one of numbers, found 'float33'", id="dtype"),
    pytest.param(["scan", "data", "--dtype", "str"], "expected one of numbers, found <U0", id="dtype-of-text"),
]


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_wrong_usage(data: Path, tmp_path: Path, words: list[str], message: str) -> None:
    """Exit status 2 and a line that says what to do, before anything is looked at."""
    (tmp_path / "empty").mkdir()
    put(tmp_path / "others" / "sub" / "photo.png", b"")
    put(tmp_path / "others" / "sub" / "sub" / "photo.png", b"")
    (tmp_path / "ids").write_text("good-0\n")
    (tmp_path / "no-ids").write_text("\n\n")
    (tmp_path / "utf-16").write_text("good-0\n", encoding="utf-16-le")

    done = run(*words, cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_help() -> None:
    """It names every option, the rule of what is expected, and the exit statuses."""
    general, own = run("--help"), run("scan", "--help", env={"COLUMNS": "80"})

    assert (general.returncode, own.returncode) == (0, 0)
    assert "scan" in general.stdout
    words = " ".join(own.stdout.split())
    for said in (
        "DATA_DIR",
        "--ids FILE",
        "--dim 32,32,32",
        "--n-channels N",
        "--dtype D",
        "--full",
        "--workers N",
        "--json [FILE]",
    ):
        assert said in words
    assert "expected shape and dtype are those of most files" in words
    assert "exit status: 0 if all is good, 1 if anything is damaged, 2 if" in words
    assert max(map(len, own.stdout.splitlines())) <= 80


def test_a_terminal_sees_a_bar(data: Path) -> None:
    """On standard error, so that standard output has the result alone."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"}
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        try:
            done = subprocess.run(
                [*COMMAND, "scan", str(data), "--json"],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=theirs,
                check=True,
            )
        finally:
            os.close(theirs)
        seen = read_all(terminal)

    assert "5 of 5 files" in seen
    assert json.loads(done.stdout)["files"] == 5


def read_all(terminal: io.FileIO) -> str:
    """What was written to a terminal that nobody has open any more."""
    seen = b""
    try:
        while data := terminal.read(1 << 16):
            seen += data
    except OSError:  # its end, as terminals tell it
        pass
    return seen.decode()


WITHOUT_RICH = """
import sys
sys.modules["rich"] = None
from shmgen.__main__ import main
sys.exit(main())
"""


def test_without_rich(data: Path) -> None:
    """The table says that it is missing, and how to get it, before anything is looked at; JSON needs no rich."""
    command = [sys.executable, "-c", WITHOUT_RICH]

    table, with_json = run("scan", data, command=command), run("scan", data, "--json", command=command)

    assert (table.returncode, table.stdout) == (2, "")
    assert table.stderr.strip().endswith(
        "the table needs rich: pip install rich; or use --json without FILE in place of the table"
    )
    assert (with_json.returncode, json.loads(with_json.stdout)["files"]) == (0, 5)


def test_an_encoding_without_the_letters(data: Path) -> None:
    """A table in ASCII is still a table."""
    put(data / "日本.npy", b"")

    done = run("scan", data, env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})

    assert done.returncode == 1
    assert "\\u65e5\\u672c" in done.stdout
    assert done.stdout.isascii()
    assert "\\u2500" not in done.stdout


def test_whoever_reads_the_output_may_leave(data: Path) -> None:
    """As `head` does: no traceback."""
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [*COMMAND, "scan", str(data)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=write,
            stderr=subprocess.PIPE,
            check=False,
        )
    finally:
        os.close(write)

    assert done.stderr == b""


class Unfinished:
    """A scan in a process group of its own, that waits for more ids than it has got."""

    def __init__(self, data: Path, *words: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "scan", str(data), "--ids", "-", "--workers", "2", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(b"good-1\n" * 1024)
        self.process.stdin.flush()

    def workers(self) -> list[psutil.Process]:
        """Those that have got past their start: a scan serves them once all have been started."""
        try:
            found = psutil.Process(self.process.pid).children()
            return found if len(found) == 2 and all("-S" in child.cmdline() for child in found) else []
        except psutil.NoSuchProcess:
            return []

    def end(self) -> tuple[int, str, str]:
        """Exit status and outputs, once all ids there are have been given."""
        out, err = self.process.communicate()
        return self.process.returncode, out.decode(), err.decode()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def unfinished(data: Path) -> Iterator[Callable[..., Unfinished]]:
    """Starts `Unfinished` scans, called with further words of the command line."""
    started: list[Unfinished] = []

    def start(*words: str) -> Unfinished:
        started.append(Unfinished(data, *words))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def test_ctrl_c_ends_it_with_what_was_found(unfinished: Callable[..., Unfinished], until: Callable[..., None]) -> None:
    """To the whole group, as a terminal sends it: exit status 130, no traceback, no worker left, and the result so far."""
    scan = unfinished("--json")
    until(scan.workers, "workers are there")
    workers = scan.workers()

    os.killpg(scan.process.pid, signal.SIGINT)
    status, out, err = scan.end()

    assert (status, err) == (130, "")
    found = json.loads(out)
    assert not found["complete"]
    assert found["damaged"] == []
    assert not any(worker.is_running() for worker in workers)


def test_a_worker_that_dies_is_named(unfinished: Callable[..., Unfinished], until: Callable[..., None]) -> None:
    """The scan ends with an error; what it would say about the files would not be all."""
    scan = unfinished()
    until(scan.workers, "workers are there")

    scan.workers()[0].kill()
    status, out, err = scan.end()

    assert (status, out) == (2, "")
    assert "worker 0 (pid " in err
    assert "was killed by SIGKILL" in err
    assert "Traceback" not in err


def test_workers_end_with_a_killed_parent(unfinished: Callable[..., Unfinished], until: Callable[..., None]) -> None:
    """SIGKILL of the scan leaves nobody behind."""
    scan = unfinished()
    until(scan.workers, "workers are there")
    workers = scan.workers()

    scan.kill()

    until(lambda: not any(worker.is_running() for worker in workers), "the workers have ended")


def test_workers_are_lean(data: Path) -> None:
    """A worker imports neither NumPy, where all files begin as the first one, nor anything of the command line."""
    raw = npy(GOOD)[:128]
    format = Format(raw, GOOD.shape, "'<f4'", fortran=False, inexact=True, data_bytes=GOOD.nbytes)
    code = f"""
import sys; sys.path.append(sys.argv[1])
from shmgen._tools.scan_worker import Examiner, Format
tally = Examiner({os.fsencode(data)!r}, full=False, formats=[{format!r}], progress=print).examine([b"good-0", b"good-1"])
assert tally.sound[0][2] == 2
print(*sys.modules)
"""

    done = run(ROOT, command=[sys.executable, "-I", "-S", "-c", code])

    modules = set(done.stdout.split())
    assert "shmgen._tools.scan_worker" in modules, done.stderr
    assert not modules & {
        "numpy",
        "rich",
        "argparse",
        "subprocess",
        "socket",
        "keras",
        "tensorflow",
        "multiprocessing",
        "shmgen._tools.scan",
    }
