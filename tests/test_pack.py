"""``shmgen pack`` turns a folder into one file: the whole file or none, even if it is killed."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from bad_files import npy, put
from conftest import ROOT, DataSet, Ran, Script
from test_memory import PRIVATE, mounts  # noqa: F401 # a fixture
from test_scan import in_bash

from shmgen import InputError, Loader, Npy, NpyRows
from shmgen._tools.pack import Packed, pack

N = 40
SHAPE = (4, 3)


@pytest.fixture
def data(folder: Callable[..., DataSet]) -> DataSet:
    """Files ``id-0`` to ``id-39``."""
    return folder(N)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The file to be made, in an empty folder."""
    (tmp_path / "packed").mkdir()
    return tmp_path / "packed" / "all.npy"


def packed(data: DataSet, target: Path, ids: list[str] | None = None, **options: Any) -> Packed:
    """The outcome of a pack of all files, in this process."""
    return pack(Npy(data.path), ids or sorted(data.ids), str(target), workers=0, **options)


def assert_whole(data: DataSet, target: Path, without: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Assert that the folder has the complete packed file and its ids, and nothing else."""
    assert sorted(os.listdir(target.parent)) == ["all.ids", "all.npy"]
    ids = [id for id in sorted(data.ids) if id not in without]
    expected, found = np.stack([np.load(data.file(id)) for id in ids]), np.load(target)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)
    assert target.with_suffix(".ids").read_text().splitlines() == ids


def test_a_folder_becomes_one_file(data: DataSet, target: Path, cli: Callable[..., Ran]) -> None:
    """`NpyRows` reads the packed rows by their text ids."""
    done = cli("pack", data.path, target)
    assert (done.status, done.err) == (0, "")
    assert f"{target}: {N} rows of shape (4, 3), float32, in " in done.out
    assert_whole(data, target)
    source = NpyRows(target, ids=target.with_suffix(".ids"))
    with Loader(data.ids, data.labels, 8, source=source, workers=1) as loader:
        assert sorted(label for X, y in loader for label in data.check(X, y)) == list(range(N))


def test_the_guides_unpack_restores_the_folder(data: DataSet, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guide's lines that unpack a file restore the folder byte for byte."""
    guide = (ROOT / "docs" / "commands.md").read_text()
    [code] = re.findall(r"lines of NumPy unpack:\n\n```python\n(.*?)```", guide, re.DOTALL)
    (data.path / "sub").mkdir()
    data.file("id-0").rename(data.file("sub/one"))
    before = {path.relative_to(data.path): path.read_bytes() for path in data.path.rglob("*.npy")}
    packed(data, target, ["sub/one", *data.ids[1:]])
    monkeypatch.chdir(target.parent)
    exec(code, {"np": np, "Path": Path})
    assert {path.relative_to("data"): path.read_bytes() for path in Path("data").rglob("*.npy")} == before


def test_shapes_and_dtypes(folder: Callable[..., DataSet], target: Path) -> None:
    """Rows have the files' shape, and their dtype in native byte order."""
    for shape, dtype in ((), "u1"), ((1,), ">f4"), ((3,), "f8"), ((2, 3, 4), "c8"), ((1, 1), "?"):
        data = folder(5, shape, dtype, name=f"data-{dtype}")
        packed(data, target)
        found = np.load(target)
        assert found.dtype == np.dtype(dtype).newbyteorder("=")
        np.testing.assert_array_equal(found, [np.load(data.file(id)) for id in sorted(data.ids)])
        target.unlink()
        target.with_suffix(".ids").unlink()


def test_files_are_cast_as_a_loader_casts_them(data: DataSet, target: Path) -> None:
    """Files of another axis order, byte order or precision are cast to the dtype of most files."""
    rows = np.arange(N * 12, dtype="f4").reshape(N, 4, 3)
    kinds: list[Callable] = [lambda a: a.astype("f8"), np.asfortranarray, lambda a: a.astype(">f4"), np.asarray, np.asarray]
    for number, id in enumerate(sorted(data.ids)):
        np.save(data.file(id), kinds[number % 5](rows[number]))
    outcome = packed(data, target)
    np.testing.assert_array_equal(np.load(target), rows)
    assert (outcome.dtype, np.load(target).dtype) == ("float32", np.float32)
    assert outcome.remarks == ("files of other dtypes were cast to float32: --dtype says to which",)


def test_shape_dtype_and_ids_can_be_given(data: DataSet, target: Path, cli: Callable[..., Ran], tmp_path: Path) -> None:
    """The command takes shape, dtype and ids; rows are in the order of the ids."""
    some = ["id-7", "id-30", "id-2"]
    target.with_suffix(".ids").write_text("\n".join(some))  # --ids may name the very file that is written
    words = ["--dim", "4,3", "--n-channels", 1, "--dtype", "float64", "--ids", target.with_suffix(".ids"), "--workers", 0]
    done = cli("pack", data.path, target, *words, "--json")
    assert (done.status, done.json["rows"], done.json["damaged"], done.json["shape"]) == (0, 3, [], [4, 3, 1])
    found = np.load(target)
    assert (found.shape, found.dtype) == ((3, 4, 3, 1), np.float64)
    np.testing.assert_array_equal(found[..., 0], [data.sample(7), data.sample(30), data.sample(2)])
    assert target.with_suffix(".ids").read_text().split() == some


def test_ml_dtypes(data: DataSet, target: Path) -> None:
    """Rows of ml_dtypes are packed as `numpy.save` stores them, and read with the same dtype."""
    ids = sorted(data.ids)
    for number, id in enumerate(ids):
        np.save(data.file(id), np.full(SHAPE, number).astype(ml_dtypes.bfloat16))
    pack(Npy(data.path, dtype="bfloat16"), ids, str(target), workers=0)
    source = NpyRows(target, "bfloat16", ids=target.with_suffix(".ids"))
    with Loader(ids, None, N, source=source, shuffle=False, workers=0) as loader:
        (X,) = loader.batch(0)
    assert X.dtype == ml_dtypes.bfloat16
    assert X[:, 0, 0].tolist() == list(range(N))


STRANGE = "a b,ä/ö,sub/sub/x,',\",\t,a\\b,back\\n,\x0b,\x85,\u2028,é,e\u0301,\U0001f600,-,..x,1.npy,caf\udce9,#,%20,end\r/x"


def test_strange_ids(tmp_path: Path, target: Path) -> None:
    """Ids with unusual characters find their rows in the packed file."""
    ids = [*STRANGE.split(","), "x" * 200]
    for number, id in enumerate(ids):
        put(tmp_path / "data" / f"{id}.npy", npy(np.full(3, number)))
    assert pack(Npy(tmp_path / "data"), ids, str(target), workers=0).rows == len(ids)
    source = NpyRows(target, ids=target.with_suffix(".ids"))
    with Loader(ids, None, len(ids), source=source, shuffle=False, workers=0) as loader:
        assert loader.batch(0)[0][:, 0].tolist() == list(range(len(ids)))


def spoil(data: DataSet) -> set[str]:
    """Damage some files, and return their ids."""
    np.save(data.file("id-0"), np.zeros((4, 4), "f4"))
    np.save(data.file("id-4"), np.zeros((4, 3), "c8"))
    os.truncate(data.file("id-5"), 150)
    data.file("id-6").write_bytes(b"")
    return {"id-0", "id-4", "id-5", "id-6"}


def test_damaged_files_are_named_and_nothing_is_packed(data: DataSet, target: Path, cli: Callable[..., Ran]) -> None:
    """If files are damaged, all are named, in a table or as JSON, and nothing is packed."""
    bad = spoil(data)
    done = cli("pack", data.path, target, "--workers", 0, "--json")
    assert done.status == 1
    assert {one["id"] for one in done.json["damaged"]} == bad
    table = cli("pack", data.path, target, "--workers", 0)
    assert table.status == 1
    words = f"{target}: not packed: repair the files, leave their ids out of --ids, or give --skip-damaged"
    for said in ("expected shape (4, 3), found (4, 4)", "complex64", "expected 176 bytes, found 150", words, *bad):
        assert said in table.out
    assert os.listdir(target.parent) == []


def test_skip_damaged_leaves_damaged_files_out(data: DataSet, target: Path, cli: Callable[..., Ran]) -> None:
    """With ``--skip-damaged`` the good files are packed; the damaged ones are listed, and the status is 1."""
    bad = spoil(data)
    done = cli("pack", data.path, target, "--skip-damaged", "--workers", 0)
    assert done.status == 1
    assert f"{target}: {N - 4} rows of shape (4, 3), float32" in done.out
    assert "damaged: 4 of 40 samples" in done.out
    assert_whole(data, target, bad)


@pytest.mark.parametrize(("number", "skip"), [(0, True), (1, False)])
def test_damage_after_the_check(data: DataSet, target: Path, monkeypatch: pytest.MonkeyPatch, number: int, skip: bool) -> None:
    """A file that breaks after it was checked is named; nothing is packed, or with ``skip_damaged`` all other files."""
    monkeypatch.setattr("shmgen._tools.scan.BATCH_BYTES", 4 * 48)
    id = sorted(data.ids)[number]

    def spoil(*progress: Any) -> None:
        if progress == (N, N, ""):
            os.truncate(data.file(id), 150)

    outcome = packed(data, target, skip_damaged=skip, progress=spoil)
    assert [(one.id, one.path) for one in outcome.damaged] == [(id, str(data.file(id)))]
    assert "truncated" in outcome.damaged[0].reason
    assert outcome.rows == (N - 1 if skip else 0)
    assert sorted(os.listdir(target.parent)) == (["all.ids", "all.npy"] if skip else [])
    if skip:
        data.write(int(id.removeprefix("id-")))
        assert_whole(data, target, {id})


def test_another_target_is_left_alone(data: DataSet, target: Path) -> None:
    """If a file with the name of the target or its ids exists, pack refuses to start, and does not touch it."""
    makers: list[tuple[Path, Callable[[Path], Any]]] = [
        (target, os.mkfifo),
        (target, lambda path: path.symlink_to("nowhere")),
        (target, lambda path: path.write_text("of others")),
        (target.with_suffix(".ids"), lambda path: path.write_text("one\ntwo\n")),
    ]
    for path, make in makers:
        make(path)
        before = os.lstat(path)
        with pytest.raises(InputError, match=f"{path}: expected no file there"):
            packed(data, target)
        after = os.lstat(path)
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        assert os.listdir(target.parent) == [path.name]
        path.unlink()


def test_unusable_targets_are_refused(data: DataSet, target: Path, cli: Callable[..., Ran]) -> None:
    """A target inside the folder, in a missing folder, or not called .npy is refused."""
    (target.parent / "link").symlink_to(data.path)
    for place, why in {
        data.path / "all.npy": "expected a place outside of",
        target.parent / "link" / "all.npy": "expected a place outside of",
        target.parent / "no" / "all.npy": "expected a folder that is there",
        target.parent / "all.npz": "expected the name of a file that ends in .npy",
        target.parent / ".npy": "expected the name of a file that ends in .npy",
    }.items():
        done = cli("pack", data.path, place, "--workers", 0)
        assert done.status == 2
        assert why in done.err
    assert os.listdir(target.parent) == ["link"]


MOMENTS = {"during-rows": "at(scan, 'map_arrays', 46)", "between-the-names": "at(os, 'rename', 1)"}

ENDING = """
from shmgen._tools import cli, pack, scan
scan.BATCH_BYTES = 4 * 48

def at(where, name, count):
    '''End after a call of a function.'''
    function = getattr(where, name)
    def counted(*args, **kwargs):
        nonlocal count
        count -= 1
        result = function(*args, **kwargs)
        if not count:
            os.kill(os.getpid(), {signal})
        return result
    setattr(where, name, counted)

{moment}
sys.exit(cli.main(['pack', DATA, {target!r}, '--workers', '0']))
"""


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_at_any_moment(data: DataSet, target: Path, script: Callable[..., Script], moment: str) -> None:
    """After SIGKILL the target does not exist, only its ``.part`` does, and the same command, run again, succeeds."""
    done = script(ENDING.format(signal=int(signal.SIGKILL), moment=MOMENTS[moment], target=str(target)), data)
    done.end()
    assert not target.exists()
    assert f"{target.name}.part" in os.listdir(target.parent)
    packed(data, target)
    assert_whole(data, target)


def test_ctrl_c(data: DataSet, target: Path, script: Callable[..., Script]) -> None:
    """Ctrl-C ends a pack with status 130, and leaves no file."""
    moment = MOMENTS["during-rows"]
    done = script(ENDING.format(signal=int(signal.SIGINT), moment=moment, target=str(target)), data)
    assert done.end() == 130
    assert done.err.strip().endswith("interrupted")
    assert os.listdir(target.parent) == []


UNWRITABLE = {
    # options of the mount that prevent writing (MS_RDONLY of mount(2) is 1), and the error
    "full": ("options='size=4k'", "No space left on device"),
    "read-only": ("flags=1", "Read-only file system"),
}


@pytest.mark.usefixtures("mounts")
@pytest.mark.parametrize("way", UNWRITABLE)
def test_full_and_read_only_disks(data: DataSet, target: Path, script: Callable[..., Script], way: str) -> None:
    """A full or read-only disk is an error without a traceback."""
    mount, said = UNWRITABLE[way]
    moment = PRIVATE + f"mount('none', {str(target.parent)!r}, 'tmpfs', {mount})"
    done = script(ENDING.format(signal=0, moment=moment, target=str(target)), data, options=())
    assert done.end() == 2, done.err
    assert said in done.err
    assert "Traceback" not in done.err


def test_a_limit_on_the_size_of_files(data: DataSet, target: Path) -> None:
    """If a limit on file sizes is exceeded, the error names ``ulimit -f``."""
    done = in_bash(f"ulimit -f 1; {sys.executable} -m shmgen pack {data.path} {target} --workers 0")
    assert done.returncode == 2
    assert "ulimit -f" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(target.parent) == []


def test_files_behind_a_url(root: Path, served: tuple[Path, int], target: Path) -> None:
    """Files behind a URL are packed."""
    _, port = served
    ids = [f"id-{number}" for number in range(8)]
    outcome = pack(Npy(f"http://127.0.0.1:{port}"), ids, str(target), workers=0)
    assert (outcome.rows, outcome.damaged) == (8, ())
    np.testing.assert_array_equal(np.load(target), [np.load(root / f"{id}.npy") for id in ids])
