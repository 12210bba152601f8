"""A worker uses one processor: libraries start no threads of their own."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
from ways import computed, rows


def test_a_worker_uses_one_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrix products in a worker take no more processor time than clock time, and start no threads."""
    for name in list(os.environ):
        if name.endswith(("_NUM_THREADS", "_FOR_THREADS_NUM")):
            monkeypatch.delenv(name)

    def usage(id: int) -> tuple[int, float, float]:
        square = np.ones((400, 400))
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(6):
            square @ square
        return len(os.listdir("/proc/self/task")), time.process_time() - cpu, time.perf_counter() - wall

    threads, cpu, wall = rows(computed(usage, workers=1, ids=range(8), shuffle=False, batch_size=4)).T
    assert threads.max() <= 2, "the main thread, and the one that ends the worker with its parent"
    assert cpu.sum() <= 1.2 * wall.sum()


def test_thread_counts_are_set_by_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a worker, the thread counts of OpenMP, BLAS libraries and OpenCV are 1, or what the user has set."""
    names = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"]
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENCV_FOR_THREADS_NUM", "3")

    found = rows(computed(lambda n: [float(os.environ[name]) for name in names], dim=4, workers=1))

    assert found[0].tolist() == [1, 1, 1, 3]
