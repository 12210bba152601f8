"""A run resumes from a saved state without repeating or omitting a batch, and refuses a state that does not fit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Asking, DataSet, wait_until
from ways import N, answer, as_bytes, computed, reader, worker_reading

from shmgen import InputError, Loader, SampleError
from shmgen._plan.checkpoint import loaded, saved
from shmgen._plan.passes import Passes, Position
from shmgen._plan.sampler import BatchId
from shmgen._samples.ids import fingerprint, kept


def labelled(**options: Any) -> Loader:
    return computed(labels=range(N), **options)


def labels_of(batches: Any) -> list[list[int]]:
    return [y.tolist() for _, y, *_ in batches]


def identity(**other: Any) -> dict[str, Any]:
    same = {
        "samples": 20,
        "ids": "abc",
        "seed": 0,
        "shuffle": True,
        "tail": "drop",
        "sampling_weights": "",
        "lengths": "",
        "batch_size": 4,
        "batches": 5,
    }
    return {**same, **other}


def test_the_state_is_flat_json() -> None:
    """The state survives JSON unchanged; at the end of an epoch, it is the start of the next one."""
    state = saved(identity(), Position(2, 3))
    assert json.loads(json.dumps(state)) == state
    assert (state["epoch"], state["consumed"]) == (2, 12)
    assert loaded(identity(), state) == (2, 3)
    end = saved(identity(), Position(2, 5))
    assert (end["epoch"], end["consumed"]) == (3, 0)


@pytest.mark.parametrize("key", ["samples", "ids", "seed", "shuffle", "tail", "sampling_weights", "lengths"])
def test_another_data_set_or_order_is_refused(key: str) -> None:
    """A state of another data set or order is refused, with what was expected, what was found, and a remedy."""
    others: Any = {"samples": 21, "ids": "abd", "seed": 1, "shuffle": False, "tail": "keep"}
    other = others.get(key, "abc")
    state = saved(identity(**{key: other}), Position(0, 1))
    mine = identity()[key]
    with pytest.raises(InputError, match=rf"state: expected {key}={mine!r}, as here, found {other!r}; give the .* saved with"):
        loaded(identity(), state)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"epoch": -1}, "state: epoch: expected an int from 0 to 1000000000000000, found -1"),
        ({"epoch": 2**63}, "state: epoch: expected an int from 0 to 1000000000000000, found 9223372036854775808"),
        ({"consumed": 1.5}, "state: consumed: expected an int from 0 to 1000000000000000, found 1.5"),
        ({"version": 2}, "expected version=1, as here, found 2; it was saved by another version of shmgen"),
        ({"order": 0}, "expected order=1"),
        ({"consumed": 6}, "a batch_size that divides the 6 samples of epoch 0 that were consumed, found 4; give one that does"),
    ],
)
def test_a_state_with_impossible_numbers_is_refused(change: dict[str, Any], expected: str) -> None:
    """A state with a wrong number, of another version, or at a position within a batch is refused."""
    with pytest.raises(InputError, match=expected):
        loaded(identity(), {**saved(identity(), Position(0, 1)), **change})


@pytest.mark.parametrize("state", [None, [], {}, {"epoch": 0}, "state"])
def test_values_other_than_states_are_refused(state: Any) -> None:
    """A value that `state_dict` can't have returned is refused, and the error says so."""
    with pytest.raises(InputError, match=r"state: expected what state_dict\(\) returned, found"):
        loaded(identity(), state)


def test_a_state_at_the_end_of_an_epoch_resumes_with_the_next() -> None:
    """If another batch size leaves no batch after the consumed samples, the run resumes with the next epoch."""
    state = saved(identity(samples=22, batch_size=2, batches=11), Position(0, 10))
    assert loaded(identity(samples=22, batch_size=20, batches=1), state) == (1, 0)


