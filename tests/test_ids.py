"""Ids of any kind that name a path within the folder are read, whatever they look like; errors name all others quickly."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmgen import ImageFolder, InputError, Loader, Npy, SampleError
from shmgen._samples.ids import as_lines, first_outside, id_lines, kept


def write(folder: Path, names: Sequence[object]) -> None:
    """Write files ``<folder>/<name>.npy``; all elements of the k-th are k."""
    for number, name in enumerate(names):
        file = folder / f"{name}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.full((2, 3), number, np.float32))


def read(ids: Any, labels: Any = None, **options: Any) -> list[int]:
    """The numbers of all samples in the order of ``ids``, read in batches of 2."""
    with Loader(ids, labels, 2, shuffle=False, **options) as loader:
        found = []
        for X, *y in loader:
            assert (X[:, :1, :1] == X).all()
            found += X[:, 0, 0].astype(int).tolist()
            assert not y or y[0].tolist() == found[-len(X) :]
    return found


NFC, NFD = "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}"

KINDS: dict[str, Any] = {
    # ids, as a user may pass them
    "other-white-space": ["tab\there", "line\nbreak", "\r", "\N{NO-BREAK SPACE}"],
    "unicode": [NFC, "漢字", "\N{PILE OF POO}", "\N{RIGHT-TO-LEFT MARK}x"],
    "normal-forms": [NFC, NFD, NFC.upper(), NFD.upper()],
    "undecodable": [os.fsdecode(b"\xff\xfe"), os.fsdecode(b"caf\xe9"), "plain", os.fsdecode(b"\x80/\x81")],
    "sub-folders": ["cats/001", "cats/002", "dogs/001", "dogs/deep/er/001"],
    "dots-and-slashes": ["./cats/001", "cats//002", "cats/./003", "./x"],
    "named-like-files": ["x.npy", "y.npz", "z.", "w.npy.npy"],
    "shell": ["*", "$HOME", "~", "`true`", "'", '"', "\\", "a;b", "%s", "{0}", "[0-9]"],
    "long": ["n" * 251, "d" * 255 + "/x", "\N{PILE OF POO}" * 62, "s" * 100],
    "ints": [3, -1, 10**30, 0],
    "mixed": [7, "a", b"bytes", np.str_("b")],
    "array-of-strings": np.array(["a", "long one", NFD, "cats/001"]),
    "array-of-ints": np.array([3, -1, 0, 12], np.int16),
    "range-of-steps": range(-6, 10, 4),
    "paths": [Path("a"), Path("cats/001"), Path("x y"), Path("z")],
}


def test_an_id_means_its_text(tmp_path: Path) -> None:
    """An id means its text: only the slash is special, and similar names are never mixed up."""
    for kind, given in KINDS.items():
        ids = given[: len(given) // 2 * 2]
        write(tmp_path / kind, list(ids))
        labels = {id: number for number, id in enumerate(ids.tolist() if isinstance(ids, np.ndarray) else ids)}

        assert read(ids, labels, data_dir=tmp_path / kind, workers=0) == list(range(len(ids))), kind


def test_ids_of_all_kinds_reach_workers(tmp_path: Path) -> None:
    """Two workers read a list with ids of all these kinds."""
    names = {str(id): id for kind, ids in KINDS.items() if kind != "dots-and-slashes" for id in ids if str(id).isprintable()}
    ids = list(names.values())[: len(names) // 2 * 2]
    write(tmp_path, ids)
    assert read(ids, data_dir=tmp_path, workers=2) == list(range(len(ids)))


@pytest.mark.parametrize("kind", ["relative", "with-suffix", "through-a-link"])
def test_ids_that_are_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Without a folder, ids are paths relative to the working folder at construction, with or without ``.npy``."""
    names = ["here/a", "here/b c", "there/d", "there/deep/-e"]
    write(tmp_path, names)
    (tmp_path / "link").symlink_to(tmp_path / "here")
    (tmp_path / "here/x.npy").symlink_to(tmp_path / "there/d.npy")
    ids: dict[str, Any] = {
        "relative": [f"../{name}" if "there" in name else name[5:] for name in names],
        "with-suffix": [f"{tmp_path}/{name}.npy" for name in names],
        "through-a-link": ["../link/a", "../link/b c.npy", "x", "../link/../there/deep/-e"],
    }
    monkeypatch.chdir(tmp_path / "here")
    assert read(ids[kind], data_dir=None, workers=0) == [0, 1, 2, 3]
    with Loader(ids[kind], None, 4, shuffle=False, source=Npy(None), workers=1) as loader:
        monkeypatch.chdir("/")
        assert next(iter(loader))[0][:, 0, 0].tolist() == [0, 1, 2, 3]


