"""The command line is the same, and knows its own name, as ``shmgen`` and as ``python -m shmgen``."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import shmgen

ROOT = Path(__file__).parents[1]
MODULE, _, FUNCTION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["shmgen"].partition(":")

WAYS = {
    # What is typed -> what that runs; of a console command, what an installer writes into its script.
    "shmgen": [sys.executable, "-W", "error", "-c", f"import sys; from {MODULE} import {FUNCTION}; sys.exit({FUNCTION}())"],
    "python -m shmgen": [sys.executable, "-W", "error", "-m", "shmgen"],
}


def run(way: str, *words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command line, run to its end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([*WAYS[way], *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("way", WAYS)
def test_its_version(way: str) -> None:
    """That of the package, under the package's name."""
    done = run(way, "--version")

    assert (done.returncode, done.stdout, done.stderr) == (0, f"shmgen {shmgen.__version__}\n", "")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("words", [(), ("scan",), ("tune",), ("pack",)])
def test_its_name_in_usage(way: str, words: tuple[str, ...]) -> None:
    """What is shown as usage can be typed as it stands; also where it comes with an error."""
    with_help, wrong = run(way, *words, "--help"), run(way, *words, "--wrong")

    usage = "usage: " + " ".join([way, *words]) + " ["
    assert with_help.returncode == 0
    assert with_help.stdout.startswith(usage)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith(usage)
    assert f"\n{' '.join([way, *words])}: error: " in wrong.stderr


@pytest.mark.parametrize(("way", "command"), list(zip(WAYS, ["scan", "tune"], strict=True)))
def test_its_name_in_errors(way: str, command: str) -> None:
    """An error of a command begins with what was typed, and is its exit status."""
    done = run(way, command, "nowhere")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{way} {command}: nowhere: expected a folder")


@pytest.mark.parametrize("way", WAYS)
def test_its_exit_status(way: str, tmp_path: Path) -> None:
    """Of a scan that finds damage, and of one that finds none."""
    np.save(tmp_path / "good.npy", np.zeros(3))
    assert run(way, "scan", tmp_path).returncode == 0
    (tmp_path / "bad.npy").write_bytes(b"")
    assert run(way, "scan", tmp_path).returncode == 1


def test_a_wrong_argument_leaves_files_alone(tmp_path: Path) -> None:
    """What was to be written over is as it was."""
    (tmp_path / "result").write_text("of yesterday")
    for command in ("scan", "tune"):
        for wrong in (["nowhere"], [".", "--dim", "x"]):
            assert run("shmgen", command, *wrong, "--json", "result", cwd=tmp_path).returncode == 2
    assert (tmp_path / "result").read_text() == "of yesterday"
