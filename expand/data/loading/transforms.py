"""The steps from stored frames to a network's input that every clip takes: crop, resize, normalise.

The crop is cut from the stored frames first, and only the crop is resized, once, with antialiasing, as uint8: the
result is the same as resizing the whole frame first, for less work. `resample` does the same for a whole batch on a
device. Random changes are in `augmentation.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch.nn.functional import interpolate

CACHED_VALUES = 1 << 20
"""Float values that fit in a core's cache, so that a second pass finds them there."""


@dataclass(frozen=True)
class Box:
    """A square part of a frame, in the frame's own pixels."""

    top: int
    left: int
    side: int


@dataclass(frozen=True, eq=False)
class Boxes:
    """K squares in each of N frames, in the frame's own pixels (int64); those of one frame have the same side."""

    top_NK: np.ndarray
    left_NK: np.ndarray
    side_N: np.ndarray

    @classmethod
    def of(cls, boxes: Sequence[Sequence[Box]]) -> Boxes:
        """Return the given boxes of each frame as arrays."""
        box_NK3 = np.array([[(box.top, box.left, box.side) for box in some] for some in boxes], dtype=np.int64)
        return cls(box_NK3[:, :, 0], box_NK3[:, :, 1], box_NK3[:, 0, 2])


def centre_box(height: int, width: int) -> Box:
    """Return the largest square in the middle of a frame: the evaluation crop is as large as the short side."""
    side = min(height, width)
    return Box((height - side) // 2, (width - side) // 2, side)


@lru_cache(64)
def crop_boxes(height: int, width: int, crops: int) -> tuple[Box, ...]:
    """Return the squares of an evaluation, as large as the short side: the centre one, or with `crops` 3 also those at
    both ends of the longer side, left or top first. A square frame gives the same box three times."""
    centre = centre_box(height, width)
    if crops == 1:
        return (centre,)
    return Box(0, 0, centre.side), centre, Box(height - centre.side, width - centre.side, centre.side)


def resize(clip_THWC: torch.Tensor, side: int) -> torch.Tensor:
    """Resize T x H x W x 3 uint8 to T x side x side x 3, bilinear with antialiasing."""
    if clip_THWC.shape[1] == clip_THWC.shape[2] == side:
        return clip_THWC
    clip_TCHW = clip_THWC.permute(0, 3, 1, 2)  # channels-last, which torch's vectorised kernel takes without a copy
    return interpolate(clip_TCHW, (side, side), mode="bilinear", antialias=True).permute(0, 2, 3, 1)


def normalise(clips_BTHWC: torch.Tensor, mean: float, std: float, out: torch.Tensor | None = None) -> torch.Tensor:
    """Turn uint8 B x T x H x W x C into float32 B x C x T x H x W, (x / 255 - mean) / std, channels-last in memory.

    The result is written into `out` (float32 B x T x H x W x C) if that is given.
    """
    if out is None:
        out = torch.empty(clips_BTHWC.shape, dtype=torch.float32)
    bias = torch.tensor(-mean / std)
    few = max(1, CACHED_VALUES // max(1, math.prod(clips_BTHWC.shape[1:])))
    for values, scaled in zip(clips_BTHWC.split(few), out.split(few), strict=True):
        scaled.copy_(values)
        torch.add(bias, scaled, alpha=1 / (255 * std), out=scaled)
    return out.permute(0, 4, 1, 2, 3)


def resample(cuts_BTSSC: torch.Tensor, side_B: torch.Tensor, flip_B: torch.Tensor, side: int, mean: float,
             std: float) -> torch.Tensor:
    """Resize, flip and normalise a batch of cuts on their device, as two batched matrix products for all clips.

    `cuts` is uint8 B x T x S x S x C, of which the first `side_B` (int64) rows and columns count; `flip_B` is bool. The
    result is float32 B x C x T x side x side, channels-last in memory. The weights are those of `resize`, but nothing
    is rounded between: values are within 1.5 / 255 / std of those of `resize`, a flip and `normalise`.
    """
    batch, frames, size, _, channels = cuts_BTSSC.shape
    down_BOS = _resize_weights(side_B, side, size)
    across_BOS = torch.where(flip_B[:, None, None], down_BOS.flip(1), down_BOS) / (255 * std)
    lines_BSN = cuts_BTSSC.permute(0, 2, 1, 3, 4).to(torch.float32).reshape(batch, size, frames * size * channels)
    with _exact_products(cuts_BTSSC.device):
        rows_BOTSC = torch.bmm(down_BOS, lines_BSN).view(batch, side, frames, size, channels)
        lines_BNS = rows_BOTSC.permute(0, 2, 1, 4, 3).reshape(batch, frames * side * channels, size)
        x_BTHCW = torch.bmm(lines_BNS, across_BOS.transpose(1, 2)).view(batch, frames, side, channels, side)
    scaled_BTHWC = x_BTHCW.permute(0, 1, 2, 4, 3).contiguous().sub_(mean / std)
    return scaled_BTHWC.permute(0, 4, 1, 2, 3)


@contextmanager
def _exact_products(device: torch.device) -> Iterator[None]:
    """Compute matrix products in full float32, whatever precision the training uses.

    bfloat16 or TF32 would round pixels to fewer steps than they have.
    """
    matmul = torch.backends.cuda.matmul
    is_rounded = matmul.allow_tf32
    matmul.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        matmul.allow_tf32 = is_rounded


def _resize_weights(side_B: torch.Tensor, side: int, size: int) -> torch.Tensor:
    """Return bilinear weights with antialiasing from `side_B` of `size` pixels to `side`: B x side x size.

    Each row sums to 1.
    """
    scale_B = side_B.to(torch.float32)[:, None, None] / side
    centre_BO = scale_B * (torch.arange(side, device=side_B.device)[:, None] + 0.5)
    pixel_S = torch.arange(size, device=side_B.device)
    weight_BOS = (1 - (pixel_S + 0.5 - centre_BO).abs() / scale_B.clamp_min(1)).clamp_min(0)
    weight_BOS = weight_BOS * (pixel_S < side_B[:, None, None])
    return weight_BOS / weight_BOS.sum(2, keepdim=True)
