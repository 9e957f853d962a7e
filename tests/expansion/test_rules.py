"""The decisions of a step: what is proposed, what is selected, how the target is landed on."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from expand.config.schema import AXES as AXIS_NAMES
from expand.config.schema import CRITERIA, GridConfig, LimitsConfig, SearchConfig
from expand.errors import UsageError
from expand.expansion.rules import Space, contract, propose, score, select
from expand.space.axes import AXES
from expand.space.complexity import complexity_of
from expand.space.factors import PRESETS, X2D, Factors
from tests.expansion.simulated import costing, paper_space

# FACTS: the published family's path. axis, frames, stride, px, gamma_w, gamma_b, gamma_d, multiply-adds, ratio
PAPER_TABLE = [
    ("x_bottleneck", 1, 28, 112, 1.0, 2.25, 1.0, 40_996_040, 1.984),
    ("x_fast", 2, 14, 112, 1.0, 2.25, 1.0, 80_209_520, 1.957),
    ("x_spatial", 2, 14, 160, 1.0, 2.25, 1.0, 153_402_560, 1.913),
    ("x_depth", 2, 14, 160, 1.0, 2.25, 2.2, 303_559_712, 1.979),
    ("x_temporal", 4, 12, 160, 1.0, 2.25, 2.2, 605_256_512, 1.994),
    ("x_fast", 8, 6, 160, 1.0, 2.25, 2.2, 1_208_650_112, 1.997),
    ("x_temporal", 16, 5, 160, 1.0, 2.25, 2.2, 2_415_437_312, 1.998),
    ("x_spatial", 16, 5, 224, 1.0, 2.25, 2.2, 4_732_468_736, 1.959),
    ("x_spatial", 16, 5, 312, 1.0, 2.25, 2.2, 9_451_559_360, 1.997),
    ("x_depth", 16, 5, 312, 1.0, 2.25, 5.0, 18_367_710_176, 1.943),
    ("x_width", 16, 5, 312, 1.45, 2.25, 5.0, 35_837_627_616, 1.951),
]

OWN = {"x_fast": {"gamma_t", "gamma_tau"}, "x_temporal": {"gamma_t", "gamma_tau"}, "x_spatial": {"gamma_s"},
       "x_depth": {"gamma_d"}, "x_width": {"gamma_w"}, "x_bottleneck": {"gamma_b"}}


def optional(values):
    return st.none() | values


orders = st.permutations(AXIS_NAMES).flatmap(lambda axes: st.integers(1, len(axes)).map(lambda n: tuple(axes[:n])))
grids = st.builds(GridConfig, frames=st.integers(1, 3), resolution=st.sampled_from([4, 8, 24]),
                  width=st.sampled_from([0.01, 0.05, 0.3]), bottleneck=st.sampled_from([0.05, 0.25, 1.0]),
                  depth=st.sampled_from([0.1, 0.5]))
limits = st.builds(LimitsConfig, frames=optional(st.integers(1, 24)), clip_s=optional(st.floats(0.2, 4.0)),
                   resolution=optional(st.integers(32, 160)), width=optional(st.floats(1.0, 2.0)),
                   bottleneck=optional(st.floats(1.0, 3.0)), depth=optional(st.floats(1.0, 3.0)))
configs = st.builds(SearchConfig, target_gflops=st.just(1.0), expansion_rate=st.sampled_from([1.02, 1.3, 2.0, 3.5]),
                    axes=orders, temporal_split=st.sampled_from([0.0, 0.5, 0.75, 1.0]), grid=grids, limits=limits)
spaces = st.builds(Space, configs, st.sampled_from([2, 400]))
networks = st.builds(Factors.of, frames=st.integers(1, 12), stride=st.integers(1, 30), resolution=st.integers(32, 128),
                     width=st.sampled_from([1.0, 1.2, 1.45]), bottleneck=st.sampled_from([1.0, 2.25]),
                     depth=st.sampled_from([1.0, 2.2]))


def gflops(space, factors):
    return complexity_of(factors, space.classes).gflops


def costlier(space, axis, base, upto):
    """The axis's networks that cost more than `base` and at most `upto`, smallest first, and the one after them."""
    found = []
    for k in itertools.count(1):
        grown = AXES[axis].grow(base, k, space.bounds)
        if gflops(space, grown) > upto:
            return found, grown
        if gflops(space, grown) > gflops(space, base):
            found.append(grown)