WAYS_OUT = ["/etc/passwd", "..", "../a", "a/..", "a/../../b", "cats/../../dogs/1", "//a", "./../a"]


def test_ids_outside_the_folder_are_refused(tmp_path: Path) -> None:
    """An id that leads out of the folder is refused, among any number of ids; the error says how to allow it."""
    inside = [f"a..b-{number}" for number in range(20_001)]
    write(tmp_path, inside[:2])
    for number, way in enumerate(WAYS_OUT):
        listed = [*inside[:-1], way]
        ids: Any = [listed, np.array(listed), [Path(id) for id in listed[-3:]]][number % 3]

        with pytest.raises(InputError) as raised:
            Loader(ids, None, 2, data_dir=tmp_path)

        assert str(raised.value) == (
            f"id '{ids[-1]}': expected one that stays in folder {tmp_path}, found a path out of it; "
            "pass data_dir=None, or Npy(None), where ids are meant as paths"
        )


def loop(folder: Path, id: str) -> None:
    (folder / f"{id}.npy").symlink_to(f"{id}.npy")


with pytest.raises(ValueError, match="embedded null") as nul:
    os.open("a\0b", os.O_RDONLY)
NUL = str(nul.value)
"""The error of this Python version for such a path: versions differ in the wording."""

HOSTILE = {
    # an id, a function that makes its file, and the error's text
    "nul": ("a\0b", None, f"expected an id that makes a path, found one that does not: {NUL}"),
    "300-characters": ("n" * 300, None, "expected a readable file, found: File name too long (errno 36)"),
    "surrogate": ("\ud800", None, "expected an id that makes a path, found one that does not"),
    "empty": ("", None, "expected a file, found none at this path"),
    "folder": ("sub/", lambda folder, _: (folder / "sub").mkdir(), "expected a file, found none at this path"),
    "loop": ("loop", loop, "expected a readable file, found: Too many levels of symbolic links (errno 40)"),
}


