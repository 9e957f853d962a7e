"""A run's state and results from its journal: what `x3d-expand status --json` prints (schema: docs/json.md)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expand.errors import RunError
from expand.report.text import split_note
from expand.report.timing import elapsed_s, remaining_s
from expand.rundir.journal import read_events
from expand.rundir.lock import holder
from expand.rundir.paths import RunPaths

SPEC = ("id", "axis", "also", "gflops", "params", "ratio", "overshoot", "factors", "frames", "resolution", "stride",
        "init", "note")
RESULT = ("accuracy", "stderr", "top5", "loss", "wall_s", "peak_memory_mb", "clips_per_s")
LIFE = ("run_started", "run_resumed", "run_interrupted", "run_failed", "run_finished")
"""The events that say whether a run is at work; the last of them decides."""


def summarize(run_dir: Path | str, now: float | None = None) -> dict[str, Any]:
    """The status of the run in `run_dir`; a reader that changes nothing, also while the run goes on.

    `now` (unix seconds, default the clock) is the moment up to which a run at work is counted. Complexities are 10^9
    multiply-adds, accuracies 0..1, times seconds; None stands for what is not known yet. Raises `RunError` where
    `run_dir` is no run or its journal is damaged.
    """
    paths = RunPaths(Path(run_dir))
    # The lock first: a run that ends in between is then read as finished, never as interrupted.
    held = holder(paths) is not None
    events = read_events(paths.journal)
    if paths.training.exists():
        raise RunError("is a training, not a search", where=str(paths.root),
                       fix=f"Its epochs are in {paths.final_candidate.metrics}, its network in {paths.final}.")
    if not events and not (held or paths.config.is_file()):
        raise _no_run(paths.root)
    try:
        return _summary(paths, events, held, time.time() if now is None else now)
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(f"an event lacks something that every event of its kind has ({error})", where=str(paths.journal),
                       fix="The journal was written by another version or changed by hand; use the version that wrote "
                           "it.") from error


def _no_run(root: Path) -> RunError:
    what = "is not a run directory" if root.is_dir() else "there is no such run directory"
    near = [str(path.parent) for folder in (root, root.parent) for path in sorted(folder.glob("*/journal.jsonl"))]
    fix = f"Runs near it: {', '.join(near[:5])}" if near else "Start one with: x3d-expand search --target-gflops G"
    return RunError(what, where=str(root), fix=fix)


def _summary(paths: RunPaths, events: Sequence[Mapping[str, Any]], held: bool, now: float) -> dict[str, Any]:
    state = _state(events, held)
    started = _last(events, "run_started") or {}
    results = _results(events, is_running=state == "running")
    selections = _selections(events)
    steps = [_step(event, results, selections) for event in _proposals(events)]
    summary: dict[str, Any] = {
        "run": str(paths.root), "name": started.get("name") or paths.root.resolve().name, "state": state,
        "reason": _reason(events, state), "target_gflops": started.get("target_gflops"),
        "criterion": started.get("criterion"), "classes": len(started["classes"]) if "classes" in started else None,
        "splits": started.get("splits"), "basis": steps[0] if steps else None, "steps": steps,
        "contraction": _contraction(events, results)}
    final = _last(events, "final_finished")
    summary["selected_on_val"] = _selected_on_val(final, started)
    summary["test_accuracy"] = final["accuracy"] if final and final["split"] == "test" else None
    summary["winner"] = _winner(events, final, summary["selected_on_val"])
    summary["elapsed_s"] = elapsed_s(events, now if state == "running" else None)
    summary["remaining_s"] = remaining_s(summary, _busy_s(events, now if state == "running" else None),
                                         final_weight=started.get("final_weight") or 1.0,
                                         tolerance=started.get("tolerance") or 0.0,
                                         workers=started.get("workers") or 1)
    return summary


def _state(events: Sequence[Mapping[str, Any]], held: bool) -> str:
    life = [event["event"] for event in events if event["event"] in LIFE]
    if life and life[-1] == "run_finished":
        return "finished"
    if held:
        return "running"
    return "failed" if life and life[-1] == "run_failed" else "interrupted"


def _reason(events: Sequence[Mapping[str, Any]], state: str) -> str | None:
    """Why a run stopped; None for one that goes on, has finished, or was killed without a word."""
    life = [event for event in events if event["event"] in LIFE]
    return life[-1].get("reason") if life and state in ("failed", "interrupted") else None


def _last(events: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any] | None:
    return next((event for event in reversed(events) if event["event"] == name), None)


def _proposals(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The last proposal of each step, in order."""
    proposals = {event["step"]: event for event in events if event["event"] == "step_proposed"}
    return [proposals[step] for step in sorted(proposals)]


