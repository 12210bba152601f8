"""Signals while processes are born."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial


@contextmanager
def undisturbed() -> Iterator[None]:
    """For the birth of workers: signals are handled once all that was born is known here.

    A handler that raises, as that of Ctrl-C does, would leave behind what nobody knows of; and whichever thread a signal reaches,
    it is handled in the main one, wherever that is. The workers inherit the block: Ctrl-C reaches the whole process group, and
    before they have their own handler, it would end them with a traceback.
    """
    came: list[Callable[[], object]] = []
    here = os.getpid()

    def put_off(handler: Callable[..., object]) -> Callable[..., object]:
        # A fork that another thread makes meanwhile is left with it.
        return lambda *args: came.append(partial(handler, *args)) if os.getpid() == here else handler(*args)

    with ExitStack() as after:
        after.callback(lambda: [handle() for handle in came])
        after.callback(signal.pthread_sigmask, signal.SIG_SETMASK, signal.pthread_sigmask(signal.SIG_BLOCK, []))
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        if threading.current_thread() is threading.main_thread():
            for number in signal.valid_signals():
                handler = signal.getsignal(number)
                if callable(handler):
                    after.callback(signal.signal, number, handler)
                    signal.signal(number, put_off(handler))
        yield