@pytest.mark.parametrize(
    "same",
    [
        [range(3, 300, 3), list(range(3, 300, 3)), np.arange(3, 300, 3).astype("u2"), pd.Series(range(3, 300, 3))],
        [[5, 3, 4], np.array([5, 3, 4]), np.array([5, 3, 4], ">u8")],
        [["a", "bc"], np.array(["a", "bc"]), pd.Series(["a", "bc"])],
        [[7], range(7, 9, 5)],
        [[], range(0)],
    ],
)
def test_equal_ids_have_the_same_hash(same: list[Any]) -> None:
    """Equal ids have the same hash, in whatever container and dtype they are given."""
    assert len({fingerprint(kept(ids)) for ids in same}) == 1


def test_other_ids_have_another_hash() -> None:
    """Ids in another order, the same letters divided differently, and ints as text have different hashes."""
    several: list[Any] = [
        [1, 2, 3], [1, 2, 4], [3, 2, 1], ["1", "2", "3"], [1, 2], range(1, 5), [2**70, 1], ["ab", "c"], ["a", "bc"],
        ["a", "b\0c"], ["a\0b", "c"], ["bytes b'a'"], [b"a"], np.array([2**63, 1], "u8"), [1, 1, 1],
        [*range(20_000), 7], [*range(20_000), 8], ["\ud800"],
    ]  # fmt: skip
    assert len({fingerprint(kept(ids)) for ids in several}) == len(several)


def test_a_resumed_pass_deals_the_remaining_batches() -> None:
    """A resumed pass deals the batches that are left, with and without shuffling, and the next pass is whole."""
    for shuffle in (True, False):
        passes = Passes(5, shuffle=shuffle, epoch=0)
        passes.go_to(Position(3, 2))
        assert list(passes.upcoming())[:4] == [BatchId(3, 2), BatchId(3, 3), BatchId(3, 4), BatchId(4, 0)]
        resumed = passes.open()
        assert [passes.deal(index, resumed) for index in range(3)] == [BatchId(3, number) for number in (2, 3, 4)]
        with pytest.raises(IndexError, match="expected an index below 3, the batches that are left in epoch 3, found 3"):
            passes.deal(3, resumed)
        assert passes.position == (3, 5)
        whole = passes.open()
        assert [passes.deal(index, whole) for index in range(5)] == [BatchId(4, number) for number in range(5)]


def test_a_request_by_index_does_not_move_a_resumed_run() -> None:
    """A pass that is taken back, or a batch requested by index, does not move the position of a resumed run."""
    for shuffle in (True, False):
        passes = Passes(5, shuffle=shuffle, epoch=0)
        passes.go_to(Position(3, 2))
        look = passes.open()
        passes.deal(0, look)
        passes.take_back(look)
        assert passes.deal(1, None) == (BatchId(3, 2) if shuffle else BatchId(3, 1))
        assert passes.position == (3, 2)
        assert passes.deal(0, passes.open()) == BatchId(3, 2)


