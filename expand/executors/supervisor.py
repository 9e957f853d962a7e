"""Processes that train, looked after: they are given work, replaced when they die or hang, and told to stop.

What a process is, and where, is an executor's own: of it only a pipe is known, and the messages on it
(`expand.executors.worker`).
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Self

from expand.config.schema import RunConfig
from expand.data import PreparedData
from expand.errors import ExpandError, Interrupted
from expand.executors.base import STOP_S, Finished, Listener, given_up
from expand.training.job import Job
from expand.training.runtime import Runtime

POLL_S = 0.1
"""Seconds between two looks at whether to stop."""
START_S = 120.0
"""What a process may take, beyond its heartbeat, to begin: the first one waits for torch's import."""
AWAY_S = 30.0
"""Seconds between two looks at the workers after which this process itself had stood still (Ctrl-Z, a disk that hangs):
how long they were silent meanwhile is not known."""


@dataclass(eq=False)
class Worker:
    """A training process: its pipe, what it is at work on, where it is (`host:pid`, once it said so), and when it was
    heard last (monotonic seconds)."""

    number: int
    pipe: Connection
    place: str | None = None
    job: Job | None = None
    heard: float = field(default_factory=time.monotonic)

    def hello(self, place: str) -> None:
        """It is there."""
        self.place = place

    def give(self, job: Job) -> None:
        """Has it train a job. Raises `OSError` where it died while it waited for one."""
        self.pipe.send(("job", job))
        self.job, self.heard = job, time.monotonic()

    def tell_to_stop(self) -> None:
        """Asks it to write its checkpoint and end."""
        with suppress(OSError):
            self.pipe.send(("stop", None))

    def kill(self) -> None:
        """Ends it at once."""
        self.pipe.close()


