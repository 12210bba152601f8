"""The command line behaves the same as ``shmgen`` and as ``python -m shmgen``, and calls itself by the name typed."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, Ran, python

import shmgen
from shmgen._tools.cli import main

MODULE, _, FUNCTION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["shmgen"].partition(":")

WAYS = {
    # Command typed -> arguments of Python; for ``shmgen``, the code that an installer writes into the command's script.
    "shmgen": ["-W", "error", "-c", f"import sys; from {MODULE} import {FUNCTION}; sys.exit({FUNCTION}())"],
    "python -m shmgen": ["-W", "error", "-m", "shmgen"],
}


@pytest.mark.parametrize("way", WAYS)
def test_version(way: str) -> None:
    """``--version`` prints the package's name and version."""
    done = python(*WAYS[way], "--version")

    assert (done.returncode, done.stdout, done.stderr) == (0, f"shmgen {shmgen.__version__}\n", "")


@pytest.mark.parametrize("way", WAYS)
def test_usage_names_the_command_as_typed(way: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The usage text, also in an error, begins with the command that was typed."""
    for words in ([], ["scan"], ["tune"], ["pack"]):
        usage = "usage: " + " ".join([way, *words]) + " ["
        with pytest.raises(SystemExit, match="0"):
            main([*words, "--help"], way)
        assert capsys.readouterr().out.startswith(usage)
        with pytest.raises(SystemExit, match="2"):
            main([*words, "--wrong"], way)
        wrong = capsys.readouterr().err
        assert wrong.startswith(usage)
        assert f"\n{' '.join([way, *words])}: error: " in wrong


@pytest.mark.parametrize(("way", "command"), list(zip(WAYS, ["scan", "tune"], strict=True)))
def test_errors_name_the_command_as_typed(way: str, command: str) -> None:
    """A command's error begins with the command that was typed, and the process exits with status 2."""
    done = python(*WAYS[way], command, "nowhere")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{way} {command}: nowhere: expected a folder")


def test_a_wrong_argument_overwrites_no_file(tmp_path: Path, cli: Callable[..., Ran]) -> None:
    """A command with a wrong argument does not overwrite its output file."""
    (tmp_path / "result").write_text("of yesterday")
    for wrong in (["nowhere"], [".", "--dim", "x"]):
        assert cli("scan", *wrong, "--good", "result").status == 2
    assert (tmp_path / "result").read_text() == "of yesterday"
