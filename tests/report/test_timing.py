"""How long a run was at work, also where its clock was set meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expand.expansion.events import CandidateFinished, CandidateStarted, Event, RunResumed, RunStarted
from expand.expansion.state import Outcome
from expand.report.summary import elapsed_s

EVENTS = {
    "run_started": RunStarted(name="mine", target_gflops=1.0, criterion="accuracy", classes=("a",), splits={},
                              fingerprint="", config=""),
    "run_resumed": RunResumed(), "candidate_started": CandidateStarted(id="s00-basis"),
    "candidate_finished": CandidateFinished(outcome=Outcome("s00-basis", "failed", "the loss is not finite"))}


def at(*times: tuple[str, float]) -> list[Event]:
    """Events of those kinds at those times."""
    return [replace(EVENTS[kind], time=time) for kind, time in times]


def test_the_time_between_two_starts_counts_up_to_the_last_event_before_the_second():
    events = at(("run_started", 100), ("candidate_started", 110), ("run_resumed", 1000), ("candidate_finished", 1030))
    assert elapsed_s(events, None) == 40
    assert elapsed_s(events, 1100) == 110
    assert elapsed_s([], 5) == 0


def test_a_clock_that_was_set_back_costs_the_time_between_two_events_and_no_more():
    events = at(("run_started", 1000), ("candidate_started", 1010), ("candidate_finished", 20),
                ("candidate_started", 30), ("candidate_finished", 90))
    assert elapsed_s(events, None) == 10 + 70
    assert elapsed_s(events, 100) == 90
    assert elapsed_s(events, 50) == 80, "set back again since the last event"


@given(st.lists(st.tuples(st.sampled_from(["run_resumed", "candidate_started", "candidate_finished"]),
                          st.floats(-1e12, 1e12)), max_size=20),
       st.one_of(st.none(), st.floats(-1e12, 1e12)))
def test_no_clock_makes_it_negative_or_shrinks_it_with_another_event(more, now):
    events = at(("run_started", 0.0), *more)
    spent = [elapsed_s(events[:count], None) for count in range(1, len(events) + 1)]
    assert spent == sorted(spent) and spent[0] == 0
    assert elapsed_s(events, now) >= spent[-1]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20))
def test_with_a_clock_that_goes_right_it_is_the_time_from_the_first_event_to_the_last(times):
    times = sorted(times)
    events = at(("run_started", times[0]), *(("candidate_finished", time) for time in times[1:]))
    assert elapsed_s(events, None) == pytest.approx(times[-1] - times[0], abs=1e-6)
