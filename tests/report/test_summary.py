from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expand.errors import RunError
from expand.report.summary import summarize
from expand.rundir.files import to_json
from expand.rundir.lock import RunLock
from expand.rundir.paths import RunPaths

Make = Callable[..., Any]
PATH = ("x_bottleneck", "x_fast", "x_spatial", "x_depth")


def run_with(fake_search: Make, name: str, target: float, **fields: Any) -> Path:
    """A run with its basis trained whose `run_started` has further fields."""
    return fake_search(name=name, target=target, fields=fields).basis().paths.root


def test_a_finished_run_has_everything_that_scripts_read(finished: Any) -> None:
    summary = summarize(finished.paths.root)
    assert json.loads(to_json(summary)) == summary
    assert summary["run"] == str(finished.paths.root)
    assert (summary["name"], summary["state"], summary["target_gflops"]) == ("fake", "finished", 0.25)
    assert [(step["step"], step["axis"]) for step in summary["steps"]] == [
        (0, "basis"), (1, "x_bottleneck"), (2, "x_fast"), (3, "x_spatial"), (4, "x_depth")]
    assert summary["basis"] == summary["steps"][0]
    for step in summary["steps"]:
        assert {"gflops", "accuracy", "stderr", "factors", "candidates"} <= set(step)
        chosen = [candidate for candidate in step["candidates"] if candidate["selected"]]
        assert [(entry["axis"], entry["gflops"], entry["accuracy"]) for entry in chosen] == [
            (step["axis"], step["gflops"], step["accuracy"])]
    assert summary["contraction"]["axis"] == "x_depth"
    assert summary["contraction"]["factors"]["gamma_d"] == 1.7
    assert summary["winner"]["gflops"] == pytest.approx(0.2425)
    assert set(summary["winner"]["factors"]) == {"gamma_tau", "gamma_t", "gamma_s", "gamma_w", "gamma_b", "gamma_d"}
    assert (summary["classes"], summary["remaining_s"]) == (12, 0.0)


def test_the_failed_candidate_and_the_excluded_axis_keep_their_reasons(finished: Any) -> None:
    second = summarize(finished.paths.root)["steps"][2]
    failed = next(candidate for candidate in second["candidates"] if candidate["axis"] == "x_depth")
    assert (failed["state"], failed["reason"], failed["accuracy"]) == (
        "failed", "the loss is not finite at update 412", None)
    assert second["excluded"] == [{"axis": "x_width", "reason": "limits.width is 1.0"}]


def test_merged_axes_are_both_named(finished: Any) -> None:
    merged = summarize(finished.paths.root)["steps"][2]["candidates"][0]
    assert (merged["axis"], merged["also"]) == ("x_fast", ["x_temporal"])


def test_the_winner_measured_on_test_is_said_to_be(finished: Any) -> None:
    summary = summarize(finished.paths.root)
    assert summary["winner"]["split"] == "test"
    assert summary["winner"]["accuracy"] == summary["test_accuracy"] == pytest.approx(finished.accuracy + 0.03)
    assert summary["selected_on_val"] is False
    assert "no part in the selection" in summary["winner"]["note"]


def test_the_winner_measured_on_val_is_said_to_be_selected_on_it(fake_search: Make) -> None:
    search = fake_search(test_clips=0).basis().steps(PATH).contract().end()
    summary = summarize(search.paths.root)
    assert summary["winner"]["accuracy"] == pytest.approx(search.accuracy + 0.03)
    assert summary["test_accuracy"] is None
    assert summary["selected_on_val"] is True
    assert "also selected on it" in summary["winner"]["note"]


def test_the_winner_has_no_accuracy_before_the_final_training_has_ended(fake_search: Make) -> None:
    search = fake_search().basis().steps(PATH[:1])
    keys = ("id", "gflops", "params", "factors", "frames", "resolution", "stride")
    search.event("winner_chosen", **{key: search.chosen[key] for key in keys}, accuracy=0.4, stderr=0.02,
                 network=search.chosen)
    search.event("final_started")
    winner = summarize(search.paths.root)["winner"]
    assert (winner["accuracy"], winner["candidate_accuracy"], winner["final_started"]) == (None, 0.4, True)
    assert winner["note"] == "not measured yet"


