"""``shmgen pack``: a folder becomes one file, whole or not at all, whatever happens on the way."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conftest import DataSet, Script
from test_memory import PRIVATE, mounts  # noqa: F401 # a fixture
from test_scan import npy, put, run

from shmgen import InputError, Loader, NpyRows
from shmgen._samples.sample_spec import RowSpec, SampleSpec
from shmgen._tools import pack as pack_module
from shmgen._tools.pack import Pack
from shmgen._tools.packed import RECORD, Outcome, Paths, Progress
from shmgen._tools.scan import Scan

N = 40
BATCH = 4
SHAPE = (4, 3)


@pytest.fixture
def data(folder: Callable[..., DataSet]) -> DataSet:
    """Files ``id-0`` to ``id-39``."""
    return folder(N)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The file to be made, beside which nothing else is."""
    (tmp_path / "packed").mkdir()
    return tmp_path / "packed" / "all.npy"


def packed(data: DataSet, target: Path, progress: Any = None, **options: Any) -> Outcome:
    """What came of a pack of all files, in this process."""
    scan = Scan(data.path, workers=1)
    scan.run()
    row = scan.report().expected
    assert row is not None
    pack = Pack(str(data.path), str(target), sorted(scan.whole()), SampleSpec(), row, workers=1, **options)
    return pack.run(progress) if progress else pack.run()


def pack(*words: object, **options: Any) -> dict[str, Any]:
    """What the command says as JSON, with its exit status."""
    done = run("pack", *words, "--json", **options)
    assert done.stderr == "" or done.returncode == 2, done.stderr
    return {"status": done.returncode, "error": done.stderr, **(json.loads(done.stdout) if done.stdout else {})}


def order(data: DataSet) -> list[str]:
    """The ids, in the order of the rows."""
    return sorted(data.ids)


def rows_of(data: DataSet) -> np.ndarray:
    """What the rows should hold."""
    return np.stack([np.load(data.file(id)) for id in order(data)])


def assert_whole(data: DataSet, target: Path) -> None:
    """Assert that all is there, and nothing else."""
    assert sorted(os.listdir(target.parent)) == ["all.ids", "all.npy", "all.sums"]
    expected = rows_of(data)
    found = np.load(target)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)
    assert target.with_suffix(".ids").read_text().splitlines() == order(data)
    assert len(np.load(target.with_suffix(".sums"))) == len(data.ids)


def assert_nothing(target: Path) -> None:
    """Assert that nothing has the name of something that is whole."""
    assert not target.exists()
    assert all(name.endswith(".part") for name in os.listdir(target.parent) if name not in ("all.ids", "all.sums"))


def test_a_folder_becomes_one_file(data: DataSet, target: Path) -> None:
    """Its rows, its ids and checksums; that it is what `NpyRows` reads, with texts as ids, is seen from every row."""
    outcome = pack(data.path, target)
    assert (outcome["status"], outcome["rows"], outcome["written"], outcome["damaged"]) == (0, N, N, [])
    assert_whole(data, target)
    source = NpyRows(target, ids=target.with_suffix(".ids"))
    with Loader(data.ids, data.labels, 8, source=source, workers=1) as loader:
        assert sorted(label for X, y in loader for label in data.check(X, y)) == list(range(N))


def test_what_it_says(data: DataSet, target: Path) -> None:
    """A line with what was made; a second run says that it is there, and changes nothing."""
    first = run("pack", data.path, target)
    assert (first.returncode, first.stderr) == (0, "")
    assert f"{target}: {N} rows of shape (4, 3), float32, 1.9 kB, in " in first.stdout
    before = os.stat(target)
    second = run("pack", data.path, target)
    assert second.returncode == 0
    assert "it was there already, and holds these files as they are" in second.stdout
    after = os.stat(target)
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_checksums_are_of_the_rows(data: DataSet, target: Path) -> None:
    """Anyone can look them up: an array of CRC-32."""
    import zlib

    packed(data, target)
    sums = np.load(target.with_suffix(".sums"))
    assert sums.dtype == RECORD
    assert sums["crc32"].tolist() == [zlib.crc32(row.tobytes()) for row in rows_of(data)]


