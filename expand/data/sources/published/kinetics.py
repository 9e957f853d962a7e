"""Kinetics-400, -600 and -700: CSVs with the columns label, youtube_id, time_start, time_end, split[, is_cc].

Clips are named `<youtube_id>_<start>_<end>` with six digits a second, as the usual download tools do, or
`<youtube_id>`; in the root, or in folders by split, by class, or both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from expand.data.sources.clip import SPLIT_NAMES, Entry, Found, counted, in_order, mistakes_error
from expand.data.sources.finder import Finder
from expand.data.sources.text_files import csv_rows
from expand.errors import DataError

NEEDED = ("youtube_id", "time_start", "time_end")
FIX = "these are the published files; take them anew"


@dataclass(slots=True)
class _Row:
    label: str
    names: tuple[str, ...]
    split: str
    place: str


def is_kinetics(head: str) -> bool:
    """Whether a file that begins with `head` has the columns of Kinetics."""
    columns = [name.strip().strip('"').lower() for name in head.split("\n", 1)[0].split(",")]
    return all(name in columns for name in NEEDED)


def read_kinetics(files: Sequence[tuple[str | None, Path]], root: str) -> Found:
    """The clips of (split, file), None where the file's own column or name says the split.

    A file without labels (a test split) is left out with a note. Raises `DataError` for lines that cannot be read.
    """
    rows, mistakes, notes = [], [], []
    for split, path in files:
        own, wrong, unlabelled = _parse(path, split)
        mistakes += wrong
        rows += _of_split(own, split, alone=len(files) == 1)
        if unlabelled:
            notes.append(f"left out {counted(unlabelled, 'clip')} of {path.name} without a label")
    if mistakes:
        raise mistakes_error(mistakes, FIX)
    where = ", ".join(str(path) for _, path in files)
    if not rows:
        raise DataError("no clip with a label", where=where, fix="Kinetics' test split may lack labels; name train and "
                                                                 "validation too")
    finder = Finder(root)
    entries = [_entry(row, finder) for row in {(row.names[0], row.split): row for row in rows}.values()]
    notes = ["read as Kinetics", *notes, *missing_note(finder, len(entries))]
    return Found(where, in_order(row.split for row in rows), entries, None, notes, "no annotations for {splits}")


def _of_split(rows: list[_Row], split: str | None, alone: bool) -> list[_Row]:
    """The rows that count where their file was named for `split`: as in other lists, several values of the column hold
    in a file that is alone, and pick the split's own rows else."""
    if split is None or alone and len({row.split for row in rows}) > 1:
        return rows
    chosen = [row for row in rows if row.split == split] if len({row.split for row in rows}) > 1 else rows
    for row in chosen:
        row.split = split
    return chosen


def missing_note(finder: Finder, total: int) -> Iterator[str]:
    """How many of `total` annotated clips are not on the disk."""
    if finder.missing:
        yield (f"{finder.missing} of {total} annotated clips are not in {finder.root}"
               + ("; data.root says where they lie" if finder.missing == total else ""))


def _parse(path: Path, split: str | None) -> tuple[list[_Row], list[str], int]:
    """Good rows, mistakes, and how many rows have no label."""
    records = csv_rows(path)
    header = [name.strip().lower() for name in next(records)[1]]
    rows, mistakes, unlabelled = [], [], 0
    for number, values in records:
        if not any(values):
            continue
        where, fields = f"{path}:{number}", dict(zip(header, values))
        try:
            names = _names(fields)
        except (KeyError, ValueError, OverflowError):
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
            rows.append(_Row(label, names, own, where))
    return rows, mistakes, unlabelled


def _names(fields: dict[str, str]) -> tuple[str, ...]:
    name = fields["youtube_id"].strip()
    if not name:
        raise ValueError("no id")
    start, end = int(float(fields["time_start"])), int(float(fields["time_end"]))
    return f"{name}_{start:06d}_{end:06d}", name


def _split(text: str | None, path: Path) -> str | None:
    """The split by the column, else by the file's name."""
    if text and text.strip():
        return SPLIT_NAMES.get(text.strip().lower())
    words = path.stem.lower().replace("-", "_").split("_")
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def _entry(row: _Row, finder: Finder) -> Entry:
    path = finder.find(_folders(row.label, row.split), row.names, ".mp4")
    return Entry(path, row.label, row.split, row.place, row.names[0])


@cache
def _folders(label: str, split: str) -> tuple[str, ...]:
    """Where a clip may lie: download tools differ in what they call the splits and how they write classes' names."""
    splits = ["", *(name for name, own in SPLIT_NAMES.items() if own == split)]
    labels = dict.fromkeys((label, label.replace(" ", "_"), ""))
    return tuple(os.path.join(part, name) for part in splits for name in labels)
