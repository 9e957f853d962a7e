"""Clips made to order, whose classes need a chosen axis: the built-in set and `data synth`.

Here are their names alone, which a search lists before anything is drawn, so without numpy.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path

from expand.config.schema import BuiltinConfig
from expand.errors import UsageError

RENDERER = 4
"""Version of what is rendered; raise it with every change that alters a pixel."""
SPLITS = ("train", "val", "test")


def clip_files(config: BuiltinConfig, cache_dir: Path) -> dict[str, list[tuple[Path, int]]]:
    """Return (path, label) of every clip by split, rendered or not. Classes are balanced; a split is rounded up."""
    return files_in(set_folder(config, cache_dir), config)


def files_in(folder: Path, config: BuiltinConfig) -> dict[str, list[tuple[Path, int]]]:
    """`clip_files` for a set in `folder`."""
    counts, names = (config.train_clips, config.val_clips, config.test_clips), class_names(config)
    return {split: [(folder / split / name / f"{number:04d}.mp4", label)
                    for label, name in enumerate(names) for number in range(-(-count // len(names)))]
            for split, count in zip(SPLITS, counts, strict=True)}


def set_folder(config: BuiltinConfig, cache_dir: Path) -> Path:
    """Return the folder of the set with these settings, named by their hash and the renderer's version."""
    text = json.dumps([RENDERER, dataclasses.asdict(config)], sort_keys=True)
    return cache_dir / "builtin" / hashlib.sha256(text.encode()).hexdigest()[:16]


MAX_PATTERNS = 36
"""Largest number of papers: neighbours on a grid of 6 x 6 stay apart for any shade and hue of a clip."""


@dataclass(frozen=True)
class Cue:
    """A cue that clips show: `name` is the option of its strength in `BuiltinConfig`, `rule` predicts the search."""

    name: str
    levels: tuple[str, ...]
    one_frame: bool
    """A single frame can show it."""
    rule: str


CUES = (
    Cue("hue", ("warm", "cool"), True,
        "No axis is needed: one frame of any size tells it."),
    Cue("texture", ("rows", "columns"), True,
        "X-Spatial is worth it when a larger input brings the lines back. An evaluation crop of n = 8/7 x resolution "
        "pixels keeps c = sinc^2(lines / n) of their contrast, sinc(x) = sin(pi x) / (pi x): nothing where n = lines, "
        "0.4 where n = 2 x lines. They show from 32 x texture x c of about 2 grey levels on."),
    Cue("motion", ("up", "down"), False,
        "X-Fast is worth it when a smaller stride tells the way of the bands. Between two frames they move on by "
        "p = drift_hz x γτ / 30 periods. At p = 1/2 up and down are the same, exactly, however many the frames; below "
        "p = 0.4 the way is clear. So drift_hz = 15 / γτ is blind at γτ and plain at γτ / 2. More frames at the same "
        "stride (X-Temporal with search.temporal_split=1) stay blind."),
    Cue("period", ("fast", "slow"), False,
        "X-Temporal is worth it, by degrees, until D is about pulse_s; a clip shorter than a quarter of it hardly "
        "tells how fast the light pulses. The frames must be at most pulse_s / 2 apart."),
    Cue("steps", ("onward", "back"), False,
        "X-Temporal is worth it, at once, when D grows past step_s. Upright bars jump by a quarter of their period "
        "every step_s (within 3 %), either always the same way or on and back in turn. A clip shorter than that holds "
        "one jump at most and cannot tell, exactly; one of 2 x step_s always holds two; of those between, a share of "
        "D / step_s - 1 does. More frames in the same time (X-Fast) stay blind."),
    Cue("appearance", (), True,
        "Capacity is worth it, X-Bottleneck or X-Width, when few numbers must tell many papers. The papers' colours "
        "lie on a square grid that one frame of any size shows. The last layer sees h = γb x w features, w the width "
        "of the last stage (192 γw, rounded to 8s): with h well below sqrt(patterns) papers are mixed up, from h of "
        "about patterns on they are not. More frames, pixels and blocks do not raise h."),
)
"""In the order of a class name's parts."""


def active_cues(config: BuiltinConfig) -> tuple[Cue, ...]:
    """Return the cues with a strength above 0, each with its levels."""
    patterns = tuple(f"p{number:02d}" for number in range(config.patterns))
    return tuple(Cue(cue.name, cue.levels or patterns, cue.one_frame, cue.rule) for cue in CUES
                 if getattr(config, cue.name) > 0)


def class_names(config: BuiltinConfig) -> tuple[str, ...]:
    """Return all combinations of the levels of the active cues. Raises `UsageError` if no cue is active."""
    cues = active_cues(config)
    if not cues:
        raise UsageError("the strength of every cue is 0, so that there is nothing to tell apart", where="data.builtin",
                         fix=f"set one of {', '.join(cue.name for cue in CUES)} above 0")
    return tuple("-".join(parts) for parts in itertools.product(*(cue.levels for cue in cues)))


def levels_of(name: str, config: BuiltinConfig) -> dict[str, str]:
    """Return the level of every active cue in the class `name`."""
    return dict(zip((cue.name for cue in active_cues(config)), name.split("-"), strict=True))


def one_frame_ceiling(config: BuiltinConfig) -> float:
    """Return the best accuracy that any network can reach from one frame of a clip; 1/4 for the built-in set.

    The bands' phase at time t is phase + direction x frequency x t modulo 1 with a phase uniform on [0, 1): uniform
    whatever direction and frequency. The light at time t is a fixed function of a phase that is uniform too, whatever
    the period. Both phases and every nuisance are drawn without looking at the label. So at any instant (bands, light,
    nuisances) has one distribution for all four combinations of motion and period; a single frame tells nothing about
    them, and with hue and texture known four equally frequent classes remain. (A mean of scores over several
    single-frame views is blind to the direction for the same reason, since a clip run backwards has the same frames;
    the spread of its brightness could tell the period in principle, so there the strict ceiling is 1/2. Training on one
    frame gives a network no reason to use that.) The same holds for the bars, whose phase is uniform whether they step
    on or back.
    """
    return 1 / math.prod(len(cue.levels) for cue in active_cues(config) if not cue.one_frame)


def possible_classes(config: BuiltinConfig) -> tuple[int, ...]:
    """Return the numbers of classes that these strengths allow; only the papers have a free number of levels."""
    others = math.prod(len(cue.levels) for cue in active_cues(config) if cue.levels and cue.name != "appearance")
    counts = range(2, MAX_PATTERNS + 1) if config.appearance > 0 else (1,)
    return tuple(others * count for count in counts if others * count > 1)


def patterns_for(classes: int, config: BuiltinConfig) -> int:
    """Return how many papers give `classes` classes. Raises `UsageError` with the possible numbers if none does."""
    class_names(config)
    possible = possible_classes(config)
    if classes not in possible:
        at_work = ", ".join(cue.name for cue in active_cues(config))
        several = ", ".join(map(str, possible[:-1])) + " or " if len(possible) > 1 else ""
        way_out = ("set another cue's strength to 0" if config.appearance > 0 else
                   "appearance above 0 gives any number from 2 to 36 to each combination of the others")
        raise UsageError(f"{classes} classes cannot be made from {at_work}: a class is a combination of their levels, "
                         f"so that there are {several}{possible[-1]}", where="--classes", fix=way_out)
    return config.patterns if config.appearance == 0 else 2 + possible.index(classes)
