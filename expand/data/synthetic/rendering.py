"""The built-in clips: a small set whose labels need every axis, rendered as real H.264 files on first use.

Coarse bands drift over the lower half of a still picture of fine lines while the light of the upper half pulses. (In
a set that has only one of the two, it fills the frame.) The label is appearance x motion x
period, where the appearance is a hue and a texture: 4 x 2 x 2 = 16 classes named like `warm-rows-up-slow`.

- hue: `warm` or `cool`; one frame of any size shows it;
- texture: fine lines in `rows` or `columns`, 23 to the frame: needs pixels (evaluation at 32, 48 and 64 px keeps 0.2,
  0.5 and 0.7 of their contrast; of the quickstart's 28 lines 0.08, 0.4 and 0.6);
- motion: the bands drift `up` or `down`, about every two seconds by their own length: needs several frames, and close
  enough in time;
- period: the light pulses about every 0.8 s (`fast`) or 2.4 s (`slow`): needs a clip of about a second.

Left and right do not matter, so the default horizontal flip does no harm.

Each of these cues has a strength and a size in `BuiltinConfig`, and two more are there to be turned on: bars that
jump in `steps` and the coloured papers of `appearance`. `synthesize` writes a set of any such settings to a folder;
`expand.data.synthetic` says for every cue which axis it makes worth its cost, and when.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from expand.config.schema import BuiltinConfig
from expand.data.frames.file_locks import lock
from expand.data.synthetic import (
    RENDERER,
    active_cues,
    class_names,
    files_in,
    levels_of,
    one_frame_ceiling,
    patterns_for,
    set_folder,
)
from expand.errors import DataError, UsageError
from expand.home import expand_home
from expand.processes import heartbeat, process_map
from expand.version import __version__

logger = logging.getLogger(__name__)

SEAM = 0.02
"""Width, as a share of the frame's height, over which the light of the upper half gives way to the bands of the lower.
Over one another, each hides the other: in some hundred updates a network learnt one of the two, by the seed which."""
BUILTIN = BuiltinConfig()
CLASSES = class_names(BUILTIN)
"""The classes of the built-in set with its own strengths."""
PERIOD_S = {"fast": 0.8, "slow": 2.4}
"""Seconds from one pulse of the light to the next in the built-in set."""
BANDS = 2.5
"""Periods of the drifting bands in a frame's height."""
LEVELS = {"bands": 44.0, "light": 19.0, "lines": 32.0, "hue": 10.0, "bars": 44.0, "paper": 56.0}
"""Mean amplitudes at strength 1, grey levels."""


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

    # the paper's colour: a point of a square grid, moved by less than half the way to the next
    side = math.ceil(math.sqrt(config.patterns))
    places = divmod(int(level.get("appearance", "p00")[1:]), side)
    paper_u, paper_v = (config.appearance * (LEVELS["paper"] * (2 * place / (side - 1) - 1) + 5 * (draw - 0.5))
                        for place, draw in zip(places, rng.random(2), strict=True))
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
        paper=(paper_u, paper_v))


def render(drawing: Drawing, size: int, times_s: np.ndarray) -> np.ndarray:
    """Return the frames at `times_s`, T x (3/2 size) x size uint8: planes Y, U, V one under the other (yuv420p)."""
    axis = (np.arange(size) + 0.5) / size
    still = np.full((size, size), drawing.background)
    for fx, fy, phase, amplitude in drawing.ripples:
        still += amplitude * np.cos(2 * np.pi * (fy * axis[:, None] + fx * axis[None, :] + phase))
    if drawing.line_level:
        lines = drawing.line_level * np.sin(2 * np.pi * (drawing.lines * axis + drawing.line_phase))
        still += lines[:, None] if drawing.texture == "rows" else lines[None, :]
    bands_TH = drawing.band_level * np.sin(
        2 * np.pi * (drawing.bands * axis[None, :] + drawing.band_position(times_s)[:, None]))
    light_TH = np.repeat(drawing.light(times_s)[:, None], size, axis=1)
    if drawing.band_level and drawing.light_level:
        upper_H = 1 / (1 + np.exp((axis - 0.5) / SEAM))
        bands_TH, light_TH = bands_TH * (1 - upper_H), light_TH * upper_H
    moving_TH = (bands_TH + light_TH).astype(np.float32)
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


def ensure_rendered(config: BuiltinConfig, cache_dir: Path, workers: int) -> None:
    """Render the set unless it is there. It appears complete or not at all; a second process waits for the first.

    Raises `DataError` if the folder cannot be written.
    """
    folder = set_folder(config, cache_dir)
    if folder.is_dir():
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with lock(folder.parent / ".lock"):
            if not folder.is_dir():
                with _new_folder(folder) as temporary:
                    _render_set(temporary, folder, config, workers)
    except OSError as error:
        raise DataError(f"the built-in clips cannot be written: {error.strerror or error}", where=str(folder.parent),
                        fix="make room there, or name another folder with data.cache_dir") from error


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Make a locked temporary folder beside `folder`, which it becomes at the end of the block; if the block fails, it
    is removed. Remove those that killed processes left there."""
    prefix = f".{folder.name}.rendering-"
    for leftover in [entry for entry in folder.parent.iterdir() if entry.name.startswith(prefix)]:
        with suppress(OSError), _lock_folder(leftover):  # the system has released a dead owner's lock
            shutil.rmtree(leftover)
    temporary = folder.parent / f"{prefix}{uuid.uuid4().hex}"
    temporary.mkdir()
    with _lock_folder(temporary):
        try:
            yield temporary
            os.replace(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
    """Hold the folder's lock while the block runs. Raises `BlockingIOError` if another process has it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _render_set(temporary: Path, folder: Path, config: BuiltinConfig, workers: int,
                progress: Callable[[int, int], None] | None = None) -> None:
    """Render a set, which will be in `folder`, into `temporary`; `progress` gets the clips done and all clips."""
    names = class_names(config)
    jobs = [(path, names[label], [config.seed, number, index])
            for number, files in enumerate(files_in(temporary, config).values())
            for index, (path, label) in enumerate(files)]
    logger.info(f"rendering {len(jobs)} clips of {len(names)} classes into {folder}")
    for parent in {path.parent for path, _, _ in jobs}:
        parent.mkdir(parents=True)
    for done, _ in enumerate(process_map(write_clip, config, jobs, workers), 1):
        if progress is not None:
            progress(done, len(jobs))


