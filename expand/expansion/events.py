"""What the journal's events may hold, and in which order they may come. A journal may be a stranger's.

Nothing here decides whether a search went well, only that what is in its journal can be worked with: every field that
is used is of its kind and within bounds that no real search comes near, and every event has its place. Events and
fields of later versions are passed over. That the proposals are those which the configuration gives is not asked: a
run that an older version began must go on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from expand.bounded_files import LARGEST_YAML
from expand.expansion.types import BASIS_AXIS, CANDIDATE_ID
from expand.field_checks import (
    Check,
    Wrong,
    flag,
    list_of,
    mapping_of,
    matching,
    number,
    one_of,
    or_null,
    record,
    shown,
    text,
    whole,
)
from expand.space.axes import AXES
from expand.space.network import factor_problems

Event = Mapping[str, Any]

FINAL = "final"
"""The id of the winner's last training."""
MOST_STEPS, MOST_CANDIDATES = 1000, 16
"""Steps of a search (a doubling repeated twenty times is a million), and candidates of a step (one an axis)."""
MOST_CLASSES = 1_000_000
LONGEST_NAME = 10_000
"""Characters of a class's name: as many as a line of a list of clips may have."""


def _factors(value: Any, name: str) -> None:
    for problem in factor_problems(value):
        raise Wrong(f"'{name}' cannot be: {problem}")


_id = matching(CANDIDATE_ID, "a candidate's name: 1 to 100 of a-z, 0-9, '_' and '-'")
_job = matching(CANDIDATE_ID, "the name of a training")
_word = matching(re.compile(r"[a-z0-9_]{1,40}"), "a word")
_axis = one_of((BASIS_AXIS, *AXES))
_step = whole(0, MOST_STEPS)
_gflops = number(1e-9, 1e9)
_params = whole(1, 10**13)
_share = number(0, 1)
_score = number(-1e12, 1e12)
_seconds = number(0, 1e12)
_reason = text()
_clip = {"frames": whole(1, 10**6), "resolution": whole(1, 10**6), "stride": whole(1, 10**6)}
_candidate = record(
    {"id": _id, "step": _step, "axis": _axis, "factors": _factors, "gflops": _gflops, "params": _params, **_clip},
    {"ratio": or_null(number(0, 1e9)), "also": list_of(_axis, len(AXES)), "overshoot": flag, "note": or_null(_reason),
     "init": text(200)})
_measured = {"accuracy": _share, "stderr": or_null(_share)}
_more = {"top5": or_null(_share), "loss": or_null(number(-1e30, 1e30)), "peak_memory_mb": or_null(number(0, 1e12)),
         "breakdown": mapping_of(text(100), number(-1e12, 1e12), 100), "notes": list_of(_reason, 1000)}
_finished = record({"id": _id, "state": _word, **_measured, "wall_s": or_null(_seconds),
                    "clips_per_s": or_null(number(0, 1e12))}, {"reason": or_null(_reason), **_more})
_failed = record({"id": _id, "state": _word, "reason": or_null(_reason)}, {
    "accuracy": or_null(_share), "stderr": or_null(_share), "wall_s": or_null(_seconds),
    "clips_per_s": or_null(number(0, 1e12)), **_more})


def _candidate_finished(value: Any, name: str) -> None:
    one_of(("finished", "failed"))(value.get("state"), "state")
    (_finished if value["state"] == "finished" else _failed)(value, name)


FIELDS: dict[str, Check] = {
    "run_started": record(
        {"name": text(1000), "target_gflops": number(1e-9, 1e9), "criterion": _word, "fingerprint": text(1000),
         "classes": list_of(text(LONGEST_NAME), MOST_CLASSES, least=1), "config": text(LARGEST_YAML),
         "splits": record({}, {split: whole(0, 10**9) for split in ("train", "val", "test")})},
        {"version": text(100), "tolerance": number(0, 1), "workers": whole(1, 10**6), "final_weight": number(0, 1e9)}),
    "run_resumed": record({}),
    "run_interrupted": record({}, {"reason": or_null(_reason)}),
    "run_failed": record({"reason": _reason}),
    "run_finished": record({}),
    "step_proposed": record({"step": _step, "candidates": list_of(_candidate, MOST_CANDIDATES, least=1),
                             "excluded": list_of(record({"axis": _axis, "reason": _reason}), len(AXES))}),
    "candidate_started": record({"id": _id}, {"resumed": flag}),
    "candidate_retried": record({"id": _job, "attempt": whole(0, 10**6), "reason": _reason}),
    "candidate_finished": _candidate_finished,
    "step_retried": record({"step": _step, "ids": list_of(_id, MOST_CANDIDATES)}),
    "step_selected": record({"step": _step, "axis": _axis, "id": _id},
                            {"scores": mapping_of(_id, or_null(_score), MOST_CANDIDATES)}),
    "contraction_proposed": record({"axis": _axis, "candidate": or_null(_candidate), "reason": or_null(_reason)}),
    "winner_chosen": record({"id": _id, "gflops": _gflops, "params": _params, "factors": _factors, **_clip,
                             "network": _candidate, **_measured}, {"note": or_null(_reason)}),
    "final_started": record({}, {"resumed": flag}),
    "final_finished": record({"split": one_of(("val", "test")), **_measured, "wall_s": _seconds},
                             {"val_accuracy": or_null(_share), "val_stderr": or_null(_share), **_more}),
}
"""The fields of each kind of event; `record` passes over those that are not named here."""


