"""How sure a step's choice is, and that ties are repeated with new seeds within their budget."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from expand.config.schema import CRITERIA, SearchConfig
from expand.expansion.confidence import compare, decode_right, encode_right, mcnemar, pooled_seed_sd
from expand.expansion.decide import Done
from expand.expansion.events import StepRepeated, StepSelected, read_event
from expand.expansion.state import Candidate, Outcome, original_id

from .simulated import outcome, paper_space, simulate, small_space, state_of

CLIPS = 400


def seen(id_: str, right: list[bool]) -> Outcome:
    """A finished training that got these clips right."""
    accuracy = sum(right) / len(right)
    return replace(outcome(id_, accuracy), stderr=(accuracy * (1 - accuracy) / len(right)) ** 0.5,
                   right=encode_right(right))


def candidates(*costs: float) -> tuple[Candidate, list[Candidate]]:
    base = replace(paper_space(2.0).basis(), gflops=1.0)
    return base, [replace(base, id=f"s01-{name}", step=1, axis=name, gflops=cost)
                  for name, cost in zip(("x_fast", "x_spatial", "x_depth", "x_width"), costs, strict=False)]


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_which_clips_were_right_comes_back_from_the_journal(right):
    assert decode_right(encode_right(right), len(right)) == tuple(right)


@pytest.mark.parametrize("for_one, for_other, both", [(10, 2, 50), (3, 3, 0), (1, 0, 5), (0, 0, 9)])
def test_mcnemar_is_the_binomial_test_of_the_clips_that_one_alone_gets_right(for_one, for_other, both):
    one = [True] * for_one + [False] * for_other + [True] * both
    other = [False] * for_one + [True] * for_other + [True] * both
    expected = (binomtest(for_one, for_one + for_other, 0.5, alternative="greater").pvalue
                if for_one + for_other else 1.0)
    assert mcnemar([seen("a", one)], [seen("b", other)], len(one)) == pytest.approx(expected)


def verdict_for(accuracies: list[float], *, seed_sd: float, criterion: str = "accuracy", costs=(2.0, 2.0, 2.0)):
    base, rivals = candidates(*costs)
    shares = random.Random(0)
    trainings = {c: [seen(c.id, [shares.random() < accuracy for _ in range(CLIPS)])]
                 for c, accuracy in zip(rivals, accuracies, strict=True)}
    leader = max(rivals, key=lambda c: trainings[c][0].accuracy)
    return compare(SearchConfig(criterion=criterion, seed_sd=seed_sd), CLIPS, base, 0.3, trainings, leader)


def test_a_clear_lead_is_decided_and_a_small_one_is_tied():
    assert not verdict_for([0.9, 0.5, 0.4], seed_sd=0.03).tied
    assert len(verdict_for([0.60, 0.59, 0.4], seed_sd=0.03).tied) == 1


def test_the_noise_of_the_seeds_ties_what_the_clips_alone_would_decide():
    assert not verdict_for([0.8, 0.6, 0.4], seed_sd=0.0).tied
    assert verdict_for([0.8, 0.6, 0.4], seed_sd=0.2).tied


def test_a_lead_counts_by_what_it_cost():
    """0.8 against 0.6 is a clear lead at equal cost, and none where it cost more than twice as much."""
    cheap = verdict_for([0.8, 0.6], seed_sd=0.01, criterion="gain_per_gflop", costs=(2.0, 2.0))
    dear = verdict_for([0.8, 0.6], seed_sd=0.01, criterion="gain_per_gflop", costs=(2.7, 2.0))
    assert not cheap.tied and dear.tied


def test_repeats_correct_the_noise_that_is_reckoned_with():
    steady = [outcome("a", 0.5), outcome("a-r1", 0.5), outcome("a-r2", 0.5)]
    wild = [outcome("a", 0.3), outcome("a-r1", 0.9), outcome("a-r2", 0.5)]
    assert pooled_seed_sd(0.03, [steady])[0] < 0.03 < pooled_seed_sd(0.03, [wild])[0]


def test_with_equal_networks_few_steps_are_called_decided():
    """At most 5 % of steps between equals may be called decided; the seeds scatter as the configuration says."""
    base, rivals = candidates(2.0, 2.0, 2.0, 2.0)
    decided, draws = 0, random.Random(3)
    for _ in range(300):
        trainings = {}
        for c in rivals:
            share = min(0.99, max(0.01, draws.gauss(0.6, 0.05)))
            trainings[c] = [seen(c.id, [draws.random() < share for _ in range(CLIPS)])]
        leader = max(rivals, key=lambda c: trainings[c][0].accuracy)
        config = SearchConfig(criterion="accuracy", seed_sd=0.05)
        decided += not compare(config, CLIPS, base, 0.3, trainings, leader).tied
    assert decided <= 0.05 * 300


@given(st.permutations([0, 1, 2]), st.sampled_from(CRITERIA))
def test_the_order_of_outcomes_does_not_matter(order, criterion):
    base, rivals = candidates(2.0, 1.8, 1.9)
    right = [[(i * 7 + clip * 13) % (11 + i) < 6 for clip in range(CLIPS)] for i in range(3)]
    trainings = {c: [seen(c.id, right[i])] for i, c in enumerate(rivals)}
    config = SearchConfig(criterion=criterion)
    leader = rivals[0]
    one = compare(config, CLIPS, base, 0.3, trainings, leader)
    other = compare(config, CLIPS, base, 0.3, {rivals[i]: trainings[rivals[i]] for i in order}, leader)
    assert one.p_values == other.p_values and set(one.tied) == set(other.tied)


def rising(candidate: Candidate) -> float:
    """A little better the more it costs: every step is tied."""
    return 0.5 + candidate.gflops


def test_ties_are_repeated_with_new_ids_within_the_budget_and_the_mean_counts():
    def accuracy(candidate: Candidate) -> float:
        return 0.9 if candidate.id in ("s01-x_depth-r1", "s01-x_depth-r2") else 0.5

    events, last = simulate(small_space(repeat_budget=2.5), accuracy)
    assert isinstance(last, Done)
    repeats = [read_event(event) for event in events if event["event"] == StepRepeated.kind]
    assert repeats and all(c.id != original_id(c.id) for event in repeats for c in event.candidates)
    state = state_of(events)
    for step in state.steps:
        assert sum(c.gflops for c in step.repeats) <= 2.5 * sum(c.gflops for c in step.candidates)
    first = state.steps[1]
    assert first.selected == "s01-x_depth" and state.accuracy_of(first.winner) > 0.6


def test_without_a_budget_nothing_is_repeated_and_the_step_says_that_it_is_tied():
    events, _ = simulate(small_space(), rising)
    assert not any(event["event"] == StepRepeated.kind for event in events)
    selected = [read_event(event) for event in events if event["event"] == StepSelected.kind]
    assert any(event.tied for event in selected) and all(event.tied is not None for event in selected)


def test_a_decided_step_is_not_repeated():
    def accuracy(candidate: Candidate) -> float:
        return 0.95 if candidate.axis == "x_depth" else 0.2

    events, _ = simulate(small_space(repeat_budget=5), accuracy)
    repeated = {read_event(event).step for event in events if event["event"] == StepRepeated.kind}
    assert 1 not in repeated
