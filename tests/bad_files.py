"""Files that can't be samples, with parts of their errors; and unusual files that are samples."""

from __future__ import annotations

import io
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

GOOD = np.arange(12, dtype=np.float32).reshape(4, 3)


def npy(array: np.ndarray, **options: Any) -> bytes:
    """The bytes of an .npy file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **options)
    return file.getvalue()


def with_header(header: bytes, *, version: bytes = b"\x01\x00", length: int | None = None) -> bytes:
    """An .npy file with this header and room for the data."""
    form = "<H" if version[0] == 1 else "<I"
    return b"\x93NUMPY" + version + struct.pack(form, len(header) if length is None else length) + header + bytes(1000)


def put(path: Path, content: bytes | Callable[[Path], object] | None) -> None:
    """Make ``path`` a file of these bytes, or whatever the function makes of it; None for nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if callable(content):
        content(path)
    elif content is not None:
        path.write_bytes(content)


def listen(path: Path) -> None:
    """Make ``path`` a socket."""
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


BAD = [
    # the content of the file or a function that makes it, what the error says was expected, and what was found
    pytest.param(None, "a file", "none", id="missing"),
    pytest.param(b"", "an .npy file", "an empty one (0 bytes)", id="empty"),
    pytest.param(npy(GOOD)[:-1], "176 bytes", "175: the file is truncated", id="truncated-by-a-byte"),
    pytest.param(npy(GOOD)[:128], "176 bytes", "128: the file is truncated", id="truncated-after-header"),
    pytest.param(npy(GOOD)[:100], "header of 128 bytes", "the end of the file after 100", id="truncated-in-header"),
    pytest.param(npy(GOOD)[:9], "header", "the end of the file after 9 bytes", id="truncated-in-prefix"),
    pytest.param(npy(GOOD)[:4], "an .npy file", "begins with b'\\x93NUM'", id="truncated-in-magic"),
    pytest.param(npy(np.asfortranarray(GOOD))[:-8], "176 bytes", "168", id="truncated-fortran"),
    pytest.param(npy(GOOD.astype(np.float64))[:-8], "224 bytes", "216", id="truncated-cast"),
    pytest.param(npy(GOOD, version=(2, 0))[:-8], "176 bytes", "168", id="truncated-version-2"),
    pytest.param(npy(GOOD.reshape(3, 4)), "shape (4, 3)", "(3, 4)", id="other-shape-of-the-same-size"),
    pytest.param(npy(GOOD[None]), "shape (4, 3)", "(1, 4, 3)", id="one-axis-more"),
    pytest.param(npy(GOOD[0]), "shape (4, 3)", "(3,)", id="one-axis-less"),
    pytest.param(npy(GOOD[:0]), "", "(0, 3)", id="no-elements"),
    pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(1000), "an .npy file", "begins with b'\\x89PNG", id="not-npy"),
    pytest.param(bytes(1000), "an .npy file", "begins with b'\\x00", id="all-zeros"),
    pytest.param(b"PK\x03\x04" + bytes(1000), "an .npy file", "begins with b'PK", id="npz"),
    pytest.param(npy(GOOD.astype(object)), "numbers", "Python objects", id="object-array"),
    pytest.param(npy(np.zeros((4, 3), "f4,i4")), "dtype float32", "[('f0', '<f4'), ('f1', '<i4')]", id="structured"),
    pytest.param(npy(np.zeros((4, 3), [("a" * 300, "f4")])), "", "aaa", id="structured-of-a-long-header"),
    pytest.param(npy(np.zeros((4, 3), "U5")), "dtype float32", "<U5", id="str"),
    pytest.param(npy(np.zeros((4, 3), "S5")), "dtype float32", "|S5", id="bytes"),
    pytest.param(npy(np.zeros((4, 3), "M8[s]")), "dtype float32", "datetime64[s]", id="datetime"),
    pytest.param(npy(GOOD.astype(np.complex64)), "dtype float32", "complex64", id="cast-loses-more-than-precision"),
    pytest.param(Path.mkdir, "a file", "a directory", id="directory"),
    pytest.param(
        lambda path: path.symlink_to("nowhere"), "a file", "a link to 'nowhere', which does not exist", id="dangling-link"
    ),
    pytest.param(lambda path: path.symlink_to(path.name), "a readable file", "Too many levels", id="link-to-itself"),
    pytest.param(with_header(b"no dict\n"), "an .npy header", "no dict", id="header-not-a-dict"),
    pytest.param(with_header(b"'\\d'\n"), "an .npy header", "b\"'", id="header-with-a-syntax-warning"),
    pytest.param(with_header(b"{'descr': '<f4'}\n"), "an .npy header", "'descr'", id="header-lacks-keys"),
    pytest.param(with_header(b"{'descr': 'x9', 'fortran_order': False, 'shape': (4, 3)}\n"), "header", "x9", id="header-dtype"),
    pytest.param(with_header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-4, 3)}\n"), "", "-4", id="header-negative"),
    pytest.param(with_header(b"(" * 9000), "header", "(((", id="header-too-deep"),
    pytest.param(with_header(b"", length=60_000), "10,000 characters", "60,000", id="header-too-long"),
    pytest.param(with_header(b"{}", version=b"\x07\x00"), "version 1.0, 2.0 or 3.0", "7.0", id="version-unknown"),
    pytest.param(
        with_header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (%b, %b)}\n" % (b"9" * 4000, b"9" * 4000)),
        "an .npy header",
        "'shape': (999",
        id="header-of-absurd-sizes",
    ),
]
"""Bad if most files are like `GOOD`."""