@pytest.mark.timeout(10)
@pytest.mark.parametrize(("id", "make", "text"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_ids_are_named(tmp_path: Path, id: str, make: Callable[[Path, str], object] | None, text: str) -> None:
    """An id that names no readable file raises an error quickly, with its path, what was expected and what was found."""
    ids = [f"id-{number}" for number in range(8)]
    write(tmp_path, ids)
    if make is not None:
        make(tmp_path, id)

    for given in ([id, *ids[1:]], np.array([*ids[:5], id, *ids[6:]])):
        with pytest.raises(SampleError) as raised:
            read(given, data_dir=tmp_path, workers=int(id == "loop"))

        assert (raised.value.id, raised.value.path) == (id, f"{tmp_path}/{id}.npy")
        assert raised.value.reason.startswith(text)
        str(raised.value).encode()  # whatever the id, the text can be printed and logged


def test_a_folder_that_links_to_itself(tmp_path: Path) -> None:
    """The error of a folder that is a link to itself says so."""
    (tmp_path / "data").symlink_to("data")
    with pytest.raises(SampleError, match=r"data/a\.npy: expected a readable file, found: Too many levels of symbolic links"):
        read(["a", "b"], data_dir=tmp_path / "data", workers=0)


MEANT = {
    # files in the folder "data", ids, and the ids that were meant
    "suffix": (["a", "b"], ["a.npy", "b.npy"], ["a", "b"]),
    "folder-prefix": (["a", "b"], ["here/data/a", "here/data/b"], ["a", "b"]),
    "leading-zeros-lost": (["0001", "0012"], [1, 12], ["0001", "0012"]),
    "zeros-lost-in-a-range": (["01", "02"], range(1, 3), ["01", "02"]),
    "extra-zeros": (["1", "12"], ["0001", "0012"], ["1", "12"]),
    "bytes": (["a", "b"], [b"a", b"b"], ["a", "b"]),
    "newline": (["a", "b"], ["a\n", "b\n"], ["a", "b"]),
    "blanks": (["a b", "c"], [" a b", "c "], ["a b", "c"]),
    "ids-from-macOS": (["\u00e9", "b"], ["e\u0301", "b"], ["\u00e9", "b"]),
    "files-from-macOS": (["e\u0301", "b"], ["\u00e9", "b"], ["e\u0301", "b"]),
}


def refused(ids: Any, labels: Any = None, **options: Any) -> str:
    """The reason in the error of the first file."""
    with pytest.raises(SampleError) as raised:
        Loader(ids, labels, 2, workers=0, **options).close()
    assert raised.value.reason.startswith("expected a file, found ")
    return raised.value.reason


@pytest.mark.parametrize(("files", "ids", "meant"), MEANT.values(), ids=MEANT)
def test_a_missing_file_suggests_similar_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], ids: Any, meant: list[str]
) -> None:
    """The error of a missing first file names the file that was probably meant; its advice corrects all ids."""
    write(tmp_path / "data", files)
    monkeypatch.chdir(tmp_path)
    reason = refused(ids, data_dir="data")
    assert f"{tmp_path}/data/{files[0]}.npy is there: pass [" in reason
    [advice] = re.findall(r"pass (\[.* for id in ids\])$", reason)
    followed = eval(advice, {"ids": list(kept(ids)), "os": os, "unicodedata": unicodedata})
    assert list(map(str, followed)) == meant
    assert read(followed, data_dir="data") == [0, 1]


def test_ids_that_are_paths_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If ids are paths from the working folder, the error advises ``data_dir=None``, which works."""
    write(tmp_path, ["train/a", "train/b", "data/c"])
    monkeypatch.chdir(tmp_path)
    for ids in (["train/a", "train/b"], ["train/a.npy", "train/b.npy"], ["data/c.npy", "train/a.npy"]):
        assert "from the working folder it is the path of a file: pass data_dir=None" in refused(ids, data_dir=Path("data"))
        assert read(ids, data_dir=None) == ([0, 1] if "train/b" in ids[1] else [2, 0])


def test_a_path_that_a_shell_would_expand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``~`` is not expanded; the error says which path was probably meant, and its advice works."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write(tmp_path, ["data/a", "data/b"])
    said = f"'~' is not replaced, and was probably meant as {tmp_path}/data: pass os.path.expanduser('~/data')"
    assert said in refused(["a", "b"], data_dir="~/data")
    assert said in refused(["a", "b"], source=Npy("~/data"))
    assert read(["a", "b"], data_dir=os.path.expanduser("~/data")) == [0, 1]
    ids = ["~/data/a", "~/data/b"]
    assert f"meant as {tmp_path}/data/a: pass os.path.expanduser('~/data/a')" in refused(ids, data_dir=None)
    assert read(list(map(os.path.expanduser, ids)), data_dir=None) == [0, 1]
    write(tmp_path, ["~/data/a", "~/data/b"])
    assert read(["a", "b"], data_dir="~/data") == [0, 1]


def test_a_missing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a missing folder names the first part that does not exist, and the content of the folder before it."""
    write(tmp_path, ["data/train/a", "data/train/b"])
    monkeypatch.chdir(tmp_path)
    said = f"there is no folder {tmp_path}/data/trian, and {tmp_path}/data has 'train': give the folder that the files are in"
    assert said in refused(["a", "b"], data_dir="data/trian")
    assert said in refused(["data/trian/a", "data/trian/b"], data_dir=None)
    assert f"there is no folder {tmp_path}/nowhere, and {tmp_path} has no .npy files, but 'data'" in refused(
        ["a", "b"], data_dir="nowhere/at/all"
    )


