"""The README's promises, with the Keras backend of this process, which `KERAS_BACKEND` chooses.

`make test` runs this folder once for each backend. Cases that need a process without the imports of pytest and other tests are
scripts.
"""

from __future__ import annotations

import gc
import signal
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from conftest import wait_until
from leftovers import workers_of
from pace import Deadline
from recorder import BATCH, SHAPE, Data, Recorder, Stop, address
from ways import in_a_ring

import shmgen._engine.held_slots
from shmgen import FunctionError, Loader, Sequence, Values
from shmgen.keras import DataWait, Resume

BACKEND = keras.backend.backend()

pytestmark = pytest.mark.usefixtures("poison")

not_torch = pytest.mark.skipif(BACKEND == "torch", reason="Keras has no steps_per_execution on torch")
only_jax = pytest.mark.skipif(BACKEND != "jax", reason="Keras has DataParallel only on JAX; MirroredStrategy is in test_keras")


@pytest.fixture
def data(folder: Callable[..., Any]) -> Data:
    """A data set of ten batches."""
    return Data(folder, 10)


def checker(**options: Any) -> keras.Model:
    """A model whose loss, in a compiled step, is the distance of rows from their labels: 0 if all rows are right."""

    class Checker(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

        def build(self, input_shape: Any) -> None:
            pass

        def call(self, x: Any) -> Any:
            return x * self.scale

    def distance(y: Any, predicted: Any) -> Any:
        return keras.ops.max(keras.ops.abs(predicted - keras.ops.cast(y % 97, "float32")[:, None, None]), axis=(1, 2))

    model = Checker()
    model.compile(loss=distance, optimizer=keras.optimizers.SGD(0.0), **options)
    return model


@pytest.mark.parametrize("slots", [2, None])
def test_every_batch_lies_in_the_ring(data: Data, slots: int | None, tmp_path: Path) -> None:
    """In each step, x and y are the ring's memory, without a copy; and shmgen's callbacks keep no batch."""
    found: list[int] = []
    model = Recorder(lambda x, y: found.extend(map(address, (x, y))))
    with data.sequence(slots=slots) as sequence, data.sequence(slots=slots) as validation:
        model.fit(sequence, validation_data=validation, epochs=2, verbose=0, callbacks=[DataWait(), Resume(tmp_path, sequence)])
        model.evaluate(sequence, verbose=0)
        assert sequence.stats.grown == validation.stats.grown == 0
        assert all(map(in_a_ring, set(found)))
    assert len(found) == 2 * 5 * data.batches


class Forwards(Sequence):
    """A subclass that returns batches unchanged."""

    def __getitem__(self, index: int) -> Any:
        batch = super().__getitem__(index)
        assert all(type(array) is np.ndarray for array in batch)
        return batch


class Changes(Sequence):
    """A subclass that returns NumPy arrays of its own, one of which (X, with negative strides) no framework can share."""

    def __getitem__(self, index: int) -> Any:
        X, y = super().__getitem__(index)
        assert type(X) is np.ndarray
        return np.flip(X, axis=1), y[::1].astype(">i8").astype("<i8")


def test_a_subclass_gets_numpy_and_costs_no_copy(data: Data) -> None:
    """The base class returns NumPy arrays on every backend; arrays that a subclass returns reach the step without a copy."""
    found: list[int] = []
    model = Recorder(lambda x, y: found.extend(map(address, (x, y))))
    with data.sequence(Forwards) as sequence:
        model.fit(sequence, epochs=1, verbose=0)
        assert all(type(array) is np.ndarray for array in (*sequence[0], *next(iter(sequence))))
        assert all(map(in_a_ring, set(found)))
    assert len(found) == 2 * data.batches
    model = Recorder()
    with data.sequence(Changes) as sequence:
        model.fit(sequence, epochs=1, verbose=0)
    assert model.taken() == data.epochs(1)[0]


@pytest.mark.parametrize("execution", [1, pytest.param(4, marks=not_torch)])
def test_compiled_steps_see_the_right_bytes(folder: Callable[..., Any], execution: int) -> None:
    """In `fit`, `evaluate` and `predict`, no slot is filled again before the framework has read its batch, however late."""
    data = Data(folder, 50)
    model = checker(steps_per_execution=execution)
    with data.sequence(slots=2, workers=2) as sequence:
        history = model.fit(sequence, epochs=3, verbose=0)
        assert history.history["loss"] == [0.0] * 3
        assert model.evaluate(sequence, verbose=0) == 0
        assert sequence.stats.grown == 0
        assert sequence.stats.slot_wait < max(1.0, 0.3 * sequence.stats.elapsed)
    with data.sequence(slots=2, workers=2, shuffle=False) as sequence:
        predicted = model.predict(sequence, verbose=0)
    assert (predicted == (np.arange(50 * BATCH) % 97)[:, None, None]).all()


def test_predictions_may_share_the_batches_memory(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outputs of a model that only reshapes may share the batches' memory: all are right, in more slots if needed."""
    monkeypatch.setattr(shmgen._engine.held_slots, "GROW_AFTER", 0.1)
    model = keras.Sequential([keras.Input(SHAPE), keras.layers.Reshape((6,))])
    with data.sequence(slots=2, shuffle=False) as sequence:
        predicted = model.predict(sequence, verbose=0)
    assert (predicted == np.arange(10 * BATCH)[:, None]).all()


def test_held_tensors_keep_their_values(data: Data) -> None:
    """Tensors of a step, and parts of them, are not overwritten as long as they are held."""
    held: list[tuple[Any, Any]] = []
    model = Recorder(lambda x, y: held.append((x[1:], y[1:])))
    with data.sequence(slots=3) as sequence:
        model.fit(sequence, epochs=2, verbose=0)
        for _ in sequence:
            pass
        expected = [label for batch in model.taken() for label in batch[1:]]
        found = [keras.ops.convert_to_numpy(part) for _, y in held for part in y]
        assert [int(one) for one in found] == expected
        rows = [keras.ops.convert_to_numpy(row) for x, _ in held for row in x]
        assert all((row == label).all() for row, label in zip(rows, expected, strict=True))
    held.clear()


@not_torch
def test_steps_per_execution(data: Data) -> None:
    """With more steps per execution than slots or batches, all batches are trained on in the loader's order."""
    model = Recorder(steps_per_execution=16)
    with data.sequence(slots=2) as sequence:
        model.fit(sequence, epochs=2, verbose=0)
    assert model.taken() == sum(data.epochs(2), [])


class Memory(keras.utils.PyDataset):
    """Batches that are already in memory."""

    def __init__(self, batches: list[Any]) -> None:
        super().__init__()
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Any:
        return self.batches[index]


def plain() -> tuple[keras.Model, dict[str, Any], dict[str, Any]]:
    """A model with one input, one-hot labels, and class weights."""
    # Functions sent to workers are defined inside functions: for those of this module, workers would import a framework.
    arguments = {"source": lambda id: np.full((2, 3, 1), id / 40, np.float32), "dim": SHAPE, "n_channels": 1}
    model = keras.Sequential([keras.Input((*SHAPE, 1)), keras.layers.Flatten(), keras.layers.Dense(5)])
    model.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model, {"labels": lambda id: id % 5, "n_classes": 5, **arguments}, {"class_weight": {0: 3.0, 2: 0.5}}


def nested() -> tuple[keras.Model, dict[str, Any], dict[str, Any]]:
    """A model with dicts of inputs, targets and weights, of several dtypes."""
    one, two = keras.Input(SHAPE, name="one", dtype="uint8"), keras.Input((1,), name="two", dtype="float64")
    x = keras.layers.Flatten()(keras.ops.cast(one, "float32") / 40)
    x = keras.layers.Concatenate()([x, keras.ops.cast(two, "float32")])
    model = keras.Model([one, two], {"a": keras.layers.Dense(1, name="a")(x), "b": keras.layers.Dense(2, name="b")(x)})
    model.compile("sgd", {"a": "mse", "b": "mae"})
    inputs = {
        "one": shmgen.Function(lambda id: np.full(SHAPE, id, np.uint8)),
        "two": Values({id: float(id) / 40 for id in range(40)}, dtype="float64"),
    }
    targets = {"a": Values(dict.fromkeys(range(40), 0.5)), "b": shmgen.Function(lambda id: np.full(2, id / 40, np.float32))}
    weights = {"a": Values(dict.fromkeys(range(40), 2.0)), "b": Values(dict.fromkeys(range(40), 0.5))}
    return model, {"inputs": inputs, "targets": targets, "weights": weights}, {}


def masks() -> tuple[keras.Model, dict[str, Any], dict[str, Any]]:
    """A model with a mask, which Keras derives from zeros in a row, and a uint8 target of the input's size."""
    tokens = keras.Input((6,), dtype="int32")
    model = keras.Model(tokens, keras.layers.Dense(3)(keras.layers.Embedding(50, 4, mask_zero=True)(tokens)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    def row(id: int) -> np.ndarray:
        return np.where(np.arange(6) <= id % 6, id + 1, 0).astype(np.int32)

    return model, {"source": row, "targets": shmgen.Function(lambda id: (row(id) % 3).astype(np.uint8))}, {}


def odd_dtypes() -> tuple[keras.Model, dict[str, Any], dict[str, Any]]:
    """A model with input dtypes that a framework may not have, or that Keras converts."""
    inputs = {
        name: shmgen.Function(lambda id, name=name: np.full(2, id, name)) for name in ("uint16", "uint32", "bool", "float16")
    }
    layers = {name: keras.Input((2,), name=name, dtype=name) for name in inputs}
    x = keras.layers.Concatenate()([keras.ops.cast(layer, "float32") / 40 for layer in layers.values()])
    model = keras.Model(layers, keras.layers.Dense(1)(x))
    model.compile("sgd", "mse")
    return model, {"inputs": inputs, "targets": Values(dict.fromkeys(range(40), 0.5))}, {}


def _trained(model: keras.Model, data: Any, fit: dict[str, Any]) -> tuple[list[Any], Counter[tuple[type, str, int]]]:
    """Train, evaluate and predict; return all results and weights, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = model.fit(data, epochs=2, shuffle=False, verbose=0, **fit)
        found = [history.history, model.evaluate(data, return_dict=True, verbose=0), model.predict(data, verbose=0)]
    said = Counter((one.category, str(one.message), one.lineno) for one in caught)
    return keras.tree.flatten([*found, model.get_weights()]), said


@pytest.mark.parametrize("make", [plain, nested, masks, odd_dtypes])
def test_results_equal_those_of_arrays_in_memory(make: Callable[..., Any]) -> None:
    """`fit`, `evaluate` and `predict` give the same results, weights and warnings as with the same arrays from memory."""
    model, options, fit = make()
    weights = model.get_weights()
    arguments = {"list_IDs": range(40), "batch_size": BATCH, "shuffle": False, "workers": 1, **options}
    with Loader(**{**arguments, "workers": 0}) as loader:
        memory = Memory([keras.tree.map_structure(np.copy, batch) for batch in loader])
    expected, may_be_said = _trained(model, memory, fit)
    model.set_weights(weights)  # the optimizer has no state; other structures or dtypes would be traced anew
    with Sequence(**arguments) as sequence:
        found, said = _trained(model, sequence, fit)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert said - may_be_said == Counter()


@pytest.mark.parametrize("stopped", [4, 10, 13])
def test_fit_resumes_from_a_state(data: Data, stopped: int) -> None:
    """A run that ends after batch ``stopped`` is resumed from its state: the rest is trained on in the same order."""
    expected = sum(data.epochs(3), [])
    states = []

    class Saves(keras.callbacks.Callback):
        batches = 0

        def on_train_batch_end(self, batch: int, logs: object = None) -> None:
            self.batches += 1
            if self.batches == stopped:
                states.append(sequence.state_dict(trained=batch + 1))
                self.model.stop_training = True

    first, second = Recorder(), Recorder()
    with data.sequence() as sequence:
        first.fit(sequence, epochs=2, verbose=0, callbacks=[Saves()])
    [state] = states
    with data.sequence(workers=1) as sequence:
        sequence.load_state_dict(state)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Your input ran out of data")
            second.fit(sequence, epochs=3 - stopped // 10, verbose=0)
    found = [*first.taken(), *second.taken()]
    assert found == expected


def test_an_error_in_a_worker_ends_the_fit(data: Data) -> None:
    """An error in a worker ends `fit` with the sample's id, whatever class the backend raises, and a later `fit` works."""

    def fails_once(id: int) -> np.ndarray:
        if id == 22:
            raise LookupError("no such thing")
        return np.full(SHAPE, id, np.float32)

    model = Recorder()
    with Sequence(range(40), range(40), BATCH, source=fails_once, workers=1, shuffle=False) as sequence:
        with pytest.raises(Exception, match=r"sample 22.*no such thing"):
            model.fit(sequence, verbose=0, shuffle=False)
        assert isinstance(sequence.error, FunctionError)
        model.taken()
        model.fit(sequence, verbose=0, shuffle=False, steps_per_epoch=5)
        assert sum(model.taken(), []) == list(range(20))


def test_an_error_in_a_callback_leaves_nothing(data: Data) -> None:
    """After an error or KeyboardInterrupt in a callback, the next `fit` is right, and no worker or memory is left behind."""
    for error in (ZeroDivisionError, KeyboardInterrupt):

        class Fails(keras.callbacks.Callback):
            def on_train_batch_end(self, batch: int, logs: object = None, error: type = error) -> None:
                if batch == 3:
                    raise error

        sequence = data.sequence()
        with pytest.raises(error):
            Recorder().fit(sequence, verbose=0, callbacks=[Fails()])
        again = Recorder()
        again.fit(sequence, verbose=0)
        assert again.taken() == data.epochs(2)[1]
        sequence.close()


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow keeps a data set that was in fit until the process ends")
def test_a_sequence_without_references_is_gone(data: Data) -> None:
    """The workers of a `Sequence` that was never closed end when it is garbage-collected."""
    import psutil

    model = Recorder()
    sequence = data.sequence()
    model.fit(sequence, epochs=1, verbose=0, callbacks=[Stop(3)])
    assert workers_of(psutil.Process())
    del sequence, model
    keras.utils.clear_session()
    wait_until(lambda: gc.collect() >= 0 and not workers_of(psutil.Process()), "the workers have gone")


ENDS = {
    "never-closed": (0, "pass"),
    "exit": (3, "sys.exit(3)"),
    "exception": (1, "raise ZeroDivisionError('in a callback')"),
    "os-exit": (4, "os._exit(4)"),
}
"""Ways to end a process during or after a fit: the exit code, and the code that a callback executes."""

if BACKEND == "tensorflow":
    interrupted = "shmgen.keras.backends._is_at_rest = lambda: signal.raise_signal(signal.SIGINT); sys.exit()"
    ENDS["ctrl-c-at-the-end"] = (-signal.SIGINT, interrupted)

FITS = """
def frameworks(): return {{name for name in ("tensorflow", "jax", "torch", "keras") if name in sys.modules}}

with Loader(IDS, LABELS, 2, data_dir=DATA, workers=1) as loader: next(iter(loader))
assert frameworks() == set(), frameworks()

import keras
keras.utils.disable_interactive_logging()

class At(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 2: act()

for how, (code, does) in {ends}.items():
    if not (child := os.fork()): break
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code, how
else:
    how = "waits"

if how != "never-closed" and keras.backend.backend() != "tensorflow":
    sys.modules["tensorflow"] = None  # if it is installed, Keras imports it, which takes seconds
model = keras.Sequential([keras.Input((4, 3)), keras.layers.Flatten(), keras.layers.Dense(1)])
model.compile(loss="mse", jit_compile=keras.backend.backend() == "jax")
if how == "waits":
    begun = threading.Event()
    def act(): begun.set()
    sequence = shmgen.Sequence(IDS, LABELS, 2, data_dir=os.path.dirname(DATA) + "/waits", workers=2, shuffle=False)
    say_when_waiting("ready", sequence, begun)
    try: model.fit(sequence, shuffle=False, verbose=0, callbacks=[At()])
    finally: say("", "left")
if how == "never-closed":
    model.fit(np.zeros((2, 4, 3)), np.zeros(2), verbose=0)
    by_itself = frameworks()
def act(): exec(does)
class Slow(shmgen.Sequence):
    def __getitem__(self, index):
        time.sleep(0.03)  # TensorFlow's thread is in Python when the process ends
        return super().__getitem__(index)

sequence = Slow(IDS, LABELS, 2, data_dir=DATA, workers=2, slots=3)
say(how)
model.fit(sequence, epochs=2, verbose=0, callbacks=[At()])
if how == "never-closed": assert frameworks() == by_itself, frameworks() - by_itself
"""


@pytest.mark.slow
def test_imports_and_ways_to_end_a_training_process(folder: Callable[..., Any], script: Callable[..., Any]) -> None:
    """A `Loader` imports no framework, and a `Sequence`, in a whole ``fit``, only those that Keras imports.

    However a process ends during or after training, without closing anything, it leaves nothing behind and prints no warning.
    Ctrl-C ends the last process within half a second, with KeyboardInterrupt, while ``fit`` waits for a file that never answers.
    """
    folder(40, name="waits").fifo(9)
    run = script(FITS.format(ends=ENDS), folder(40), options=())
    for how in ENDS:
        run.until(how)
    run.until("ready")
    workers = run.workers
    assert workers
    in_time = Deadline(0.5)
    run.signal(signal.SIGINT, group=True)
    run.until("left")
    assert not in_time.passed
    wait_until(lambda: not any(worker.is_running() for worker in workers), "the workers have gone")
    assert run.end() != 0
    assert run.left(within=2.0) == set()
    for complaint in ("ResourceWarning", "leaked", "Exception ignored", "Segmentation"):
        assert complaint not in run.err, run.err
    assert run.err.count("Traceback (most recent call last)") == 2, run.err
    assert "ZeroDivisionError: in a callback" in run.err
    assert "KeyboardInterrupt" in run.err


@only_jax
def test_data_parallel_training(data: Data) -> None:
    """Training on two devices gives the same weights as on one, and batches with parts on both are released as fast."""

    def trained(devices: list[str]) -> list[np.ndarray]:
        keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))
        model = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(1, kernel_initializer="zeros")])
        model.compile(keras.optimizers.SGD(1e-4), "mse")
        with data.sequence(slots=2) as sequence:
            model.fit(sequence, epochs=3, verbose=0)
            assert sequence.stats.grown == 0, sequence.stats
            assert sequence.stats.slot_wait < max(0.5, sequence.stats.elapsed / 4), sequence.stats
        return list(model.get_weights())

    one, two = keras.distribution.list_devices()
    try:
        for found, expected in zip(trained([one, two]), trained([one]), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5)
    finally:
        keras.distribution.set_distribution(None)
