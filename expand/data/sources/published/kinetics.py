"""Kinetics-400, -600 and -700: CSVs with the columns label, youtube_id, time_start, time_end, split[, is_cc].

Clips are named `<youtube_id>_<start>_<end>` with six digits a second, as the usual download tools do, or
`<youtube_id>`; in the root, or in folders by split, by class, or both.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from expand.data.sources.clip import (
    SPLIT_NAMES,
    Files,
    Source,
    SourceClip,
    clips_of_file,
    order_splits,
    quantity,
    unreadable_lines,
)
from expand.data.sources.paths import PublishedPaths
from expand.data.sources.text_files import csv_rows
from expand.errors import DataError

NEEDED = ("youtube_id", "time_start", "time_end")
FIX = "these are official files; download them again"


def is_kinetics(head: str) -> bool:
    """Return true if a file that begins with `head` has the columns of Kinetics."""
    columns = [name.strip().strip('"').lower() for name in head.split("\n", 1)[0].split(",")]
    return all(name in columns for name in NEEDED)


def read_kinetics(files: Files, root: str) -> Source:
    """Return the clips of `files`, whose own column or name may say the split.

    A file without labels (a test split) is left out with a note. Raises `DataError` for lines that cannot be read.
    """
    listed: list[SourceClip] = []
    mistakes: list[str] = []
    notes = ["read as Kinetics"]
    for split, path in files:
        own, wrong, unlabelled = _parse(path, split)
        mistakes += wrong
        listed += clips_of_file(own, split, is_alone=len(files) == 1)
        if unlabelled:
            notes.append(f"left out {quantity(unlabelled, 'clip')} of {path.name} without a label")
    if mistakes:
        raise unreadable_lines(mistakes, FIX)
    where = ", ".join(str(path) for _, path in files)
    if not listed:
        raise DataError("no clip with a label", where=where, fix="Kinetics' test split may lack labels; name train and "
                                                                 "validation too")
    paths = PublishedPaths(root)
    clips = list({(clip.key, clip.split): clip for clip in listed}.values())
    for clip in clips:
        clip.path = paths.find(_usual_folders(clip.label, clip.split), (clip.key, clip.path), ".mp4")
    return Source(where, order_splits(clip.split for clip in clips), clips, None,
                  notes + paths.missing_notes(len(clips)), "no annotations for {splits}")


def _parse(path: Path, split: str | None) -> tuple[list[SourceClip], list[str], int]:
    """The clips of a file, its mistakes, and the number of rows without a label.

    A clip's key is its name with its times; its path is only its YouTube id.
    """
    records = csv_rows(path)
    header = [name.strip().lower() for name in next(records)[1]]
    clips: list[SourceClip] = []
    mistakes: list[str] = []
    unlabelled = 0
    for number, values in records:
        if not any(values):
            continue
        where, fields = f"{path}:{number}", dict(zip(header, values, strict=False))
        try:
            name, start, end = (fields[column].strip() for column in NEEDED)
            key = f"{name}_{int(float(start)):06d}_{int(float(end)):06d}" if name else None
        except (KeyError, ValueError, OverflowError):
            key = None
        if key is None:
            mistakes.append(f"{where}: expected a YouTube id and a start and end in seconds, got "
                            f"{','.join(values)[:80]!r}")
            continue
        label = fields.get("label", "").strip().strip('"')
        own = _split(fields.get("split"), path) or split
        if not label:
            unlabelled += 1
        elif own is None:
            mistakes.append(f"{where}: expected train, validate or test as the split, got {fields.get('split')!r}")
        else:
            clips.append(SourceClip(name, label, own, where, key))
    return clips, mistakes, unlabelled


def _split(text: str | None, path: Path) -> str | None:
    """The split by the column, else by the file's name."""
    if text and text.strip():
        return SPLIT_NAMES.get(text.strip().lower())
    words = path.stem.lower().replace("-", "_").split("_")
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


@cache
def _usual_folders(label: str, split: str) -> tuple[str, ...]:
    """The usual folders of a clip: download tools write the names of splits and classes in different ways."""
    splits = ["", *(name for name, own in SPLIT_NAMES.items() if own == split)]
    labels = dict.fromkeys((label, label.replace(" ", "_"), ""))
    return tuple(os.path.join(part, name) for part in splits for name in labels)
