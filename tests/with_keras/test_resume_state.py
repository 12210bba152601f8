"""`Resume`: when it saves states, what it refuses, and how runs go on after errors, or with other arguments."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
from recorder import Interrupt, Interruption

from shmgen import InputError, Sequence
from shmgen.keras import Resume, resume as resume_module, state_folder

N, BATCH = 24, 4


@pytest.fixture
def data() -> Iterator[Callable[..., Sequence]]:
    """A function that makes a `Sequence`, by default of 6 batches of 4."""
    made: list[Sequence] = []

    def make(ids: Any = range(N), batch_size: int = BATCH, **options: Any) -> Sequence:
        options = {"workers": 0, **options}
        source = lambda id: np.full(3, id, np.float32)  # noqa: E731
        made.append(Sequence(ids, lambda id: id % 2, batch_size, source=source, dim=3, n_channels=1, dtype="float32", **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def model_of(units: int = 2, metrics: Any = ("accuracy",), **options: Any) -> Any:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3, 1)), keras.layers.Flatten(), keras.layers.Dense(units)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=list(metrics), run_eagerly=True, **options)
    return model


def fit(sequence: Sequence, *callbacks: Any, model: Any = None, epochs: int = 2, **options: Any) -> Any:
    model = model_of() if model is None else model
    history = model.fit(sequence, callbacks=list(callbacks), epochs=epochs, **{"verbose": 0, **options})
    return model, history


def interrupted(folder: Path, sequence: Sequence, step: int = 5, model: Any = None, keep: int = 1, **options: Any) -> None:
    """Run until an interruption before a step; a state is saved after each step."""
    with pytest.raises(Interruption):
        fit(sequence, Resume(folder, sequence, every=1, keep=keep), Interrupt(step), model=model, **options)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*state*"))


def content(path: Path) -> dict[str, Any]:
    with np.load(path) as file:
        return dict(json.loads(file["state.json"])["state"])


def weights(model: Any) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(variable) for variable in [*model.variables, *model.optimizer.variables]]


def same(one: Any, other: Any) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(weights(one), weights(other), strict=True))


def test_states_are_saved_every_few_batches(data: Callable[..., Sequence], tmp_path: Path) -> None:
    """A state is saved every 4 batches, counted across epochs, and at the end; the ``keep`` latest are kept."""
    training = data()
    fit(training, Resume(tmp_path, training, every=4, keep=3), epochs=3)
    places = [(state["epoch"], state["step"], state["finished"]) for state in map(content, sorted(tmp_path.glob("*.npz")))]
    assert places == [(2, 0, False), (2, 4, False), (3, 0, True)]
    assert names(tmp_path) == ["state-000003.npz", "state-000004.npz", "state-000005.npz"]


def test_states_are_saved_by_the_clock(data: Callable[..., Sequence], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state is saved every 3 minutes, by a clock that advances one minute with each call."""
    now = iter(range(10**6))
    monkeypatch.setattr(resume_module, "time", SimpleNamespace(monotonic=lambda: 60.0 * next(now)))
    training = data()
    fit(training, Resume(tmp_path, training, every_minutes=3, keep=9), epochs=2)
    states = map(content, sorted(tmp_path.glob("*.npz")))
    assert [(state["epoch"], state["step"]) for state in states] == [(0, 3), (1, 0), (1, 3), (2, 0), (2, 0)]


