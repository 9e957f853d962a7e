"""From factors to layer shapes: the one place where widths, depths and sides are rounded (FACTS: network)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from expand.errors import UsageError
from expand.space.factors import Factors

BASE_WIDTH = 12
BASE_DEPTHS = (1, 2, 5, 3)
WIDTH_FACTOR = 2.0  # the public configurations' factor at the paper's gamma_w = 1
HEAD_WIDTH = 2048
SE_RATIO = 0.0625
_EXACT = 6  # decimals kept before a floor or a ceiling, so that 2.2 * 5 counts as 11 and not as 11.000000000000002


def round_width(width: float, multiplier: float = 1.0, minimum: int = 8, divisor: int = 8) -> int:
    """Return `width * multiplier` rounded to a multiple of `divisor`, never more than a tenth below."""
    width = round(width * multiplier, _EXACT)
    rounded = max(minimum, int(width + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * width else rounded


def halve(side: int) -> int:
    """Return the side after a convolution of stride 2 with kernel 3 and padding 1."""
    return (side + 1) // 2


def evaluation_crop(resolution: int) -> int:
    """Return the side of the evaluation crop for a training crop of `resolution` pixels (160: 182, 224: 256)."""
    return resolution * 8 // 7


def stage_widths(gamma_w: float, gamma_b: float) -> list[tuple[int, int]]:
    """Return the channels of each stage's blocks: outside, and inside of the bottleneck, where 0 makes no network."""
    widths, width = [], BASE_WIDTH
    for _ in BASE_DEPTHS:
        outer = round_width(width, WIDTH_FACTOR * gamma_w)
        widths.append((outer, int(round(gamma_b * outer, _EXACT))))
        width = round_width(width, 2.0)
    return widths


@dataclass(frozen=True)
class Block:
    """A residual block: 1x1x1 to `inner`, depthwise 3x3x3 with spatial `stride`, 1x1x1 to `outer`.

    `se`: hidden width of squeeze-and-excitation, 0 for none. `projection`: the shortcut is a convolution;
    `projection_bn`: with batch norm.
    """

    outer_in: int
    inner: int
    outer: int
    stride: int
    se: int
    projection: bool
    projection_bn: bool


@dataclass(frozen=True)
class Geometry:
    """All shapes of a network. `frames` and `resolution` describe the training clip; weights do not depend on them."""

    stem: int
    stages: tuple[tuple[Block, ...], ...]
    head_inner: int
    classes: int
    frames: int
    resolution: int
    head: int = HEAD_WIDTH

    @property
    def head_window(self) -> tuple[int, int, int]:
        """Size of a training clip's features, T x H x W: what the head averages over."""
        side = self.resolution
        for _ in range(1 + len(self.stages)):
            side = halve(side)
        return self.frames, side, side

    @property
    def least_clips(self) -> int:
        """Fewest clips that can be trained on at a time: batch norm takes a variance, which needs two values a channel.
        The last stage and the head have fewest, `head_window` a clip: only of one frame and up to 32 pixels one."""
        return 1 if math.prod(self.head_window) > 1 else 2

    @classmethod
    def of(cls, factors: Factors, classes: int, *, first_projection_bn: bool = True) -> Geometry:
        """Return the shapes of the network of `factors` with `classes` outputs.

        `first_projection_bn`: batch norm on the first stage's shortcut, as in SlowFast; PyTorchVideo has none there.

        Raises `UsageError` where gamma_b leaves a block without a filter.
        """
        widths = stage_widths(factors.gamma_w, factors.gamma_b)
        stem = outer_in = widths[0][0]
        stages: list[tuple[Block, ...]] = []
        for (outer, inner), base_depth in zip(widths, BASE_DEPTHS, strict=True):
            if inner < 1:
                raise UsageError(f"gamma_b {factors.gamma_b:g} leaves blocks of {outer} channels without a filter",
                                 where="bottleneck", fix=f"it must be at least {1 / outer:g} at this width")
            depth = math.ceil(round(factors.gamma_d * base_depth, _EXACT))
            se = round_width(inner, SE_RATIO)
            first = Block(outer_in, inner, outer, stride=2, se=se, projection=True,
                          projection_bn=bool(stages) or first_projection_bn)
            odd, even = (Block(outer, inner, outer, stride=1, se=s, projection=False, projection_bn=False)
                         for s in (0, se))
            stages.append((first, *(even if i % 2 == 0 else odd for i in range(1, depth))))
            outer_in = outer
        return cls(stem=stem, stages=tuple(stages), head_inner=inner, classes=classes, frames=factors.frames,
                   resolution=factors.resolution)
