"""From stored frames to a network's input: crop, resize, flip, normalise.

The crop is cut from the stored frames first and only that is resized, once, with antialiasing, as uint8: the same
picture as resizing the whole frame and cropping then, for less work.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import interpolate


@dataclass(frozen=True)
class Box:
    """A square cut of a frame, in its own pixels."""

    top: int
    left: int
    side: int


def random_box(height: int, width: int, jitter: float, draw_top: float, draw_left: float) -> Box:
    """The box that a random crop takes when the short side is resized to `jitter` times the crop; draws in [0, 1)."""
    side = max(1, round(min(height, width) / jitter))
    return Box(int(draw_top * (height - side + 1)), int(draw_left * (width - side + 1)), side)


def centre_box(height: int, width: int) -> Box:
    """The largest square in the middle: the evaluation crop is as large as the short side."""
    side = min(height, width)
    return Box((height - side) // 2, (width - side) // 2, side)


def crop_boxes(height: int, width: int, crops: int) -> tuple[Box, ...]:
    """The squares of an evaluation, as large as the short side: the centre one, or (`crops` 3) the two ends of the
    longer side around it, left or top first (FACTS: recipe). A square frame gives the same box thrice."""
    centre = centre_box(height, width)
    if crops == 1:
        return (centre,)
    return Box(0, 0, centre.side), centre, Box(height - centre.side, width - centre.side, centre.side)


def resize(clip_THWC: torch.Tensor, side: int) -> torch.Tensor:
    """Resize T x H x W x 3 uint8 to T x side x side x 3, bilinear with antialiasing."""
    if clip_THWC.shape[1] == clip_THWC.shape[2] == side:
        return clip_THWC
    clip_TCHW = clip_THWC.permute(0, 3, 1, 2)
    return interpolate(clip_TCHW, (side, side), mode="bilinear", antialias=True).permute(0, 2, 3, 1)


def normalise(clips_BTHWC: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    """uint8 B x T x H x W x C to float32 B x C x T x H x W, (x / 255 - mean) / std, channels-last in memory."""
    scaled = clips_BTHWC.to(torch.float32).mul_(1 / (255 * std)).sub_(mean / std)
    return scaled.permute(0, 4, 1, 2, 3)