class Supervisor(ABC):
    """What executors have in common: trains jobs in at most `run.workers` processes at a time. An `Executor`."""

    def __init__(self, data: PreparedData, runtime: Runtime, run: RunConfig, listener: Listener) -> None:
        self.data, self.runtime, self.config, self.listener = data, runtime, run, listener
        self._workers: list[Worker] = []
        self._waiting: deque[Job] = deque()
        self._tries: Counter[str] = Counter()
        self._deadline: float | None = None
        self._looked = 0.0

    @abstractmethod
    def _start(self, number: int) -> Worker:
        """A new process, the `number`-th (from 0) of `run.workers`. Raises `RunError` where there is none to have."""

    @abstractmethod
    def _died(self, worker: Worker) -> tuple[str, bool]:
        """Why a busy worker's pipe ended: a reason, and whether it was for lack of memory. Raises `ExpandError` where
        that is no fault of its job."""

    @abstractmethod
    def _never_began(self, worker: Worker) -> None:
        """A worker died, or is silent, that never said where it is: its job is another's. Raises `ExpandError` where
        that would be in vain."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._stop()  # after an error here, trainings end at their next update rather than at their end
        if kind is not None and not issubclass(kind, Exception):  # a second Ctrl-C: at once
            self._deadline = -math.inf
        while self._workers and time.monotonic() < self._deadline:
            for worker, _, _ in self._messages():
                worker.job = None
        for worker in self._workers:
            worker.kill()

    def run(self, jobs: Sequence[Job]) -> Iterator[Finished]:
        """See `Executor`."""
        self._waiting.extend(sorted(jobs, key=lambda job: -job.gflops))
        self._tries.clear()
        self._hear_anew()
        failure: ExpandError | None = None
        while self._waiting or self._busy:
            if self._deadline is None and (failure or self.listener.stop()):
                self._stop()
                failure = failure or Interrupted("stopped")
            self._hand_out()
            for worker, kind, content in self._messages():
                try:
                    if (finished := self._heard(worker, kind, content)) is not None:
                        yield finished
                except ExpandError as error:
                    failure = error if failure is None or isinstance(failure, Interrupted) else failure
            yield from self._look_after()
        if failure:
            raise failure

    @property
    def _busy(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.job is not None]

    def _stop(self) -> None:
        """Asks every training to write its checkpoint and end."""
        if self._deadline is None:
            self._deadline = time.monotonic() + STOP_S
            self._waiting.clear()
            for worker in self._workers:
                worker.tell_to_stop()

    def _hand_out(self) -> None:
        while self._waiting and len(self._busy) < self.config.workers:
            worker = next((worker for worker in self._workers if worker.job is None), None) or self._new()
            try:
                worker.give(self._waiting[0])
            except OSError:  # it died while it waited: the job is another's
                self._bury(worker)
            else:
                self._waiting.popleft()

    def _new(self) -> Worker:
        taken = {worker.number for worker in self._workers}
        worker = self._start(next(number for number in range(self.config.workers) if number not in taken))
        self._workers.append(worker)
        return worker

    def _messages(self) -> Iterator[tuple[Worker, str, Any]]:
        """What workers say, as it comes; of one that died, `died` last."""
        of_pipe = {worker.pipe: worker for worker in self._workers}
        for pipe in wait(list(of_pipe), POLL_S):
            worker = of_pipe[pipe]
            if worker not in self._workers:  # buried since, for what another said
                continue
            try:
                kind, content = pipe.recv()
            except (EOFError, OSError):
                kind, content = "died", None
                self._bury(worker)
            worker.heard = time.monotonic()
            yield worker, kind, content

    def _bury(self, worker: Worker) -> None:
        worker.kill()
        self._workers.remove(worker)

    def _heard(self, worker: Worker, kind: str, content: Any) -> Finished | None:
        """Acts on a message. Raises a job's `ExpandError`, and `Interrupted` where it was."""
        job = worker.job
        if kind == "hello":
            worker.hello(content)
        elif kind == "begin":
            worker.place = content
            self.listener.begin(job, content)
        elif kind == "tick":
            self.listener.tick(job.id, content)
        elif kind == "log":
            self.listener.log(content)
        elif kind == "died" and job is not None and self._deadline is None:
            return self._lost(worker, *self._died(worker)) if worker.place else self._begin_another(worker)
        elif kind == "fault":  # the process ends itself; another goes on from the checkpoint, without recordings
            self._bury(worker)
            worker.job = replace(job, may_record=False)
            return self._lost(worker, content, False)
        elif kind in ("done", "error", "interrupted"):
            worker.job = None
            if kind == "done":
                return Finished(job, content)
            raise content if kind == "error" else Interrupted("stopped")
        return None

    def _look_after(self) -> Iterator[Finished]:
        """Ends workers that are silent for too long, or that do not stop in time."""
        now, silence_s = time.monotonic(), self.config.heartbeat_s
        if now - self._looked > AWAY_S:
            self._hear_anew()
        self._looked = now
        for worker in self._busy:
            if self._deadline is not None and now > self._deadline:
                self._bury(worker)
                self.listener.log(f"{worker.job.id} did not stop in time; it will go on from its last checkpoint")
                continue
            silent_s = 0 if worker.pipe.poll() else now - worker.heard
            if silence_s and worker.place is None and silent_s > silence_s + START_S:
                self._bury(worker)
                self._begin_another(worker)
            elif silence_s and worker.place is not None and silent_s > silence_s:
                self._bury(worker)
                finished = self._lost(worker, f"it gave no sign of life for {silence_s:g} s", False)
                if finished is not None:
                    yield finished

    def _hear_anew(self) -> None:
        """The silence of all counts from now on."""
        self._looked = time.monotonic()
        for worker in self._workers:
            worker.heard = self._looked

    def _begin_another(self, worker: Worker) -> None:
        """Has another worker take the job of one that never began; that is no try of it."""
        if self._deadline is None:
            self._never_began(worker)
            self.listener.log("a training process ended before it began; another is started")
            self._waiting.appendleft(worker.job)

    def _lost(self, worker: Worker, reason: str, lacked_memory: bool) -> Finished | None:
        """What becomes of the job of a worker that is gone: it is the next one's, or ends as failed."""
        job = worker.job
        if self._deadline is not None:
            return None
        if lacked_memory:
            job = replace(job, parts=2 * job.parts)
        self._tries[job.id] += 1
        if self._tries[job.id] > self.config.retries:
            return given_up(job, self.data, reason, self._tries[job.id])
        self.listener.retry(job, self._tries[job.id], reason)
        self._waiting.appendleft(job)
        return None
