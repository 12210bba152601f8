"""However and whenever the calling process ends, it leaves nothing behind, and prints no traceback but its own."""

from __future__ import annotations

import signal
from collections.abc import Callable
from textwrap import indent

import pytest
from conftest import DEADLINE, GONE_WITHIN
from leftovers import names

STRIKES = {
    # how the calling process ends -> code for it, the exit code, and the end of the process's own traceback
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, None),
    "SIGKILL": ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, None),
    "SIGHUP-to-the-group": ("os.killpg(0, signal.SIGHUP)", -signal.SIGHUP, None),
    "SIGKILL-to-the-group": ("os.killpg(0, signal.SIGKILL)", -signal.SIGKILL, None),
    "SIGINT": ("os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT, "KeyboardInterrupt"),
    "SIGINT-to-the-group": ("os.killpg(0, signal.SIGINT)", -signal.SIGINT, "KeyboardInterrupt"),
    "handler-that-exits": ("os.kill(os.getpid(), signal.SIGUSR1)", 4, None),
    "os._exit": ("os._exit(7)", 7, None),
    "exception": ("raise ValueError('the user\\'s')", 1, "ValueError: the user's"),
}

SCRIPT = """
threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()  # signals may reach it, as they do TensorFlow's threads
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(4))

def strike():
    {strike}

def main():
{moment}
    while True: time.sleep(0.001)  # a signal is handled where the interpreter gets to it, at the latest here

main()
"""

LOADER = "Loader(IDS, LABELS, 4, data_dir=DATA, workers=2, shuffle=False)"

AT_WORKER = """
import subprocess
from shmgen._worker import launch

class Popen(subprocess.Popen):
    started = 0
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        Popen.started += 1
        if Popen.started == {number}:
            strike()

launch.subprocess.Popen = Popen
"""

MOMENTS = {
    # the moment of the end -> code that calls strike() at that moment
    "first-worker-started": AT_WORKER.format(number=1) + LOADER,
    "memory-reserved": "from shmgen._memory import ring\nring._reserve = lambda *_: strike()\n" + LOADER,
    "during-the-constructor": "from shmgen._engine import feed\nfeed.Prefetcher = lambda *_, **__: strike()\n" + LOADER,
    "before-the-workers-are-ready": f"loader = {LOADER}\nstrike()",
    "idle": f"loader = {LOADER}\nfor epoch in range(2): list(loader)\nstrike()",
    "a-reader-stuck": f"""
os.unlink(f"{{DATA}}/id-9.npy"); os.mkfifo(f"{{DATA}}/id-9.npy")
loader = {LOADER}
held = [loader.batch(0), loader.batch(1)]
while "id-9" not in [id for worker in loader.state.workers for id in worker.reading]: time.sleep(0.001)
strike()
""",
    "a-worker-stopped": f"""
loader = {LOADER}
import gc
[supervisor] = [part for part in gc.get_objects() if type(part).__name__ == "Supervisor"]
while supervisor.started < 2: list(loader)
from pathlib import Path
pid = loader.state.workers[1].pid
os.kill(pid, signal.SIGSTOP)
while "T (stopped)" not in Path(f"/proc/{{pid}}/status").read_text(): time.sleep(0.001)
strike()
""",
    "a-function-that-lets-no-thread-run": f"""
import re
def stuck(id): re.match("(a+)+$", "a" * 60 + "b")
loader = {LOADER.replace("data_dir=DATA", "source=stuck, dim=3, n_channels=1, dtype=float")}
while not any(worker.busy for worker in loader.state.workers): time.sleep(0.001)
strike()
""",
    "replacing-a-worker": AT_WORKER.format(number=3)
    + f"""
import logging
logging.disable()
loader = {LOADER}
epoch = iter(loader)
next(epoch)
os.kill(loader.state.workers[0].pid, signal.SIGKILL)
while True: list(loader)
""",
    "during-close": f"""
from shmgen._worker import launch
wait = launch._join
def once(*args):
    launch._join = wait
    strike()
    return wait(*args)
loader = {LOADER}
next(iter(loader))
launch._join = once
loader.close()
""",
    "in-a-with-block": f"with {LOADER} as loader:\n    for X, y in loader: strike()",
    "waiting": f"""
os.unlink(f"{{DATA}}/id-9.npy"); os.mkfifo(f"{{DATA}}/id-9.npy")
loader = {LOADER}
def watch():
    until_waiting(loader)
    strike()
threading.Thread(target=watch, daemon=True).start()
list(loader)
""",
}

ELSEWHERE = {"first-worker-started", "replacing-a-worker", "during-close", "waiting"}
"""Moments at which the caller's own code does not run, so only a signal handler could raise an exception."""


def strikes(moment: str) -> list[str]:
    """Two ways to end at a moment: SIGKILL or Ctrl-C in turn, and one of the others in turn."""
    number = [*MOMENTS].index(moment)
    first = ["SIGKILL", "SIGINT-to-the-group"]
    others = [name for name in STRIKES if name not in first and (name != "exception" or moment not in ELSEWHERE)]
    return [first[number % 2], others[number % len(others)]]


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_ending_process_leaves_nothing_behind(folder: Callable, script: Callable, moment: str) -> None:
    """A process that ends leaves no process and no file, has its own exit code, and prints only its own traceback."""
    body = indent(MOMENTS[moment].strip(), "    ")
    runs = {
        name: script(SCRIPT.format(strike=STRIKES[name][0], moment=body), folder(24, name=name), options=("-W", "error"))
        for name in strikes(moment)
    }
    for name, run in runs.items():
        _, exitcode, own = STRIKES[name]
        assert not run.left(within=DEADLINE), name
        # The pipes are closed once all processes that inherited them have ended, workers too.
        assert run.end(within=GONE_WITHIN) == exitcode, (name, run.err)
        assert run.err.count("Traceback") == (own is not None), (name, run.err)
        assert run.err.rstrip().endswith(own or ""), (name, run.err)
        for complaint in ("Exception ignored", "Warning", "leaked"):
            assert complaint not in run.err, (name, run.err)
    assert not names()
