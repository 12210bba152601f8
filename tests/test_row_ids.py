"""`NpyRows` with ids: text ids find their own rows, and take no more memory than numbers."""

from __future__ import annotations

import os
import pickle
import random
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ways import part_of

from shmgen import InputError, Loader, Npy, NpyRows, SampleError, Values
from shmgen._engine.pool import Pool
from shmgen._samples.ids import kept
from shmgen._samples.row_ids import rows_of
from shmgen._storage.remote import local_or_remote

N = 50
IDS = [f"cats/{number:03}" for number in range(N)]


@pytest.fixture
def all_npy(tmp_path: Path) -> Path:
    """A file in which row n is filled with n, beside the file of ids."""
    np.save(tmp_path / "all.npy", np.arange(N)[:, None] * np.ones(3, np.int64))
    (tmp_path / "all.ids").write_text("".join(f"{id}\n" for id in IDS))
    return tmp_path / "all.npy"


def source(file: Path, **options: Any) -> NpyRows:
    """The rows of ``file``, with the ids in the file beside it."""
    return NpyRows(file, ids=file.with_suffix(".ids"), **options)


def rows(ids: Any, file: Path) -> list[int]:
    """The row numbers that a loader finds for ids, in the order of the ids."""
    with Loader(ids, None, 7, source=source(file), shuffle=False, tail="keep", workers=0) as loader:
        return [number for (X,) in loader for number in X[:, 0].tolist()]


SHUFFLED = random.Random(0).sample(range(N), N)

CHOICES = {
    "all": range(N),
    "the-last": range(40, N),
    "backwards": range(N - 1, -1, -1),
    "shuffled": SHUFFLED,
    "duplicate": [3, 4, 4, 5],
    "all-but-the-last-in-order": [*range(N - 2), N - 1],
}


def test_each_id_finds_its_row(all_npy: Path) -> None:
    """Any selection of ids, in any order, finds its rows."""
    for what, choice in CHOICES.items():
        assert rows([IDS[number] for number in choice], all_npy) == list(choice), what


def test_ids_of_other_kinds(all_npy: Path) -> None:
    """Ids may be an array of texts, or ints, which are looked up as texts; shuffling keeps id and row together."""
    assert rows(np.array(IDS)[SHUFFLED], all_npy) == SHUFFLED
    all_npy.with_suffix(".ids").write_text("".join(f"{10 * number}\n" for number in range(N)))
    assert rows(range(0, 10 * N, 20), all_npy) == list(range(0, N, 2))
    assert rows(10 * np.array(SHUFFLED), all_npy) == SHUFFLED
    labels = {10 * number: number for number in range(N)}
    with Loader(list(labels), labels, 5, source=source(all_npy), workers=0) as loader:
        for X, y in loader:
            assert X[:, 0].tolist() == y.tolist()


STYLES: dict[str, Callable[[str], bytes]] = {
    "no-newline-at-the-end": lambda text: text.rstrip().encode(),
    "windows": lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
    "empty-lines": lambda text: b"\n\n" + text.replace("\n", "\n\n").encode(),
}


def test_files_of_ids_from_any_editor(all_npy: Path) -> None:
    """The file of ids may have empty lines, Windows line endings, a byte order mark, or no last newline."""
    for what, style in STYLES.items():
        all_npy.with_suffix(".ids").write_bytes(style("".join(f"{id}\n" for id in IDS)))
        for choice in (range(N), SHUFFLED):
            assert rows([IDS[number] for number in choice], all_npy) == list(choice), what


def test_an_id_without_a_row_is_named(all_npy: Path) -> None:
    """An id without a row is named, at any position: a wrong one, a part of an id, two lines, or one with odd characters."""
    for id in ("dogs/001", "cats/01", "ats/001", "cats/001\0", "cats/001\ncats/002", "\ud800"):
        for others, place in ((IDS, 0), (IDS[::-1], 30), (IDS, N)):
            with pytest.raises(InputError, match=r"expected it among the ids in .*found it nowhere") as caught:
                source(all_npy).bind([*others[:place], id, *others[place:]])
            assert repr(id) in str(caught.value)
            assert str(all_npy.with_suffix(".ids")) in str(caught.value)


