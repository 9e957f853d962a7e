"""Untrusted journals: whatever is in them, they are read or refused, and nothing they say does harm."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expand.errors import ExpandError, RunError
from expand.expansion.decide import decide
from expand.expansion.events import Event, read_event
from expand.expansion.state import SearchState
from expand.report.plots import plot_expansion
from expand.report.summary import elapsed_s, summarize
from expand.report.tables import confusion_frame, status_text, steps_frame
from expand.rundir.files import to_json
from expand.rundir.journal import LARGEST, LONGEST, read_events
from expand.rundir.paths import RunPaths
from tests.expansion.simulated import chance_of, failing, outcome, simulate, small_space
from tests.hostile.mutations import journals

SPACE = small_space(0.0075)
STARTED = {"event": "run_started", "name": "mine", "target_gflops": 0.0075, "criterion": "gain_per_gflop",
           "classes": ["a", "b"], "splits": {"train": 10, "val": 5, "test": 0}, "fingerprint": "f00d", "config": "{}"}


def history(*, fail: bool = False) -> list[dict[str, Any]]:
    """The events of a whole search, with times."""
    accuracy = failing(chance_of(5), "x_depth") if fail else chance_of(5)
    found, _ = simulate(SPACE, accuracy)
    found = [{**event, "wall_s": 3.0, "stderr": 0.02} if event["event"] == "final_finished" else event
             for event in [STARTED, *found]]
    return [{**event, "time": 1.7e9 + number} for number, event in enumerate(found)]


HISTORIES = [history(), history(fail=True)]


def journal_of(root: Path, events: list[dict[str, Any]]) -> RunPaths:
    paths = RunPaths(root)
    paths.journal.write_text("".join(json.dumps(event) + "\n" for event in events))
    return paths


def look_at(root: Path) -> None:
    """All that `status`, `resume` and the report do with a journal before anything is trained or drawn."""
    events = read_events(root / "journal.jsonl")
    for event in events:
        line = event.line()
        assert line is None or line.isprintable()
    state = SearchState.from_events(events)
    decide(state, SPACE)
    summary = summarize(root, now=1.7e9 + 500)
    to_json(summary).encode("utf-8")
    text = status_text(summary)
    assert all(line.isprintable() for line in text.splitlines())
    for line in steps_frame(summary).to_csv(index=False).splitlines():
        assert not any(field.startswith(("=", "+", "@")) for field in line.split(","))


def assert_kept(read: list[Event], written: list[dict[str, Any]]) -> None:
    """Every field of a journal is in the events that were read, with its value."""
    again = [json.loads(json.dumps(event.as_dict())) for event in read]
    assert [found | fields for found, fields in zip(again, written, strict=True)] == again


def test_a_whole_history_passes(tmp_path: Path) -> None:
    for number, events in enumerate(HISTORIES):
        (tmp_path / str(number)).mkdir()
        assert_kept(read_events(journal_of(tmp_path / str(number), events).journal), events)
        look_at(tmp_path / str(number))


@given(st.sampled_from(HISTORIES).flatmap(journals))
@settings(max_examples=250, derandomize=True)
def test_a_journal_that_was_changed_is_read_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "journal.jsonl").write_bytes(content)
        try:
            look_at(Path(folder))
        except ExpandError as error:
            str(error).encode("utf-8")


@given(st.binary(max_size=300))
@settings(max_examples=100, derandomize=True)
def test_bytes_of_any_kind_are_a_journal_or_are_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "journal.jsonl").write_bytes(content)
        (Path(folder) / "config.yaml").touch()
        try:
            look_at(Path(folder))
        except ExpandError as error:
            str(error).encode("utf-8")


@given(st.sampled_from(HISTORIES).flatmap(journals))
@settings(max_examples=8, derandomize=True)
def test_what_can_be_read_can_be_drawn(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "journal.jsonl").write_bytes(content)
        try:
            plot_expansion(summarize(folder), Path(folder) / "plot.svg")
        except ExpandError:
            return
        assert b"<script" not in (Path(folder) / "plot.svg").read_bytes()


@given(st.lists(st.floats(-1e12, 1e12), min_size=len(HISTORIES[0]), max_size=len(HISTORIES[0])),
       st.none() | st.floats(-1e12, 1e12))
@settings(max_examples=60, derandomize=True)
def test_a_clock_may_jump_as_it_likes(times: list[float], now: float | None) -> None:
    events = [{**event, "time": time} for event, time in zip(HISTORIES[0], times, strict=True)]
    assert 0 <= elapsed_s([read_event(event) for event in events], now) < 1e15
    with tempfile.TemporaryDirectory() as folder:
        summary = summarize(journal_of(Path(folder), events).root, now=now)
        assert summary["elapsed_s"] >= 0
        assert "Run mine" in status_text(summary)


def broken(at: str, **fields: Any) -> list[dict[str, Any]]:
    """The history up to the first event of the kind `at`, which gets other `fields` (... takes one away)."""
    events = HISTORIES[0]
    number = next(i for i, event in enumerate(events) if event["event"] == at)
    event = {**events[number], **fields}
    return [*events[:number], {key: value for key, value in event.items() if value is not ...}]


def candidate(**fields: Any) -> list[dict[str, Any]]:
    found = next(event for event in HISTORIES[0] if event["event"] == "step_proposed")["candidates"][0]
    return [{**found, **fields}]


FACTORS = candidate()[0]["factors"]
BASIS = outcome("s00-basis", 0.3).as_dict()


@pytest.mark.parametrize(("events", "words"), [
    (broken("run_started", classes=...), "'classes' is missing"),
    (broken("run_started", classes=[]), "'classes' has 0 entries"),
    (broken("run_started", target_gflops=0), "'target_gflops' is 0, not a number from 1e-09"),
    (broken("run_started", splits={"val": "many"}), "'splits.val' is 'many', not a whole number"),
    (broken("run_started", name="\ud800"), "'name' holds an escape that stands for no character"),
    (broken("step_proposed", step=-1), "'step' is -1"),
    (broken("step_proposed", step=10**300), "'step' is a number of many digits"),
    (broken("step_proposed", step=1), "step 0 is due, not 1"),
    (broken("step_proposed", candidates=[]), "'candidates' has 0 entries"),
    (broken("step_proposed", candidates=candidate() * 17), "'candidates' has 17 entries"),
    (broken("step_proposed", candidates=candidate() * 2), "s00-basis was proposed before"),
    (broken("step_proposed", candidates=candidate(id="../../x")), "'candidates[0].id' is '../../x'"),
    (broken("step_proposed", candidates=candidate(axis="$x$")), "'candidates[0].axis' is '$x$', not one of basis"),
    (broken("step_proposed", candidates=candidate(gflops=1e300)), "'candidates[0].gflops' is 1e+300"),
    (broken("step_proposed", candidates=candidate(gflops=float("nan"))), "is not an event of the journal"),
    (broken("step_proposed", candidates=candidate(also="x_fast")), "'candidates[0].also' is 'x_fast', not a list"),
    (broken("step_proposed", candidates=candidate(factors={**FACTORS, "gamma_w": 100, "gamma_b": 100})),
     "it would have 4.2e+11 weights, more than 1,000,000,000"),
    (broken("step_proposed", candidates=candidate(factors={**FACTORS, "gamma_t": 10_000, "gamma_s": 100})),
     "its clip would have 1.3e+12 pixels"),
    (broken("step_proposed", candidates=candidate(factors={**FACTORS, "gamma_z": 1})), "unknown factor 'gamma_z'"),
    (broken("candidate_finished", id="s09-x_fast"), "no step proposed s09-x_fast"),
    (broken("candidate_finished", accuracy=1.5), "'accuracy' is 1.5, not a number from 0 to 1"),
    (broken("candidate_finished", accuracy=None), "'accuracy' is null"),
    (broken("candidate_finished", state="won"), "'state' is 'won', not one of finished, failed"),
    (broken("candidate_finished", notes=[1]), "'notes[0]' is 1, not text"),
    ([*HISTORIES[0][:3], {**HISTORIES[0][2], **BASIS}], "s00-basis has ended before"),
    (broken("step_selected", id="s00-x"), "s00-x is not of step 0"),
    ([*HISTORIES[0][:2], HISTORIES[0][3]], "not all of its candidates have ended"),
    (broken("winner_chosen", network=candidate()[0]), "its network is not the one that was proposed"),
    (HISTORIES[0][1:], "it comes before the run began"),
    ([HISTORIES[0][0], HISTORIES[0][0]], "the run had begun before"),
    ([*HISTORIES[0], HISTORIES[0][-2]], "it is not the time for it"),
    ([HISTORIES[0][0], {"event": "candidate_retried", "time": 1, "id": "s00-x", "attempt": 1, "reason": "it hung"}],
     "no step proposed s00-x"),
    ([HISTORIES[0][0], {"event": "run_resumed", "time": 10**400}], "is not an event of the journal"),
])
def test_a_wrong_event_is_named_by_file_line_and_field(tmp_path: Path, events: list, words: str) -> None:
    paths = journal_of(tmp_path, [*events, {"event": "of_the_future", "time": 1.0}])
    with pytest.raises(RunError) as caught:
        read_events(paths.journal)
    line = 1 if "before the run began" in words else len(events)
    assert f"{paths.journal}, line {line}: " in str(caught.value)
    assert words in str(caught.value)
    assert "copy" in str(caught.value)


def test_events_and_fields_of_later_versions_are_passed_over(tmp_path: Path) -> None:
    events = [{**event, "of_the_future": {"deep": [1]}} for event in HISTORIES[0]]
    events.insert(1, {"event": "worker_joined", "time": 1.0, "id": 7})
    events.insert(3, {"event": "candidate_retried", "time": 1.0, "id": "s00-basis", "attempt": 1, "reason": "it hung"})
    assert_kept(read_events(journal_of(tmp_path, events).journal), events)
    look_at(tmp_path)


def test_a_journal_or_a_line_without_end_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.touch()
    with open(path, "r+b") as file:
        file.truncate(10**9)
    with pytest.raises(RunError, match="larger than 32 MB"):
        read_events(path)
    path.write_bytes(b'{"event": "' + b"x" * LONGEST + b'", "time": 1}\n')
    with pytest.raises(RunError, match="line 1: is longer than 8 MB"):
        read_events(path)
    path.write_bytes(b"[" * (LONGEST - 1) + b"\n")
    with pytest.raises(RunError, match="is not an event"):
        read_events(path)
    assert LARGEST > 500 * 60_000  # a long search's journal by far


HOSTILE = ["=cmd|' /C calc'!A1", "+1", "-1", "@SUM(1)", "\x1b[2J=1", " =1", "[red]$x$[/red]", "<b>*x*</b>"]


@pytest.mark.parametrize("text", HOSTILE)
def test_untrusted_text_stays_text_in_every_output(tmp_path: Path, text: str) -> None:
    events = [{**event, "reason": text} if event.get("state") == "failed" else event for event in HISTORIES[1]]
    events = [{**event, "classes": [text, "b"], "name": text} if event is events[0] else event for event in events]
    summary = summarize(journal_of(tmp_path, events).root)
    line = "".join(letter if letter.isprintable() else " " for letter in text).strip()
    assert f"failed: {line}" in status_text(summary, 200) and f"Run {line}: finished" in status_text(summary, 200)
    reasons = {row for row in steps_frame(summary)["reason"].dropna()}
    assert reasons == {f"'{line}" if line[0] in "=+-@" else line}
    frame = confusion_frame(np.eye(2), [text, "b"])
    assert list(frame.columns) == [reasons.copy().pop(), "b"] == list(frame.index)
    plot_expansion(summary, tmp_path / "plot.svg")
    assert b"<b>" not in (tmp_path / "plot.svg").read_bytes()
