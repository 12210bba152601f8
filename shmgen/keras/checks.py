"""What is wrong with the data that ``fit``, ``evaluate`` or ``predict`` is given, as far as can be known before it begins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import keras

from shmgen._plan.sampler import Shard
from shmgen.keras.synchronised import unsynchronised
from shmgen.loader import Loader

MAX_SHOWN = 80
"""Characters of a list of classes that a warning shows."""


class Use(NamedTuple):
    """What a loader's batches are used for.

    Attributes:
        method: of the model, that is called with them: ``fit``, ``evaluate`` or ``predict``; ``evaluate`` if ``fit`` validates on
            them.
        model: whose method it is.
        validation: what ``fit`` was given as ``validation_data``.
        shuffles: whether ``fit`` was told to shuffle, as it is by default.
        steps: of an epoch, if the method was given a number.
    """

    method: str
    model: keras.Model
    validation: Any
    shuffles: bool
    steps: int | None


def warnings_of(loader: Loader, use: Use) -> Iterator[str]:
    """What the user should know, each with its remedy."""
    if use.method == "fit":
        yield from _of_fit(loader, use)
    elif use.method == "predict":
        yield from _of_predict(loader)
    if use.method != "fit" and use.steps is None:
        yield from _of_samples_left_out(loader, use.method)


def _of_fit(loader: Loader, use: Use) -> Iterator[str]:
    if (text := unsynchronised(use.model, Shard(*loader.shard))) is not None:
        yield text
    if use.shuffles and not loader.shuffle:
        yield (
            "fit(shuffle=True), its default, changes nothing: a Sequence with shuffle=False has the order of list_IDs in every "
            "epoch; pass shuffle=True to the Sequence, or, if that order is wanted, shuffle=False to fit() as well"
        )
    classes, others = loader.classes, getattr(use.validation, "classes", None)
    if None not in (classes, others) and classes != others:
        yield (
            f"the classes of the training data are {_shortened(classes)}, and those of the validation data {_shortened(others)}, "
            "so that the same number means another class: pass classes=training.classes to the validation data"
        )


def _of_predict(loader: Loader) -> Iterator[str]:
    if loader.shuffle:
        yield (
            "predict over a Sequence with shuffle=True returns rows in the order of that pass, not in that of list_IDs: "
            "make a Sequence with shuffle=False for it"
        )
    rank, world = loader.shard
    if world > 1:
        yield (
            f"predict over a Sequence with shard=({rank}, {world}) returns the rows of this rank alone: predict in one process, "
            "over a Sequence without shard"
        )
    more = loader.batch_size * len(loader) - len(loader.list_IDs)
    if more > 0 and loader.fills_up:
        yield (
            f"predict returns {more:,} rows more than there are ids, which fill up the last batch: leave the last {more:,} out, "
            "or make a Sequence with tail='keep' for it"
        )
    if loader.replaces:
        yield (
            "predict over a Sequence with on_error='replace' returns rows of other samples in place of those that can't be read, "
            "which `damaged` lists: make a Sequence with on_error='raise' for it"
        )


def _of_samples_left_out(loader: Loader, method: str) -> Iterator[str]:
    lost = len(loader.list_IDs) - loader.batch_size * len(loader)
    if lost > 0:
        others = " (others in each pass)" if loader.shuffle else ""
        remedy = "shuffle=False, tail='keep'" if loader.shuffle else "tail='keep'"
        yield (
            f"{method} leaves out {lost:,} of {len(loader.list_IDs):,} samples{others}, which fill no batch of "
            f"{loader.batch_size}: make a Sequence with {remedy} for it"
        )


def _shortened(classes: object) -> str:
    text = repr(classes)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