def test_the_papers_path_comes_out_to_the_last_digit():
    space = paper_space(36.0)
    current = space.basis()
    assert (current.gflops, current.factors, current.axis) == (0.020662304, X2D, "basis")
    for number, (axis, frames, stride, side, width, bottleneck, depth, madds, ratio) in enumerate(PAPER_TABLE, start=1):
        proposal = propose(space, current.factors, number)
        grown = next(c for c in proposal.candidates if axis in (c.axis, *c.also))
        assert grown.factors == Factors.of(frames=frames, stride=stride, resolution=side, width=width,
                                           bottleneck=bottleneck, depth=depth), axis
        assert (grown.gflops, round(grown.ratio, 3), grown.step) == (madds / 1e9, ratio, number)
        assert not grown.overshoot and proposal.excluded == ()
        current = grown
    assert (current.factors, current.params) == (PRESETS["xl"], 11_095_904)


def test_sixteen_frames_contract_to_x3d_s_at_two_gflops():
    space, m_clip = paper_space(2.0), replace(PRESETS["s"], gamma_t=16, gamma_tau=5)
    base = replace(PRESETS["s"], gamma_t=8, gamma_tau=6)
    expanded = next(c for c in propose(space, base, 7).candidates if c.axis == "x_temporal")
    assert expanded.factors == m_clip
    contracted = contract(space, base, expanded)
    assert (contracted.factors, contracted.gflops, contracted.params) == (PRESETS["s"], 1.962892112, 3_794_322)
    assert (contracted.id, contracted.step, contracted.axis) == ("s08-contraction", 8, "x_temporal")


def test_without_a_target_the_way_to_give_one_is_said():
    with pytest.raises(UsageError, match="no compute target is set(?s:.*)--target-gflops"):
        _ = Space(SearchConfig(), 400).target


@given(spaces, networks)
def test_a_candidate_grows_one_axis_and_costs_more(space, current):
    for c in propose(space, current, 3).candidates:
        changed = {name for name, value in c.factors.as_dict().items() if value != current.as_dict()[name]}
        assert changed and changed <= OWN[c.axis]
        assert c.gflops == gflops(space, c.factors) > gflops(space, current)
        assert c.ratio == pytest.approx(c.gflops / gflops(space, current))
        assert (c.id, c.step) == (f"s03-{c.axis}", 3)


@given(spaces, networks)
def test_a_candidate_is_the_largest_allowed_grid_value_within_the_rate(space, current):
    ceiling = space.config.expansion_rate * gflops(space, current)
    for c in propose(space, current, 1).candidates:
        within, after = costlier(space, c.axis, current, ceiling)
        assert AXES[c.axis].refusal(current, c.factors, space.bounds) is None
        assert c.overshoot == (c.gflops > ceiling) == (not within)
        if c.overshoot:
            assert c.factors == after  # the first grid step that changes anything
            continue
        refused = [AXES[c.axis].refusal(current, grown, space.bounds) for grown in within[within.index(c.factors) + 1:]]
        assert None not in refused
        assert c.note == (refused[-1] if refused else None)


@given(spaces, networks)
def test_an_excluded_axis_has_no_allowed_value_and_says_why(space, current):
    ceiling = space.config.expansion_rate * gflops(space, current)
    for exclusion in propose(space, current, 1).excluded:
        within, after = costlier(space, exclusion.axis, current, ceiling)
        reasons = [AXES[exclusion.axis].refusal(current, grown, space.bounds) for grown in within or [after]]
        assert None not in reasons and exclusion.reason == reasons[-1]


