"""The supervision of training processes: they are given jobs, replaced when they die or hang, and told to stop.

`Executor` is the base of all executors and knows only each process's pipe and the messages on it
(`expand.executors.worker`); an executor adds what a process is and where it runs.
"""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from expand.config.schema import RunConfig
from expand.data import PreparedData
from expand.errors import CandidateFailed, ExpandError, Interrupted
from expand.training.candidate import fail_candidate
from expand.training.job import Job, Kind
from expand.training.runtime import Runtime

logger = logging.getLogger(__name__)

STOP_S = 20.0
"""Seconds that trainings have to write their checkpoints after a stop: clusters give 30 from SIGTERM to SIGKILL."""
POLL_S = 0.1
"""Seconds between two checks whether to stop."""
START_S = 120.0
"""Seconds that a process may take to start, in addition to the heartbeat limit: the first one waits for torch's import.
"""
AWAY_S = 30.0
"""Seconds between two checks of the heartbeats after which this process itself had stood still (Ctrl-Z, a disk that
hangs): how long the workers were silent meanwhile is not known."""


@dataclass(frozen=True)
class Listener:
    """The callbacks of an executor: `begin` (a job has begun, and its place as `host:pid`), `retry` (it will be tried
    again: the attempt and the reason), `tick` (its progress) and `stop` (whether to stop)."""

    begin: Callable[[Job, str], None]
    retry: Callable[[Job, int, str], None]
    tick: Callable[[str, Any], None]
    stop: Callable[[], bool]


@dataclass(frozen=True)
class Finished:
    """A job that has ended, with the fields of its event: `candidate_finished`, whose state may be `failed`, or
    `final_finished` for a final training."""

    job: Job
    fields: dict[str, Any]


@dataclass(eq=False)
class Worker:
    """A training process: its pipe, its place (`host:pid`, once it is ready), its job, and its last message's time."""

    number: int
    """From 0 to `run.workers` - 1; decides which GPU it uses."""
    pipe: Connection
    place: str | None = None
    job: Job | None = None
    heard: float = field(default_factory=time.monotonic)
    """Monotonic seconds of its last message."""

    def send(self, kind: str, content: Any) -> None:
        """Send a message. Raises `OSError` where the process has died."""
        self.pipe.send((kind, content))

    def give(self, job: Job) -> None:
        """Have it train a job. Raises `OSError` where it died while it waited for one."""
        self.send("job", job)
        self.job, self.heard = job, time.monotonic()

    def is_silent(self, limit_s: float, now: float) -> bool:
        """Whether it sent no message for longer than `limit_s` until the monotonic time `now`: it hangs. A process
        whose message was not read yet is alive; a limit of 0 is none."""
        return bool(limit_s) and not self.pipe.poll() and now - self.heard > limit_s

    def kill(self) -> None:
        """End it at once."""
        self.pipe.close()


W = TypeVar("W", bound=Worker)


