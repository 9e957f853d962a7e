"""The recipe, scaled to a data set of any size."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from expand.config.schema import DataConfig, RecipeConfig
from expand.data import PreparedData
from expand.data.loading.loader import TrainBatches
from expand.training.job import (
    BATCHES,
    EPOCHS,
    REFERENCE_BATCH,
    UPDATES,
    learning_rate,
    resolve_recipe,
    updates_per_epoch,
)

SETTLED = RecipeConfig(batch_size=128, epochs=30)
recipes = st.builds(RecipeConfig, batch_size=st.integers(1, 512), epochs=st.just(1), lr=st.floats(0.01, 1.0),
                    lr_scaling=st.just("linear"), warmup_share=st.floats(0.0, 1.0), warmup_start=st.floats(0.0, 1.0))


def batches_of(clips, batch_size):
    """Batches of an epoch as the loader makes them, without reading a clip."""
    data = PreparedData(("a", "b"), (None,) * clips, (), (), (), 1.0, "")
    return len(TrainBatches(data, frames=1, stride=1, resolution=32, batch_size=batch_size, seed=0,
                            config=DataConfig()).epoch(0))


@given(st.integers(1, 300), st.integers(1, 140))
def test_an_epoch_has_as_many_updates_as_the_loader_has_batches(clips, batch_size):
    assert updates_per_epoch(clips, batch_size) == batches_of(clips, batch_size)


@pytest.mark.parametrize(("clips", "batch_size", "updates"), [
    (16, 8, 2), (17, 8, 2), (18, 8, 3), (1, 8, 1), (7, 8, 1), (5, 1, 5), (9, 9, 1), (10, 9, 1)])
def test_a_last_batch_of_one_clip_is_left_out(clips, batch_size, updates):
    assert updates_per_epoch(clips, batch_size) == batches_of(clips, batch_size) == updates


@pytest.mark.parametrize(("clips", "batch_size", "epochs"), [
    (640, 80, 250),  # 8 updates an epoch
    (10, 8, 256),
    (100, 12, 223),  # 9 updates an epoch, the last batch of 4 among them
    (5_000, 128, 50),
    (240_000, 128, 30),  # Kinetics: the bounds of both
])
def test_open_values_are_settled_for_the_data_set(clips, batch_size, epochs):
    resolved = resolve_recipe(RecipeConfig(), clips)
    assert (resolved.batch_size, resolved.epochs) == (batch_size, epochs)


@given(st.integers(1, 300_000))
def test_about_two_thousand_updates_are_made_within_the_bounds(clips):
    resolved = resolve_recipe(RecipeConfig(), clips)
    assert BATCHES[0] <= resolved.batch_size <= BATCHES[1] and EPOCHS[0] <= resolved.epochs <= EPOCHS[1]
    updates = resolved.epochs * updates_per_epoch(clips, resolved.batch_size)
    if EPOCHS[0] < resolved.epochs < EPOCHS[1]:
        assert UPDATES <= updates < UPDATES + updates_per_epoch(clips, resolved.batch_size)


@given(st.integers(1, 300_000), st.integers(1, 512), st.integers(1, 999))
def test_what_is_given_is_kept(clips, batch_size, epochs):
    given_both = RecipeConfig(batch_size=batch_size, epochs=epochs, lr=0.3)
    assert resolve_recipe(given_both, clips) == given_both
    assert resolve_recipe(RecipeConfig(batch_size=batch_size), clips).batch_size == batch_size
    assert resolve_recipe(RecipeConfig(epochs=epochs), clips).epochs == epochs
    resolved = resolve_recipe(RecipeConfig(), clips)
    assert resolve_recipe(resolved, clips * 7) == resolved


def test_the_schedule_is_the_papers_at_its_batch():
    updates = 25_600
    rates = [learning_rate(update, updates, SETTLED) for update in range(updates)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(0.0953, abs=1e-4)  # the cosine's value where the warm-up of 14 % ends
    assert rates.index(max(rates)) == pytest.approx(0.14 * updates, abs=1)
    assert learning_rate(updates // 2, updates, SETTLED) == pytest.approx(0.05)
    assert 0 < rates[-1] < 1e-6


@given(recipes, st.integers(2, 500))
def test_the_rate_starts_at_the_warm_ups_start_and_ends_near_zero(recipe, updates):
    peak = recipe.lr * recipe.batch_size / REFERENCE_BATCH
    if recipe.warmup_share > 0:
        assert learning_rate(0, updates, recipe) == pytest.approx(recipe.warmup_start * peak)
    else:
        assert learning_rate(0, updates, recipe) == pytest.approx(peak)
    rates = [learning_rate(update, updates, recipe) for update in range(updates)]
    assert all(0 <= rate <= peak * (1 + 1e-9) for rate in rates)
    if recipe.warmup_share <= 0.9:
        assert learning_rate(updates, updates, recipe) == pytest.approx(0.0, abs=1e-12)


@given(recipes, st.integers(50, 500))
def test_the_rate_never_jumps(recipe, updates):
    warmup = recipe.warmup_share * updates
    assume(warmup == 0 or warmup >= 10)  # fewer updates than this are a jump by intention
    peak = recipe.lr * recipe.batch_size / REFERENCE_BATCH
    rates = [learning_rate(update, updates, recipe) for update in range(updates + 1)]
    steepest = max(2 / updates, 1 / warmup if warmup else 0)  # of the cosine (pi / 2) and of the line
    assert max(abs(b - a) for a, b in itertools.pairwise(rates)) <= peak * steepest * (1 + 1e-6)


@given(st.integers(1, 512))
def test_the_rate_scales_with_the_batch_where_that_is_asked_for(batch_size):
    recipe = RecipeConfig(batch_size=batch_size, epochs=1, lr_scaling="linear")
    for update in (0, 7, 14, 60, 99):
        assert learning_rate(update, 100, recipe) == pytest.approx(
            learning_rate(update, 100, SETTLED) * batch_size / 128)
        assert learning_rate(update, 100, replace(recipe, lr_scaling="none")) == learning_rate(update, 100, SETTLED)