def _selections(events: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    return {event["step"]: event for event in events if event["event"] == "step_selected"}


def _results(events: Sequence[Mapping[str, Any]], is_running: bool) -> dict[str, dict[str, Any]]:
    """By candidate id: state, reason and measured values. Only one process trains, so what was started and is neither
    finished nor at work in a running run was interrupted."""
    results: dict[str, dict[str, Any]] = {}
    for event in events:
        if event["event"] == "candidate_started":
            results[event["id"]] = {"state": "running" if is_running else "interrupted", "reason": None}
        elif event["event"] == "candidate_finished":
            results[event["id"]] = {"state": event["state"], "reason": event.get("reason"),
                                    **{key: event.get(key) for key in RESULT}, "notes": event.get("notes") or []}
        elif event["event"] == "step_retried":
            results = {name: result for name, result in results.items() if name not in event["ids"]}
        elif event["event"] == "run_resumed":
            for result in results.values():
                result["state"] = "interrupted" if result["state"] == "running" else result["state"]
    return results


def _candidate(spec: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    waiting = {"state": "waiting", "reason": None}
    found = results.get(spec["id"], waiting)
    entry = {**{key: spec.get(key) for key in SPEC}, **{key: found.get(key) for key in ("state", "reason", *RESULT)}}
    if entry["gflops"] is None:
        raise KeyError("gflops")
    entry["also"], entry["notes"] = list(entry["also"] or []), list(found.get("notes") or [])
    return entry


def _step(event: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]],
          selections: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """A step: its candidates, and the chosen one's values at the top (None until one is chosen)."""
    candidates = [_candidate(spec, results) for spec in event["candidates"]]
    selection = selections.get(event["step"])
    chosen_id = selection["id"] if selection else None
    if event["step"] == 0 and candidates:
        chosen_id = candidates[0]["id"]
    scores = (selection or {}).get("scores") or {}
    for candidate in candidates:
        candidate["selected"] = candidate["id"] == chosen_id
        candidate["score"] = scores.get(candidate["id"])
    chosen = next((candidate for candidate in candidates if candidate["selected"]), {})
    keys = ("id", "axis", "also", "gflops", "params", "ratio", "accuracy", "stderr", "factors", "frames", "resolution",
            "stride")
    return {"step": event["step"], **{key: chosen.get(key) for key in keys}, "candidates": candidates,
            "excluded": [dict(item) for item in event.get("excluded") or []]}


def _contraction(events: Sequence[Mapping[str, Any]],
                 results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The contraction; without an id (and complexity) where it gave back a network that had been trained before."""
    event = _last(events, "contraction_proposed")
    if event is None:
        return None
    if event["candidate"] is None:
        empty = {**{key: None for key in (*SPEC, *RESULT)}, "also": [], "notes": []}
        return {**empty, "axis": event["axis"], "state": "finished", "reason": None, "why": event["reason"]}
    return {**_candidate(event["candidate"], results), "axis": event["axis"], "why": event.get("reason")}


def _selected_on_val(final: Mapping[str, Any] | None, started: Mapping[str, Any]) -> bool:
    """Whether the clips that the winner's accuracy comes from also chose the winner: they do without a test split."""
    if final:
        return final["split"] == "val"
    return bool(started) and not (started.get("splits") or {}).get("test")


def _winner(events: Sequence[Mapping[str, Any]], final: Mapping[str, Any] | None,
            selected_on_val: bool) -> dict[str, Any] | None:
    """The chosen network; its accuracy is the final training's, None until that has finished."""
    event = _last(events, "winner_chosen")
    if event is None:
        return None
    spec = {key: event.get(key) for key in ("id", "gflops", "params", "factors", "frames", "resolution", "stride")}
    final = final or {}
    result = {key: final.get(key) for key in ("accuracy", "stderr", "top5", "loss", "split", "val_accuracy",
                                              "val_stderr", "wall_s")}
    return {**spec, **result, "candidate_accuracy": event.get("accuracy"), "candidate_stderr": event.get("stderr"),
            "why": event.get("note"),
            "final_started": _last(events, "final_started") is not None,
            "note": split_note(final.get("split"), selected_on_val and bool(final))}


def _busy_s(events: Sequence[Mapping[str, Any]], now: float | None) -> float:
    """Seconds that the training in progress has had since it was last started; 0 where none is."""
    starts = [event for event in events if event["event"] in ("candidate_started", "final_started")]
    ends = ("candidate_finished", "final_finished", "run_resumed", "run_interrupted", "run_failed")
    if now is None or not starts:
        return 0.0
    after = events[max(index for index, event in enumerate(events) if event is starts[-1]) + 1:]
    return 0.0 if any(event["event"] in ends for event in after) else max(0.0, now - starts[-1]["time"])
