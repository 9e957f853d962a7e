"""What every source of clips speaks: clips and their list, and what a reader found before it was checked."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from expand.errors import DataError

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
               "validate": "val", "test": "test", "testing": "test"}
"""What published sets and people call the three splits; compared in lower case."""
SHOWN = 10
"""Mistakes named in an error; the rest are counted."""


@dataclass(frozen=True)
class Clip:
    """A file or a folder of frames that should be a clip; nobody has opened it yet."""

    path: Path
    label: int
    split: str
    group: str | None = None
    """What it shares with other clips (person, recording), where the source or `data.group` says so."""


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
    return os.path.abspath(os.path.expanduser(path))


def read_text(path: Path) -> str:
    """The text of `path`; bytes that are not UTF-8 survive as in file names. Raises `DataError` where there is none."""
    try:
        text = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    if "\0" in text:
        raise DataError("is not text in UTF-8", where=str(path), fix="save it as UTF-8 and try again")
    return text


def csv_rows(path: Path, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """The number of the last line and the fields of each record of a CSV. Raises `DataError` as `read_text`, and for a
    quote without its end, which takes in all that follows."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        for fields in reader:
            yield reader.line_num, fields
    except csv.Error as error:
        raise DataError(f"cannot be read: {error}", where=f"{path}:{reader.line_num}",
                        fix="is there a quote without its end?") from error


def csv_bytes(rows: Iterable[Sequence[object]]) -> bytes:
    """`rows` as a CSV with line feeds; undecodable bytes of file names are written as they were."""
    text = io.StringIO(newline="")
    plain = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:  # a plain writer would leave a carriage return bare, and it would be read as the line's end
        (quoted if any("\r" in str(field) for field in row) else plain).writerow(row)
    return text.getvalue().encode("utf-8", "surrogateescape")


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
