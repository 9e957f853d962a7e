"""Clips as a source names them (`SourceClip`, `Source`) and as everything else uses them (`Clip`, `ClipList`)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from expand.errors import DataError, abbreviate, quantity
from expand.home import expand_home_if_any

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
               "validate": "val", "test": "test", "testing": "test"}
"""The usual names of the three splits; compared in lower case."""
_SPLIT_PARTS = re.compile(r"(?:(?P<before>{0})[ ._-]*(?:sets?|splits?|data|dataset|videos?|clips?|frames|rawframes"
                          r"|images)|(?:sets?|splits?|data|dataset|videos?|clips?|frames|rawframes|images)[ ._-]+"
                          r"(?P<after>{0}))".format("|".join(sorted(SPLIT_NAMES, key=len, reverse=True))),
                          re.IGNORECASE)
MOST_DIGITS = 18
"""Digits of a class's number."""
CONTENT_DIGITS = 32
"""Hexadecimal digits of a clip's hash that are kept."""


@dataclass(frozen=True)
class Clip:
    """A video file or a folder of frames; its class is a number. It has not been opened yet."""

    path: Path
    label: int
    """Index into `ClipList.classes`."""
    split: str
    group: str | None = None
    """Name of what it shares with other clips (person, recording), if the source or `data.group` says so."""
    content: str = field(default="", compare=False)
    """The first `CONTENT_DIGITS` digits of the hash of its bytes; "" until they are read."""


@dataclass(frozen=True)
class ClipList:
    """All clips of a data set."""

    classes: tuple[str, ...]
    clips: tuple[Clip, ...]
    notes: tuple[str, ...] = ()
    """Lines for the log: how the source was read, how a split was made, which clips were left out."""

    def find_emptied(self, kept: Iterable[bool]) -> list[str]:
        """Return the splits, and the classes in train, that lose all their clips if only those `kept` are used.

        Without them a search cannot start.
        """
        left = [clip for clip, is_kept in zip(self.clips, kept, strict=True) if is_kept]
        splits, trained = {clip.split for clip in left}, {clip.label for clip in left if clip.split == "train"}
        gone = [split for split in dict.fromkeys(clip.split for clip in self.clips) if split not in splits]
        if trained:
            gone += [f"class {name!r} in train" for label, name in enumerate(self.classes) if label not in trained]
        return gone


@dataclass(slots=True)
class SourceClip:
    """A clip as a source names it: its class is text, and its file may be missing."""

    path: str
    label: str
    split: str
    """One of `SPLITS`; "" where a list does not say it."""
    place: str
    """The list's line or the class folder that names the clip, for error messages."""
    key: str = ""
    """Path relative to the data's root, or published name: the same wherever the data lie."""
    group: str | None = None
    number: int | None = None
    """The class's place among the classes, if a list has such a column."""


@dataclass
class Source:
    """The content of a source, before its labels are unified and the missing splits are made."""

    where: str
    splits: tuple[str, ...]
    """The splits that the source defines, in the order of `SPLITS`; one without clips is a mistake."""
    clips: list[SourceClip]
    class_order: tuple[str, ...] | None = None
    """The classes in their published order; None: numbers by number, names by name."""
    notes: list[str] = field(default_factory=list)
    lacks: str = "has no clips for {splits}"
    """The message for missing splits."""


Files = Sequence[tuple[str | None, Path]]
"""Lists or annotation files, each with the split that it is named for; None: the file itself says it."""


def clips_of_file(clips: list[SourceClip], split: str | None, *, is_alone: bool) -> list[SourceClip]:
    """Return those `clips` of a file that count, with their split, if the file is named for `split`.

    Several splits in the file's own column count if the file `is_alone` or is named for none; otherwise they select
    the clips of `split`. A file that names one split at most is all `split`, or train.
    """
    own = {clip.split for clip in clips} - {""}
    if own and (split is None or is_alone and len(own) > 1):
        return clips
    if len(own) > 1:
        return [clip for clip in clips if clip.split == split]
    for clip in clips:
        clip.split = split or "train"
    return clips


def absolute(path: str | Path) -> str:
    """Return `path` from the root of the file system, `~` expanded and links kept."""
    return os.path.abspath(expand_home_if_any(os.fspath(path)))


def split_of_folder(name: str) -> str | None:
    """Return the split that a folder is named after, also as in `train_videos`, `Val-Set` or `rawframes_test`."""
    if split := SPLIT_NAMES.get(name.lower()):
        return split
    match = _SPLIT_PARTS.fullmatch(name)
    return SPLIT_NAMES[(match["before"] or match["after"]).lower()] if match else None


def is_number(text: str) -> bool:
    """Return true for a whole number without sign, of at most `MOST_DIGITS` digits."""
    return text.isdecimal() and len(text) <= MOST_DIGITS


def order_splits(splits: Iterable[str]) -> tuple[str, ...]:
    """Return `splits` without repeats, in the order of `SPLITS`."""
    found = set(splits)
    return tuple(split for split in SPLITS if split in found)


def unreadable_lines(mistakes: list[str], fix: str, where: str | None = None) -> DataError:
    """Return one error for all lines of a list that cannot be read."""
    return DataError(f"{quantity(len(mistakes), 'line')} cannot be read:\n{abbreviate(mistakes)}", where=where, fix=fix)
