"""A loader accepts the same ``.npy`` files as `numpy.load` with ``allow_pickle=False``, and reads the same array.

`agree` lists the exceptions. It is applied to files that hypothesis generates, and to a list of odd headers, from which
`fuzz_npy.py` starts, and to which its findings were added.
"""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from shmgen import Npy, SampleError

GOOD = np.arange(6, dtype=np.float64).reshape(2, 3)
"""Content of the good file beside the tested one."""

MAX_AXES = 31
"""The most axes of a sample: a batch has one more, and NumPy 1 allows 32."""


class Folder:
    """A folder with the tested file and a good one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / "asked.npy"
        np.save(path / "good.npy", GOOD)

    def load(self) -> np.ndarray | None:
        """The array that `numpy.load` reads, or None unless it is one of numbers, with the same shape if the file is mapped."""
        if self.file.read_bytes().startswith(b"PK"):  # an archive
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about headers of Python 2, and old names of dtypes
            try:
                array = np.load(self.file, allow_pickle=False)
                mapped = np.load(self.file, allow_pickle=False, mmap_mode="r") if array.size else array
            except Exception:
                return None
        return array if array.dtype.kind in "biufc" and array.shape == mapped.shape else None

    def read(self, first: str, **options: Any) -> list[np.ndarray]:
        """The rows that a worker reads from the file, twice, with ``first`` as the id of the folder's first file."""
        source = Npy(self.path, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader = source.bind([first]).opened()
            rows = bytearray(3 * reader.row_bytes)
            reader.fill([first, "asked", "asked"], memoryview(rows), [0])
        array = np.frombuffer(rows, reader.dtype).reshape(3, *reader.shape)
        return [array[1, ...], array[2, ...]]

    def refusal(self, first: str, **options: object) -> SampleError:
        """The error that `read` raises."""
        try:
            self.read(first, **options)
        except SampleError as error:
            return error
        raise AssertionError("a loader accepts a file that numpy.load refuses")


def agree(folder: Folder, content: bytes) -> np.ndarray | None:
    """Assert that a loader reads a file of these bytes as `numpy.load` does; returns the array, or None if both refuse it.

    Both read the same array, bit for bit. But a loader refuses, with a SampleError that names the file,

    - dtypes other than numbers (kinds b, i, u, f, c): text, bytes, dates and records;
    - arrays with no elements, or with more than 31 axes;
    - files that NumPy reads in one way and maps into memory in another, or not at all: those with a negative size, which NumPy
      may infer, or with arrays as elements, of which NumPy reads fewer than the header promises.
    """
    folder.file.write_bytes(content)
    array = folder.load()
    if array is None or not array.size or array.ndim > MAX_AXES:
        for error in folder.refusal("asked"), folder.refusal("asked", dtype=np.complex128), folder.refusal("good"):
            assert (error.id, error.path) == ("asked", str(folder.file))
            assert "expected" in error.reason
            assert "makes a path" not in error.reason, "the error blames the id"
        return array

    native = array.astype(array.dtype.newbyteorder("="))
    for row in folder.read("asked"):
        assert (row.shape, row.dtype, row.tobytes()) == (native.shape, native.dtype, native.tobytes())
    if array.shape == GOOD.shape and np.can_cast(array.dtype, GOOD.dtype, "same_kind"):
        with np.errstate(all="ignore"):
            for row in folder.read("good"):
                np.testing.assert_array_equal(row, array.astype(GOOD.dtype))
    else:
        assert folder.refusal("good").id == "asked"
    return array


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """One folder for all tested files."""
    return Folder(tmp_path_factory.mktemp("asked"))


def npy(header: str, data: bytes = bytes(range(192)), *, version: int = 1) -> bytes:
    """A file with this header, in which characters that the version can't encode are replaced."""
    text = header.encode("utf-8" if version == 3 else "latin-1", "replace")
    return b"\x93NUMPY" + struct.pack("<BBH" if version == 1 else "<BBI", version, 0, len(text)) + text + data


def header(descr: str = "'<f4'", order: str = "False", shape: str = "(2, 3)", more: str = "") -> str:
    """The text of a header."""
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, {more}}}\n"


