"""One class is all that an event takes: it is written, read, checked, replayed and shown by what the class says."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import pytest

from expand.errors import RunError
from expand.expansion import events
from expand.expansion.decide import Done, decide
from expand.expansion.events import Event, UnknownEvent, read_event
from expand.expansion.state import SearchState
from expand.report.summary import elapsed_s, summarize
from expand.rundir.journal import Journal, read_events
from expand.untrusted_input import Wrong, whole
from tests.expansion.simulated import small_space
from tests.report.conftest import FakeSearch

Count = Annotated[int, whole(0, 9)]


@pytest.fixture
def run_given_up(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class of an event that no other file knows; its kind is unknown again after the test."""
    monkeypatch.setattr(events, "_classes", dict(events._classes))

    @dataclass(frozen=True, kw_only=True)
    class RunGivenUp(Event):
        kind = "run_given_up"
        steps: Count
        by: Annotated[str, events.text(20)] = "the user"

        def check_order(self, state: SearchState) -> None:
            super().check_order(state)
            if self.steps != len(state.steps):
                raise Wrong(f"there were {len(state.steps)} steps")

        def apply(self, state: SearchState) -> SearchState:
            return replace(state, finished=True)

        def describe(self) -> str:
            return f"given up by {self.by} after {self.steps} steps"

    return RunGivenUp


def test_a_new_event_is_written_read_replayed_and_shown(run_given_up: Any, tmp_path: Path) -> None:
    search = FakeSearch(tmp_path / "run").start().basis()
    journal = Journal(search.paths.journal, clock=lambda: search.time + 5)
    written = journal.append(run_given_up(steps=1, by="me\x1b"))
    found = read_events(search.paths.journal)
    assert found[-1] == written == run_given_up(steps=1, by="me\x1b", time=search.time + 5)
    line = json.loads(search.paths.journal.read_text().splitlines()[-1])
    assert list(line.items()) == [("event", "run_given_up"), ("time", search.time + 5), ("steps", 1), ("by", "me\x1b")]
    assert decide(SearchState.from_events(found), small_space()) == Done()
    assert found[-1].line() == "given up by me  after 1 steps"
    assert elapsed_s(found, None) == elapsed_s(found[:-1], None) + 5
    assert summarize(tmp_path / "run")["steps"][0]["axis"] == "basis"


@pytest.mark.parametrize(("fields", "words"), [
    ({"steps": 10}, "'steps' is 10, not a whole number from 0 to 9"), ({}, "'steps' is missing"),
    ({"steps": 1, "by": 3}, "'by' is 3, not text"), ({"steps": 2}, "there were 1 steps")])
def test_a_new_event_is_refused_where_its_fields_or_its_place_are_wrong(run_given_up: Any, tmp_path: Path,
                                                                        fields: dict, words: str) -> None:
    search = FakeSearch(tmp_path / "run").start().basis()
    Journal(search.paths.journal).append(UnknownEvent(event="run_noted"))
    with open(search.paths.journal, "a", encoding="utf-8") as file:
        file.write(json.dumps({"event": "run_given_up", "time": 1.0, **fields}) + "\n")
    with pytest.raises(RunError) as caught:
        read_events(search.paths.journal)
    assert f"line {len(search.paths.journal.read_text().splitlines())}" in str(caught.value)
    assert f"the event 'run_given_up' cannot be: {words}" in str(caught.value)


def test_events_and_fields_of_other_versions_are_kept() -> None:
    for fields in ({"event": "worker_joined", "time": 3.0, "id": 7, "unknown": {"a": [1]}},
                   {"event": "run_failed", "time": 3.0, "reason": "no disk", "later": {"a": [1]}, "unknown": 2}):
        event = read_event(fields)
        assert event.as_dict() == fields
        assert read_event(event.as_dict()) == event
    assert read_event({"event": "worker_joined", "time": 3.0}).line() is None


def test_every_event_says_what_it_is_and_in_which_order_its_fields_stand() -> None:
    assert {kind: [each.name for each in events.fields(cls)[2:]] for kind, cls in events._classes.items()} == {
        "run_started": ["name", "version", "target_gflops", "criterion", "tolerance", "workers", "seed_sd",
                        "final_weight", "classes", "splits", "fingerprint", "config"],
        "run_resumed": [], "run_interrupted": ["reason"], "run_failed": ["reason"], "run_finished": [],
        "step_proposed": ["step", "candidates", "excluded"], "candidate_started": ["id", "resumed", "worker"],
        "candidate_retried": ["id", "attempt", "reason"], "candidate_finished": ["outcome"],
        "candidates_stopped": ["step", "leader", "ids"], "step_retried": ["step", "ids"],
        "step_repeated": ["step", "candidates"],
        "step_selected": ["step", "axis", "id", "scores", "tied", "p_values"],
        "contraction_proposed": ["axis", "candidate", "reason"],
        "winner_chosen": ["id", "gflops", "params", "factors", "frames", "resolution", "stride", "accuracy", "stderr",
                          "note", "network"],
        "final_started": ["resumed", "worker"],
        "final_finished": ["split", "accuracy", "stderr", "top5", "loss", "val_accuracy", "val_stderr",
                           "from_candidate", "wall_s", "notes"]}