def test_batches_keep_their_numbers(
    data: Callable[..., Sequence], tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A resumed epoch keeps the numbers of its batches, in callbacks and in the progress bar; the log says where it resumes."""
    training, again, after = data(), data(), Interrupt()
    interrupted(tmp_path, training, 4)
    with caplog.at_level(logging.INFO, "shmgen"):
        _, history = fit(again, Resume(tmp_path, again), after, epochs=2, verbose=1)
    assert after.steps == [4, 5, *range(6)]
    shown = re.findall(r"(\d)/6", capsys.readouterr().out)
    assert (shown[0], shown[-1]) == ("5", "6")
    assert f"{tmp_path}/state-000004.npz: going on in epoch 1, after step 4" in caplog.text
    assert history.epoch == [0, 1]


@pytest.mark.parametrize(("step", "at_once", "options"), [(8, 1, {}), (4, 1, {"steps_per_epoch": 3}), (3, 4, {})])
def test_an_interrupted_run_ends_with_the_same_weights(
    data: Callable[..., Sequence], tmp_path: Path, step: int, at_once: int, options: dict[str, Any]
) -> None:
    """An interrupted run ends with the same weights, also with ``steps_per_epoch``, or several steps per execution."""
    training, again, whole = data(), data(), data()
    interrupted(tmp_path, training, step, model_of(steps_per_execution=at_once), **options)
    model, history = fit(again, Resume(tmp_path, again), model=model_of(steps_per_execution=at_once), **options)
    expected, whole_history = fit(whole, model=model_of(steps_per_execution=at_once), **options)
    assert same(model, expected)
    assert history.history == whole_history.history


def test_another_batch_size_resumes(data: Callable[..., Sequence], tmp_path: Path) -> None:
    """With half the batch size, a resumed run trains on the remaining samples of the interrupted epoch."""
    training, halves, after = data(), data(batch_size=2), Interrupt()
    interrupted(tmp_path, training, 4)
    model, _ = fit(halves, Resume(tmp_path, halves), after)
    assert after.steps == [*range(8, 12), *range(12)]
    assert int(model.optimizer.iterations) == 4 + 4 + 12


def test_a_complete_run_trains_nothing(data: Callable[..., Sequence], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A complete run that is run again has its final weights and history; with more epochs it goes on from there."""
    training, again, further, whole = (data() for _ in range(4))
    model, history = fit(training, Resume(tmp_path, training), epochs=1)
    complete, same_history = fit(again, Resume(tmp_path, again), epochs=1)
    assert same(complete, model)
    assert same_history.history == history.history
    assert "had come to its end, after 1 epochs, so nothing is trained; give a larger number" in caplog.text
    longer, _ = fit(further, Resume(tmp_path, further), epochs=2)
    at_once, _ = fit(whole, epochs=2)
    assert same(longer, at_once)
    fit(whole, model=longer, epochs=1)
    assert int(longer.optimizer.iterations) == 3 * 6, "a later fit() begins at its own first epoch"


def test_a_full_disk_does_not_end_the_run(
    data: Callable[..., Sequence], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a state can't be saved, the earlier one stays, the log says so once, and the next state is saved."""
    training, again = data(), data()
    interrupted(tmp_path, training, 2)
    monkeypatch.setattr(os, "urandom", bytes)
    full = tmp_path / f".{bytes(8).hex()}-state-000003.npz"
    stayed = set()

    def fill() -> None:
        stayed.update(names(tmp_path))
        full.symlink_to("/dev/full")

    fit(again, Resume(tmp_path, again, every=1), Interrupt(does=fill), epochs=1)
    [error] = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert error == (
        f"{tmp_path}: the state of epoch 1, step 3 could not be saved: [Errno 28] No space left on device; training goes on, and "
        "any earlier state stays; make room, and it is saved next time"
    )
    assert stayed == {"state-000002.npz"}
    [path] = tmp_path.glob("*.npz")
    assert (path.name, content(path)["epoch"]) == ("state-000003.npz", 1)


def test_a_state_of_other_data_is_refused(data: Callable[..., Sequence], tmp_path: Path) -> None:
    """A state is refused if training or validation data have another seed; the error names the file and the remedy."""
    training = data()
    with pytest.raises(Interruption):
        fit(training, Resume(tmp_path, training, every=1), Interrupt(3), validation_data=data(range(100, 108), seed=5))
    other = data(seed=1)
    with pytest.raises(
        InputError, match=r"state-000003.npz: state: expected seed=1, as here, found 0; .*; or give Resume another"
    ):
        fit(other, Resume(tmp_path, other))
    again = data()
    with pytest.raises(InputError, match=r"state-000003.npz: state: expected seed=6, as here, found 5"):
        fit(again, Resume(tmp_path, again), validation_data=data(range(100, 108), seed=6))


def test_a_state_of_another_model_is_refused(data: Callable[..., Sequence], tmp_path: Path) -> None:
    """A model with other variables is refused, with the first that differs; other metrics are accepted, and start anew."""
    training, again, further = data(), data(), data()
    interrupted(tmp_path, training)
    expected = r"variable model/00000 \(.*\): expected float32\[3, 2\], as it was saved, found float32\[3, 5\]; give the model"
    with pytest.raises(InputError, match=expected):
        fit(again, Resume(tmp_path, again), model=model_of(5))
    model, _ = fit(further, Resume(tmp_path, further), model=model_of(metrics=()))
    assert int(model.optimizer.iterations) == 12


def test_another_length_of_epochs_is_refused(data: Callable[..., Sequence], tmp_path: Path) -> None:
    """In mid-epoch, another length of epochs is refused: the number of remaining steps would be unknown."""
    training, again = data(), data()
    with pytest.raises(Interruption):
        fit(training, Resume(tmp_path, training, every=1), Interrupt(5), steps_per_epoch=4)
    with pytest.raises(InputError, match="expected steps_per_epoch=4, with which it was saved, found None; give fit"):
        fit(again, Resume(tmp_path, again))
    halves = data(batch_size=2)
    with pytest.raises(InputError, match="expected batch_size=4, with which it was saved, found 2; with steps_per_epoch"):
        fit(halves, Resume(tmp_path, halves), steps_per_epoch=4)


def test_a_damaged_state_is_named(data: Callable[..., Sequence], tmp_path: Path) -> None:
    """The error for a damaged state says to delete it; then the run resumes from the one before."""
    training, again, further = data(), data(), data()
    interrupted(tmp_path, training, keep=2)
    older, newest = sorted(tmp_path.glob("*.npz"))
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.raises(InputError, match=rf"{newest}: expected a state that Resume saved, found a damaged file: .*; delete it"):
        fit(again, Resume(tmp_path, again))
    newest.unlink()
    after = Interrupt(0)
    with pytest.raises(Interruption):
        fit(further, Resume(tmp_path, further), after)
    assert (content(older)["epoch"], content(older)["step"]) == (0, 4)


def test_any_damage_of_a_state_is_an_input_error(data: Callable[..., Sequence], tmp_path: Path) -> None:
    """Wherever a state is cut off or has a wrong byte, the error is an InputError that names the file."""
    training = data()
    interrupted(tmp_path, training)
    [path] = tmp_path.glob("*.npz")
    whole = path.read_bytes()

    def outcome(content: bytes) -> str:
        path.write_bytes(content)
        try:
            saved = state_folder.read(path)
        except InputError as error:
            return str(error)
        return f"{saved.state} {[*saved.arrays]}"

    expected, named = outcome(whole), f"{path}: expected a state that Resume saved, found a damaged file"
    assert all(named in outcome(whole[:end]) for end in (0, 600, 1000))
    places = range(0, len(whole), 29)
    found = [outcome(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]) for place in places]
    # Some bytes do not matter, such as times in the archive.
    assert all(named in one for one in found if one != expected)
    assert sum(named in one for one in found) > len(found) / 2


def test_a_refused_state_changes_nothing(data: Callable[..., Sequence], tmp_path: Path) -> None:
    """A state refused for a damaged array, or for other validation data, changes neither the model nor the data's position."""
    training, validation = data(), data(range(100, 108), seed=5)
    with pytest.raises(Interruption):
        fit(training, Resume(tmp_path, training, every=1), Interrupt(3), validation_data=validation)
    again, [path] = data(), tmp_path.glob("*.npz")
    whole = path.read_bytes()
    end = whole.index(b"state.json") - 100
    model = model_of()
    fit(again, model=model, epochs=1)
    before, place = weights(model), again.state_dict()
    cases = [
        (whole[:end] + b"\xff" * 8 + whole[end + 8 :], validation, "damaged file"),
        (whole, data(range(100, 108), seed=6), "seed=6"),
    ]
    for content, other, said in cases:
        path.write_bytes(content)
        with pytest.raises(InputError, match=said):
            fit(again, Resume(tmp_path, again), model=model, validation_data=other)
        assert [array.tobytes() for array in weights(model)] == [array.tobytes() for array in before]
        assert again.state_dict() == place


def test_logs_of_any_type_are_saved(data: Callable[..., Sequence], tmp_path: Path) -> None:
    """Logs that are tensors, variables or arrays are saved as numbers, and other objects as text."""

    class Logs(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            variable = keras.Variable(1.5)
            logs |= {"tensor": variable + 1, "variable": variable, "array": np.arange(2), "numpy": np.float32(3), "text": {1, 2}}

    training, again = data(), data()
    fit(training, Logs(), Resume(tmp_path, training, every=1), epochs=1)
    _, history = fit(again, Logs(), Resume(tmp_path, again), epochs=1)
    found = {name: history.history[name] for name in ("tensor", "variable", "array", "numpy", "text")}
    assert found == {"tensor": [2.5], "variable": [1.5], "array": [[0, 1]], "numpy": [3.0], "text": ["{1, 2}"]}


def test_callbacks_and_data_that_resume_refuses(
    data: Callable[..., Sequence], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callbacks or data that do not go with `Resume` are an error before training starts, with a remedy."""
    training, other = data(), data()

    def refused(expected: str, *callbacks: Any, on: Sequence = training, **options: Any) -> None:
        first = Interrupt(0)
        with pytest.raises(InputError, match=expected):
            fit(on, *callbacks, first, **options)
        assert first.steps == []

    one = Resume(tmp_path / "states", training)
    refused("found BackupAndRestore beside it, .*; leave that out", one, keras.callbacks.BackupAndRestore(tmp_path / "backup"))
    refused("expected fit\\(\\) to train on .*, found .*; give both the same", one, on=other)
    refused("expected another Sequence as validation_data", one, validation_data=training)
    monkeypatch.setattr("keras.src.backend.IS_THREAD_SAFE", True)  # as on JAX and torch
    with pytest.raises(InputError, match="give it in a list"):
        model_of().fit(training, callbacks=one, verbose=0)
    with pytest.raises(InputError, match=r"or a loop of yours; there, save Sequence\.state_dict"):
        one.on_train_begin()
    assert not (tmp_path / "states").exists()


def test_arguments_are_checked(data: Callable[..., Sequence], tmp_path: Path) -> None:
    """Wrong arguments are an error with what was expected and found."""
    cases: list[tuple[dict[str, Any], str]] = [
        ({"every": 0}, "every: expected an int from 1, found 0"),
        ({"every_minutes": 0}, "every_minutes: expected a number above 0, found 0"),
        ({"every": 5, "every_minutes": 1}, "expected one of them; leave the other out"),
        ({"keep": 0}, "keep: expected an int from 1, found 0"),
        ({"sequence": np.zeros(3)}, r"expected the shmgen.Sequence that fit\(\) trains on, found ndarray"),
    ]
    for options, expected in cases:
        with pytest.raises(InputError, match=expected):
            Resume(tmp_path, **{"sequence": data(), **options})


def test_two_processes_saving_in_one_folder(tmp_path: Path) -> None:
    """If two processes save at once into one folder, one gets an error, and the state of the other is complete."""
    one, two = (state_folder.StateFolder(tmp_path, keep=1) for _ in range(2))

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        yield "a", np.zeros(1000)
        two.write({"of": "two"}, [("a", np.ones(1000))])
        yield "b", np.zeros(1000)

    with pytest.raises(FileNotFoundError):
        one.write({"of": "one"}, arrays())
    assert names(tmp_path) == ["state-000001.npz"]
    saved = state_folder.read(tmp_path / "state-000001.npz")
    assert (saved.state, list(saved.arrays), saved.arrays["a"].sum()) == ({"of": "two"}, ["a"], 1000)


def test_a_folder_that_cannot_be_made_is_an_error_before_training(data: Callable[..., Sequence], tmp_path: Path) -> None:
    """A folder that can't be created is an error before training, and not only when the first state is saved."""
    (tmp_path / "file").touch()
    training, first = data(), Interrupt(0)
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "file"))):
        fit(training, Resume(tmp_path / "file" / "states", training), first)
    assert first.steps == []