# What files may be.


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3, 4), (1, 1)])
@pytest.mark.parametrize("dtype", ["u1", ">f4", "f8", "c8", "?", "<f2"])
def test_shapes_and_dtypes(folder: Callable[..., DataSet], target: Path, shape: tuple[int, ...], dtype: str) -> None:
    """Rows have the files' shape, and their dtype in native byte order."""
    data = folder(5, shape, dtype)
    packed(data, target)
    found = np.load(target)
    assert found.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(found, rows_of(data))


def test_files_are_cast_as_a_loader_casts_them(data: DataSet, target: Path) -> None:
    """Fortran order, another byte order, another precision: the row is the same, and what most files are."""
    rows = np.arange(N * 12, dtype="f4").reshape(N, 4, 3)
    kinds: list[Callable] = [np.asarray, np.asfortranarray, lambda a: a.astype(">f4"), lambda a: a.astype("f8"), np.asarray]
    for number, id in enumerate(order(data)):
        np.save(data.file(id), kinds[number % 5](rows[number]))
    outcome = pack(data.path, target)
    assert outcome["status"] == 0
    np.testing.assert_array_equal(np.load(target), rows)
    assert np.load(target).dtype == np.float32
    assert any("float32" in remark for remark in outcome["remarks"])


def test_given_dim_and_dtype(data: DataSet, target: Path) -> None:
    """What the loader would be told is told to the command: one channel, and another precision."""
    assert pack(data.path, target, "--dim", "4,3", "--n-channels", 1, "--dtype", "float64")["status"] == 0
    found = np.load(target)
    assert (found.shape, found.dtype) == ((N, 4, 3, 1), np.float64)
    np.testing.assert_array_equal(found[..., 0], rows_of(data))


def test_ml_dtypes(data: DataSet, target: Path) -> None:
    """As `numpy.save` writes them, so that `NpyRows` reads them with the same dtype."""
    for number, id in enumerate(order(data)):
        np.save(data.file(id), np.full(SHAPE, number).astype(ml_dtypes.bfloat16))
    assert pack(data.path, target, "--dtype", "bfloat16")["status"] == 0
    source = NpyRows(target, "bfloat16", ids=target.with_suffix(".ids"))
    with Loader(order(data), None, N, source=source, shuffle=False, workers=0) as loader:
        (X,) = loader.batch(0)
    assert X.dtype == ml_dtypes.bfloat16
    assert X[:, 0, 0].tolist() == list(range(N))


STRANGE = [
    *(
        "a b",
        "ä/ö",
        "sub/sub/x",
        "'",
        '"',
        "\t",
        "a\\b",
        "back\\n",
        "\x0b",
        "\x85",
        "\u2028",
        "é",
        "e\u0301",
        "\U0001f600",
        "-",
        "..x",
    ),
    *("1.npy", "caf\udce9", "x" * 200, "#", "%20", "end\r/x"),
]


def test_strange_ids(tmp_path: Path, target: Path) -> None:
    """Whatever a file may be called, bytes that are no text included, it is an id, and finds its row again."""
    for number, id in enumerate(STRANGE):
        put(tmp_path / "data" / f"{id}.npy", npy(np.full(3, number)))
    assert pack(tmp_path / "data", target)["status"] == 0
    with Loader(
        STRANGE, None, len(STRANGE), source=NpyRows(target, ids=target.with_suffix(".ids")), shuffle=False, workers=1
    ) as loader:
        assert loader.batch(0)[0][:, 0].tolist() == list(range(len(STRANGE)))


UNWRITABLE = ["a\nb", "a\r", "", "sub/x\n", "\ufeffa"]


def test_ids_that_fit_on_no_line_are_named(data: DataSet, target: Path) -> None:
    """All of them, with what to do; nothing is written."""
    for id in UNWRITABLE:
        put(data.path / f"{id}.npy", npy(np.zeros(SHAPE, "f4")))
    outcome = pack(data.path, target)
    assert outcome["status"] == 1
    assert {damage["id"] for damage in outcome["damaged"]} == set(UNWRITABLE)
    assert all("rename the file" in damage["reason"] for damage in outcome["damaged"])
    assert os.listdir(target.parent) == []


