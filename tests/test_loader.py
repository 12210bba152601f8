"""`Loader`: the same batches as `Sequence`, without any framework."""

from __future__ import annotations

import copy
import os
import pickle
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pytest
from conftest import Asking, DataSet
from ways import part_of

import shmgen._engine.held_slots
from shmgen import InputError, Loader, Npy
from shmgen._engine import defaults
from shmgen._memory.layout import ALIGNMENT
from shmgen._memory.ring import Ring

Folder = Callable[..., DataSet]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_loop_is_the_next_epoch(folder: Folder, workers: int) -> None:
    """Each loop delivers each sample once, with its label, and loops differ in order."""
    data = folder(22)
    with Loader(data.ids, data.labels, 5, data_dir=data.path, workers=workers, tail="keep") as loader:
        assert len(loader) == 5
        epochs = [[label for X, y in loader for label in data.check(X, y)] for _ in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(22))] * 3
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_loop_left_early_is_over(folder: Folder) -> None:
    """After a ``break``, the next loop is the next epoch; an iterator that is not used takes no epoch."""
    data = folder(20)
    options: dict[str, Any] = {"batch_size": 4, "data_dir": data.path, "seed": 3, "workers": 1}
    with Loader(data.ids, data.labels, **options) as whole:
        epochs = [[y.tolist() for _, y in whole] for _ in range(3)]
    with Loader(data.ids, data.labels, **options) as loader:
        iter(loader)
        assert [y.tolist() for _, y in islice(loader, 2)] == epochs[0][:2]
        assert next(iter(loader))[1].tolist() == epochs[1][0]
        assert [y.tolist() for _, y in loader] == epochs[2]


def test_the_first_epoch_can_be_chosen(folder: Folder) -> None:
    """With ``epoch=2``, the first epoch has the order of the third one without it."""
    data = folder(20)
    with Loader(data.ids, data.labels, 4, data_dir=data.path, workers=0) as loader:
        epochs = [[y.tolist() for _, y in loader] for _ in range(4)]
    with Loader(data.ids, data.labels, 4, data_dir=data.path, workers=1, epoch=2) as loader:
        assert [[y.tolist() for _, y in loader] for _ in range(2)] == epochs[2:]
    for epoch in (-1, 1.5, "2", None):
        with pytest.raises(InputError, match="epoch: expected an int from 0 to 1000000000000000, found"):
            Loader(data.ids, data.labels, 4, data_dir=data.path, epoch=epoch)  # type: ignore[arg-type]


def test_arguments_can_be_read_but_not_set(folder: Folder) -> None:
    """The blog's attributes can be read, with values found for missing arguments; setting one raises an error with a remedy."""
    data = folder(9, (4, 3, 2))
    with Loader(data.ids, data.labels, 4, dim=(4, 3), n_classes=9, shuffle=False, data_dir=data.path, workers=0) as loader:
        found = {name: getattr(loader, name) for name in ("batch_size", "dim", "n_channels", "n_classes", "shuffle")}
        assert found == {"batch_size": 4, "dim": (4, 3), "n_channels": 2, "n_classes": 9, "shuffle": False}
        assert list(loader.list_IDs) == data.ids
        assert loader.labels is data.labels
        for name in (*found, "list_IDs", "labels"):
            with pytest.raises(AttributeError, match=rf"^{name} can't be changed.* make another: Loader\(\.\.\., {name}="):
                setattr(loader, name, found.get(name))
        assert [y.shape for _, y in loader] == [(4, 9)] * 2
    for given, dim, n_channels in [
        ({}, (4, 3, 2), None),
        ({"dim": (4, 3, 2)}, (4, 3, 2), None),
        ({"n_channels": 2}, (4, 3), 2),
        ({"n_channels": 1}, (4, 3, 2), 1),
    ]:
        with Loader(data.ids, None, 4, data_dir=data.path, workers=0, **given) as loader:  # type: ignore[arg-type]
            assert (loader.dim, loader.n_channels, loader.labels) == (dim, n_channels, None)
    with Loader(data.ids, None, 4, inputs={"a": Npy(data.path)}, workers=0) as loader:
        assert (loader.dim, loader.n_channels) == (None, None)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_a_loader_is_not_copied(folder: Folder, copied: Callable) -> None:
    """Copying or pickling a loader raises an error with a remedy."""
    data = folder(8)
    with (
        Loader(data.ids, data.labels, 4, data_dir=data.path, workers=0) as loader,
        pytest.raises(TypeError, match="make a Loader"),
    ):
        copied(loader)


