"""The replay of choices over the tables in docs/methods, and the networks that a found one is compared with."""

import pytest

from expand.config import load_config
from expand.expansion.rules import Space

DRAWS = 60


@pytest.fixture(scope="module")
def replay(scripts):
    return scripts("replay_choices")


@pytest.fixture(scope="module")
def steps(replay):
    """The steps of every table."""
    assert replay.TABLES
    return [step for path in replay.TABLES for step in replay.steps_of(path)]


@pytest.fixture(scope="module")
def figures(replay, steps):
    """The columns of a way of choosing, by its name."""
    ways = replay.ways()
    return lambda name: replay.figures_of(steps, ways[name], DRAWS)


def test_every_step_has_all_of_its_candidates_with_five_seeds_and_whole_curves(steps):
    assert len(steps) >= 3
    for step in steps:
        for name in (step.base_name, *step.candidates):
            assert len(step.lines[name]) >= 5
            assert all(len(line["curve"]) == 20 and line["curve"][-1]["right"] == line["right"]
                       for line in step.lines[name])


def test_the_way_that_is_shipped_seldom_errs_and_what_it_calls_decided_holds(figures):
    found = figures("all to their end")
    assert found["speed_up"] == pytest.approx(1.0)
    assert found["right"] > 0.85 and found["regret"] < 2
    assert found["wrong"] <= 0.05 and found["same"] >= 0.9


def test_the_race_is_faster_for_half_a_point_and_better_than_the_plain_baseline(figures):
    race, full = figures("race: rungs .3 .5, margin .1"), figures("all to their end")
    baseline = figures("a tenth, then the best two")
    assert race["speed_up"] > 1.6 and race["regret"] <= full["regret"] + 0.5
    assert race["regret"] < baseline["regret"] - 3


def test_a_draw_without_chance_chooses_what_the_table_says(replay, steps):
    """Where each network has one seed, what is chosen is what that seed's accuracies select."""
    for step in steps:
        draw = replay.Draw(step, dict.fromkeys(step.lines, 0))
        played = replay.play(draw, {})
        assert played.chosen == step.choose({name: draw.accuracy(name) for name in step.candidates},
                                            draw.accuracy(step.base_name))
        assert played.cost == pytest.approx(step.full_cost)


def test_rivals_cost_what_the_found_network_costs(scripts):
    method = scripts("bench_method")
    space = Space(load_config("quickstart", ()).search, 16)
    gflops = space.complexity(method.network_of(space, "sft*").factors)
    found = dict(method.rivals(space, gflops, 5))
    assert len(found) == len(set(found.values())) == 9
    assert all(abs(space.complexity(factors) / gflops - 1) <= method.WITHIN for factors in found.values())
    basis = space.basis().factors
    assert found["width"].gamma_w > basis.gamma_w and found["width"].resolution == basis.resolution
    assert found["resolution"].resolution > basis.resolution and found["resolution"].gamma_w == basis.gamma_w