def test_an_id_without_a_row_suggests_a_similar_one(all_npy: Path) -> None:
    """Where the file has the id with another suffix, or without its blanks, the error says how to make all ids of that kind."""
    for wrong, remedy in (
        (f"{IDS[3]}.npy", "os.path.splitext(id)[0]"),
        (f"{IDS[3]} ", "id.strip()"),
        (IDS[3].encode(), "id.decode()"),
    ):
        with pytest.raises(InputError, match=re.escape(f"found it nowhere; {IDS[3]!r} is there: pass [{remedy} for id in ids]")):
            source(all_npy).bind([wrong])


def replace_by_fifo(path: Path) -> None:
    """Replace a file by a FIFO."""
    path.unlink()
    os.mkfifo(path)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda ids: ids.write_bytes(b""), "expected ids, an id a line, found none"),
    "too-few": (lambda ids: ids.write_text("\n".join(IDS[1:])), "expected 50, a line for each row, found 49"),
    "twice": (lambda ids: ids.write_text("\n".join([*IDS[1:], IDS[30]])), "each id once, found 'cats/030' several times"),
    "long": (
        lambda ids: ids.write_text("\n".join([*IDS[1:], "x" * 5000])),
        "line 50: expected an id, found more than 4,096 bytes",
    ),
    "fifo": (replace_by_fifo, "expected ids, an id a line, found none"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_unusable_files_of_ids_are_refused(all_npy: Path, what: str) -> None:
    """A file of ids that can't be read, or does not fit the rows, is an error that names the file and the reason."""
    harm, said = REFUSED[what]
    harm(all_npy.with_suffix(".ids"))
    with pytest.raises(InputError) as caught:
        Loader(IDS[::-1][5:20], None, 5, source=source(all_npy), workers=0)
    assert said in str(caught.value)
    assert str(all_npy.with_suffix(".ids")) in str(caught.value)


def test_an_id_that_is_twice_is_found_beside_a_run_of_lines(all_npy: Path) -> None:
    """An id that has two lines is refused, also if the wanted ids are neighbours in the file."""
    all_npy.with_suffix(".ids").write_text("\n".join([*IDS[1:], IDS[3]]))
    with pytest.raises(InputError, match="each id once, found 'cats/003' several times"):
        source(all_npy).bind(IDS[1:10])


def test_texts_without_a_file_of_ids(all_npy: Path) -> None:
    """Text ids without a file of ids are refused; the error names the argument ``ids``, or how to make ints of texts of ints."""
    with pytest.raises(InputError, match=r"id 'cats/000': expected a row's number .*; where rows have ids, pass .* as ids="):
        Loader(IDS, None, 5, source=NpyRows(all_npy), workers=0)
    with pytest.raises(
        InputError, match=r"id '0': .*; pass \[int\(id\) for id in ids\], or, .*list_IDs=np.loadtxt\(file, int, ndmin=1"
    ):
        Loader(["0"], None, 1, source=NpyRows(all_npy), workers=0)


def test_each_file_of_rows_has_its_own_list_of_ids(all_npy: Path, folder: Callable[..., Any]) -> None:
    """Each file of rows looks up ids in its own list, also beside other sources; labels are looked up by id."""
    data = folder(N, (2,))
    other = all_npy.with_name("other.npy")
    np.save(other, 100 + np.array(SHUFFLED))
    for file, ids in ((all_npy, data.ids), (other, [data.ids[number] for number in SHUFFLED])):
        file.with_suffix(".ids").write_text("".join(f"{id}\n" for id in ids))
    inputs = {"files": Npy(data.path), "rows": source(all_npy), "others": source(other), "by": Values(data.labels)}
    with Loader(data.ids, data.labels, 5, inputs=inputs, workers=2) as loader:
        for X, y in loader:
            assert X["files"][:, 0].tolist() == X["rows"][:, 0].tolist() == (X["others"] - 100).tolist() == y.tolist()
            assert X["by"].tolist() == y.tolist()


def test_an_unreadable_row_is_named_by_its_id(all_npy: Path) -> None:
    """An unreadable row is named by its text id."""
    os.truncate(all_npy, 128 + 24 * (N - 1))
    with pytest.raises(InputError, match="truncated"):
        Loader(IDS, None, N, source=source(all_npy), workers=0)
    np.save(all_npy, np.zeros((N, 3), np.int64))
    with Loader(IDS[::-1], None, N, source=source(all_npy), workers=0, shuffle=False) as loader:
        os.truncate(all_npy, 128 + 24 * (N - 1))
        with pytest.raises(SampleError) as caught:
            next(iter(loader))
        assert caught.value.id == IDS[-1]
    np.save(all_npy, np.zeros((N, 3), np.int64))
    bound = source(all_npy).bind(IDS)
    assert bound.place(IDS[7]) == f"row {IDS[7]} of file {all_npy}"


def test_rows_and_ids_at_a_url(root: Path, served: tuple[Path, int]) -> None:
    """Rows, or rows and ids, may be read from a URL."""
    (root / "all.ids").write_text("".join(f"{id}\n" for id in IDS[:24]))
    url = f"http://127.0.0.1:{served[1]}"
    for ids in (f"{url}/all.ids", root / "all.ids"):
        with Loader(IDS[5:20][::-1], None, 15, source=NpyRows(f"{url}/all.npy", ids=ids), shuffle=False, workers=1) as loader:
            assert loader.batch(0)[0][:, 0, 0].tolist() == list(range(5, 20))[::-1]
    with pytest.raises(InputError, match=f"ids {url}/no.ids: .*404"):
        Loader(IDS[:2], None, 1, source=NpyRows(f"{url}/all.npy", ids=f"{url}/no.ids"), workers=0)


MANY = 30_000


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[str]]:
    """A file of many rows beside a file of their ids; and the ids, in order and shuffled."""
    folder = tmp_path_factory.mktemp("many")
    ids = [f"folder-{number % 1000}/{number}" for number in range(MANY)]
    np.save(folder / "all.npy", np.arange(MANY, dtype=np.uint32))
    (folder / "all.ids").write_text("".join(f"{id}\n" for id in ids))
    return folder / "all.npy", ids, random.Random(0).sample(ids, MANY)


