"""Folders of pictures are clips: the same frames and times as the video that they are from."""

from __future__ import annotations

import resource
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from expand.data.frames.clip_files import UnreadableClip, frame_files
from expand.data.frames.decode import ClipReader
from tests.data.clips import FULL, encode, steady, write_clip, write_pictures

MOTION = Path(__file__).parents[3] / "shared" / "data" / "weizmann5_motion"


def mux(pictures: list[bytes], path: Path) -> Path:
    """The JPEG pictures as they are, in an AVI file of 25 frames a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        with av.open(str(pictures[0]), format="mjpeg") as first:
            stream.height, stream.width = first.streams.video[0].height, first.streams.video[0].width
        stream.pix_fmt = "yuvj420p"
        for number, picture in enumerate(pictures):
            packet = av.Packet(picture.read_bytes())
            packet.pts = packet.dts = number
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 25), stream, True
            container.mux(packet)
    return path


def read(path: Path, short_side: int = FULL, wanted=None, **options):
    reader = ClipReader(path, short_side, wanted, **options)
    times_s, frames = zip(*reader)
    return reader, np.array(times_s), np.stack(frames)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "a.mp4", steady(25, 0.52))


@pytest.fixture(scope="module")
def folder(clip, tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("folder") / "a", clip)


def test_png_frames_are_the_clips_to_the_bit_and_so_are_their_times(clip, folder):
    reader, times_s, frames = read(folder, frame_rate=25)
    _, clip_times_s, clip_frames = read(clip)
    assert (times_s == np.arange(13) / 25).all() and times_s == pytest.approx(clip_times_s, abs=2e-3)
    assert (frames == clip_frames).all()
    assert (reader.stamps == np.arange(13)).all() and not reader.damaged and not reader.broken_off
    header = reader.header
    assert (header.frames, header.duration_s, header.fps, header.codec) == (13, 13 / 25, 25, "png")
    assert (header.pixel_format, header.rotation, reader.source_width) == ("rgb24", 0, 48)


@pytest.mark.skipif(not MOTION.is_dir(), reason=f"needs the clips in {MOTION}")
def test_a_real_clip_and_its_png_frames_are_one(tmp_path):
    clip = min(MOTION.glob("train/jack/*.mp4"))
    _, times_s, frames = read(write_pictures(tmp_path / "a", clip), frame_rate=25)
    _, clip_times_s, clip_frames = read(clip)
    assert (times_s == clip_times_s).all() and (frames == clip_frames).all()


@pytest.mark.parametrize("short_side", [FULL, 20])
def test_jpeg_frames_are_those_of_a_file_of_the_same_pictures(clip, tmp_path, short_side):
    folder = write_pictures(tmp_path / "a", clip, "mjpeg", "yuvj420p")
    _, times_s, frames = read(folder, short_side, frame_rate=25)
    _, file_times_s, file_frames = read(mux(frame_files(folder), tmp_path / "a.avi"), short_side)
    assert (times_s == file_times_s).all() and (frames == file_frames).all()
    assert np.abs(frames.astype(int) - read(clip, short_side)[2]).mean() < 2


def test_pictures_are_in_natural_order_and_other_files_are_none(tmp_path):
    for name in ("img_10.png", "img_2.PNG", "img_1.jpeg", ".img_0.png", "notes.txt", "img_003.jpg"):
        (tmp_path / name).touch()
    assert [file.name for file in frame_files(tmp_path)] == ["img_1.jpeg", "img_2.PNG", "img_003.jpg", "img_10.png"]


@given(st.sets(st.integers(0, 12), min_size=1))
def test_wanted_pictures_alone_are_decoded(folder, wanted):
    full, _, frames = read(folder)
    some, times_s, some_frames = read(folder, wanted=sorted(wanted), stamps=full.stamps)
    assert (some_frames == frames[sorted(wanted)]).all() and times_s.tolist() == [n / 30 for n in sorted(wanted)]
    assert some.decoded == len(wanted)


def test_more_than_30_a_second_are_thinned(folder):
    assert len(read(folder, frame_rate=60)[1]) == 7


def test_a_damaged_picture_is_counted_and_keeps_its_place_in_time(folder, tmp_path):
    for file in frame_files(folder):
        (tmp_path / file.name).write_bytes(b"\x89PNG no more" if file.name == "img_3.png" else file.read_bytes())
    reader, times_s, frames = read(tmp_path, frame_rate=10)
    assert times_s.tolist() == [number / 10 for number in range(13) if number != 3]
    assert reader.damaged == 1 and len(frames) == 12 and reader.header.frames == 13
    assert reader.stamps.tolist() == [number for number in range(13) if number != 3]
    _, _, some = read(tmp_path, wanted=[2, 3, 11], frame_rate=10, stamps=reader.stamps)
    assert (some == frames[[2, 3, 11]]).all()


def test_pictures_of_other_sizes_become_as_large_as_the_first(folder, tmp_path):
    for number, side in enumerate((40, 80, 20)):
        frame = av.VideoFrame.from_ndarray(np.full((side, 2 * side, 3), 99, np.uint8), format="rgb24")
        (tmp_path / f"{number}.png").write_bytes(encode(frame, "png", "rgb24"))
    reader, _, frames = read(tmp_path)
    assert frames.shape == (3, 40, 80, 3) and (frames == 99).all()
    assert read(tmp_path, wanted=[2], stamps=reader.stamps)[2].shape == (1, 40, 80, 3)


def write_huge_png(path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0))
                     + chunk(b"IDAT", zlib.compress(bytes(100_000))) + chunk(b"IEND", b""))


def test_absurdly_large_pictures_are_refused(tmp_path):
    (tmp_path / "clip").mkdir()
    for path in (tmp_path / "clip" / "1.png", tmp_path / "alone.png"):
        write_huge_png(path)
    for path in (tmp_path / "clip", tmp_path / "alone.png"):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(UnreadableClip, match="12000 x 12000 pixels|more than 67,108,864 pixels") as raised:
            list(ClipReader(path, 32))
        assert raised.value.kind == "huge"
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KB; it would be 430 MB


def test_a_picture_that_breaks_off_is_counted_and_kept_as_far_as_it_goes(clip, tmp_path):
    folder = write_pictures(tmp_path / "a", clip, "mjpeg", "yuvj420p")
    file = frame_files(folder)[4]
    file.write_bytes(b"\xff\xe1\x00\x10Exif\x00\x00garbage!".join([file.read_bytes()[:2], file.read_bytes()[2:]]))
    reader, times_s, _ = read(folder)
    assert len(times_s) == 13 and reader.damaged == 1 and reader.stamps is not None


@pytest.mark.parametrize("name, kind, reason", [
    (None, "missing", "no such file"), ("notes.txt", "empty", "without a JPEG or PNG"),
    ("1.png", "corrupt", "no frame in it could be decoded")])
def test_a_folder_without_a_picture_is_named_with_its_reason(tmp_path, name, kind, reason):
    path = tmp_path / "clip"
    if name:
        path.mkdir()
        (path / name).write_bytes(b"nothing")
    with pytest.raises(UnreadableClip, match=reason) as raised:
        list(ClipReader(path, 32))
    assert raised.value.kind == kind and raised.value.where == str(path)


@pytest.mark.parametrize(("suffix", "codec", "pixels"), [
    ("bmp", "bmp", "bgr24"), ("tif", "tiff", "rgb24"), ("ppm", "ppm", "rgb24"), ("tga", "targa", "bgr24"),
    ("jp2", "jpeg2000", "rgb24"), ("qoi", "qoi", "rgb24"), ("sgi", "sgi", "rgb24")])
def test_pictures_of_other_formats_are_the_clip_to_the_bit(clip, tmp_path, suffix, codec, pixels):
    (tmp_path / "a").mkdir()
    _, _, frames = read(clip)
    for number, picture_HWC in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(picture_HWC, format="rgb24").reformat(format=pixels)
        frame.pts = None
        (tmp_path / "a" / f"{number}.{suffix}").write_bytes(encode(frame, codec, pixels))
    assert (read(tmp_path / "a")[2] == frames).all()


@pytest.mark.parametrize(("files", "frames"), [
    (["img_1.jpg", "img_1_mask.png", "img_2.jpg", "img_2_mask.png"], ["img_1.jpg", "img_2.jpg"]),
    (["1.jpg", "1.png", "2.jpg", "2.png"], ["1.jpg", "2.jpg"]), (["1.png", "2.png", "depth1.tif"], ["1.png", "2.png"]),
    (["1.png", "2.png", "1.tif", "2.tif"], ["1.png", "2.png"]),
    (["1.bmp", "2.bmp", "3.bmp", "2.jpg"], ["1.bmp", "2.bmp", "3.bmp"]),
    (["img_1.jpg", "x_1.jpg", "y_1.jpg", "flow_x_1.jpg"], ["img_1.jpg"]),
    (["depth_1.png", "depth_2.png"], ["depth_1.png", "depth_2.png"]),
    (["cover.jpg", "f1.jpg", "f2.jpg", "Thumbs.db", "._f1.jpg"], ["f1.jpg", "f2.jpg"]),
    (["img_1.jpg", "img_2.png", "img_3.jpeg"], ["img_1.jpg", "img_2.png", "img_3.jpeg"])])
def test_masks_depth_and_copies_beside_frames_are_no_frames(tmp_path, files, frames):
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    assert [file.name for file in frame_files(tmp_path)] == frames


def test_a_folder_of_pictures_that_are_not_read_names_their_format(tmp_path):
    (tmp_path / "1.heic").write_bytes(b"x")
    with pytest.raises(UnreadableClip, match=r"\.heic are not read: convert them"):
        frame_files(tmp_path)


@pytest.mark.parametrize("orientation", [1, 2, 6])
def test_tiff_pictures_that_are_compressed_as_jpeg_have_their_colours_and_lie_upright(tmp_path, orientation):
    picture_HWC = np.zeros((32, 48, 3), np.uint8)
    picture_HWC[:16, :24], picture_HWC[16:, 24:] = (220, 30, 30), (30, 30, 220)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for number in range(2):
        Image.fromarray(picture_HWC).save(tmp_path / f"{number}.tif", exif=exif, compression="jpeg", quality=95)
    wanted = {1: picture_HWC, 2: picture_HWC[:, ::-1], 6: np.rot90(picture_HWC, -1)}[orientation].astype(int)
    frames = read(tmp_path)[2]
    assert frames.shape[1:] == wanted.shape and np.abs(frames - wanted).mean() < 4


def test_a_tiff_picture_of_jpeg_that_is_cut_is_skipped_and_counted(tmp_path):
    for number in range(3):
        picture = Image.fromarray(np.full((64, 64, 3), 90 * number, np.uint8))
        picture.save(tmp_path / f"{number}.tif", compression="jpeg")
    whole = (tmp_path / "1.tif").read_bytes()
    (tmp_path / "1.tif").write_bytes(whole[:40] + bytes(len(whole) - 400) + whole[-360:])
    reader = ClipReader(tmp_path, FULL)
    assert len(list(reader)) == 2 and reader.damaged == 1
