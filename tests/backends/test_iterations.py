"""Passes over a `Sequence` on every Keras backend: which samples several calls train on, in which order.

`KERAS_BACKEND` chooses the backend of this process. The expected batches are those of a `Loader` with the same seed, which uses
no framework.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from itertools import islice
from typing import Any

import keras
import pytest
from recorder import SHAPE, Around, Data, Recorder, Stop

from shmgen import Sequence


@pytest.fixture
def data(folder: Callable[..., Any]) -> Data:
    """A data set of ten batches."""
    return Data(folder, 10)


def by_loop(sequence: Sequence, steps: int) -> list[list[int]]:
    found = [y.tolist() for _, y in islice(sequence, steps)]
    sequence.on_epoch_end()
    return found


def by_loop_alone(sequence: Sequence, steps: int) -> list[list[int]]:
    return [y.tolist() for _, y in islice(sequence, steps)]


def by_hand(sequence: Sequence, steps: int) -> list[list[int]]:
    found = [sequence[index][1].tolist() for index in range(steps)]
    sequence.on_epoch_end()
    return found


def by_fit(sequence: Sequence, steps: int) -> list[list[int]]:
    model = Recorder()
    model.fit(sequence, epochs=1, steps_per_epoch=steps, verbose=0)
    return model.taken()


def by_fit_stopped(sequence: Sequence, steps: int) -> list[list[int]]:
    model = Recorder()
    model.fit(sequence, epochs=4, verbose=0, callbacks=[Stop(steps)])
    return model.taken()


def by_evaluate(sequence: Sequence, steps: int) -> list[list[int]]:
    model = Recorder()
    model.evaluate(sequence, steps=steps, verbose=0)
    return model.taken()


@pytest.mark.parametrize(("way", "steps"), [(by_fit, 3), (by_fit_stopped, 3), (by_evaluate, 3), (by_fit, 9), (by_fit, 10)])
def test_a_pass_left_early_is_over(data: Data, way: Callable[..., Any], steps: int) -> None:
    """Wherever a pass was left, and however many batches a framework had requested ahead, the next pass is the next epoch."""
    expected = [epoch[:steps] for epoch in data.epochs(4)]
    with data.sequence() as sequence:
        assert [way(sequence, steps) for _ in range(4)] == expected


@pytest.mark.parametrize("way", [by_fit, by_evaluate])
def test_probes_of_a_tiny_data_set_take_no_epoch(folder: Callable[..., Any], way: Callable[..., Any]) -> None:
    """Frameworks request a batch or two before they begin, which takes no epoch, even if there are no more batches."""
    data = Data(folder, 2)
    with data.sequence(workers=0) as sequence:
        assert [way(sequence, 2) for _ in range(3)] == data.epochs(3)
    with data.sequence(workers=0) as sequence:
        assert [way(sequence, 1) for _ in range(3)] == [epoch[:1] for epoch in data.epochs(3)]


def test_loops_indexes_fit_and_evaluate_each_get_the_next_epoch(data: Data) -> None:
    """Loops, requests by index, `fit` and `evaluate` on one `Sequence`, in any order, each get the next epoch."""
    ways = [by_loop, by_hand, by_fit, by_evaluate, by_loop_alone, by_fit_stopped, by_hand, by_loop_alone, by_loop, by_fit]
    with data.sequence() as sequence:
        assert [way(sequence, 3) for way in ways] == [epoch[:3] for epoch in data.epochs(len(ways))]


def test_one_fit_over_short_epochs_goes_through_one_pass(data: Data) -> None:
    """With ``steps_per_epoch`` below the length, each epoch of a `fit` continues where the last ended."""
    first, second = data.epochs(2)
    model = Recorder()
    with data.sequence() as sequence:
        model.fit(sequence, epochs=4, steps_per_epoch=5, verbose=0)
        assert model.taken() == first + second


def test_initial_epoch_with_epoch(data: Data) -> None:
    """``fit(initial_epoch=2)`` with ``epoch=2`` trains on the orders of the third and fourth epoch."""
    model = Recorder()
    with data.sequence(epoch=2) as sequence:
        model.fit(sequence, initial_epoch=2, epochs=4, verbose=0)
    assert model.taken() == sum(data.epochs(4)[2:], [])


def test_building_a_model_takes_no_epoch(data: Data) -> None:
    """Keras requests a batch to build a model, which takes no epoch, in `fit`, `evaluate` and `predict`, also after a stop."""
    epochs = data.epochs(4)

    class Means(keras.layers.Layer):
        def build(self, input_shape: Any) -> None:
            self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

        def call(self, x: Any) -> Any:
            return keras.ops.mean(x, axis=(1, 2), keepdims=False)[:, None] * self.scale

    class Unbuilt(Recorder):
        def __init__(self) -> None:
            keras.Model.__init__(self)
            self.seen, self.look = [], lambda x, y: None
            self.means = Means()
            self.compile(loss="mse", run_eagerly=True)

        def build(self, input_shape: Any) -> None:
            self.means.build(input_shape)

        def call(self, x: Any) -> Any:
            return self.means(x)

    with data.sequence() as sequence, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Unbuilt()
        model.fit(sequence, epochs=1, verbose=0, callbacks=[Stop(1)])
        assert model.taken() == epochs[0][:1]
        model = Unbuilt()
        model.evaluate(sequence, verbose=0)
        assert model.taken() == epochs[1]
        assert Unbuilt().predict(sequence, verbose=0)[:, 0].tolist() == sum(epochs[2], [])
        model = Unbuilt()
        model.fit(sequence, epochs=1, verbose=0)
        assert model.taken() == epochs[3]


def test_callbacks_that_request_batches_do_not_change_a_fit(data: Data) -> None:
    """Callbacks that request a batch or the length do not change which batches are trained on."""

    class Looks(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
            sequence[0], sequence.num_batches

        def on_train_batch_end(self, batch: int, logs: object = None) -> None:
            sequence[batch], sequence.num_batches

    model = Recorder()
    with data.sequence() as sequence:
        model.fit(sequence, epochs=3, verbose=0, callbacks=[Looks()])
    assert model.taken() == sum(data.epochs(3), [])


def test_training_and_validation_on_one_sequence(data: Data) -> None:
    """If Keras iterates over one `Sequence` for training and validation at a time, each iteration has a pass of its own."""
    epochs = data.epochs(5)
    model = Recorder()
    with data.sequence() as sequence:
        model.fit(sequence, validation_data=sequence, epochs=4, steps_per_epoch=5, verbose=0)
    first, second, third, *_ = (model.seen[start : start + 15] for start in range(0, 60, 15))
    assert first == epochs[0][:5] + epochs[1]
    assert second == epochs[0][5:] + epochs[2]
    assert third == epochs[3][:5] + epochs[4]


class Half(Sequence):
    """A subclass with a length of its own."""

    def __len__(self) -> int:
        return 5


class Own(Sequence):
    """A subclass whose methods all call the base class's."""

    @property
    def num_batches(self) -> int:
        return super().num_batches

    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index)

    def on_epoch_end(self) -> None:
        super().on_epoch_end()


