"""What every source of clips speaks: clips and their list, and what a reader found before it was checked."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from expand.errors import DataError
from expand.home import expand_home_if_any

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
               "validate": "val", "test": "test", "testing": "test"}
"""What published sets and people call the three splits; compared in lower case."""
_SPLIT_PARTS = re.compile(r"(?:(?P<before>{0})[ ._-]*(?:sets?|splits?|data|dataset|videos?|clips?|frames|rawframes"
                          r"|images)|(?:sets?|splits?|data|dataset|videos?|clips?|frames|rawframes|images)[ ._-]+"
                          r"(?P<after>{0}))".format("|".join(sorted(SPLIT_NAMES, key=len, reverse=True))),
                          re.IGNORECASE)
SHOWN = 10
"""Mistakes named in an error; the rest are counted."""
MOST_DIGITS = 18
CONTENT_DIGITS = 32
"""Hexadecimal digits that tell contents apart."""


@dataclass(frozen=True)
class Clip:
    """A file or a folder of frames that should be a clip; nobody has opened it yet."""

    path: Path
    label: int
    split: str
    group: str | None = None
    """What it shares with other clips (person, recording), where the source or `data.group` says so."""
    content: str = field(default="", compare=False)
    """The first `CONTENT_DIGITS` of the hash of its bytes, once they were read; "": not known."""


@dataclass(frozen=True)
class ClipList:
    """All clips of a data set; a label is an index into `classes`."""

    classes: tuple[str, ...]
    clips: tuple[Clip, ...]
    notes: tuple[str, ...] = ()
    """Lines for people: what the source was taken for, how a split was made, what was left out."""


@dataclass(slots=True)
class Entry:
    """A clip as a source names it."""

    path: str
    label: str
    split: str
    place: str
    """Where it is named, for errors: a list's line or a class folder."""
    key: str
    """Its path relative to the data's root, or its published name: the same wherever the data lie."""
    group: str | None = None


@dataclass
class Found:
    """What a reader made of a source, before the splits are made and checked."""

    where: str
    splits: tuple[str, ...]
    """The splits that the source speaks of, in the order of `SPLITS`; one without entries is a mistake."""
    entries: list[Entry]
    order: tuple[str, ...] | None = None
    """The classes in their published order; None: numbers by number, names by name."""
    notes: list[str] = field(default_factory=list)
    lacks: str = "has no clips for {splits}"
    """What to say where splits are missing."""


def absolute(path: str | Path) -> str:
    """`path` from the root of the file system, `~` expanded and links kept."""
    return os.path.abspath(expand_home_if_any(os.fspath(path)))


def split_named(folder: str) -> str | None:
    """The split that a folder is called by, also as in `train_videos`, `Val-Set` or `rawframes_test`; None for none."""
    if split := SPLIT_NAMES.get(folder.lower()):
        return split
    match = _SPLIT_PARTS.fullmatch(folder)
    return SPLIT_NAMES[(match["before"] or match["after"]).lower()] if match else None


def is_number(text: str) -> bool:
    """Whether `text` is a whole number, of no more digits than a class or a place among them may have."""
    return text.isdecimal() and len(text) <= MOST_DIGITS


def mistakes_error(mistakes: list[str], fix: str) -> DataError:
    """All the lines of a list that cannot be read, in one error."""
    return DataError(f"{counted(len(mistakes), 'line')} cannot be read:\n{shown(mistakes)}", fix=fix)


def in_order(splits: Iterable[str]) -> tuple[str, ...]:
    """`splits` without repeats, in the order of `SPLITS`."""
    found = set(splits)
    return tuple(split for split in SPLITS if split in found)


def shown(lines: list[str]) -> str:
    """The first of `lines`, indented, and how many more there are."""
    rest = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join(f"  {line}" for line in lines[:SHOWN] + rest)


def counted(number: int, noun: str) -> str:
    """"1 clip", "2 clips", "2 classes"."""
    return f"{number} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"
