"""What docstrings and the guide show of `shmgen.torch` and `shmgen.jax`, runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
from test_docs import surroundings as of_docstrings  # noqa: F401  a fixture
from test_docs import test_the_example_of_a_public_name_runs as run_example
from test_readme import (
    blocks,
    home,  # noqa: F401  a fixture
    run,
)
from test_readme import surroundings as of_pages  # noqa: F401  a fixture

BACKEND = os.environ.get("KERAS_BACKEND")
NAMES = {"torch": "Tensors", "jax": "Arrays"}

if BACKEND not in NAMES:
    pytest.skip("nothing is shown of Keras's default backend that other tests do not run", allow_module_level=True)


def test_the_example_in_the_docstring(of_docstrings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:  # noqa: F811
    """As it stands there, in its folder."""
    name = NAMES[str(BACKEND)]
    shown = getattr(import_module(f"shmgen.{BACKEND}"), name)
    of_docstrings[name] = shown
    monkeypatch.setitem(run_example.__globals__["PUBLIC"], name, shown)
    run_example(of_docstrings, name, capsys)


def test_the_block_of_the_guide(of_pages: Callable[[], dict[str, Any]]) -> None:  # noqa: F811
    """As it stands there, over files that are there."""
    [code] = [block for block in blocks("docs/training.md") if f"shmgen.{BACKEND}" in block]
    run(code, of_pages(), f"the block of {BACKEND}")