def texts(several: str) -> list[str]:
    """The texts between the semicolons."""
    return [text.strip() for text in several.split(";")]


NUMBERS = [
    "|b1",
    "|i1",
    "|u1",
    *(order + kind for order in "<>" for kind in texts("i2; u4; i8; u8; f2; f4; f8; f16; c8; c16; c32")),
]

OTHER_DESCRS = texts(r"""
    'f4'; '=f4'; '|f4'; '>b1'; 'd'; 'float32'; 'bool'; 'int'; '?'; 'g'; '1f4'; '(1,)f4'; '2f4'; 'f4,'; 'f4,i4'; 'x9'; '<f5'; '<';
    '|O'; 'O'; '|S3'; 'a3'; '<U4'; '|V4'; 'S0'; 'V'; '<M8[s]'; '<m8[D]'; 'T'; ''; '<f4\0'; '<f4L'; '<f4 '; u'<f4'; b'<f4';
    '<' 'f4'; '\x3cf4'; None; 4; 4.0; (); []; {}; [('a', '<f4')]; [('a', '<f4'), ('', '|V4'), ('b', '<i2')]; [('é', '<f4')];
    [('a', '<f4', (2,))]; [['a', 'f4']]; [('a', '|O')]; [('a', [('b', '<f4')])]; [(('title', 'a'), '<f4')]; ['<f4']; [1, 2];
    {'a': ('<f4', 0)}; ('<f4', (1,)); ('<f4', (1, 1)); ('<f4', 1); ('<f4', ()); ('<f4', (2,)); ('<f4', (0,)); ('<f4', (-1,));
    (('<f4', (1,)), (1,)); ('<f4', (9223372036854775808,)); ('<f4', '<i4'); ('<i4', [('a', '<u2'), ('b', '<u2')]); ('<f4',);
    ('>i4', [('a', '>u2'), ('b', '>u2')]); ('|O', '<i8'); ('<f4', {'align': True}); ('|S4', (1,))
""")
OTHER_ORDERS = texts("0; 1; None; 'True'; (True,); []; not True; true; 1 == 1; False or True")
OTHER_SHAPES = [
    *texts("""
    (2L, 3L); (2 L, 3); (2LL, 3); (0x2L, 3); (2l, 3); (2, 3)L; (L2, 3); (2.L, 3); (0x2, 0b11); (1_0,); (02, 3);
    (2, 3 # L\n); (2, 3,); ((2, 3)); (2 3); (2, 3; [2, 3]; {2, 3}; (2, [3]); ((2,), 3); 6; (6); (6.0,); (6e0,); (6j,); ('6',);
    (None,); (True, 3); (True,); (False,); (+2, 3); (3 + 0j, 2); (...,); (2**2,); (-2, 3); (-2, -3); (-1,); (-1, 6); (0, -1);
    (--2, 3); (-0, 3); (-2305843009213693950, 8); (0, 3); (0, 4611686018427387904, 4); (0, 9223372036854775808); (2147483648,);
    (1099511627776, 3); (4611686018427387904,); (9223372036854775808,); (18446744073709551622,); (4294967296, 4294967296);
    (9223372036854775808, 2, 3); (2305843009213693952, 8, 3)
    """),
    *(f"(0x{'f' * 8000},)", f"(-0x{'f' * 8000},)", f"(0, 0x{'f' * 8000})", f"({'9' * 4000},)", f"({'9' * 9000},)"),
    *(f"(2, 3, {'1, ' * (axes - 2)})" for axes in (31, 32, 33, 62, 63, 64, 65, 1000)),
    *("(" * 150 + "2" + ")" * 150, "(" * 5000, "[" * 5000, "{1:" * 3000, "-" * 9000 + "2", "2" + "+2" * 4000, "~" * 9000 + "2"),
]
OTHER_KEYS = texts("'Shape'; b'shape'; u'shape'; 'sha' 'pe'; 'shape '; 'descr'; shape; 1; None; ('shape',); []; **{}")
OTHER_STARTS = [" ", "\t", "\n", "#\n", "\ufeff", "\0", "\f", "é" * 5000, "#" + "漢" * 9000 + "\n", "#" + "漢" * 9999 + "\n"]

