"""Starts scripts as ranks on this machine, as a launcher does."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from typing import Any

import pytest
from servers import free_port

QUIET = "import os\nos.environ.update(TF_CPP_MIN_LOG_LEVEL='3', CUDA_VISIBLE_DEVICES='', JAX_PLATFORMS='cpu')\n"


def needs(*packages: str) -> pytest.MarkDecorator:
    """Skips a test where a package is not installed; nothing is imported to find out."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def launched(script: Callable[..., Any], code: str, data: Any, *worlds: int) -> list[list[Any]]:
    """Run a script as all ranks of all ``worlds`` at once; for each world, the last line of each rank's output, from JSON.

    Args:
        script: the fixture.
        code: the script. It may use ``RANK``, ``WORLD``, ``PORT`` (one for each world), and torchrun's environment variables.
        data: the data set of the script.
    """
    started = []
    for world in worlds:
        port = free_port()
        for rank in range(world):
            said = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            environment = {name: str(value) for name, value in said.items()}
            named = f"RANK, WORLD, PORT = {rank}, {world}, {port}\nos.environ.update({environment})\n"
            started.append(script(QUIET + named + code, data, options=("-W", "error::ResourceWarning")))
    found = []
    for ran in started:
        assert ran.end(100) == 0, ran.err
        assert "Traceback" not in ran.err, ran.err
        found.append(json.loads(ran.out.splitlines()[-1]))
    return [[found.pop(0) for _ in range(world)] for world in worlds]
