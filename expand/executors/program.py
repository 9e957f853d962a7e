"""Programs of this package that a process starts beside itself, each at the far end of a socket."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from typing import IO

GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_PROGRAM = ("import json, sys; sys.path[:] = json.loads(sys.argv[1]); from expand import streams; streams.prepare(); "
            "streams.tolerate_lost_output(); from {} import {}; {}(int(sys.argv[2]))")


def start_program(module: str, function: str, end: socket.socket, output: IO | None = None) -> subprocess.Popen:
    """Calls `function` of `module`, with the number of the socket's file handle, in a Python of its own; what it prints
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
    """Leaves Ctrl-C and SIGTERM, which go to a whole group of processes, to the one with the run's lock, which tells
    the others."""
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)
