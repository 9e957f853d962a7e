"""Jobs of a second or some, and what listens to them: for the tests that every executor has to pass."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from expand.executors.supervisor import Finished, Listener
from expand.rundir.paths import CandidatePaths
from expand.training.job import Job
from tests.training.small import CONFIG, RECIPE, network


def job(folder: Path, name: str, *, frames: int = 1, epochs: int = 2, gflops: float = 1.0, **recipe) -> Job:
    """A training of `epochs` passes over 32 clips of 32 px, a checkpoint at every update."""
    return Job(name, network(name, frames=frames), gflops, replace(RECIPE, epochs=epochs, **recipe), CONFIG,
               seed=len(name), paths=CandidatePaths(folder / name), checkpoint_every_s=0.0)


@dataclass
class Heard:
    """What a listener was told: ids as they began, the processes that they began on, retries."""

    began: list[str] = field(default_factory=list)
    workers: list[str] = field(default_factory=list)
    retried: list[tuple[str, int, str]] = field(default_factory=list)
    on_begin: Callable[[Job, int], None] = lambda job, pid: None
    on_retry: Callable[[Job], None] = lambda job: None
    is_to_stop: Callable[[], bool] = lambda: False

    def listener(self) -> Listener:
        """For an executor."""
        return Listener(self._begin, self._retry, lambda job_id, tick: None, lambda: self.is_to_stop())

    def _retry(self, job: Job, attempt: int, reason: str) -> None:
        self.retried.append((job.id, attempt, reason))
        self.on_retry(job)

    def _begin(self, job: Job, worker: str) -> None:
        self.began.append(job.id)
        self.workers.append(worker)
        self.on_begin(job, int(worker.rpartition(":")[2]))


def figures(ended: Iterator[Finished]) -> dict[str, dict]:
    """What was measured, by id, without what depends on time."""
    return {finished.job.id: {key: finished.fields.get(key) for key in ("state", "accuracy", "loss", "top5", "stderr")}
            for finished in ended}


def signal_after_checkpoint(number: int, job: Job, pid: int, seconds: float = 60.0) -> None:
    """Sends a signal to the process that trains a job once a checkpoint of it is on disk. Meanwhile the process is let
    go for a moment at a time, so that the job cannot end before."""
    end = time.monotonic() + seconds
    os.kill(pid, signal.SIGSTOP)
    while not job.paths.checkpoint.exists():
        assert time.monotonic() < end, "no checkpoint came"
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.01)
        os.kill(pid, signal.SIGSTOP)
    os.kill(pid, number)


def hold_until_two_have_begun() -> Callable[[Job, int], None]:
    """Gives an `on_begin` that stops the first process until a second one trains, however long that takes to start."""
    held: list[int] = []

    def hold(job: Job, pid: int) -> None:
        held.append(pid)
        if len(held) == 1:
            os.kill(pid, signal.SIGSTOP)
        elif len(held) == 2:
            os.kill(held[0], signal.SIGCONT)

    return hold


def kill(job: Job, pid: int) -> None:
    """kill -9 in the midst of a training."""
    signal_after_checkpoint(signal.SIGKILL, job, pid)


def freeze(job: Job, pid: int) -> None:
    """What a hung process looks like from outside."""
    signal_after_checkpoint(signal.SIGSTOP, job, pid)
