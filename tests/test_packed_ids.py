"""What a worker takes of packed ids are the objects that were packed; it is quick, and done once for all."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import pickle
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmgen import InputError
from shmgen._samples import packed_ids
from shmgen._samples.ids import Subset, kept, take
from shmgen._samples.packed_ids import BLOCK, PackedIds

ROOT = Path(__file__).parents[1]


class Named(str):
    """A text with more to it."""

    extra: object = None


class Level(IntEnum):
    """An int with a name."""

    LOW = 1


def named(text: str, extra: object) -> Named:
    made = Named(text)
    made.extra = extra
    return made


TEXTS = ["a", "", "cats/001", "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "\N{PILE OF POO}", "two words\n"]

KINDS: dict[str, Any] = {
    # ids, as a user may pass them
    "texts": ["a", "bc", "", "def"],
    "texts-of-all-scripts": TEXTS,
    "texts-with-nul": ["a\0b", "\0", "", "\0\0", "c\0"],
    "surrogates": ["plain", os.fsdecode(b"caf\xe9"), "\ud83d\ude00", "\ud800", os.fsdecode(b"\xff\xfe")],
    "texts-one-of-another-kind": ["a", named("b", 1), "c"],
    "text-subclass": [named("a", 1), named("b", [2])],
    "texts-and-ints": ["a", 1, b"x", 1 << 70],
    "ints": [3, -1, 0, 1 << 62],
    "int-bounds": [-(1 << 63), (1 << 63) - 1, 0],
    "ints-up-to-64-bits": [0, (1 << 64) - 1, 1 << 63],
    "ints-beyond-64-bits": [1, 1 << 64, -(10**30)],
    "ints-of-both-ends": [-1, (1 << 64) - 1],
    "int-subclass": [Level.LOW, Level.LOW],
    "bytes": [b"a", b"", b"\0\xff", b"\0"],
    "bytes-and-text": [b"a", "a"],
    "paths": [Path("a/b"), Path("c")],
    "numpy-texts": [np.str_("a"), np.str_("b\ud800")],
    "numpy-ints": [np.int64(3), np.uint8(200), np.int16(-2)],
    "array-of-texts": np.array(TEXTS),
    "array-of-texts-with-nul": np.array(["a\0b", "\0c", "d"]),
    "array-of-bytes": np.array([b"a", b"bcd", b""]),
    "array-of-objects": np.array(["a", 1, b"x"], object),
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
    """Packs ids that are closed after the test."""
    made: list[PackedIds] = []

    def pack(ids: Sequence[Any]) -> PackedIds:
        made.append(PackedIds.pack(ids))
        return made[-1]

    yield pack
    for packed in made:
        packed.close()


def attached(packed: PackedIds) -> PackedIds:
    """What a worker has: unpickled, with a descriptor of its own, which is closed once it is attached."""
    other: PackedIds = pickle.loads(pickle.dumps(packed))
    fd = -1 if packed.fd < 0 else os.dup(packed.fd)
    other.attach(fd)
    if fd >= 0:
        os.close(fd)
    return other


def same(found: list[Any], ids: list[Any]) -> bool:
    """Whether these are the same objects: of the same types, with the same values and attributes."""
    return repr(found) == repr(ids) and all(
        type(one) is type(other) and one == other and getattr(one, "extra", None) == getattr(other, "extra", None)
        for one, other in zip(found, ids, strict=True)
    )


@pytest.mark.parametrize("ids", KINDS.values(), ids=KINDS)
def test_what_is_taken_is_what_was_packed(pack: Callable, ids: Any) -> None:
    """In the main process and in another, in any order, some several times, whatever the ids are, and as part of others too."""
    ids = kept(ids)
    numbers = np.random.default_rng(1).permutation(np.arange(len(ids)).repeat(2))
    for some in (ids, Subset(ids, numbers), Subset(Subset(ids, numbers), np.arange(0, len(numbers), 3))):
        packed = pack(some)
        order = np.random.default_rng(2).permutation(len(some))
        for taker in (packed, attached(packed)):
            assert same(taker.take(order.tolist()), take(some, order))
            assert taker.take(iter(())) == []
            assert len(taker) == len(some)


@pytest.mark.parametrize("kind", ["texts", "an array of texts", "ints", "an array of ints", "mixed", "bytes"])
def test_ids_of_several_blocks(pack: Callable, kind: str) -> None:
    """Ids on both sides of the borders of what is packed at once are right, also where one block has texts that are not ASCII."""
    count = 2 * BLOCK + 3
    texts = [f"id-{number}" for number in range(count)]
    texts[BLOCK + 1] = TEXTS[3]
    made: dict[str, Any] = {
        "texts": texts,
        "an array of texts": np.array(texts),
        "ints": [number - 5 for number in range(count)],
        "an array of ints": np.arange(count) * 3,
        "mixed": [*range(count - 1), "x"],
        "bytes": [b"%d" % number for number in range(count)],
    }
    ids = kept(made[kind])
    found = attached(pack(ids)).take(range(count))
    assert found == list(ids)


@pytest.mark.parametrize("number", [3, -1 << 40])
def test_a_number_that_is_none(pack: Callable, number: int) -> None:
    """A number of no sample is an error and no other bytes."""
    for ids in (["a", "b", "c"], [1, 2, 3], range(3), [b"a", b"b", b"c"], [(1,), (2,), (3,)]):
        with pytest.raises(IndexError):
            pack(ids).take([number])


WORKER = """
import pickle, sys
fd, root = int(sys.argv[1]), sys.argv[2]
sys.path.append(root)
from shmgen._samples.packed_ids import PackedIds
packed = pickle.loads(sys.stdin.buffer.read())
packed.attach(fd)
found = packed.take(range(len(packed)))
heavy = sorted({"numpy", "cloudpickle", "array", "fcntl", "shmgen._samples.ids"} & sys.modules.keys())
sys.stdout.buffer.write(pickle.dumps((found, heavy)))
"""


def in_a_worker(packed: PackedIds, path: str = "") -> tuple[list[Any], list[str]]:
    """All ids, as a fresh lean interpreter takes them, and what it has imported that it needs not."""
    run = subprocess.run(
        [sys.executable, "-S", "-c", WORKER, str(packed.fd), str(ROOT)],
        input=pickle.dumps(packed),
        stdout=subprocess.PIPE,
        pass_fds=[packed.fd] if packed.fd >= 0 else [],
        cwd="/",
        env={**os.environ, "PYTHONPATH": path},
        check=True,
    )
    found: tuple[list[Any], list[str]] = pickle.loads(run.stdout)
    return found


@pytest.mark.parametrize(
    "ids",
    [range(5), TEXTS, np.array(TEXTS), ["\ud800"], [b"a", b""], [1, -2], np.arange(3, dtype=np.uint16), [1, "a", b"x"]],
    ids=["range", "texts", "array-of-texts", "surrogates", "bytes", "ints", "array-of-ints", "others"],
)
def test_a_worker_needs_nothing_else(pack: Callable, ids: Any) -> None:
    """A lean process that has inherited the descriptor finds the ids, and imports neither NumPy nor what only packing needs."""
    ids = kept(ids)
    assert in_a_worker(pack(ids)) == (list(ids), [])


def test_nothing_is_stored_for_a_range(pack: Callable) -> None:
    """However long it is, there is no memory and no descriptor, and what is sent is small."""
    packed = pack(range(0, 10**15, 3))
    assert (packed.fd, len(pickle.dumps(packed)) < 200) == (-1, True)
    assert attached(packed).take([0, 10**14]) == [0, 3 * 10**14]


MILLION = 10**6


def test_a_million_texts(pack: Callable) -> None:
    """They take their own bytes and 8 each, little else meanwhile, and what is sent to a worker does not grow with them."""
    ids = [f"folder/sample-{number:07}" for number in range(MILLION)]
    tracemalloc.start()
    try:
        packed = pack(ids)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert os.fstat(packed.fd).st_size <= sum(map(len, ids)) + 8 * (MILLION + 1)
    assert most < 20_000_000
    assert len(pickle.dumps(packed)) < 200
    assert attached(packed).take([0, 123_456, MILLION - 1]) == [ids[0], ids[123_456], ids[-1]]


@pytest.mark.parametrize("kind", ["a list", "an array"])
def test_packing_does_not_loop_over_texts_and_ints(pack: Callable, kind: str) -> None:
    """No line of Python is run for each text of ASCII or each int: a hundred times as many take hardly more lines."""
    lines = 0

    def trace(frame: Any, event: str, arg: object) -> Any:
        nonlocal lines
        lines += 1
        return trace

    for values in ([f"id-{number}" for number in range(BLOCK)], list(range(5, BLOCK + 5))):
        counts = []
        for count in (BLOCK // 100, BLOCK):
            ids = kept(values[:count] if kind == "a list" else np.array(values[:count]))
            pack(ids[:1] if kind == "a list" else kept(np.array(values[:1])))  # imports what it needs
            lines = 0
            before = sys.gettrace()
            sys.settrace(trace)
            try:
                pack(ids)
            finally:
                sys.settrace(before)
            counts.append(lines)
        assert counts[1] < counts[0] + 100


def test_looking_up_takes_no_time(pack: Callable) -> None:
    """What a worker does for the ids of a ticket is little: the best of many tries is far below what reading a file takes."""
    packed = attached(pack([f"folder/sample-{number:07}" for number in range(100_000)]))
    numbers = np.random.default_rng(0).integers(100_000, size=32).tolist()
    best = float("inf")
    for _ in range(2000):
        start = time.perf_counter()
        packed.take(numbers)
        best = min(best, time.perf_counter() - start)
    assert best < 20e-6


@pytest.mark.parametrize(
    ("id", "why"),
    [
        (threading.Lock(), "TypeError: cannot pickle"),
        (lambda: 1, "Can't pickle|Can't get local object"),
    ],
)
@pytest.mark.parametrize("place", [0, BLOCK + 5])
def test_an_id_that_cannot_be_sent(id: Any, why: str, place: int) -> None:
    """It is named when ids are packed, with why, and what to do; nothing stays open."""
    ids: list[Any] = [*range(place), id, 3]
    before = os.listdir("/proc/self/fd")
    with pytest.raises(InputError, match=rf"(?s)^id .*can't be sent to a worker process: .*({why}).*workers=0"):
        PackedIds.pack(ids)
    assert os.listdir("/proc/self/fd") == before


def test_an_id_of_a_class_that_is_only_found_later(pack: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class is imported when an id is taken, not before: a worker gets its path later; where there is none, it says so."""
    (tmp_path / "own_ids.py").write_text("class Own:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import own_ids  # type: ignore[import-not-found]

    packed = pack([own_ids.Own(), own_ids.Own()])
    monkeypatch.delitem(sys.modules, "own_ids")
    sys.path.remove(str(tmp_path))
    other = attached(packed)
    with pytest.raises(InputError, match=r"(?s)can't be unpickled in a worker process: ModuleNotFoundError.*own_ids.*imported"):
        other.take([1])
    sys.path.insert(0, str(tmp_path))
    assert type(other.take([1])[0]).__name__ == "Own"


SCRIPT = """
import enum, pickle, subprocess, sys
from dataclasses import dataclass
from shmgen._samples.packed_ids import PackedIds

class Side(enum.Enum):
    LEFT = 1

@dataclass(frozen=True)
class Scan:
    patient: int
    side: Side = Side.LEFT
    def name(self):
        return f"{self.patient}-{make(1).patient}"

class Odd:
    def __reduce__(self):
        return make, (7,)

def make(patient):
    return Scan(patient)

ids = [Scan(1), (Scan(2), "__main__"), "__main__", Side.LEFT, Odd()]
packed = PackedIds.pack(ids)
assert packed.take(range(4)) == ids[:4] and packed.take([0])[0].__class__ is Scan
code = '''
import pickle, sys
sys.path.append(sys.argv[2])
packed = pickle.load(sys.stdin.buffer)
packed.attach(int(sys.argv[1]))
sys.path[:] = sys.argv[3:]
scan, (other, text), main, left, odd = packed.take(range(5))
[again] = packed.take([1])
same = type(scan) is type(other) is type(odd) is type(again[0])
print(scan.name(), same, text, main, left is scan.side, odd.patient, again == (other, text))
'''
command = [sys.executable, "-S", "-c", code, str(packed.fd), ROOT, *sys.path]
subprocess.run(command, input=pickle.dumps(packed), pass_fds=[packed.fd], check=True)
"""


def test_ids_of_classes_of_the_script(tmp_path: Path) -> None:
    """What a script defines is sent with its ids, once: a worker, which does not run it, has the same classes for all of them."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("ROOT", repr(str(ROOT))))
    run = subprocess.run(
        [sys.executable, script], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert (run.stdout, run.stderr) == ("1-1 True __main__ __main__ True 7 True\n", "")


def test_no_one_can_change_what_is_packed(pack: Callable) -> None:
    """The memory is sealed: it can't be written to, mapped to write, or made shorter, which would end workers."""
    packed = pack(["a", "b"])
    assert fcntl.fcntl(packed.fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
    for change in (lambda: os.pwrite(packed.fd, b"x", 0), lambda: os.ftruncate(packed.fd, 0), lambda: mmap.mmap(packed.fd, 0)):
        with pytest.raises(PermissionError):
            change()
    assert packed.take([0, 1]) == ["a", "b"]


def test_a_kernel_that_can_not_seal(pack: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids are packed all the same."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    assert attached(pack(["a", "b"])).take([1]) == ["b"]


def test_not_enough_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the machine has too little left, that is said, with the numbers, before the kernel kills a process."""
    monkeypatch.setattr(packed_ids, "available", lambda: 1000)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(
        OSError, match=r"bytes of shared memory are needed for the ids, .*and 1,000 bytes .*pass shorter ids"
    ) as raised:
        PackedIds.pack(["n" * 100] * 50)
    assert raised.value.errno == errno.ENOMEM
    assert os.listdir("/proc/self/fd") == before


def test_close_gives_up_the_memory(pack: Callable) -> None:
    """The descriptor is closed, and no mapping of the memory is left; what another process has attached to stays."""
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
