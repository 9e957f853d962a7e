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
from expand.executors.base import Listener
from expand.executors.nursery import Nursery
from expand.executors.supervisor import Supervisor, Worker
from expand.machine import oom_kills
from expand.training.job import Job
from expand.training.runtime import Runtime


@dataclass(eq=False)
class _Process(Worker):
    """A process of this machine."""

    kills_before: int = 0
    """How often the system had ended a process for lack of memory when the job began."""

    def give(self, job: Job) -> None:
        self.kills_before = oom_kills()
        super().give(job)

    def kill(self) -> None:
        """Ends it even where it is stopped (SIGSTOP)."""
        super().kill()  # where its number is not known yet, this ends it
        if self.place is not None:
            with suppress(ProcessLookupError):
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

    def _start(self, number: int) -> Worker:
        worker = _Process(number, self.nursery.worker())
        with suppress(OSError):
            worker.pipe.send((self.data, self.runtime.of_worker(number, self.config.workers)))
        return worker

    def _died(self, worker: Worker) -> tuple[str, bool]:
        if worker.place is None:
            raise RunError("training processes end as soon as they begin", where=sys.executable,
                           fix="what they printed says why; `x3d-expand doctor` looks at the installation")
        if oom_kills() > worker.kills_before:
            return "its process died: the system ended it for lack of memory", True
        return "its process died", False
