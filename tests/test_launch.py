"""Child processes: messages of any size are sent without waiting, last messages are received, and children end in time."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterator

import pytest
from conftest import DEADLINE
from pace import Deadline

from shmgen._worker import launch
from shmgen._worker.launch import Child, command, deferred_signals, end

BOOT = """if True:
    import os, sys, time
    sys.path.append(sys.argv[1])
    stream, liveness, *fds = map(int, sys.argv[2:])
    from shmgen._worker.protocol import frame
    %s
"""
"""Start code that runs the line given to `start` instead of a module's ``main``."""

ECHO = "while data := os.read(stream, 1 << 16): os.write(stream, data)"

NEVER_ENDS = "while True: time.sleep(1000)"


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Child]]:
    """A function that starts a child which executes a line of code."""
    monkeypatch.setattr(launch, "BOOT", BOOT)
    children: list[Child] = []

    def start(code: str, *fds: int) -> Child:
        with deferred_signals():
            children.append(Child(command(code), dict(os.environ), fds))
        return children[-1]

    yield start
    end(children, 0.0)


def talk(child: Child, until: Callable[[list[bytes]], bool]) -> tuple[list[bytes], bool]:
    """Receive messages until ``until(messages)`` is true or the child has ended; return them, and whether it has ended."""
    heard: list[bytes] = []
    deadline = Deadline(DEADLINE)
    while not until(heard):
        assert not deadline.passed, f"not within {deadline}"
        poll = select.poll()
        for fd, events in child.events.items():
            poll.register(fd, events)
        for fd, _ in poll.poll(1000 * deadline.left):
            child.flush()
            messages, ended = child.receive(fd)
            heard += messages
            if ended:
                return heard, True
    return heard, False


def test_large_messages_are_sent_in_parts(start: Callable[..., Child]) -> None:
    """Sending never waits, and an echo of large and small messages comes back whole and in order."""
    child = start(ECHO)
    messages = [os.urandom(8 << 20), b"", b"small"]

    for message in messages:
        child.send(message)
    assert child.events[child.stream] & select.POLLOUT

    assert talk(child, lambda heard: len(heard) == 3) == (messages, False)
    assert not child.events[child.stream] & select.POLLOUT


@pytest.mark.parametrize("first", ["stream", "process"])
def test_a_childs_end_is_reported_after_its_messages(start: Callable[..., Child], first: str) -> None:
    """A child's end, seen at the stream or at the process, is reported after all messages that it sent."""
    child = start("os.write(stream, frame(b'last') + frame(b'words')); sys.exit(3)")
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    [process] = set(child.events) - {child.stream}

    heard, ended = child.receive(child.stream if first == "stream" else process)
    if not ended:  # the end of the stream comes after the messages in it
        more, ended = child.receive(child.stream)
        heard += more

    assert (heard, ended) == ([b"last", b"words"], True)
    assert child.join(DEADLINE) == 3


def test_sending_to_a_dead_child_is_no_error(start: Callable[..., Child]) -> None:
    """Sending to a dead child raises no error; its end is reported when messages are received."""
    child = start("sys.exit(0)")
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    child.send(bytes(8 << 20))

    assert not child.events[child.stream] & select.POLLOUT
    assert talk(child, lambda _: False) == ([], True)


def test_a_child_that_hangs_is_killed(start: Callable[..., Child]) -> None:
    """A child that hangs is killed after its grace period; no descriptor is left, and a second `end` does nothing."""
    child = start(NEVER_ENDS)
    fds = list(child.events)

    end([child], 0.0)
    end([child], 0.0)

    assert child.process.returncode == -signal.SIGKILL
    assert not child.events
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_a_child_ends_when_its_stream_is_closed(start: Callable[..., Child]) -> None:
    """When its stream is closed, a child that listens ends by itself; one that hangs is killed."""
    listening, hanging = start(ECHO + "\n    sys.exit(5)"), start(NEVER_ENDS)
    listening.send(b"here")
    talk(listening, lambda heard: heard == [b"here"])

    end([hanging, listening], 1.0)

    assert (listening.process.returncode, hanging.process.returncode) == (5, -signal.SIGKILL)


def test_only_named_descriptors_are_inherited(start: Callable[..., Child]) -> None:
    """A child inherits the descriptors that are named, and no others."""
    read, write = os.pipe()
    try:
        start(f"assert not os.path.exists('/proc/self/fd/{read}'); os.write(fds[0], b'here')", write)
        assert os.read(read, 4) == b"here"
    finally:
        os.close(read)
        os.close(write)
