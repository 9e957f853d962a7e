"""Pictures come upright, whichever of the eight ways they lie, and in the shape in which a viewer shows them."""

from __future__ import annotations

import io
from dataclasses import replace
from fractions import Fraction
from itertools import product
from pathlib import Path

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from expand.data.frames.cache import FrameCache
from expand.data.frames.clip_files import UnreadableClip
from expand.data.frames.decode import ClipReader
from expand.data.frames.presentation import (
    EXIF,
    EXIF_ORIENTATION,
    UPRIGHT,
    Orientation,
    orientation_of_matrix,
    pixel_aspect,
    shown_size,
    turn_upright,
)
from expand.data.loading.prepared import _fingerprint
from tests.data.clips import FULL, frames_of

ONE = 1 << 16
SHARED = Path(__file__).parents[3] / "shared" / "data" / "field" / "video"
COLOURS = np.array([[[250, 250, 250], [250, 0, 0]], [[0, 250, 0], [0, 0, 250]]], dtype=np.uint8)
"""No two of the eight ways in which this lies look the same."""
PICTURE = COLOURS.repeat(16, axis=0).repeat(24, axis=1)
EIGHT = [(degrees, mirrored) for degrees in (0, 90, 180, 270) for mirrored in (False, True)]


def shown_by(matrix: np.ndarray, picture_HWC: np.ndarray) -> np.ndarray:
    """The picture with each pixel where the display matrix puts it: a pixel at a time, and nothing of ours."""
    (a, b), (c, d) = np.sign(matrix)
    height, width = picture_HWC.shape[:2]
    places = {(x * b + y * d, x * a + y * c): picture_HWC[y, x] for y, x in product(range(height), range(width))}
    rows, columns = sorted({row for row, _ in places}), sorted({column for _, column in places})
    return np.array([[places[row, column] for column in columns] for row in rows])


def corners(picture_HWC: np.ndarray) -> list[list[list[bool]]]:
    """Which colours the middles of the four quarters have."""
    rows, columns = (np.array([1, 3]) * side // 4 for side in picture_HWC.shape[:2])
    return (picture_HWC[np.ix_(rows, columns)] > 125).tolist()


def expected(degrees: int, mirrored: bool) -> list[list[list[bool]]]:
    """PyAV's order: turned counter-clockwise, then mirrored left to right."""
    turned = np.rot90(COLOURS, degrees // 90)
    return corners((turned[:, ::-1] if mirrored else turned).repeat(8, axis=0).repeat(8, axis=1))


def write_video(path: Path, codec: str = "libx264", frames: int = 3, picture_HWC: np.ndarray = PICTURE,
                pixel_format: str = "yuv444p", aspect: Fraction | None = None, **turned) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *picture_HWC.shape[:2], pixel_format
        if aspect:
            stream.sample_aspect_ratio = aspect
        if turned:
            stream.set_display_rotation(**turned)
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture_HWC, format="rgb24")))
        container.mux(stream.encode())
    return path


def first(path: Path, short_side: int = FULL) -> tuple[ClipReader, np.ndarray]:
    reader = ClipReader(path, short_side)
    frames = [frame for _, frame in reader]
    assert all(frame.shape == (*frames[0].shape[:2], 3) and frame.flags.c_contiguous for frame in frames)
    return reader, frames[0]


@pytest.mark.parametrize("entries", [
    entries for first, second in product((-ONE, ONE), repeat=2) for entries in ((first, 0, 0, second),
                                                                                (0, first, second, 0))])
def test_each_of_the_eight_matrices_is_carried_out(entries):
    matrix = [entries[0], entries[1], 0, entries[2], entries[3], 0, 0, 0, 1 << 30]
    picture = np.arange(24).reshape(4, 2, 3)
    shown = turn_upright(picture, orientation_of_matrix(matrix))
    assert (shown == shown_by(np.array(entries).reshape(2, 2), picture)).all()


