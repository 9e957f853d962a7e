"""Whole searches by `decide` and the events alone, with made-up accuracies."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expand.config.schema import CRITERIA, GridConfig, LimitsConfig
from expand.expansion.decide import Done, Stuck, Train, TrainFinal, decide
from expand.expansion.events import RunFinished, read_event
from expand.expansion.rules import contract, propose, select
from expand.expansion.state import Candidate, Outcome
from tests.expansion.simulated import chance_of, failing, flat, of_kind, outcome, simulate, small_space, state_of

TARGET = 0.0075
ACCURACY = chance_of(5)  # x_fast, x_bottleneck, x_width, and a contraction of x_width


def ids(events, kind):
    return [event["id"] for event in of_kind(events, kind)]


def winner_of(events):
    (event,) = of_kind(events, "winner_chosen")
    return event


@settings(max_examples=25)
@given(st.integers(0, 1000), st.sampled_from(CRITERIA))
def test_a_search_lands_on_its_target_by_the_documented_decisions(seed, criterion):
    space = small_space(TARGET, criterion=criterion)
    events, action = simulate(space, chance_of(seed))
    assert action == Done() and events[-1] == {"event": "run_finished"}
    state = state_of(events)
    assert [step.number for step in state.steps] == list(range(len(state.path)))
    for before, step in zip(state.path, state.steps[1:]):
        proposal = propose(space, before.factors, step.number)
        assert (step.candidates, step.excluded) == (proposal.candidates, proposal.excluded)
        selection = select(space, before, state.accuracy_of(before), step.candidates,
                           {c.id: state.accuracy_of(c) for c in step.candidates})
        assert step.winner == selection.winner
        assert not space.is_reached_by(before.gflops)
    last = state.path[-1]
    if last.gflops > TARGET:
        assert state.winner == (contract(space, state.path[-2].factors, last) or state.path[-2])
    else:
        assert state.winner == last and space.is_reached_by(last.gflops)
    assert state.winner.gflops <= TARGET


def test_every_candidate_is_trained_once_and_before_it_is_decided_on():
    events, _ = simulate(small_space(TARGET), ACCURACY)
    finished = ids(events, "candidate_finished")
    proposed = [c["id"] for event in of_kind(events, "step_proposed") for c in event["candidates"]]
    contracted = [event["candidate"]["id"] for event in of_kind(events, "contraction_proposed")]
    assert len(contracted) == 1 and finished == proposed + contracted
    kinds = [event["event"] for event in events if event["event"] != "candidate_finished"]
    steps = kinds.count("step_selected")
    assert steps >= 3 and kinds == ["step_proposed", "step_selected"] * steps + [
        "contraction_proposed", "winner_chosen", "final_finished", "run_finished"]


@pytest.mark.parametrize(("space", "accuracy"), [
    (small_space(TARGET), ACCURACY),
    (small_space(TARGET), failing(ACCURACY, "x_depth", "contraction")),
    (small_space(TARGET), chance_of(0)),
])
def test_from_any_cut_a_search_goes_on_to_the_same_events(space, accuracy):
    events, action = simulate(space, accuracy)
    for cut in range(len(events) + 1):
        assert simulate(space, accuracy, events[:cut]) == (events, action), f"cut after {cut} events"


def test_the_outcomes_of_a_step_may_come_in_any_order():
    space, accuracy = small_space(TARGET), chance_of(2)
    events, _ = simulate(space, accuracy)
    first, last = [i for i, event in enumerate(events) if event.get("id", "").startswith("s01-")
                   and event["event"] == "candidate_finished"][::3]
    swapped = list(events)
    swapped[first], swapped[last] = events[last], events[first]
    assert simulate(space, accuracy, swapped[:last + 1])[0][last + 1:] == events[last + 1:]


def test_events_that_decide_nothing_change_nothing():
    events, _ = simulate(small_space(TARGET), ACCURACY)
    state = state_of(events)
    for event in ("candidate_started", "run_interrupted", "run_resumed", "run_failed", "of_the_future"):
        assert read_event({"event": event, "id": "s01-x_fast", "reason": "stopped"}).apply(state) is state


def test_folding_an_event_in_leaves_the_state_before_as_it_was():
    events, _ = simulate(small_space(TARGET), ACCURACY)
    before = state_of(events[:5])
    outcomes, steps = dict(before.outcomes), before.steps
    state_of(events)
    read_event(events[5]).apply(before)
    assert (dict(before.outcomes), before.steps) == (outcomes, steps)


def test_only_what_has_no_outcome_is_trained():
    space = small_space(TARGET)
    events, _ = simulate(space, ACCURACY)
    start = next(i for i, event in enumerate(events) if event.get("step") == 1)
    candidates = [c["id"] for c in events[start]["candidates"]]
    for done in range(len(candidates)):
        action = decide(state_of(events[:start + 1 + done]), space)
        assert isinstance(action, Train) and [c.id for c in action.candidates] == candidates[done:]


def test_a_failed_candidate_is_never_selected_and_the_search_goes_on():
    events, action = simulate(small_space(TARGET), failing(ACCURACY, "x_depth", "x_spatial"))
    assert action == Done()
    for event in of_kind(events, "step_selected"):
        assert event["axis"] not in ("x_depth", "x_spatial")
        assert all((value is None) == ("x_depth" in id_ or "x_spatial" in id_)
                   for id_, value in event["scores"].items())


@pytest.mark.parametrize("step", ["s00-", "s01-", "s02-"])
def test_a_step_in_which_all_failed_is_stuck_until_it_is_retried(step):
    space = small_space(TARGET)
    events, action = simulate(space, failing(ACCURACY, step))
    assert isinstance(action, Stuck) and action.step.number == int(step[1:3])
    assert action.reason.startswith(f"every candidate of step {action.step.number} failed (")
    assert all(f"{c.id}: the loss is not finite" in action.reason for c in action.step.candidates)
    retried = [*events, {"event": "step_retried", "step": action.step.number,
                         "ids": [c.id for c in action.step.candidates]}]
    state = state_of(retried)
    assert decide(state, space) == Train(action.step.candidates)
    assert set(state_of(events).outcomes) - set(state.outcomes) == {c.id for c in action.step.candidates}
    again, last = simulate(space, ACCURACY, retried)
    undisturbed, _ = simulate(space, ACCURACY)
    assert last == Done() and winner_of(again) == winner_of(undisturbed)


def test_where_nothing_fits_between_the_winner_is_the_network_before_with_the_reason():
    space = small_space(0.004, axes=("x_spatial",), grid=GridConfig(resolution=64))
    events, action = simulate(space, ACCURACY)
    (contraction,) = of_kind(events, "contraction_proposed")
    assert action == Done() and contraction["candidate"] is None and contraction["axis"] == "x_spatial"
    winner = winner_of(events)
    assert winner["id"] == "s00-basis" and winner["note"] == contraction["reason"]
    assert winner["note"] == ("no grid value of x_spatial lies between the network before it (0.001952 GFLOPs) and the "
                              "target (0.004 GFLOPs)")
    assert winner["accuracy"] == ACCURACY(Candidate.from_dict(winner["network"]))


def test_where_the_contracted_network_fails_the_winner_is_the_network_before_with_the_reason():
    events, action = simulate(small_space(TARGET), failing(ACCURACY, "contraction"))
    chosen, winner = ids(events, "step_selected"), winner_of(events)
    assert action == Done() and winner["id"] == chosen[-2] and winner["gflops"] < TARGET
    assert winner["note"] == "the contracted network failed: the loss is not finite"


def test_where_no_axis_can_grow_the_winner_carries_every_reason():
    space = small_space(TARGET, axes=("x_spatial", "x_depth"), limits=LimitsConfig(resolution=40, depth=1.0))
    events, action = simulate(space, flat)
    assert action == Done() and of_kind(events, "contraction_proposed") == []
    winner = winner_of(events)
    assert winner["id"] == "s01-x_spatial"
    assert winner["note"] == ("no axis can grow any further (x_spatial: 64 px would pass the limit of 40 px "
                              "(search.limits.resolution); x_depth: γd 2.4 would pass the limit of 1 "
                              "(search.limits.depth))")


@pytest.mark.parametrize(("slack", "contracts"), [(1.0, False), (1.04, False), (1.06, True)])
def test_a_network_within_the_tolerance_below_the_target_ends_the_search(slack, contracts):
    axes = ("x_bottleneck",)
    first = propose(small_space(axes=axes), small_space().basis().factors, 1).candidates[0]
    events, action = simulate(small_space(first.gflops * slack, axes=axes, tolerance=0.05), flat)
    assert action == Done() and bool(of_kind(events, "contraction_proposed")) == contracts
    if not contracts:
        assert winner_of(events)["id"] == first.id and winner_of(events)["note"] is None
        assert ids(events, "step_selected") == ["s00-basis", first.id]


def test_the_winner_is_said_with_its_network_and_its_accuracy_on_val():
    space = small_space(TARGET)
    events, _ = simulate(space, ACCURACY)
    winner, state = winner_of(events), state_of(events)
    assert Candidate.from_dict(winner["network"]) == state.winner
    assert winner["id"] == state.winner.id == "s04-contraction"
    for key in ("gflops", "params", "factors", "frames", "resolution", "stride"):
        assert winner[key] == state.winner.as_dict()[key], key
    assert (winner["accuracy"], winner["stderr"]) == (state.outcomes[winner["id"]].accuracy, 0.02)


def test_the_end_is_the_final_training_then_a_last_word_then_nothing():
    space = small_space(TARGET)
    events, _ = simulate(space, ACCURACY)
    state = state_of(events[:-2])
    assert decide(state, space) == TrainFinal(state.winner)
    assert decide(read_event(events[-2]).apply(state), space) == RunFinished()
    assert decide(state_of(events), space) == Done()


def test_candidates_and_outcomes_read_back_as_they_were_written():
    space = small_space(TARGET)
    for candidate in propose(space, space.basis().factors, 1).candidates:
        assert Candidate.from_dict(candidate.as_dict()) == candidate
    for value in (outcome("s01-x_fast", 0.5), outcome("s01-x_fast", None)):
        assert Outcome.from_dict({**value.as_dict(), "time": 1.0, "event": "candidate_finished"}) == value