class Course:
    """The course of a search so far, event by event; refuses those that cannot come next.

    `SearchState` folds events in without asking: it is for events that have passed here.
    """

    def __init__(self) -> None:
        self._begun = False
        self._step: dict[str, Event] = {}
        """The candidates of the last step."""
        self._number = -1
        self._chosen = True
        """Whether the last step has its winner."""
        self._known: dict[str, Event] = {}
        """Every candidate that was proposed, by id."""
        self._states: dict[str, str] = {}
        """`finished` or `failed`, of the candidates that have ended."""
        self._contraction = self._winner = self._final = False

    def check(self, event: Event) -> None:
        """Takes one more event in. Raises `Wrong` with a sentence where a field of it is not as it should be, or where
        it cannot come after those before."""
        kind = event["event"]
        if (fields := FIELDS.get(kind)) is None:
            return
        fields(event, "")
        if self._begun == (kind == "run_started"):
            raise Wrong("the run had begun before" if self._begun else "it comes before the run began")
        if rule := _RULES.get(kind):
            rule(self, event)

    def _run_started(self, event: Event) -> None:
        self._begun = True

    def _step_proposed(self, event: Event) -> None:
        """A step that has no winner yet may be proposed anew; the last proposal counts."""
        due = self._number + 1 if self._chosen else self._number
        _ask(event["step"] == due, f"step {due} is due, not {event['step']}")
        _ask(not (self._contraction or self._winner), "the expansion had ended before")
        for id_ in self._step if not self._chosen else ():
            self._known.pop(id_)
        self._number, self._chosen, self._step = event["step"], False, {}
        for candidate in event["candidates"]:
            self._propose(candidate, event["step"])
            self._step[candidate["id"]] = candidate

    def _propose(self, candidate: Event, step: int) -> None:
        _ask(candidate["id"] not in self._known, f"{candidate['id']} was proposed before")
        _ask(candidate["step"] == step, f"{candidate['id']} is of step {candidate['step']}, not of {step}")
        self._known[candidate["id"]] = candidate

    def _candidate_started(self, event: Event) -> None:
        _ask(event["id"] in self._known, f"no step proposed {event['id']}")

    def _candidate_retried(self, event: Event) -> None:
        _ask(event["id"] in self._known or event["id"] == FINAL, f"no step proposed {event['id']}")

    def _candidate_finished(self, event: Event) -> None:
        _ask(event["id"] in self._known, f"no step proposed {event['id']}")
        _ask(event["id"] not in self._states, f"{event['id']} has ended before")
        self._states[event["id"]] = event["state"]

    def _step_retried(self, event: Event) -> None:
        _ask(event["step"] == self._number and not self._chosen, f"step {event['step']} is not the one in work")
        for id_ in event["ids"]:
            _ask(id_ in self._step, f"{id_} is not of step {event['step']}")
            self._states.pop(id_, None)

    def _step_selected(self, event: Event) -> None:
        _ask(event["step"] == self._number and not self._chosen, f"step {event['step']} is not the one in work")
        _ask(event["id"] in self._step, f"{event['id']} is not of step {event['step']}")
        _ask(all(id_ in self._states for id_ in self._step), "not all of its candidates have ended")
        self._needs_accuracy(event["id"])
        self._chosen = True

    def _needs_accuracy(self, id_: str) -> None:
        _ask(self._states.get(id_) == "finished", f"{id_} has no accuracy")

    def _contraction_proposed(self, event: Event) -> None:
        _ask(self._number >= 1 and self._chosen, "there is no expansion to contract")
        _ask(not (self._contraction or self._winner), "the expansion had ended before")
        self._contraction = True
        if event["candidate"] is not None:
            self._propose(event["candidate"], self._number + 1)

    def _winner_chosen(self, event: Event) -> None:
        network, id_ = event["network"], event["id"]
        _ask(self._chosen and not self._winner, "it is not the time for it")
        _ask(id_ in self._known, f"no step proposed {id_}")
        self._needs_accuracy(id_)
        _ask(network["id"] == id_ and network["factors"] == self._known[id_]["factors"],
             f"its network is not the one that was proposed as {id_}")
        self._winner = True

    def _final_started(self, event: Event) -> None:
        _ask(self._winner and not self._final, "it is not the time for it")

    def _final_finished(self, event: Event) -> None:
        self._final_started(event)
        self._final = True


def _ask(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise Wrong(otherwise)


_RULES: dict[str, Callable[[Course, Event], None]] = {
    name.removeprefix("_"): rule for name, rule in vars(Course).items() if name.removeprefix("_") in FIELDS}


def event_name(event: Event) -> str:
    """The kind of an event for a message."""
    return shown(event["event"])
