"""The six axes: their grids, their limits, and the way back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expand.config.schema import LimitsConfig
from expand.space.axes import AXES, X_FAST, X_SPATIAL, X_TEMPORAL, Bounds
from expand.space.factors import PRESETS, X2D, Factors

BOUNDS = Bounds()
factors = st.builds(Factors.of, frames=st.integers(1, 32), stride=st.integers(1, 30),
                    resolution=st.integers(4, 50).map(lambda k: 8 * k), width=st.sampled_from([1.0, 1.45]),
                    bottleneck=st.sampled_from([1.0, 2.25]), depth=st.sampled_from([1.0, 2.2]))


def clip(value):
    return value.frames, value.stride


def test_paper_path_of_clips_comes_out():
    two = X_FAST.grow(X2D, 1, BOUNDS)
    four = X_TEMPORAL.grow(two, 2, BOUNDS)
    eight = X_FAST.grow(four, 4, BOUNDS)
    sixteen = X_TEMPORAL.grow(eight, 8, BOUNDS)
    assert [clip(value) for value in (two, four, eight, sixteen)] == [(2, 14), (4, 12), (8, 6), (16, 5)]


def test_sixteen_frames_contract_to_the_published_thirteen_at_stride_six():
    base = Factors.of(frames=8, stride=6, resolution=160)
    assert clip(X_TEMPORAL.grow_towards(base, X_TEMPORAL.grow(base, 8, BOUNDS), 5, BOUNDS)) == (13, 6)


@given(st.integers(1, 8))
def test_from_one_frame_both_temporal_axes_give_the_same_network(k):
    assert X_FAST.grow(X2D, k, BOUNDS) == X_TEMPORAL.grow(X2D, k, BOUNDS)


@given(factors, st.integers(1, 5), st.sampled_from(list(AXES.values())))
def test_an_axis_changes_its_own_factors_only(base, k, axis):
    grown = axis.grow(base, k, BOUNDS)
    changed = {name for name, value in grown.as_dict().items() if value != base.as_dict()[name]}
    own = {"x_fast": {"gamma_t", "gamma_tau"}, "x_temporal": {"gamma_t", "gamma_tau"}, "x_spatial": {"gamma_s"},
           "x_depth": {"gamma_d"}, "x_width": {"gamma_w"}, "x_bottleneck": {"gamma_b"}}[axis.name]
    assert changed and changed <= own


@given(factors, st.integers(1, 8))
def test_x_fast_keeps_the_duration_up_to_rounding_and_x_temporal_never_shortens_it(base, k):
    fast, temporal = X_FAST.grow(base, k, BOUNDS), X_TEMPORAL.grow(base, k, BOUNDS)
    if fast.stride > 1:
        assert abs(fast.frames * fast.stride - base.frames * base.stride) <= fast.frames / 2
    assert temporal.frames * temporal.stride >= fast.frames * fast.stride


@pytest.mark.parametrize(("axis", "limits", "words"), [
    ("x_spatial", LimitsConfig(resolution=160), "search.limits.resolution"),
    ("x_depth", LimitsConfig(depth=1.0), "search.limits.depth"),
    ("x_width", LimitsConfig(width=1.0), "search.limits.width"),
    ("x_bottleneck", LimitsConfig(bottleneck=2.25), "search.limits.bottleneck"),
    ("x_fast", LimitsConfig(frames=16), "search.limits.frames"),
    ("x_temporal", LimitsConfig(clip_s=2.5), "the source clips allow 2.50 s"),
])
def test_a_limit_is_given_as_the_reason(axis, limits, words):
    base = PRESETS["xs"] if axis == "x_spatial" else Factors.of(
        frames=16, stride=5, resolution=160, width=1.0, bottleneck=2.25, depth=1.0)
    bounds = Bounds(limits=limits)
    assert words in AXES[axis].refusal(base, AXES[axis].grow(base, 8, bounds), bounds)
    assert AXES[axis].refusal(base, AXES[axis].grow(base, 8, BOUNDS), BOUNDS) is None


def test_a_frame_rate_that_cannot_rise_is_given_as_the_reason():
    base = Factors.of(frames=4, stride=1, resolution=112)
    assert "frame rate" in X_FAST.refusal(base, X_FAST.grow(base, 4, BOUNDS), BOUNDS)


def test_values_are_said_in_the_axis_own_unit():
    assert X_SPATIAL.value(PRESETS["m"]) == "224 px"
    assert X_TEMPORAL.value(PRESETS["xs"]) == "4 x 12"
    assert AXES["x_depth"].value(PRESETS["m"]) == "γd 2.2"
