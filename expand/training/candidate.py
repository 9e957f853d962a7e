"""From a job to its outcome on disk: a candidate of a step, or the winner's final training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from expand.data import PreparedData
from expand.data.feed import dead_worker
from expand.errors import CandidateFailed, Interrupted
from expand.expansion.types import Outcome
from expand.rundir.files import read_json, write_atomic, write_json
from expand.space.network import dump_network
from expand.training import checkpoint
from expand.training.distributed import ALONE, Group
from expand.training.job import Hooks, Job
from expand.training.loop import Training
from expand.training.runtime import Runtime, lacks_memory

NO_MEMORY = "the memory did not suffice; a smaller batch_size, or a larger accumulation, needs less"


def train_candidate(job: Job, data: PreparedData, runtime: Runtime, hooks: Hooks) -> Outcome:
    """Trains a candidate and measures it on `val`.

    A candidate whose outcome is on disk is not trained again. A loss that is not finite, memory that does not suffice,
    or an operator that fails gives a failed outcome with its reason. Raises `Interrupted` when asked to stop; a
    checkpoint is on disk.
    """
    known = _known_outcome(job)
    if known is not None:
        return Outcome.from_dict(known)
    write_atomic(job.paths.spec, dump_network(job.network))
    try:
        with _failures(job, hooks):
            training = Training(job, data, runtime, hooks)
            training.fit()
            training.refresh_norms()
            evaluation = training.evaluate("val")
    except CandidateFailed as failure:
        outcome = Outcome(job.id, "failed", reason=failure.what)
        _write_outcome(job, data, outcome, None)
        return outcome
    seconds = training.spent()
    outcome = Outcome(
        job.id, "finished", accuracy=evaluation.accuracy, stderr=evaluation.stderr, top5=evaluation.top5,
        loss=evaluation.loss, wall_s=sum(seconds.values()), peak_memory_mb=runtime.peak_memory_mb(),
        clips_per_s=_rate(training), breakdown={name: round(value, 4) for name, value in seconds.items()})
    _write_outcome(job, data, outcome, evaluation.confusion)
    checkpoint.save_weights(job.paths.checkpoint, training.result)
    return outcome


def train_final(job: Job, data: PreparedData, runtime: Runtime, weights: Path, hooks: Hooks,
                group: Group = ALONE) -> dict[str, Any]:
    """Trains the winner by the final recipe and measures it: on `val`, and once on `test` where there is one.

    Writes the weights to the path `weights`. In a `group`, every process calls it, and the first one writes. Returns
    the fields of `final_finished`; `accuracy` is that of `split`. Raises `CandidateFailed` and `Interrupted` as a
    training does.
    """
    known = _known_outcome(job)
    if known is not None:
        return known["result"]
    with _failures(job, hooks):
        training = Training(job, data, runtime, hooks, group)
        training.fit()
        training.refresh_norms()
        splits = {split: training.evaluate(split) for split in ("val", "test") if getattr(data, split)}
    split = "test" if "test" in splits else "val"
    measured, val = splits[split], splits["val"]
    result = {"split": split, "accuracy": measured.accuracy, "stderr": measured.stderr, "top5": measured.top5,
              "loss": measured.loss, "val_accuracy": val.accuracy, "val_stderr": val.stderr,
              "wall_s": sum(training.spent().values())}
    if group.is_first:
        checkpoint.save_weights(weights, training.result)
        write_json(job.paths.outcome, {"identity": job.identity, "result": result, "classes": list(data.classes),
                                       "confusion": {name: e.confusion for name, e in splits.items()}})
    return result


def _rate(training: Training) -> float:
    progress = training.progress
    return progress.clips / progress.train_s if progress.train_s else 0.0


@contextmanager
def _failures(job: Job, hooks: Hooks) -> Iterator[None]:
    """What torch and the system raise in a training, as `CandidateFailed` with a reason; but a loader process that died
    is no fault of the candidate's: `DataError`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if hooks.stop():  # of a group's processes, one had ended before another, which waited for it in vain
            raise Interrupted("stopped", where=job.id) from error
        if (death := dead_worker(error)) is not None:
            raise death from error
        text = (str(error).strip() or repr(error)).splitlines()[0]
        raise CandidateFailed(f"{NO_MEMORY} ({text})" if lacks_memory(error) else text) from error


def _known_outcome(job: Job) -> dict[str, Any] | None:
    """What is on disk of a training of this very identity that has ended."""
    if not job.paths.outcome.exists():
        return None
    known = read_json(job.paths.outcome)
    return known if known.get("identity") == job.identity else None


def _write_outcome(job: Job, data: PreparedData, outcome: Outcome, confusion: list[list[int]] | None) -> None:
    write_json(job.paths.outcome, {**outcome.as_dict(), "identity": job.identity,
                                   "classes": list(data.classes), "confusion": confusion})
