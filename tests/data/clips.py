"""Tiny H.264 clips, and clips as folders of pictures, for tests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from expand.data.frames.decode import ClipReader
from expand.data.frames.frame_access import read_frames

FULL = 10_000
"""A short side that no clip here has."""
TIME_BASE = Fraction(1, 600)
PLENTY = 1e9
"""A limit of the frame cache that no test reaches, bytes."""


def write_clip(path: Path, times_s: Sequence[float], height: int = 32, width: int = 48) -> Path:
    """A clip with a frame at each of `times_s`, whose grey level is 20 + 60 x its time in seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = TIME_BASE
        stream.options = {"preset": "ultrafast", "crf": "10"}
        for time_s in times_s:
            grey = np.full((height, width, 3), min(255, round(20 + 60 * time_s)), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = round(time_s / TIME_BASE), TIME_BASE
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_stamped(path: Path, times_s: Sequence[float]) -> Path:
    """A clip with frames at these times, which may be those of a clock that jumps."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.time_base, stream.codec_context.time_base = Fraction(1, 90_000), Fraction(1, 30)
        stream.options = {"bf": "0", "tune": "zerolatency"}
        ticks = iter(np.rint(np.array(times_s) * 90_000).astype(int).tolist())
        for number in range(len(times_s) + 1):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 4 * number, np.uint8), format="rgb24")
            frame.pts = number
            for packet in stream.encode(frame if number < len(times_s) else None):
                packet.time_base = Fraction(1, 90_000)
                packet.pts = packet.dts = next(ticks)
                packet.duration = 3000
                container.mux(packet)
    return path


def steady(fps: float, seconds: float) -> list[float]:
    return [number / fps for number in range(round(seconds * fps))]


def write_folder(root: Path, clips: int = 3, classes: Sequence[str] = ("jump", "run"), splits=("train", "val")) -> Path:
    """A data set `root/split/class/n.mp4` of half-second clips, told apart by their lengths."""
    for split in splits:
        for label, name in enumerate(classes):
            for number in range(clips):
                write_clip(root / split / name / f"{number}.mp4", steady(12, 0.5 + 0.25 * number + 0.1 * label))
    return root


def encode(frame: av.VideoFrame, codec: str, pixel_format: str) -> bytes:
    """The frame as one picture's bytes."""
    context = av.CodecContext.create(codec, "w")
    context.height, context.width, context.pix_fmt = frame.height, frame.width, pixel_format
    context.time_base, context.options = Fraction(1, 25), {"qmin": "1", "qmax": "1"} if codec == "mjpeg" else {}
    return b"".join(bytes(packet) for packet in context.encode(frame) + context.encode(None))


def write_pictures(folder: Path, clip: Path, codec: str = "png", pixel_format: str = "rgb24") -> Path:
    """The frames of `clip` at full size as pictures, numbered without leading zeros."""
    return write_frames(folder, (picture for _, picture in ClipReader(clip, FULL)), codec, pixel_format)


def write_frames(folder: Path, frames: Iterable[np.ndarray], codec: str = "png", pixel_format: str = "rgb24",
                 stem: str = "img_") -> Path:
    """H x W x 3 frames as a folder of pictures, numbered without leading zeros."""
    folder.mkdir(parents=True)
    suffix = {"png": "png", "mjpeg": "jpg"}[codec]
    for number, picture_HWC in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(picture_HWC, format="rgb24").reformat(format=pixel_format)
        frame.pts = None
        (folder / f"{stem}{number}.{suffix}").write_bytes(encode(frame, codec, pixel_format))
    return folder


def frames_of(clip):
    """All frames of a prepared clip."""
    return read_frames(clip, np.arange(len(clip.times_s)), 0, clip.height)


def decoded(path, short_side, **options):
    """All frames of a clip, fresh from the decoder."""
    return np.stack([frame for _, frame in ClipReader(path, short_side, **options)])


def ten(fps: float) -> list[float]:
    """The times of ten frames: clips of other rates are other clips whose frames take as much room."""
    return [number / fps for number in range(10)]
