"""The six axes of expansion (paper, section 3.2), one small object each.

An axis knows the networks that lie on its grid: `grow` gives the k-th grid value above a network, `grow_towards` the
k-th above it on the way to an already expanded one (for the contraction), `refusal` the reason why a network may not
be. How far to go is the search's decision (`expand.expansion.rules`), not an axis's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from expand.config.schema import GridConfig, LimitsConfig
from expand.space.factors import BASE_RESOLUTION, REFERENCE_FPS, Factors, round_half_up


@dataclass(frozen=True)
class Bounds:
    """The settings that shape the axes: grids, limits, and how X-Temporal divides its factor
    (`SearchConfig.temporal_split`)."""

    grid: GridConfig = field(default_factory=GridConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    temporal_split: float = 0.75


@dataclass(frozen=True)
class Axis:
    """An axis: `name` in configurations and file names, `title` as in the paper."""

    name: str
    title: str

    def grow(self, base: Factors, k: int, bounds: Bounds) -> Factors:
        """Return the network `k` grid steps above `base`."""
        raise NotImplementedError

    def grow_towards(self, base: Factors, expanded: Factors, k: int, bounds: Bounds) -> Factors:
        """Return the network `k` grid steps above `base` on the way to `expanded`."""
        return self.grow(base, k, bounds)

    def refusal(self, base: Factors, grown: Factors, bounds: Bounds) -> str | None:
        """Return the reason why the search may not go from `base` to `grown`; None where it may."""
        raise NotImplementedError

    def value(self, factors: Factors) -> str:
        """Return the axis's value in words, for tables and plots."""
        raise NotImplementedError


@dataclass(frozen=True)
class ScaleAxis(Axis):
    """Spatial size, depth, width or bottleneck: one factor on an evenly spaced grid."""

    factor: str
    option: str
    unit: str = ""
    symbol: str = ""

    def _read(self, factors: Factors) -> float:
        return factors.resolution if self.option == "resolution" else getattr(factors, self.factor)

    def grow(self, base: Factors, k: int, bounds: Bounds) -> Factors:
        value = round(self._read(base) + k * getattr(bounds.grid, self.option), 6)
        if self.option == "resolution":
            return replace(base, gamma_s=int(value) / BASE_RESOLUTION)
        return replace(base, **{self.factor: value})

    def refusal(self, base: Factors, grown: Factors, bounds: Bounds) -> str | None:
        limit = getattr(bounds.limits, self.option)
        value = self._read(grown)
        if limit is not None and value > limit:
            return (f"{self.symbol}{value:g}{self.unit} would pass the limit of {limit:g}{self.unit} "
                    f"(search.limits.{self.option})")
        return None

    def value(self, factors: Factors) -> str:
        return f"{self.symbol}{self._read(factors):g}{self.unit}"


@dataclass(frozen=True)
class TemporalAxis(Axis):
    """More frames: in the same clip duration (X-Fast), or in a longer clip at a higher rate too (X-Temporal).

    By a factor m in frames, X-Fast divides the stride by m; X-Temporal multiplies the duration by m^split and the
    stride by m^(split - 1), which takes 8 x 6 to the published 16 x 5. One frame has no duration, so that there
    the two are the same.
    """

    lengthens: bool

    def grow(self, base: Factors, k: int, bounds: Bounds) -> Factors:
        frames = base.frames + k * bounds.grid.frames
        ratio = frames / base.frames
        exponent = bounds.temporal_split - 1 if self.lengthens and base.frames > 1 else -1.0
        return replace(base, gamma_t=frames, gamma_tau=max(1, round_half_up(base.stride * ratio**exponent)))

    def grow_towards(self, base: Factors, expanded: Factors, k: int, bounds: Bounds) -> Factors:
        """Return fewer frames over the expanded clip's duration: 16 x 5 contracts to the published 13 x 6."""
        frames, limit_s = base.frames + k * bounds.grid.frames, bounds.limits.clip_s
        stride = max(1, round_half_up(expanded.stride * expanded.frames / frames))
        if limit_s is not None:  # an untrusted stride is not walked down step by step
            stride = max(1, min(stride, math.floor(limit_s * REFERENCE_FPS / max(1, frames - 1)) + 1))
        found = replace(base, gamma_t=frames, gamma_tau=stride)
        while limit_s is not None and found.span_s > limit_s and found.stride > 1:  # rounded up past the source clips
            found = replace(found, gamma_tau=found.stride - 1)
        return found

    def refusal(self, base: Factors, grown: Factors, bounds: Bounds) -> str | None:
        limits = bounds.limits
        if limits.frames is not None and grown.frames > limits.frames:
            return f"{grown.frames} frames would pass the limit of {limits.frames} (search.limits.frames)"
        if limits.clip_s is not None and grown.span_s > limits.clip_s:
            return (f"a clip of {self.value(grown)} would last {grown.span_s:.2f} s; the source clips allow "
                    f"{limits.clip_s:.2f} s (search.limits.clip_s)")
        if not self.lengthens and grown.stride >= base.stride:
            return f"the frame rate cannot rise above one in {base.stride} source frames"
        return None

    def value(self, factors: Factors) -> str:
        return f"{factors.frames} x {factors.stride}"


X_FAST = TemporalAxis("x_fast", "X-Fast", lengthens=False)
X_TEMPORAL = TemporalAxis("x_temporal", "X-Temporal", lengthens=True)
X_SPATIAL = ScaleAxis("x_spatial", "X-Spatial", "gamma_s", "resolution", unit=" px")
X_DEPTH = ScaleAxis("x_depth", "X-Depth", "gamma_d", "depth", symbol="γd ")
X_WIDTH = ScaleAxis("x_width", "X-Width", "gamma_w", "width", symbol="γw ")
X_BOTTLENECK = ScaleAxis("x_bottleneck", "X-Bottleneck", "gamma_b", "bottleneck", symbol="γb ")
AXES: dict[str, Axis] = {axis.name: axis for axis in
                         (X_FAST, X_TEMPORAL, X_SPATIAL, X_DEPTH, X_WIDTH, X_BOTTLENECK)}
