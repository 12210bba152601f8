"""A worker takes from packed ids the same objects that were packed; packing is fast, and done once for all processes."""

from __future__ import annotations

import errno
import os
import pickle
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import lines, python

from shmgen._samples import packed_ids
from shmgen._samples.ids import BLOCK, kept, take
from shmgen._samples.packed_ids import PackedIds

TEXTS = ["a", "", "cats/001", "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "\N{PILE OF POO}", "two words\n"]

KINDS: dict[str, Any] = {
    # ids, as a user may pass them
    "texts": ["a", "bc", "", "def"],
    "texts-of-all-scripts": TEXTS,
    "texts-with-nul": ["a\0b", "\0", "", "\0\0", "c\0"],
    "surrogates": ["plain", os.fsdecode(b"caf\xe9"), "\ud83d\ude00", "\ud800", os.fsdecode(b"\xff\xfe")],
    "texts-and-ints": ["a", 1, "", -(1 << 70), b"b\0", "\ud800"],
    "ints": [3, -1, 0, 1 << 62],
    "int-bounds": [-(1 << 63), (1 << 63) - 1, 0],
    "ints-up-to-64-bits": [0, (1 << 64) - 1, 1 << 63],
    "ints-beyond-64-bits": [1, 1 << 64, -(10**30)],
    "ints-of-both-ends": [-1, (1 << 64) - 1],
    "bytes": [b"a", b"", b"\0\xff", b"\0"],
    "bytes-and-text": [b"a", "a"],
    "numpy-texts": [np.str_("a"), np.str_("b\ud800")],
    "numpy-ints": [np.int64(3), np.uint8(200), np.int16(-2)],
    "array-of-texts": np.array(TEXTS),
    "array-of-texts-with-nul": np.array(["a\0b", "\0c", "d"]),
    "array-of-bytes": np.array([b"a", b"bcd", b""]),
    "array-of-objects": np.array(["a", "b"], object),
    "array-backwards": np.arange(5)[::-1],
    "range": range(3, 50, 7),
    "range-backwards": range(5, -6, -2),
    "range-beyond-64-bits": range(10**30, 10**30 + 5),
    **{f"array-of-{name}": np.array([0, 1, 100], name) for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32")},
    **{f"array-of-{name}": np.array([0, np.iinfo(name).max], name) for name in ("int64", "uint64", "longlong", "ulonglong")},
    "array-of-the-other-byte-order": np.array([1, -2, 70_000], ">i4"),
    "none": [],
}


@pytest.fixture
def pack() -> Iterator[Callable[[Sequence[Any]], PackedIds]]:
    """A function that packs ids, which are closed after the test."""
    made: list[PackedIds] = []

    def pack(ids: Sequence[Any]) -> PackedIds:
        made.append(PackedIds.pack(ids))
        return made[-1]

    yield pack
    for packed in made:
        packed.close()


def attached(packed: PackedIds) -> PackedIds:
    """The ids as a worker has them: unpickled, and attached by a descriptor of its own, which is then closed."""
    other: PackedIds = pickle.loads(pickle.dumps(packed))
    fd = -1 if packed.fd < 0 else os.dup(packed.fd)
    other.attach(fd)
    if fd >= 0:
        os.close(fd)
    return other


def same(found: Any, ids: list[Any]) -> bool:
    """Whether ids are equal, and of equal types."""
    return found == ids and list(map(type, found)) == list(map(type, ids))


def test_ids_are_taken_as_packed(pack: Callable) -> None:
    """Ids of any kind are taken as they were packed, in any order, also after attaching as a worker does."""
    for kind, given in KINDS.items():
        ids = kept(given)
        numbers = np.random.default_rng(1).permutation(np.arange(len(ids)).repeat(2))
        packed = pack(ids)
        for taker in (packed, attached(packed)):
            assert same(taker.take(numbers.tolist()), take(ids, numbers)), kind
            assert taker.take([]) == []
            assert len(taker) == len(ids)


@pytest.mark.parametrize("kind", ["texts", "ints", "mixed"])
def test_ids_of_several_blocks(pack: Callable, kind: str) -> None:
    """Ids on both sides of a block's border are right, also where one block has texts that are not ASCII."""
    count = 2 * BLOCK + 3
    texts = [f"id-{number}" for number in range(count)]
    texts[BLOCK + 1] = TEXTS[3]
    made: dict[str, Any] = {
        "texts": texts,
        "ints": [number - 5 for number in range(count)],
        "mixed": [number if number % 3 else str(number) for number in range(count)],
    }
    ids = kept(made[kind])
    found = attached(pack(ids)).take(range(count))
    assert found == list(ids)


def test_a_number_without_a_sample(pack: Callable) -> None:
    """A number without a sample is an IndexError."""
    for ids in (["a", "b", "c"], [1, 2, 3], range(3, 0, -1), [1, "a", b"b"]):
        for number in (3, -1 << 40):
            with pytest.raises(IndexError):
                pack(ids).take([number])


WORKER = """
import pickle, sys
from shmgen._samples.packed_ids import PackedIds
packed = pickle.loads(sys.stdin.buffer.read())
packed.attach(int(sys.argv[1]))
found = packed.take(range(len(packed)))
heavy = sorted({"numpy", "cloudpickle", "array", "fcntl", "shmgen._samples.ids"} & sys.modules.keys())
sys.stdout.buffer.write(pickle.dumps((found, heavy)))
"""


@pytest.mark.parametrize("ids", [TEXTS, np.arange(3, dtype=np.uint16), [1, "a", "\ud800"]], ids=["texts", "ints", "mixed"])
def test_taking_ids_imports_no_other_modules(pack: Callable, ids: Any) -> None:
    """A worker takes ids through the descriptor without importing NumPy or the modules that pack."""
    ids = kept(ids)
    packed = pack(ids)
    run = python("-S", "-c", WORKER, packed.fd, check=True, input=pickle.dumps(packed), pass_fds=[packed.fd], text=False)
    found, imported = pickle.loads(run.stdout)
    assert (list(found), imported) == (list(ids), [])


def test_nothing_is_stored_for_a_range(pack: Callable) -> None:
    """A range takes no memory and no descriptor, however long it is."""
    packed = pack(range(0, 10**15, 3))
    assert (packed.fd, len(pickle.dumps(packed)) < 200) == (-1, True)
    assert attached(packed).take([0, 10**14]) == [0, 3 * 10**14]


MANY = 500_000


def test_memory_of_packed_texts(pack: Callable) -> None:
    """Packed texts take 8 bytes each beside their own bytes, and the message to a worker does not grow with them."""
    ids = [f"folder/sample-{number:07}" for number in range(MANY)]
    tracemalloc.start()
    try:
        packed = pack(ids)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert os.fstat(packed.fd).st_size <= sum(map(len, ids)) + 8 * (MANY + 1)
    assert most < 20_000_000
    assert len(pickle.dumps(packed)) < 200
    assert attached(packed).take([0, 123_456, MANY - 1]) == [ids[0], ids[123_456], ids[-1]]


def test_packing_does_not_loop_over_texts_and_ints(pack: Callable) -> None:
    """Packing runs no line of Python for each ASCII text or int."""
    for values in ([f"id-{number}" for number in range(BLOCK)], list(range(5, BLOCK + 5))):
        counts = []
        for count in (BLOCK // 100, BLOCK):
            ids = kept(values[:count])
            pack(ids[:1])  # imports modules
            counts.append(lines(partial(pack, ids)))
        assert counts[1] < counts[0] + 100


def test_not_enough_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little free memory is an error with both numbers, before the kernel kills a process."""
    monkeypatch.setattr(packed_ids, "available", lambda: 1000)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(
        OSError, match=r"bytes of shared memory are needed for the ids, .*and 1,000 bytes .*pass shorter ids"
    ) as raised:
        PackedIds.pack(["n" * 100] * 50)
    assert raised.value.errno == errno.ENOMEM
    assert os.listdir("/proc/self/fd") == before


def test_close_gives_up_the_memory(pack: Callable) -> None:
    """`close` closes the descriptor and unmaps the memory; attached ids can still be read."""
    before = os.listdir("/proc/self/fd")
    packed = pack(["a", "b"])
    other = attached(packed)
    assert "shmgen-ids" in Path("/proc/self/maps").read_text()
    packed.close()
    packed.close()
    assert packed.fd == -1
    assert other.take([1]) == ["b"]
    other.close()
    assert "shmgen-ids" not in Path("/proc/self/maps").read_text()
    assert os.listdir("/proc/self/fd") == before
