"""A training process: it takes jobs from its pipe and answers on it, until the pipe ends.

Messages to it are pairs: `shared` with the clips and the runtime of all its jobs, once; `job` with a `Job`; and `stop`.
Its answers: `hello` with its place (`host:pid`), then for each job `begin` with the same, `heartbeat` while it trains,
`tick`, `log` with a level and a text, and one that ends the job: `done` with the fields of its event, `interrupted`,
`error` with an `ExpandError`, or `fault` with a reason, after which the process ends itself because its GPU failed.

Or one message alone, `call` with a function (`expand.executors.fork_server.call_in_process`), answered by `done` with
what it returns or by `error`.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from expand import logs
from expand.data import PreparedData
from expand.errors import DeviceFault, ExpandError, Interrupted, RunError, first_line
from expand.machine import process_address
from expand.training.candidate import train_candidate, train_final
from expand.training.job import Hooks, Job, Kind
from expand.training.runtime import Runtime

logger = logging.getLogger(__name__)

HEARTBEAT_EVERY_S = 1.0
"""Seconds between two heartbeats, at least."""


def serve(pipe: Connection) -> None:
    """Train one job after another. The process ends with its pipe, in the midst of whatever it does, before a resumed
    run can train the same candidate."""
    contents: queue.SimpleQueue[Any] = queue.SimpleQueue()
    stop = threading.Event()

    def listen() -> None:
        while True:
            try:
                kind, content = pipe.recv()
            except (EOFError, OSError):
                os._exit(1)
            if kind == "stop":
                stop.set()
            contents.put(content)  # None for `stop`

    threading.Thread(target=listen, daemon=True).start()
    pipe.send(("hello", process_address()))
    if (shared := contents.get()) is None:
        return
    if callable(shared):
        pipe.send(_call(shared))
        return
    data, runtime = shared
    while (job := contents.get()) is not None:
        pipe.send(("begin", process_address()))
        hooks = Hooks(tick=lambda tick: pipe.send(("tick", tick)),
                      stop=Heartbeat(lambda: pipe.send(("heartbeat", None)), stop.is_set))
        with logs.received_by(lambda record: pipe.send(("log", (record.levelno, record.getMessage()))), alone=True):
            answer = _train(job, data, runtime, hooks)
        pipe.send(answer)
        if answer[0] == "fault":
            return


def _call(work: Callable[[], Any]) -> tuple[str, Any]:
    try:
        return "done", work()
    except ExpandError as error:
        return "error", error
    except Exception as error:  # noqa: BLE001 - whatever it was, the caller has to be told
        return "error", RunError(f"{type(error).__name__}: {first_line(error)}")


def run_job(job: Job, data: PreparedData, runtime: Runtime, hooks: Hooks) -> dict[str, Any]:
    """Train one job in this process, a candidate or the winner's final training, and return the fields of its event.

    Raises `Interrupted` when asked to stop, `CandidateFailed` where a final training cannot give a result, and other
    `ExpandError`s of the run.
    """
    try:
        if job.kind is Kind.FINAL:
            return train_final(job, data, runtime, hooks)
        return train_candidate(job, data, runtime, hooks).as_dict()
    finally:
        runtime.release_memory()


def _train(job: Job, data: PreparedData, runtime: Runtime, hooks: Hooks) -> tuple[str, Any]:
    """Train a job and return the message that ends it. A bug becomes a `RunError` that says so, and its traceback goes
    to the log."""
    try:
        return "done", run_job(job, data, runtime, hooks)
    except Interrupted:
        return "interrupted", None
    except DeviceFault as error:
        return "fault", error.what
    except ExpandError as error:
        return "error", error
    except Exception as error:  # noqa: BLE001 - a person on another machine has no other way to see it
        logger.error(traceback.format_exc())
        what = first_line(error)
        return "error", RunError(f"an unexpected error in the training of {job.id}: {type(error).__name__}: {what}",
                                 where=str(job.paths.dir), fix="log.txt of the run has the details; please report them")


class Heartbeat:
    """The training's question whether to stop, asked at every update and measured batch; it sends the heartbeats."""

    def __init__(self, send: Callable[[], None], is_to_stop: Callable[[], bool]) -> None:
        self._send, self._is_to_stop, self._sent = send, is_to_stop, time.monotonic()

    def __call__(self) -> bool:
        now = time.monotonic()
        if now - self._sent >= HEARTBEAT_EVERY_S:
            self._sent = now
            self._send()
        return self._is_to_stop()
