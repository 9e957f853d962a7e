"""From a job to its outcome on disk: a candidate of a step, or the winner's final training."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from expand.data import PreparedData
from expand.data.loading.prefetch import dead_worker
from expand.device_faults import faults_explained, first_line, lacks_memory
from expand.errors import CandidateFailed, Interrupted, RunError
from expand.expansion.events import FIELDS
from expand.expansion.types import Outcome
from expand.field_checks import Check, Wrong, record, shown, text
from expand.rundir.files import cannot_write, jsonable, read_json, write_atomic, write_json
from expand.space.network import dump_network
from expand.training import checkpoint
from expand.training.distributed import ALONE, Group
from expand.training.job import Hooks, Job
from expand.training.loop import Training
from expand.training.runtime import Runtime

NO_MEMORY = "the memory did not suffice; a smaller batch_size, or a larger accumulation, needs less"

_owned = record({"identity": text(200)}, {"digest": text(200)})
_final = record({"result": FIELDS["final_finished"]})
_candidate = FIELDS["candidate_finished"]


def train_candidate(job: Job, data: PreparedData, runtime: Runtime, hooks: Hooks) -> Outcome:
    """Trains a candidate and measures it on `val`.

    A candidate whose outcome is on disk is not trained again, unless that is damaged. A loss that is not finite, memory
    that does not suffice, or an operator that fails gives a failed outcome with its reason. Raises `Interrupted` when
    asked to stop; a checkpoint is on disk.
    """
    known = known_outcome(job, _candidate, hooks.log)
    if known is not None:
        _forget_before(job)
        return Outcome.from_dict(known)
    write_atomic(job.paths.spec, dump_network(job.network), above=False)
    try:
        with _failures(job, hooks):
            training = Training(job, data, runtime, hooks)
            training.fit()
            training.refresh_norms()
            evaluation = training.evaluate("val")
    except CandidateFailed as failure:
        return fail_candidate(job, data, failure.what)
    seconds = training.spent()
    outcome = Outcome(
        job.id, "finished", accuracy=evaluation.accuracy, stderr=evaluation.stderr, top5=evaluation.top5,
        loss=evaluation.loss, wall_s=sum(seconds.values()), peak_memory_mb=runtime.peak_memory_mb(),
        clips_per_s=_rate(training), breakdown={name: round(value, 4) for name, value in seconds.items()},
        notes=training.notes)
    _write_outcome(job, data, outcome, evaluation.confusion)
    checkpoint.save_weights(job.paths.checkpoint, training.result)
    _forget_before(job)
    return outcome


def fail_candidate(job: Job, data: PreparedData, reason: str) -> Outcome:
    """The outcome, on disk too, of a candidate whose training cannot give a result."""
    outcome = Outcome(job.id, "failed", reason=reason)
    _write_outcome(job, data, outcome, None)
    _forget_before(job)
    return outcome


def train_final(job: Job, data: PreparedData, runtime: Runtime, weights: Path, hooks: Hooks,
                group: Group = ALONE) -> dict[str, Any]:
    """Trains the winner by the final recipe and measures it: on `val`, and once on `test` where there is one.

    Writes the weights to the path `weights`. In a `group`, every process calls it, and the first one writes. Returns
    the fields of `final_finished`; `accuracy` is that of `split`. Raises `CandidateFailed` and `Interrupted` as a
    training does.
    """
    known = known_outcome(job, _final, hooks.log, group)
    if known is not None:
        if group.is_first:
            _forget_before(job)
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
              "wall_s": sum(training.spent().values()), "notes": training.notes}
    if group.is_first:
        checkpoint.save_weights(weights, training.result)
        _write(job, data, {"result": result}, {name: measured.confusion for name, measured in splits.items()})
        _forget_before(job)
    return result


def _rate(training: Training) -> float:
    progress = training.progress
    return progress.clips / progress.train_s if progress.train_s else 0.0


@contextmanager
def _failures(job: Job, hooks: Hooks) -> Iterator[None]:
    """What torch and the system raise in a training, as `CandidateFailed` with a reason. No fault of the candidate's
    are a loader process that died (`DataError`) and a GPU that failed (`DeviceFault`)."""
    try:
        with faults_explained():
            yield
    except (MemoryError, RuntimeError) as error:
        if hooks.stop():  # of a group's processes, one had ended before another, which waited for it in vain
            raise Interrupted("stopped", where=job.id) from error
        if (death := dead_worker(error)) is not None:
            raise death from error
        text = first_line(error)
        raise CandidateFailed(f"{NO_MEMORY} ({text})" if lacks_memory(error) else text) from error


def known_outcome(job: Job, check: Check, log: Callable[[str], None], group: Group = ALONE) -> dict[str, Any] | None:
    """What is on disk of a training of this very identity that has ended. An outcome that is damaged, or that `check`
    refuses, is set aside (by the first process of `group`), and `log` is told: no decision may rest on it."""
    try:
        if not job.paths.outcome.exists():
            return None
        known = read_json(job.paths.outcome, _owned)
        if known["identity"] != job.identity:
            return None
        check(known, "")
        if known.get("digest", digest := _digest(known)) != digest:
            raise Wrong("its digest is another")
        if known.get("id", job.id) != job.id:
            raise Wrong(f"'id' is {shown(known['id'])}, not '{job.id}'")
    except (RunError, Wrong) as error:
        if group.is_first:
            what = error.what if isinstance(error, RunError) else f"cannot be what the run wrote: {error}"
            log(f"{job.id}: {job.paths.outcome} {what}; it is set aside as {job.paths.damaged_outcome.name}, and its "
                "training goes on")
            _set_aside(job)
        return None
    return known


def _set_aside(job: Job) -> None:
    try:
        os.replace(job.paths.outcome, job.paths.damaged_outcome)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise cannot_write(job.paths.damaged_outcome, error) from error


def _forget_before(job: Job) -> None:
    """Nothing will go on from the checkpoint before the last one any more."""
    with suppress(OSError):
        job.paths.checkpoint_before.unlink(missing_ok=True)


def _write_outcome(job: Job, data: PreparedData, outcome: Outcome, confusion: list[list[int]] | None) -> None:
    _write(job, data, outcome.as_dict(), confusion)


def _write(job: Job, data: PreparedData, fields: dict[str, Any], confusion: Any) -> None:
    content = {**fields, "identity": job.identity, "classes": list(data.classes), "confusion": confusion}
    write_json(job.paths.outcome, {**content, "digest": _digest(content)}, above=False)


def _digest(content: Mapping[str, Any]) -> str:
    """Of an outcome but for its digest: a figure that a disk changed can look like any other."""
    rest = {key: value for key, value in jsonable(content).items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
