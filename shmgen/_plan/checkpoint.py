"""The state that a run resumes from: what is saved, and whether it fits the loader that loads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shmgen._checks import check_int
from shmgen._plan.by_length import fingerprint
from shmgen._plan.passes import LAST_EPOCH, Position
from shmgen._plan.sampler import Sampler
from shmgen.errors import InputError

VERSION = 1
"""Version of the state's form."""

ORDER = 1
"""Version of the rules by which orders are computed; see `shmgen._plan.order`."""

MUST_BE_SAME = {
    "version": "it was saved by another version of shmgen, which can load it",
    "order": "it was saved by another version of shmgen, which computes other orders; resume with that version",
    "samples": "give the ids that it was saved with",
    "ids": "give the ids that it was saved with, in the same order",
    "seed": "give the seed that it was saved with",
    "shuffle": "give the value that it was saved with",
    "tail": "give the value that it was saved with",
    "sampling_weights": "give the sampling_weights that it was saved with",
    "lengths": "give the lengths and the batch_size that it was saved with",
}
"""What a state and its loader must have in common, with the remedy where they don't."""


def identity(sampler: Sampler, ids: str) -> dict[str, Any]:
    """What a state belongs to: a loader resumes from it only with the same values, except those of batches. ``ids`` is a hash."""
    weights, lengths = sampler.weights, sampler.lengths
    return {
        "samples": sampler.samples,
        "ids": ids,
        "seed": sampler.seed,
        "shuffle": sampler.shuffle,
        "tail": sampler.tail.value,
        "sampling_weights": "" if weights is None else weights.fingerprint(),
        "lengths": "" if lengths is None else fingerprint(lengths, sampler.batch_size),
        "batch_size": sampler.batch_size,
        "batches": sampler.batches,
    }


def saved(mine: dict[str, Any], position: Position) -> dict[str, int | str | bool]:
    """The state of a loader at ``position``: a flat dict of JSON's types.

    ``consumed`` counts samples of the epoch, of all ranks together. At the end of an epoch it is 0, and the epoch the next one.
    """
    epoch, batch = position if position.batch < mine["batches"] else Position(position.epoch + 1, 0)
    own = {key: value for key, value in mine.items() if key != "batches"}
    return {"version": VERSION, "order": ORDER, "epoch": epoch, "consumed": batch * mine["batch_size"], **own}


def loaded(mine: dict[str, Any], state: Mapping[str, Any]) -> Position:
    """Where a loader resumes from ``state``; an InputError if that is of other data, or not between two batches of this size."""
    own = saved(mine, Position(0, 0))
    if not isinstance(state, Mapping) or (missing := own.keys() - state.keys()):
        found = f"a dict without {', '.join(map(repr, sorted(missing)))}" if isinstance(state, Mapping) else repr(state)
        raise InputError(f"state: expected what state_dict() returned, found {found}")
    for key, remedy in MUST_BE_SAME.items():
        if state[key] != own[key]:
            raise InputError(f"state: expected {key}={own[key]!r}, as here, found {state[key]!r}; {remedy}")
    epoch, consumed = (check_int(state[key], f"state: {key}", 0, LAST_EPOCH) for key in ("epoch", "consumed"))
    batch, more = divmod(consumed, mine["batch_size"])
    if more:
        raise InputError(
            f"state: expected a batch_size that divides the {consumed:,} samples of epoch {epoch} that were consumed, found "
            f"{mine['batch_size']}; give one that does, such as {state['batch_size']}, with which it was saved"
        )
    return Position(epoch, batch) if batch < mine["batches"] else Position(epoch + 1, 0)
