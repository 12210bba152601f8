"""A Ray cluster of two nodes on this machine loses one; it runs in namespaces of its own, with loopback as the only network.

It needs the extra `ray`, which `make test` does not install.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from launched import needs

ALONE = ["unshare", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
"""A command whose children end with it, see no other processes and no network, and have a /dev/shm of their own."""

DRIVER = """
import fcntl, json, os, socket, struct, subprocess, sys, threading
from pathlib import Path

subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], check=True)
with socket.socket() as any_socket:  # ip link set lo up
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh", b"lo", 0x41))

import psutil
import ray
import train_on_ray
from ray.cluster_utils import Cluster

FOLDER = Path(sys.argv[1])
EPOCHS, BATCHES = 2, 22
STOP = (1, 12)  # the epoch and the batch after which a machine is lost
os.environ["RAY_TMPDIR"] = sys.argv[2]


def counting():
    '''A model that counts, among its variables, how often it is trained on each sample.'''
    import keras

    class Count(keras.layers.Layer):
        def build(self, shape):
            self.seen = self.add_weight(shape=(2048,), initializer="zeros", trainable=False, name="seen")

        def call(self, x, training=False):
            if training:
                number = keras.ops.cast(keras.ops.round(2048 * x[:, 0, 0, 0]), "int32")
                self.seen.assign_add(keras.ops.sum(keras.ops.one_hot(number, 2048), axis=0))
            return x

    model = keras.Sequential(
        [keras.Input((8, 8, 1)), Count(), keras.layers.Flatten(), keras.layers.Dropout(0.2), keras.layers.Dense(10, "softmax")]
    )
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "sparse_categorical_crossentropy", weighted_metrics=["accuracy"])
    return model


def train(config):
    import keras
    import numpy as np
    import ray.train
    import train_on_ray
    from shmgen import _ranks as ranks

    name = config["name"]
    rank, world = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    assert ranks.find_shard() == (rank, world)
    assert ranks.local_ranks() == world  # to Ray, both nodes are one machine, since they have one address

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

        def note(self, when):
            values = {variable.path: variable.numpy() for variable in self.model.variables}
            np.savez(config["notes"] / f"{name}-{when}-{rank}-{world}.npz", step=self.model.optimizer.iterations.numpy(), **{
                path.replace("/", "."): value for path, value in values.items()
            })

        def on_train_batch_end(self, batch, logs=None):
            if (self.epoch, batch) == STOP:
                self.note("stop")
                if world == 2:
                    (config["notes"] / f"{name}-reached-{rank}").touch()
                    threading.Event().wait(300)  # until Ray ends this process
                    raise AssertionError("the machine was not lost")

        def on_train_end(self, logs=None):
            self.note("end")

    train_on_ray.make_model = counting
    return train_on_ray.train({**config, "callbacks": [Look()]})


def fit(name, ranks):
    (FOLDER / name).mkdir()
    (FOLDER / name / "digits").symlink_to(FOLDER / "digits")
    return train_on_ray.fit(FOLDER / name, ranks, train, name=name, notes=FOLDER, epochs=EPOCHS, every=5)


def lose(node):
    '''Take a node away once both ranks have reached the batch.'''
    while len(list(FOLDER.glob("lost-reached-*"))) < 2:
        threading.Event().wait(0.05)
    during.extend(workers())
    cluster.remove_node(node, allow_graceful=False)


def workers():
    '''Command lines of shmgen's workers that live.'''
    words = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [" ".join(said) for said in words if any("from shmgen" in word for word in said)]


def left():
    '''Those that live on; they have a while to end.'''
    for _ in range(200):
        if not workers():
            break
        threading.Event().wait(0.05)
    return workers()


options = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": 100 << 20}
cluster = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
node = cluster.add_node(**options)
cluster.wait_for_nodes()
ray.init(address=cluster.address, log_to_driver=True)
during = []
threading.Thread(target=lose, args=(node,), daemon=True).start()
accuracies = [fit("lost", 2)]
after = left()
accuracies.append(fit("alone", 1))
ray.shutdown()
cluster.shutdown()
print(json.dumps([accuracies, len(during), after + left(), os.listdir("/dev/shm")]))
"""


def allowed() -> bool:
    """Whether processes may have namespaces of their own here."""
    try:
        return subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@needs("ray", "jax")
@pytest.mark.skipif(not allowed(), reason="unshare is not installed, or namespaces are not allowed")
@pytest.mark.timeout(900)
def test_a_node_lost_during_an_epoch(tmp_path: Path) -> None:
    """Ray goes on with one rank: each sample is trained on once an epoch, and the model equals that of one process."""
    (tmp_path / "digits").mkdir()
    for number in range(1797):
        row = np.full((8, 8), (number % 97) / 97, np.float32)
        row[0, 0] = number / 2048
        np.save(tmp_path / "digits" / f"id-{number}.npy", row)
    (tmp_path / "driver.py").write_text(DRIVER)
    paths = [ROOT, ROOT / "examples", ROOT / "tests"]
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as short:  # the paths of Ray's sockets must be short
        ended = subprocess.run(
            [*ALONE, sys.executable, tmp_path / "driver.py", tmp_path, short],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("RAY")},
                "PYTHONPATH": os.pathsep.join(map(str, paths)),
                "KERAS_BACKEND": "jax",
                "JAX_PLATFORMS": "cpu",
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",  # at first, Ray still counts on the machine that is lost
                "TF_CPP_MIN_LOG_LEVEL": "3",
                "CUDA_VISIBLE_DEVICES": "",
            },
        )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    accuracies, during, after, names = json.loads(ended.stdout.splitlines()[-1])
    assert during >= 2
    assert after == []
    assert names == []

    first, second = saved(tmp_path / "lost-stop-0-2.npz"), saved(tmp_path / "lost-stop-1-2.npz")
    alone = saved(tmp_path / "alone-stop-0-1.npz")
    assert first["step"] == alone["step"] == 22 + 13
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], name)
    assert_near(first, alone)

    lost, alone = saved(tmp_path / "lost-end-0-1.npz"), saved(tmp_path / "alone-end-0-1.npz")
    assert lost["step"] == alone["step"] == 2 * 22
    [seen] = [values for name, values in lost.items() if name.endswith("seen")]
    assert seen.tolist() == [2] * (22 * 64) + [0] * (2048 - 22 * 64)
    assert_near(lost, alone)
    assert accuracies[0] == pytest.approx(accuracies[1])


def saved(file: Path) -> dict[str, np.ndarray]:
    """The variables that a rank saved."""
    with np.load(file) as found:
        return dict(found)


def assert_near(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Assert that all variables are the same, up to rounding."""
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name].astype(float), values.astype(float), rtol=0, atol=1e-6, err_msg=name)