def test_links_and_sub_folders(data: DataSet, target: Path, tmp_path: Path) -> None:
    """Links to files and folders are followed, as the scan does; a folder that holds itself ends."""
    put(tmp_path / "else" / "far.npy", npy(np.full(SHAPE, 7, "f4")))
    (data.path / "link.npy").symlink_to(data.file("id-3"))
    (data.path / "linked").symlink_to(tmp_path / "else")
    (data.path / "loop").symlink_to(data.path)
    outcome = pack(data.path, target)
    assert (outcome["status"], outcome["rows"]) == (0, N + 2)
    found = dict(zip(target.with_suffix(".ids").read_text().splitlines(), np.load(target), strict=True))
    np.testing.assert_array_equal(found["link"], data.sample(3))
    assert (found["linked/far"] == 7).all()


def test_the_files_of_some_ids(data: DataSet, target: Path, tmp_path: Path) -> None:
    """In the order in which they are given."""
    some = ["id-7", "id-30", "id-2"]
    (tmp_path / "some").write_text("\n".join(some))
    assert pack(data.path, target, "--ids", tmp_path / "some")["status"] == 0
    assert target.with_suffix(".ids").read_text().split() == some
    np.testing.assert_array_equal(np.load(target), [data.sample(7), data.sample(30), data.sample(2)])


def test_an_id_twice_is_named(data: DataSet, target: Path, tmp_path: Path) -> None:
    """There would be two rows for it."""
    (tmp_path / "some").write_text("id-1\nid-2\nid-1\n")
    outcome = pack(data.path, target, "--ids", tmp_path / "some")
    assert outcome["status"] == 1
    assert [(damage["id"], damage["reason"]) for damage in outcome["damaged"]] == [
        ("id-1", "expected each id once, found it several times")
    ]


# What is damaged.


def test_damaged_files_are_named_and_nothing_is_packed(data: DataSet, target: Path) -> None:
    """All of them, as the scan names them, in a table or as JSON; then the files that are left can be packed."""
    np.save(data.file("id-3"), np.zeros((4, 4), "f4"))
    np.save(data.file("id-4"), np.zeros((4, 3), "c8"))
    os.truncate(data.file("id-5"), 150)
    data.file("id-6").write_bytes(b"")
    np.save(data.file("id-8"), np.zeros((0, 3), "f4"))
    bad = {"id-3", "id-4", "id-5", "id-6", "id-8"}
    outcome = pack(data.path, target)
    assert outcome["status"] == 1
    assert {damage["id"] for damage in outcome["damaged"]} == bad
    table = run("pack", data.path, target)
    assert table.returncode == 1
    for said in (
        "expected shape (4, 3), found (4, 4)",
        "complex64",
        "expected 176 bytes, found 150",
        f"{target}: not packed: mend the files, or leave them out with --ids",
        *bad,
    ):
        assert said in table.stdout
    assert os.listdir(target.parent) == []


def test_a_sub_folder_that_cannot_be_listed_is_damage(data: DataSet, target: Path) -> None:
    """Its files would be left out in silence."""
    (data.path / "sub").symlink_to("sub")
    outcome = pack(data.path, target)
    assert outcome["status"] == 1
    assert [damage["id"] for damage in outcome["damaged"]] == ["sub"]


@pytest.mark.parametrize("number", [0, 1, N - 1])
def test_a_file_that_breaks_between_scan_and_read(data: DataSet, target: Path, number: int) -> None:
    """It is named, all others are written, and once it is mended, it alone is read."""
    id = order(data)[number]
    scan = Scan(data.path, workers=1)
    scan.run()
    whole = data.file(id).read_bytes()
    os.truncate(data.file(id), 150)
    row = RowSpec(SHAPE, SHAPE, "<f4")
    outcome = Pack(str(data.path), str(target), sorted(scan.whole()), SampleSpec(), row, workers=1).run()
    assert [(damage.id, damage.path) for damage in outcome.damaged] == [(id, str(data.file(id)))]
    assert "truncated" in outcome.damaged[0].reason
    assert outcome.written == N - 1
    assert_nothing(target)
    data.file(id).write_bytes(whole)
    assert pack(data.path, target)["written"] == 1
    assert_whole(data, target)


