"""How a process finds its rank: from launchers' variables and live runtimes; and its share of the processors."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from launched import free_port, needs

from shmgen import InputError, _ranks as ranks
from shmgen._memory import limits
from shmgen._ranks import find_shard, local_ranks

VARIABLES = {name for launcher in (ranks.TORCHRUN, *ranks.MPI, ranks.SLURM) for name in launcher}

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "none"}
MPIRUN = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "6", "OMPI_COMM_WORLD_LOCAL_SIZE": "3"}
SRUN = {
    "SLURM_PROCID": "4", "SLURM_NTASKS": "7", "SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x2),3",
    "SLURM_STEP_NODELIST": "n[1-3]",
}  # fmt: skip
SBATCH = {"SLURM_PROCID": "0", "SLURM_NTASKS": "7", "SLURM_NODEID": "0"}
"""Variables of a batch script, before srun has started anything."""


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets a launcher's variables in this process, from which others', and all runtimes, are removed."""
    for name in os.environ:
        if name in VARIABLES or name.startswith(("SLURM", "TORCHELASTIC")):
            monkeypatch.delenv(name)
    for name in ranks.RUNTIMES:
        monkeypatch.delitem(sys.modules, name, raising=False)

    def launched(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return launched


@pytest.mark.parametrize(
    ("variables", "shard", "local"),
    [
        ({}, (0, 1), 1),
        (TORCHRUN, (3, 8), 4),
        ({"RANK": "0", "WORLD_SIZE": "1"}, (0, 1), 1),
        (MPIRUN, (2, 6), 3),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALNRANKS": "2"}, (1, 2), 2),
        ({"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_LOCAL_SIZE": "1"}, (1, 2), 1),
        (SRUN, (4, 7), 3),
        ({**SRUN, "SLURM_NODEID": "1"}, (4, 7), 2),
        # Nested launchers: torchrun in one Slurm task a machine; mpirun in a batch script, or by daemons that srun started.
        ({**SRUN, **TORCHRUN}, (3, 8), 4),
        ({**SBATCH, **MPIRUN}, (2, 6), 3),
        ({**SRUN, **MPIRUN}, (2, 6), 3),
        ({**MPIRUN, **TORCHRUN}, (3, 8), 4),
        ({**MPIRUN, "RANK": "2", "WORLD_SIZE": "6"}, (2, 6), 3),
        # A batch script without a number of tasks, and one with a single task.
        ({"SLURM_PROCID": "0"}, (0, 1), 1),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, (0, 1), 1),
        ({"LOCAL_WORLD_SIZE": "many", "SLURM_STEP_TASKS_PER_NODE": "?", "SLURM_NODEID": "0"}, (0, 1), 1),
    ],
)
def test_ranks_from_launchers_variables(
    environment: Callable[..., None], variables: dict[str, str], shard: tuple[int, int], local: int
) -> None:
    """The innermost launcher's variables count; without any, the process is the only rank."""
    environment(variables)
    assert find_shard() == shard
    assert local_ranks() == local


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RANK": "1"}, "expected both RANK and WORLD_SIZE to be set, or none, found only RANK=1"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "both OMPI_COMM_WORLD_RANK and .*, found only OMPI_COMM_WORLD_SIZE=2"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "expected 0 <= RANK < WORLD_SIZE, found RANK=2, WORLD_SIZE=2"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "found RANK=-1"),
        ({"RANK": "first", "WORLD_SIZE": "2"}, "found RANK=first"),
        ({"PMI_RANK": "0", "PMI_SIZE": "0"}, "expected 0 <= PMI_RANK < PMI_SIZE"),
        ({**MPIRUN, "RANK": "0", "WORLD_SIZE": "6"}, "0 of 6 by RANK and WORLD_SIZE, 2 of 6 by OMPI_COMM_WORLD_RANK and"),
        ({"SLURM_PROCID": "1"}, "found only SLURM_PROCID=1"),
        (SBATCH, "SLURM_NTASKS=7, but this process was not started by srun.*start it by srun"),
        ({"SLURM_NTASKS": "2"}, "SLURM_NTASKS=2, but this process was not started by srun"),
    ],
)
def test_contradictory_variables_are_an_error(environment: Callable[..., None], variables: dict[str, str], said: str) -> None:
    """Variables that are incomplete, impossible or contradictory are an error that names them, and a remedy."""
    environment(variables)
    with pytest.raises(InputError, match=f"{said}.*shard=\\(rank, world\\)"):
        find_shard()