@pytest.mark.parametrize(
    ("tail", "shuffle", "workers"),
    [("drop", True, 1), ("drop", False, 0), ("keep", True, 0), ("wrap", True, 0), ("wrap", False, 0), ("pad", False, 0)],
)
def test_another_loader_resumes(tail: Any, shuffle: bool, workers: int) -> None:
    """Resumed within or between two epochs, another loader delivers the same batches, random numbers included."""
    options: dict[str, Any] = {"shuffle": shuffle, "tail": tail, "transform": lambda x, rng: x + rng.random()}
    with labelled(workers=0, **options) as loader:
        assert N % loader.batch_size, "without a shorter last batch, all tails would be the same"
        whole = [as_bytes(batch) for _ in range(2) for batch in loader]
    for taken in (0, 1, 3, len(whole) // 2, len(whole) // 2 + 1, len(whole)):
        with labelled(workers=0, **options) as loader:
            several = (batch for _ in range(2) for batch in loader)
            for _ in range(taken):
                next(several)
            state = loader.state_dict()
        with labelled(workers=workers, **options) as loader:
            loader.load_state_dict(state)
            assert loader.state_dict() == state
            rest = [as_bytes(batch) for batch in loader]
            while len(rest) < len(whole) - taken:
                rest += [as_bytes(batch) for batch in loader]
            assert rest[: len(whole) - taken] == whole[taken:]


def test_another_batch_size_resumes() -> None:
    """A batch size that divides the consumed samples is accepted; any other is refused, and changes nothing."""

    def made(batch_size: int) -> Loader:
        return Loader(range(24), range(24), batch_size, source=lambda id: np.array([id]), workers=0)

    with made(4) as loader:
        [whole] = [np.concatenate([y for _, y in loader])]
    with made(4) as loader:
        epoch = iter(loader)
        for _ in range(3):
            next(epoch)
        state = loader.state_dict()
    for batch_size in (1, 2, 3, 6, 12):
        with made(batch_size) as loader:
            loader.load_state_dict(state)
            assert np.concatenate([y for _, y in loader]).tolist() == whole[12:].tolist()
    with made(5) as loader:
        with pytest.raises(InputError, match="a batch_size that divides the 12 samples of epoch 0"):
            loader.load_state_dict(state)
        assert np.concatenate([y for _, y in loader]).tolist() == whole[:20].tolist()


def test_the_state_counts_batches_returned_by_next() -> None:
    """The state counts the batches that ``next`` returned, not those read ahead or requested by index."""
    with labelled(workers=1) as loader:
        whole = labels_of(loader)
    with labelled(workers=1) as loader:
        for number, _ in enumerate(loader):
            if number == 1:
                break
        state = loader.state_dict()
        loader.batch(3)
        assert loader.state_dict() == state
        loader.load_state_dict(state)
        assert labels_of(loader) == whole[2:]


def test_loading_a_state_does_not_affect_a_running_iteration() -> None:
    """Loading a state does not affect an iteration in progress; the next one starts at the state's position."""
    with labelled(workers=0) as loader:
        start = loader.state_dict()
        epoch = iter(loader)
        first = labels_of([next(epoch)])
        loader.load_state_dict(start)
        rest = labels_of(epoch)
        assert labels_of(loader) == first + rest


def test_a_batch_that_failed_is_still_to_come(folder: Callable[..., DataSet]) -> None:
    """A batch whose request failed counts as still to come, unless a later batch is handed out."""
    data = folder(12)
    data.file("id-5").unlink()
    with Loader(data.ids, data.labels, 4, data_dir=data.path, shuffle=False, workers=1) as loader:
        epoch = iter(loader)
        next(epoch)
        with pytest.raises(SampleError):
            next(epoch)
        assert loader.state_dict()["consumed"] == 4
        next(epoch)
        assert (loader.state_dict()["epoch"], loader.state_dict()["consumed"]) == (1, 0)


def test_a_batch_that_another_thread_waits_for_is_still_to_come(folder: Callable[..., DataSet]) -> None:
    """A batch that another thread waits for counts as still to come, even if a later batch is handed out meanwhile."""
    data = folder(24)
    data.file("id-5").unlink()
    os.mkfifo(data.file("id-5"))
    # With 3 slots, the next epoch, which has the same file, is not read ahead.
    row: dict[str, Any] = {"slots": 3, "dim": (4, 3), "n_channels": 1, "dtype": "f4"}
    with Loader(data.ids, data.labels, 4, shuffle=False, workers=2, source=reader(data), **row) as loader:
        epoch = iter(loader)
        next(epoch)
        late = Asking(lambda: next(epoch))
        worker_reading(data, 5)
        wait_until(lambda: bool(loader.state.waiting), "a thread waits for the second batch")
        next(epoch)
        assert loader.state_dict()["consumed"] == 4
        answer(data, 5)
        late.outcome()
        assert loader.state_dict()["consumed"] == 12