@given(spaces, networks)
def test_every_configured_axis_appears_once_and_in_the_configured_order(space, current):
    proposal = propose(space, current, 1)
    first, excluded = [c.axis for c in proposal.candidates], [e.axis for e in proposal.excluded]
    order = space.config.axes
    assert first == [axis for axis in order if axis in first]
    assert excluded == [axis for axis in order if axis in excluded]
    assert all(order.index(c.axis) < order.index(also) for c in proposal.candidates for also in c.also)
    assert sorted([*first, *excluded, *(also for c in proposal.candidates for also in c.also)]) == sorted(order)
    assert len({c.factors for c in proposal.candidates}) == len(first)


@given(spaces, networks)
def test_from_one_frame_the_temporal_axes_are_one_candidate(space, current):
    both = Space(replace(space.config, axes=AXIS_NAMES, limits=LimitsConfig()), space.classes)
    one = replace(current, gamma_t=1, gamma_tau=28)
    temporal = [c for c in propose(both, one, 1).candidates if c.axis in ("x_fast", "x_temporal")]
    assert [(c.axis, c.also) for c in temporal] == [("x_fast", ("x_temporal",))]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_gain_is_valued_as_the_criterion_says_and_a_loss_as_it_is(criterion):
    value = {"gain_per_gflop": 0.1 / 0.02, "gain_per_doubling": 0.05, "accuracy": 0.1}[criterion]
    assert score(criterion, gain=0.1, gflops=0.02, ratio=4.0) == pytest.approx(value)
    assert score(criterion, gain=-0.1, gflops=0.02, ratio=4.0) == -0.1
    assert score(criterion, gain=0.0, gflops=0.02, ratio=4.0) == 0.0


A, B, C = "s01-x_fast", "s01-x_spatial", "s01-x_depth"
BASE_J = 0.5


@pytest.mark.parametrize(("accuracies", "winners"), [
    # winners under gain_per_gflop, gain_per_doubling, accuracy; A costs 1.5, B 1.9 and C 1.9 times the basis's 1.0
    ((0.60, 0.65, 0.60), (A, A, B)),  # dJ/dC 0.20, 0.167; dJ/log2(ratio) 0.171, 0.162
    ((0.60, 0.66, 0.60), (A, B, B)),  # the doubling's value of B: 0.173
    ((0.60, 0.70, 0.60), (B, B, B)),
    ((0.50, 0.50, 0.50), (A, A, A)),  # no gain anywhere: the cheapest
    ((0.45, 0.48, 0.40), (B, B, B)),  # losses only: the smallest, whatever it costs
    ((0.45, 0.45, 0.45), (A, A, A)),  # equal losses: the cheapest
    ((0.49, 0.51, 0.50), (B, B, B)),  # a gain beats none, and none beats a loss
    ((0.40, 0.60, 0.60), (B, B, B)),  # equal in everything: the earlier axis
    ((None, 0.40, 0.45), (C, C, C)),  # a failed candidate does not compete
    ((None, None, 0.10), (C, C, C)),
    ((None, None, None), (None, None, None)),
])
def test_the_winner_under_each_criterion(accuracies, winners):
    base, candidates = rivals()
    outcomes = {c.id: accuracy for c, accuracy in zip(candidates, accuracies, strict=True)}
    for criterion, winner in zip(("gain_per_gflop", "gain_per_doubling", "accuracy"), winners, strict=True):
        selection = select(paper_space(2.0, criterion=criterion), base, BASE_J, candidates, outcomes)
        assert (selection and selection.winner.id) == winner, criterion


def test_equal_scores_go_to_the_higher_accuracy():
    base, candidates = rivals(1.5, 2.0)
    outcomes = {A: 0.625, B: 0.75}  # dJ/dC is 0.25 for both
    selection = select(paper_space(2.0), base, BASE_J, candidates[:2], outcomes)
    assert selection.scores == {A: 0.25, B: 0.25} and selection.winner.id == B


def rivals(*costs):
    space = paper_space(2.0)
    base = replace(space.basis(), gflops=1.0)
    costs = costs or (1.5, 1.9, 1.9)
    return base, tuple(costing(base, axis, cost) for axis, cost in zip(("x_fast", "x_spatial", "x_depth"), costs))


accuracies = st.lists(st.none() | st.sampled_from([0.3, 0.5, 0.6, 0.625, 0.75]), min_size=3, max_size=3)


