"""``shmgen unpack``: each row becomes the file that it was, or is named."""

from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DataSet, Script
from test_memory import PRIVATE, mounts  # noqa: F401 # a fixture
from test_pack import KILLING, order, overwrite, packed
from test_scan import run

from shmgen import InputError
from shmgen._tools.packed import Progress
from shmgen._tools.unpack import Unpack

N = 40


@pytest.fixture
def data(folder: Callable[..., DataSet]) -> DataSet:
    """Files ``id-0`` to ``id-39``."""
    return folder(N)


@pytest.fixture
def rows(data: DataSet, tmp_path: Path) -> Path:
    """They as one file."""
    (tmp_path / "packed").mkdir()
    packed(data, tmp_path / "packed" / "all.npy")
    return tmp_path / "packed" / "all.npy"


@pytest.fixture
def back(tmp_path: Path) -> Path:
    """Where files are made again; it is not there."""
    return tmp_path / "back"


def unpack(*words: object, **options: Any) -> dict[str, Any]:
    """What the command says as JSON, with its exit status."""
    done = run("unpack", *words, "--json", **options)
    return {"status": done.returncode, "error": done.stderr, **(json.loads(done.stdout) if done.stdout else {})}


def bytes_of(folder: Path) -> dict[str, bytes]:
    """All files under a folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_there_and_back(data: DataSet, rows: Path, back: Path) -> None:
    """Every file is what it was, byte for byte; a second run has nothing to do."""
    outcome = unpack(rows, back)
    assert (outcome["status"], outcome["written"], outcome["remarks"]) == (0, N, [])
    assert bytes_of(back) == bytes_of(data.path)
    assert unpack(rows, back)["written"] == 0
    said = run("unpack", rows, back)
    assert f"{back}: {N} files, 1.9 kB, in " in said.stdout
    assert f"{N} of which were there already" in said.stdout


def test_sub_folders_and_strange_names(tmp_path: Path, back: Path) -> None:
    """Folders are made as ids ask for them; a name need not be text."""
    names = ["a/b/c", "a/b", "caf\udce9", "\u2028", "..x", "x" * 200]
    (tmp_path / "data").mkdir()
    for number, name in enumerate(names):
        path = tmp_path / "data" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.full((2, 2), number))
    assert run("pack", tmp_path / "data", tmp_path / "all.npy").returncode == 0
    assert unpack(tmp_path / "all.npy", back)["status"] == 0
    assert bytes_of(back) == bytes_of(tmp_path / "data")


@pytest.mark.parametrize("array", [np.arange(3.0), np.zeros((2, 3), ">i2"), np.zeros((2, 0)), np.zeros((3, 2), "V2")])
def test_any_array_of_rows(tmp_path: Path, back: Path, array: np.ndarray) -> None:
    """Rows of another's making, of numbers or bytes, in either byte order; not of no bytes."""
    np.save(tmp_path / "all.npy", array)
    (tmp_path / "ids").write_text("".join(f"{number}\n" for number in range(len(array))))
    outcome = unpack(tmp_path / "all.npy", back, "--ids", tmp_path / "ids")
    if array.size:
        assert "no checksums" in outcome["remarks"][0]
        for number, row in enumerate(array):
            found = np.load(back / f"{number}.npy")
            assert (found.dtype, found.shape, found.tobytes()) == (row.dtype, row.shape, row.tobytes())
    else:
        assert outcome["status"] == 2
        assert "found shape (2, 0)" in outcome["error"]


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no-ids": (lambda rows: os.unlink(rows.with_suffix(".ids")), "as --ids FILE"),
    "too-few-ids": (lambda rows: rows.with_suffix(".ids").write_text("a\nb\n"), "expected 40 ids, one for each row of"),
    "twice": (lambda rows: rows.with_suffix(".ids").write_text("a\n" * N), "expected each id once"),
    "out": (lambda rows: rows.with_suffix(".ids").write_text("".join(f"../{n}\n" for n in range(N))), "stays in folder"),
    "absolute": (lambda rows: rows.with_suffix(".ids").write_text("".join(f"/{n}\n" for n in range(N))), "stays in folder"),
    "truncated": (lambda rows: os.truncate(rows, 1000), "the file is truncated"),
    "no-npy": (lambda rows: rows.write_bytes(b"PK"), "expected an .npy file"),
    "fortran": (lambda rows: np.save(rows, np.asfortranarray(np.zeros((N, 2)))), "Fortran order"),
    "gone": (os.unlink, "expected a file, found none"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(rows: Path, back: Path, what: str) -> None:
    """With the file and what is wrong with it; no folder is made."""
    harm, said = REFUSED[what]
    harm(rows)
    outcome = unpack(rows, back)
    assert outcome["status"] == 2
    assert said in outcome["error"]
    assert not back.exists()


def test_damaged_rows_are_named_and_left_out(data: DataSet, rows: Path, back: Path) -> None:
    """By the checksums; all others are written."""
    overwrite(str(rows), 128 + 48 * 7, b"\xff")
    overwrite(str(rows), 128 + 48 * 30, b"\xff")
    outcome = unpack(rows, back)
    assert (outcome["status"], outcome["written"]) == (1, N - 2)
    bad = [order(data)[7], order(data)[30]]
    assert [damage["id"] for damage in outcome["damaged"]] == bad
    expected = bytes_of(data.path)
    assert bytes_of(back) == {name: content for name, content in expected.items() if name.removesuffix(".npy") not in bad}
    assert "all are unpacked but 2" in run("unpack", rows, back).stdout


def test_other_files_are_left_alone(data: DataSet, rows: Path, back: Path) -> None:
    """One that holds something else ends it before anything is written; files of other names do not matter."""
    back.mkdir()
    (back / "id-3.npy").write_text("mine")
    (back / "note.txt").write_text("mine")
    outcome = unpack(rows, back)
    assert outcome["status"] == 2
    assert f"found 1 that hold something else, such as {back}/id-3.npy; remove them" in outcome["error"]
    assert bytes_of(back) == {"id-3.npy": b"mine", "note.txt": b"mine"}
    (back / "id-3.npy").unlink()
    assert unpack(rows, back)["written"] == N
    assert bytes_of(back) == {**bytes_of(data.path), "note.txt": b"mine"}


@pytest.mark.parametrize("end", ["SIGKILL", "SIGINT"])
def test_an_end_amid_it(data: DataSet, rows: Path, back: Path, script: Callable[..., Script], end: str) -> None:
    """No file is there in part; the same command goes on with those that are not there."""
    code = f"""
from shmgen._tools import unpack
unpack.THREADS = 1
packed.CHECKED_BYTES = 48 * 4
at(unpack.os, "rename", 10, False, lambda: (os.kill(os.getpid(), signal.{end}), time.sleep(60) if {end == "SIGKILL"} else None))
sys.exit(cli.main(["unpack", {str(rows)!r}, {str(back)!r}]))
"""
    done = script(KILLING + code, data)
    done.end()
    assert done.process.returncode == (-signal.SIGKILL if end == "SIGKILL" else 130)
    expected = bytes_of(data.path)
    found = bytes_of(back)
    assert 10 <= len(found) < N
    assert all(content == expected[name] for name, content in found.items() if name.endswith(".npy"))
    if end == "SIGINT":
        assert f"files are written in {back}; the same command goes on" in done.err
        assert "Traceback" not in done.err
        assert not [name for name in found if name.endswith(".part")]
    assert unpack(rows, back)["written"] == N - len([name for name in found if name.endswith(".npy")])
    assert bytes_of(back) == expected


FULL = (
    PRIVATE
    + """
os.mkdir({back!r})
mount("none", {back!r}, "tmpfs", options="size=256k")
from shmgen._tools import unpack
write, calls = unpack.opened, []

def filling(path):
    calls.append(path)
    if len(calls) == 9:
        with open({back!r} + "/others", "wb") as file:
            try:
                while True:
                    file.write(bytes(1024))
                    file.flush()
            except OSError:
                pass
    return write(path)

unpack.THREADS = 1
unpack.opened = filling
words = ["unpack", {rows!r}, {back!r}]
assert cli.main(words) == 2
names = sorted(os.listdir({back!r}))
assert len(names) == 9 and not [name for name in names if name.endswith(".part")], names
os.unlink({back!r} + "/others")
assert cli.main(words) == 0
for name in os.listdir(DATA):
    assert open(os.path.join(DATA, name), "rb").read() == open(os.path.join({back!r}, name), "rb").read()
"""
)


@pytest.mark.usefixtures("mounts")
def test_a_disk_that_fills_up(data: DataSet, rows: Path, back: Path, script: Callable[..., Script]) -> None:
    """It says so, leaves no part of a file, and goes on once there is room."""
    done = script(KILLING + FULL.format(back=str(back), rows=str(rows)), data, options=())
    assert done.end() == 0, done.err
    assert "No space left on device (errno 28); the disk is full: make room" in done.err
    assert f"unpack: 8 files are written in {back}; the same command goes on" in done.err


def test_room_is_looked_at_before(rows: Path, back: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes, in whole blocks, and inodes; of files that are not there yet."""

    class Little:
        f_frsize, f_files, f_bavail, f_favail = 4096, 100, N - 1, 1000

    monkeypatch.setattr(os, "statvfs", lambda path: Little())
    with pytest.raises(InputError, match="expected 163,840 bytes of free disk, found 159,744"):
        Unpack(str(rows), str(back)).run()
    Little.f_bavail, Little.f_favail = N, N - 1
    with pytest.raises(InputError, match="expected room for 40 files, found 39 free inodes"):
        Unpack(str(rows), str(back)).run()
    Little.f_favail = N
    assert Unpack(str(rows), str(back)).run().written == N


def test_progress(rows: Path, back: Path) -> None:
    """Rows that are checked, then written, up to all."""
    seen: list[Progress] = []
    Unpack(str(rows), str(back)).run(seen.append)
    assert [progress for progress in seen if progress.rows == N] == [
        Progress("checked", N, N, N * 48),
        Progress("written", N, N, N * 48),
    ]


def test_files_may_be_read_by_those_who_could_before(rows: Path, back: Path) -> None:
    """As any program makes them: what the mask of the process allows."""
    assert unpack(rows, back)["status"] == 0
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(os.stat(back / "id-0.npy").st_mode) == 0o666 & ~mask
