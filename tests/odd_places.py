"""Environments in which Python or the kernel lacks memfd_create; child processes, such as workers, inherit them.

As a program: ``python tests/odd_places.py forbidden COMMAND...`` runs COMMAND where the kernel forbids memfd_create; with ``old``
in place of ``forbidden``, where the interpreter was built against an old glibc.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import sysconfig
import tempfile
from pathlib import Path

MEMFD_CREATE = {"x86_64": 319, "aarch64": 279}
"""The number of the system call."""

MISSING = """
import posix
for name in [name for name in vars(posix) if name.startswith(("MFD_", "memfd_create", "pidfd_open", "O_TMPFILE"))]:
    del vars(posix)[name]
"""
"""Code to run first: it removes from Python what a build against glibc 2.17, such as conda-forge's, does not have."""


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("if_true", ctypes.c_uint8), ("if_false", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction)))


def forbid_memfd() -> None:
    """Have memfd_create fail with EPERM from now on in this process, and in all that it starts, as a sandbox does (seccomp)."""
    load, equal, give = 0x20, 0x15, 0x06
    refuse, allow = 0x00050001, 0x7FFF0000
    steps = (load, 0, 0, 0), (equal, 0, 1, MEMFD_CREATE[platform.machine()]), (give, 0, 0, refuse), (give, 0, 0, allow)
    instructions = (_Instruction * 4)(*(_Instruction(*step) for step in steps))
    program = _Program(len(instructions), instructions)
    libc = ctypes.CDLL(None, use_errno=True)
    set_no_new_privileges, set_seccomp, filter = 38, 22, 2
    for arguments in ((set_no_new_privileges, 1, 0, 0, 0), (set_seccomp, filter, ctypes.byref(program), 0, 0)):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "prctl")


def old_python(folder: Path) -> dict[str, str]:
    """Variables with which this interpreter runs `MISSING` first, by a copy of the standard library in an empty ``folder``."""
    library = Path(sysconfig.get_path("stdlib"))
    copy = folder / library.relative_to(sys.base_prefix)
    copy.mkdir(parents=True)
    for entry in library.iterdir():
        if entry.name not in ("encodings", "site-packages"):
            (copy / entry.name).symlink_to(entry)
    (copy / "encodings").mkdir()
    for entry in (library / "encodings").glob("*.py"):
        (copy / "encodings" / entry.name).symlink_to(entry)
    package = copy / "encodings/__init__.py"
    package.unlink()
    package.write_text(MISSING + (library / "encodings/__init__.py").read_text())
    installed = [entry for entry in sys.path if entry.endswith("site-packages")]
    return {"PYTHONHOME": str(folder), "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *installed])}


if __name__ == "__main__":
    where, *command = sys.argv[1:]
    if where == "forbidden":
        forbid_memfd()
    else:
        os.environ.update(old_python(Path(tempfile.mkdtemp())))
    os.execvp(command[0], command)
