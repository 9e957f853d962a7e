"""Counts, lengths, rates and sizes of measured clips, and the limits that they set to a search."""

from __future__ import annotations

from typing import Any

import numpy as np

from expand.config.schema import DataConfig
from expand.data.sources import SPLITS, ClipList
from expand.space.factors import REFERENCE_FPS


def by_class_and_split(listed: ClipList, table: np.ndarray) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the figures of every class in every split, {class: {split: figures}}, and of every split."""
    labels = np.array([clip.label for clip in listed.clips])
    splits = np.array([SPLITS.index(clip.split) for clip in listed.clips])
    present = [(number, split) for number, split in enumerate(SPLITS) if (splits == number).any()]
    order = np.lexsort((splits, labels))
    key = labels[order] * len(SPLITS) + splits[order]
    starts = np.searchsorted(key, np.arange(len(listed.classes) * len(SPLITS) + 1))
    classes = {name: {split: figures(table[order[slice(*starts[label * len(SPLITS) + number:][:2])]])
                      for number, split in present}
               for label, name in enumerate(listed.classes)}
    return classes, {split: figures(table[splits == number]) for number, split in present}


def figures(table: np.ndarray) -> dict[str, Any]:
    """Return counts, and {"min", "median", "max"} of length (seconds), source's frames a second and size (pixels), over
    the clips that can be read; None without such clips."""
    readable = table[table["readable"]]
    short = np.minimum(readable["height"], readable["width"])
    return {"clips": len(table), "unreadable": len(table) - len(readable), "length_s": _spread(readable["length_s"]),
            "fps": _spread(readable["fps"][readable["fps"] > 0]), "short_side": _spread(short),
            "height": _spread(readable["height"]), "width": _spread(readable["width"])}


def _spread(values: np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    return {"min": _round(values.min()), "median": _round(np.median(values)), "max": _round(values.max())}


def _round(value: Any) -> float | int:
    """`value` with three decimals, or as a whole number."""
    rounded = round(float(value), 3)
    return int(rounded) if rounded.is_integer() else rounded


def search_limits(table: np.ndarray, kept: np.ndarray, median_s: float | None, config: DataConfig) -> dict[str, Any]:
    """Return the largest settings of a search that the clips support: {"clip_s", "frames", "resolution", "fps"}, each
    None if unknown.

    `clip_s`: the default of `search.limits.clip_s` for these clips, seconds. `frames`: most different frames in such a
    clip (no more than 30 a second are taken). `resolution`: largest crop, pixels, that the median clip's short side
    fills without being enlarged. `fps`: median of the sources' frames a second.
    """
    clips = table[kept]
    rates = clips["fps"][clips["fps"] > 0]
    fps = float(np.median(rates)) if len(rates) else None
    short = np.median(np.minimum(clips["height"], clips["width"])) if len(clips) else None
    frames = None if median_s is None or fps is None else int(median_s * min(fps, REFERENCE_FPS) + 1e-3) + 1
    return {"clip_s": None if median_s is None else round(median_s, 6), "frames": frames,
            "resolution": None if short is None else int(short / config.jitter_min + 1e-6),
            "fps": None if fps is None else _round(fps)}
