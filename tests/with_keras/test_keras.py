"""`Sequence` with Keras, as far as all backends behave alike; tests/backends has the tests for each backend."""

from __future__ import annotations

import hashlib
import itertools
import random
import threading
import warnings
from collections.abc import Callable
from contextlib import closing, nullcontext
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
from recorder import SHAPE, Recorder, flat_model

from shmgen import InputError, Loader, Sequence
from shmgen._engine.feed import Feed
from shmgen.keras.backends import _end_requests
from shmgen.keras.data_checks import Call, check
from shmgen.options import Options

pytestmark = pytest.mark.usefixtures("poison")

N = 53


@pytest.fixture
def data(folder: Callable[..., Any]) -> Any:
    """53 samples; every element of sample k is k, and so is its label."""
    return folder(N, SHAPE)


def exact(samples: list[int], expected: int = N) -> bool:
    """Whether these are the samples of one epoch, each once."""
    return len(samples) == expected == len(set(samples))


def test_the_order_depends_only_on_the_seed(data: Any) -> None:
    """The order depends only on the seed, and not on workers, ``fit(shuffle=...)`` or global random states."""
    with Loader(data.ids, data.labels, 8, data_dir=data.path, seed=4, workers=0) as loader:
        expected = [y.tolist() for _ in range(2) for _, y in loader]
    for workers, shuffle in [(0, True), (2, False)]:
        random.seed(workers)
        np.random.seed(workers)
        recorder = Recorder()
        with Sequence(data.ids, data.labels, 8, data_dir=data.path, workers=workers, seed=4) as sequence:
            recorder.fit(sequence, epochs=2, verbose=0, shuffle=shuffle)
        assert recorder.taken() == expected


def test_fit_keeps_the_order_without_shuffling(data: Any) -> None:
    """``fit`` with its default over ``shuffle=False`` trains in the order of the ids, and one warning says what to change."""
    recorder = Recorder()
    with (
        Sequence(data.ids, data.labels, 4, shuffle=False, tail="keep", data_dir=data.path, workers=1) as sequence,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        recorder.fit(sequence, epochs=1, verbose=0, shuffle=False)
        assert not caught
        recorder.fit(sequence, epochs=2, verbose=0)
        recorder.fit(sequence, epochs=1, verbose=0)
    assert sum(recorder.taken(), []) == list(range(N)) * 4
    assert sum("pass shuffle=True to the Sequence" in str(w.message) for w in caught) == 1


def test_a_loop_by_index(data: Any) -> None:
    """In a loop by index, ``on_epoch_end`` ends an epoch; until then an index always gives the same batch.

    So it does within and after a ``for`` loop.
    """
    with Sequence(data.ids, data.labels, 8, tail="keep", data_dir=data.path, workers=1) as sequence:
        sequence.on_epoch_end()
        first = []
        for index, (_, y) in enumerate(sequence):
            first.append(y.tolist())
            assert sequence[index][1].tolist() == first[-1]
        assert sequence[2][1].tolist() == first[2]
        assert sequence[-1][1].tolist() == first[-1]
        sequence.on_epoch_end()
        sequence.on_epoch_begin()
        second = [sequence[i][1].tolist() for i in reversed(range(len(sequence)))]
        with pytest.raises(IndexError):
            sequence[len(sequence)]
    assert exact(sum(first, []))
    assert exact(sum(second, []))
    assert first != second


def test_mirrored_strategy(data: Any) -> None:
    """Under a distribution strategy Keras starts an iteration and discards it; the epochs of training are exact."""
    tf = pytest.importorskip("tensorflow")
    with tf.distribute.MirroredStrategy(["/cpu:0"]).scope():
        mirrored = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(1)])
        mirrored.compile(loss="mse", jit_compile=False)
    with Loader(data.ids, data.labels, 8, data_dir=data.path, epoch=2, workers=0) as loader:
        third = [y.tolist() for _, y in loader]
    with Sequence(data.ids, data.labels, 8, data_dir=data.path, workers=1) as sequence:
        history = mirrored.fit(sequence, epochs=2, verbose=0)
        assert [y.tolist() for _, y in sequence] == third
    assert np.isfinite(history.history["loss"]).all()


def test_the_repr_shows_the_state(data: Any) -> None:
    """``repr`` gives samples, batches and workers, or says that the Sequence is closed."""
    with Sequence(data.ids, data.labels, 8, data_dir=data.path, workers=1) as sequence:
        assert "53 samples in 6 batches of 8" in repr(sequence)
        assert "1 worker" in repr(sequence)
    assert "closed" in repr(sequence)


