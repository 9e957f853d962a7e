from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from expand.data.decode import ClipReader, UnreadableClip, stored_size
from tests.data.clips import steady, write_clip

ODD = Path(__file__).parents[3] / "shared" / "data" / "odd"
odd = pytest.mark.skipif(not ODD.is_dir(), reason=f"needs the odd clips in {ODD}")
ODD_FRAMES = {"decord_rot90.mov": (3, 568, 320), "decord_rot180.mov": (3, 320, 568), "grid_bbaf2n.mpg": (75, 288, 360),
              "derived_truncated_BaseballPitch.avi": (34, 240, 320), "hf_test_video_66x50.mov": (41, 50, 66),
              "imageio_issue245.gif": (1, 24, 30), "moviepy_no_duration.webm": (74, 720, 1280),
              "torchcodec_av1.mkv": (125, 360, 640), "torchcodec_bt709_full_range.mp4": (30, 720, 1280),
              "torchcodec_h265_10bit.mp4": (30, 200, 200), "ucf101_v_ApplyEyeMakeup_g01_c01.avi": (164, 240, 320),
              "vipy_Video.mp4": (321, 456, 256)}
ODD_REASONS = {"moviepy_audio_only.mp3": "no video stream", "moviepy_tiny.mp4": "only 1 x 1 pixels",
               "zero_bytes.webm": "Invalid data", "derived_truncated_demo.mp4": "Invalid data"}


def read(path: Path, short_side: int = 32, wanted=None):
    times_s, frames = zip(*ClipReader(path, short_side, wanted))
    return np.array(times_s), np.stack(frames)


@pytest.mark.parametrize("fps", [25, 30])
def test_frames_carry_their_times_and_contents(tmp_path, fps):
    times_s, frames = read(write_clip(tmp_path / "a.mp4", steady(fps, 1.0)))
    assert times_s == pytest.approx(np.arange(fps) / fps, abs=1e-3)
    assert frames.shape == (fps, 32, 48, 3) and frames.dtype == np.uint8
    assert np.abs(frames.mean(axis=(1, 2, 3)) - (20 + 60 * times_s)).max() < 4


def test_variable_frame_rate_is_read_from_the_stream(tmp_path):
    wanted = [0.0, 0.04, 0.1, 0.5, 0.55, 1.2]
    times_s, frames = read(write_clip(tmp_path / "a.mp4", wanted))
    assert times_s == pytest.approx(wanted, abs=2e-3)
    assert np.abs(frames.mean(axis=(1, 2, 3)) - (20 + 60 * times_s)).max() < 4


def test_times_count_from_the_first_frame(tmp_path):
    times_s, _ = read(write_clip(tmp_path / "a.mkv", [2.0, 2.1, 2.2]))
    assert times_s == pytest.approx([0.0, 0.1, 0.2], abs=2e-3)


def test_60_fps_is_thinned_to_30(tmp_path):
    times_s, _ = read(write_clip(tmp_path / "a.mp4", steady(60, 59 / 60)))
    assert times_s == pytest.approx(np.arange(30) / 30, abs=1e-3)


def test_large_frames_are_shrunk_to_the_short_side_and_small_ones_left(tmp_path):
    path = write_clip(tmp_path / "a.mp4", steady(10, 0.3), height=64, width=96)
    assert read(path, 32)[1].shape[1:3] == (32, 48)
    assert read(path, 80)[1].shape[1:3] == (64, 96)
    assert stored_size(1920, 1080, 182) == (324, 182)


def test_wanted_frames_are_those_of_a_full_reading(tmp_path):
    path = write_clip(tmp_path / "a.mp4", steady(20, 1.0))
    _, every = read(path)
    _, some = read(path, wanted=[0, 7, 13])
    assert (some == every[[0, 7, 13]]).all()


@pytest.mark.parametrize("content, reason", [(b"", "Invalid data"), (b"no clip at all" * 50, "Invalid data"),
                                             (None, "no such file")])
def test_a_file_that_is_no_clip_is_named_with_its_reason(tmp_path, content, reason):
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnreadableClip, match=reason) as raised:
        list(ClipReader(path, 32))
    assert raised.value.where == str(path)


def test_a_clip_damaged_in_the_middle_is_read_as_far_as_it_decodes(tmp_path):
    path = write_clip(tmp_path / "a.mkv", steady(10, 3.0), height=64, width=96)
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3:] = b""
    path.write_bytes(content)
    times_s, _ = read(path)
    assert 5 < len(times_s) < 30


@odd
@pytest.mark.parametrize("name", sorted(ODD_FRAMES))
def test_odd_clips_are_read_whole_and_upright(name):
    times_s, frames = read(ODD / name, 10_000)
    assert frames.shape[:3] == ODD_FRAMES[name]
    assert times_s[0] == 0 and (np.diff(times_s) > 0).all()


@odd
@pytest.mark.parametrize("name", sorted(ODD_REASONS))
def test_odd_files_without_a_picture_are_named(name):
    with pytest.raises(UnreadableClip, match=ODD_REASONS[name]):
        list(ClipReader(ODD / name, 64))
