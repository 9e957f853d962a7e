"""What the tests of the frame cache share."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from expand.data.access import read_frames
from expand.data.decode import ClipReader

PLENTY = 1e9


def frames_of(clip):
    """All frames of a prepared clip."""
    return read_frames(clip, np.arange(len(clip.times_s)), 0, clip.height)


def decoded(path, short_side, **options):
    """All frames of a clip, fresh from the decoder."""
    return np.stack([frame for _, frame in ClipReader(path, short_side, **options)])


def ten(fps: float) -> list[float]:
    """The times of ten frames: clips of other rates are other clips whose frames take as much room."""
    return [number / fps for number in range(10)]


def write_pictures(folder: Path, frames_THWC: np.ndarray, stem: str = "frame_") -> Path:
    """A folder of PNG frames."""
    folder.mkdir(parents=True)
    for number, frame_HWC in enumerate(frames_THWC):
        codec = av.CodecContext.create("png", "w")
        codec.height, codec.width, codec.pix_fmt, codec.time_base = *frame_HWC.shape[:2], "rgb24", Fraction(1, 30)
        packets = codec.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")) + codec.encode(None)
        (folder / f"{stem}{number}.png").write_bytes(b"".join(map(bytes, packets)))
    return folder