def test_an_impossible_index_is_refused(folder: Folder) -> None:
    """A batch index beyond the end, a slice or a text raises an error that says what is expected."""
    data = folder(8)
    with Loader(data.ids, data.labels, 4, data_dir=data.path, workers=0) as loader:
        for index in (2, -3, 10**30):
            with pytest.raises(IndexError, match=rf"^batch {index}: expected an int from -2 to 1, since there are 2 batches$"):
                loader.batch(index)
        for wrong, kind in ((slice(0, 2), "slice"), ("0", "str"), (0.0, "float"), (None, "NoneType")):
            with pytest.raises(TypeError, match=rf"expected an int, found {kind}; for several, ask for one after the other"):
                loader.batch(wrong)  # type: ignore[arg-type]
        assert loader.batch(np.int64(1))[1].tolist() == loader.batch(-1)[1].tolist()


def test_threads_share_a_loop(folder: Folder) -> None:
    """Threads that take batches from one iterator get each batch once."""
    data = folder(40)
    got: list[int] = []
    with Loader(data.ids, data.labels, 2, data_dir=data.path, slots=3) as loader:
        batches = iter(loader)

        def take() -> None:
            for X, y in batches:
                got.extend(data.check(X, y))

        threads = [Asking(take) for _ in range(6)]
        assert [thread.outcome() for thread in threads] == [None] * 6
    assert sorted(got) == list(range(40))


def test_frameworks_can_take_arrays_without_a_copy(folder: Folder) -> None:
    """Arrays are aligned to 64 bytes, contiguous, in native byte order and of the exact dtype, also in a short last batch."""
    data = folder(7, (3, 5), ">i2")
    with Loader(data.ids, data.labels, 3, n_classes=7, data_dir=data.path, tail="keep", workers=0) as loader:
        sizes = []
        for batch in loader:
            sizes.append(len(batch[0]))
            for array, dtype in zip(batch, (np.dtype("=i2"), np.dtype("=f4")), strict=True):
                assert array.ctypes.data % ALIGNMENT == 0
                assert array.flags.c_contiguous
                assert array.flags.writeable
                assert array.dtype == dtype
                assert array.dtype.isnative
    assert sizes == [3, 3, 1]


def test_int_labels_one_hot_rows_and_no_labels(folder: Folder) -> None:
    """Labels are int64 of shape (batch,), or float32 one-hot rows with ``n_classes``; without labels, there is no ``y``."""
    data = folder(6, n_classes=3)
    arguments: dict[str, Any] = {"batch_size": 6, "shuffle": False, "data_dir": data.path, "workers": 0}
    expected = np.array([0, 1, 2, 0, 1, 2])
    with Loader(data.ids, data.labels, **arguments) as loader:
        ((_, y),) = loader
        assert y.dtype == np.int64
        np.testing.assert_array_equal(y, expected)
    with Loader(data.ids, data.labels, n_classes=4, **arguments) as loader:
        for _ in range(2):  # the second time, into a slot that was used before
            ((_, y),) = loader
            assert y.dtype == np.float32
            np.testing.assert_array_equal(y, np.eye(4, dtype=np.float32)[expected])
    with Loader(data.ids, None, **arguments) as loader:
        ((X,),) = loader
        assert X.shape == (6, 4, 3)


def test_ids_of_any_kind(folder: Folder) -> None:
    """Ids may be a tuple, an array, a list of NumPy strings, or an iterator."""
    data = folder(4)
    ids: Any
    for ids in (tuple(data.ids), np.array(data.ids), list(np.array(data.ids)), iter(data.ids)):
        with Loader(ids, data.labels, 4, data_dir=data.path, workers=0) as loader:
            ((X, y),) = loader
            assert sorted(data.check(X, y)) == [0, 1, 2, 3]


