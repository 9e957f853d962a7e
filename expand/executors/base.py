"""What an executor is: it takes jobs, trains them somewhere, and gives back what came of each as it comes."""

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
"""What trainings have to write their checkpoints once asked to stop: a cluster gives 30 seconds from SIGTERM to the
end."""


@dataclass(frozen=True)
class Listener:
    """Who is told what happens to a job: that it begins (and on which process of which machine), that it is to be tried
    again and why, its ticks, and remarks; `stop` asks whether to end."""

    begin: Callable[[Job, str], None]
    retry: Callable[[Job, int, str], None]
    tick: Callable[[str, Any], None]
    log: Callable[[str], None]
    stop: Callable[[], bool]


@dataclass(frozen=True)
class Finished:
    """A job that has ended, and the fields of the event that says so: `candidate_finished`, of a state that may be
    `failed`, or for a final training `final_finished`."""

    job: Job
    fields: dict[str, Any]


class Executor(Protocol):
    """Trains jobs that are independent of one another. A context manager: leaving it ends its processes."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None: ...

    def run(self, jobs: Sequence[Job]) -> Iterator[Finished]:
        """What came of every job, as it comes; the costliest begin first.

        A job whose process dies, or gives no sign of life for `run.heartbeat_s`, goes on from its checkpoint in
        another, at most `run.retries` times, and counts as failed after that. Raises `Interrupted` when the listener
        asks to stop, once every training has written its checkpoint; any other `ExpandError` of a training where it
        concerns the run (a full disk, clips that are gone), once the other trainings have written theirs.
        """
        ...


def carry_out(job: Job, data: PreparedData, runtime: Runtime, hooks: Hooks) -> dict[str, Any]:
    """Trains one job in this process: a candidate, or the winner's final training. Gives the fields of its event.

    Raises `Interrupted` when asked to stop, `CandidateFailed` where a final training cannot give a result, and other
    `ExpandError`s of the run.
    """
    try:
        if job.kind is Kind.FINAL:
            return train_final(job, data, runtime, hooks)
        return train_candidate(job, data, runtime, hooks).as_dict()
    finally:
        runtime.release_memory()


def given_up(job: Job, data: PreparedData, reason: str, tries: int) -> Finished:
    """A job whose process was lost `tries` times, at last for `reason`: a candidate has failed.

    Raises `CandidateFailed` for a final training.
    """
    what = f"{reason}, the last of {tries} times" if tries > 1 else reason
    if job.kind is Kind.FINAL:
        raise CandidateFailed(what)
    return Finished(job, fail_candidate(job, data, what).as_dict())