@pytest.mark.filterwarnings("ignore:fit trains another model on each of 2 ranks")
def test_only_rank_0_writes(data: Callable[..., Sequence], tmp_path: Path) -> None:
    """Only rank 0 saves states, from which all ranks resume, also if there are fewer."""
    ranks = [data(shard=(rank, 2)) for rank in range(2)]
    interrupted(tmp_path / "others", ranks[1], 4)
    assert not (tmp_path / "others").exists()
    interrupted(tmp_path / "states", ranks[0], 4)
    for sequence in [data(shard=(1, 2)), data()]:
        after = Interrupt(2)
        with pytest.raises(Interruption):
            fit(sequence, Resume(tmp_path / "states", sequence), after)
        assert after.steps == [4, 5]
    assert names(tmp_path / "states") == ["state-000004.npz"]
    with pytest.raises(InputError, match="every_minutes: expected every=BATCHES with 2 ranks"):
        fit(ranks[0], Resume(tmp_path / "states", ranks[0], every_minutes=1))


def test_a_model_that_cannot_be_built_is_refused(data: Callable[..., Sequence], tmp_path: Path) -> None:
    """A model that can't be built from a symbolic batch is refused, unless the user has built it, as the error says."""

    class Eager(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, x: Any) -> Any:
            return self.dense(keras.ops.reshape(x, (-1, 3)) * float(keras.ops.max(x)))

    def made(*, built: bool) -> Any:
        model = Eager()
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
        if built:
            model.dense.build((None, 3))
            model.built = True
        return model

    training, again, further = data(), data(), data()
    interrupted(tmp_path, training, model=made(built=True))
    with pytest.raises(
        InputError, match="found none; give the model, optimizers and dtype policy of then, with the model and its"
    ):
        fit(again, Resume(tmp_path, again), model=made(built=False))
    model, _ = fit(further, Resume(tmp_path, further), model=made(built=True))
    assert int(model.optimizer.iterations) == 12


