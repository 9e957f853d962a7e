"""A rendered clip: its random parameters and its frames. `expand.data.synthetic.cues` explains the cues in them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from expand.config.schema import BuiltinConfig
from expand.data.synthetic.cues import levels_of

PERIOD_S = {"fast": 0.8, "slow": 2.4}
"""Seconds from one pulse of the light to the next in the built-in set."""
BANDS = 2.5
"""Periods of the drifting bands in a frame's height."""
LEVELS = {"bands": 44.0, "light": 19.0, "lines": 32.0, "hue": 10.0, "bars": 44.0, "paper": 56.0}
"""Mean amplitudes at strength 1, grey levels."""
BUILTIN = BuiltinConfig()


@dataclass(frozen=True)
class Drawing:
    """All random parameters of a clip; amplitudes in grey levels, times in seconds, phases in [0, 1)."""

    direction: int
    band_hz: float
    bands: float
    band_phase: float
    band_level: float
    period_s: float
    light_phase: float
    light_level: float
    texture: str
    lines: int
    line_phase: float
    line_level: float
    hue_level: float
    background: float
    ripples: np.ndarray
    """4 x 4: fx, fy (periods a frame), phase, amplitude (grey levels)."""
    step_s: float
    step_phase: float
    steps: tuple[int, int]
    """Quarters of a period that the bars jump, in turn."""
    bars: float
    bar_phase: float
    bar_level: float
    paper: tuple[float, float]
    """Colour of the paper: its addition to U and V."""

    def band_position(self, time_s: np.ndarray) -> np.ndarray:
        """Return the phase of the bands at the top of the frame, in [0, 1)."""
        return (self.band_phase - self.direction * self.band_hz * time_s) % 1.0

    def light(self, time_s: np.ndarray) -> np.ndarray:
        """Return the brightness that the light adds everywhere, grey levels."""
        return self.light_level * np.sin(2 * np.pi * (time_s / self.period_s + self.light_phase))

    def bar_position(self, time_s: np.ndarray) -> np.ndarray:
        """Return the phase of the bars at the left of the frame, in [0, 1)."""
        jumps = np.floor(time_s / self.step_s + 2 * self.step_phase)
        quarters = np.ceil(jumps / 2) * self.steps[0] + np.floor(jumps / 2) * self.steps[1]
        return (self.bar_phase + quarters / 4) % 1.0


def draw(rng: np.random.Generator, name: str, config: BuiltinConfig = BUILTIN) -> Drawing:
    """Draw a clip of class `name`. The label chooses among the draws but never changes their number."""
    level = levels_of(name, config)
    u = rng.random(16)
    ripples = np.column_stack([rng.uniform(-1.5, 1.5, (4, 2)), rng.random(4), rng.uniform(1.0, 4.0, 4)])

    def about(mean: float, spread: float, draw: float) -> float:
        return mean * (1 + spread * (2 * draw - 1))

    first_step = 1 if u[13] < 0.5 else -1
    slowness = config.pulse_s / PERIOD_S["fast"]  # exactly 1 in the built-in set
    return Drawing(
        direction=-1 if level.get("motion") == "up" else 1, band_hz=about(config.drift_hz, 0.15, u[0]),
        bands=about(BANDS, 0.15, u[1]), band_phase=u[2],
        band_level=config.motion * about(LEVELS["bands"], 0.2, u[3]),
        period_s=about(slowness * PERIOD_S[level.get("period", "fast")], 0.1, u[4]), light_phase=u[5],
        light_level=config.period * about(LEVELS["light"], 0.2, u[6]), texture=level.get("texture", "rows"),
        lines=config.lines, line_phase=u[7], line_level=config.texture * about(LEVELS["lines"], 0.2, u[8]),
        hue_level=config.hue * about(LEVELS["hue"], 0.4, u[9]) * (1 if level.get("hue") == "warm" else -1),
        background=about(120, 0.08, u[10]), ripples=ripples, step_s=about(config.step_s, 0.03, u[11]),
        step_phase=u[12], steps=(first_step, -first_step if level.get("steps") == "back" else first_step),
        bars=BANDS, bar_phase=u[14],
        bar_level=config.steps * LEVELS["bars"],
        paper=_paper_color(level.get("appearance", "p00"), config, rng.random(2)))


def _paper_color(name: str, config: BuiltinConfig, draws: np.ndarray) -> tuple[float, float]:
    """Return U and V of the paper `name`: a point of a square grid, moved by less than half the way to the next."""
    side = math.ceil(math.sqrt(config.patterns))
    places = divmod(int(name[1:]), side)
    u, v = (config.appearance * (LEVELS["paper"] * (2 * place / (side - 1) - 1) + 5 * (draw - 0.5))
            for place, draw in zip(places, draws, strict=True))
    return u, v


def render(drawing: Drawing, size: int, times_s: np.ndarray) -> np.ndarray:
    """Return the frames at `times_s`, T x (3/2 size) x size uint8: planes Y, U, V one under the other (yuv420p)."""
    axis = (np.arange(size) + 0.5) / size
    still = _draw_still(drawing, axis)
    bands_TH = drawing.band_level * np.sin(
        2 * np.pi * (drawing.bands * axis[None, :] + drawing.band_position(times_s)[:, None]))
    moving_TH = (bands_TH + drawing.light(times_s)[:, None]).astype(np.float32)
    frames = np.empty((len(times_s), size * 3 // 2, size), dtype=np.uint8)
    luma = still.astype(np.float32) + moving_TH[:, :, None]
    if drawing.bar_level:
        bars_TW = drawing.bar_level * np.sin(
            2 * np.pi * (drawing.bars * axis[None, :] + drawing.bar_position(times_s)[:, None]))
        luma += bars_TW.astype(np.float32)[:, None, :]
    frames[:, :size] = np.rint(np.clip(luma, 16, 235, out=luma), out=luma)
    chroma = frames[:, size:].reshape(len(times_s), 2, size // 2, size // 2)
    for plane, sign in enumerate((-1, 1)):  # U falls and V rises with warmth
        chroma[:, plane] = min(240, max(16, round(128 + sign * 0.6 * drawing.hue_level + drawing.paper[plane])))
    return frames


def _draw_still(drawing: Drawing, axis: np.ndarray) -> np.ndarray:
    """Return the part of the picture that does not change over time, H x W grey levels."""
    still = np.full((len(axis), len(axis)), drawing.background)
    for fx, fy, phase, amplitude in drawing.ripples:
        still += amplitude * np.cos(2 * np.pi * (fy * axis[:, None] + fx * axis[None, :] + phase))
    if drawing.line_level:
        lines = drawing.line_level * np.sin(2 * np.pi * (drawing.lines * axis + drawing.line_phase))
        still += lines[:, None] if drawing.texture == "rows" else lines[None, :]
    return still
