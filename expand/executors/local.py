"""Training on this machine: in processes that share its cores or take its GPUs in turn."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass

from expand.config.schema import RunConfig
from expand.data import PreparedData
from expand.errors import RunError
from expand.executors.fork_server import ForkServer
from expand.executors.supervisor import Executor, Listener, Worker
from expand.machine import oom_kills
from expand.training.job import Job
from expand.training.runtime import Runtime

FORK_SERVERS = 3
"""Fork servers in a row that may give no training process before that is an error of the run."""


@dataclass(eq=False)
class _Process(Worker):
    """A process of this machine."""

    fork_server: int = 0
    """The number of the fork server that was asked for it."""
    kills_before: int = 0
    """How often the system had ended a process for lack of memory when the job began."""

    def give(self, job: Job) -> None:
        self.kills_before = oom_kills()
        super().give(job)

    def kill(self) -> None:
        """End it at once, even where it is stopped (SIGSTOP)."""
        super().kill()  # where its number is not known yet, this ends it
        if self.place is not None:
            with suppress(OSError):
                os.kill(int(self.place.rpartition(":")[2]), signal.SIGKILL)


class LocalExecutor(Executor[_Process]):
    """Trains jobs on `runtime` in `run.workers` processes, which are forked from `fork_server`.

    Each process uses `runtime.threads` threads, so that the number of processes does not change a result. On GPUs, the
    processes take them in turn, and share each.
    """

    def __init__(self, data: PreparedData, runtime: Runtime, run: RunConfig, listener: Listener,
                 fork_server: ForkServer) -> None:
        super().__init__(data, runtime, run, listener)
        self.fork_server = fork_server
        self._failed_servers = 0
        """Fork servers without a process since the last process that was ready."""

    def _start(self, number: int) -> _Process:
        return _Process(number, self.fork_server.fork_worker(), fork_server=self.fork_server.number)

    def _runtime_of(self, worker: _Process) -> Runtime:
        self._failed_servers = 0
        return self.runtime.of_worker(worker.number, self.config.workers)

    def _react_to_failed_start(self, worker: _Process) -> None:
        if worker.fork_server != self.fork_server.number:  # another process of the same server has failed before
            return
        self._failed_servers += 1
        if self._failed_servers == FORK_SERVERS:
            raise RunError("training processes end, or hang, before they begin", where=sys.executable,
                           fix="what they printed says why; `x3d-expand doctor` looks at the installation")
        self.fork_server.restart()

    def _find_reason(self, worker: _Process) -> tuple[str, bool]:
        if oom_kills() > worker.kills_before:
            return "its process died: the system ended it for lack of memory", True
        return "its process died", False