@pytest.mark.parametrize(("last", "state", "reason"), [
    ({"event": "run_finished"}, "finished", None),
    ({"event": "run_failed", "reason": "no clips"}, "failed", "no clips"),
    ({"event": "run_interrupted", "reason": "Ctrl-C"}, "interrupted", "Ctrl-C"),
    ({"event": "run_resumed"}, "interrupted", None),
    ({"event": "candidate_started", "id": "s00-basis", "resumed": True}, "interrupted", None)])
def test_the_last_word_of_the_journal_decides_the_state(fake_search: Make, last: dict[str, Any], state: str,
                                                        reason: str | None) -> None:
    search = fake_search().basis()
    search.event(**last)
    summary = summarize(search.paths.root)
    assert (summary["state"], summary["reason"]) == (state, reason)


@pytest.mark.parametrize(("last", "state"), [("run_resumed", "running"), ("run_interrupted", "running"),
                                             ("run_finished", "finished")])
def test_a_held_lock_means_running_until_the_run_says_finished(fake_search: Make, last: str, state: str) -> None:
    search = fake_search().basis()
    search.event(last)
    with RunLock(search.paths):
        assert summarize(search.paths.root)["state"] == state


def test_a_candidate_in_training_is_running_or_interrupted_as_the_run_is(fake_search: Make) -> None:
    search = fake_search().basis()
    candidates = search.propose()
    search.finish(candidates[0], 0.3)
    search.event("candidate_started", id=candidates[1]["id"], resumed=False)

    def states() -> list[str]:
        return [candidate["state"] for candidate in summarize(search.paths.root)["steps"][1]["candidates"]]

    with RunLock(search.paths):
        assert states() == ["finished", "running", "waiting", "waiting", "waiting"]
    assert states() == ["finished", "interrupted", "waiting", "waiting", "waiting"]
    search.event("run_resumed")
    with RunLock(search.paths):
        assert states() == ["finished", "interrupted", "waiting", "waiting", "waiting"]


def test_an_open_step_has_no_axis_yet(fake_search: Make) -> None:
    search = fake_search().basis()
    search.propose()
    step = summarize(search.paths.root)["steps"][1]
    assert (step["axis"], step["gflops"], step["accuracy"]) == (None, None, None)


def test_a_step_proposed_again_after_a_kill_counts_once(fake_search: Make) -> None:
    search = fake_search().basis()
    search.propose()
    search.step -= 1
    search.propose()
    assert [step["step"] for step in summarize(search.paths.root)["steps"]] == [0, 1]


def test_a_contraction_that_gave_back_a_trained_network_has_only_its_reason(fake_search: Make) -> None:
    search = fake_search().basis().steps(PATH[:1])
    search.event("contraction_proposed", axis="x_bottleneck", candidate=None, reason="nothing between fits")
    contraction = summarize(search.paths.root)["contraction"]
    assert (contraction["axis"], contraction["gflops"], contraction["why"]) == (
        "x_bottleneck", None, "nothing between fits")


def test_time_counts_only_the_spans_at_work(fake_search: Make) -> None:
    search = fake_search()
    begin = search.time
    search.event("of_the_future", after_s=10)
    search.event("run_interrupted", after_s=20, reason="Ctrl-C")
    search.event("run_resumed", after_s=1000)
    search.event("run_resumed", after_s=5000)
    search.event("of_the_future", after_s=7)
    assert summarize(search.paths.root, now=begin + 1e6)["elapsed_s"] == pytest.approx(37)
    with RunLock(search.paths):
        assert summarize(search.paths.root, now=search.time + 100)["elapsed_s"] == pytest.approx(137)
        assert summarize(search.paths.root, now=search.time - 100)["elapsed_s"] == pytest.approx(37)


def test_time_left_is_unknown_before_a_candidate_has_finished(fake_search: Make) -> None:
    assert summarize(fake_search().basis(finish=False).paths.root)["remaining_s"] is None