class Executor(ABC, Generic[W]):
    """Trains jobs that are independent of one another, in at most `run.workers` processes at a time. A context manager:
    leaving it ends the processes."""

    def __init__(self, data: PreparedData, runtime: Runtime, run: RunConfig, listener: Listener) -> None:
        self.data, self.runtime, self.config, self.listener = data, runtime, run, listener
        self._workers: list[W] = []
        self._waiting: deque[Job] = deque()
        self._tries: Counter[str] = Counter()
        self._deadline: float | None = None
        self._checked = 0.0

    @abstractmethod
    def _start(self, number: int) -> W:
        """Start a process. Raises `RunError` where there is none to have."""

    @abstractmethod
    def _runtime_of(self, worker: W) -> Runtime:
        """Return the runtime that a worker trains with."""

    @abstractmethod
    def _find_reason(self, worker: W) -> tuple[str, bool]:
        """Return why a worker's pipe ended, and whether that was lack of memory. Raises `ExpandError`, having removed
        the worker, where the run cannot go on."""

    @abstractmethod
    def _react_to_failed_start(self, worker: W) -> None:
        """Prepare for another try after a worker died or hung before it was ready. Raises `ExpandError` where another
        try would fail too."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        deadline = self._stop()  # after an error here, trainings end at their next update rather than at their end
        if kind is not None and not issubclass(kind, Exception):  # a second Ctrl-C: at once
            deadline = -math.inf
        with suppress(ExpandError):  # a cluster that is lost now takes nothing with it
            while self._workers and time.monotonic() < deadline:
                for worker, message, _ in self._receive():
                    if message == "died":
                        self._remove(worker)
        for worker in list(self._workers):
            self._remove(worker)

    def run(self, jobs: Sequence[Job]) -> Iterator[Finished]:
        """Yield the result of every job as it arrives; the costliest jobs begin first.

        A job whose process dies, or sends no heartbeat for `run.heartbeat_s`, resumes from its checkpoint in another
        process, at most `run.retries` times, and counts as failed after that. Raises `Interrupted` when the listener
        asks to stop, once every training has written its checkpoint; any other `ExpandError` of a training where it
        concerns the run (a full disk, clips that are gone), once the other trainings have written theirs.
        """
        self._waiting.extend(sorted(jobs, key=lambda job: -job.gflops))
        self._tries.clear()
        self._reset_heartbeats()
        failure: ExpandError | None = None
        while self._waiting or self._busy:
            if self._deadline is None and (failure or self.listener.stop()):
                self._stop()
                failure = failure or Interrupted("stopped")
            self._hand_out_jobs()
            for worker, kind, content in self._receive():
                try:
                    if (finished := self._handle(worker, kind, content)) is not None:
                        yield finished
                except ExpandError as error:
                    failure = error if failure is None or isinstance(failure, Interrupted) else failure
            yield from self._check_heartbeats()
        if failure:
            raise failure

    @property
    def _busy(self) -> list[W]:
        return [worker for worker in self._workers if worker.job is not None]

    def _stop(self) -> float:
        """Ask every training to write its checkpoint and end, and return the time until which they may. Processes
        without a job end at once."""
        if self._deadline is None:
            self._deadline = time.monotonic() + STOP_S
            self._waiting.clear()
            for worker in list(self._workers):
                if worker.job is None:
                    self._remove(worker)
                else:
                    with suppress(OSError):  # it has died, which its pipe will tell
                        worker.send("stop", None)
        return self._deadline

    def _hand_out_jobs(self) -> None:
        """Give waiting jobs to idle processes, and start processes for the rest. A process gets its job once it is
        ready, so that a process that does not start costs no try of a job."""
        for worker in [worker for worker in self._workers if worker.place is not None and worker.job is None]:
            if not self._waiting:
                return
            try:
                worker.give(self._waiting[0])
            except OSError:  # it died while it waited
                self._remove(worker)
            else:
                self._waiting.popleft()
        starting = sum(worker.place is None for worker in self._workers)
        for number in sorted(set(range(self.config.workers)) - {worker.number for worker in self._workers}):
            if starting < len(self._waiting):
                self._workers.append(self._start(number))
                starting += 1

    def _receive(self) -> Iterator[tuple[W, str, Any]]:
        """Yield the workers' messages as they arrive: (worker, kind, content), with the kind `died` at a pipe's end."""
        of_pipe = {worker.pipe: worker for worker in self._workers}
        for worker in [of_pipe[pipe] for pipe in wait(list(of_pipe), POLL_S) if isinstance(pipe, Connection)]:
            if worker not in self._workers:  # removed because of another worker's message
                continue
            try:
                kind, content = worker.pipe.recv()
            except (EOFError, OSError):
                kind, content = "died", None
            worker.heard = time.monotonic()
            yield worker, kind, content

    def _remove(self, worker: W) -> None:
        worker.kill()
        self._workers.remove(worker)

    def _handle(self, worker: W, kind: str, content: Any) -> Finished | None:
        """Act on a message. Raises a job's `ExpandError`, and `Interrupted` where the job was interrupted."""
        job = worker.job
        if kind == "hello":
            worker.place = content
            with suppress(OSError):  # it has died, which its pipe will tell
                worker.send("shared", (self.data, self._runtime_of(worker)))
        elif kind == "log":
            logger.log(*content)
        elif kind == "died":
            reason, lacked_memory = content or self._find_reason(worker)
            if worker.place is None:
                self._replace_starting(worker)
            else:
                self._remove(worker)
                return self._retry(job, reason, lacked_memory) if job is not None else None
        elif kind == "error":
            worker.job = None
            raise content
        elif job is None:  # a late message
            return None
        elif kind == "begin":
            self.listener.begin(job, content)
        elif kind == "tick":
            self.listener.tick(job.id, content)
        elif kind == "fault":  # the process ends itself; another resumes from the checkpoint, without CUDA graphs
            self._remove(worker)
            return self._retry(replace(job, may_record=False), content, lacked_memory=False)
        elif kind == "interrupted":
            worker.job = None
            raise Interrupted("stopped")
        elif kind == "done":
            worker.job = None
            return Finished(job, content)
        return None

    def _check_heartbeats(self) -> Iterator[Finished]:
        """Replace workers that are silent for too long, and end those that do not stop in time."""
        now, limit_s = time.monotonic(), self.config.heartbeat_s
        if now - self._checked > AWAY_S:
            self._reset_heartbeats()
        self._checked = now
        for worker in list(self._workers):
            job = worker.job
            if job is not None and self._deadline is not None and now > self._deadline:
                self._remove(worker)
                logger.warning(f"{job.id} did not stop in time; it will resume from its last checkpoint")
            elif worker.place is None and worker.is_silent(limit_s and limit_s + START_S, now):
                self._replace_starting(worker)
            elif job is not None and worker.is_silent(limit_s, now):
                self._remove(worker)
                if (finished := self._retry(job, f"it sent no heartbeat for {limit_s:g} s", lacked_memory=False)):
                    yield finished

    def _reset_heartbeats(self) -> None:
        """Count the silence of all workers from now on."""
        self._checked = time.monotonic()
        for worker in self._workers:
            worker.heard = self._checked

    def _replace_starting(self, worker: W) -> None:
        self._remove(worker)
        if self._deadline is None:
            self._react_to_failed_start(worker)
            logger.warning("a training process ended before it began; another is started")

    def _retry(self, job: Job, reason: str, lacked_memory: bool) -> Finished | None:
        """Put a job whose worker was lost at the head of the queue, or return it as failed after too many tries."""
        if self._deadline is not None:
            return None
        if lacked_memory:
            job = replace(job, parts=2 * job.parts)
        self._tries[job.id] += 1
        if self._tries[job.id] > self.config.retries:
            tries = self._tries[job.id]
            what = f"{reason}, the last of {tries} times" if tries > 1 else reason
            if job.kind is Kind.FINAL:
                raise CandidateFailed(what)
            return Finished(job, fail_candidate(job, self.data, what).as_dict())
        self.listener.retry(job, self._tries[job.id], reason)
        self._waiting.appendleft(job)
        return None