def test_the_state_after_fit_and_within_a_loop(data: Any) -> None:
    """After `fit` the state is the start of the next epoch; in a ``for`` loop it counts the batches handed out."""
    with Sequence(data.ids, data.labels, 5, data_dir=data.path) as training:
        with pytest.raises(InputError, match="trained: expected None before the first iteration of Keras's, found 1"):
            training.state_dict(1)
        Recorder().fit(training, steps_per_epoch=2, verbose=0)
        assert (training.state_dict()["epoch"], training.state_dict()["consumed"]) == (1, 0)
        assert (training.state_dict(2)["epoch"], training.state_dict(2)["consumed"]) == (0, 10)
        for _ in training:
            break
        assert (training.state_dict()["epoch"], training.state_dict()["consumed"]) == (1, 5)


def test_the_state_after_a_shortened_epoch(data: Any) -> None:
    """If a subclass shortens epochs, the state after its last batch is the start of the next epoch; others are refused."""

    class Shorter(Sequence):
        def __len__(self) -> int:
            return 4

    with Shorter(data.ids, data.labels, 5, data_dir=data.path, workers=1) as training:
        for number, _ in enumerate(training, 1):
            state = training.state_dict()
            assert (state["epoch"], state["consumed"]) == ((0, 5 * number) if number < 4 else (1, 0))
        training.load_state_dict({**state, "epoch": 2, "consumed": 10})
        assert [len(list(training)), len(list(training))] == [2, 4]
        training.load_state_dict({**state, "epoch": 2, "consumed": 20})
        assert training.state_dict()["epoch"] == 3
        bad: Any
        for bad in ({}, None, "x", {"consumed": "3"}, {**state, "consumed": -5}, {**state, "seed": 7, "consumed": 0}):
            with pytest.raises(InputError, match="state: "):
                training.load_state_dict(bad)
        assert training.state_dict()["epoch"] == 3


def test_different_validation_classes_are_warned_of(data: Any) -> None:
    """Validation data in which a number means another class give a warning; data with the same classes give none."""
    names = {id: ("cat", "dog")[number % 2] for number, id in enumerate(data.ids)}
    dogs = [id for id in data.ids if names[id] == "dog"]
    with Sequence(data.ids, names, 5, data_dir=data.path, classes="sorted") as training:
        other = Sequence(dogs, [names[id] for id in dogs], 5, data_dir=data.path, classes="sorted", tail="keep")
        with other, pytest.warns(UserWarning, match=r"\('cat', 'dog'\), and those of the validation data \('dog',\)"):
            flat_model().fit(training, validation_data=other, verbose=0)
        with Sequence(dogs, names, 5, data_dir=data.path, classes=training.classes, tail="keep") as same:
            flat_model().fit(training, validation_data=same, verbose=0)


@pytest.mark.parametrize(
    ("count", "options", "rows", "said"),
    [
        (N, {"tail": "wrap"}, N + 3, "predict returns 3 rows more than there are ids"),
        (N, {"tail": "keep", "on_error": "replace"}, N, "rows of other samples in place of those that can't be read"),
        (48, {"shard": (1, 2)}, 24, r"shard=\(1, 2\) returns the rows of this rank alone.*without shard"),
    ],
)
def test_rows_of_predict_without_ids_are_warned_of(data: Any, count: int, options: dict[str, Any], rows: int, said: str) -> None:
    """`predict` warns once of rows that fill up the last batch, of replaced samples, and of rows of one rank only."""
    with Sequence(data.ids[:count], batch_size=8, data_dir=data.path, shuffle=False, workers=0, **options) as sequence:
        with pytest.warns(UserWarning, match=said):
            assert len(flat_model().predict(sequence, verbose=0)) == rows
        flat_model().predict(sequence, verbose=0)


def test_losses_that_do_not_fit_the_labels(data: Any) -> None:
    """If the loss does not fit the labels (none, numbers, or one-hot rows), the error says which argument to change."""
    cases: list[tuple[Any, int | None, Any, str]] = [
        (None, None, "mse", "fit with loss='mse' needs targets, .*: pass labels= or targets="),
        (data.labels, None, "categorical_crossentropy", "pass n_classes= to the Sequence, or loss='sparse_"),
        (data.labels, None, keras.losses.CategoricalCrossentropy(), "pass n_classes= to the Sequence, or loss='sparse_"),
        (data.labels, N, "sparse_categorical_crossentropy", "leave n_classes out of the Sequence, or pass loss='categorical_"),
    ]
    for labels, n_classes, loss, said in cases:
        made = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(N, "softmax")])
        made.compile(loss=loss)
        with (
            Sequence(data.ids, labels, 5, n_classes=n_classes, data_dir=data.path, workers=0) as sequence,
            pytest.raises(InputError, match=said),
        ):
            made.fit(sequence, verbose=0)
    with Sequence(data.ids, data.labels, 5, data_dir=data.path, workers=0) as sequence:
        Recorder(loss="categorical_crossentropy").fit(sequence, verbose=0)  # a user's train_step is not checked