class Deaf(Sequence):
    """A subclass that overrides Keras's hooks without calling the base class's, as users may do."""

    def on_epoch_begin(self) -> None:
        pass

    def on_epoch_end(self) -> None:
        pass


@pytest.mark.parametrize("cls", [Own, Deaf])
def test_subclasses_have_the_same_passes(data: Data, cls: type[Sequence]) -> None:
    """Methods that a subclass overrides do not change the passes."""
    with data.sequence(cls) as sequence:
        assert [by_fit(sequence, 3) for _ in range(3)] == [epoch[:3] for epoch in data.epochs(3)]


def test_a_subclass_may_override_len(data: Data) -> None:
    """A subclass's ``__len__`` also applies to ``num_batches``, ``for``, `fit` and indexes."""
    expected = [epoch[:5] for epoch in data.epochs(4)]
    model = Recorder()
    with data.sequence(Half) as sequence:
        assert len(sequence) == sequence.num_batches == len(list(sequence)) == 5
        model.fit(sequence, epochs=2, verbose=0)
        assert model.taken() == expected[1] + expected[2]
        assert sequence[-1][1].tolist() == sequence[4][1].tolist()
        with pytest.raises(IndexError, match="batch 5: expected an int from -5 to 4, since there are 5 batches"):
            sequence[5]


