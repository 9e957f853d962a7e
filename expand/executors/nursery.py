"""A process from which training processes are forked: torch is imported once, and a new one is there in no time.

It is a program of its own rather than a fork of the driver, whose threads would not survive that, and knows nothing of
the caller's script, which so needs no `if __name__ == "__main__"`. It imports torch and computes nothing, so that its
forks are free to use threads and a GPU.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from typing import Self

from expand.errors import RunError

CAN_FORK = sys.platform == "linux"
"""Elsewhere the system's own libraries start threads at import; a process is then started anew each time."""
GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_PROGRAM = ("import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
            "from expand.executors.nursery import {name}; {name}(int(sys.argv[2]))")


class Nursery:
    """Starts training processes (`expand.executors.worker`), itself from the moment on that it is made. A context
    manager: leaving it ends the nursery, not what it started."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._control: socket.socket | None = None
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    def worker(self) -> Connection:
        """A new training process's pipe. It ends when the pipe does. Raises `RunError` where the system has none."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._order(theirs)
            except OSError:  # it was killed
                self._end()
                self._start()
                self._order(theirs)
        return Connection(ours.detach())

    def _order(self, theirs: socket.socket) -> None:
        socket.send_fds(self._control, [b"1"], [theirs.fileno()])

    def _start(self) -> None:
        try:
            self._control, theirs = socket.socketpair()
            with theirs:
                self._process = _program("main", theirs)
        except OSError as error:
            raise RunError(f"no process can be started to train in: {error.strerror}",
                           fix="free memory, or raise `ulimit -u` or `ulimit -n`, then start again") from error

    def _end(self) -> None:
        self._control.close()
        self._process.kill()
        self._process.wait()


def _program(name: str, end: socket.socket) -> subprocess.Popen:
    command = [sys.executable, "-c", _PROGRAM.format(name=name), json.dumps(sys.path), str(end.fileno())]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)  # they wait until the program ignores them
    try:
        return subprocess.Popen(command, pass_fds=[end.fileno()], stdin=subprocess.DEVNULL)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_group_signals() -> None:
    """Leaves Ctrl-C and SIGTERM, which go to a whole group of processes, to the one with the run's lock, which tells
    the others."""
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)


def main(control_fd: int) -> None:
    """The nursery: a training process for every pipe that comes, until the driver ends."""
    ignore_group_signals()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for its children
    if CAN_FORK:
        import torch._dynamo  # noqa: F401 - the first optimizer imports it, which takes two seconds

        import expand.executors.worker  # noqa: F401
    with socket.socket(fileno=control_fd) as control:
        while True:
            order, ends, _, _ = socket.recv_fds(control, 1, 1)
            if not order:
                return
            with socket.socket(fileno=ends[0]) as pipe:
                _begin(pipe, control)


def _begin(pipe: socket.socket, control: socket.socket) -> None:
    if not CAN_FORK:
        _program("work", pipe)
    elif os.fork() == 0:
        control.close()
        work(pipe.detach())


def work(pipe_fd: int) -> None:
    """A training process."""
    from expand.executors.worker import serve

    ignore_group_signals()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        serve(Connection(pipe_fd))
    finally:
        os._exit(0)  # of a fork, nothing else is to be ended
