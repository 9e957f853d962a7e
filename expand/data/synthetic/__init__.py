"""Clips made to order, whose classes need a chosen axis: the built-in set and `data synth`.

Here are their names alone, which a search lists before anything is drawn, so without numpy.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from expand.config.schema import BuiltinConfig
from expand.data.synthetic.cues import class_names

RENDERER = 3
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
