"""The fork server: a process from which training processes are forked, so that torch is imported once.

It is a program of its own rather than a fork of the driver, whose threads would not survive a fork. It does not import
the caller's script, which therefore needs no `if __name__ == "__main__"`. It imports torch and computes nothing, so
that its forks are free to use threads and a GPU.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing.connection import Connection
from typing import IO, Self, TypeVar

from expand.errors import RunError

T = TypeVar("T")
CAN_FORK = sys.platform == "linux"
"""Elsewhere the system's own libraries start threads at import; there each process is started anew."""
CALL_LIMIT_S = 300.0
"""Seconds that a call in another process may take, torch's import included."""
GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_PROGRAM = ("import json, sys; sys.path[:] = json.loads(sys.argv[1]); from expand import streams; streams.prepare(); "
            "streams.tolerate_lost_output(); from {} import {}; {}(int(sys.argv[2]))")


class ForkServer:
    """Starts training processes (`expand.executors.worker`).

    It begins to start when it is made. A context manager: leaving it ends the fork server, but not the processes that
    it forked. `number` counts the starts: a fork server that was killed, or that forks nothing, is replaced.
    """

    def __init__(self) -> None:
        self.number = 0
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    def fork_worker(self) -> Connection:
        """Return the pipe of a new training process.

        The process ends when the pipe does. Where the process could not be forked, the pipe ends without a message.
        Raises `RunError` where the system has no process or pipe to give.
        """
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    socket.send_fds(self._control, [b"1"], [theirs.fileno()])
                except OSError:  # it was killed
                    self.restart()
                    socket.send_fds(self._control, [b"1"], [theirs.fileno()])
        except OSError as error:
            raise _no_process(error) from error
        return Connection(ours.detach())

    def restart(self) -> None:
        """Start another fork server in place of this one. Processes that it was asked for and has not forked are lost.
        """
        self._end()
        self._start()

    def _start(self) -> None:
        try:
            self._control, theirs = socket.socketpair()
            with theirs:
                self._process: subprocess.Popen = start_program(__name__, "main", theirs)
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


def call_in_process(work: Callable[[], T], fork_server: ForkServer | None = None, limit_s: float = CALL_LIMIT_S) -> T:
    """Return `work()`, carried out in a process that is forked for this call and ends with it.

    A search's driver uses it for whatever needs a GPU: the GPU's memory, and maybe the whole GPU, belongs to the
    trainings. `work` is a function of a module, or a `functools.partial` of one. Without `fork_server`, one is started
    for this call.

    Raises the `ExpandError` of `work`; `RunError` where it fails in another way, dies or takes longer than `limit_s`.
    """
    parent_context = ForkServer() if fork_server is None else nullcontext(fork_server)
    with parent_context as parent, parent.fork_worker() as pipe:
        try:
            for expected in ("hello", "done"):
                if not pipe.poll(limit_s):
                    raise RunError(f"a process did not answer within {limit_s:g} s")
                kind, content = pipe.recv()
                if kind == "error":
                    raise content
                if expected == "hello":
                    pipe.send(("call", work))
        except (EOFError, OSError) as error:
            raise RunError(f"a process died in its work ({type(error).__name__})") from error
        return content


def main(control_fd: int) -> None:
    """Serve as the fork server: fork a training process for every pipe that arrives, until the driver ends."""
    ignore_group_signals()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that its children leave no zombies
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
                    if not CAN_FORK:
                        start_program(__name__, "work", pipe)
                    elif os.fork() == 0:
                        control.close()
                        work(pipe.detach())
                except OSError as error:  # the end of the pipe tells the driver
                    print(f"no training process could be started: {error.strerror}", file=sys.stderr, flush=True)


def work(pipe_fd: int) -> None:
    """Serve as a training process on a pipe, then end this process."""
    from expand.executors.worker import serve

    ignore_group_signals()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        serve(Connection(pipe_fd))
    finally:
        os._exit(0)  # a fork must not run its parent's clean-up


def start_program(module: str, function: str, end: socket.socket, output: IO | None = None) -> subprocess.Popen:
    """Call `function` of `module`, with the number of the socket's file handle, in a Python of its own; what it prints
    goes to `output`, by default where this process's goes. Raises `OSError` where the system has no process.

    It is to call `ignore_group_signals` first: SIGINT and SIGTERM wait until then.
    """
    command = [sys.executable, "-c", _PROGRAM.format(module, function, function), json.dumps(sys.path),
               str(end.fileno())]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        return subprocess.Popen(command, pass_fds=[end.fileno()], stdin=subprocess.DEVNULL, stdout=output,
                                stderr=output)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_group_signals() -> None:
    """Leave Ctrl-C and SIGTERM, which go to a whole group of processes, to the one with the run's lock, which tells
    the others."""
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)
