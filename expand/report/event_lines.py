"""A journal event as one line for people: the log, and the terminal while a search runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expand.report.text import axis_name, duration, number, one_line, percent, split_note, value_text

Event = Mapping[str, Any]


def event_line(event: Event) -> str | None:
    """The line, or None for an event that needs none. Text from the journal is made printable."""
    words = _LINES.get(event["event"])
    return one_line(words(event)) if words else None


def _run_started(event: Event) -> str:
    splits = ", ".join(f"{count} {split}" for split, count in event["splits"].items() if count)
    return (f"run {event['name']}: {len(event['classes'])} classes, {splits} clips, target "
            f"{number(event['target_gflops'])} GFLOPs, criterion {event['criterion']}")


def _step_proposed(event: Event) -> str:
    offered = "; ".join(
        f"{axis_name(c)} to {value_text(c)} ({number(c['gflops'])} GFLOPs{_mark(c)})" for c in event["candidates"])
    excluded = "".join(f"; not {axis_name(e)}: {e['reason']}" for e in event["excluded"])
    return f"step {event['step']}: {offered}{excluded}"


def _mark(candidate: Mapping[str, Any]) -> str:
    """What is special about a candidate."""
    if candidate.get("overshoot"):
        return f", {number(candidate['ratio'])} times: a single grid step exceeds the expansion rate"
    return f", held back: {candidate['note']}" if candidate.get("note") else ""


def _candidate_finished(event: Event) -> str:
    if event["state"] != "finished":
        return f"{event['id']}: failed: {event['reason']}"
    return (f"{event['id']}: {percent(event['accuracy'], event['stderr'])} % in {duration(event['wall_s'])}, "
            f"{number(event['clips_per_s'])} clips/s" + _notes(event))


def _notes(event: Event) -> str:
    """What a person should know of a training, after its figures."""
    return "".join(f"; {note}" for note in event.get("notes") or ())


def _contraction_proposed(event: Event) -> str:
    candidate = event["candidate"]
    if candidate is None:
        return f"contraction: {event['reason']}"
    return (f"contraction of {axis_name(event)} to {value_text({**candidate, 'axis': event['axis']})} "
            f"({number(candidate['gflops'])} GFLOPs)")


def _final_finished(event: Event) -> str:
    note = split_note(event["split"], event["split"] == "val")
    return (f"final: {percent(event['accuracy'], event['stderr'])} % {note}, trained in {duration(event['wall_s'])}"
            + _notes(event))


_LINES = {
    "run_started": _run_started,
    "run_resumed": lambda event: "the run goes on",
    "step_proposed": _step_proposed,
    "candidate_started": lambda event: f"{event['id']}: training" + (
        ", from its checkpoint" if event.get("resumed") else ""),
    "candidate_retried": lambda event: f"{event['id']}: {event['reason']}; it goes on in another process "
                                       f"(attempt {event['attempt'] + 1})",
    "candidate_finished": _candidate_finished,
    "step_retried": lambda event: f"step {event['step']}: all candidates failed and are trained again",
    "step_selected": lambda event: f"step {event['step']}: {axis_name(event)} chosen ({event['id']})",
    "contraction_proposed": _contraction_proposed,
    "winner_chosen": lambda event: f"winner: {event['id']}, {number(event['gflops'], 4)} GFLOPs"
                                   + (f"; {event['note']}" if event.get("note") else ""),
    "final_started": lambda event: "final: training the winner by the final recipe",
    "final_finished": _final_finished,
    "run_interrupted": lambda event: "interrupted",
    "run_failed": lambda event: f"failed: {event['reason']}",
    "run_finished": lambda event: "finished",
}