def test_an_id_listed_twice_is_two_samples(folder: Folder) -> None:
    """An id that is listed twice counts as two samples, for oversampling a class."""
    data = folder(3)
    ids = [*data.ids, data.ids[0], data.ids[0]]
    with Loader(ids, data.labels, 2, data_dir=data.path, tail="keep", workers=0) as loader:
        seen = [label for X, y in loader for label in data.check(X, y)]
    assert sorted(seen) == [0, 0, 0, 1, 2]


def test_later_changes_to_the_arguments_have_no_effect(folder: Folder) -> None:
    """Later changes to the ids and labels that were passed have no effect."""
    data = folder(8)
    ids, labels = list(data.ids), dict(data.labels)
    with Loader(ids, labels, 4, data_dir=data.path) as loader:
        ids.clear()
        labels.clear()
        assert sorted(label for X, y in loader for label in data.check(X, y)) == list(range(8))


def test_a_relative_folder_survives_chdir(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative ``data_dir`` is not affected by a later change of the working folder."""
    data = folder(8)
    monkeypatch.chdir(data.path.parent)
    with Loader(data.ids, data.labels, 4, data_dir="data", slots=2) as loader:
        monkeypatch.chdir("/")
        assert sorted(label for X, y in loader for label in data.check(X, y)) == list(range(8))


def test_batches_larger_than_the_data_set(folder: Folder) -> None:
    """With ``tail="keep"``, a batch size larger than the data set gives one short batch, and takes memory for only that."""
    data = folder(3)
    with Loader(data.ids, data.labels, 1000, data_dir=data.path, tail="keep", workers=0) as loader:
        assert [len(y) for _, y in loader] == [3]
        assert os.fstat(part_of(loader, Ring).fd).st_size < len(loader.state.slots) * 1000 * data.sample(0).nbytes / 10


def test_time_waited_excludes_held_slots(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time during which the user holds all slots does not count as time waited for data."""
    monkeypatch.setattr(shmgen._engine.held_slots, "GROW_AFTER", 0.3)
    data = folder(12)
    with Loader(data.ids, data.labels, 2, data_dir=data.path, slots=2, workers=1) as loader:
        begun = time.monotonic()
        held = list(loader)
        took = time.monotonic() - begun
        assert loader.stats.grown == 4
        assert loader.stats.slot_wait > 0.2
        assert loader.stats.batch_wait <= took - loader.stats.slot_wait
        del held


def test_defaults_are_sensible(folder: Folder) -> None:
    """By default, there are between one worker and one a processor, and small batches get 16 slots."""
    data = folder(8)
    with Loader(data.ids, data.labels, 2, data_dir=data.path) as loader:
        assert 1 <= len(loader.state.workers) <= min(8, len(os.sched_getaffinity(0)))
        assert len(loader.state.slots) == 16


def test_an_absurd_number_of_workers_is_reduced(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """An absurd number of workers is reduced, with a warning that says what to do instead."""
    monkeypatch.setattr(defaults, "CEILING", 2)
    monkeypatch.setattr(defaults, "FOR_EACH_PROCESSOR", 0)
    data = folder(8)
    with pytest.warns(UserWarning, match=r"workers=1000: 2 are started, since .* reads='auto' has more") as raised:
        loader = Loader(data.ids, None, 4, data_dir=data.path, workers=1000)
    assert raised[0].filename == __file__
    with loader:
        assert len(loader.state.workers) == 2


def test_more_threads_than_slots_all_get_their_batches(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """More threads than slots that request batches at once, and keep them, all get their batches."""
    monkeypatch.setattr(shmgen._engine.held_slots, "GROW_AFTER", 0.1)
    data = folder(56)
    for _ in range(2):
        with Loader(data.ids, data.labels, 4, data_dir=data.path, workers=2, slots=3) as loader:
            threads = [Asking(partial(loader.batch, index)) for index in range(len(loader))]
            assert sorted(label for thread in threads for label in data.check(*thread.outcome())) == list(range(56))
