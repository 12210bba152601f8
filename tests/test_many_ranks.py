"""Ranks that are real processes: how they train one model, share processors, and are warned."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from launched import launched, needs

from shmgen import Loader

FIT = """
os.environ.update(KERAS_BACKEND="jax", XLA_FLAGS=f"--xla_force_host_platform_device_count={2 // WORLD}")
import json, jax, warnings
if WORLD > 1:
    jax.distributed.initialize(f"127.0.0.1:{PORT}", WORLD, RANK)
import keras
from keras.distribution import DataParallel, DeviceMesh, LayoutMap, ModelParallel, set_distribution
from shmgen import Sequence
from shmgen._ranks import find_shard

def make(ids, **options):
    return Sequence(ids, LABELS, 8, data_dir=DATA, shard="auto", tail="pad", seed=3, workers=1, **options)

def make_model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4, 3)), keras.layers.Flatten(), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1e-5), "mse", weighted_metrics=["mae"])
    return model

def fit():
    model = make_model()
    with make(IDS[:28]) as training, make(IDS[28:], shuffle=False) as validation:
        history = model.fit(training, validation_data=validation, epochs=2, verbose=0).history
        assert training.shard == (RANK, WORLD)
        return [weight.tolist() for weight in model.get_weights()], history, training.state_dict()

assert len(jax.devices()) == 2
if WORLD == 1:
    one_device = fit()
set_distribution(ModelParallel(layout_map=LayoutMap(DeviceMesh((1, 2), ["batch", "model"])), auto_shard_dataset=False))
assert find_shard() == (0, 1), "processes that hold a part of one replica each need the same samples"
set_distribution(DataParallel(auto_shard_dataset=False))
two_devices = fit()
if WORLD > 1:
    with Sequence(IDS[:16], LABELS, 8, data_dir=DATA) as whole, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_model().fit(whole, verbose=0)
    assert sum(f"expected a Sequence with shard={(RANK, 2)} on this one, found shard=(0, 1)" in str(one) for one in caught) == 1
print(json.dumps([two_devices] if WORLD > 1 else [one_device, two_devices]))
"""


@pytest.mark.slow
@needs("jax")
def test_processes_and_devices_of_jax_train_one_model(folder: Callable[..., Any], script: Callable[..., Any]) -> None:
    """Two processes, or one with two devices, train the same model as one device; metrics of padded validation are exact."""
    data = folder(41)
    [[alone, devices]], [[first], [second]] = launched(script, FIT, data, 1, 2)
    assert first == second
    X = np.stack([data.sample(number).ravel() for number in range(28, 41)])
    for weights, history, state in (first, devices, alone):
        assert state == alone[2]
        for found, expected in zip(weights, alone[0], strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        for name, values in history.items():
            np.testing.assert_allclose(values, alone[1][name], rtol=1e-5)
        kernel, bias = map(np.asarray, weights)
        error = X @ kernel[:, 0] + bias - np.arange(28, 41)
        np.testing.assert_allclose(history["val_loss"][-1], np.mean(error**2), rtol=1e-5)
        np.testing.assert_allclose(history["val_mae"][-1], np.mean(np.abs(error)), rtol=1e-5)


def test_ranks_of_one_machine_share_its_processors(
    folder: Callable[..., Any], workers: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default the ranks of a machine divide the workers that a single process would have."""
    data = folder(8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(6))
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr("shmgen._memory.limits._groups", lambda controller: [])
    for ranks, expected in {1: 6, 2: 3, 100: 1}.items():
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        with Loader(data.ids, data.labels, 8, data_dir=data.path):
            assert len(workers()) == expected


TORCH = """
os.environ.update(KERAS_BACKEND="torch", TORCHELASTIC_RUN_ID="none", WORLD_SIZE="2", GLOO_SOCKET_IFNAME="lo")
import json, warnings
import keras, torch
torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())

def caught_of(*layers):
    model = keras.Sequential([keras.Input((3,)), *layers, keras.layers.Dense(1)])
    model.compile(loss="mse")
    with shmgen.Sequence(IDS, LABELS, 4, data_dir=DATA, n_channels=3, workers=1) as whole:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(whole, verbose=0)
    return [str(one.message) for one in caught if "fit trains another model" in str(one.message)]

parallel = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 3))
print(json.dumps([caught_of(), caught_of(keras.layers.TorchModuleWrapper(parallel))]))
"""


@pytest.mark.torch
@needs("torch")
def test_a_plain_fit_on_torch_is_warned_of(folder: Callable[..., Any], script: Callable[..., Any]) -> None:
    """Under torchrun, `fit` warns unless a part of the model is a DistributedDataParallel, which synchronises ranks."""
    [[[[warned], silent]]] = launched(script, TORCH, folder(16, (3,)), 1)
    assert warned.startswith("fit trains another model on each of 2 ranks")
    assert "DistributedDataParallel" in warned
    assert silent == []
