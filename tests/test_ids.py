"""Ids of any kind that make a path within the folder are read, whatever they look like; all others are named, soon."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmgen import InputError, Loader, Npy, SampleError

WITHIN = 10.0
"""Seconds in which an error must be there."""

WORKERS = [pytest.param(0, id="in-process"), pytest.param(2, id="2-workers")]


def write(folder: Path, names: Sequence[object]) -> None:
    """Files ``<folder>/<name>.npy``; all elements of the k-th are k."""
    for number, name in enumerate(names):
        file = folder / f"{name}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.full((2, 3), number, np.float32))


def read(ids: Any, labels: Any = None, **options: Any) -> list[int]:
    """The numbers of all samples, in the order of ``ids``; read in batches of 2."""
    with Loader(ids, labels, 2, shuffle=False, **options) as loader:
        found = []
        for X, *y in loader:
            assert (X[:, :1, :1] == X).all()
            found += X[:, 0, 0].astype(int).tolist()
            assert not y or y[0].tolist() == found[-len(X) :]
    return found


NFC, NFD = "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}"

KINDS = {
    # ids, as a user may pass them
    "plain": ["a", "b", "c", "d"],
    "spaces": ["a b", " leading", "trailing ", "two  of them"],
    "other-white-space": ["tab\there", "line\nbreak", "\r", "\N{NO-BREAK SPACE}"],
    "unicode": [
        NFC,
        "\N{CJK UNIFIED IDEOGRAPH-6F22}\N{CJK UNIFIED IDEOGRAPH-5B57}",
        "\N{PILE OF POO}",
        "\N{RIGHT-TO-LEFT MARK}x",
    ],
    "two-forms-of-one-name": [NFC, NFD, NFC.upper(), NFD.upper()],
    "undecodable": [os.fsdecode(b"\xff\xfe"), os.fsdecode(b"caf\xe9"), "plain", os.fsdecode(b"\x80/\x81")],
    "leading-dash": ["-", "--help", "-rf", "-1"],
    "sub-folders": ["cats/001", "cats/002", "dogs/001", "dogs/deep/er/001"],
    "roundabout": ["./cats/001", "cats//002", "cats/./003", "./x"],
    "dots": ["a..b", "..c", "d..", "...", ".hidden", "e.f.g"],
    "named-like-files": ["x.npy", "y.npz", "z.", "w.npy.npy"],
    "shell": ["*", "$HOME", "~", "`true`", "'", '"', "\\", "a;b", "%s", "{0}", "[0-9]"],
    "long": ["n" * 251, "d" * 255 + "/x", "\N{PILE OF POO}" * 62, "s" * 100],
    "ints": [3, -1, 10**30, 0],
    "mixed": [7, "a", True, 2.5, None, b"bytes", (1, 2)],
    "numpy-strings": [np.str_("a"), np.str_(NFD), np.str_("cats/1"), np.str_("-")],
    "numpy-ints": [np.int64(3), np.uint8(1), np.int16(-2), np.int32(0)],
    "array-of-strings": np.array(["a", "long one", NFD, "cats/001"]),
    "array-of-objects": np.array(["a", 1, NFD, "cats/001"], object),
    "array-of-ints": np.array([3, -1, 0, 12], np.int16),
    "array-backwards": np.arange(4)[::-1],
    "range": range(4),
    "range-of-steps": range(-6, 10, 4),
    "tuple": ("a", "b"),
    "paths": [Path("a"), Path("cats/001"), Path("x y"), Path("z")],
}


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("ids", KINDS.values(), ids=KINDS)
def test_any_id_that_names_a_file_of_the_folder(tmp_path: Path, ids: Any, workers: int) -> None:
    """What counts is how an id prints: nothing in it has a meaning but the slash, and no two names are taken for one."""
    write(tmp_path, list(ids)[: len(ids) // 2 * 2])
    ids = ids[: len(ids) // 2 * 2]
    labels = {id: number for number, id in enumerate(ids.tolist() if isinstance(ids, np.ndarray) else ids)}

    assert read(ids, labels, data_dir=tmp_path, workers=workers) == list(range(len(ids)))


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("kind", ["relative", "absolute", "with-suffix", "up", "through-a-link", "paths", "array"])
def test_ids_that_are_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, workers: int) -> None:
    """Without a folder, ids are paths from where the loader was made, with or without ``.npy``, to anywhere."""
    names = ["here/a", "here/b c", "there/d", "there/deep/-e"]
    write(tmp_path, names)
    (tmp_path / "link").symlink_to(tmp_path / "here")
    (tmp_path / "here/x.npy").symlink_to(tmp_path / "there/d.npy")
    ids: dict[str, Any] = {
        "relative": [f"../{name}" if "there" in name else name[5:] for name in names],
        "absolute": [f"{tmp_path}/{name}" for name in names],
        "with-suffix": [f"{tmp_path}/{name}.npy" for name in names],
        "up": [f"../here/../{name}.npy" for name in names],
        "through-a-link": ["../link/a", "../link/b c.npy", "x", "../link/../there/deep/-e"],
        "paths": [tmp_path / f"{name}.npy" for name in names],
        "array": np.array([f"{tmp_path}/{name}" for name in names]),
    }
    monkeypatch.chdir(tmp_path / "here")
    assert read(ids[kind], data_dir=None, workers=workers) == [0, 1, 2, 3]
    with Loader(ids[kind], None, 4, shuffle=False, source=Npy(None), workers=workers) as loader:
        monkeypatch.chdir("/")
        assert next(iter(loader))[0][:, 0, 0].tolist() == [0, 1, 2, 3]


WAYS_OUT = ["/etc/passwd", "..", "../a", "a/..", "a/../../b", "cats/../../dogs/1", "//a", "../../../../etc/passwd", "./../a"]


@pytest.mark.parametrize("kind", ["list", "array", "paths"])
@pytest.mark.parametrize("way", WAYS_OUT)
def test_ids_that_lead_out_of_the_folder(tmp_path: Path, way: str, kind: str) -> None:
    """Refused before anything is read, by id and folder, with what to do where that is meant; however many ids there are."""
    inside = [f"a..b-{number}" for number in range(20_001)]
    write(tmp_path, inside[:2])
    ids: Any = [*inside[:-1], way]
    if kind == "array":
        ids = np.array(ids)
    elif kind == "paths":
        ids = [Path(id) for id in ids[-3:]]

    with pytest.raises(InputError) as raised:
        Loader(ids, None, 2, data_dir=tmp_path)

    assert str(raised.value) == (
        f"id '{ids[-1]}': expected one that stays in folder {tmp_path}, found a path out of it; "
        "pass data_dir=None, or Npy(None), where ids are meant as paths"
    )


def header(shape: str) -> bytes:
    """An .npy file of this shape, as its header says, and 24 bytes of data."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(24)


