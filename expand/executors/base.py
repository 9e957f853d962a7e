"""The interface of executors: an executor takes jobs, trains them somewhere, and yields each result as it arrives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from expand.data import PreparedData
from expand.errors import CandidateFailed
from expand.training.candidate import fail_candidate, train_candidate, train_final
from expand.training.job import Hooks, Job, Kind
from expand.training.runtime import Runtime

STOP_S = 20.0
"""Seconds that trainings have to write their checkpoints after a stop: clusters give 30 from SIGTERM to SIGKILL."""


@dataclass(frozen=True)
class Listener:
    """The callbacks of an executor: `begin` (a job has begun, and its place as `host:pid`), `retry` (it will be tried
    again: the attempt and the reason), `tick` (its progress), `log` (a remark) and `stop` (whether to stop)."""

    begin: Callable[[Job, str], None]
    retry: Callable[[Job, int, str], None]
    tick: Callable[[str, Any], None]
    log: Callable[[str], None]
    stop: Callable[[], bool]


@dataclass(frozen=True)
class Finished:
    """A job that has ended, with the fields of its event: `candidate_finished`, whose state may be `failed`, or
    `final_finished` for a final training."""

    job: Job
    fields: dict[str, Any]


class Executor(Protocol):
    """Trains jobs that are independent of one another. A context manager: leaving it ends its processes."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None: ...

    def run(self, jobs: Sequence[Job]) -> Iterator[Finished]:
        """Yield the result of every job as it arrives; the costliest jobs begin first.

        A job whose process dies, or sends no heartbeat for `run.heartbeat_s`, resumes from its checkpoint in another
        process, at most `run.retries` times, and counts as failed after that. Raises `Interrupted` when the listener
        asks to stop, once every training has written its checkpoint; any other `ExpandError` of a training where it
        concerns the run (a full disk, clips that are gone), once the other trainings have written theirs.
        """
        ...


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


def give_up(job: Job, data: PreparedData, reason: str, tries: int) -> Finished:
    """Return a candidate whose process was lost `tries` times, the last time for `reason`, as failed.

    Raises `CandidateFailed` for a final training.
    """
    what = f"{reason}, the last of {tries} times" if tries > 1 else reason
    if job.kind is Kind.FINAL:
        raise CandidateFailed(what)
    return Finished(job, fail_candidate(job, data, what).as_dict())
