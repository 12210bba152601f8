"""Looks for a file that a loader and `numpy.load` do not agree about, guided by coverage: ``make fuzz MINUTES=10``.

It is not a test, since it runs for minutes and alone needs atheris. It starts from the headers of `test_npy_fuzz`, keeps files
that reach new code in ``.fuzz/corpus``, and starts from these, too, in the next run. A file on which they disagree ends the run
and is left in ``.fuzz``; once the fault is repaired, add its header to `test_npy_fuzz`. Options are libFuzzer's.
"""

from __future__ import annotations

import resource
import sys
from itertools import chain
from pathlib import Path

import atheris

for name in ("ast", "tokenize"):
    sys.modules.pop(name, None)  # only what is imported now has its coverage measured
with atheris.instrument_imports(include=["ast", "numpy", "shmgen", "tokenize"]):
    from test_npy_fuzz import HEADERS, OTHER_DESCRS, OTHER_ORDERS, OTHER_SHAPES, Folder, agree, npy

ROOT = Path(".fuzz").resolve()

MAX_MEMORY = 8 << 30
"""Bytes of address space: memory set aside for what a header promises beyond them is a MemoryError, which no test expects."""


def mutate(file: bytes, most: int, seed: int) -> bytes:
    """A file made of ``file``, mostly by changing the header and its length with it: few others would get as far as its text."""
    start = 10 if file[6:7] == b"\1" else 12
    end = start + int.from_bytes(file[8:start], "little")
    if seed % 8 == 0 or not start < end <= len(file):
        return atheris.Mutate(file, most)
    text = atheris.Mutate(file[start:end], most - len(file) + end - start)
    return file[:8] + len(text).to_bytes(start - 8, "little") + text + file[end:]


def dictionary() -> str:
    """Words to put into headers, in libFuzzer's notation."""
    words = [*OTHER_DESCRS, *OTHER_ORDERS, *OTHER_SHAPES, "'descr'", "'fortran_order'", "'shape'"]
    coded = ["".join(f"\\x{byte:02x}" for byte in word.encode()) for word in words if len(word) < 60]
    return "".join(f'"{word}"\n' for word in coded)


def main() -> None:
    """Fuzz, until libFuzzer ends the process."""
    for path in (ROOT / "corpus", ROOT / "asked"):
        path.mkdir(parents=True, exist_ok=True)
    for number, header in enumerate(chain.from_iterable(HEADERS.values())):
        for version in (1, 2, 3):
            (ROOT / "corpus" / f"header-{number}-{version}").write_bytes(npy(header, bytes(range(48)), version=version))
    (ROOT / "words").write_text(dictionary())
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    folder = Folder(ROOT / "asked")
    options = [f"-dict={ROOT}/words", f"-artifact_prefix={ROOT}/", "-max_len=1000", "-timeout=10", *sys.argv[1:]]
    atheris.Setup([sys.argv[0], f"{ROOT}/corpus", *options], lambda file: agree(folder, file), custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
