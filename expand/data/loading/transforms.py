"""The steps from stored frames to a network's input: random changes in training, crop, resize, normalise.

`Augmentation.draw` draws the random numbers of a sample's time, size, place, flip and colours; they follow from (seed,
epoch, the clip's index) alone. `random_boxes` and `jitter_colors` apply them; `pictures.py` mirrors. A new augmentation
takes a random stream of its own, so that no option moves another's numbers, a field of `Changes`, and its operation
here.

The crop is cut from the stored frames first, and only the crop is resized, once, with antialiasing, as uint8: the
result is the same as resizing the whole frame first, for less work. `resample` does the same for a whole batch on a
device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch.nn.functional import interpolate

from expand.config.schema import DataConfig

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


SAMPLE_STREAM, COLOR_STREAM = 2, 3
"""First words of the seeds of the random streams, which keep them apart; the order of an epoch has 1."""
DRAWS = 5
"""Random numbers of a sample: time, scale, top, left, flip. Always as many."""


@dataclass(frozen=True, eq=False)
class Changes:
    """The random changes of N samples."""

    when_N: np.ndarray
    """Place of the clip among the times that fit, in [0, 1)."""
    jitter_N: np.ndarray
    """Short side of the resized frame, as a multiple of the crop."""
    top_N: np.ndarray
    left_N: np.ndarray
    """Place of the crop among those that fit, in [0, 1)."""
    flip_N: np.ndarray
    color_N3: np.ndarray | None
    """Factors of `jitter_colors`; None: colours stay as they are."""


class Augmentation:
    """The random changes of `clips` clips in each epoch of a training.

    All numbers of an epoch are drawn at once: a generator for each sample costs a tenth of the sample. A clip's numbers
    are the same however many clips follow.
    """

    def __init__(self, clips: int, seed: int, config: DataConfig) -> None:
        self._clips, self._seed, self._config = clips, seed, config
        self._epoch: tuple[int, np.ndarray, np.ndarray | None] | None = None

    def draw(self, epoch: int, indices: Sequence[int]) -> Changes:
        """Return the changes of the clips `indices` in `epoch`."""
        config, strength = self._config, self._config.color_jitter
        if self._epoch is None or self._epoch[0] != epoch:
            draws_CD = np.random.default_rng([SAMPLE_STREAM, self._seed, epoch]).random((self._clips, DRAWS))
            colors = np.random.default_rng([COLOR_STREAM, self._seed, epoch])
            color_C3 = 1 + strength * (2 * colors.random((self._clips, 3)) - 1) if strength else None
            self._epoch = epoch, draws_CD, color_C3
        _, draws_CD, color_C3 = self._epoch
        when_N, scale_N, top_N, left_N, flip_N = draws_CD[indices].T
        return Changes(when_N, config.jitter_min + scale_N * (config.jitter_max - config.jitter_min), top_N, left_N,
                       config.flip & (flip_N < 0.5), None if color_C3 is None else color_C3[indices])


def random_boxes(height_N: np.ndarray, width_N: np.ndarray, jitter_N: np.ndarray, draw_top_N: np.ndarray,
                 draw_left_N: np.ndarray) -> Boxes:
    """Return the box of a random crop in each frame whose short side is resized to `jitter` times the crop.

    The draws of the position are in [0, 1).
    """
    side_N = np.maximum(1, np.rint(np.minimum(height_N, width_N) / jitter_N).astype(np.int64))
    top_N = (draw_top_N * (height_N - side_N + 1)).astype(np.int64)
    left_N = (draw_left_N * (width_N - side_N + 1)).astype(np.int64)
    return Boxes(top_N[:, None], left_N[:, None], side_N)


def jitter_colors(clip_THWC: torch.Tensor, factors: Sequence[float]) -> torch.Tensor:
    """Change brightness, contrast and saturation of T x H x W x 3 uint8 by the three `factors`; 1 changes nothing.

    All frames of a clip get the same factors, with torchvision's operations in this order.
    """
    from torchvision.transforms.v2 import functional  # late: only a training with color_jitter needs it

    brightness, contrast, saturation = factors
    clip_TCHW = functional.adjust_brightness(clip_THWC.permute(0, 3, 1, 2), brightness)
    clip_TCHW = functional.adjust_saturation(functional.adjust_contrast(clip_TCHW, contrast), saturation)
    return clip_TCHW.permute(0, 2, 3, 1)


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
    scale_B = side_B.to(torch.float32)[:, None, None] / side
    centre_BO = scale_B * (torch.arange(side, device=side_B.device)[:, None] + 0.5)
    pixel_S = torch.arange(size, device=side_B.device)
    weight_BOS = (1 - (pixel_S + 0.5 - centre_BO).abs() / scale_B.clamp_min(1)).clamp_min(0)
    weight_BOS = weight_BOS * (pixel_S < side_B[:, None, None])
    down_BOS = weight_BOS / weight_BOS.sum(2, keepdim=True)  # bilinear with antialiasing
    across_BOS = torch.where(flip_B[:, None, None], down_BOS.flip(1), down_BOS) / (255 * std)
    lines_BSN = cuts_BTSSC.permute(0, 2, 1, 3, 4).to(torch.float32).reshape(batch, size, frames * size * channels)
    matmul = torch.backends.cuda.matmul
    is_rounded = matmul.allow_tf32
    matmul.allow_tf32 = False  # TF32, and bfloat16 too, would round pixels to fewer steps than they have
    try:
        with torch.autocast(cuts_BTSSC.device.type, enabled=False):
            rows_BOTSC = torch.bmm(down_BOS, lines_BSN).view(batch, side, frames, size, channels)
            lines_BNS = rows_BOTSC.permute(0, 2, 1, 4, 3).reshape(batch, frames * side * channels, size)
            x_BTHCW = torch.bmm(lines_BNS, across_BOS.transpose(1, 2)).view(batch, frames, side, channels, side)
    finally:
        matmul.allow_tf32 = is_rounded
    scaled_BTHWC = x_BTHCW.permute(0, 1, 2, 4, 3).contiguous().sub_(mean / std)
    return scaled_BTHWC.permute(0, 4, 1, 2, 3)
