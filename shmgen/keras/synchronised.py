"""Whether ``fit`` on several ranks trains one model: unless something synchronises their weights, each rank trains its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from shmgen._plan.sampler import Shard
from shmgen._ranks import find_shard, launched_ranks
from shmgen.errors import InputError

PARALLEL = {"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"}
"""torch's modules that synchronise the weights of ranks."""

REMEDIES = {
    "jax": "call keras.distribution.initialize() and set_distribution(DataParallel(auto_shard_dataset=False)) before the model "
    "is made",
    "torch": "wrap the model in torch's DistributedDataParallel, in a train_step of its own, as examples/train_ddp.py does",
    "tensorflow": "with TensorFlow, Keras 3 does not train on several processes: take its backend jax, as "
    "examples/train_on_ray.py does",
}
"""By Keras's backend: how to synchronise the weights."""


def unsynchronised(model: keras.Model, shard: Shard) -> str | None:
    """A warning if ``fit`` of ``model``, on ranks that get these parts of batches, does not train one model; else None.

    A ``train_step`` of the user's own is not doubted.
    """
    if keras.distribution.distribution() is not None:
        return _wrong_part(shard)
    world = max(shard.world, launched_ranks())
    if world == 1 or not is_keras_own(model, "train_step", "make_train_function") or _is_parallel(model):
        return None
    return (
        f"fit trains another model on each of {world} ranks, since nothing keeps their weights the same; "
        f"{REMEDIES.get(keras.backend.backend(), 'give the model a train_step that does')}"
    )


def _wrong_part(shard: Shard) -> str | None:
    """A warning if keras.distribution, which makes a batch of the parts of all processes, expects another part; else None."""
    try:
        expected = find_shard()
    except InputError:
        return None
    if shard == expected:
        return None
    return (
        f"fit under keras.distribution makes each batch of the parts of all processes: expected a Sequence with shard="
        f"{tuple(expected)} on this one, found shard={tuple(shard)}; give that, or shard='auto' once the distribution is set"
    )


def is_keras_own(model: keras.Model, *names: str) -> bool:
    """Whether these methods of a model are Keras's, and not the user's."""
    return all(getattr(model, name).__module__.partition(".")[0] == "keras" for name in names)


def _is_parallel(model: keras.Model) -> bool:
    """Whether a part of the model is one of torch's modules that synchronise weights."""
    modules = _modules(model) if keras.backend.backend() == "torch" else ()
    return any(cls.__name__ in PARALLEL for module in modules for cls in type(module).__mro__)


def _modules(layer: Any) -> Iterator[Any]:
    """torch's modules that a layer is made of."""
    yield from layer.modules()
    for part in getattr(layer, "layers", ()):
        yield from _modules(part)
