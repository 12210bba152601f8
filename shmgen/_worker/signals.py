"""Signals while what must not be interrupted is done."""

from __future__ import annotations

import os
import signal
import threading
from _signal import getsignal  # type: ignore[import-not-found] # faster than signal's, which makes an enum of each number
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Handlers of signals run at the end: while children are started and remembered, and while garbage is collected.

    A handler that raises, as that of Ctrl-C does, would leave a child behind that nobody knows of. Python runs handlers in the
    main thread, whichever thread a signal reaches. The children inherit the blocked SIGINT: Ctrl-C reaches the whole process
    group, and would end them with a traceback before they have a handler of their own.
    """
    deferred: list[Callable[[], object]] = []
    here = os.getpid()

    def defer(handler: Callable[..., object]) -> Callable[..., object]:
        # A fork that another thread makes meanwhile keeps this handler.
        return lambda *args: deferred.append(partial(handler, *args)) if os.getpid() == here else handler(*args)

    with ExitStack() as after:
        after.callback(lambda: [handle() for handle in deferred])
        after.callback(signal.pthread_sigmask, signal.SIG_SETMASK, signal.pthread_sigmask(signal.SIG_BLOCK, []))
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        if threading.current_thread() is threading.main_thread():
            for number in range(1, signal.NSIG):
                handler = getsignal(number)
                if callable(handler):
                    after.callback(signal.signal, number, handler)
                    signal.signal(number, defer(handler))
        yield