class AroundAll(Around):
    """A wrapper that passes all of Keras's calls on."""

    @property
    def num_batches(self) -> int:
        return self.sequence.num_batches

    def on_epoch_end(self) -> None:
        self.sequence.on_epoch_end()


@pytest.mark.parametrize("wrapper", [Around, AroundAll])
def test_each_iteration_over_a_wrapper_is_the_next_epoch(data: Data, wrapper: type[Around]) -> None:
    """Each iteration over a wrapper is the next epoch, also if the last was left early, or ``on_epoch_end`` is not passed on."""
    model = Recorder()
    with data.sequence() as sequence:
        for _ in range(2):
            model.fit(wrapper(sequence), epochs=1, steps_per_epoch=8, verbose=0)
        model.fit(wrapper(sequence), epochs=2, verbose=0)
        model.fit(sequence, epochs=1, verbose=0)
    epochs = data.epochs(5)
    assert model.taken() == epochs[0][:8] + epochs[1][:8] + epochs[2] + epochs[3] + epochs[4]


def test_a_wrapper_with_threads_of_keras(data: Data) -> None:
    """With threads, a wrapper gets only indexes; if it does not pass ``on_epoch_end`` on, a warning says that epochs repeat."""
    for wrapper in (Around, AroundAll):
        model = Recorder()
        with data.sequence() as sequence, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                model.fit(wrapper(sequence, workers=2), epochs=1, shuffle=False, verbose=0)
        assert sum("call the Sequence's on_epoch_end()" in str(one.message) for one in caught) == (wrapper is Around)


@pytest.fixture(scope="module")
def predictor() -> keras.Model:
    return keras.Sequential([keras.Input(SHAPE), keras.layers.GlobalAveragePooling1D()])


def test_predict_over_a_shuffled_sequence_is_warned_of(data: Data, predictor: keras.Model) -> None:
    """`predict` over a shuffled `Sequence`, whose rows have no known order, causes one warning; its remedy causes none."""
    with data.sequence(workers=0) as sequence, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        predictor.predict(sequence, verbose=0)
        predictor.predict(sequence, verbose=0)
    assert sum("predict over a Sequence with shuffle=True" in str(one.message) for one in caught) == 1
    with data.sequence(shuffle=False) as sequence:
        predicted = predictor.predict(sequence, verbose=0)
    assert predicted[:, 0].tolist() == list(range(40))


def test_samples_left_out_by_tail_drop_are_warned_of(data: Data, predictor: keras.Model) -> None:
    """With ``tail="drop"``, `evaluate`, `predict` and ``validation_data`` (not `fit`) warn of the samples left out."""
    model = Recorder()

    def said(use: Callable[[Sequence], object], **options: Any) -> list[str]:
        # On torch, Keras has warnings of its own here.
        sequence = data.sequence(batch_size=7, workers=0, **options)
        with sequence, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            use(sequence)
            use(sequence)
        return [str(one.message) for one in caught if "leaves out" in str(one.message)]

    def predict(sequence: Sequence) -> None:
        predictor.predict(sequence, verbose=0)

    with data.sequence(workers=0) as training:
        uses: dict[str, Callable[[Sequence], object]] = {
            "predict": predict,
            "evaluate": lambda sequence: model.evaluate(sequence, verbose=0),
            "evaluate ": lambda sequence: model.fit(training, validation_data=sequence, steps_per_epoch=2, verbose=0),
            "evaluate  ": lambda sequence: model.fit(sequence, validation_data=sequence, verbose=0),
        }
        for name, use in uses.items():
            [text] = said(use)
            left_out = rf"{name.strip()} leaves out 5 of 40 samples \(others in each pass\), which fill no batch of 7: "
            assert re.search(f"{left_out}make a Sequence with shuffle=False, tail='keep'", text)
            assert said(use, tail="keep") == []
    [text] = said(predict, shuffle=False)
    assert "predict leaves out 5 of 40 samples, which fill no batch of 7: make a Sequence with tail='keep'" in text
    assert said(lambda sequence: model.fit(sequence, verbose=0)) == []
    assert said(lambda sequence: model.evaluate(sequence, steps=3, verbose=0)) == []
