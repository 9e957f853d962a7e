"""A process from which training processes are forked: torch is imported once, and a new one is there in no time.

It is a program of its own rather than a fork of the driver, whose threads would not survive that, and knows nothing of
the caller's script, which so needs no `if __name__ == "__main__"`. It imports torch and computes nothing, so that its
forks are free to use threads and a GPU.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from typing import Self

from expand.errors import RunError
from expand.executors.program import ignore_group_signals, start_program

CAN_FORK = sys.platform == "linux"
"""Elsewhere the system's own libraries start threads at import; a process is then started anew each time."""


class Nursery:
    """Starts training processes (`expand.executors.worker`), itself from the moment on that it is made. A context
    manager: leaving it ends the nursery, not what it started. `number` counts the starts: one that was killed, or of
    which nothing comes, is replaced."""

    def __init__(self) -> None:
        self.number = 0
        self._process: subprocess.Popen | None = None
        self._control: socket.socket | None = None
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    def worker(self) -> Connection:
        """A new training process's pipe. It ends when the pipe does; the pipe of one that never came to be ends without
        a word. Raises `RunError` where the system has none."""
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    self._order(theirs)
                except OSError:  # it was killed
                    self.renew()
                    self._order(theirs)
        except OSError as error:
            raise _no_process(error) from error
        return Connection(ours.detach())

    def renew(self) -> None:
        """Starts another in its place; what it was told to start and has not started yet is lost."""
        self._end()
        self._start()

    def _order(self, theirs: socket.socket) -> None:
        socket.send_fds(self._control, [b"1"], [theirs.fileno()])

    def _start(self) -> None:
        try:
            self._control, theirs = socket.socketpair()
            with theirs:
                self._process = start_program(__name__, "main", theirs)
        except OSError as error:
            raise _no_process(error) from error
        self.number += 1

    def _end(self) -> None:
        self._control.close()
        self._process.kill()
        self._process.wait()


def _no_process(error: OSError) -> RunError:
    return RunError(f"no process can be started to train in: {error.strerror}",
                    fix="free memory, or raise `ulimit -u` or `ulimit -n`, then start again")


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
                try:
                    _begin(pipe, control)
                except OSError as error:  # the pipe's end says so to the driver
                    print(f"no training process could be started: {error.strerror}", file=sys.stderr, flush=True)


def _begin(pipe: socket.socket, control: socket.socket) -> None:
    if not CAN_FORK:
        start_program(__name__, "work", pipe)
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
