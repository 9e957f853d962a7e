"""The six factors of an X3D network, and the published ones (paper, table 1 and section 4)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

BASE_RESOLUTION = 112
"""Pixels at gamma_s = 1."""
REFERENCE_FPS = 30
"""gamma_tau counts frames of a source at this rate; the data room samples on the time axis accordingly."""


def round_half_up(value: float) -> int:
    """Return the nearest integer, halves upwards: Python's `round` would send 2.5 to 2 and 3.5 to 4."""
    return math.floor(value + 0.5)


def span_s(frames: int, stride: int) -> float:
    """Return the time from the first to the last frame of a clip, seconds."""
    return (frames - 1) * stride / REFERENCE_FPS


@dataclass(frozen=True)
class Factors:
    """One point of the space. Everything about a network but its number of classes follows from it.

    `gamma_tau`: one frame is taken every so many source frames (30 fps); `gamma_t`: frames in the clip; `gamma_s`:
    side of the square input / 112; `gamma_w`, `gamma_b`, `gamma_d`: width, bottleneck and depth against the X2D basis.
    """

    gamma_tau: int
    gamma_t: int
    gamma_s: float
    gamma_w: float = 1.0
    gamma_b: float = 1.0
    gamma_d: float = 1.0

    @classmethod
    def of(cls, *, frames: int, stride: int, resolution: int, width: float = 1.0, bottleneck: float = 1.0,
           depth: float = 1.0) -> Factors:
        """Return the factors of a clip of `frames` frames, `stride` source frames apart, `resolution` pixels square."""
        return cls(gamma_tau=stride, gamma_t=frames, gamma_s=resolution / BASE_RESOLUTION,
                   gamma_w=width, gamma_b=bottleneck, gamma_d=depth)

    @property
    def frames(self) -> int:
        """Frames in the clip."""
        return self.gamma_t

    @property
    def stride(self) -> int:
        """Source frames (30 fps) between two frames of the clip."""
        return self.gamma_tau

    @property
    def resolution(self) -> int:
        """Side of the square input, pixels."""
        return round_half_up(self.gamma_s * BASE_RESOLUTION)

    @property
    def span_s(self) -> float:
        """Time from the first to the last frame of the clip, seconds."""
        return span_s(self.frames, self.stride)

    def as_dict(self) -> dict[str, Any]:
        """Return the factors under their symbols' names."""
        return asdict(self)


def _preset(frames: int, stride: int, resolution: int, width: float = 1.0, bottleneck: float = 2.25,
               depth: float = 2.2) -> Factors:
    return Factors.of(frames=frames, stride=stride, resolution=resolution, width=width, bottleneck=bottleneck,
                      depth=depth)


# X2D has one frame, so its stride is never seen by a network; 28 is the span that the paper's path divides.
X2D = Factors.of(frames=1, stride=28, resolution=112)
PRESETS: dict[str, Factors] = {
    "x2d": X2D,
    "xs": _preset(4, 12, 160),
    "s": _preset(13, 6, 160),
    "m": _preset(16, 5, 224),
    "l": _preset(16, 5, 312, depth=5.0),
    "xl": _preset(16, 5, 312, width=1.45, depth=5.0),
}
PUBLISHED_CLASSES = 400
"""Kinetics-400, with which the published complexities are counted."""
