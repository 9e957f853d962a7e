"""What time stamps may claim is bounded by the frames that there are; variable and low rates stay as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expand.config.schema import DataConfig
from expand.data.check import check_clips
from expand.data.frames.cache import FrameCache
from expand.data.frames.decode import ClipReader
from expand.data.frames.presentation import AHEAD, LONGEST_S, RAREST_S, TIMES_USUAL, Clock, Stamped
from expand.data.loading.prepared import estimate_bytes
from expand.data.sources.clip import Clip
from expand.inference.predicting import frame_times
from tests.data.clips import frames_of, steady, write_clip, write_stamped

SHARED = Path(__file__).parents[3] / "shared" / "data" / "field" / "video"
DAY_S = 86_400.0
AT_30 = np.array(steady(30, 2.0))


def timed(stamps_s, fps: float | None = 30.0) -> tuple[np.ndarray, Clock]:
    clock = Clock(lambda: fps)
    frames = [Stamped(None, None if time_s is None else float(time_s), None) for time_s in stamps_s]
    given_s, order = zip(*clock.add_times(iter(frames)))
    assert list(order) == frames
    return np.array(given_s), clock


def split(first, gap_s: float, then) -> np.ndarray:
    """The stamps `first`, and those of `then` from `gap_s` after the last of them."""
    first, then = np.array(first), np.array(then)
    return np.concatenate([first, first[-1] + gap_s + then - then[0]])


@pytest.mark.parametrize("fps", [30.0, 1 / 60, 1000.0, 90_000.0, None])
@pytest.mark.parametrize("before", [1, 2, 3, 30, 59])
@pytest.mark.parametrize("gap_s", [12.0, 3600.0, DAY_S, 2 ** 33 / 90_000, 1e9, 1e11, -2.0, -3600.0, -2 ** 33 / 90_000])
def test_where_the_clock_jumps_time_goes_on_as_usual(gap_s, before, fps):
    times_s, clock = timed(split(AT_30[:before], gap_s, AT_30[before:]), fps)
    assert times_s == pytest.approx(AT_30, abs=1e-3) and clock.jumps == 1
    assert clock.jumped_s == pytest.approx(abs(gap_s), rel=0.1)


def test_several_jumps_and_single_stamps_that_are_off_add_nothing():
    stamps_s = AT_30.copy()
    stamps_s[20:] += 3600
    stamps_s[25] += DAY_S
    stamps_s[40:] -= 5000
    times_s, clock = timed(stamps_s)
    assert times_s == pytest.approx(AT_30, abs=0.1) and clock.jumps == 4


@pytest.mark.parametrize("stamps_s", [
    AT_30, AT_30 + 1e9, AT_30 - 5, steady(25, 3), steady(0.2, 100), steady(0.1, 200), steady(1 / 14, 300),
    [0.0, 12.0], [0.0, 0.04, 0.1, 0.5, 0.55, 1.2], split(AT_30, 3, AT_30), split(AT_30, 9.9, AT_30), steady(960, 0.5),
    split(AT_30[:1], 9, AT_30), [10.2 * number + 0.7 * (number % 3) for number in range(40)],
    [10.0 * number for number in range(20) if number not in (7, 8)]])
def test_variable_and_low_rates_and_pauses_of_seconds_stay_as_they_are(stamps_s):
    times_s, clock = timed(stamps_s)
    assert (times_s == np.array(stamps_s) - stamps_s[0]).all() and not clock.jumps


@pytest.mark.parametrize("unit", [1000.0, 90_000.0, 1e-3, 1 / 90_000, 1e-6])
@pytest.mark.parametrize("fps", [25.0, 25.0 * 1000, 0.025])
def test_a_clock_in_another_unit_is_not_followed(unit, fps):
    times_s, clock = timed(np.arange(60) / 25 * unit, fps)
    assert np.diff(times_s) == pytest.approx(1 / (25 if fps == 25 else 30)) and clock.jumps == 59


@pytest.mark.parametrize("stamps_s", [[0.0] * 60, [7.0] * 60, [None] * 60, -AT_30])
def test_without_a_clock_the_headers_rate_counts_if_it_can_be(stamps_s):
    for fps, taken in ((25.0, 25), (None, 30), (90_000.0, 30), (1e-4, 30), (float("nan"), 30)):
        times_s, clock = timed(stamps_s, fps)
        assert np.diff(times_s) == pytest.approx(1 / taken) and not clock.jumps


@given(st.lists(st.none() | st.floats(-1e12, 1e12) | st.floats(-5, 20), min_size=1, max_size=60),
       st.none() | st.floats(0, 1e6))
def test_whatever_stamps_say_time_ascends_and_is_bounded_by_the_frames(stamps_s, fps):
    times_s, _ = timed(stamps_s, fps)
    steps_s = np.diff(times_s)
    assert times_s[0] == 0 and (steps_s > 0).all()
    assert steps_s.max(initial=0) <= max(LONGEST_S, TIMES_USUAL * RAREST_S) * (1 + 1e-3) + 1e-3


def test_few_frames_are_held_where_the_clock_jumps_at_once():
    taken = []
    frames = (taken.append(number) or Stamped(None, 3600.0 * bool(number) + number / 30, None) for number in range(99))
    given_s = Clock(lambda: None).add_times(frames)
    next(given_s), next(given_s)
    assert len(taken) <= AHEAD + 2


@pytest.fixture(params=["a.mkv", "a.mp4", "a.ts"])
def jumping(request, tmp_path):
    return write_stamped(tmp_path / request.param, split(AT_30[:30], 3600, AT_30[30:]))


def test_every_reader_of_times_bounds_them_alike(jumping, tmp_path):
    reader = ClipReader(jumping, 32)
    times_s, frames = zip(*reader)
    assert times_s[-1] < 4 and reader.jumps == 1 and reader.jumped_s == pytest.approx(3600, rel=0.01)
    assert reader.stamps is None  # a seek would find the stamps, and other times
    asked_s, stamps, _, jumps = frame_times(jumping)
    assert asked_s.tolist() == list(times_s) and (stamps, jumps) == (None, 1)
    for limit_bytes in (1e9, 0):
        clip = FrameCache(tmp_path / f"cache-{limit_bytes}", limit_bytes).get(jumping, 0, 32)
        assert clip.times_s.tolist() == list(times_s) and (frames_of(clip) == np.stack(frames)).all()
    again_s = [time_s for time_s, _ in ClipReader(jumping, 32, [0, 45], stamps=clip.stamps)]
    assert again_s == [times_s[0], times_s[45]]


def test_the_room_that_frames_take_is_estimated_by_the_frames(jumping, tmp_path):
    clip = Clip(jumping, 0, "train")
    assert estimate_bytes(FrameCache(tmp_path / "c", 1e9), [clip], 32, 1) < 3 * 60 * 32 * 48 * 3


def test_a_check_says_that_the_clock_jumps_and_not_that_frames_are_missing(tmp_path):
    for split_name in ("train", "val"):
        for label, name in enumerate(("run", "jump")):
            for number in range(3):
                write_clip(tmp_path / split_name / name / f"{number}.mp4",
                           steady(12, 1 + 0.25 * number + 0.1 * label + (split_name == "val")))
    bad = [write_stamped(tmp_path / "train" / "run" / name, split(AT_30[:20], 95_000, AT_30[20:]))
           for name in ("a.mkv", "a.mp4")]
    result = check_clips(DataConfig(path=str(tmp_path)))
    assert [(problem["path"], problem["kind"], problem["quarantined"]) for problem in result["problems"]
            if problem["kind"] != "duplicate"] == [(path, "clock", False) for path in bad]
    assert "jump 1 time, by 95,000 s" in result["problems"][0]["reason"]
    assert result["splits"]["train"]["length_s"]["max"] < 4 and result["limits"]["clip_s"] < 4


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the made clips in {SHARED}")
def test_the_clip_from_the_field_lasts_as_long_as_its_frames():
    times_s, _, _, jumps = frame_times(SHARED / "gap1h.mkv")
    assert len(times_s) == 60 and times_s[-1] == pytest.approx(59 / 30, abs=0.01) and jumps == 1
