"""Checkpoints of torch, torchdata and Orbax, if installed, can save and load the state of a loader."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, python
from ways import N, computed

from shmgen import Loader

LEFT = 3
"""Number of batches taken before the state is saved."""


@pytest.fixture
def loaders() -> Iterator[tuple[Loader, list[list[int]], Loader]]:
    """A loader from which `LEFT` batches were taken, the labels of the remaining batches, and another loader."""
    with (
        computed(labels=range(N), workers=0) as one,
        computed(labels=range(N), workers=0) as whole,
        computed(labels=range(N), workers=0) as other,
    ):
        batches = iter(one)
        for _ in range(LEFT):
            next(batches)
        yield one, labels_of(whole)[LEFT:], other


def labels_of(batches: Any) -> list[list[int]]:
    return [y.tolist() for _, y in batches]


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torchs_distributed_checkpoint(loaders: Any, tmp_path: Path) -> None:
    """torch's distributed checkpoint saves and loads a loader as it does a module."""
    checkpoint = pytest.importorskip("torch.distributed.checkpoint")
    one, expected, other = loaders
    checkpoint.save({"data": one}, checkpoint_id=tmp_path, no_dist=True)
    checkpoint.load({"data": other}, checkpoint_id=tmp_path, no_dist=True)
    assert labels_of(other) == expected


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
def test_torchdatas_stateful_data_loader(loaders: Any) -> None:
    """torchdata's StatefulDataLoader over `Tensors` saves and loads the loader's state."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    from shmgen.torch import Tensors

    one, expected, other = loaders
    assert isinstance(one, stateful.Stateful)
    one.load_state_dict({**one.state_dict(), "consumed": 0})
    whole = stateful.StatefulDataLoader(Tensors(one), batch_size=None)
    batches = iter(whole)
    for _ in range(LEFT):
        next(batches)
    rest = stateful.StatefulDataLoader(Tensors(other), batch_size=None)
    rest.load_state_dict(whole.state_dict())
    assert labels_of(rest) == expected


ORBAX = """
    import sys
    sys.modules["tensorflow"] = None  # Orbax would import it, which takes long

    import json, warnings
    from pathlib import Path
    warnings.simplefilter("ignore")
    import orbax.checkpoint as ocp
    from ways import N, computed

    one, other = (computed(labels=range(N), workers=0) for _ in range(2))
    batches = iter(one)
    for _ in range(3):
        next(batches)
    rest = {}
    with ocp.CheckpointManager(Path(sys.argv[1])) as manager:
        manager.save(0, args=ocp.args.JsonSave(one.state_dict()))
        manager.wait_until_finished()
        other.load_state_dict(manager.restore(0, args=ocp.args.JsonRestore()))
        rest["orbax"] = [y.tolist() for _, y in other]
    print(json.dumps(rest))
    for loader in one, other:
        loader.close()
"""


def test_orbax(loaders: Any, tmp_path: Path) -> None:
    """Orbax saves and restores a loader's state as JSON."""
    pytest.importorskip("tensorstore", reason="orbax-checkpoint is not installed")
    _, expected, _ = loaders
    (tmp_path / "script.py").write_text(textwrap.dedent(ORBAX))
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "JAX_PLATFORMS": "cpu"}
    done = python(tmp_path / "script.py", tmp_path / "states", env=environment)
    assert done.returncode == 0, done.stderr
    rest = json.loads(done.stdout.splitlines()[-1])
    assert rest["orbax"] == expected
