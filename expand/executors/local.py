"""Training on this machine: in processes that share its cores or take its GPUs in turn."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from expand.config.schema import RunConfig
from expand.data import PreparedData
from expand.errors import RunError
from expand.executors.base import Finished, Listener
from expand.executors.fork_server import Nursery
from expand.executors.supervisor import Supervisor, Worker
from expand.machine import oom_kills
from expand.training.job import Job
from expand.training.runtime import Runtime

NURSERIES = 3
"""Nurseries of which no training process came, one after another, until that is an error of the run."""


@dataclass(eq=False)
class _Process(Worker):
    """A process of this machine. `shared` is what it is told once it is there: until then nobody would read on the
    pipe, and the clips of a large set do not fit into it."""

    shared: Any = None
    nursery: int = 0
    """The number of the nursery that was asked for it."""
    kills_before: int = 0
    """How often the system had ended a process for lack of memory when the job began."""

    def hello(self, place: str) -> None:
        super().hello(place)
        with suppress(OSError):  # it has died: the pipe's end says so
            self.pipe.send(("shared", self.shared))
            if self.job is not None:
                super().give(self.job)

    def give(self, job: Job) -> None:
        self.kills_before = oom_kills()
        if self.place is None:
            self.job = job  # until it says hello
        else:
            super().give(job)

    def kill(self) -> None:
        """Ends it even where it is stopped (SIGSTOP)."""
        super().kill()  # where its number is not known yet, this ends it
        if self.place is not None:
            with suppress(OSError):
                os.kill(int(self.place.rpartition(":")[2]), signal.SIGKILL)


class LocalExecutor(Supervisor):
    """Trains jobs on `runtime` in `run.workers` processes, each with `runtime.threads` threads, so that the number of
    processes does not change a result. On GPUs, they take them in turn, and share each.

    Processes are forked from `nursery`, and end with this one. An `Executor`.
    """

    def __init__(self, data: PreparedData, runtime: Runtime, run: RunConfig, listener: Listener,
                 nursery: Nursery) -> None:
        super().__init__(data, runtime, run, listener)
        self.nursery = nursery
        self._fruitless = 0
        """Nurseries of which no process came since one came last."""

    def _start(self, number: int) -> Worker:
        pipe = self.nursery.worker()
        return _Process(number, pipe, shared=(self.data, self.runtime.of_worker(number, self.config.workers)),
                        nursery=self.nursery.number)

    def _heard(self, worker: Worker, kind: str, content: Any) -> Finished | None:
        if kind == "hello":
            self._fruitless = 0
        return super()._heard(worker, kind, content)

    def _never_began(self, worker: Worker) -> None:
        if worker.nursery != self.nursery.number:  # several were asked of the same one
            return
        self._fruitless += 1
        if self._fruitless == NURSERIES:
            raise RunError("training processes end, or hang, before they begin", where=sys.executable,
                           fix="what they printed says why; `x3d-expand doctor` looks at the installation")
        self.nursery.renew()

    def _died(self, worker: Worker) -> tuple[str, bool]:
        if oom_kills() > worker.kills_before:
            return "its process died: the system ended it for lack of memory", True
        return "its process died", False
