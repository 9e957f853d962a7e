from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expand.data.frames import clip_files
from expand.data.frames.clip_files import KINDS, MAX_PIXELS, UnreadableClip
from expand.data.frames.decode import ClipReader, stored_size
from tests.data.clips import steady, write_clip

SHARED = Path(__file__).parents[3] / "shared" / "data"
ODD, MOTION = SHARED / "odd", SHARED / "weizmann5_motion"
odd = pytest.mark.skipif(not ODD.is_dir(), reason=f"needs the odd clips in {ODD}")
ODD_FRAMES = {"decord_rot90.mov": (3, 568, 320), "decord_rot180.mov": (3, 320, 568), "grid_bbaf2n.mpg": (75, 288, 360),
              "derived_truncated_BaseballPitch.avi": (34, 240, 320), "hf_test_video_66x50.mov": (41, 50, 66),
              "imageio_issue245.gif": (1, 24, 30), "moviepy_no_duration.webm": (74, 720, 1280),
              "torchcodec_av1.mkv": (125, 360, 640), "torchcodec_bt709_full_range.mp4": (30, 720, 1280),
              "torchcodec_h265_10bit.mp4": (30, 200, 200), "ucf101_v_ApplyEyeMakeup_g01_c01.avi": (164, 240, 320),
              "vipy_Video.mp4": (321, 456, 256)}
ODD_REASONS = {"moviepy_audio_only.mp3": ("no-video", "no video stream"),
               "moviepy_tiny.mp4": ("tiny", "only 1 x 1 pixels"), "zero_bytes.webm": ("empty", "is empty: 0 bytes"),
               "derived_truncated_demo.mp4": ("corrupt", "Invalid data")}
ODD_DAMAGED = {"decord_corrupted.mp4", "derived_truncated_BaseballPitch.avi"}


def read(path: Path, short_side: int = 32, wanted=None, **options):
    times_s, frames = zip(*ClipReader(path, short_side, wanted, **options))
    return np.array(times_s), np.stack(frames)


def unreadable(path: Path) -> UnreadableClip:
    with pytest.raises(UnreadableClip) as raised:
        list(ClipReader(path, 32))
    assert raised.value.where == str(path) and raised.value.kind in KINDS
    return raised.value