def test_time_left_is_rate_times_cost_to_come(fake_search: Make) -> None:
    search = fake_search(target=0.02).basis()
    candidates = search.propose()
    rate = (10 + 100 * 0.020662304) / 0.020662304
    waiting = sum(candidate["gflops"] for candidate in candidates)
    # The step in progress passes the target: then a contraction and the final training, each of the target's cost.
    assert summarize(search.paths.root)["remaining_s"] == pytest.approx(rate * (waiting + 0.04), rel=1e-6)


def test_time_left_counts_the_final_training_by_its_length_and_stops_within_the_tolerance(fake_search: Make) -> None:
    plain = fake_search(name="plain", target=0.02).basis()
    rate = (10 + 100 * 0.020662304) / 0.020662304
    long = run_with(fake_search, "long", target=0.02, final_weight=3.0)
    assert summarize(long)["remaining_s"] - summarize(plain.paths.root)["remaining_s"] == pytest.approx(rate * 2 * 0.02)
    near = run_with(fake_search, "near", target=0.0207, final_weight=1.0, tolerance=0.05)
    assert summarize(near)["remaining_s"] == pytest.approx(rate * 0.0207)


def test_candidates_taken_back_after_all_failed_wait_again(fake_search: Make) -> None:
    search = fake_search().basis()
    candidates = search.propose()
    for candidate in candidates:
        search.finish(candidate, None, "out of memory")
    search.event("step_retried", step=1, ids=[candidate["id"] for candidate in candidates])
    entries = summarize(search.paths.root)["steps"][1]["candidates"]
    assert {(entry["state"], entry["reason"]) for entry in entries} == {("waiting", None)}


def test_time_left_shrinks_while_the_candidate_trains_and_never_below_zero(fake_search: Make) -> None:
    search = fake_search().basis().steps(PATH).contract(finish=False)
    search.event("candidate_started", id="s05-contraction", resumed=False)
    with RunLock(search.paths):
        at_once, later, late = (summarize(search.paths.root, now=search.time + wait)["remaining_s"]
                                for wait in (0, 10, 1e9))
    assert later == pytest.approx(at_once - 10)
    assert late == 0.0


def test_time_left_grows_with_the_distance_to_the_target(fake_search: Make) -> None:
    left = [summarize(fake_search(name=f"to-{target}", target=target).basis().paths.root)["remaining_s"]
            for target in (0.05, 0.5, 5.0)]
    assert left == sorted(left)
    assert left[0] < left[1] / 5 < left[2] / 25


def test_a_run_without_events_yet_is_named_after_its_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    RunPaths(tmp_path / "mine").config.touch()
    summary = summarize(tmp_path / "mine")
    assert (summary["name"], summary["state"], summary["steps"], summary["basis"]) == ("mine", "interrupted", [], None)
    assert (summary["elapsed_s"], summary["remaining_s"]) == (0.0, None)


def test_a_folder_that_is_no_run_is_refused_and_runs_near_it_are_named(finished: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, what in (("empty", "is not a run directory"), ("mien", "there is no such run directory")):
        with pytest.raises(RunError, match=what) as caught:
            summarize(tmp_path / name)
        assert str(finished.paths.root) in str(caught.value)
        assert name in str(caught.value)


def test_a_folder_far_from_any_run_tells_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run directory") as caught:
        summarize(tmp_path / "one" / "two")
    assert "x3d-expand search" in str(caught.value)


def test_an_event_of_another_version_is_an_error_and_no_traceback(fake_search: Make) -> None:
    search = fake_search()
    with open(search.paths.journal, "a", encoding="utf-8") as file:
        event = {"event": "step_proposed", "time": 1.0, "step": 0, "candidates": [{"axis": "basis"}]}
        file.write(to_json(event) + "\n")
    with pytest.raises(RunError, match="the event 'step_proposed' cannot be: .* is missing") as caught:
        summarize(search.paths.root)
    assert "journal.jsonl, line 2" in str(caught.value)


def test_summarizing_changes_no_file(finished: Any) -> None:
    with open(finished.paths.journal, "ab") as file:
        file.write(b'{"event": "torn')
    before = {name: (finished.paths.root / name).read_bytes() for name in os.listdir(finished.paths.root)}
    assert summarize(finished.paths.root)["state"] == "finished"
    assert {name: (finished.paths.root / name).read_bytes() for name in os.listdir(finished.paths.root)} == before