class Stop(keras.callbacks.Callback):
    """Stops training after a batch, or at the end of an epoch."""

    def __init__(self, batch: int | None) -> None:
        super().__init__()
        self.batch = batch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.model.stop_training = batch == self.batch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.stop_training = True


def test_a_run_stopped_by_a_callback_resumes(data: Callable[..., Sequence], tmp_path: Path) -> None:
    """A run that a callback stopped, in mid-epoch or at its end, resumes as if it had not been stopped."""
    expected, whole_history = fit(data())
    for batch in (2, None):
        training, again = data(), data()
        fit(training, Resume(tmp_path / str(batch), training), Stop(batch))
        model, history = fit(again, Resume(tmp_path / str(batch), again))
        assert same(model, expected)
        assert history.history == whole_history.history


def test_early_stopping_ends_a_run(data: Callable[..., Sequence], tmp_path: Path) -> None:
    """A run that EarlyStopping ended trains nothing if it is run again."""
    training, again = data(), data()
    early = [keras.callbacks.EarlyStopping("loss", mode="max", patience=1) for _ in range(2)]
    model, history = fit(training, Resume(tmp_path, training), early[0], epochs=9)
    assert len(history.epoch) < 9
    assert same(fit(again, Resume(tmp_path, again), early[1], epochs=9)[0], model)


def test_bfloat16_is_saved_bit_for_bit(data: Callable[..., Sequence], tmp_path: Path) -> None:
    """Variables of bfloat16, which NumPy's format does not support, are saved bit for bit."""
    keras.config.set_dtype_policy("bfloat16")
    try:
        training, again, whole = data(), data(), data()
        interrupted(tmp_path, training, model=model_of())
        model, _ = fit(again, Resume(tmp_path, again), model=model_of())
        expected, _ = fit(whole, model=model_of())
    finally:
        keras.config.set_dtype_policy("float32")
    assert same(model, expected)
    assert os.listdir(tmp_path) != []
