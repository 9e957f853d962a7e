"""A run's own list of clips: `clips.csv`, which is a source by itself."""

from __future__ import annotations

import csv
import io
import os
import re
from pathlib import Path

from expand.bounded import read_bounded, size_text
from expand.data.sources.base import MOST_DIGITS, SPLITS, Clip, ClipList, is_number
from expand.data.sources.reading import LONGEST, csv_bytes
from expand.errors import DataError
from expand.rundir.files import write_atomic

HEADER = ["path", "label", "split", "group", "number"]
EMPTY_CLASS = re.compile(r"# class ([0-9]+) has no clip: (.*)", re.DOTALL)
LARGEST = 256_000_000
"""Bytes of such a list; one of a million clips has some 150 MB."""
FIX = "it was changed by hand or cut; take it back from a copy, or start anew"


def write_clips(path: Path, listed: ClipList) -> None:
    """Writes `listed` as the CSV `path`: absolute paths, class names, splits, groups and the classes' numbers.

    `read_clips` gives back the same clips and classes in the same order; notes are not kept. Raises `RunError` where
    the disk refuses, `DataError` for a list that is larger than `read_clips` reads.
    """
    rows = [(_rooted(clip.path), listed.classes[clip.label], clip.split, clip.group or "", clip.label)
            for clip in listed.clips]
    used = {clip.label for clip in listed.clips}
    empty = [(f"# class {number} has no clip: {name}",) for number, name in enumerate(listed.classes)
             if number not in used]
    content = csv_bytes([HEADER, *rows, *empty])
    if len(content) > LARGEST:  # the run could not go on after an interruption
        raise DataError(f"the list of its {len(rows):,} clips is larger than {size_text(LARGEST)}", where=str(path),
                        fix="Use fewer clips, or a folder with a shorter path.")
    write_atomic(Path(path), content)


def _rooted(path: Path) -> str:
    """`path` from the root of the file system; with its `..`, which after a link leads elsewhere than the text says."""
    return os.path.join(os.getcwd(), os.path.expanduser(path))


def read_clips(path: Path) -> ClipList:
    """What `write_clips` wrote to `path`. Raises `DataError` where it is missing, or not as it was written."""
    try:
        content = read_bounded(path, LARGEST)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path), fix=FIX) from error
    if b"\0" in content:  # no path has one, and a file that was cut short may end in them
        raise DataError("is not text", where=str(path), fix=FIX)
    text = content.decode("utf-8", "surrogateescape")
    rows = csv.reader(io.StringIO(text, newline=""))
    if next(rows, None) != HEADER:
        raise DataError("is no list of a run's clips", where=str(path), fix=FIX)
    names, clips = {}, []
    try:
        for row in rows:
            if len(row) == 1 and (match := EMPTY_CLASS.fullmatch(row[0])):
                names[int(match.group(1)[:MOST_DIGITS])] = match.group(2)
            else:
                clips.append(_clip(row, names))
    except (ValueError, csv.Error) as error:
        raise DataError(f"cannot be read: {error}", where=f"{path}:{rows.line_num}", fix=FIX) from error
    if sorted(names) != list(range(len(names))):
        raise DataError("lacks a class", where=str(path), fix=FIX)
    return ClipList(tuple(names[number] for number in range(len(names))), tuple(clips))


def _clip(row: list[str], names: dict[int, str]) -> Clip:
    """The clip of a line, whose class goes into `names`. Raises `ValueError` where it is not as it was written."""
    path, name, split, group, number = row
    if not is_number(number) or not path or len(path) > LONGEST or len(name) > LONGEST:
        raise ValueError("no path, or no number of a class")
    label = int(number)
    if split not in SPLITS or names.setdefault(label, name) != name:
        raise ValueError(f"not {split} and class {label} {name!r}")
    return Clip(Path(path), label, split, group or None)
