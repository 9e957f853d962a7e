"""A run's state, results and times from its journal: what `x3d-expand status --json` prints (schema: docs/json.md)."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from expand.errors import RunError
from expand.expansion.events import (
    CandidateFinished,
    CandidatesStopped,
    CandidateStarted,
    Event,
    FinalFinished,
    FinalStarted,
    RunFailed,
    RunFinished,
    RunInterrupted,
    RunResumed,
    RunStarted,
    StepRetried,
    WinnerChosen,
)
from expand.expansion.state import Candidate, SearchState
from expand.expansion.text import split_note
from expand.rundir.journal import last_of, read_events
from expand.rundir.lock import holder
from expand.rundir.paths import RunPaths

SPEC = ("id", "axis", "also", "gflops", "params", "ratio", "overshoot", "factors", "frames", "resolution", "stride",
        "init", "note")
RESULT = ("accuracy", "stderr", "top5", "loss", "wall_s", "peak_memory_mb", "clips_per_s", "share")
ENDED = ("finished", "failed", "stopped")
"""The states of a candidate that will not be trained any further."""
CHOSEN = ("id", "axis", "also", "gflops", "params", "ratio", "accuracy", "stderr", "factors", "frames", "resolution",
          "stride")
LIFE = RunStarted | RunResumed | RunInterrupted | RunFailed | RunFinished
"""The events that say whether a run is at work; the last of them decides."""
USUAL_CANDIDATES = 6
"""Candidates in a step before the first is proposed: one an axis."""
USUAL_RATIO = 2.0
"""Growth in a step before the first is seen: the paper's c-hat."""
MOST_STEPS = 64
"""Bound on the steps looked ahead; growth below it would make any figure meaningless."""


def summarize(run_dir: Path | str, now: float | None = None) -> dict[str, Any]:
    """Return the status of the run in `run_dir`; changes nothing, also while the run goes on.

    `now` (unix seconds, default the clock) is the moment up to which a run at work is counted. Complexities are 10^9
    multiply-adds, accuracies 0..1, times seconds; None stands for what is not known yet. Raises `RunError` where
    `run_dir` is no run or its journal is damaged.
    """
    paths = RunPaths(Path(run_dir))
    # The lock first: a run that ends in between is then read as finished, never as interrupted.
    is_held = holder(paths) is not None
    events = read_events(paths.journal)
    if paths.training.exists():
        raise RunError("is a training, not a search", where=str(paths.root),
                       fix=f"Its epochs are in {paths.final_candidate.metrics}, its network in {paths.final}.")
    if not events and not (is_held or paths.config.is_file()):
        what = "is not a run directory" if paths.root.is_dir() else "there is no such run directory"
        near = [str(path.parent) for folder in (paths.root, paths.root.parent)
                for path in sorted(folder.glob("*/journal.jsonl"))]
        fix = f"Runs near it: {', '.join(near[:5])}" if near else "Start one with: x3d-expand search --target-gflops G"
        raise RunError(what, where=str(paths.root), fix=fix)

    search = SearchState.from_events(events)
    life = next((event for event in reversed(events) if isinstance(event, LIFE)), None)
    state = ("finished" if isinstance(life, RunFinished) else "running" if is_held else
             "failed" if isinstance(life, RunFailed) else "interrupted")
    at_work_until = (time.time() if now is None else now) if state == "running" else None
    started, final, results = search.started, search.final, _results(events, is_running=state == "running")
    steps = []
    for step in search.steps:  # the chosen candidate's values stand at its top, None until one is chosen
        chosen_id = step.candidates[0].id if step.number == 0 else step.selected
        candidates = [{**_describe_trainings(search, step.trainings_of(candidate), results),
                       "selected": candidate.id == chosen_id, "score": step.scores.get(candidate.id),
                       "p_value": step.p_values.get(candidate.id)} for candidate in step.candidates]
        chosen = next((candidate for candidate in candidates if candidate["selected"]), {})
        is_unknown = step.tied is None or len(candidates) < 2 or (  # all rivals were stopped: nothing was compared
            not step.p_values and any(candidate["state"] == "stopped" for candidate in candidates))
        tied = None if step.tied is None or is_unknown else list(step.tied)
        steps.append({"step": step.number, **{key: chosen.get(key) for key in CHOSEN}, "tied": tied,
                      "decided": None if tied is None else not tied, "candidates": candidates,
                      "excluded": [exclusion.as_dict() for exclusion in step.excluded]})
    contraction: dict[str, Any] | None = None
    if search.contraction:
        shrunk = search.contraction.candidate
        # Without an id (and complexity) where it gave back a network that had been trained.
        described = _describe_trainings(search, (shrunk,), results) if shrunk else {
            **dict.fromkeys((*SPEC, *RESULT, "reason")), "also": [], "notes": [], "accuracies": [], "state": "finished"}
        contraction = {**described, "axis": search.contraction.axis, "why": search.contraction.reason}
    # The clips that the winner's accuracy comes from also chose the winner where there is no test split.
    on_val = final.split == "val" if final else started is not None and not started.splits.get("test")
    summary: dict[str, Any] = {
        "run": str(paths.root), "name": (started.name if started else "") or paths.root.resolve().name, "state": state,
        "reason": getattr(life, "reason", None) if state in ("failed", "interrupted") else None,
        "target_gflops": started.target_gflops if started else None,
        "criterion": started.criterion if started else None,
        "classes": len(started.classes) if started else None, "splits": dict(started.splits) if started else None,
        "basis": steps[0] if steps else None, "steps": steps,
        "contraction": contraction, "selected_on_val": on_val,
        "test_accuracy": final.accuracy if final and final.split == "test" else None,
        "winner": _describe_winner(events, final, on_val), "elapsed_s": elapsed_s(events, at_work_until)}
    # The time that the training in progress, if there is one, has had since it was last started.
    starts = CandidateStarted | FinalStarted
    ends = CandidateFinished | FinalFinished | RunResumed | RunInterrupted | RunFailed
    last = next((event for event in reversed(events) if isinstance(event, starts | ends)), None)
    busy_s = max(0.0, at_work_until - last.time) if at_work_until is not None and isinstance(last, starts) else 0.0
    summary["remaining_s"] = remaining_s(summary, busy_s,
                                         final_weight=started.final_weight or 1.0 if started else 1.0,
                                         tolerance=started.tolerance if started else 0.0,
                                         workers=started.workers if started else 1)
    return summary


