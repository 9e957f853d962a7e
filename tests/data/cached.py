"""What the tests of the frame cache share."""

from __future__ import annotations

import numpy as np

from expand.data.frames.decode import ClipReader
from expand.data.frames.frame_access import read_frames

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