# Findings of `fuzz_npy.py`, the shortest of each kind. NumPy, which has a parser of its own for dtypes such as 'f4,i4', refuses
# each for a different reason.
FOUND = [
    "",
    "()/",
    "\n  ,\n )%&'(",
    "   \r\r\r\r\r\r\r\r496729Î\x8aÍ\x8d",
    "\n }\0\1\2\3",
    "{set (set2l, 3) }",
    "{2.L, X3, }3, }",
    "{'dape': (4 L, 3)(6j,), }",
    "{'descr': [['a', 'f0']], 'fortran_orr': False- ÌÖÓß}",
    "{'shape': [('a', [('b', '<f4')])]}",
]
FOUND_DESCRS = texts(r"""
    'f4,i4''<f4'; [1,]; (('>f\x93±ª²¹Y4', (1,)), (1,)); '4444443444>44c8 '; (('>(2LL, 3)fY4(6.0,)', (1,)), (1,));
    ('|(10995<1687776,'')S<', (1,)); '<f4''f4,i4'; '()  3.L2i4'; [('a', '<f4,'), ('', '|V4'), ('b,' '<i2')]; '(02, 3)<f''f4,i4';
    [('a', '<f4'), ('', ''), ('b', 'not True<i2')]; '66666666666666666>6fi,44666666666666>6fi,44'',f4'; [('a', '(2),, 3')];
    [('a', '<1, 1,UMP1, 11, , 1, ), f4', (2,))]; '6666666666666666666O666,666>,k6f44'',f4'; '66666666666>666666666664,i4'',f4';
    [('a', (0, 3), (2,))]; [('a', '<f4/', (2,))]; [('a', '<f4,'), ('', '|V4'), ('b', '<f4,'), ('', '|V4'), ('b', '<i2')];
    [('a', '<f4,'), ('', '|V4'), ('b', '<f4', '<f4,'), ('', '|f4,')]; [('a', [('f0', '<f4')]), (']]]]', [('f1', 'V')])]
""")

HEADERS = {
    "found": FOUND,
    "numbers": [header(repr(descr), order) for descr in NUMBERS for order in ("False", "True")],
    "descrs": [header(descr) for descr in [*OTHER_DESCRS, *FOUND_DESCRS]],
    "orders": [header(order=order) for order in OTHER_ORDERS],
    "shapes": [header(shape=shape) for shape in OTHER_SHAPES],
    "keys": [header(more=f"{key}: (2, 3)") for key in OTHER_KEYS],
    "starts": [start + header() for start in OTHER_STARTS],
}


@pytest.mark.parametrize("headers", HEADERS.values(), ids=HEADERS)
def test_odd_headers(folder: Folder, headers: list[str]) -> None:
    """Headers with one oddity each, and headers found by fuzzing, are read or refused as by `numpy.load`."""
    for number, header in enumerate(headers):
        version = 1 + number % 3
        try:
            agree(folder, npy(header, version=version))
        except AssertionError as error:
            raise AssertionError(f"version {version}, header {header[:80]!a}") from error


def test_a_file_that_ends_anywhere(folder: Folder) -> None:
    """A file that is cut off anywhere is refused."""
    for version in (1, 3):
        file = npy(header(), bytes(24), version=version)

        assert agree(folder, file) is not None
        for size in range(len(file)):
            assert agree(folder, file[:size]) is None


def test_headers_that_are_not_utf_8(folder: Folder) -> None:
    """A header that is not UTF-8 is refused in version 3 of the format, and accepted in version 1."""
    for version in (1, 3):
        file = npy(header(more="# é\n"), version=version)
        assert agree(folder, file) is not None
        assert (agree(folder, file.replace("é".encode(), b"\xe9\xe9")) is None) == (version == 3)


def test_an_array_of_31_axes(folder: Folder) -> None:
    """An array of 31 axes is read; a batch of it has 32, the most that NumPy 1 has."""
    assert agree(folder, npy(header(shape=repr((1,) * MAX_AXES)))) is not None
    folder.file.write_bytes(npy(header(shape=repr((1,) * (MAX_AXES + 1)))))
    assert "expected an .npy header, found" in folder.refusal("asked").reason


