"""From stored frames to a network's input: crop, resize, flip, normalise.

The crop is cut from the stored frames first and only that is resized, once, with antialiasing, as uint8: the same
picture as resizing the whole frame and cropping then, for less work. `resample` does the same for a whole batch on a
device.
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
"""Float values that stay in a core's cache from one pass to the next."""


@dataclass(frozen=True)
class Box:
    """A square cut of a frame, in its own pixels."""

    top: int
    left: int
    side: int


@dataclass(frozen=True, eq=False)
class Boxes:
    """K squares in each of N frames, those of a frame equally large: int64, in the frame's own pixels."""

    top_NK: np.ndarray
    left_NK: np.ndarray
    side_N: np.ndarray

    @classmethod
    def of(cls, boxes: Sequence[Sequence[Box]]) -> Boxes:
        """The boxes of each frame."""
        box_NK3 = np.array([[(box.top, box.left, box.side) for box in some] for some in boxes], dtype=np.int64)
        return cls(box_NK3[:, :, 0], box_NK3[:, :, 1], box_NK3[:, 0, 2])


def random_boxes(height_N: np.ndarray, width_N: np.ndarray, jitter_N: np.ndarray, draw_top_N: np.ndarray,
                 draw_left_N: np.ndarray) -> Boxes:
    """The box that a random crop takes of each frame when its short side is resized to `jitter` times the crop; draws
    in [0, 1)."""
    side_N = np.maximum(1, np.rint(np.minimum(height_N, width_N) / jitter_N).astype(np.int64))
    top_N = (draw_top_N * (height_N - side_N + 1)).astype(np.int64)
    left_N = (draw_left_N * (width_N - side_N + 1)).astype(np.int64)
    return Boxes(top_N[:, None], left_N[:, None], side_N)


def centre_box(height: int, width: int) -> Box:
    """The largest square in the middle: the evaluation crop is as large as the short side."""
    side = min(height, width)
    return Box((height - side) // 2, (width - side) // 2, side)


@lru_cache(64)
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
    clip_TCHW = clip_THWC.permute(0, 3, 1, 2)  # channels-last, which torch's vectorised kernel takes as it lies
    return interpolate(clip_TCHW, (side, side), mode="bilinear", antialias=True).permute(0, 2, 3, 1)


def normalise(clips_BTHWC: torch.Tensor, mean: float, std: float, out: torch.Tensor | None = None) -> torch.Tensor:
    """uint8 B x T x H x W x C to float32 B x C x T x H x W, (x / 255 - mean) / std, channels-last in memory; written
    into `out` (float32 B x T x H x W x C) where that is given."""
    if out is None:
        out = torch.empty(clips_BTHWC.shape, dtype=torch.float32)
    bias = torch.tensor(-mean / std)
    few = max(1, CACHED_VALUES // max(1, math.prod(clips_BTHWC.shape[1:])))
    for values, scaled in zip(clips_BTHWC.split(few), out.split(few)):
        scaled.copy_(values)
        torch.add(bias, scaled, alpha=1 / (255 * std), out=scaled)
    return out.permute(0, 4, 1, 2, 3)


def resample(cuts_BTSSC: torch.Tensor, side_B: torch.Tensor, flip_B: torch.Tensor, side: int, mean: float,
             std: float) -> torch.Tensor:
    """What `resize`, a flip and `normalise` make of a batch of cuts, on the device where they lie: two batched matrix
    products for all clips together. float32 B x C x T x side x side, channels-last in memory.

    `cuts`: uint8 B x T x S x S x C, of which the first `side_B` (int64) rows and columns count; `flip_B`: bool. The
    weights are those of `resize`, but nothing is rounded on the way: values are within 1.5 / 255 / std of its own.
    """
    batch, frames, size, _, channels = cuts_BTSSC.shape
    down_BOS = _triangles(side_B, side, size)
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
    """Matrix products in float32 as it is, whatever a training around them allows: bfloat16 or TF32 would round pixels
    to fewer steps than they have."""
    matmul = torch.backends.cuda.matmul
    is_rounded = matmul.allow_tf32
    matmul.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        matmul.allow_tf32 = is_rounded


def _triangles(side_B: torch.Tensor, side: int, size: int) -> torch.Tensor:
    """Bilinear weights with antialiasing from `side_B` of `size` pixels to `side`: B x side x size, rows sum to 1."""
    scale_B = side_B.to(torch.float32)[:, None, None] / side
    centre_BO = scale_B * (torch.arange(side, device=side_B.device)[:, None] + 0.5)
    pixel_S = torch.arange(size, device=side_B.device)
    weight_BOS = (1 - (pixel_S + 0.5 - centre_BO).abs() / scale_B.clamp_min(1)).clamp_min(0)
    weight_BOS = weight_BOS * (pixel_S < side_B[:, None, None])
    return weight_BOS / weight_BOS.sum(2, keepdim=True)
