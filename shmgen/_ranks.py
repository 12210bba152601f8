"""The rank of this process and the number of ranks, for ``shard="auto"``, and the number of ranks on this machine.

A rank is a process that trains on a part of each batch. It is known to the runtime that connects the ranks, and to the launcher
that has started them, which sets environment variables. Nothing is imported or initialised to find out.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from shmgen._plan.sampler import ALONE, Shard
from shmgen.errors import InputError

REMEDY = 'say it: shard=(rank, world) in place of shard="auto"'


class Launcher(NamedTuple):
    """The environment variables of a launcher: the process's rank, the number of ranks, and the number on this machine."""

    rank: str
    world: str
    local: str


TORCHRUN = Launcher("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
"""Some users set these by hand."""

MPI = (
    Launcher("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    Launcher("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"),
    Launcher("PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"),
)

SLURM = Launcher("SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_TASKS_PER_NODE")


def find_shard() -> Shard:
    """The part of each batch that belongs to this process; all of it if no launcher or runtime knows of other ranks.

    Asks the runtimes that are live in this process: jax.distributed, torch.distributed, ray.train. If none is, reads the
    environment. Ranks that share one replica of a model under keras.distribution have the same part.
    """
    shards = live_runtimes() or _launchers(os.environ)
    if len(set(shards.values())) > 1:
        each = ", ".join(f"{rank} of {world} by {name}" for name, (rank, world) in shards.items())
        raise InputError(f"shard: expected one rank on which all agree, found {each}; {REMEDY}")
    rank, world = next(iter(shards.values()), ALONE)
    keras = sys.modules.get("keras")
    distribution = None if keras is None else keras.distribution.distribution()
    if distribution is None:
        return Shard(rank, world)
    mesh = distribution.device_mesh
    replicas = min(world, mesh.shape[mesh.axis_names.index(distribution.batch_dim_name)])
    return Shard(rank * replicas // world, replicas)


def live_runtimes() -> dict[str, Shard]:
    """The rank of this process in each runtime that is live in it, by the runtime's name."""
    asked = {name: ask(sys.modules[name]) for name, ask in RUNTIMES.items() if name in sys.modules}
    return {name.replace("jax", "jax.distributed"): shard for name, shard in asked.items() if shard is not None}


def launched_ranks() -> int:
    """The number of ranks that a live runtime or torchrun knows of; else 1."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        with suppress(KeyError, ValueError):
            return int(os.environ[TORCHRUN.world])
    return max((shard.world for shard in live_runtimes().values()), default=1)


def local_ranks() -> int:
    """The number of ranks on this machine, this one included; 1 if it is not known."""
    if (context := _ray_context(sys.modules.get("ray.train"))) is not None:
        return int(context.get_local_world_size())
    for launcher in (TORCHRUN, *MPI):
        with suppress(KeyError, ValueError):
            return max(1, int(os.environ[launcher.local]))
    with suppress(KeyError, ValueError, IndexError):
        # "2(x3),1" means two tasks on each of three nodes, and one on the fourth.
        counts = re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ[SLURM.local])
        tasks = [int(count) for count, nodes in counts for _ in range(int(nodes or 1))]
        return tasks[int(os.environ["SLURM_NODEID"])]
    return 1


def _ask_jax(jax: Any) -> Shard | None:
    # jax.process_index() would initialise a backend.
    state = jax._src.distributed.global_state
    return None if state.client is None else Shard(state.process_id, state.num_processes)


def _ask_torch(distributed: Any) -> Shard | None:
    live = distributed.is_available() and distributed.is_initialized()
    return Shard(distributed.get_rank(), distributed.get_world_size()) if live else None


def _ask_ray(train: Any) -> Shard | None:
    context = _ray_context(train)
    return None if context is None else Shard(context.get_world_rank(), context.get_world_size())


def _ray_context(train: Any) -> Any:
    """The context of a function that Ray Train runs; None in any other process that has imported it."""
    # Outside of such a function it raises, in one of Ray Tune's as a DeprecationWarning.
    with suppress(RuntimeError, DeprecationWarning):
        return None if train is None else train.get_context()
    return None


RUNTIMES: dict[str, Callable[[Any], Shard | None]] = {"jax": _ask_jax, "torch.distributed": _ask_torch, "ray.train": _ask_ray}
"""How to ask each runtime, by its module, which is imported if the runtime may be live."""


def _launchers(environment: Mapping[str, str]) -> dict[str, Shard]:
    """The rank in the innermost launcher's variables, by their names: torchrun may run under MPI, and both under Slurm."""
    if "TORCHELASTIC_RUN_ID" in environment:
        return dict(_pairs(environment, TORCHRUN))
    # torchrun's variables may have been set by hand, so MPI's must agree.
    if found := dict(_pairs(environment, TORCHRUN, *MPI)):
        return found
    if "SLURM_STEP_NODELIST" in environment or environment.get(SLURM.rank, "0") != "0":
        return dict(_pairs(environment, SLURM))
    # In a batch script, or the shell of an allocation, the variables are of tasks that srun has yet to start.
    if environment.get(SLURM.world, "1") != "1":
        raise InputError(
            f"shard: {SLURM.world}={environment[SLURM.world]}, but this process was not started by srun, so nothing says "
            f"whether there are others; start it by srun, or {REMEDY}"
        )
    return {}


def _pairs(environment: Mapping[str, str], *launchers: Launcher) -> Iterator[tuple[str, Shard]]:
    """The rank in the variables of each of these launchers that has set them, and the names of the variables."""
    for rank, world, _ in launchers:
        found = {name: environment[name] for name in (rank, world) if name in environment}
        said = ", ".join(f"{name}={value}" for name, value in found.items())
        if len(found) == 1:
            raise InputError(f"shard: expected both {rank} and {world} to be set, or none, found only {said}; {REMEDY}")
        if found:
            try:
                shard = Shard(int(found[rank]), int(found[world]))
            except ValueError:
                shard = Shard(-1, 0)
            if not 0 <= shard.rank < shard.world:
                raise InputError(f"shard: expected 0 <= {rank} < {world}, found {said}; {REMEDY}")
            yield f"{rank} and {world}", shard
