"""The built-in clips: a small set whose labels need every axis, rendered as real H.264 files on first use.

Coarse bands drift over a still picture of fine lines while the light pulses. The label is appearance x motion x
period, where the appearance is a hue and a texture: 4 x 2 x 2 = 16 classes named like `warm-rows-up-slow`.

- hue: `warm` or `cool`; one frame of any size tells it;
- texture: fine lines in `rows` or `columns`, 23 to the frame: needs pixels (evaluation at 32 px keeps a fifth of their
  contrast, at 48 px half, at 64 px 0.7);
- motion: the bands drift `up` or `down`, about every two seconds by their own length: needs several frames, and close
  enough in time;
- period: the light pulses about every 0.8 s (`fast`) or 2.4 s (`slow`): needs a clip of about a second.

Left and right do not matter, so the default horizontal flip does no harm.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from expand.config.schema import BuiltinConfig
from expand.data.pool import process_map
from expand.errors import DataError

HUES, TEXTURES = ("warm", "cool"), ("rows", "columns")
MOTIONS, PERIODS = ("up", "down"), ("fast", "slow")
CLASSES = tuple("-".join(parts) for parts in itertools.product(HUES, TEXTURES, MOTIONS, PERIODS))
SPLITS = ("train", "val", "test")
PERIOD_S = {"fast": 0.8, "slow": 2.4}

ONE_FRAME_CEILING = 1 / (len(MOTIONS) * len(PERIODS))
"""Best accuracy, 1/4, that any network can reach from one frame of a clip.

The bands' phase at time t is phase + direction x frequency x t modulo 1 with a phase uniform on [0, 1): uniform
whatever direction and frequency. The light at time t is a fixed function of a phase that is uniform too, whatever the
period. Both phases and every nuisance are drawn without looking at the label. So at any instant (bands, light,
nuisances) has one distribution for all four combinations of motion and period; a single frame tells nothing about
them, and with hue and texture known four equally frequent classes remain. (A mean of scores over several single-frame
views is blind to the direction for the same reason, since a clip run backwards has the same frames; the spread of its
brightness could tell the period in principle, so there the strict ceiling is 1/2. Training on one frame gives a
network no reason to use that.)"""

RENDERER = 3
"""Version of what is rendered; raise it with every change that alters a pixel."""
LINES = 23
"""Periods of the texture in a frame side: 1.6 px of the 36 px that a 32 px input is evaluated at, 2.3 px of 54 for
48."""
BANDS = 2.5
"""Periods of the drifting bands in a frame's height."""
BAND_HZ = 0.55
"""Periods of the bands that pass a point in a second: a quarter in the 14/30 s between the first two frames."""
LEVELS = {"bands": 44.0, "light": 19.0, "lines": 32.0, "hue": 10.0}
"""Mean amplitudes, grey levels."""


@dataclass(frozen=True)
class Drawing:
    """Everything that is random about a clip; amplitudes in grey levels, times in seconds, phases in [0, 1)."""

    direction: int
    band_hz: float
    bands: float
    band_phase: float
    band_level: float
    period_s: float
    light_phase: float
    light_level: float
    texture: str
    line_phase: float
    line_level: float
    hue_level: float
    background: float
    ripples: np.ndarray
    """4 x 4: fx, fy (periods a frame), phase, amplitude (grey levels)."""

    def band_position(self, time_s: np.ndarray) -> np.ndarray:
        """Phase of the bands at the top of the frame, in [0, 1)."""
        return (self.band_phase - self.direction * self.band_hz * time_s) % 1.0

    def light(self, time_s: np.ndarray) -> np.ndarray:
        """What the light adds everywhere, grey levels."""
        return self.light_level * np.sin(2 * np.pi * (time_s / self.period_s + self.light_phase))


def draw(rng: np.random.Generator, name: str) -> Drawing:
    """Draw a clip of class `name`. The label picks among the draws but never changes how many there are."""
    hue, texture, motion, period = name.split("-")
    u = rng.random(16)
    ripples = np.column_stack([rng.uniform(-1.5, 1.5, (4, 2)), rng.random(4), rng.uniform(1.0, 4.0, 4)])

    def about(mean: float, spread: float, draw: float) -> float:
        return mean * (1 + spread * (2 * draw - 1))

    return Drawing(
        direction=-1 if motion == "up" else 1, band_hz=about(BAND_HZ, 0.15, u[0]), bands=about(BANDS, 0.15, u[1]),
        band_phase=u[2], band_level=about(LEVELS["bands"], 0.2, u[3]), period_s=about(PERIOD_S[period], 0.1, u[4]),
        light_phase=u[5], light_level=about(LEVELS["light"], 0.2, u[6]), texture=texture, line_phase=u[7],
        line_level=about(LEVELS["lines"], 0.2, u[8]),
        hue_level=about(LEVELS["hue"], 0.4, u[9]) * (1 if hue == "warm" else -1), background=about(120, 0.08, u[10]),
        ripples=ripples)


