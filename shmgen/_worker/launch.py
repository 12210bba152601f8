"""How the main process starts a child, talks to it, and ends it.

A child is a Python process that does not import the caller's ``__main__``. It has a socket to the main process, and the reading
end of a pipe by which the kernel ends it when the main process is gone. `shmgen._worker.liveness` is the child's side.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from _signal import getsignal  # type: ignore[import-not-found] # faster than signal's, which makes an enum of each number
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from shmgen._memory.limit_errors import named
from shmgen._worker.liveness import pidfd_open
from shmgen._worker.protocol import frame, take_messages
from shmgen.errors import InputError

BOOT = """if True:
    import sys
    sys.path.insert(0, sys.argv[1])
    import shmgen
    del sys.path[0]
    from %s import main
    main(*map(int, sys.argv[2:]))
"""
"""What a child runs, with the name of a module. Its arguments are the folder that this package is in, and descriptors. The folder
is first on ``sys.path`` only while the package is imported, of which another version may be installed; it is then removed, so
that nothing else in it hides other modules."""

ONE_PROCESSOR = {
    "OPENCV_FOR_THREADS_NUM": "1",
    **{f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "BLIS", "NUMEXPR")},
}
"""Variables of a worker's environment: workers that each used all processors would slow each other down.

Most libraries look at their own variable first and then at OMP_NUM_THREADS. So where the user sets that, none of these are set.
"""

KILL_GRACE = 1.0
"""Seconds to wait for a killed child, which may hang in the kernel."""


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Run handlers of signals at the end: while a child is started and remembered, and while garbage is collected.

    A handler that raises, as that of Ctrl-C does, would leave a child behind that is in no list. Python runs handlers in the main
    thread, whichever thread a signal reaches. Children inherit the blocked SIGINT: Ctrl-C reaches the whole process group, and
    would end them with a traceback before they have a handler of their own.
    """
    deferred: list[Callable[[], object]] = []
    here = os.getpid()

    def defer(handler: Callable[..., object]) -> Callable[..., object]:
        # If another thread forks now, the child keeps this handler, which calls the original at once there.
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


def command(module: str, *, site: bool = False) -> list[str]:
    """The command line of children that call ``main`` of ``module``, by Python as it was started here.

    With ``site``, Python imports `site`, which virtual environments and packages that are installed in place need. Without, a
    child starts faster and takes less memory.
    """
    spawn = sys.modules.get("multiprocessing.spawn")  # a program that embeds Python calls multiprocessing.set_executable
    named = os.fsdecode(spawn.get_executable() or "") if spawn is not None else sys.executable
    if not named or (getattr(sys, "frozen", False) and named == sys.executable):
        why = "it is frozen, so that would start the program itself" if named else "sys.executable does not name one"
        raise InputError(
            f"workers: this program can't start a Python interpreter: {why}; name one by multiprocessing.set_executable, or use "
            "workers=0"
        )
    flags = {"-B": sys.dont_write_bytecode, "-E": sys.flags.ignore_environment, "-s": sys.flags.no_user_site}
    options = ["-X", f"utf8={sys.flags.utf8_mode}", *(flag for flag, is_set in flags.items() if is_set)]
    if sys.flags.optimize:
        options.append("-" + "O" * sys.flags.optimize)
    if not site or sys.flags.no_site:
        options.append("-S")
    return [named, *options, "-P", "-c", BOOT % module, str(Path(__file__).parents[2])]


class Child:
    """The main process's side of a child; to be made, and remembered, within `deferred_signals`. Nothing but `join` waits.

    The child inherits the descriptors ``fds``; -1 stands for a missing one. Its ``main`` is given those of its end of the socket
    and of the liveness pipe, and ``fds``.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str], fds: Sequence[int]) -> None:
        self._owner = os.getpid()
        self._pidfd = self._liveness = -1
        self._received = bytearray()
        self._unsent = bytearray()
        with named(), ExitStack() as theirs:
            self._socket, stream = socket.socketpair()
            theirs.callback(stream.close)
            try:
                # The kernel ends the child when no process holds our end of the pipe any more.
                liveness, self._liveness = os.pipe()
                theirs.callback(os.close, liveness)
                inherited = stream.fileno(), liveness, *fds
                self.process = subprocess.Popen(
                    [*command, *map(str, inherited)],
                    stdin=subprocess.DEVNULL,
                    env=environment,
                    pass_fds=[fd for fd in inherited if fd >= 0],
                )
            except BaseException:
                self._close_fds()
                raise
        self.pid = self.process.pid
        # Before Linux 5.3 a death shows only as the end of the stream, and not even so if a fork holds it open.
        with suppress(OSError):
            self._pidfd = pidfd_open(self.pid)

    @property
    def stream(self) -> int:
        """The socket's descriptor; -1 after `shutdown`."""
        return self._socket.fileno()

    @property
    def events(self) -> dict[int, int]:
        """What to poll for, by descriptor: the child has sent something, has died, or takes what is unsent."""
        wanted = {self.stream: select.POLLIN | (select.POLLOUT if self._unsent else 0), self._pidfd: select.POLLIN}
        return {fd: events for fd, events in wanted.items() if fd >= 0}

    def send(self, message: bytes) -> None:
        """Send ``message``. What the socket has no room for, `flush` sends later."""
        self._unsent += frame(message)
        self.flush()

    def flush(self) -> None:
        """Send what is unsent, as far as the socket has room."""
        if not self._unsent:
            return
        try:
            sent = self._socket.send(self._unsent, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            sent = len(self._unsent)  # it has died, as `receive` will say
        del self._unsent[:sent]

    def receive(self, fd: int) -> tuple[list[bytes], bool]:
        """The messages that have come, and whether the child has ended; ``fd`` is the one of `events` that is ready.

        Messages that were sent before a death are returned with it.
        """
        messages: list[bytes] = []
        ended = fd != self.stream
        while True:
            try:
                data = self._socket.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return messages, ended
            except ConnectionResetError:
                return messages, True
            self._received += data
            messages += take_messages(self._received)
            if not data:
                return messages, True
            if len(data) < 1 << 16 and not ended:
                return messages, False

    def shutdown(self) -> None:
        """Tell the child to end, by the end of the stream, even if a fork of this process keeps it open."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def join(self, grace: float) -> int | None:
        """Wait ``grace`` seconds until the child has ended, then kill it; its exit code, None if it lives even then."""
        _join([self], grace)
        return self.process.returncode

    @property
    def is_ours(self) -> bool:
        """Whether this process started the child; else it is a fork of the one that did."""
        return os.getpid() == self._owner

    def close(self) -> None:
        if not self.is_ours:
            self.process.returncode = 0  # it is not this process's to wait for
        self._close_fds()

    def _close_fds(self) -> None:
        self._socket.close()
        for fd in (self._pidfd, self._liveness):
            if fd >= 0:
                os.close(fd)
        self._pidfd = self._liveness = -1


def end(children: Sequence[Child], grace: float) -> None:
    """End all ``children``: tell them, wait ``grace`` seconds, kill those that are left, and close their descriptors.

    In a fork of the process that started them, only the descriptors are closed. May be called again.
    """
    ours = [child for child in children if child.is_ours]
    for child in ours:
        child.shutdown()
    _join(ours, grace)
    for child in children:
        child.close()


def _join(children: Sequence[Child], grace: float) -> None:
    """Wait ``grace`` seconds until all have ended, then kill those that are left."""
    for seconds in (grace, KILL_GRACE):
        deadline = time.monotonic() + seconds
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, deadline - time.monotonic()))
        for child in children:
            child.process.kill()  # does nothing to one that has ended
