"""Every event of a run as one line of the log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from expand.expansion.events import read_event
from expand.expansion.rules import propose
from expand.rundir.journal import read_events
from tests.expansion.simulated import chance_of, failing, of_kind, outcome, simulate, small_space
from tests.report.conftest import PUBLISHED_PATH, FakeSearch

SPACE = small_space()
RUN_STARTED = {"event": "run_started", "name": "mine", "target_gflops": 0.05, "criterion": "gain_per_gflop",
               "classes": ["a", "b"], "splits": {"train": 10, "val": 5, "test": 0}, "fingerprint": "", "config": ""}
WINNER = of_kind(simulate(SPACE, chance_of(5))[0], "winner_chosen")[0] | {"id": "s02-x_depth"}
FINAL = {"event": "final_finished", "accuracy": 0.9, "stderr": 0.0134, "wall_s": 61.0}
FINISHED = {"event": "candidate_finished", **outcome("s02-x_depth", 0.5).as_dict(), "clips_per_s": 123.4}

LINES = [
    (RUN_STARTED, "run mine: 2 classes, 10 train, 5 val clips, target 0.05 GFLOPs, criterion gain_per_gflop"),
    ({"event": "run_resumed"}, "the run goes on"),
    ({"event": "candidate_started", "id": "s02-x_depth", "resumed": False}, "s02-x_depth: training"),
    ({"event": "candidate_started", "id": "s02-x_depth", "resumed": True},
     "s02-x_depth: training, from its checkpoint"),
    (FINISHED, "s02-x_depth: 50.0 ± 2.0 % in 1 s, 123 clips/s"),
    ({"event": "candidate_finished", **outcome("s02-x_depth", None).as_dict()},
     "s02-x_depth: failed: the loss is not finite"),
    ({"event": "step_retried", "step": 2, "ids": ["s02-x_depth"]},
     "step 2: all candidates failed and are trained again"),
    ({"event": "step_selected", "step": 2, "axis": "x_depth", "id": "s02-x_depth", "scores": {}},
     "step 2: X-Depth chosen (s02-x_depth)"),
    ({"event": "contraction_proposed", "axis": "x_width", "candidate": None, "reason": "nothing lies between"},
     "contraction: nothing lies between"),
    ({**WINNER, "gflops": 0.00753219, "note": None},
     "winner: s02-x_depth, 0.007532 GFLOPs"),
    ({**WINNER, "gflops": 0.0075, "note": "no axis can grow"},
     "winner: s02-x_depth, 0.0075 GFLOPs; no axis can grow"),
    ({"event": "final_started"}, "final: training the winner by the final recipe"),
    ({**FINAL, "split": "test"},
     "final: 90.0 ± 1.3 % on test, which played no part in the selection, trained in 1 min 1 s"),
    ({**FINAL, "split": "val"},
     "final: 90.0 ± 1.3 % on val, and also selected on it: too high by an unknown amount, trained in 1 min 1 s"),
    ({"event": "run_interrupted", "reason": "stopped"}, "interrupted"),
    ({"event": "run_failed", "reason": "no disk"}, "failed: no disk"),
    ({"event": "run_finished"}, "finished"),
]


def event_line(event: dict[str, Any]) -> str | None:
    """The line of an event as it stands in a journal."""
    return read_event(event).line()


@pytest.mark.parametrize(("event", "line"), LINES, ids=[event["event"] for event, _ in LINES])
def test_an_event_is_said_in_a_line(event: dict[str, Any], line: str) -> None:
    assert event_line(event) == line


def test_a_step_names_every_candidate_with_its_cost_and_every_axis_left_out() -> None:
    event = of_kind(simulate(small_space(axes=("x_fast", "x_temporal", "x_width")), chance_of(5))[0],
                    "step_proposed")[1]
    event = {**event, "excluded": [{"axis": "x_depth", "reason": "a limit"}]}
    assert event_line(event) == ("step 1: X-Fast = X-Temporal to 2 frames × 14 (0.00346 GFLOPs); "
                                 "X-Width to γw 1.45 (0.00346 GFLOPs); not X-Depth: a limit")


def test_a_step_says_what_is_special_about_a_candidate() -> None:
    (candidate,) = propose(SPACE, SPACE.basis().factors, 1).candidates[:1]
    step = {"event": "step_proposed", "step": 1, "excluded": []}
    overshoot = {**candidate.as_dict(), "overshoot": True, "ratio": 2.31}
    assert "2.31 times: a single grid step exceeds the expansion rate" in event_line(
        {**step, "candidates": [overshoot]})
    held = {**candidate.as_dict(), "note": "the clips are short"}
    assert "held back: the clips are short" in event_line({**step, "candidates": [held]})


def test_a_contraction_names_its_axis_value_and_cost() -> None:
    (event,) = of_kind(simulate(SPACE, chance_of(5))[0], "contraction_proposed")
    gamma_w = event["candidate"]["factors"]["gamma_w"]
    assert event_line(event) == f"contraction of X-Width to γw {gamma_w:g} (0.0072 GFLOPs)"


def test_every_event_of_a_run_is_one_printable_line(tmp_path: Path) -> None:
    search = FakeSearch(tmp_path / "run").start().basis().steps(PUBLISHED_PATH[:4]).contract().end()
    events = [event for accuracy in (chance_of(5), failing(chance_of(1), "x_depth", "contraction"))
              for event in simulate(SPACE, accuracy)[0] if event["event"] != "final_finished"]
    for event in [*map(read_event, events), *read_events(search.paths.journal)]:
        line = event.line()
        assert line and line.isprintable() and line == line.strip()


def test_an_event_of_another_version_has_no_line() -> None:
    assert event_line({"event": "of_the_future"}) is None


def test_text_from_outside_cannot_move_the_cursor() -> None:
    hostile = "no\x1b[2Jdisk\r\nfailed\tagain\u202e"
    for event in ({"event": "run_failed", "reason": hostile}, {**RUN_STARTED, "name": hostile},
                  {"event": "candidate_finished", "id": "s01-x_fast", "state": "failed", "reason": hostile}):
        assert event_line(event).isprintable()