ALIKE = settings(derandomize=True, database=None, deadline=None)
"""Settings that generate the same files in every run, without a time limit."""


@st.composite
def dicts(draw: st.DrawFn, items: list[tuple[str, str]]) -> str:
    """The text of a dict of keys and values, in one of many equivalent spellings."""
    colon = draw(st.sampled_from([": ", ":", "\t:\n "]))
    comma = draw(st.sampled_from([", ", ",", ",\n ", ",  # é }\n"]))
    end = draw(st.sampled_from([", }", "}", ",}", "\n}", "} # end"]))
    return "{" + comma.join(key + colon + value for key, value in draw(st.permutations(items))) + end


@st.composite
def files(draw: st.DrawFn) -> tuple[bytes, np.ndarray]:
    """A valid file, and its array."""
    dtype = np.dtype(draw(st.sampled_from(NUMBERS)))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=4)))
    fortran = draw(st.booleans())
    data = np.random.default_rng(draw(st.integers(0, 99))).bytes(int(np.prod(shape)) * dtype.itemsize)
    items = [("'descr'", repr(dtype.str)), ("'fortran_order'", repr(fortran)), ("'shape'", repr(shape))]
    file = npy(
        draw(dicts(items)) + " " * draw(st.integers(0, 70)) + "\n",
        data + draw(st.sampled_from([b"", b"behind"])),
        version=draw(st.integers(1, 3)),
    )
    return file, np.ndarray(shape, dtype, data, order="F" if fortran else "C")


@settings(ALIKE, max_examples=50)
@given(files())
def test_a_good_file_is_read(folder: Folder, file_and_array: tuple[bytes, np.ndarray]) -> None:
    """Files of all versions, dtypes, byte orders, axis orders, shapes and spellings are read as by `numpy.load`."""
    file, array = file_and_array

    loaded = agree(folder, file)

    assert loaded is not None
    assert (loaded.shape, loaded.dtype, loaded.tobytes()) == (array.shape, array.dtype, array.tobytes())


@settings(ALIKE, max_examples=60)
@given(st.data())
def test_several_oddities_at_once(folder: Folder, data: st.DataObject) -> None:
    """Headers with several oddities, and files with too little data, are read or refused as by `numpy.load`."""
    draw = data.draw
    items = [
        ("'descr'", draw(st.sampled_from(["'<f4'", "'>f8'", *OTHER_DESCRS]))),
        ("'fortran_order'", draw(st.sampled_from(["False", "True"] * 8 + OTHER_ORDERS))),
        ("'shape'", draw(st.sampled_from(["(2, 3)"] * 20 + OTHER_SHAPES))),
    ]
    if draw(st.integers(0, 5)) == 0:
        items.append((draw(st.sampled_from(OTHER_KEYS)), draw(st.sampled_from(items))[1]))
    if draw(st.integers(0, 9)) == 0:
        del items[draw(st.integers(0, 2))]
    start = draw(st.sampled_from([""] * 9 + OTHER_STARTS))
    size = draw(st.sampled_from([256, 48, 24, 23, 0]))

    agree(folder, npy(start + draw(dicts(items)), bytes(range(size)), version=draw(st.integers(1, 3))))


@settings(ALIKE, max_examples=60)
@given(files(), st.data())
def test_a_damaged_file(folder: Folder, file_and_array: tuple[bytes, np.ndarray], data: st.DataObject) -> None:
    """Files with bytes replaced, inserted or cut out are read or refused as by `numpy.load`."""
    file = bytearray(file_and_array[0])
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, min(len(file), 140)))  # in the header, mostly
        stop = start + data.draw(st.integers(0, 3))
        text = st.text("0123456789-,L()[]{}'\" fiu<>|:\n", max_size=3)
        file[start:stop] = data.draw(st.binary(max_size=3) | text.map(str.encode))
    if data.draw(st.integers(0, 4)) == 0:
        del file[data.draw(st.integers(0, len(file))) :]

    agree(folder, bytes(file))