def test_no_more_files_are_tried_once_the_disk_fails(data: DataSet, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If everything fails, it ends, and says so."""
    monkeypatch.setattr(pack_module, "MAX_DAMAGED", 5)
    names = sorted(os.fsencode(id) for id in data.ids)
    for id in data.ids:
        data.file(id).unlink()
    outcome = Pack(str(data.path), str(target), names, SampleSpec(), RowSpec(SHAPE, SHAPE, "<f4"), workers=1).run()
    assert len(outcome.damaged) == 5
    assert outcome.written == 0
    assert_nothing(target)


# A target that is there.


def test_another_target_is_left_alone(data: DataSet, target: Path) -> None:
    """A file of the name, ids of the name, or a pack of what the files were once: nothing of it is touched."""
    os.mkfifo(target)
    assert "expected no file there" in pack(data.path, target)["error"]
    target.unlink()
    for name, text in (("all.npy", "of others"), ("all.ids", "one\ntwo\n")):
        (target.parent / name).write_text(text)
        outcome = pack(data.path, target)
        assert outcome["status"] == 2
        assert "expected no file there" in outcome["error"]
        assert os.listdir(target.parent) == [name]
        assert (target.parent / name).read_text() == text
        (target.parent / name).unlink()


def test_a_pack_of_files_that_have_changed_is_left_alone(data: DataSet, target: Path) -> None:
    """It says how many, and one of them; with one file more it says that the ids are others."""
    packed(data, target)
    before = target.read_bytes()
    np.save(data.file("id-7"), np.ones(SHAPE, "f4"))
    outcome = pack(data.path, target)
    assert outcome["status"] == 2
    assert "1 of the 40 files have changed since, such as 'id-7'; remove it, or give another name" in outcome["error"]
    np.save(data.file("more"), np.ones(SHAPE, "f4"))
    assert "found one that does not hold as many rows" in pack(data.path, target)["error"]
    assert target.read_bytes() == before


def test_a_link_is_there_too(data: DataSet, target: Path) -> None:
    """Also one that leads nowhere: it is not replaced."""
    target.symlink_to("nowhere")
    assert pack(data.path, target)["status"] == 2
    assert os.readlink(target) == "nowhere"


def test_ids_that_are_there_already(data: DataSet, target: Path) -> None:
    """The list of ids may have the name that the ids get, as long as it is the same."""
    ids = target.with_suffix(".ids")
    ids.write_text("".join(f"{id}\n" for id in data.ids))
    assert pack(data.path, target, "--ids", ids)["status"] == 0
    assert ids.read_text().split() == data.ids


@pytest.mark.parametrize("name", ["all", "all.npz", ".npy"])
def test_names_that_are_refused(data: DataSet, target: Path, name: str) -> None:
    """A loader would take no other for rows."""
    outcome = pack(data.path, f"{target.parent}/{name}")
    assert outcome["status"] == 2
    assert "expected the name of a file that ends in .npy" in outcome["error"]


def test_places_that_are_refused(data: DataSet, target: Path) -> None:
    """Inside the folder, also by way of a link, it would be a sample; and a folder is not made by accident."""
    (target.parent / "link").symlink_to(data.path)
    for place in (data.path / "all.npy", target.parent / "link" / "all.npy"):
        assert "expected a place outside of" in pack(data.path, place)["error"]
    assert "expected a folder that is there" in pack(data.path, target.parent / "no" / "all.npy")["error"]
    assert pack(data.path / "no", target)["status"] == 2
    assert os.listdir(target.parent) == ["link"]


# A kill, and again.

MOMENTS = {
    # What kills it, in place of which function of the module or class.
    "before-anything": "at(pack, 'locked', 1, before=True)",
    "while-it-begins": "at(packed, 'write', 2, before=False)",
    "before-the-first-row": "at(packed.Rows, 'write', 1, before=True)",
    "amid-rows": "half(packed.Rows, 'write', 3)",
    "between-rows-and-sums": "at(packed.Rows, 'write', 4, before=False)",
    "after-some": "at(pack.Pack, '_write', 5, before=False)",
    "after-the-last": "at(pack.Pack, '_write', 10, before=False)",
    "before-the-names": "at(os, 'rename', 1, before=True)",
    "after-the-first-name": "at(os, 'rename', 1, before=False)",
    "after-the-second-name": "at(os, 'rename', 2, before=False)",
    "after-the-last-name": "at(os, 'rename', 3, before=False)",
}

KILLING = f"""
from shmgen._tools import cli, pack, packed
pack.BATCH_BYTES = {BATCH * 48}

def at(where, name, count, before, end=lambda: os.kill(os.getpid(), signal.SIGKILL)):
    '''End at a call of a function.'''
    function = getattr(where, name)
    def counted(*args, **kwargs):
        nonlocal count
        count -= 1
        if not count and before:
            end()
        result = function(*args, **kwargs)
        if not count and not before:
            end()
        return result
    setattr(where, name, counted)
    if where is packed and hasattr(pack, name):
        setattr(pack, name, counted)

def half(where, name, count):
    '''End when a function has done half of what it should.'''
    function = getattr(where, name)
    def counted(self, number, data):
        nonlocal count
        count -= 1
        if not count:
            function(self, number, data[:len(data) // 2 + 5])
            os.kill(os.getpid(), signal.SIGKILL)
        function(self, number, data)
    setattr(where, name, counted)

"""

PACK = "\nsys.exit(cli.main(['pack', DATA, {target!r}, '--workers', '1', *{more!r}]))\n"


def killed(script: Callable[..., Script], data: DataSet, target: Path, moment: str, *more: str) -> Script:
    """A pack that a moment ends."""
    done = script(KILLING + moment + PACK.format(target=str(target), more=more), data)
    done.end()
    return done


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_a_kill_at_any_moment(data: DataSet, target: Path, script: Callable[..., Script], moment: str) -> None:
    """Nothing half-written has its name; the same command, run again, writes only what was not written, and all is right."""
    first = killed(script, data, target, moment)
    assert first.process.returncode == -9, first.err
    whole = moment == MOMENTS["after-the-last-name"]
    if not whole:
        assert_nothing(target)
    kept = {"amid-rows": 2, "between-rows-and-sums": 3, "after-some": 5}
    rows = BATCH * kept.get(
        next(name for name in MOMENTS if MOMENTS[name] == moment), 10 if "rename" in moment or "10" in moment else 0
    )
    outcome = pack(data.path, target)
    assert (outcome["status"], outcome["written"]) == (0, N - rows)
    assert_whole(data, target)


def test_killed_again_and_again(data: DataSet, target: Path, script: Callable[..., Script]) -> None:
    """Each run takes the pack some rows further."""
    for number in range(1, 4):
        assert killed(script, data, target, "at(pack.Pack, '_write', 2, before=False)").process.returncode == -9
        sums = np.load(f"{target.with_suffix('.sums')}.part")
        assert np.count_nonzero(sums["version"]) == 2 * number * BATCH
    assert pack(data.path, target)["written"] == N - 6 * BATCH
    assert_whole(data, target)


AFTER_SOME = MOMENTS["after-some"]


def test_a_source_that_changes_between_two_runs(data: DataSet, target: Path, script: Callable[..., Script]) -> None:
    """A file that was packed and has changed since is read again, and so is the pack begun anew where there are other files."""
    killed(script, data, target, AFTER_SOME)
    changed = order(data)[1]
    np.save(data.file(changed), np.full(SHAPE, -1, "f4"))
    assert pack(data.path, target)["written"] == N - 5 * BATCH + 1
    assert_whole(data, target)


def test_a_file_replaced_by_one_of_the_same_size_and_time(data: DataSet, target: Path, script: Callable[..., Script]) -> None:
    """Copied over with its old time of modification, it is another file even so."""
    killed(script, data, target, AFTER_SOME)
    path = data.file(order(data)[1])
    before = os.stat(path)
    np.save(path, np.full(SHAPE, -1, "f4"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert pack(data.path, target)["written"] == N - 5 * BATCH + 1
    assert_whole(data, target)


@pytest.mark.parametrize("change", ["one-more", "one-less", "another-shape"])
def test_other_files_in_the_second_run(data: DataSet, target: Path, script: Callable[..., Script], change: str) -> None:
    """All is begun anew, and that is said."""
    killed(script, data, target, AFTER_SOME)
    ids = list(data.ids)
    if change == "one-more":
        np.save(data.file("id-00"), np.full(SHAPE, 5, "f4"))
        ids.append("id-00")
    elif change == "one-less":
        data.file(ids.pop()).unlink()
    else:
        for number, id in enumerate(ids):
            np.save(data.file(id), np.full((5, 3), number, "f4"))
    outcome = pack(data.path, target)
    assert outcome["written"] == len(ids)
    assert any("begun anew" in remark for remark in outcome["remarks"])
    assert_whole(DataSet(data.path, ids, {}, data.shape, data.dtype), target)


DAMAGE: dict[str, tuple[Callable[[Path], object], int]] = {
    # What becomes of the parts -> how many of the 20 rows that were there must be written again.
    "truncated-rows": (lambda target: os.truncate(f"{target}.part", 128 + 48 * 7 + 1), 13),
    "truncated-to-nothing": (lambda target: os.truncate(f"{target}.part", 0), 20),
    "a-row-overwritten": (lambda target: overwrite(f"{target}.part", 128 + 48 * 3 + 5, b"\xff"), 1),
    "header-overwritten": (lambda target: overwrite(f"{target}.part", 20, b"\xff"), 20),
    "no-sums": (lambda target: os.unlink(f"{target.with_suffix('.sums')}.part"), 20),
    "truncated-sums": (lambda target: os.truncate(f"{target.with_suffix('.sums')}.part", 200), 20),
    "no-ids": (lambda target: os.unlink(f"{target.with_suffix('.ids')}.part"), 20),
    "no-rows": (lambda target: os.unlink(f"{target}.part"), 20),
}


def overwrite(path: str, place: int, data: bytes) -> None:
    """Write bytes into a file."""
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(data)


@pytest.mark.parametrize("damage", DAMAGE)
def test_parts_that_are_damaged_between_two_runs(data: DataSet, target: Path, script: Callable[..., Script], damage: str) -> None:
    """What is left of the first run is not taken on trust: rows that do not have their checksum are written again."""
    killed(script, data, target, AFTER_SOME)
    harm, again = DAMAGE[damage]
    harm(target)
    outcome = pack(data.path, target)
    assert (outcome["status"], outcome["written"]) == (0, N - 5 * BATCH + again)
    assert_whole(data, target)


def test_a_file_that_is_written_to_while_it_is_packed(data: DataSet, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read again, until it stands still; one that never does is named."""
    path = data.file(order(data)[0])
    write = Pack._write
    changes = iter([np.full(SHAPE, -1, "f4")])

    def change(self: Pack, *args: Any) -> None:
        write(self, *args)
        for array in changes:
            np.save(path, array)
            return

    monkeypatch.setattr(Pack, "_write", change)
    assert packed(data, target).written == N + 1
    assert_whole(data, target)
    for name in os.listdir(target.parent):
        (target.parent / name).unlink()
    changes = iter(np.full(SHAPE, -number, "f4") for number in range(1000))
    outcome = packed(data, target)
    assert [damage.id for damage in outcome.damaged] == [order(data)[0]]
    assert "expected a file that does not change" in outcome.damaged[0].reason
    assert_nothing(target)


# Interrupted; two at once; disks.


def test_ctrl_c(data: DataSet, target: Path, script: Callable[..., Script]) -> None:
    """It ends with what is written, says where that is, and goes on there."""
    interrupt = "at(pack.Pack, '_write', 5, False, lambda: os.kill(os.getpid(), signal.SIGINT))"
    done = killed(script, data, target, interrupt)
    assert done.process.returncode == 130
    assert f"pack: {5 * BATCH} of {N} rows are in {target}.part; the same command goes on there\n" in done.err
    assert done.err.endswith("pack: interrupted\n")
    assert "Traceback" not in done.err
    assert_nothing(target)
    assert pack(data.path, target)["written"] == N - 5 * BATCH
    assert_whole(data, target)


def test_two_packs_at_once(data: DataSet, target: Path, until: Callable[..., None], script: Callable[..., Script]) -> None:
    """The second says that there is another; it may have another target; once the first is done, there is nothing to do."""
    code = (
        KILLING
        + "at(pack.Pack, '_write', 2, False, lambda: (say('there'), sys.stdin.read(), signal.sigwait([signal.SIGUSR1])))\n"
    )
    block = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n"
    first = script(block + code + PACK.format(target=str(target), more=[]), data)
    first.until("there")
    second = pack(data.path, target)
    assert second["status"] == 2
    assert f"{target}.part: another pack is writing it" in second["error"]
    assert pack(data.path, target.with_name("other.npy"))["status"] == 0
    os.kill(first.process.pid, 10)
    assert first.end() == 0
    for name in ("other.npy", "other.ids", "other.sums"):
        (target.parent / name).unlink()
    assert_whole(data, target)
    assert pack(data.path, target)["written"] == 0


def test_too_little_disk_is_said_before(data: DataSet, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With how much is needed; nothing is left. What is written already is not needed once more."""
    system = os.statvfs(target.parent)
    free = 1000

    class Little:
        f_frsize, f_files, f_favail = 1, 0, 0

        @property
        def f_bavail(self) -> int:
            return free

    monkeypatch.setattr(os, "statvfs", lambda path: Little())
    with pytest.raises(InputError, match=r"expected [\d,]+ bytes of free disk, found 1,000; make room for [\d,]+ more"):
        packed(data, target)
    assert os.listdir(target.parent) == []
    assert system.f_bavail
    free = 1 << 20
    packed(data, target)
    assert_whole(data, target)


def test_a_limit_on_the_size_of_files_is_said_before(data: DataSet, target: Path) -> None:
    """As `ulimit -f` sets it, which else would end the process."""
    limited = ["bash", "-c", 'ulimit -f 1; exec "$@"', "-", sys.executable, "-m", "shmgen"]
    done = run("pack", data.path, target, command=limited)
    assert done.returncode == 2
    assert "files may have 1,024; raise the limit (ulimit -f)" in done.stderr
    assert os.listdir(target.parent) == []


FULL = (
    PRIVATE
    + """
from pathlib import Path
target = Path({target!r})
mount("none", str(target.parent), "tmpfs", options="size=64k")
pack.BATCH_BYTES = 4 * 4096
write, calls = packed.Rows.write, []

def filling(self, number, data):
    calls.append(number)
    if len(calls) == 3:
        with open(target.parent / "others", "wb") as file:
            try:
                while True:
                    file.write(bytes(1024))
                    file.flush()
            except OSError:
                pass
    write(self, number, data)

packed.Rows.write = filling
words = ["pack", DATA, str(target), "--workers", "1"]
assert cli.main(words) == 2
say("full")
assert sorted(os.listdir(target.parent)) == ["all.ids.part", "all.npy.part", "all.sums.part", "others"]
assert cli.main(words) == 2  # it is full still
os.unlink(target.parent / "others")
packed.Rows.write = write
assert cli.main(words) == 0
expected = np.stack([np.load(os.path.join(DATA, name)) for name in sorted(os.listdir(DATA))])
assert np.array_equal(np.load(target), expected)
assert sorted(os.listdir(target.parent)) == ["all.ids", "all.npy", "all.sums"]
"""
)


@pytest.mark.usefixtures("mounts")
def test_a_disk_that_fills_up(folder: Callable[..., DataSet], target: Path, script: Callable[..., Script]) -> None:
    """It says so, and keeps what is written; once there is room, the same command goes on there."""
    data = folder(12, (1024,))
    done = script(KILLING + FULL.format(target=str(target)), data, options=())
    assert done.end() == 0, done.err
    assert "No space left on device (errno 28); the disk is full: make room" in done.err
    assert "pack: 8 of 12 rows are in" in done.err
    assert "4 rows" not in done.err
    assert "8 of which were there already" in done.out


READ_ONLY = (
    PRIVATE
    + """
mount("none", {place!r}, "tmpfs", flags=READ_ONLY)
sys.exit(cli.main(["pack", DATA, {target!r}, "--workers", "1"]))
"""
)


@pytest.mark.usefixtures("mounts")
def test_a_place_that_cannot_be_written_to(data: DataSet, target: Path, script: Callable[..., Script]) -> None:
    """It is an error, and no traceback."""
    done = script(KILLING + READ_ONLY.format(place=str(target.parent), target=str(target)), data, options=())
    assert done.end() == 2
    assert (
        f"{target}.part: expected to write, found: Read-only file system (errno 30); give a place that can be written to"
        in done.err
    )
    assert "Traceback" not in done.err


# --full


def test_full_reads_all_back(data: DataSet, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte that came out otherwise than it went in is found, its row is named, and the next run writes that alone."""
    write = Pack._write

    def harmed(self: Pack, numbers: np.ndarray, rows: memoryview) -> None:
        write(self, numbers, rows)
        if 7 in numbers:
            os.pwrite(self._rows.fd, b"\xff", 128 + 7 * 48)

    monkeypatch.setattr(Pack, "_write", harmed)
    outcome = packed(data, target, full=True)
    assert [damage.id for damage in outcome.damaged] == [order(data)[7]]
    assert f"expected row 7 of {target} as it was written, found other bytes" in outcome.damaged[0].reason
    assert_nothing(target)
    monkeypatch.undo()
    assert packed(data, target, full=True).written == 1
    assert_whole(data, target)


def test_full_of_a_target_that_is_there(data: DataSet, target: Path) -> None:
    """Nothing is written; what the disk has changed since is named, and the status says so."""
    assert pack(data.path, target, "--full")["status"] == 0
    outcome = pack(data.path, target, "--full")
    assert (outcome["status"], outcome["written"], outcome["damaged"]) == (0, 0, [])
    overwrite(str(target), 128 + 48 * 30, b"\xff")
    outcome = pack(data.path, target, "--full")
    assert (outcome["status"], [damage["id"] for damage in outcome["damaged"]]) == (1, [order(data)[30]])
    os.truncate(target, 128 + 48 * 20 + 1)
    for option in ([], ["--full"]):
        outcome = pack(data.path, target, *option)
        assert outcome["status"] == 2
        assert "found one of 1,089 bytes in place of 2,048: it is truncated; remove it" in outcome["error"]


def test_progress(data: DataSet, target: Path) -> None:
    """Rows that are written, and then read back, up to all of them; each look is at no fewer than the one before."""
    seen: list[Progress] = []
    packed(data, target, seen.append, full=True)
    for doing in ("written", "checked"):
        rows = [progress.rows for progress in seen if progress.doing == doing]
        assert rows == sorted(rows)
        assert rows[-1] == N
    assert seen[-1] == Progress("checked", N, N, N * 48)


def test_files_behind_a_url(root: Path, served: tuple[Path, int], target: Path, tmp_path: Path) -> None:
    """They are got, many at a time, and never written where they are."""
    (tmp_path / "ids").write_text("".join(f"id-{number}\n" for number in range(24)))
    outcome = pack(f"http://127.0.0.1:{served[1]}", target, "--ids", tmp_path / "ids")
    assert (outcome["status"], outcome["written"]) == (0, 24)
    np.testing.assert_array_equal(np.load(target), np.load(root / "all.npy"))
    assert pack(f"http://127.0.0.1:{served[1]}", target, "--ids", tmp_path / "ids")["written"] == 0


def test_paths() -> None:
    """The three files, and what they are while they are written."""
    assert Paths.of("a/b.npy") == ("a/b.npy", "a/b.ids", "a/b.sums")
    assert Paths.of("a/b.npy").parts.sums == "a/b.sums.part"
