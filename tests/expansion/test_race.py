"""A step's race: candidates that are far behind at a rung are stopped, and whatever happens decides the same again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expand.expansion.decide import Done, Stuck, Train, decide
from expand.expansion.events import RunStarted, read_event
from expand.expansion.rules import find_outpaced, propose
from expand.expansion.state import Candidate, SearchState
from expand.untrusted_input import Wrong

from .simulated import Event, chance_of, of_kind, simulate, small_space, state_of

RUNGS = (0.3, 0.5)


def growing(candidate: Candidate, share: float) -> float:
    """Each candidate learns evenly; X-Fast ends at 0.9, X-Spatial at 0.8, the others at 0.2."""
    return share * (0.9 if "x_fast" in candidate.id else 0.8 if "x_spatial" in candidate.id else 0.2)


def race(accuracy: Any = growing, **options: Any) -> tuple[list[Event], Done | Stuck]:
    return simulate(small_space(criterion="accuracy", **{"rungs": RUNGS, **options}), accuracy)


def test_those_far_behind_at_a_rung_are_stopped_and_the_others_go_on_to_the_end():
    events, last = race()
    assert isinstance(last, Done)
    state, first = state_of(events), state_of(events).steps[1]
    assert {c.id for c in first.candidates if state.outcomes[c.id].state == "finished"} == {"s01-x_fast",
                                                                                           "s01-x_spatial"}
    stopped = of_kind(events, "candidates_stopped")[0]
    assert stopped["leader"] == "s01-x_fast" == first.selected
    assert all(state.outcomes[id_].share == 0.3 for id_ in stopped["ids"])
    assert first.scores["s01-x_depth"] is None and "s01-x_depth" not in first.p_values


def test_without_rungs_no_candidate_pauses():
    events, _ = race(rungs=())
    assert {event["state"] for event in of_kind(events, "candidate_finished")} == {"finished"}
    assert not of_kind(events, "candidates_stopped")


def test_a_margin_of_everything_stops_nobody():
    events, _ = race(race_margin=1.0)
    assert not of_kind(events, "candidates_stopped")
    assert {event["share"] for event in of_kind(events, "candidate_finished")} == {None, *RUNGS}


def test_where_all_that_were_ahead_fail_the_best_of_the_stopped_goes_on():
    def accuracy(candidate: Candidate, share: float) -> float | None:
        ahead = "x_fast" in candidate.id or "x_spatial" in candidate.id
        return None if ahead and share == 1 else growing(candidate, share) + 0.01 * ("x_depth" in candidate.id)

    events, last = race(accuracy)
    assert isinstance(last, Done)
    first = state_of(events).steps[1]
    assert first.selected == "s01-x_depth"


def test_the_search_is_stuck_only_when_the_stopped_have_failed_too():
    events, last = race(lambda candidate, share: None if share == 1 and candidate.step else growing(candidate, share))
    assert isinstance(last, Stuck)
    state = state_of(events)
    assert {state.outcomes[c.id].state for c in last.step.candidates} == {"failed"}


@given(st.integers(0, 40), st.sampled_from([0.0, 0.05, 0.3]), st.data())
def test_a_search_that_was_cut_anywhere_in_its_race_ends_with_the_same_events(seed, margin, data):
    chance = chance_of(seed)

    def accuracy(candidate: Candidate, share: float) -> float:
        return max(0.0, min(1.0, share * chance(candidate)))

    space = small_space(rungs=RUNGS, race_margin=margin)
    events, _ = simulate(space, accuracy)
    cut = data.draw(st.integers(0, len(events)))
    assert simulate(space, accuracy, events[:cut])[0] == events


@given(st.permutations(range(6)), st.integers(0, 40))
def test_the_order_of_outcomes_does_not_matter(order, seed):
    space, chance = small_space(rungs=RUNGS), chance_of(seed)
    candidates = propose(space, space.basis().factors, 1).candidates
    accuracies = {c: max(0.0, chance(c)) for c in candidates}
    shuffled = {candidates[i]: accuracies[candidates[i]] for i in order if i < len(candidates)}
    one, other = (find_outpaced(space, space.basis(), 0.3, each) for each in (accuracies, shuffled))
    assert set(one[1]) == set(other[1])


def in_race() -> tuple[SearchState, list[str]]:
    """A state in which all candidates of the first step are paused at the first rung, and their ids."""
    events, _ = race()
    before = events[:next(i for i, event in enumerate(events) if event["event"] == "candidates_stopped")]
    started = RunStarted(name="race", target_gflops=1.0, criterion="accuracy", classes=("a", "b"), splits={},
                         fingerprint="", config="")
    state = replace(state_of(before), started=started)
    return state, [c.id for c in state.steps[-1].candidates]


def test_all_reach_a_rung_before_one_is_stopped():
    state, ids = in_race()
    some = replace(state, outcomes={id_: state.outcomes[id_] for id_ in (state.steps[0].selected, ids[0])})
    action = decide(some, small_space(criterion="accuracy", rungs=RUNGS))
    assert isinstance(action, Train) and action.until == 0.3 and {c.id for c in action.candidates} == set(ids[1:])


@pytest.mark.parametrize(("change", "words"), [
    (lambda ids: {"ids": ids}, "leads"), (lambda ids: {"leader": "s00-basis"}, "is not of step 1"),
    (lambda ids: {"ids": ["s00-basis"]}, "is not of step 1"), (lambda ids: {"step": 2}, "is not the one in work")])
def test_a_journal_cannot_stop_what_is_in_no_race(change, words):
    state, ids = in_race()
    fields = {"event": "candidates_stopped", "step": 1, "leader": ids[0], "ids": ids[2:]}
    read_event(fields).check_order(state)
    with pytest.raises(Wrong, match=words):
        read_event({**fields, **change(ids)}).check_order(state)


@pytest.mark.parametrize(("fields", "words"), [
    ({"share": 0.3}, "was further before"), ({"share": 0.1}, "was further before"),
    ({"state": "stopped"}, "stopped by an event of its own"), ({"share": 1.0}, "not a part of the training"),
    ({"share": 0.0}, "not a part of the training"), ({"share": None}, "not a part of the training")])
def test_a_journal_cannot_take_a_training_back(fields, words):
    state, ids = in_race()
    paused = {"event": "candidate_finished", **state.outcomes[ids[0]].as_dict()}
    read_event({**paused, "share": 0.5}).check_order(state)
    with pytest.raises(Wrong, match=words):
        read_event({**paused, **fields}).check_order(state)


def test_what_is_measured_on_the_way_says_how_far_it_was():
    state, ids = in_race()
    outcome = state.outcomes[ids[0]]
    line = read_event({"event": "candidate_finished", **outcome.as_dict()}).line()
    assert "after 30 % of its training" in line
    with pytest.raises(Wrong, match="'share' is missing"):
        read_event({key: value for key, value in {"event": "candidate_finished", **outcome.as_dict()}.items()
                    if key != "share"})
