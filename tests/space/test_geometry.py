"""Widths, depths and sides as the public implementations round them."""

import pytest

from expand.errors import UsageError
from expand.space.factors import PRESETS, Factors, round_half_up
from expand.space.geometry import Geometry, evaluation_crop, round_width


@pytest.mark.parametrize(("width", "rounded"), [(24, 24), (34.8, 32), (8.1, 8), (12, 16), (3, 8), (20, 24), (19.9, 24)])
def test_round_width_never_loses_more_than_a_tenth(width, rounded):
    assert round_width(width) == rounded
    assert rounded >= 0.9 * width


def test_medium_network_has_the_published_shapes():
    geometry = Geometry.of(PRESETS["m"], 400)
    assert geometry.stem == 24
    assert [len(stage) for stage in geometry.stages] == [3, 5, 11, 7]  # ceil(2.2 * 5) is 11, not 12
    assert [stage[0].outer for stage in geometry.stages] == [24, 48, 96, 192]
    assert [stage[0].inner for stage in geometry.stages] == [54, 108, 216, 432]
    assert geometry.head_inner == 432


def test_squeeze_excitation_stands_on_every_other_block():
    for stage in Geometry.of(PRESETS["l"], 400).stages:
        assert [bool(block.se) for block in stage] == [i % 2 == 0 for i in range(len(stage))]


def test_every_stage_halves_the_side_and_projects_its_first_shortcut():
    for stage in Geometry.of(PRESETS["xs"], 400).stages:
        assert [block.stride for block in stage] == [2] + [1] * (len(stage) - 1)
        assert [block.projection for block in stage] == [True] + [False] * (len(stage) - 1)


def test_only_the_first_shortcut_can_be_without_norm():
    stages = Geometry.of(PRESETS["xs"], 400, first_projection_bn=False).stages
    assert [stage[0].projection_bn for stage in stages] == [False, True, True, True]


@pytest.mark.parametrize(("crop", "side"), [(160, 182), (224, 256), (312, 356), (112, 128)])
def test_evaluation_crops_are_the_published_ones(crop, side):
    assert evaluation_crop(crop) == side


def test_halves_round_upwards():
    assert [round_half_up(value) for value in (0.5, 1.5, 2.5, 2.49)] == [1, 2, 3, 2]


def test_factors_speak_in_pixels_and_seconds():
    factors = Factors.of(frames=16, stride=5, resolution=312)
    assert factors.resolution == 312
    assert factors.span_s == pytest.approx(2.5)


def test_a_bottleneck_without_a_filter_is_refused_with_the_least_that_will_do():
    thin = Factors.of(frames=1, stride=28, resolution=32, width=0.5, bottleneck=0.05)
    with pytest.raises(UsageError, match=r"gamma_b 0.05 leaves blocks of 16 channels without a filter\n  .*0.0625"):
        Geometry.of(thin, 16)
