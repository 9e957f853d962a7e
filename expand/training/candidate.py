"""Training by a job, up to its outcome on disk: of a step's candidate, or of the winner by the final recipe."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from expand.data import PreparedData
from expand.data.loading.loader import dead_worker
from expand.errors import (
    CandidateFailed,
    Interrupted,
    RunError,
    UsageError,
    explain_device_faults,
    first_line,
    lacks_memory,
)
from expand.expansion.confidence import encode_right
from expand.expansion.events import FinalFinished
from expand.expansion.state import Outcome, read_outcome
from expand.expansion.text import percent
from expand.model.load import load_checkpoint
from expand.rundir.files import cannot_write, jsonable, read_json, write_atomic, write_json
from expand.space.network import dump_network
from expand.training import checkpoint
from expand.training.distributed import ALONE, Group
from expand.training.evaluate import Evaluation, standard_error_of_difference
from expand.training.job import Hooks, Job
from expand.training.loop import Training
from expand.training.runtime import Runtime
from expand.untrusted_input import Check, Wrong, record, show_value, text

logger = logging.getLogger(__name__)

NO_MEMORY = "out of memory; a smaller batch_size, or a larger accumulation, needs less"

_owned = record({"identity": text(200)}, {"digest": text(200)})
_final = record({"result": FinalFinished.read})


def train_candidate(job: Job, data: PreparedData, runtime: Runtime, hooks: Hooks) -> Outcome:
    """Train a candidate, to its end or to the share `job.until`, and measure it on `val`.

    A candidate whose outcome is on disk is not trained again, unless the outcome is damaged. A loss that is not finite,
    lack of memory, or an operator that fails gives a failed outcome with its reason. Raises `Interrupted` when asked to
    stop; a checkpoint is then on disk.
    """
    known = known_outcome(job, job.outcome, read_outcome)
    if known is None and job.until < 1:
        ended = known_outcome(job, job.paths.outcome, read_outcome)
        known = ended if ended and ended["state"] == "failed" else None
    if known is not None:
        outcome = Outcome.from_dict(known)
        if outcome.is_finished and checkpoint.load(job.paths.checkpoint, job.identity)[0] is not None:
            # a kill came between the outcome and the weights, which a final training may start from or be compared with
            with _explain_failures(job, hooks):
                training = Training(job, data, runtime, hooks)
                training.fit()  # nothing is left to train
                training.refresh_batch_norm()
            checkpoint.save_weights(job.paths.checkpoint, training.result)
        _delete_previous_checkpoint(job)
        return outcome
    write_atomic(job.paths.spec, dump_network(job.network), above=False)
    try:
        with _explain_failures(job, hooks):
            training = Training(job, data, runtime, hooks)
            if training.done > training.updates_until(job.until):  # it was here before, and its result was lost
                for file in (job.paths.checkpoint, job.paths.checkpoint_before):
                    file.unlink(missing_ok=True)
                training = Training(job, data, runtime, hooks)
            training.fit(job.until)
            training.refresh_batch_norm()
            evaluation = training.evaluate("val")
    except CandidateFailed as failure:
        return fail_candidate(job, data, failure.what)
    seconds, progress, is_paused = training.seconds(), training.progress, job.until < 1
    outcome = Outcome(
        job.id, "paused" if is_paused else "finished", share=job.until if is_paused else None,
        accuracy=evaluation.accuracy, stderr=evaluation.stderr, top5=evaluation.top5, loss=evaluation.loss,
        wall_s=sum(seconds.values()), peak_memory_mb=runtime.peak_memory_mb(),
        clips_per_s=progress.clips / progress.train_s if progress.train_s else 0.0,
        breakdown={name: round(value, 4) for name, value in seconds.items()}, notes=tuple(training.notes),
        right=encode_right(evaluation.right))
    _write_outcome(job, job.outcome, data, outcome.as_dict(), evaluation.confusion)
    if is_paused:
        return outcome
    checkpoint.save_weights(job.paths.checkpoint, training.result)
    _delete_previous_checkpoint(job)
    return outcome


def fail_candidate(job: Job, data: PreparedData, reason: str) -> Outcome:
    """Return, and write to disk, the failed outcome of a candidate whose training cannot give a result."""
    outcome = Outcome(job.id, "failed", reason=reason)
    _write_outcome(job, job.paths.outcome, data, outcome.as_dict(), None)
    _delete_previous_checkpoint(job)
    return outcome


def train_final(job: Job, data: PreparedData, runtime: Runtime, hooks: Hooks, group: Group = ALONE) -> dict[str, Any]:
    """Train the winner by the final recipe and measure it: on `val`, and once on `test` if there is one.

    Writes the weights to `job.weights`: those of the candidate (`job.candidate_weights`) where they are better on val
    by more than a standard error, so that a run never hands over less than it has. In a `group`, every process calls
    this, and the first one writes. Returns the fields of `final_finished`; `accuracy` is that of `split`. Raises
    `CandidateFailed` and `Interrupted` as a training does.
    """
    if job.weights is None:
        raise ValueError("the job of a final training names no file for its weights")
    known = known_outcome(job, job.outcome, _final, group)
    if known is not None:
        if group.is_first:
            _delete_previous_checkpoint(job)
        return known["result"]
    with _explain_failures(job, hooks):
        training = Training(job, data, runtime, hooks, group)
        training.fit()
        training.refresh_batch_norm()
        splits, notes = {"val": training.evaluate("val")}, training.notes
        if better := _take_candidate_if_better(training, splits["val"]):
            notes.append(f"longer training did not help: it reached {percent(splits['val'].accuracy)} % on val, the "
                         f"candidate {percent(better.accuracy)} %, whose weights are handed over")
            splits["val"] = better
        if data.test:
            splits["test"] = training.evaluate("test")
    split = "test" if "test" in splits else "val"
    measured, val = splits[split], splits["val"]
    result = {"split": split, "accuracy": measured.accuracy, "stderr": measured.stderr, "top5": measured.top5,
              "loss": measured.loss, "val_accuracy": val.accuracy, "val_stderr": val.stderr,
              "from_candidate": better is not None, "wall_s": sum(training.seconds().values()), "notes": notes}
    if group.is_first:
        checkpoint.save_weights(job.weights, training.result)
        _write_outcome(job, job.outcome, data, {"result": result},
                       {name: found.confusion for name, found in splits.items()})
        _delete_previous_checkpoint(job)
    return result


def _take_candidate_if_better(training: Training, final: Evaluation) -> Evaluation | None:
    """Put the candidate's weights into the trained network where they beat it on val, where it reached `final`, by more
    than one standard error of the difference on the same clips; return what they reach. None where they do not, or
    where there are none: the network is then as it was."""
    path = training.job.candidate_weights
    if path is None:
        return None
    own = {name: tensor.clone() for name, tensor in training.result.state_dict().items()}
    try:
        load_checkpoint(training.result, path)
    except (UsageError, RunError) as error:
        logger.warning(f"the candidate's weights cannot be compared with the final training's: {error}")
        return None
    candidate = training.evaluate("val")
    if candidate.accuracy - final.accuracy > standard_error_of_difference(candidate.right, final.right):
        return candidate
    training.result.load_state_dict(own)
    return None


@contextmanager
def _explain_failures(job: Job, hooks: Hooks) -> Iterator[None]:
    """Raise the errors of torch and of the system as `CandidateFailed` with a reason. The candidate is not to blame for
    a loader process that died (`DataError`) nor for a GPU that failed (`DeviceFault`)."""
    try:
        with explain_device_faults():
            yield
    except (MemoryError, RuntimeError) as error:
        if hooks.stop():  # one process of the group has ended, while this one waited for it
            raise Interrupted("stopped", where=job.id) from error
        if (death := dead_worker(error)) is not None:
            raise death from error
        text = first_line(error)
        raise CandidateFailed(f"{NO_MEMORY} ({text})" if lacks_memory(error) else text) from error


def known_outcome(job: Job, file: Path, check: Check, group: Group = ALONE) -> dict[str, Any] | None:
    """Return the outcome of this job (of the same identity) in `file`, None without one. An outcome that is damaged, or
    that `check` refuses, is renamed (by the first process of `group`): no decision may rest on it.
    """
    try:
        if not file.exists():
            return None
        known = read_json(file, _owned)
        if known["identity"] != job.identity:
            return None
        check(known, "")
        if known.get("digest", digest := _digest(known)) != digest:
            raise Wrong("its digest does not match")
        if known.get("id", job.id) != job.id:
            raise Wrong(f"'id' is {show_value(known['id'])}, not '{job.id}'")
    except (RunError, Wrong) as error:
        if group.is_first:
            what = error.what if isinstance(error, RunError) else f"cannot be what the run wrote: {error}"
            logger.warning(f"{job.id}: {file} {what}; it is set aside as "
                           f"{job.paths.damaged_outcome.name}, and its training resumes")
            try:
                os.replace(file, job.paths.damaged_outcome)
            except FileNotFoundError:
                pass
            except OSError as problem:
                raise cannot_write(job.paths.damaged_outcome, problem) from problem
        return None
    return known


def _delete_previous_checkpoint(job: Job) -> None:
    with suppress(OSError):
        job.paths.checkpoint_before.unlink(missing_ok=True)


def _write_outcome(job: Job, file: Path, data: PreparedData, fields: dict[str, Any], confusion: Any) -> None:
    content = {**fields, "identity": job.identity, "classes": list(data.classes), "confusion": confusion}
    write_json(file, {**content, "digest": _digest(content)}, above=False)


def _digest(content: Mapping[str, Any]) -> str:
    """Return the digest of an outcome's other fields: a figure that a disk has changed can look like any other."""
    rest = {key: value for key, value in jsonable(content).items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
