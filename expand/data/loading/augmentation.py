"""The augmentations of a training: each sample's random time, size, place, flip and colours.

`Augmentation.draw` draws the numbers, which follow from (seed, epoch, the clip's index) alone. `random_boxes` and
`jitter_colors` apply them; `pictures.py` mirrors. A new augmentation takes a random stream of its own, so that no
option moves another's numbers, a field of `Changes`, and its operation here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from expand.config.schema import DataConfig
from expand.data.loading.transforms import Boxes

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
