from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expand.data.frames.presentation import one_per_tick
from expand.data.loading.sampling import (
    clip_frames,
    nearest_frames_of,
    random_start_s,
    view_starts_s,
)
from expand.space.factors import REFERENCE_FPS, span_s

steps = st.lists(st.floats(1 / 240, 0.5), min_size=0, max_size=40)
times = steps.map(lambda gaps: np.concatenate([[0.0], np.cumsum(gaps)]))
shapes = {"frames": st.integers(1, 20), "stride": st.integers(1, 40)}


@given(times, st.lists(st.floats(-1, 25), min_size=1, max_size=20))
def test_no_frame_is_nearer_than_the_one_taken(times_s, wanted):
    taken = nearest_frames_of([times_s], np.array([wanted]))[0]
    for index, want in zip(taken, wanted):
        assert abs(times_s[index] - want) == np.abs(times_s - want).min()


@given(times, st.floats(0, 1, exclude_max=True), *shapes.values())
def test_a_clip_that_fits_stays_within_its_source_and_keeps_its_span(times_s, draw, frames, stride):
    span, length = span_s(frames, stride), float(times_s[-1])
    start = random_start_s(length, span, draw)
    taken = clip_frames(times_s, start, frames, stride)
    gap = np.diff(times_s).max(initial=0.0)
    assert len(taken) == frames and (np.diff(taken) >= 0).all()
    if span <= length:
        assert 0 <= start and start + span <= length + 1e-9
        assert abs((times_s[taken[-1]] - times_s[taken[0]]) - span) <= gap + 1e-9
    else:
        assert start == 0 and taken[-1] == len(times_s) - 1


@pytest.mark.parametrize("fps", [12, 24, 25, 29.97, 30])
def test_every_frame_rate_gives_the_same_span(fps):
    times_s = np.arange(int(4 * fps)) / fps
    taken = times_s[clip_frames(times_s, 0.4, 5, 12)]
    assert np.abs(taken - (0.4 + np.arange(5) * 0.4)).max() <= 0.5 / fps + 1e-9


def test_beyond_the_end_the_last_frame_is_repeated():
    assert clip_frames(np.array([0.0, 0.1, 0.2]), 0.0, 5, 3).tolist() == [0, 1, 2, 2, 2]


def test_a_still_gives_itself_every_time():
    assert clip_frames(np.array([0.0]), 0.0, 4, 5).tolist() == [0, 0, 0, 0]


def test_views_are_uniform_from_the_first_to_the_last_that_fits():
    assert view_starts_s(3.0, 1.0, 5).tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert view_starts_s(3.0, 1.0, 1).tolist() == [1.0]
    assert view_starts_s(1.0, 3.0, 2).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("fps", [10, 25, 29.97, 30])
def test_thinning_keeps_every_frame_of_a_source_up_to_30_fps(fps):
    timed = [(number / fps, number) for number in range(100)]
    assert list(one_per_tick(timed)) == timed


def test_thinning_keeps_every_other_frame_of_60_fps():
    assert [item for _, item in one_per_tick((number / 60, number) for number in range(59))] == list(range(0, 60, 2))


@given(st.lists(st.floats(1e-4, 0.2), max_size=60))
def test_thinning_leaves_one_frame_a_tick_and_the_nearest(gaps):
    timed = [(time_s, number) for number, time_s in enumerate(np.cumsum([0.0, *gaps]).tolist())]
    kept = list(one_per_tick(timed))
    ticks = [round(time_s * REFERENCE_FPS) for time_s, _ in kept]
    assert ticks == sorted({round(time_s * REFERENCE_FPS) for time_s, _ in timed})
    for (time_s, _), tick in zip(kept, ticks):
        rivals = [abs(other * REFERENCE_FPS - tick) for other, _ in timed if round(other * REFERENCE_FPS) == tick]
        assert abs(time_s * REFERENCE_FPS - tick) == min(rivals)