def test_a_missing_file_lists_what_the_folder_has(tmp_path: Path) -> None:
    """The error of a missing file names another format, the nearest name, or a few of the files that are there."""
    write(tmp_path, ["train/a", "train/b"])
    assert f"; {tmp_path} has no .npy files, but 'train'" in refused(["a", "b"], data_dir=tmp_path)
    (tmp_path / "x.png").touch()
    assert "; x.png is there: pass the source of such files" in refused(["x", "y"], data_dir=tmp_path)
    write(tmp_path, ["scan-001", "q", "r", "s"])
    assert f"; {tmp_path} has 'scan-001.npy'" in refused(["scam-001", "d"], data_dir=tmp_path)
    assert f"; {tmp_path} has 'q.npy', 'r.npy', 's.npy' and" in refused(["c", "d"], data_dir=tmp_path)
    (tmp_path / "c.npy").symlink_to("nowhere")
    assert "expected a file, found a link to 'nowhere', which does not exist" in refused(["c", "d"], data_dir=tmp_path)


NO_IDS = {
    # ids, the error's text, and the ids that its advice leads to
    "text": ("ab", r"found 'ab'; pass \[id\] for a single one", ["ab"]),
    "number": (7, "expected a list or array of ids, in an order, found one of type int; pass a list", [7]),
    "none": (None, "expected a list or array of ids, in an order, found one of type NoneType", None),
    "partition": (
        {"train": ["a", "b"], "validation": ["c"]},
        r"found a dict with 'train', 'validation'; .*\['train'\]",
        ["a", "b"],
    ),
    "image-folder": (
        ImageFolder({"train": ["a"], "validation": []}, {"a": 0}, ["x"]),
        r"found a whole ImageFolder of partition, .*found\.partition\['train'\]",
        ["a"],
    ),
    "mask": (np.array([True, False]), "found True of type bool", None),
    "pairs": ([("a", 1), ("b", 2)], r"found \('a', 1\) of type tuple", None),
}


@pytest.mark.parametrize(("ids", "text", "followed"), NO_IDS.values(), ids=NO_IDS)
def test_values_other_than_lists_of_ids_are_refused(tmp_path: Path, ids: Any, text: str, followed: Any) -> None:
    """A single id, a set, an array of other axes and the like are refused, with advice that works."""
    with pytest.raises(InputError, match=f"list_IDs: .*{text}"):
        Loader(ids, None, 1, data_dir=tmp_path)
    if followed is not None:
        write(tmp_path, list(followed))
        with Loader(followed, None, 1, data_dir=tmp_path, shuffle=False, workers=0) as loader:
            assert [int(X[0, 0, 0]) for (X,) in loader] == list(range(len(followed)))


def test_ids_written_as_lines() -> None:
    """Ids written as lines are read back unchanged; an id for which that is impossible raises an error that names it."""
    ids = ["a", " b ", "c\rd", "\x85", "caf\udce9", "x" * 4096]
    assert list(map(os.fsdecode, id_lines(as_lines(ids)))) == ids
    assert as_lines(range(2)) == b"0\n1\n"
    for wrong in ("a\nb", "a\r", "\r", "a\0", "", "\ufeffa", "x" * 4097):
        with pytest.raises(InputError, match=re.escape(f"id {wrong!r}: expected 1 to 4,096 bytes")):
            as_lines(["a", wrong])


OUTSIDE: list[tuple[Any, int, int | None]] = [
    # ids, the number of rows, and the position of an id that is no row's number
    (range(6), 5, 5),
    (range(0, 100, 7), 21, 14),
    (range(-1, 5), 5, 0),
    (range(4, -1, -1), 5, None),
    (range(4, -3, -3), 5, 2),
    (range(5), 0, 0),
    (range(10**15), 10**12, 10**15 - 1),
    ([4, 5, -1], 5, 1),
    ([0, 10**30], 5, 1),
    ([1, "1"], 2, 1),
    (np.array([3, 1, 9], np.uint8), 9, 2),
    (np.array([1 << 63, 1], np.uint64), 9, 0),
]


def test_the_first_id_without_a_row_is_found() -> None:
    """In a list or array, the first id that is no row's number is found; in a range, the first or last id."""
    for ids, count, place in OUTSIDE:
        assert first_outside(kept(ids), count) == place, ids