def of_shape(shape: object) -> bytes:
    """An .npy file that promises an array of float32 of this shape and holds 1,000 bytes."""
    return with_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n".encode())


HOSTILE = [
    # content that promises too much, or overloads a parser; what the error says was expected, and what was found
    pytest.param(of_shape("(-0x" + "f" * 9000 + ",)"), "an .npy header", "-0xfff", id="huge-negative-size"),
    pytest.param(of_shape((3 - 2**61, 8)), "a shape of sizes from 0", "(-", id="negative-size"),
    pytest.param(of_shape("(" * 5000), "an .npy header", "((", id="parentheses"),
    pytest.param(of_shape("__import__('os').abort()"), "an .npy header", "abort", id="code"),
    pytest.param(
        b"\x93NUMPY\x02\0" + struct.pack("<I", 10_000_000) + b"{" * 10_000_000,
        "an .npy header of at most 10,000 characters",
        "one of 10,000,000",
        id="header-of-megabytes",
    ),
]

STALLING = [
    # files that an ordinary open or read would wait for, without end; the columns are those of the other tables
    pytest.param(os.mkfifo, "a file", "a FIFO", id="fifo"),
    pytest.param(listen, "a file", "a socket", id="socket"),
    pytest.param(lambda path: path.symlink_to("/dev/ptmx"), "a file", "a device", id="terminal"),
    pytest.param(lambda path: path.symlink_to("/dev/zero"), "an .npy file", "begins with b'\\x00", id="endless-device"),
]

SOUND = [
    pytest.param(npy(np.asfortranarray(GOOD)), id="fortran"),
    pytest.param(npy(GOOD.astype(">f4")), id="big-endian"),
    pytest.param(npy(GOOD.astype(np.float64)), id="wider"),
    pytest.param(npy(GOOD.astype(np.int16)), id="integers"),
    pytest.param(npy(GOOD, version=(2, 0)), id="version-2"),
    pytest.param(npy(GOOD, version=(3, 0)), id="version-3"),
    pytest.param(npy(GOOD) + b"more", id="bytes-after-the-data"),
    pytest.param(with_header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (4L, 3L), }\n"), id="python-2"),
    pytest.param(lambda path: path.symlink_to("good.npy"), id="link"),
]
"""Valid files with the content of `GOOD`, or nearly."""
