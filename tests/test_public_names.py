"""What ``import shmgen`` alone gives, and what it says where something is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import shmgen

ROOT = Path(__file__).parents[1]

FRONT_ENDS = ["keras"]


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_front_ends_need_no_import_of_their_own(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """``import shmgen; shmgen.keras`` is the module, and is among the names."""
    __import__(f"shmgen.{name}")
    monkeypatch.delattr(shmgen, name)
    assert getattr(shmgen, name) is sys.modules[f"shmgen.{name}"]
    assert name in dir(shmgen)


def test_other_names_are_no_attributes() -> None:
    """Neither a name that there is not, nor one of the parts, is found."""
    for name in ("Sequenz", "tensorflow"):
        assert not hasattr(shmgen, name)
        assert name not in dir(shmgen)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("shmgen.Sequence", "shmgen.Sequence needs keras, which is not installed: pip install 'shmgen[tensorflow]'"),
        ("shmgen.keras", "shmgen.keras needs keras, which is not installed: pip install 'shmgen[tensorflow]'"),
        ("from shmgen import Sequence", "shmgen.Sequence needs keras, which is not installed"),
    ],
)
def test_what_is_not_installed_is_said(code: str, said: str) -> None:
    """Without Keras, the error says how to get it; `Loader` is there."""
    program = "import sys; sys.modules['keras'] = None; import shmgen; shmgen.Loader"
    program += f"\ntry: {code}\nexcept ImportError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said in done.stdout
    assert "shmgen.Loader does without" in done.stdout
