"""The built-in clips: a small set whose labels need every axis, rendered as real H.264 files on first use.

A soft disc drifts over a smooth, still background. The label is appearance x motion x period, 3 x 2 x 2 = 12 classes
named like `plain-up-slow`:

- appearance: `plain`, or a grating of `rows` or `columns` on the disc with the same mean brightness, so fine that an
  input of about 40 px or fewer blurs it away and one of 64 px or more shows it: needs pixels;
- motion: the disc drifts `up` or `down`, about half a frame height a second, and wraps around: needs several frames
  close enough in time;
- period: its contrast pulses about every 0.8 s (`fast`) or 2.4 s (`slow`): needs a long clip.

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

APPEARANCES, MOTIONS, PERIODS = ("plain", "rows", "columns"), ("up", "down"), ("fast", "slow")
CLASSES = tuple("-".join(parts) for parts in itertools.product(APPEARANCES, MOTIONS, PERIODS))
SPLITS = ("train", "val", "test")
PERIOD_S = {"fast": 0.8, "slow": 2.4}

ONE_FRAME_CEILING = 1 / (len(MOTIONS) * len(PERIODS))
"""Best accuracy, 1/4, that any network can reach from one frame of a clip.

Position at time t is phase + direction x speed x t modulo 1 with a phase uniform on [0, 1): uniform whatever direction
and speed. Brightness at time t is a fixed function of a pulse phase that is uniform too, whatever the period. Both
phases and every nuisance are drawn without looking at the label. So at any instant (position, brightness, nuisances)
has one distribution for all four combinations of motion and period; a single frame tells nothing about them, and with
the appearance known four equally frequent classes remain. (A mean of scores over several single-frame views of a clip
is blind to the direction for the same reason, since a clip run backwards has the same frames; the spread of its
brightness could tell the period in principle, so there the strict ceiling is 1/2. Training on one frame gives a
network no reason to use that.)"""

RENDERER = 2
"""Version of what is rendered; raise it with every change that alters a pixel."""
SPEED = 0.5
"""Frame heights a second, +-20 %."""
PULSE = 0.6
"""The contrast swings between 1 - PULSE and 1 + PULSE times its mean."""
GRATING = 0.8
"""Amplitude of the grating as a share of the disc's contrast."""
GRATING_LINES = 40
"""Periods of the grating in a frame side. Resizing leaves of its contrast about 2 % at the 45 px that a 40 px input is
evaluated at, 10 % at 54 px (input 48), 33 % at 73 px (input 64): the square of sinc(lines / pixels)."""
EDGE_PX = 1.5
"""Width of the disc's soft edge, pixels."""
SHORTEST_PERIOD_PX = 2.4
"""A finer grating would not survive the encoder."""


@dataclass(frozen=True)
class Drawing:
    """Everything that is random about a clip; lengths in frame sides, times in seconds, phases in [0, 1)."""

    direction: int
    speed: float
    phase: float
    x: float
    diameter: float
    contrast: float
    period_s: float
    pulse_phase: float
    grating: str
    grating_phase: float
    tint_UV: tuple[float, float]
    background_Y: float
    ripples: np.ndarray
    """4 x 4: fx, fy (periods a frame), phase, amplitude (grey levels)."""

    def position(self, time_s: np.ndarray) -> np.ndarray:
        """Height of the disc's centre, in [0, 1) from the top."""
        return (self.phase + self.direction * self.speed * time_s) % 1.0

    def brightness(self, time_s: np.ndarray) -> np.ndarray:
        """Contrast against the background, grey levels."""
        return self.contrast * (1 + PULSE * np.sin(2 * np.pi * (time_s / self.period_s + self.pulse_phase)))


def draw(rng: np.random.Generator, name: str) -> Drawing:
    """Draw a clip of class `name`. The label picks among the draws but never changes how many there are."""
    appearance, motion, period = name.split("-")
    u = rng.random(16)
    ripples = np.column_stack([rng.uniform(-1.5, 1.5, (4, 2)), rng.random(4), rng.uniform(0.5, 2.0, 4)])
    return Drawing(direction=-1 if motion == "up" else 1, speed=SPEED * (0.8 + 0.4 * u[0]), phase=u[1],
                   x=0.35 + 0.3 * u[2], diameter=0.45 + 0.1 * u[3], contrast=40 * (0.85 + 0.3 * u[4]),
                   period_s=PERIOD_S[period] * (0.9 + 0.2 * u[5]), pulse_phase=u[6], grating=appearance,
                   grating_phase=u[7], tint_UV=(24 * (u[8] - 0.5), 24 * (u[9] - 0.5)),
                   background_Y=60 + 25 * u[10], ripples=ripples)


def render(drawing: Drawing, size: int, times_s: np.ndarray) -> np.ndarray:
    """The frames at `times_s`, T x (3/2 size) x size uint8: planes Y, U, V one under the other (yuv420p)."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    y, x = axis[:, None], axis[None, :]
    background = np.full((size, size), drawing.background_Y)
    for fx, fy, phase, amplitude in drawing.ripples:
        background += amplitude * np.cos(2 * np.pi * (fy * y + fx * x + phase))
    down = np.abs(axis - drawing.position(times_s)[:, None].astype(np.float32))
    down = np.minimum(down, 1 - down)[:, :, None]  # the way around the wrap may be the shorter one
    disc = np.square(x - np.float32(drawing.x)) + np.square(down)
    np.sqrt(disc, out=disc)
    np.multiply(drawing.diameter / 2 - disc, size / EDGE_PX, out=disc)
    np.clip(disc + 0.5, 0, 1, out=disc)
    brightness = drawing.brightness(times_s)[:, None, None].astype(np.float32)
    small = (disc[:, ::2, ::2] + disc[:, 1::2, 1::2]) / 2 * (brightness / drawing.contrast)
    frames = np.empty((len(times_s), size * 3 // 2, size), dtype=np.uint8)
    frames[:, :size] = np.rint(disc * brightness * _texture(drawing, size) + background.astype(np.float32))
    chroma = frames[:, size:].reshape(len(times_s), 2, size // 2, size // 2)
    for plane, tint in enumerate(drawing.tint_UV):
        chroma[:, plane] = np.rint(128 + np.float32(tint) * small)
    return frames


def _texture(drawing: Drawing, size: int) -> np.ndarray:
    """What the disc shows, mean 1, H x W. It stands still in the frame: the disc is a window onto it."""
    if drawing.grating == "plain":
        return np.ones((size, size), dtype=np.float32)
    period_px = max(SHORTEST_PERIOD_PX, size / GRATING_LINES)
    line = 1 + GRATING * np.sin(2 * np.pi * (np.arange(size) / period_px + drawing.grating_phase))
    line = line.astype(np.float32)
    return np.broadcast_to(line[:, None] if drawing.grating == "rows" else line[None, :], (size, size))


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