def write_frames(path: Path, frames, codec: str, pixel_format: str, rate: int = 10, **options: str) -> Path:
    """A file of `frames`, H x W x 3 uint8 each, or with none if there are none."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.pix_fmt, stream.options = pixel_format, options
        stream.height, stream.width = frames[0].shape[:2]
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def noise(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.kron(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
            for _ in range(count)]


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
    reader = ClipReader(write_clip(tmp_path / "a.mp4", steady(60, 59 / 60)), 32)
    times_s, _ = zip(*reader)
    assert times_s == pytest.approx(np.arange(30) / 30, abs=1e-3)
    assert (reader.decoded, len(reader.stamps)) == (59, 30)


def test_avi_frames_that_are_stamped_in_the_order_of_decoding_keep_their_places(tmp_path):
    """MPEG-4 with B-frames in AVI, as UCF101 has it: stamps come as 1, 2, 4, 3, 5."""
    reader = ClipReader(write_frames(tmp_path / "a.avi", noise(25), "mpeg4", "yuv420p", 25, bf="1"), 32)
    assert [time_s for time_s, _ in reader] == pytest.approx(np.arange(25) / 25)


def test_large_frames_are_shrunk_to_the_short_side_and_small_ones_left(tmp_path):
    path = write_clip(tmp_path / "a.mp4", steady(10, 0.3), height=64, width=96)
    assert read(path, 32)[1].shape[1:3] == (32, 48)
    assert read(path, 80)[1].shape[1:3] == (64, 96)
    assert stored_size(1920, 1080, 182) == (324, 182)


@pytest.mark.parametrize("codec, pixel_format", [
    ("ffv1", "gray"), ("ffv1", "yuv444p16le"), ("ffv1", "bgra"), ("ffv1", "yuv410p"), ("libx264", "yuv422p10le"),
    ("libx265", "yuv420p10le"), ("libsvtav1", "yuv420p10le"), ("mjpeg", "yuvj444p"), ("ffv1", "gbrp10le"),
    ("prores_ks", "yuv422p10le")])
def test_frames_of_any_pixel_format_come_as_rgb(tmp_path, codec, pixel_format):
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    frames = [np.full((64, 96, 3), grey, dtype=np.uint8) for grey in (40, 120, 200)]
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    reader = ClipReader(write_frames(tmp_path / "a.mkv", frames, codec, pixel_format, **options), 32)
    pictures = np.stack([frame for _, frame in reader])
    assert pictures.shape == (3, 32, 48, 3) and reader.header.pixel_format == pixel_format and not reader.damaged
    assert np.abs(pictures.mean(axis=(1, 2, 3)) - [40, 120, 200]).max() < 6


def test_the_header_says_what_the_clip_says_of_itself(tmp_path):
    reader = ClipReader(write_clip(tmp_path / "a.mp4", steady(10, 3)), 32)
    list(reader)
    header = reader.header
    assert (header.frames, header.codec, header.pixel_format, header.rotation) == (30, "h264", "yuv420p", 0)
    assert header.duration_s == pytest.approx(3, abs=0.15) and header.fps == pytest.approx(10, abs=0.5)
    assert not reader.damaged and not reader.broken_off


def test_times_come_without_pictures_too(tmp_path):
    path = write_clip(tmp_path / "a.mp4", steady(20, 1.0))
    reader, full = ClipReader(path, 32, pictures=False), ClipReader(path, 32)
    times_s, pictures = zip(*reader)
    assert list(times_s) == [time_s for time_s, _ in full] and {picture.size for picture in pictures} == {0}
    assert (reader.stamps == full.stamps).all() and reader.source_width == full.source_width == 48


def test_wanted_frames_are_those_of_a_full_reading(tmp_path):
    path = write_clip(tmp_path / "a.mp4", steady(20, 1.0))
    _, every = read(path)
    _, some = read(path, wanted=[0, 7, 13])
    assert (some == every[[0, 7, 13]]).all()
    assert list(ClipReader(path, 32, wanted=[])) == []


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory):
    path = write_frames(tmp_path_factory.mktemp("long") / "a.mp4", noise(120), "libx264", "yuv420p", 30, g="12", bf="3")
    reader = ClipReader(path, 32)
    return path, list(reader), reader.stamps


def reads_the_same(path, every, stamps, wanted):
    reader = ClipReader(path, 32, wanted, stamps=stamps)
    some = list(reader)
    assert len(some) == len(wanted) and (reader.stamps == stamps[wanted]).all()
    assert all(time_s == every[index][0] and (frame == every[index][1]).all()
               for index, (time_s, frame) in zip(wanted, some))
    return reader


@settings(max_examples=20)
@given(st.sets(st.integers(0, 119), min_size=1, max_size=8))
def test_a_seek_changes_no_bit(long_clip, wanted):
    reads_the_same(*long_clip, sorted(wanted))


def test_a_seek_starts_at_the_key_frame_before(long_clip):
    assert reads_the_same(*long_clip, [100]).decoded <= 12
    assert reads_the_same(*long_clip, [5, 100]).decoded > 90


def test_where_a_seek_goes_wrong_reading_starts_anew(long_clip, monkeypatch):
    path, every, stamps = long_clip
    moved = stamps.copy()
    moved[50] += 1  # no frame has it
    times_s, frames = zip(*ClipReader(path, 32, [40, 50, 60], stamps=moved))
    assert times_s == tuple(every[index][0] for index in (40, 50, 60))
    assert all((frame == every[index][1]).all() for index, frame in zip((40, 50, 60), frames))
    monkeypatch.setattr(clip_files.VideoFile, "time_s", None)  # a seek that cannot be carried out
    with pytest.raises(TypeError):
        list(ClipReader(path, 32, [50], stamps=stamps))


def test_damaged_frames_are_patched_up_counted_and_not_sought(long_clip, tmp_path):
    content = bytearray(long_clip[0].read_bytes())
    middle = len(content) // 2
    content[middle:middle + 200] = bytes(200)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(content)
    reader = ClipReader(path, 32)
    assert len(list(reader)) > 100
    assert reader.damaged and reader.stamps is None and not reader.broken_off


@pytest.mark.parametrize("name, options", [("a.mkv", {}), ("a.mp4", {"movflags": "faststart"})])
def test_a_file_whose_end_is_missing_is_read_as_far_as_it_goes_and_said_to_be(long_clip, tmp_path, name, options):
    path = tmp_path / name
    with av.open(str(long_clip[0])) as source, av.open(str(path), "w", options=options) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    reader = ClipReader(path, 32)
    assert len(list(reader)) == 120 and not reader.broken_off and not reader.damaged
    os.truncate(path, path.stat().st_size * 2 // 3)
    assert 40 < len(list(reader)) < 100
    assert reader.broken_off and reader.damaged
    assert reader.header.duration_s == pytest.approx(4, abs=0.1) or reader.header.frames == 120


@pytest.mark.parametrize("content, kind, reason", [
    (b"", "empty", "0 bytes"), (b"no clip at all" * 50, "corrupt", "Invalid data"), (None, "missing", "no such file")])
def test_a_file_that_is_no_clip_is_named_with_its_reason(tmp_path, content, kind, reason):
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    error = unreadable(path)
    assert error.kind == kind and reason in error.what and str(tmp_path) not in error.what


def test_a_pipe_is_no_clip_and_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    assert unreadable(tmp_path / "a.mp4").kind == "missing"


@pytest.mark.parametrize("name", ["take 2: the end.mp4", "http:x.mp4", "100%d.mp4", "a#b?c=d.mp4"])
def test_a_name_is_a_path_and_nothing_else(tmp_path, monkeypatch, name):
    write_clip(tmp_path / "a.mp4", steady(10, 0.5)).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(read(Path(name))[0]) == 5


def test_sound_with_a_cover_picture_has_no_video(tmp_path):
    path = tmp_path / "a.mp3"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("libmp3lame", rate=44100)
        cover = container.add_stream("png", rate=1)
        cover.width = cover.height = 64
        cover.pix_fmt, cover.disposition = "rgb24", int(av.stream.Disposition.attached_pic)
        container.mux(cover.encode(av.VideoFrame.from_ndarray(noise(1, 64)[0], format="rgb24")))
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 1152), np.float32), format="fltp", layout="stereo")
        silence.rate = 44100
        container.mux(sound.encode(silence))
        container.mux(sound.encode())
    error = unreadable(path)
    assert error.kind == "no-video" and "cover" in error.what


def test_one_frame_is_a_clip(tmp_path):
    times_s, frames = read(write_frames(tmp_path / "a.mkv", noise(1), "ffv1", "bgr0"))
    assert times_s.tolist() == [0.0] and len(frames) == 1


def test_absurdly_large_and_small_frames_are_refused(tmp_path, monkeypatch):
    assert MAX_PIXELS >= 7680 * 4320
    assert unreadable(write_clip(tmp_path / "a.mp4", steady(10, 0.3), height=6, width=64)).kind == "tiny"
    path = write_clip(tmp_path / "b.mp4", steady(10, 0.3), height=64, width=64)
    monkeypatch.setattr("expand.data.frames.clip_files.MAX_PIXELS", 64 * 64 - 1)
    error = unreadable(path)
    assert error.kind == "huge" and "64 x 64" in error.what


def test_a_size_that_grows_within_the_stream_takes_no_memory(tmp_path, monkeypatch):
    monkeypatch.setitem(clip_files.LIMIT, "max_pixels", str(80 * 80))
    path = tmp_path / "grows.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.pix_fmt, stream.height, stream.width = "yuvj420p", 48, 48
        larger = av.CodecContext.create("mjpeg", "w")
        larger.pix_fmt, larger.height, larger.width, larger.time_base = "yuvj420p", 96, 96, Fraction(1, 10)
        for number, picture in enumerate(noise(20, 48, 48) + noise(20, 96, 96)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuvj420p")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            for packet in (stream.encode(frame) if number < 20 else larger.encode(frame)):
                packet.stream = stream
                container.mux(packet)
    reader = ClipReader(path, 32)
    assert [frame.shape for _, frame in reader] == [(32, 32, 3)] * 20 and reader.damaged == 20


@odd
@pytest.mark.parametrize("name", sorted(ODD_FRAMES))
def test_odd_clips_are_read_whole_and_upright(name):
    reader = ClipReader(ODD / name, 10_000)
    times_s, frames = zip(*reader)
    assert (len(frames), *frames[0].shape[:2]) == ODD_FRAMES[name]
    assert times_s[0] == 0 and (np.diff(times_s) > 0).all()
    assert bool(reader.damaged) == (name in ODD_DAMAGED)


@odd
def test_ucf101_frames_are_a_25th_apart():
    times_s, _ = read(ODD / "ucf101_v_ApplyEyeMakeup_g01_c01.avi")
    assert times_s == pytest.approx(np.arange(164) / 25)


@odd
@pytest.mark.parametrize("name", sorted(ODD_REASONS))
def test_odd_files_without_a_picture_are_named(name):
    kind, reason = ODD_REASONS[name]
    error = unreadable(ODD / name)
    assert error.kind == kind and reason in error.what


@odd
def test_seeks_change_no_bit_of_any_real_clip():
    rng = np.random.default_rng(0)
    for path in [*sorted(ODD.iterdir()), *sorted(MOTION.glob("*/*/*.mp4"))[::10]]:
        if path.name in ODD_REASONS:
            continue
        reader = ClipReader(path, 32)
        every = list(reader)
        if reader.stamps is None:
            continue
        for first in {0, len(every) // 2, len(every) - 1}:
            wanted = np.unique(rng.integers(first, len(every), 3)).tolist()
            reads_the_same(path, every, reader.stamps, wanted)


@pytest.mark.parametrize(("text", "command"), [
    ("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
    ("/annex/objects/SHA256E-s12345--4d7a.mp4\n", "git annex get")])
def test_a_pointer_to_a_clip_that_was_not_fetched_is_named_as_such(tmp_path, text, command):
    (tmp_path / "a.mp4").write_text(text)
    with pytest.raises(UnreadableClip, match=f"and not the clip itself: `{command}`") as raised:
        list(ClipReader(tmp_path / "a.mp4", 32))
    assert raised.value.kind == "missing"