@given(st.integers(0, 7), st.floats(-44, 44), st.floats(0.01, 100))
def test_an_angle_between_two_quarters_goes_to_the_nearer_one(number, off, scale):
    degrees, mirrored = EIGHT[number]
    angle = np.radians(degrees + off)
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    if mirrored:
        matrix = np.diag([-1, 1]) @ matrix
    (a, b), (c, d) = np.rint(matrix * scale * ONE).astype(int)
    assert orientation_of_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30]) == (mirrored, -degrees // 90 % 4)


@given(st.lists(st.integers(-2 ** 31, 2 ** 31 - 1), min_size=9, max_size=9))
def test_any_matrix_means_something(matrix):
    assert orientation_of_matrix(matrix).quarter_turns in range(4)
    assert orientation_of_matrix([0] * 9) == orientation_of_matrix([ONE, 0, 0] * 3) == UPRIGHT


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_is_understood_as_pillow_understands_it(orientation):
    image = Image.fromarray(PICTURE)
    image.getexif()[EXIF_ORIENTATION] = orientation
    assert (turn_upright(PICTURE, EXIF[orientation]) == np.asarray(ImageOps.exif_transpose(image))).all()


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv"])
@pytest.mark.parametrize("degrees, mirrored", EIGHT)
def test_videos_come_upright_in_all_eight_orientations(tmp_path, name, degrees, mirrored):
    path = write_video(tmp_path / name, degrees=degrees, hflip=mirrored)
    reader, frame = first(path)
    assert corners(frame) == expected(degrees, mirrored)
    assert frame.shape[:2] == (reader.source_height, reader.source_width) == ((32, 48), (48, 32))[degrees // 90 % 2]
    assert reader.header.mirrored == mirrored and reader.header.rotation in (0, 90, 180, 270)
    _, small = first(path, 16)
    assert corners(small) == expected(degrees, mirrored) and min(small.shape[:2]) == 16


def test_a_mirror_across_is_no_mirror_along(tmp_path):
    reader, frame = first(write_video(tmp_path / "a.mp4", degrees=0, vflip=True))
    assert corners(frame) == corners(PICTURE[::-1]) and (reader.header.mirrored, reader.header.rotation) == (True, 180)


@pytest.mark.parametrize("asked, degrees, mirrored", [
    ("rotate=90", 90, False), ("flip=horizontal", 0, True), ("rotate=180:flip=horizontal", 180, True)])
def test_the_orientation_that_stands_in_the_stream_counts(tmp_path, asked, degrees, mirrored):
    with av.open(str(write_video(tmp_path / "plain.mp4"))) as source, av.open(str(tmp_path / "a.mkv"), "w") as target:
        video = source.streams.video[0]
        stream = target.add_stream_from_template(video)
        say = BitStreamFilterContext(f"h264_metadata=display_orientation=insert:{asked}", video)
        for packet in source.demux(video):
            for said in say.filter(packet) if packet.dts is not None else ():
                said.stream = stream
                target.mux(said)
    assert corners(first(tmp_path / "a.mkv")[1]) == expected(degrees, mirrored)


def picture_bytes(kind: str, orientation: int | None) -> bytes:
    exif, content = Image.Exif(), io.BytesIO()
    if orientation is not None:
        exif[EXIF_ORIENTATION] = orientation
    Image.fromarray(PICTURE).save(content, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    return content.getvalue()


@pytest.mark.parametrize("kind, name", [("JPEG", "1.jpg"), ("PNG", "1.png")])
@pytest.mark.parametrize("orientation", [*range(1, 9), 0, 9, None])
def test_pictures_of_a_folder_come_upright_by_their_exif(tmp_path, kind, name, orientation):
    (tmp_path / name).write_bytes(picture_bytes(kind, orientation))
    reader, frame = first(tmp_path)
    shown = ImageOps.exif_transpose(Image.open(tmp_path / name))
    assert corners(frame) == corners(np.asarray(shown)) and frame.shape[1::-1] == shown.size and not reader.damaged


@pytest.mark.parametrize("orientation", [2, 6, 7])
def test_motion_jpeg_comes_upright_by_its_exif(tmp_path, orientation):
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuvj420p"
        for number in range(3):
            packet = av.Packet(picture_bytes("JPEG", orientation))
            packet.pts = packet.dts = number
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 25), stream, True
            container.mux(packet)
    assert corners(first(tmp_path / "a.avi")[1]) == corners(turn_upright(PICTURE, EXIF[orientation]))


def test_pictures_that_lie_in_different_ways_each_come_upright(tmp_path):
    for number, orientation in enumerate((2, 6, 3)):
        (tmp_path / f"{number}.jpg").write_bytes(picture_bytes("JPEG", orientation))
    reader = ClipReader(tmp_path, FULL)
    for (_, frame), orientation in zip(list(reader), (2, 6, 3), strict=True):
        assert corners(frame) == corners(turn_upright(PICTURE, EXIF[orientation])) and frame.shape == (32, 48, 3)
    assert reader.stamps is None  # a reading that begins with another picture would have its size


@pytest.mark.parametrize("ratio", ["64/45", "16/15", "2/1", "1/2", "8/9", "4/3"])
@pytest.mark.parametrize("name, codec", [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.ts", "libx264"),
                                         ("a.avi", "mpeg4")])
def test_pixels_that_are_not_square_are_shown_as_they_are_meant(tmp_path, name, codec, ratio):
    path = write_video(tmp_path / name, codec, aspect=Fraction(ratio), pixel_format="yuv420p")
    reader, frame = first(path)
    assert frame.shape == (32, round(48 * Fraction(ratio)), 3) and corners(frame) == corners(PICTURE)
    assert (reader.source_height, reader.source_width) == frame.shape[:2]
    assert reader.header.pixel_aspect == pytest.approx(float(Fraction(ratio)))
    assert min(first(path, 16)[1].shape[:2]) == 16


def test_pixels_are_stretched_before_the_picture_is_turned(tmp_path):
    _, frame = first(write_video(tmp_path / "a.mp4", aspect=Fraction(2), degrees=90, hflip=True))
    assert frame.shape == (96, 32, 3) and corners(frame) == expected(90, True)


@pytest.mark.parametrize("ratio, taken", [
    (None, 1), (Fraction(0), 1), (Fraction(1, 10000), 1), (Fraction(10000), 1), (Fraction(-2), 1), (Fraction(9), 1),
    (Fraction(1280, 1281), 1), (Fraction(12, 11), Fraction(12, 11)), (Fraction(3), 3)])
def test_shapes_of_pixels_that_cannot_be_are_square(ratio, taken):
    assert pixel_aspect(ratio) == taken


def test_a_size_in_nearly_square_pixels_stays_as_it_is(tmp_path):
    assert first(write_video(tmp_path / "a.mp4", aspect=Fraction(1280, 1281)))[1].shape == (32, 48, 3)


@given(st.integers(1, 9000), st.integers(1, 9000), st.fractions(), st.integers(0, 3))
def test_a_shown_size_is_bounded_by_the_decoded_one(height, width, ratio, turns):
    shown = shown_size(height, width, pixel_aspect(ratio), Orientation(False, turns))
    assert (height in shown) and min(shown) >= 1 and height * width / 9 <= np.prod(shown) <= 8 * height * width + height


def test_a_picture_that_becomes_too_large_or_too_small_is_refused(tmp_path):
    narrow = np.zeros((64, 16, 3), np.uint8)
    with pytest.raises(UnreadableClip, match="only 4 x 64 pixels") as raised:
        list(ClipReader(write_video(tmp_path / "a.mp4", picture_HWC=narrow, aspect=Fraction(1, 4)), FULL))
    assert raised.value.kind == "tiny"


def test_the_shape_of_pixels_may_change_and_the_first_one_counts(tmp_path):
    parts = [write_video(tmp_path / f"{number}.ts", aspect=aspect, pixel_format="yuv420p")
             for number, aspect in enumerate((Fraction(2), Fraction(1)))]
    (tmp_path / "a.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    reader = ClipReader(tmp_path / "a.ts", FULL)
    assert {frame.shape for _, frame in reader} == {(32, 96, 3)} and reader.stamps is None


@pytest.mark.parametrize("turned", [{"degrees": 0, "hflip": True}, {"aspect": Fraction(2)}])
def test_stored_frames_and_those_decoded_at_each_access_are_the_same(tmp_path, turned):
    path = write_video(tmp_path / "a.mp4", **turned)
    every = np.stack([frame for _, frame in ClipReader(path, 24)])
    for limit_bytes in (1e9, 0):
        clip = FrameCache(tmp_path / str(limit_bytes), limit_bytes).get(path, 0, 24)
        assert (clip.height, clip.width) == every.shape[1:3] and clip.mirrored == ("hflip" in turned)
        assert (frames_of(clip) == every).all()


def test_a_run_begun_while_mirrored_clips_were_read_otherwise_is_not_taken_for_one_on_the_same_clips(tmp_path):
    clip = FrameCache(tmp_path / "c", 1e9).get(write_video(tmp_path / "a.mp4"), 0, 24)
    plain, mirrored = (_fingerprint(("a",), [("train", replace(clip, mirrored=is_it))]) for is_it in (False, True))
    assert plain != mirrored


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the made clips in {SHARED}")
@pytest.mark.parametrize("name", ["hflip.mp4", "exif2", "sar.mp4"])
def test_the_clips_from_the_field_are_read_as_meant(name):
    reader, frame = first(SHARED / name)
    if name == "sar.mp4":
        assert frame.shape == (64, 128, 3)
    else:
        assert (reader.header.mirrored, reader.header.rotation, frame.shape) == (True, 0, (48, 64, 3))
