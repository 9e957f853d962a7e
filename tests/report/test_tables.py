from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expand.expansion.text import axis_name, duration, number, one_line, percent, value_text
from expand.report.summary import summarize
from expand.report.tables import COLUMNS, status_text, steps_frame

Make = Callable[..., Any]
PATH = ("x_bottleneck", "x_fast", "x_spatial", "x_depth")


def test_the_frame_has_a_row_a_network(finished: Any) -> None:
    frame = steps_frame(summarize(finished.paths.root))
    assert list(frame.columns) == list(COLUMNS)
    assert frame["kind"].value_counts().to_dict() == {"expansion": 21, "basis": 1, "contraction": 1}
    assert frame[frame["selected"].fillna(False).astype(bool)]["axis"].tolist() == [
        "basis", "x_bottleneck", "x_fast", "x_spatial", "x_depth"]
    assert frame["id"].is_unique
    failed = frame[frame["state"] == "failed"].iloc[0]
    assert (failed["axis"], failed["reason"]) == ("x_depth", "the loss is not finite at update 412")


def test_the_frame_of_a_run_that_has_just_started_has_columns_and_no_rows(fake_search: Make) -> None:
    frame = steps_frame(summarize(fake_search().paths.root))
    assert (len(frame), list(frame.columns)) == (0, list(COLUMNS))


def test_the_status_says_all_that_a_person_asks(finished: Any) -> None:
    text = status_text(summarize(finished.paths.root), 110)
    for part in ("Run fake: finished", "target   0.25 GFLOPs", "12 classes; clips: 600 train, 480 val, 480 test",
                 "X-Fast = X-Temporal", "2 frames × 14", "γb 2.25", "160 px", "18.0 ± 1.8",
                 "failed: the loss is not finite", "X-Width, step 2: limits.width is 1.0", "Contraction of X-Depth",
                 "γd 1.7", "on test, which played no part in the selection", "on val, where it was selected"):
        assert part in text, part
    assert text.endswith("\n")


def test_the_status_of_a_run_without_test_says_that_val_also_selected(fake_search: Make) -> None:
    search = fake_search(test_clips=0).basis().steps(PATH).contract().end()
    text = status_text(summarize(search.paths.root), 100)
    assert "on val, and also selected on it" in text
    assert "0 test" not in text


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_the_status_keeps_its_width_and_is_plain(finished: Any, width: int) -> None:
    text = status_text(summarize(finished.paths.root), width)
    table = [line for line in text.splitlines() if not line.startswith("  in ")]
    assert max(map(len, table)) <= width
    assert "\x1b" not in text


def test_the_status_of_an_open_step_counts_what_is_to_train(fake_search: Make) -> None:
    search = fake_search().basis()
    search.finish(search.propose()[0], 0.3)
    text = status_text(summarize(search.paths.root), 120)
    assert "not chosen yet: 4 of 5 to train" in text
    assert "waiting" in text
    assert "left" in text


@pytest.mark.parametrize("stage", ["start", "basis"])
def test_the_status_of_a_young_run_says_that_the_time_is_unknown(fake_search: Make, stage: str) -> None:
    search = fake_search() if stage == "start" else fake_search().basis(finish=False)
    assert "time left not known before the first candidate" in status_text(summarize(search.paths.root), 80)


def test_the_status_of_a_failed_run_says_why(fake_search: Make) -> None:
    search = fake_search().basis()
    search.event("run_failed", reason="[red]no[/red]\n\x1b[31mclips")
    assert "Run fake: failed ([red]no[/red]  [31mclips)" in status_text(summarize(search.paths.root), 80)


def test_a_contraction_without_a_network_is_told(fake_search: Make) -> None:
    search = fake_search().basis().steps(PATH[:1])
    search.event("contraction_proposed", axis="x_bottleneck", candidate=None, reason="nothing between fits")
    assert "Contraction of X-Bottleneck: nothing between fits" in status_text(summarize(search.paths.root), 80)


@pytest.mark.parametrize(("axis", "text"), [
    ("x_fast", "4 frames × 12"), ("x_temporal", "4 frames × 12"), ("x_spatial", "160 px"), ("x_depth", "γd 2.2"),
    ("x_width", "γw 1.45"), ("x_bottleneck", "γb 2.25"), ("basis", "4 frames × 12, 160 px")])
def test_a_value_is_written_in_the_terms_of_its_axis(axis: str, text: str) -> None:
    factors = {"gamma_d": 2.2, "gamma_w": 1.4500000000000002, "gamma_b": 2.25}
    assert value_text({"axis": axis, "frames": 4, "stride": 12, "resolution": 160, "factors": factors}) == text


def test_one_frame_has_no_stride() -> None:
    assert value_text({"axis": "basis", "frames": 1, "stride": 28, "resolution": 112}) == "1 frame, 112 px"


def test_an_axis_that_is_not_known_keeps_its_name() -> None:
    assert axis_name({"axis": "x_new", "also": ["x_fast"]}) == "x_new = X-Fast"


@pytest.mark.parametrize(("value", "text"), [(0.02, "0.02"), (0.020662304, "0.0207"), (10.0, "10"), (1234.0, "1230"),
                                             (1e-7, "0.0000001"), (None, "-"), (0.0, "0"), (100.0, "100")])
def test_a_number_is_plain(value: float | None, text: str) -> None:
    assert number(value) == text


@given(st.floats(1e-9, 1e9))
def test_a_number_is_right_to_its_digits_and_has_no_exponent(value: float) -> None:
    assert float(number(value, 3)) == pytest.approx(value, rel=0.00501)
    assert "e" not in number(value, 3)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (60, "1 min"), (725, "12 min 5 s"),
                                               (12_000, "3 h 20 min"), (86_400, "1 d"), (None, "unknown")])
def test_a_duration_has_two_units_at_most(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_an_accuracy_is_per_cent_with_its_error() -> None:
    assert [percent(0.5), percent(0.5, 0.0123), percent(None, 0.1)] == ["50.0", "50.0 ± 1.2", "-"]


@given(st.text())
def test_a_text_from_a_file_stays_on_one_printable_line(text: str) -> None:
    assert one_line(text).isprintable()


def test_what_held_an_axis_back_and_why_the_winner_won_are_told(fake_search: Make) -> None:
    search = fake_search().basis()
    candidate = {**search.spec("x_fast", "x_fast", search.grown("x_fast"), 1.5), "note": "the clips end there"}
    candidate = {**candidate, "id": "s01-x_fast", "step": 1, "overshoot": True}
    search.event("step_proposed", step=1, candidates=[candidate], excluded=[])
    search.finish(candidate, 0.5)
    search.event("step_selected", step=1, axis="x_fast", id=candidate["id"], scores={})
    search.event("winner_chosen", **{key: candidate[key] for key in ("id", "gflops", "params", "factors", "frames",
                                                                    "resolution", "stride")},
                 accuracy=0.5, stderr=0.02, note="no axis can grow any further", network=candidate)
    text = status_text(summarize(search.paths.root), 160)
    assert "one grid step, over the rate; held back: the clips end there" in text
    assert "Winner: no axis can grow any further" in text
    assert "before the final training" in text
