"""Batch norm never meets a single value a channel: such a training is refused, or split so that it does not."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from expand.config.schema import Config, GridConfig, RecipeConfig, SearchConfig
from expand.errors import CandidateFailed, UsageError
from expand.expansion.rules import Space
from expand.model import X3D
from expand.run.resolve import check_recipes
from expand.rundir.paths import CandidatePaths
from expand.space.factors import Factors
from expand.space.geometry import Geometry
from expand.training.candidate import train_candidate
from expand.training.job import Hooks, Job, check_batches, max_micro_batches
from expand.training.loop import Training
from tests.training.small import CONFIG, RECIPE, RUNTIME, network

ONE_POSITION = network("small", frames=1)
"""One frame of 32 px: one value a channel and clip in the last layers."""


def geometry_of(frames, resolution):
    return Geometry.of(Factors.of(frames=frames, stride=1, resolution=resolution, width=0.5, depth=0.4), 2)


@pytest.mark.parametrize(("frames", "resolution", "least"), [(1, 32, 2), (1, 33, 1), (2, 32, 1), (1, 112, 1)])
def test_the_rule_is_what_torch_says(frames, resolution, least):
    geometry = geometry_of(frames, resolution)
    assert geometry.least_clips == least
    model, clip = X3D(geometry).train(), torch.zeros(1, 3, frames, resolution, resolution)
    if least == 1:
        model(clip)
    else:
        with pytest.raises(ValueError, match="more than 1 value"):
            model(clip)
    model(clip.expand(2, -1, -1, -1, -1))


@given(st.integers(2, 200), st.integers(1, 400), st.sampled_from([(1, 32), (2, 32)]))
def test_no_part_of_a_batch_has_fewer_clips_than_can_be_trained_on(clips, asked, shape):
    geometry = geometry_of(*shape)
    parts = min(asked, max_micro_batches(clips, geometry))
    sizes = [(part + 1) * clips // parts - part * clips // parts for part in range(parts)]
    assert sum(sizes) == clips and min(sizes) >= geometry.least_clips
    assert min(map(len, torch.zeros(clips).tensor_split(parts))) >= geometry.least_clips


@pytest.mark.parametrize(("batch_size", "clips", "where"), [
    (1, 9, "candidate.batch_size"), (1, 1, "candidate.batch_size"), (4, 1, "data.train"), (2, 3, None), (4, 9, None),
    (8, 9, None), (3, 2, None)])
def test_a_recipe_that_leaves_batches_of_one_is_refused_where_the_network_cannot_take_them(batch_size, clips, where):
    recipe = RecipeConfig(batch_size=batch_size, epochs=1)
    check_batches(recipe, clips, geometry_of(1, 64), "candidate")
    if where is None:
        check_batches(recipe, clips, geometry_of(1, 32), "candidate")
        return
    with pytest.raises(UsageError, match="1 frame and 32 pixels") as refused:
        check_batches(recipe, clips, geometry_of(1, 32), "candidate")
    assert refused.value.where == where and refused.value.fix


def search_of(axes, target=1.0, **recipes):
    search = SearchConfig(target_gflops=target, axes=axes, grid=GridConfig())
    search = replace(search, basis=replace(search.basis, resolution=32, depth=0.4))
    return Config(search=search, **recipes), Space(search, 2)


ONE = RecipeConfig(batch_size=1, epochs=1)


@pytest.mark.parametrize(("axes", "target", "section"), [
    (("x_fast", "x_spatial"), 1.0, None), (("x_fast", "x_depth"), 1.0, "final"), (("x_fast",), 0.0014, "final")])
def test_a_final_batch_of_one_is_refused_where_the_winner_may_have_one_position(axes, target, section):
    config, space = search_of(axes, target, final=ONE)
    if section is None:
        check_recipes(config, space)
    else:
        with pytest.raises(UsageError, match="batches of 1 clip") as refused:
            check_recipes(config, space)
        assert refused.value.where == "final.batch_size"
    with pytest.raises(UsageError, match="batches of 1 clip") as refused:
        check_recipes(replace(config, candidate=ONE), space)
    assert refused.value.where == "candidate.batch_size"


def job_of(tmp_path, recipe, net=ONE_POSITION):
    return Job("s00-basis", net, 0.001, recipe, CONFIG, 7, CandidatePaths(tmp_path), 1000.0)


@pytest.mark.parametrize(("batch_size", "accumulation", "parts"), [(8, 8, 4), (8, 3, 3), (3, 2, 1), (5, 4, 2)])
def test_an_accumulation_is_never_into_parts_of_one_value(tmp_path, data, batch_size, accumulation, parts):
    recipe = replace(RECIPE, epochs=1, batch_size=batch_size, accumulation=accumulation)
    training = Training(job_of(tmp_path, recipe), data, RUNTIME, Hooks())
    assert training.progress.parts == parts
    assert train_candidate(job_of(tmp_path, recipe), data, RUNTIME, Hooks()).is_finished


def test_parts_of_one_clip_stay_where_the_network_can_take_them(tmp_path, data):
    recipe = replace(RECIPE, epochs=1, accumulation=8)
    training = Training(job_of(tmp_path, recipe, network("small", frames=2)), data, RUNTIME, Hooks())
    assert training.progress.parts == 8
    training.fit()
    training.refresh_batch_norm()


def only_batches_of(most):
    """Fails in training, as for lack of memory, on more than `most` clips."""
    def check(module, inputs):
        if isinstance(module, nn.BatchNorm3d) and module.training and len(inputs[0]) > most:
            torch.empty(2**60)
    return torch.nn.modules.module.register_module_forward_pre_hook(check)


@pytest.mark.parametrize(("most", "parts"), [(2, 4), (1, None)])
def test_halving_for_lack_of_memory_ends_before_a_part_has_one_value(tmp_path, data, most, parts):
    hook = only_batches_of(most)
    try:
        outcome = train_candidate(job_of(tmp_path, replace(RECIPE, epochs=1)), data, RUNTIME, Hooks())
    finally:
        hook.remove()
    if parts is None:
        assert not outcome.is_finished and "out of memory" in outcome.reason
    else:
        assert outcome.is_finished and f"into {parts} micro-batches" in outcome.notes[0]


def test_a_system_that_ended_tries_for_lack_of_memory_does_not_ask_for_parts_of_one_value(tmp_path, data):
    job = replace(job_of(tmp_path, replace(RECIPE, epochs=1)), parts=8)
    outcome = train_candidate(job, data, RUNTIME, Hooks())
    assert outcome.is_finished and "into 4 micro-batches" in outcome.notes[0]


def test_precise_norms_are_measured_in_parts_that_have_two_values(tmp_path, data):
    training = Training(job_of(tmp_path, replace(RECIPE, epochs=1)), data, RUNTIME, Hooks())
    training.fit()
    training.progress.parts = 8  # as an evaluation leaves it that had no memory
    training.refresh_batch_norm()
    training.evaluate("val")


def test_a_resumed_training_that_cannot_be_says_so(tmp_path, data):
    with pytest.raises(CandidateFailed, match="batches of 1 clip cannot be trained on"):
        Training(job_of(tmp_path, replace(RECIPE, batch_size=1)), data, RUNTIME, Hooks())
    outcome = train_candidate(job_of(tmp_path, replace(RECIPE, batch_size=1)), data, RUNTIME, Hooks())
    assert not outcome.is_finished and "batches of 1 clip" in outcome.reason