def _results(events: Sequence[Event], is_running: bool) -> dict[str, dict[str, Any]]:
    """Return state, reason and measured values by candidate id. Only one process trains, so a candidate that was
    started, and that neither has finished nor is at work in a running run, was interrupted."""
    results: dict[str, dict[str, Any]] = {}
    for event in events:
        match event:
            case CandidateStarted():
                results[event.id] = {"state": "running" if is_running else "interrupted"}
            case CandidateFinished():
                results[event.outcome.id] = event.outcome.as_dict()
            case CandidatesStopped():
                results |= {id_: {**results[id_], "state": "stopped"} for id_ in event.ids}
            case StepRetried():
                results = {name: result for name, result in results.items() if name not in event.ids}
            case RunResumed():
                for result in results.values():
                    result["state"] = "interrupted" if result["state"] == "running" else result["state"]
    return results


def _describe_trainings(search: SearchState, candidates: Sequence[Candidate],
                        results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return a candidate, the first of `candidates`, over all its trainings, which the others repeat: their mean
    accuracy, its standard error with the seeds' part, and the state of the first repeat that has not ended."""
    described = []
    for candidate in candidates:
        spec, found = candidate.as_dict(), results.get(candidate.id, {"state": "waiting"})
        described.append({**{key: spec[key] for key in SPEC},
                          **{key: found.get(key) for key in ("state", "reason", *RESULT)},
                          "notes": list(found.get("notes", ()))})
    first, *repeats = described
    finished = [each for each in (first, *repeats) if each["state"] == "finished"]
    current = next((each for each in repeats if each["state"] not in ENDED), first)
    measured = {"accuracy": search.accuracy_of(candidates[0]), "stderr": search.stderr_of(candidates[0]),
                "wall_s": sum(each["wall_s"] for each in finished)} if finished else {}
    return {**first, **measured, "state": current["state"], "reason": current["reason"],
            "accuracies": [each["accuracy"] for each in finished]}


def _describe_winner(events: Sequence[Event], final: FinalFinished | None, on_val: bool) -> dict[str, Any] | None:
    """Return the chosen network; its accuracy is the final training's, None until that has finished."""
    event = last_of(events, WinnerChosen)
    if event is None:
        return None
    own = event.own_fields()
    spec = {key: own[key] for key in ("id", "gflops", "params", "factors", "frames", "resolution", "stride")}
    result = {key: getattr(final, key, None) for key in ("accuracy", "stderr", "top5", "loss", "split", "val_accuracy",
                                                         "val_stderr", "from_candidate", "wall_s")}
    return {**spec, **result, "candidate_accuracy": event.accuracy,
            "candidate_stderr": event.stderr, "why": event.note,
            "final_started": last_of(events, FinalStarted) is not None,
            "note": split_note(result["split"], on_val and final is not None)}


def elapsed_s(events: Sequence[Event], now: float | None) -> float:
    """Return the seconds that the run was at work: from each `run_started` or `run_resumed` to the last event before
    the next.

    What a killed process did after its last event is not counted. `now` (unix seconds) ends the last span of a run that
    is at work; None where it is not. Between two events the clock may have been set: back, and the time between them is
    not known and counts as none; ahead, and it cannot be told from a long training.
    """
    total, last = 0.0, None
    for event in events:
        if isinstance(event, RunStarted | RunResumed):
            last = event.time
        elif last is not None:
            total, last = total + max(0.0, event.time - last), event.time
    return total if last is None or now is None else total + max(0.0, now - last)


def remaining_s(summary: Mapping[str, Any], busy_s: float = 0.0, *, final_weight: float = 1.0,
                tolerance: float = 0.0, workers: int = 1) -> float | None:
    """Return the estimated seconds of training to come; None until a candidate has finished, 0 when all is done.

    The rule: (seconds a GFLOP of the finished candidates: sum of their wall time / sum of their complexities) x (sum of
    the complexities still to be trained, those of steps shared by `workers` processes) - `busy_s`, the time that the
    candidate in training has had. To come are

    - the step's unfinished candidates;
    - then steps until the target, less its share `tolerance`, is reached, each of as many candidates as the last step,
      each `ratio` times as complex as the network before it (`ratio`: the median over the candidates proposed so far,
      at first 2);
    - a contraction where the target is passed, as one candidate of the target's complexity (or of its own, once known);
    - the final training, the same times `final_weight`: its epochs over a candidate's, from the event `run_started`.
    """
    if summary["state"] == "finished":
        return 0.0
    done = [each for each in _candidates_of(summary) if each["state"] == "finished" and each["wall_s"]]
    cost = sum(candidate["gflops"] * len(candidate["accuracies"]) for candidate in done)
    if not cost:
        return None
    rate = sum(candidate["wall_s"] for candidate in done) / cost
    return max(0.0, rate * _gflops_to_come(summary, final_weight, tolerance, workers) - busy_s)


def _candidates_of(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    contraction = summary["contraction"]
    extra = [contraction] if contraction and contraction["id"] else []
    return [candidate for step in summary["steps"] for candidate in step["candidates"]] + extra


def _gflops_to_come(summary: Mapping[str, Any], final_weight: float, tolerance: float, workers: int) -> float:
    """Return the complexities still to be trained, added up by the rule of `remaining_s`."""
    winner, contraction, target = summary["winner"], summary["contraction"], summary["target_gflops"] or 0.0
    if winner:
        return 0.0 if winner["accuracy"] is not None else winner["gflops"] * final_weight
    if contraction:
        own = contraction["gflops"] or target
        return own * final_weight + (own if contraction["state"] not in ENDED else 0.0)
    to_choose = sum(candidate["gflops"] * (1 - (candidate["share"] or 0.0)) for candidate in _candidates_of(summary)
                    if candidate["state"] not in ENDED)

    steps, enough = summary["steps"], target * (1 - tolerance)  # the steps after the current one, and the contraction
    ratios = [candidate["ratio"] for step in steps[1:] for candidate in step["candidates"] if candidate["ratio"]]
    ratio = max(1.05, median(ratios) if ratios else USUAL_RATIO)
    count = len(steps[-1]["candidates"]) if len(steps) > 1 else USUAL_CANDIDATES
    sizes = [candidate["gflops"] for candidate in steps[-1]["candidates"]]
    current = steps[-1]["gflops"] or (median(sizes) if sizes else target) or 1.0
    for _ in range(min(MOST_STEPS, math.ceil(math.log(max(1.0, enough / current)) / math.log(ratio) - 1e-9))):
        current *= ratio
        to_choose += count * current
    if current > target:
        to_choose += target
    return to_choose / workers + target * final_weight