def test_a_subclass_without_super_init_is_an_error(data: Any) -> None:
    """A subclass without ``super().__init__()`` is an error that says to call it; so is a method that is never called."""

    class Whole(Sequence):
        def __init__(self, list_IDs: Any, labels: Any) -> None:
            self.dim = SHAPE  # type: ignore[assignment]

        def __getitem__(self, index: int) -> Any:
            return self.__data_generation(index)

        def __data_generation(self, index: int) -> Any:
            return super().__getitem__(index)

    class Forgets(Sequence):
        def __init__(self) -> None:
            self.mine = 1

    with pytest.raises(
        InputError, match=r"Whole.__init__ did not call super\(\).__init__\(\).*call super\(\).__init__\(list_IDs"
    ):
        Whole(data.ids, data.labels)
    for use in (len, lambda sequence: sequence[0], lambda sequence: sequence.num_batches, flat_model().fit):
        with pytest.raises(InputError, match=r"Forgets.__init__ did not call super\(\).__init__\(\)"):
            use(Forgets())
    with pytest.raises(InputError, match=r"Only: __data_generation is never called.*as source=.*override __getitem__"):

        class Only(Sequence):
            def __data_generation(self, ids: Any) -> Any:
                return ids


def test_a_distribution_that_shards_again_is_refused(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution that shards data over several processes, as Keras does after 3.15, is an error with the remedy."""
    call = Call("fit", flat_model(), None, shuffles=True, steps=None, no_rows=None)
    with closing(Feed(Options(data.ids, data.labels, 5, data_dir=data.path, workers=0))) as feed:
        for shards, processes in itertools.product([True, False], repeat=2):
            distribution = SimpleNamespace(auto_shard_dataset=shards, _is_multi_process=processes)
            monkeypatch.setattr(keras.distribution, "distribution", lambda distribution=distribution: distribution)
            refused = pytest.raises(InputError, match=r"pass auto_shard_dataset=False to DataParallel")
            with refused if shards and processes else nullcontext():
                check(feed, call)


def test_arguments_can_be_read_but_not_set(data: Any) -> None:
    """Arguments can be read as attributes; setting one is an error that says to make another Sequence."""
    options: dict[str, Any] = {"use_multiprocessing": True, "max_queue_size": 10, "data_dir": data.path, "workers": 1}
    with Sequence(data.ids, data.labels, 8, SHAPE[:1], 3, **options) as sequence:
        assert (sequence.dim, sequence.n_channels, sequence.workers, sequence.use_multiprocessing) == ((2,), 3, 1, False)
        for name in ("dim", "n_channels", "workers", "use_multiprocessing", "max_queue_size"):
            with pytest.raises(AttributeError, match=rf"{name} can't be changed.*make another: Sequence\(\.\.\., {name}="):
                setattr(sequence, name, None)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_queue_size": 64}, "max_queue_size=64.*leave max_queue_size out, or pass slots=64"),
        ({"workers": 0, "use_multiprocessing": True}, "workers=0.*leave"),
        ({"slots": 6, "max_queue_size": 6, "use_multiprocessing": False}, None),
    ],
)
def test_options_of_keras(data: Any, options: dict[str, Any], said: str | None) -> None:
    """Keras's own options are accepted if they ask for what is done anyway, and otherwise refused with a remedy."""
    with nullcontext() if said is None else pytest.raises(InputError, match=said):
        Sequence(data.ids, data.labels, data_dir=data.path, **{"workers": 1, **options}).close()


def test_the_end_waits_for_threads_that_are_ready_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that has work to do outside of Python may call it soon, so the program does not end before it has done that."""
    monkeypatch.setattr("shmgen.keras.backends.in_use", ())
    done = threading.Event()

    def work() -> None:
        hashlib.pbkdf2_hmac("sha256", b"", b"", 500_000)  # without the interpreter's lock
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    _end_requests()
    assert done.is_set()
    thread.join()