@pytest.mark.parametrize("in_order", [True, False])
def test_memory_of_lookups(many: tuple[Path, list[str], list[str]], in_order: bool) -> None:
    """Looking up ids keeps 4 bytes an id, or nothing if they are all the ids of the file in order."""
    file, ids, shuffled = many
    chosen = kept(ids if in_order else shuffled)
    tracemalloc.start()
    found = rows_of(chosen, local_or_remote(file.with_suffix(".ids")), MANY)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 4.2 * MANY
    assert peak < 300 * MANY
    if in_order:
        assert found == range(MANY)
    else:
        assert [ids[row] for row in found[:1000]] == shuffled[:1000]


def test_memory_of_ids_is_shared(many: tuple[Path, list[str], list[str]]) -> None:
    """Ids take at most 16 bytes each beside their texts, in memory shared by all processes; no message to a worker has them."""
    file, _, shuffled = many
    with Loader(shuffled, None, 64, source=source(file), workers=2) as loader:
        next(iter(loader))
        pool: Any = part_of(loader, Pool)
        tables = pool._tables
        shared = sum(os.fstat(table.fd).st_size for table in tables)
        assert shared <= sum(map(len, shuffled)) + 16 * MANY
        assert len(pickle.dumps(tables)) + len(pool._start_message.filler) < 4000
        assert b"row_ids" not in pool._start_message.filler  # nor does a worker import the module that looks up ids
