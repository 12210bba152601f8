"""A scan of files behind a URL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from servers import Proxy
from test_npy import KINDS
from test_remote import IDS, SECRET, N


def scan(*arguments: str, stdin: str = "") -> tuple[int, Any, str]:
    """Exit status of a scan, its result, and what it says."""
    run = subprocess.run(
        [sys.executable, "-m", "shmgen", "scan", *arguments, "--json"],
        capture_output=True,
        text=True,
        check=False,
        input=stdin,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return run.returncode, json.loads(run.stdout) if run.stdout else None, run.stderr


@pytest.mark.parametrize("full", [False, True])
def test_a_scan_of_a_url(root: Path, proxy: Proxy, full: bool) -> None:
    """The first bytes of all are asked for, then perhaps whole files; what a loader would refuse is damaged, with its URL."""
    (root / "id-3.npy").write_bytes((root / "id-3.npy").read_bytes()[:150])
    (root / "id-4.npy").write_bytes(b"")
    np.save(root / "id-5.npy", np.full((4, 3), np.nan, "f4"))
    np.save(root / "id-6.npy", np.zeros((4, 4), "f4"))
    (root / "id-7.npy").write_bytes(KINDS["version-3-by-hand"](np.zeros((4, 3), "f4")))
    np.save(root / "id-8.npy", np.zeros((500, 500), "f4"))
    proxy.faults["id-9.npy"] = ["503", "half"]
    status, found, err = scan(proxy.url, "--ids", "-", *["--full"] * full, stdin="\n".join([*IDS, "none"]))
    assert (status, err) == (1, "")
    assert found["samples"] == N + 1
    damaged = {one["id"]: one["reason"] for one in found["damaged"]}
    assert set(damaged) == {"id-3", "id-4", "id-6", "id-8", "none", *["id-5"] * full}
    assert damaged["id-3"] == "expected 176 bytes, found 150: the file is truncated"
    assert damaged["none"].startswith("expected the file, found 404 Not Found")
    assert {one["path"] for one in found["damaged"]} == {f"{proxy.url}/{id}.npy" for id in damaged}
    looked = [request for request in proxy.requests if "range" in request.headers]
    assert {request.target for request in looked} == {f"/{id}.npy" for id in (*IDS, "none")}
    assert (
        max(Counter(request.target for request in looked).values()) <= 2 + 2
    )  # once more if a neighbour is damaged, or after a fault
    whole = {request.target for request in proxy.requests if "range" not in request.headers}
    assert whole == ({f"/{id}.npy" for id in IDS if id not in set(damaged) - {"id-5"}} if full else set())


@pytest.mark.parametrize(
    "command",
    [
        "scan URL --ids IDS --json -",
        "scan URL --ids URL",
        "scan DEAD --ids IDS",
        "pack URL OUT --ids IDS",
    ],
)
def test_no_command_shows_what_is_secret(root: Path, proxy: Proxy, tmp_path: Path, command: str) -> None:
    """Neither in its tables nor in its JSON, nor in its errors: who asks, and what is asked."""
    (tmp_path / "ids").write_text("\n".join([*IDS, "none"]))
    url = proxy.url.replace("//", f"//me:{SECRET}@") + f"/?sig={SECRET}"
    words = {"URL": url, "DEAD": url.replace(str(proxy.port), "1"), "IDS": str(tmp_path / "ids"), "OUT": str(tmp_path / "o.npy")}
    arguments = [words.get(word, word) for word in command.split()]
    run = subprocess.run(
        [sys.executable, "-m", "shmgen", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert proxy.url in run.stdout + run.stderr or "http://127.0.0.1:1/" in run.stdout + run.stderr or "pack" in command
    assert SECRET not in run.stdout + run.stderr


def test_a_scan_needs_ids_where_nothing_can_be_listed(proxy: Proxy) -> None:
    """The error says how to give them."""
    status, _, err = scan(proxy.url)
    assert status == 2
    assert f"{proxy.url}: expected a folder that can be listed, found one that can't be; give the ids, with --ids FILE" in err