def render(drawing: Drawing, size: int, times_s: np.ndarray) -> np.ndarray:
    """The frames at `times_s`, T x (3/2 size) x size uint8: planes Y, U, V one under the other (yuv420p)."""
    axis = (np.arange(size) + 0.5) / size
    still = np.full((size, size), drawing.background)
    for fx, fy, phase, amplitude in drawing.ripples:
        still += amplitude * np.cos(2 * np.pi * (fy * axis[:, None] + fx * axis[None, :] + phase))
    lines = drawing.line_level * np.sin(2 * np.pi * (LINES * axis + drawing.line_phase))
    still += lines[:, None] if drawing.texture == "rows" else lines[None, :]
    bands_TH = drawing.band_level * np.sin(
        2 * np.pi * (drawing.bands * axis[None, :] + drawing.band_position(times_s)[:, None]))
    moving_TH = (bands_TH + drawing.light(times_s)[:, None]).astype(np.float32)
    frames = np.empty((len(times_s), size * 3 // 2, size), dtype=np.uint8)
    luma = still.astype(np.float32) + moving_TH[:, :, None]
    frames[:, :size] = np.rint(np.clip(luma, 16, 235, out=luma), out=luma)
    chroma = frames[:, size:].reshape(len(times_s), 2, size // 2, size // 2)
    for plane, sign in enumerate((-1, 1)):  # U falls and V rises with warmth
        chroma[:, plane] = round(128 + sign * 0.6 * drawing.hue_level)
    return frames


def clip_files(config: BuiltinConfig, cache_dir: Path) -> dict[str, list[tuple[Path, int]]]:
    """(path, label) of every clip by split, whether rendered yet or not; balanced, the count of a split rounded up."""
    folder = set_folder(config, cache_dir)
    counts = {"train": config.train_clips, "val": config.val_clips, "test": config.test_clips}
    return {split: [(folder / split / name / f"{number:04d}.mp4", label)
                    for label, name in enumerate(CLASSES) for number in range(-(-counts[split] // len(CLASSES)))]
            for split in SPLITS}


def set_folder(config: BuiltinConfig, cache_dir: Path) -> Path:
    """Where the set of these settings lives: named by their hash and the renderer's version."""
    text = json.dumps([RENDERER, dataclasses.asdict(config)], sort_keys=True)
    return cache_dir / "builtin" / hashlib.sha256(text.encode()).hexdigest()[:16]


def ensure_rendered(config: BuiltinConfig, cache_dir: Path, workers: int, report: Callable[[str], None]) -> None:
    """Render the set unless it is there. It appears whole or not at all; a second process waits for the first.

    Raises `DataError` where the folder cannot be written.
    """
    folder = set_folder(config, cache_dir)
    if folder.is_dir():
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.parent / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # let go by the system when the process ends, however it ends
            for leftover in folder.parent.glob(".rendering-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            if not folder.is_dir():
                _render_set(config, cache_dir, folder, workers, report)
    except OSError as error:
        raise DataError(f"the built-in clips cannot be written: {error.strerror or error}", where=str(folder.parent),
                        fix="make room there, or name another folder with data.cache_dir") from error


def _render_set(config: BuiltinConfig, cache_dir: Path, folder: Path, workers: int,
                report: Callable[[str], None]) -> None:
    temporary = folder.parent / f".rendering-{uuid.uuid4().hex}"
    files = clip_files(config, cache_dir)
    jobs = [(temporary / path.relative_to(folder), CLASSES[label], [config.seed, number, index])
            for number, split in enumerate(SPLITS) for index, (path, label) in enumerate(files[split])]
    report(f"rendering {len(jobs)} built-in clips into {folder} (once)")
    for parent in {path.parent for path, _, _ in jobs}:
        parent.mkdir(parents=True)
    try:
        for _ in process_map(write_clip, config, jobs, workers):
            pass
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    os.replace(temporary, folder)


def write_clip(config: BuiltinConfig, job: tuple[Path, str, Sequence[int]]) -> None:
    """Render one clip as H.264; `job` is (path, class name, seed)."""
    import av  # late: naming the clips must not load a decoder

    path, name, seed = job
    size = config.size + config.size % 2  # 4:2:0 has no odd sizes
    times_s = np.arange(round(config.seconds * config.fps)) / config.fps
    drawing = draw(np.random.default_rng(seed), name)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=config.fps)
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {"preset": "ultrafast", "crf": "18", "g": str(config.fps)}
        for block_s in np.split(times_s, range(config.fps, len(times_s), config.fps)):  # what a core's cache holds
            for frame in render(drawing, size, block_s):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="yuv420p")))
        container.mux(stream.encode())
