"""Training on this machine: in this process, or in several that share its cores."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from expand.data import PreparedData
from expand.errors import Interrupted, RunError
from expand.expansion.types import Outcome
from expand.training.candidate import train_candidate
from expand.training.job import Hooks, Job
from expand.training.runtime import Runtime

POLL_S = 0.1
"""Seconds between two looks at the workers' messages."""


@dataclass(frozen=True)
class Listener:
    """Who is told what happens to a job: that it begins, its ticks, and remarks; `stop` asks whether to end."""

    begin: Callable[[Job], None]
    tick: Callable[[str, Any], None]
    log: Callable[[str], None]
    stop: Callable[[], bool]

    def hooks(self, job_id: str) -> Hooks:
        """The hooks of a training in this process."""
        return Hooks(tick=lambda tick: self.tick(job_id, tick), log=self.log, stop=self.stop)


class LocalExecutor:
    """Trains jobs on `runtime`, `workers` at a time; each process uses `runtime.threads` threads, so that the number
    of workers does not change a result. On GPUs, workers take them in turn, and share each. A context manager: leaving
    it ends the workers."""

    def __init__(self, data: PreparedData, runtime: Runtime, workers: int, listener: Listener) -> None:
        self.data, self.runtime, self.workers, self.listener = data, runtime, workers, listener
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._stop.set()  # after an error here, trainings end at their next update rather than at their end
            self._pool.shutdown(cancel_futures=True)

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """The outcome of every job, as it comes.

        Raises `Interrupted` when asked to stop, once every training has written its checkpoint; `RunError` where a
        worker dies.
        """
        if self.workers == 1 or len(jobs) == 1:
            if self.workers > 1 and self._pool is None:
                self._pool = self._start()
                threading.Thread(target=_bring_up, args=(self._pool, self.workers), daemon=True).start()
            for job in jobs:
                self.listener.begin(job)
                yield train_candidate(job, self.data, self.runtime, self.listener.hooks(job.id))
            return
        try:
            yield from self._run_in_processes(jobs)
        except BrokenProcessPool as error:
            self._pool = None
            raise RunError("a training process died, most likely for lack of memory",
                           fix="fewer --workers or a smaller candidate.batch_size need less; `resume` goes on from the "
                               "last checkpoints") from error

    def _start(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        self._messages, self._stop = context.Queue(), context.Event()
        # a worker takes the number that it finds, and leaves the next
        return ProcessPoolExecutor(self.workers, context, _start_worker,
                                   (self.data, self.runtime, self.workers, context.Value("i", 0), self._messages,
                                    self._stop, os.getpid()))

    def _run_in_processes(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        self._pool = self._pool or self._start()
        longest_first = sorted(jobs, key=lambda job: -job.gflops)
        waiting: dict[Future, Job] = {self._pool.submit(_train, job): job for job in longest_first}
        interruption: Interrupted | None = None
        while waiting:
            done, _ = wait(waiting, POLL_S, FIRST_COMPLETED)
            self._pass_messages_on({job.id: job for job in jobs})
            if self.listener.stop():
                self._stop.set()
            for future in done:
                waiting.pop(future)
                try:
                    outcome = future.result()
                except Interrupted as error:
                    interruption = error
                else:
                    yield outcome
        if interruption:
            raise interruption

    def _pass_messages_on(self, jobs: dict[str, Job]) -> None:
        while True:
            try:
                kind, job_id, content = self._messages.get_nowait()
            except queue.Empty:
                return
            if kind == "begin":
                self.listener.begin(jobs[job_id])
            elif kind == "tick":
                self.listener.tick(job_id, content)
            else:
                self.listener.log(content)


_worker: tuple[PreparedData, Runtime, Any, Any] | None = None


def _start_worker(data: PreparedData, runtime: Runtime, workers: int, numbers: Any, messages: Any, stop: Any,
                  parent: int) -> None:
    global _worker
    with numbers.get_lock():
        number, numbers.value = numbers.value, numbers.value + 1
    _worker = (data, runtime.of_worker(number, workers), messages, stop)
    for number in (signal.SIGINT, signal.SIGTERM):  # they go to the whole group; the parent decides
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _bring_up(pool: ProcessPoolExecutor, workers: int) -> None:
    """Starts a pool's workers beside the one job of a step, so that they are there for the next; in a thread, since
    starting one waits until it has taken the clips' list, for which it imports torch first."""
    with suppress(RuntimeError):  # the search ended meanwhile
        for _ in range(workers):
            pool.submit(_be_there)


def _be_there() -> None:
    """What a worker is given to start with."""


def _leave_with(parent: int) -> None:
    """Ends this process soon after its parent was killed, before a resumed run can train the same candidate."""
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os._exit(1)


def _train(job: Job) -> Outcome:
    data, runtime, messages, stop = _worker
    if stop.is_set():
        raise Interrupted("stopped", where=job.id)
    messages.put(("begin", job.id, None))
    hooks = Hooks(tick=lambda tick: messages.put(("tick", job.id, tick)),
                  log=lambda text: messages.put(("log", job.id, text)), stop=stop.is_set)
    try:
        return train_candidate(job, data, runtime, hooks)
    finally:
        runtime.release_memory()
