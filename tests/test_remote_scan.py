"""A scan of files behind a URL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Ran
from servers import Proxy
from test_npy import KINDS
from test_remote import IDS, SECRET, N

Cli = Callable[..., Ran]


@pytest.fixture
def ids_file(tmp_path: Path) -> Path:
    """A file with the ids of what is served, and of one more."""
    (tmp_path / "ids").write_text("\n".join([*IDS, "none"]))
    return tmp_path / "ids"


@pytest.mark.parametrize("full", [False, True])
def test_a_scan_of_a_url(root: Path, proxy: Proxy, cli: Cli, ids_file: Path, full: bool) -> None:
    """A scan of a URL asks for the first bytes of each file, and with ``--full`` for whole files; it names bad ones."""
    (root / "id-3.npy").write_bytes((root / "id-3.npy").read_bytes()[:150])
    (root / "id-4.npy").write_bytes(b"")
    np.save(root / "id-5.npy", np.full((4, 3), np.nan, "f4"))
    np.save(root / "id-6.npy", np.zeros((4, 4), "f4"))
    (root / "id-7.npy").write_bytes(KINDS["version-3-by-hand"](np.zeros((4, 3), "f4")))
    np.save(root / "id-8.npy", np.zeros((500, 500), "f4"))
    proxy.faults["id-9.npy"] = ["503", "half"]
    done = cli("scan", proxy.url, "--ids", ids_file, "--json", *["--full"] * full)
    found = done.json
    assert (done.status, done.err) == (1, "")
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


def test_no_command_shows_what_is_secret(proxy: Proxy, root: Path, cli: Cli, ids_file: Path, tmp_path: Path) -> None:
    """No table, JSON or error shows the user or the query of a URL."""
    url = proxy.url.replace("//", f"//me:{SECRET}@") + f"/?sig={SECRET}"
    dead = url.replace(str(proxy.port), "1")
    commands: dict[str, list[object]] = {
        # what the output names -> the command
        proxy.url: ["scan", url, "--ids", ids_file, "--json"],
        f"{proxy.url}/?": ["scan", url, "--ids", url],
        "http://127.0.0.1:1/": ["scan", dead, "--ids", ids_file],
        "none": ["pack", url, tmp_path / "o.npy", "--ids", ids_file],
    }
    for place, words in commands.items():
        done = cli(*words, "--workers", 0)
        assert place in done.out + done.err
        assert SECRET not in done.out + done.err


def test_a_scan_needs_ids_where_nothing_can_be_listed(proxy: Proxy, cli: Cli) -> None:
    """A URL that can't be listed is refused without ids; the error says how to give them."""
    done = cli("scan", proxy.url)
    assert done.status == 2
    assert (
        f"{proxy.url}: expected a folder that can be listed, found one that can't be; give the ids, with --ids FILE" in done.err
    )