def test_live_runtimes_take_precedence(environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A live runtime takes precedence over the environment, one that is only imported is ignored, and two must agree."""
    environment(MPIRUN)
    torch = SimpleNamespace(is_available=lambda: True, is_initialized=lambda: False, get_rank=lambda: 1, get_world_size=lambda: 2)
    state = SimpleNamespace(client=None, process_id=0, num_processes=1)
    monkeypatch.setitem(sys.modules, "torch.distributed", torch)
    jax: Any = SimpleNamespace(_src=SimpleNamespace(distributed=SimpleNamespace(global_state=state)))
    monkeypatch.setitem(sys.modules, "jax", jax)
    assert find_shard() == (2, 6)
    torch.is_initialized = lambda: True
    assert find_shard() == (1, 2)
    state.client = object()
    with pytest.raises(InputError, match=r"found 0 of 1 by jax\.distributed, 1 of 2 by torch\.distributed; say it: shard="):
        find_shard()
    state.process_id, state.num_processes = 1, 2
    assert find_shard() == (1, 2)


def test_finding_the_rank_imports_nothing(environment: Callable[..., None]) -> None:
    """Finding the rank imports no modules."""
    environment({})
    before = set(sys.modules)
    find_shard(), local_ranks()
    assert set(sys.modules) == before


RUNTIMES = """
import os
from shmgen._ranks import find_shard
{setup}
say(*find_shard())
"""

TORCH = """
import torch.distributed
from torch.testing._internal.distributed.fake_pg import FakeStore
assert find_shard() == (0, 1)
torch.distributed.init_process_group("fake", rank=1, world_size=3, store=FakeStore())
"""

JAX = """
import jax
assert find_shard() == (0, 1)
jax.distributed.initialize("127.0.0.1:{port}", 1, 0)
from jax._src import xla_bridge
find_shard()
assert not xla_bridge.backends_are_initialized()
"""

RAY = """
import ray, ray.train
assert find_shard() == (0, 1)
assert not ray.is_initialized()
"""


@pytest.mark.parametrize(
    ("setup", "shard"),
    [
        pytest.param(TORCH, "1 3", id="torch", marks=[pytest.mark.torch, needs("torch")]),
        pytest.param(JAX, "0 1", id="jax", marks=needs("jax")),
        pytest.param(RAY, "0 1", id="ray", marks=needs("ray")),
    ],
)
def test_only_live_runtimes_count(folder: Callable[..., Any], script: Callable[..., Any], setup: str, shard: str) -> None:
    """A real runtime is ignored while it is only imported, asked once it is live, and never started."""
    ran = script(RUNTIMES.format(setup=setup.format(port=free_port())), folder(), options=())
    assert ran.end() == 0, ran.err
    assert ran.out.split("\n")[-2] == shard


@pytest.mark.parametrize(("own", "launchers", "quota", "number"), [
    (64, 64, None, 8), (8, 64, None, 8), (4, 64, None, 4), (32, 64, None, 8), (16, 16, None, 2), (64, 64, 16, 2), (64, 64, -1, 8),
    (64, 16, None, 2),
])  # fmt: skip
def test_a_rank_takes_its_share_of_the_processors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, own: int, launchers: int, quota: int | None, number: int
) -> None:
    """One of 8 ranks has an eighth of the launcher's processors, or those that it was bound to, if these are fewer."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(launchers if pid else own))
    monkeypatch.setattr(limits, "_groups", lambda controller: [(tmp_path, 2)])
    if quota is not None:
        (tmp_path / "cpu.max").write_text(f"{quota * 100_000 if quota > 0 else 'max'} 100000")
    assert limits.processors(8) == number
    assert limits.processors(2) == min(own, (launchers if quota in (None, -1) else quota) / 2)
    assert limits.processors() == (own if quota in (None, -1) else min(own, quota))
