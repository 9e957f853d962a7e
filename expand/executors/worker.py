"""What a training process of this machine does: it takes jobs from its pipe and answers on it, until the pipe ends.

Messages to it, each a pair: `shared` with clips and runtime, which all its jobs share, once; `job` with a `Job`;
`stop`. Answers: `hello` with its place (`host:pid`), then for each job `begin` with the same, `alive` at updates,
`tick`, `log`, and one that ends it: `done` with the fields of its event, `interrupted`, `error` with an
`ExpandError`, or `fault` with the reason for which the process is of no more use and ends itself: its GPU failed.

Or one message alone, `call` with a function (`expand.executors.forked_call`), answered by `done` with what it
returns or by `error`.
"""

from __future__ import annotations

import os
import queue
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from expand.device_faults import first_line
from expand.errors import DeviceFault, ExpandError, Interrupted, RunError
from expand.executors.base import carry_out
from expand.machine import here
from expand.training.job import Hooks, Job

ALIVE_EVERY_S = 1.0
"""Between two signs of life, at least."""


def serve(pipe: Connection) -> None:
    """Trains one job after another. The process ends with its pipe, whatever it does then, before a resumed run can
    train the same candidate."""
    given: queue.SimpleQueue[Any] = queue.SimpleQueue()
    stop = threading.Event()
    threading.Thread(target=_listen, args=(pipe, given, stop), daemon=True).start()
    pipe.send(("hello", here()))
    if (shared := given.get()) is None:
        return
    if callable(shared):
        pipe.send(_result_of(shared))
        return
    data, runtime = shared
    while (job := given.get()) is not None:
        pipe.send(("begin", here()))
        answered = _answer(lambda hooks, job=job: carry_out(job, data, runtime, hooks), job, pipe, stop)
        pipe.send(answered)
        if answered[0] == "fault":
            return


def _listen(pipe: Connection, given: queue.SimpleQueue, stop: threading.Event) -> None:
    """Puts what comes into `given`, and None for a stop."""
    while True:
        try:
            kind, content = pipe.recv()
        except (EOFError, OSError):
            os._exit(1)
        if kind == "stop":
            stop.set()
        given.put(content)


def _result_of(work: Callable[[], Any]) -> tuple[str, Any]:
    try:
        return "done", work()
    except ExpandError as error:
        return "error", error
    except Exception as error:  # noqa: BLE001 - whatever it was, the caller has to be told
        return "error", RunError(f"{type(error).__name__}: {first_line(error)}")


def _answer(work: Callable[[Hooks], dict[str, Any]], job: Job, pipe: Connection,
            stop: threading.Event) -> tuple[str, Any]:
    hooks = Hooks(tick=lambda tick: pipe.send(("tick", tick)), log=lambda text: pipe.send(("log", text)),
                  stop=SignOfLife(lambda: pipe.send(("alive", None)), stop.is_set))
    return answer(lambda: work(hooks), job, hooks.log)


def answer(work: Callable[[], dict[str, Any]], job: Job, log: Callable[[str], None]) -> tuple[str, Any]:
    """How `work` ended, as a message. A mistake of this program becomes a `RunError` that says so, its traceback a
    remark."""
    try:
        return "done", work()
    except Interrupted:
        return "interrupted", None
    except DeviceFault as error:
        return "fault", error.what
    except ExpandError as error:
        return "error", error
    except Exception as error:  # noqa: BLE001 - a person on another machine has no other way to see it
        log(traceback.format_exc())
        what = first_line(error)
        return "error", RunError(f"an unexpected error in the training of {job.id}: {type(error).__name__}: {what}",
                                 where=str(job.paths.dir), fix="log.txt of the run has the details; please report them")


class SignOfLife:
    """A training's question whether to stop, which it asks at every update and every batch that it measures, passed on
    as a sign of life now and then."""

    def __init__(self, send: Callable[[], None], is_to_stop: Callable[[], bool]) -> None:
        self._send, self._is_to_stop, self._sent = send, is_to_stop, time.monotonic()

    def __call__(self) -> bool:
        now = time.monotonic()
        if now - self._sent >= ALIVE_EVERY_S:
            self._sent = now
            self._send()
        return self._is_to_stop()
