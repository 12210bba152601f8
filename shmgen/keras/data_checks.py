"""Errors and warnings on the data of ``fit``, ``evaluate`` or ``predict`` that can be given before the method begins."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

from shmgen._engine.feed import Feed
from shmgen._plan.sampler import Shard, Tail
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


class Call(NamedTuple):
    """A call of a model's method that is about to take a feed's batches."""

    method: str  # ``evaluate`` for ``validation_data`` of ``fit``
    model: keras.Model
    validation: Any
    shuffles: bool
    steps: int | None  # that the method was given
    no_rows: tuple[Any, ...] | None  # a batch without rows, as the model gets them; None if that is not known


def check(feed: Feed, call: Call) -> None:
    """Raise an InputError, with the remedy, for data that Keras would refuse in many words, or train on wrongly.

    The loss of a model with a ``train_step`` or ``compute_loss`` of its own is not checked.
    """
    distribution = keras.distribution.distribution()
    if getattr(distribution, "auto_shard_dataset", False) and getattr(distribution, "_is_multi_process", False):
        raise InputError(
            f"{call.method} under DataParallel(auto_shard_dataset=True) shards the data once more, so that most samples are "
            "never seen: pass auto_shard_dataset=False to DataParallel, and shard='auto' to the Sequence"
        )
    if call.method == "predict" or call.no_rows is None or not _is_keras_own(call.model, "train_step", "compute_loss"):
        return
    loss = getattr(call.model, "loss", None)
    targets = call.no_rows[1:2]
    if loss and not targets:
        raise InputError(
            f"{call.method} with loss={_name(loss)!r} needs targets, and this Sequence has none: pass labels= or targets= to it"
        )
    if not targets or not isinstance(targets[0], np.ndarray):
        return
    are_numbers = targets[0].ndim == 1 and targets[0].dtype.kind in "iu"
    if are_numbers and _name(loss) == "categorical_crossentropy":
        raise InputError(
            "loss='categorical_crossentropy' expects one-hot rows, found labels that are numbers: pass n_classes= to the "
            "Sequence, or loss='sparse_categorical_crossentropy' to compile()"
        )
    if feed.n_classes is not None and _name(loss) == "sparse_categorical_crossentropy":
        raise InputError(
            f"loss='sparse_categorical_crossentropy' expects labels that are numbers, found rows of {feed.n_classes}: leave "
            "n_classes out of the Sequence, or pass loss='categorical_crossentropy' to compile()"
        )


def warnings_of(feed: Feed, call: Call) -> Iterator[str]:
    """Warnings for the user, each with a remedy."""
    if call.method == "fit":
        yield from _of_fit(feed, call)
    elif call.method == "predict":
        yield from _of_predict(feed)
    lost = len(feed.ids) - feed.sampler.batch_size * len(feed)
    if call.method != "fit" and call.steps is None and lost > 0:
        others = " (others in each pass)" if feed.sampler.shuffle else ""
        remedy = "shuffle=False, tail='keep'" if feed.sampler.shuffle else "tail='keep'"
        yield (
            f"{call.method} leaves out {lost:,} of {len(feed.ids):,} samples{others}, which fill no batch of "
            f"{feed.sampler.batch_size}: make a Sequence with {remedy} for it"
        )


def _name(loss: Any) -> str:
    """The name of a loss, as ``compile`` takes it: a name, a function, a `keras.losses.Loss`, or several losses."""
    return loss if isinstance(loss, str) else getattr(loss, "name", getattr(loss, "__name__", repr(loss)))


def _of_fit(feed: Feed, call: Call) -> Iterator[str]:
    yield from _of_ranks(call.model, feed.sampler.shard)
    if call.shuffles and not feed.sampler.shuffle:
        yield (
            "fit(shuffle=True), its default, changes nothing: a Sequence with shuffle=False has the order of list_IDs in every "
            "epoch; pass shuffle=True to the Sequence, or, if that order is wanted, shuffle=False to fit() as well"
        )
    classes, others = feed.spec.classes, getattr(call.validation, "classes", None)
    if None not in (classes, others) and classes != others:
        ours, theirs = reprlib.repr(classes), reprlib.repr(others)
        yield (
            f"the classes of the training data are {ours}, and those of the validation data {theirs}, so that the same number "
            "means another class: pass classes=training.classes to the validation data"
        )


def _of_predict(feed: Feed) -> Iterator[str]:
    if feed.sampler.shuffle:
        yield (
            "predict over a Sequence with shuffle=True returns rows in the order of that pass, not in that of list_IDs: "
            "make a Sequence with shuffle=False for it"
        )
    rank, world = feed.sampler.shard
    if world > 1:
        yield (
            f"predict over a Sequence with shard=({rank}, {world}) returns the rows of this rank alone: predict in one process, "
            "over a Sequence without shard"
        )
    more = feed.sampler.batch_size * len(feed) - len(feed.ids)
    if more > 0 and feed.sampler.tail in (Tail.WRAP, Tail.PAD):
        yield (
            f"predict returns {more:,} rows more than there are ids, which fill up the last batch: leave the last {more:,} out, "
            "or make a Sequence with tail='keep' for it"
        )
    if feed.damage.on_error == "replace":
        yield (
            "predict over a Sequence with on_error='replace' returns rows of other samples in place of those that can't be read, "
            "which `damaged` lists: make a Sequence with on_error='raise' for it"
        )


def _of_ranks(model: keras.Model, shard: Shard) -> Iterator[str]:
    """Unless something synchronises the weights of several ranks, each trains a model of its own.

    A ``train_step`` of the user's own is not doubted.
    """
    if keras.distribution.distribution() is not None:
        try:
            expected = find_shard()
        except InputError:
            return
        if shard != expected:
            yield (
                "fit under keras.distribution makes each batch of the parts of all processes: expected a Sequence with shard="
                f"{tuple(expected)} on this one, found shard={tuple(shard)}; give that, or shard='auto' once the distribution is "
                "set"
            )
        return
    world = max(shard.world, launched_ranks())
    if world > 1 and _is_keras_own(model, "train_step", "make_train_function") and not _is_parallel(model):
        yield (
            f"fit trains another model on each of {world} ranks, since nothing keeps their weights the same; "
            f"{REMEDIES.get(keras.backend.backend(), 'give the model a train_step that does')}"
        )


def _is_keras_own(model: keras.Model, *names: str) -> bool:
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
