"""Forecasts: targets that leave nothing to search, paths of a plan, counts and costs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expand.config.schema import GridConfig, LimitsConfig
from expand.errors import UsageError
from expand.expansion.forecast import check_target, follow, forecast, largest_resolution
from expand.expansion.rules import propose
from expand.space.axes import AXES
from expand.space.factors import PRESETS
from tests.expansion.simulated import PAPER_PATH, chance_of, flat, paper_space, simulate, small_space, state_of


def refusal(call, *args):
    with pytest.raises(UsageError) as error:
        call(*args)
    assert error.value.exit_code == 2
    return str(error.value)


def test_a_target_below_the_basis_gets_a_clear_answer():
    assert refusal(check_target, paper_space(0.01)) == (
        "search.target_gflops: the target of 0.01 GFLOPs is below the basis, which costs 0.02066\n"
        "  a smaller basis makes room: --set search.basis.resolution=R, or raise the target above 0.02175")


@pytest.mark.parametrize("target", [0.020662304, 0.021])
def test_a_target_that_the_basis_meets_gets_a_clear_answer(target):
    assert refusal(check_target, paper_space(target)) == (
        f"search.target_gflops: the basis already meets the target: it costs 0.02066 of {target:g} GFLOPs\n"
        "  a smaller basis makes room: --set search.basis.resolution=R, or raise the target above 0.02175")


def test_the_target_that_the_answer_names_is_accepted():
    check_target(paper_space(0.02176))


def test_the_papers_path_is_planned_without_contraction_at_36_gflops():
    plan = follow(paper_space(36.0), PAPER_PATH)
    assert [c.axis for c in plan.steps] == list(PAPER_PATH)
    assert (plan.steps[-1].factors, plan.steps[-1].gflops) == (PRESETS["xl"], 35.837627616)
    assert (plan.contraction, plan.next) == (None, None)


def test_the_first_seven_steps_contract_to_x3d_s_at_2_gflops():
    plan = follow(paper_space(2.0), PAPER_PATH[:7])
    assert (plan.contraction.factors, plan.contraction.gflops) == (PRESETS["s"], 1.962892112)
    assert (len(plan.steps), plan.contraction.axis, plan.next) == (7, "x_temporal", None)


def test_a_path_longer_than_needed_ends_where_the_target_is_passed():
    assert follow(paper_space(2.0), PAPER_PATH) == follow(paper_space(2.0), PAPER_PATH[:7])


@pytest.mark.parametrize("length", [0, 1, 4])
def test_a_path_that_ends_early_leaves_the_candidates_of_the_next_step(length):
    space = paper_space(2.0)
    plan = follow(space, PAPER_PATH[:length])
    last = plan.steps[-1] if length else plan.basis
    assert len(plan.steps) == length and plan.contraction is None
    assert plan.next == propose(space, last.factors, length + 1)


def test_an_axis_that_shares_its_network_may_be_named_by_either_name():
    fast, temporal = (follow(paper_space(36.0), [axis]).steps[0] for axis in ("x_fast", "x_temporal"))
    assert (temporal.axis, temporal.also, temporal.id) == ("x_temporal", ("x_fast",), "s01-x_temporal")
    assert (fast.axis, fast.also, fast.factors) == ("x_fast", ("x_temporal",), temporal.factors)


def test_an_unknown_axis_is_named_with_its_place_and_a_suggestion():
    assert refusal(follow, paper_space(36.0), ["x_fast", "x_widht"]) == (
        "--path, step 2: no axis is called 'x_widht'\n  did you mean 'x_width'?")
    assert refusal(follow, paper_space(36.0), ["time"]) == (
        f"--path, step 1: no axis is called 'time'\n  the axes: {', '.join(AXES)}")


def test_an_axis_that_cannot_grow_is_refused_with_its_reason():
    space = paper_space(36.0, limits=LimitsConfig(resolution=160), axes=("x_spatial", "x_fast"))
    assert refusal(follow, space, ["x_spatial", "x_fast", "x_spatial"]) == (
        "--path, step 3: x_spatial cannot grow: 224 px would pass the limit of 160 px (search.limits.resolution)")
    assert refusal(follow, space, ["x_depth"]) == "--path, step 1: x_depth cannot grow: it is not among search.axes"


@pytest.mark.parametrize("axis", ["x_depth", "x_bottleneck", "x_spatial", "x_width"])
def test_with_one_axis_the_forecast_is_the_search(axis):
    space = small_space(0.0075, axes=(axis,))
    events, _ = simulate(space, flat)
    state = state_of(events)
    trained = [step.candidates for step in state.steps]
    if state.contraction and state.contraction.candidate:
        trained.append((state.contraction.candidate,))
    assert forecast(space) == trained and len(trained) >= 3


@settings(max_examples=20)
@given(st.floats(0.0021, 0.05))
def test_a_forecast_starts_with_the_basis_and_passes_the_target_once(target):
    space = small_space(target)
    steps = forecast(space)
    assert steps[0] == (space.basis(),) and steps[1] == propose(space, space.basis().factors, 1).candidates
    contracted = [c for step in steps for c in step if c.id.endswith("-contraction")]
    assert len(contracted) <= 1 and all(c.gflops <= target for c in contracted)
    growing = steps[1:-1] if contracted else steps[1:]
    assert [step[0].step for step in growing] == list(range(1, len(growing) + 1))
    assert not any(space.is_reached_by(min(c.gflops for c in step)) for step in growing[:-1])


def test_the_forecast_count_is_near_that_of_any_search():
    space = small_space(0.0075)
    expected = sum(map(len, forecast(space)))
    for seed in range(20):
        events, _ = simulate(space, chance_of(seed))
        assert abs(sum(event["event"] == "candidate_finished" for event in events) - expected) <= 6


def test_a_forecast_from_a_network_on_leaves_out_what_is_behind():
    space = paper_space(2.0)
    plan = follow(space, PAPER_PATH[:6])
    steps = forecast(space, plan.steps[-1])
    assert steps[0] == plan.next.candidates and len(steps) == 2 and steps[1][0].id == "s08-contraction"


def test_a_forecast_ends_where_no_axis_can_grow():
    space = small_space(1.0, axes=("x_spatial",), limits=LimitsConfig(resolution=40))
    assert [[c.id for c in step] for step in forecast(space)] == [["s00-basis"], ["s01-x_spatial"]]


@settings(max_examples=30)
@given(st.integers(0, 1000), st.floats(0.0021, 0.02), st.sampled_from([8, 20, 64]),
       st.none() | st.integers(32, 100))
def test_no_search_tries_a_larger_resolution_than_foreseen(seed, target, grid, limit):
    space = small_space(target, grid=GridConfig(resolution=grid), limits=LimitsConfig(resolution=limit))
    events, _ = simulate(space, chance_of(seed))
    state = state_of(events)
    tried = max(c.factors.resolution for step in state.steps for c in step.candidates)
    assert tried <= largest_resolution(space) <= (limit or 1000)


def test_the_largest_resolution_is_no_larger_than_it_needs_to_be():
    space = small_space(0.0075, axes=("x_spatial",), tolerance=0.0, expansion_rate=1.5)
    events, _ = simulate(space, flat)
    tried = max(c.factors.resolution for step in state_of(events).steps for c in step.candidates)
    assert tried <= largest_resolution(space) <= tried + 32


def test_without_x_spatial_frames_are_kept_for_the_basis():
    assert largest_resolution(paper_space(36.0, axes=("x_fast", "x_depth"))) == 112
