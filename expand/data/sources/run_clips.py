"""A run's own list of clips: `clips.csv`, which is a source by itself, and which people edit where clips were moved."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from expand.bounded_files import read_bounded, size_text
from expand.data.sources.clip import MOST_DIGITS, SPLITS, Clip, ClipList, is_number, shown
from expand.data.sources.columns import Columns, find_columns, split_of
from expand.data.sources.labels import label_key, label_number
from expand.data.sources.paths import ClipPaths, foreign, trim, unquoted
from expand.data.sources.text_files import LONGEST, csv_bytes, decode_text
from expand.errors import DataError
from expand.home import expand_home_if_any
from expand.rundir.files import write_atomic

HEADER = ["path", "label", "split", "group", "number"]
CONTENT = "content"
"""A further column of the list that a run keeps for itself."""
EMPTY_CLASS = re.compile(r"# class ([0-9]+) has no clip: (.*)", re.DOTALL)
LARGEST = 256_000_000
"""Bytes of such a list; one of a million clips has some 150 MB."""
FIX = "it was changed by hand or cut: mend it, or take it back from a copy"
ORDINARY = re.compile(r"/[A-Za-z0-9_./ +=,@:()-]*[A-Za-z0-9_)]")
"""Absolute paths that can be written in one way only: nothing is looked up for them."""

Rows = list[tuple[int, Clip]]
"""Clips with the lines that name them."""


def write_clips(path: Path, listed: ClipList, *, contents: bool = False) -> None:
    """Writes `listed` as the CSV `path`: absolute paths, class names, splits, groups and the classes' numbers, and with
    `contents` what is known of the clips' bytes.

    `read_clips` gives back the same clips and classes in the same order; notes are not kept. Raises `RunError` where
    the disk refuses, `DataError` for a list that is larger than `read_clips` reads.
    """
    rows = [(_rooted(clip.path), listed.classes[clip.label], clip.split, clip.group or "", clip.label,
             *([clip.content] if contents else [])) for clip in listed.clips]
    used = {clip.label for clip in listed.clips}
    empty = [(f"# class {number} has no clip: {name}",) for number, name in enumerate(listed.classes)
             if number not in used]
    content = csv_bytes([[*HEADER, CONTENT] if contents else HEADER, *rows, *empty])
    if len(content) > _largest(contents):  # the run could not go on after an interruption
        raise DataError(f"the list of its {len(rows):,} clips is larger than {size_text(LARGEST)}", where=str(path),
                        fix="Use fewer clips, or a folder with a shorter path.")
    write_atomic(Path(path), content)


def _largest(contents: bool) -> int:
    return 2 * LARGEST if contents else LARGEST


def _rooted(path: Path) -> str:
    """`path` from the root of the file system; with its `..`, which after a link leads elsewhere than the text says."""
    return os.path.join(os.getcwd(), expand_home_if_any(os.fspath(path)))


def read_clips(path: Path) -> ClipList:
    """What `write_clips` wrote to `path`, also after an editor or a spreadsheet saved it. Raises `DataError` as
    `read_rows`."""
    names, rows = read_rows(path)
    return ClipList(names, tuple(clip for _, clip in rows))


def read_rows(path: Path, classes: Sequence[str] | None = None, *, fix: str = FIX,
              contents: bool = False) -> tuple[tuple[str, ...], Rows]:
    """The classes and the clips of the list `path`, with their lines, in the order of the lines.

    `classes`: those that the run has, so that the list need not say them in full. Other encodings, delimiters, quotes,
    ends of lines, columns in another order, blank lines, comments and `0.0` for `0` make no difference; relative paths
    start at the list's folder or, where nothing is there, at the current one. Raises `DataError` where the list is
    missing or cut, with the lines that cannot be understood, and `fix`.
    """
    try:
        content = read_bounded(path, _largest(contents))
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path), fix=fix) from error
    text = decode_text(content)
    if text is None:  # no path has a zero byte, and a file that was cut short may end in them
        raise DataError("is not text", where=str(path), fix=fix)
    try:
        found = _read_as_written(text)
        if classes is None or found[0] == tuple(classes):
            return found[0], _settled(found[1], path, fix)
    except (ValueError, csv.Error):
        pass
    names, rows = _read_as_edited(text, path, classes, fix)
    return names, _settled(rows, path, fix)


def _read_as_written(text: str) -> tuple[tuple[str, ...], Rows]:
    """What `write_clips` wrote. Raises `ValueError` or `csv.Error` for any other text."""
    reader = csv.reader(io.StringIO(text, newline=""))
    header = next(reader, None)
    if header not in (HEADER, [*HEADER, CONTENT]):
        raise ValueError("another header")
    names, rows = {}, []
    for fields in reader:
        if len(fields) == 1 and (match := EMPTY_CLASS.fullmatch(fields[0])):
            names[int(match.group(1)[:MOST_DIGITS])] = match.group(2)
            continue
        path, name, split, group, number, *content = fields
        if len(fields) != len(header) or not is_number(number) or split not in SPLITS or not _may_be(path, name):
            raise ValueError("another line")
        if names.setdefault(int(number), name) != name:
            raise ValueError("two names of a class")
        rows.append((reader.line_num, Clip(Path(path), int(number), split, group or None, *content)))
    if sorted(names) != list(range(len(names))):
        raise ValueError("a class is missing")
    return tuple(names[number] for number in range(len(names))), rows


def _may_be(path: str, name: str) -> bool:
    return 0 < len(path) <= LONGEST and len(name) <= LONGEST


def _read_as_edited(text: str, path: Path, classes: Sequence[str] | None, fix: str) -> tuple[tuple[str, ...], Rows]:
    """The list, understood as far as it can be."""
    try:
        records = list(_records(text))
    except csv.Error as error:
        raise DataError(f"cannot be read: {error}; is there a quote without its end?", where=str(path),
                        fix=fix) from error
    names: dict[int, str] = dict(enumerate(classes)) if classes else {}
    for _, fields in records:
        if (match := EMPTY_CLASS.fullmatch(fields[0])) and classes is None:
            names.setdefault(int(match.group(1)[:MOST_DIGITS]), match.group(2))
    records = [(line, fields) for line, fields in records if not fields[0].startswith("#")]
    columns = _columns_of(records, path, fix)
    rows, mistakes = [], []
    for line, fields in records:
        if _is_heading(fields):
            continue
        try:
            rows.append((line, _edited_clip(fields, columns, names, classes is not None)))
        except ValueError as error:
            mistakes.append(f"{path}:{line}: {error}")
    if mistakes:
        raise DataError(f"{len(mistakes)} of its lines cannot be read:\n{shown(mistakes)}", where=str(path), fix=fix)
    if sorted(names) != list(range(len(names))):
        missing = next(number for number in range(len(names)) if number not in names)
        raise DataError(f"lacks a class: none of its lines has the number {missing}", where=str(path), fix=fix)
    return tuple(names[number] for number in range(len(names))), rows


def _records(text: str) -> Iterator[tuple[int, list[str]]]:
    """The lines of a table that are not blank, with their numbers, whatever parts and quotes their fields. The fields
    of an empty column at the beginning stay, those at the end go."""
    lines = [line for line in io.StringIO(text, newline="") if line.strip()]
    is_hint = bool(lines) and re.fullmatch(r"sep=.", trim(lines[0])) is not None
    head = next((line for line in lines if _is_heading(_parted(line))), lines[is_hint] if len(lines) > is_hint else "")
    delimiter, quote = _marks(head)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quotechar=quote, skipinitialspace=True)
    for fields in reader:
        values = [trim(field) for field in fields]
        while values and not values[-1]:
            values.pop()
        if values and not (reader.line_num == 1 and is_hint):
            yield reader.line_num, values


def _parted(line: str) -> list[str]:
    return [unquoted(trim(field)) for field in re.split(r"[,;\t|]", line)]


def _marks(head: str) -> tuple[str, str]:
    """The delimiter and the quote of a table with the header `head`."""
    delimiter = max(",;\t|", key=head.count)  # the first one of equals
    return delimiter, "'" if head.count("'") > head.count('"') else '"'


def _is_heading(fields: Sequence[str]) -> bool:
    """Whether a line is the header, which a spreadsheet may have sorted in among the others."""
    names = {field.casefold() for field in fields}
    return {"path", "split"} <= names and bool({"label", "number"} & names)


def _columns_of(records: Sequence[tuple[int, list[str]]], path: Path, fix: str) -> Columns:
    header = next((fields for _, fields in records if _is_heading(fields)), None)
    if header is not None:
        return find_columns(header)
    if records and all(len(fields) == len(HEADER) and split_of(fields[2]) for _, fields in records):
        return find_columns(HEADER)  # the header was taken away
    first = ", ".join(map(repr, records[0][1][:8])) if records else "nothing"
    raise DataError(f"is no list of a run's clips: it has no line with the columns {','.join(HEADER)}; it begins with "
                    f"{first}", where=str(path), fix=fix)


def _edited_clip(fields: Sequence[str], columns: Columns, names: dict[int, str], is_known: bool) -> Clip:
    """The clip of a line; its class goes into `names`, unless all that there are `is_known`. Raises `ValueError` with
    what was expected of the line."""
    def field(column: int | None) -> str:
        return unquoted(fields[column]) if column is not None and column < len(fields) else ""

    path, name, split, group, number = map(field, (columns.path, columns.label, columns.split, columns.group,
                                                   columns.number))
    if not path or not (name or number) or not split:
        lacks = "path" if not path else "split" if not split else "label"
        raise ValueError(f"expected {','.join(HEADER)}, got a line without a {lacks}: {','.join(fields)[:80]!r}")
    if not _may_be(path, name):
        raise ValueError("expected a path and a label, got one that is longer than any")
    if split_of(split) is None:
        raise ValueError(f"expected train, val or test as the split, got {split[:80]!r}")
    label = _class_of(name, number.replace(",", "."), names, is_known)
    return Clip(Path(path), label, split_of(split), group or None)


def _class_of(name: str, number: str, names: dict[int, str], is_known: bool) -> int:
    """The number of the class that a line gives by its name, its number or both."""
    if not number:
        alike = [label for label, own in names.items() if own == name] or [
            label for label, own in names.items() if _is_same_class(own, name)]
        if len(alike) != 1:
            raise ValueError(f"expected one of the run's classes or its number, got {name[:80]!r} and no number")
        return alike[0]
    label = label_number(number)
    if label is None or label < 0:
        raise ValueError(f"expected a whole number as the class's number, got {number[:80]!r}")
    if is_known and label not in names:
        raise ValueError(f"expected a class from 0 to {len(names) - 1}, got {label}")
    own = names.setdefault(label, name)
    if name and not _is_same_class(own, name):
        raise ValueError(f"says class {label} {name!r}, but class {label} is {own!r}")
    return label


def _is_same_class(own: str, name: str) -> bool:
    """Whether `name` may be what a program made of the class name `own`."""
    if own == name or label_key(own).casefold() == label_key(name).casefold():
        return True
    if label_number(own) is not None and label_number(own) == label_number(name):
        return True
    try:
        return any("\udc80" <= letter <= "\udcff" for letter in name) and label_key(own) == label_key(
            name.encode("utf-8", "surrogateescape").decode("cp1252"))
    except UnicodeDecodeError:
        return False


def _settled(rows: Rows, path: Path, fix: str) -> Rows:
    """`rows` with paths as this system has them. Raises `DataError` for those that cannot be any here."""
    folder = os.path.dirname(os.path.abspath(path))
    places, settled, mistakes = [ClipPaths(folder), ClipPaths(os.getcwd())], [], []
    for line, clip in rows:
        text = str(clip.path)
        if not ORDINARY.fullmatch(text):
            found = next((found for place in places if (found := place.as_spelled(text))), None)
            if found is None and not text.startswith("/") and (wrong := foreign(text)):
                mistakes.append(f"{path}:{line}: {text[:80]!r} {wrong}")
            full = found or os.path.join(folder, expand_home_if_any(text))
            clip = Clip(Path(full), clip.label, clip.split, clip.group, clip.content) if full != text else clip
        settled.append((line, clip))
    if mistakes:
        raise DataError(f"{len(mistakes)} of its lines cannot be read:\n{shown(mistakes)}", where=str(path), fix=fix)
    return settled