def shaped(shape: str) -> Callable[[Path, str], object]:
    """Writes a file of this shape, as its header says."""
    return lambda folder, id: (folder / f"{id}.npy").write_bytes(header(shape))


def loop(folder: Path, id: str) -> None:
    (folder / f"{id}.npy").symlink_to(f"{id}.npy")


def long_loop(folder: Path, id: str) -> None:
    for number in range(50):
        (folder / f"link-{number}.npy").symlink_to(f"link-{number + 1}.npy")
    (folder / f"{id}.npy").symlink_to("link-0.npy")


with pytest.raises(ValueError, match="embedded null") as nul:
    os.open("a\0b", os.O_RDONLY)
NUL = str(nul.value)
"""What this Python says of such a path: the words are not the same in all."""

HOSTILE = {
    # an id, and what makes the file that it names -> what the error says
    "nul": ("a\0b", None, f"expected an id that makes a path, found one that does not: {NUL}"),
    "nul-in-front": ("\0a", None, f"expected an id that makes a path, found one that does not: {NUL}"),
    "300-characters": ("n" * 300, None, "expected a readable file, found: File name too long (errno 36)"),
    "5000-characters": ("n/" * 2500, None, "expected a readable file, found: File name too long (errno 36)"),
    "surrogate": ("\ud800", None, "expected an id that makes a path, found one that does not"),
    "empty": ("", None, "expected a file, found none at this path"),
    "folder": ("sub/", lambda folder, _: (folder / "sub").mkdir(), "expected a file, found none at this path"),
    "file-as-a-folder": ("id-3.npy/x", None, "expected a readable file, found: Not a directory (errno 20)"),
    "loop": ("loop", loop, "expected a readable file, found: Too many levels of symbolic links (errno 40)"),
    "long-loop": ("far", long_loop, "expected a readable file, found: Too many levels of symbolic links (errno 40)"),
    "dangling": ("gone", lambda f, id: (f / f"{id}.npy").symlink_to("nowhere"), "expected a file, found none at this path"),
    "device": ("null", lambda f, id: (f / f"{id}.npy").symlink_to("/dev/null"), "expected an .npy file, found an empty one"),
    "zeros": (
        "zero",
        lambda f, id: (f / f"{id}.npy").symlink_to("/dev/zero"),
        "expected an .npy file, found one that begins with",
    ),
    "huge": ("x", shaped("(9999999999, 9999999999)"), "expected "),
    "huge-to-numpy": ("x", shaped("(99999999999999999999, 3)"), "expected "),
    "huge-and-empty": ("x", shaped("(9999999999, 0)"), "expected "),
    "negative": (
        "x",
        shaped("(-2, 3)"),
        "expected a shape of sizes from 0, found (-2, 3)",
    ),
    "negative-twice": ("x", shaped("(-2, -3)"), "expected a shape of sizes from 0"),
    "many-axes": ("x", shaped(f"({'1, ' * 70}6)"), "expected "),
}


@pytest.mark.timeout(WITHIN)
@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize(("position", "array"), [(0, False), (5, True)], ids=["first-of-a-list", "later-in-an-array"])
@pytest.mark.parametrize(("id", "make", "text"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_ids_are_named(
    tmp_path: Path, id: str, make: Callable[[Path, str], object] | None, text: str, position: int, array: bool, workers: int
) -> None:
    """An id that no file can be read by, wherever it stands: soon, with its path, what was expected and what was found."""
    ids = [f"id-{number}" for number in range(8)]
    write(tmp_path, ids)
    if make is not None:
        make(tmp_path, id)
    ids[position] = id

    with pytest.raises(SampleError) as raised:
        read(np.array(ids) if array else ids, data_dir=tmp_path, workers=workers)

    assert (raised.value.id, raised.value.path) == (id, f"{tmp_path}/{id}.npy")
    assert raised.value.reason.startswith(text)
    str(raised.value).encode()  # whatever the id, the text can be printed, and logged


@pytest.mark.parametrize("workers", WORKERS)
def test_a_folder_that_is_a_loop(tmp_path: Path, workers: int) -> None:
    """A symlink loop in the folder's own path is named with it."""
    (tmp_path / "data").symlink_to("data")
    with pytest.raises(SampleError, match=r"data/a\.npy: expected a readable file, found: Too many levels of symbolic links"):
        read(["a", "b"], data_dir=tmp_path / "data", workers=workers)