def write_clip(config: BuiltinConfig, job: tuple[Path, str, Sequence[int]]) -> None:
    """Render one clip as H.264; `job` is (path, class name, seed)."""
    import av  # late: naming the clips must not load a decoder

    path, name, seed = job
    size = config.size + config.size % 2  # 4:2:0 has no odd sizes
    times_s = np.arange(round(config.seconds * config.fps)) / config.fps
    drawing = draw(np.random.default_rng(seed), name, config)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=config.fps)
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {"preset": "ultrafast", "crf": "18", "g": str(config.fps)}
        for block_s in np.split(times_s, range(config.fps, len(times_s), config.fps)):  # fits in a core's cache
            heartbeat()
            for frame in render(drawing, size, block_s):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="yuv420p")))
        container.mux(stream.encode())


@dataclass(frozen=True)
class Synthesized:
    """A set that was written: its `classes` in order, `counts` of clips by split, and all settings in `config`."""

    folder: Path
    classes: tuple[str, ...]
    counts: dict[str, int]
    config: BuiltinConfig


def synthesize(out: Path, config: BuiltinConfig = BUILTIN, *, classes: int | None = None,
               clips: int | None = None, workers: int = 1,
               progress: Callable[[int, int], None] | None = None) -> Synthesized:
    """Render a set of `config`'s cues to the folder `out`: `{train,val,test}/<class>/<clip>.mp4`.

    `classes`: None for as many as the cues give. `clips`: the number of all clips, half for train and a quarter each
    for val and test; None for the counts of `config`. A split's count is rounded up to a multiple of the classes. The
    same settings give the same pixels with any number of `workers`. `synth.json` and `README.md` beside the splits
    describe the settings. `out` appears complete or not at all. Raises `UsageError` for a number of classes that the
    cues cannot give, and `DataError` if `out` holds something or cannot be written.
    """
    out = expand_home(out, "OUT").resolve()
    if classes is not None:
        config = dataclasses.replace(config, patterns=patterns_for(classes, config))
    if clips is not None:
        if clips < 4:
            raise UsageError(f"{clips} clips are too few for three splits", where="--clips", fix="ask for at least 4")
        quarter = clips // 4
        config = dataclasses.replace(config, train_clips=clips - 2 * quarter, val_clips=quarter, test_clips=quarter)
    names, counts = class_names(config), _counts(config)
    try:
        if out.exists() and not out.is_dir():
            raise DataError("not a folder", where=str(out), fix="name a new folder")
        if out.is_dir() and any(out.iterdir()):
            raise DataError("the folder is not empty", where=str(out), fix="name a new folder, or empty this one")
        out.parent.mkdir(parents=True, exist_ok=True)
        with _new_folder(out) as temporary:
            _render_set(temporary, out, config, workers, progress)
            _write_description(temporary, config)
    except OSError as error:
        raise DataError(f"the clips cannot be written: {error.strerror or error}", where=str(out),
                        fix="make room there, or name another folder") from error
    return Synthesized(out, tuple(sorted(names)), counts, config)  # as a folder's classes are ordered


def _counts(config: BuiltinConfig) -> dict[str, int]:
    return {split: len(files) for split, files in files_in(Path(), config).items()}


def _write_description(folder: Path, config: BuiltinConfig) -> None:
    """Write `synth.json` for programs and `README.md` for users; a search for clips skips both."""
    settings, cues = dataclasses.asdict(config), active_cues(config)
    names, counts = class_names(config), _counts(config)
    facts = {"x3d_expand": __version__, "renderer": RENDERER, "classes": sorted(names), "clips": counts,
             "one_frame_ceiling": one_frame_ceiling(config), "settings": settings,
             "rules": {cue.name: cue.rule for cue in cues}}
    (folder / "synth.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = ["# A rendered set of clips", "",
             f"Written by `x3d-expand data synth` (version {__version__}, renderer {RENDERER}).",
             "The same settings give the same pixels.", "",
             f"- {len(names)} classes: {' x '.join(f'{len(cue.levels)} {cue.name}' for cue in cues)}",
             *(f"- {split}: {count} clips" for split, count in counts.items()),
             f"- best accuracy from a single frame: {facts['one_frame_ceiling']:.3g}", "",
             "## What each cue asks for", "",
             *(f"- **{cue.name}** ({', '.join(cue.levels)}). {cue.rule}" for cue in cues), "", "## Settings", "",
             *(f"- {key}: {value}" for key, value in settings.items())]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