@given(accuracies, st.lists(st.sampled_from([1.25, 1.5, 2.0]), min_size=3, max_size=3), st.sampled_from(CRITERIA),
       st.permutations([0, 1, 2]))
def test_the_order_of_outcomes_does_not_matter_and_no_candidate_beats_the_winner(values, costs, criterion, order):
    space, (base, candidates) = paper_space(2.0, criterion=criterion), rivals(*costs)
    outcomes = {c.id: value for c, value in zip(candidates, values, strict=True)}
    selection = select(space, base, BASE_J, candidates, outcomes)
    assert selection == select(space, base, BASE_J, candidates, {
        candidates[i].id: outcomes[candidates[i].id] for i in order})
    if selection is None:
        assert values == [None] * 3
        return
    assert {id_ for id_, value in selection.scores.items() if value is None} == {
        c.id for c, value in zip(candidates, values) if value is None}
    best, winner = selection.scores[selection.winner.id], selection.winner
    for i, rival in enumerate(candidates):
        if values[i] is None or rival is winner:
            continue
        mine = (best, outcomes[winner.id], -winner.gflops, -candidates.index(winner))
        assert mine > (selection.scores[rival.id], values[i], -rival.gflops, -i)


@settings(max_examples=60)
@given(spaces, networks, st.floats(0.0, 1.0, exclude_max=True), st.data())
def test_a_contraction_is_the_largest_grid_value_that_fits(space, base, share, data):
    candidates = propose(space, base, 4).candidates
    assume(candidates)
    expanded = data.draw(st.sampled_from(candidates))
    floor = gflops(space, base)
    space = Space(replace(space.config, target_gflops=floor + share * (expanded.gflops - floor)), space.classes)
    assume(floor <= space.target < expanded.gflops)
    axis, contracted = AXES[expanded.axis], contract(space, base, expanded)
    grid = (axis.grow_towards(base, expanded.factors, k, space.bounds) for k in itertools.count(1))
    between = list(itertools.takewhile(lambda f: gflops(space, f) < expanded.gflops, grid)) + [expanded.factors]
    fitting = [f for f in between if floor < gflops(space, f) <= space.target]
    if contracted is None:
        assert fitting == []
        return
    assert contracted.gflops == gflops(space, contracted.factors) == max(gflops(space, f) for f in fitting)
    assert floor < contracted.gflops <= space.target
    assert gflops(space, between[between.index(contracted.factors) + 1]) > space.target
    assert (contracted.axis, contracted.step, contracted.id) == (expanded.axis, 5, "s05-contraction")
    clip_s = space.config.limits.clip_s
    assert clip_s is None or contracted.factors.span_s <= max(clip_s, base.span_s)


def test_a_contracted_clip_stays_within_the_source_clips():
    space = paper_space(2.15, limits=LimitsConfig(clip_s=2.5))
    base = replace(PRESETS["s"], gamma_t=8, gamma_tau=6)
    expanded = next(c for c in propose(space, base, 7).candidates if c.axis == "x_temporal")
    contracted = contract(space, base, expanded)  # 16 x 5 in 14 frames would be 14 x 6, 2.6 s
    assert (contracted.factors.frames, contracted.factors.stride) == (14, 5)


def test_a_network_exactly_on_the_target_fits_it():
    space = paper_space(1.962892112)
    base = replace(PRESETS["s"], gamma_t=8, gamma_tau=6)
    expanded = next(c for c in propose(space, base, 7).candidates if c.axis == "x_temporal")
    assert contract(space, base, expanded).factors == PRESETS["s"]


def test_a_refused_value_below_the_proposed_one_does_not_hold_the_axis_back():
    space, base = paper_space(36.0, axes=("x_fast",)), replace(PRESETS["s"], gamma_t=16, gamma_tau=5)
    bounds = space.bounds
    assert AXES["x_fast"].refusal(base, AXES["x_fast"].grow(base, 1, bounds), bounds)  # 17 x 5 is no higher rate
    (candidate,) = propose(space, base, 8).candidates
    assert (candidate.factors.frames, candidate.factors.stride, candidate.note) == (32, 3, None)
