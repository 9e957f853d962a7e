"""Clips in lists: lines of `path label`, tables with a header, JSON, and MMAction2's lists of folders of frames."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expand.data.sources.clip import (
    Files,
    Source,
    SourceClip,
    absolute,
    clips_of_file,
    is_number,
    order_splits,
    unreadable_lines,
)
from expand.data.sources.labels import label_number, refuse_negative, unify_spellings
from expand.data.sources.paths import PLAIN, SUFFIX, ClipPaths, foreign_reason, spellings, strip_quotes, trim
from expand.data.sources.tables import (
    IDS,
    LABELS,
    PATHS,
    SEPARATOR_HINT,
    Columns,
    clip_objects,
    csv_rows,
    find_columns,
    is_column_name,
    read_lines,
    read_text,
    split_of_flags,
    split_of_value,
)
from expand.errors import DataError
from expand.home import expand_home, expand_home_if_any

EXPECTED = "expected `path label`"
FIX = ("a line is `path label` or `path,label`; quote a path or label with blanks or commas in it; lines of more "
       "columns need a header that names them, such as `path,label,split`")
JSON_FIX = ('a list in JSON has an object a line, as in {"file_name": "a.mp4", "label": "run"}, or an array of them, '
            'or is as {"a.mp4": "run"}, {"run": ["a.mp4"]}')
FRAME_LIST = ["original_vido_id", "video_id", "frame_id", "path"]
"""The first columns of SlowFast's lists of single frames (the spelling is theirs)."""
WITH_COUNT = re.compile(r"(\S.*?)\s+(\d+)\s+(\d+)")
"""MMAction2's folder of frames: directory, number of frames, label."""
REST_OF_NAME = re.compile(r".*\.[A-Za-z]\w{1,4}\s+\S.*")
"""The part of a file name after a comma: its end, and a label."""
SEVERAL = re.compile(r"(?:\S.*\.\w{2,5}(?:\s+\d+)+[\s,]+\d+|\S.*?\s+\d+\s+\d+(?:[\s,]+\d+)+)")
"""A clip with more than one number after it."""
_VIDEO = r"\.(?:mp4|m4v|avi|mov|mkv|webm|mpe?g|m2ts|mts|ts|wmv|flv|gif|3gp|ogv|vob|y4m)"
VIDEO = re.compile(rf"{_VIDEO}$", re.IGNORECASE)
VIDEO_FIRST = re.compile(rf"(\S.*{_VIDEO})\s+(\S.*)", re.IGNORECASE)
"""A path that ends like a video's, and a label of any number of words."""
QUOTED = re.compile(r"(?:^|[\s,;])\"")
"""A quote that protects a field, and is no part of a name."""
LOOKED_AT = 20
"""Lines that are compared with the first one, to tell whether that is a header."""
NAMED = 12
"""Usual names of columns that an error gives."""


@dataclass
class ParsedList:
    """The content of one list; its paths are as written."""

    clips: list[SourceClip] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)
    """`file:line: problem` for each line that cannot be read."""
    id_column: str | None = None
    """The column of the paths, if it may name the clips by something else than a path."""


def names_clips(path: Path, *, with_classes: bool = True) -> bool:
    """Return true if the header of `path`, or its names of fields in JSON, has columns for clips and classes.

    `with_classes` false: for clips and not for classes, as in test lists of competitions.
    """
    try:
        lines = [line for _, line in read_lines(path) if not line.startswith("#")]
        if lines and lines[0].startswith(("{", "[")):
            whole = _read_whole_json(path, list(enumerate(lines)))
            values = [json.loads(lines[0])] if whole is None else clip_objects(whole) or []
            header = list(values[0]) if values and isinstance(values[0], dict) else []
        else:
            mark = next((mark for mark in "\t,;|" if lines and mark in lines[0]), " ")
            header = next(csv.reader(lines[:1], delimiter=mark, skipinitialspace=True), [])
    except (DataError, ValueError, RecursionError, csv.Error):
        return False
    found = find_columns(header)
    return found.path is not None and (found.label is not None) == with_classes


def is_frame_list(head: str) -> bool:
    """Return true if a list that begins with `head` is one of SlowFast's with a line for each frame."""
    return head.replace(",", " ").split()[:4] == FRAME_LIST


def read_lists(files: Files, root: str | None) -> Source:
    """Return the clips of the lists `files`. Relative paths start at `root`, else at the list's folder.

    If a single list has a column `split` with several values, these are the splits; of several lists each gives its
    own lines. Without any word of a split, clips are train. Raises `DataError` with every line that cannot be read.
    """
    where = ", ".join(str(path) for _, path in files)
    starts = [ClipPaths(str(expand_home(root, "data.root")) if root else str(path.parent)) for _, path in files]
    lists = [parse_list(path, paths) for (_, path), paths in zip(files, starts, strict=True)]
    if mistakes := [line for parsed in lists for line in parsed.mistakes]:
        raise unreadable_lines(mistakes, FIX)
    everything = [clip for parsed in lists for clip in parsed.clips]
    notes = ["read as a list" if len(files) == 1 else "read as lists"]
    refuse_negative({clip.label: clip.place for clip in reversed(everything)}, where)
    if changes := unify_spellings(clip.label for clip in everything):
        for clip in everything:
            clip.label = changes.get(clip.label, clip.label)
        examples = ", ".join(f"{label!r} as {name!r}" for label, name in list(changes.items())[:3])
        notes.append(f"one spelling for each class: {examples}{', ...' if len(changes) > 3 else ''}")
    clips: list[SourceClip] = []
    splits: set[str] = set()
    for (split, _), parsed, paths in zip(files, lists, starts, strict=True):
        chosen = clips_of_file(parsed.clips, split, is_alone=len(files) == 1)
        splits |= {clip.split for clip in chosen} or {split or "train"}
        mistakes += _find_files(chosen, paths, parsed.id_column)
        clips += chosen
    if mistakes:
        raise unreadable_lines(mistakes, "a list names files of this machine, relative ones from the list's folder, or "
                                         "from data.root")
    class_order, numbers = None, dict[str, int]()
    for clip in everything:
        if clip.number is None:
            break
        if numbers.setdefault(clip.label, clip.number) != clip.number:
            raise DataError(f"class {clip.label!r} has two numbers, {numbers[clip.label]} and {clip.number}",
                            where=clip.place, fix="a class has one number")
    else:  # every line has one
        class_order = tuple(sorted(numbers, key=lambda name: (numbers[name], name)))
    return Source(where, order_splits(splits), clips, class_order, notes, "no list for {splits}")


def _find_files(clips: Sequence[SourceClip], paths: ClipPaths, id_column: str | None) -> list[str]:
    """Set the paths of `clips` to the files that they mean, and their keys; return the paths that no file can have.

    Raises `DataError` if the paths come from an `id_column` and not one of the files is there.
    """
    base, mistakes = absolute(paths.start), []
    missing: list[tuple[str, str]] = []
    for clip in clips:
        path, found = expand_home_if_any(clip.path), None
        if id_column or not PLAIN.fullmatch(clip.path):
            labels = dict.fromkeys((clip.label, clip.label.replace(" ", "_")))
            hints = (clip.split, *labels, *(f"{clip.split}/{name}" for name in labels))
            found = paths.find(clip.path, hints)
            if found is None and (reason := foreign_reason(clip.path)):
                mistakes.append(f"{clip.place}: {clip.path[:80]!r} {reason}")
                continue
            if found is None:
                missing.append((clip.path, clip.place))
                if "\\" in path and "/" not in path:
                    *_, path = spellings(path)
        full = os.path.normpath(os.path.join(base, path))
        clip.key = full[len(base):].lstrip("/") if full.startswith(base.rstrip("/") + "/") else full
        clip.path = found or os.path.join(paths.start, path)
    if id_column and missing and len(missing) + len(mistakes) == len(clips):
        first, place = missing[0]
        raise DataError(f"the column {id_column!r} names no file: {first!r} and {len(missing) - 1} others are not in "
                        f"{paths.start}, with or without a suffix", where=place,
                        fix=f"name the files in a column such as {', '.join(PATHS[:6])}; relative paths start at the "
                            "list's folder, or at data.root")
    return mistakes


def parse_list(path: Path, paths: ClipPaths) -> ParsedList:
    """Return the clips and the mistakes of the list `path`. Raises `DataError` for a file that is no list, or has
    columns of unknown names."""
    lines = [(number, line) for number, line in read_lines(path) if not line.startswith("#")]
    if lines and SEPARATOR_HINT.fullmatch(lines[0][1]):
        lines = lines[1:]
    if not lines:
        return ParsedList()
    number, head = lines[0]
    if head.startswith("{") or re.match(r"\[\s*(\{|$)", head):
        return _parse_json(path, lines)
    if is_frame_list(head):
        raise DataError("is a list of single frames, with no labels in it", where=f"{path}:{number}",
                        fix="name the set's own annotations (for Something-Something v2 train.json and "
                            "validation.json), and its videos or folders of frames with data.root")
    if re.fullmatch(r"path[\s,]+label", head):
        return _parse_lines(path, lines[1:], paths)  # any delimiter may follow
    delimiter = next((mark for mark in "\t,;|" if mark in head), " ")
    quote = "'" if head.startswith("'") else '"'
    header = next(csv.reader([head], delimiter=delimiter, quotechar=quote, skipinitialspace=True))
    if delimiter == "\t":  # a first column without a name was stripped from the line
        header = next(fields for line, fields in csv_rows(path, delimiter, quote) if line >= number)
    while len(header) > 1 and not header[-1].strip():
        header = header[:-1]
    columns = find_columns(header)
    # known names make a header, whatever the other columns are called (`ground_truth.label`, `train/test`)
    is_known = None not in (columns.path, columns.label) and not columns.by_id and not any(
        paths.exists(name.strip()) or VIDEO.search(name) for name in header if name.strip())
    has_path = any(SUFFIX.search(name.strip()) or "/" in name or "\\" in name for name in header)
    if not is_known and (has_path or len(header) == 2 and is_column_name(header[0])
                         and paths.exists(header[0].strip())):
        return _parse_lines(path, lines, paths)  # the first line names a clip
    if columns.path is None or columns.label is None:
        if _is_header(header, [line for _, line in lines[1:LOOKED_AT + 1]], delimiter, paths):
            raise _unknown_columns(header, columns, f"{path}:{number}")
        return _parse_lines(path, lines, paths)
    if delimiter == " ":
        if len(header) == 2 and columns.path == 0:
            return _parse_lines(path, lines[1:], paths)
        raise DataError("has columns separated by blanks", where=f"{path}:{number}",
                        fix="a path may have blanks in it: separate columns by commas or tabs")
    records = ((line, fields) for line, fields in csv_rows(path, delimiter, quote)
               if any(fields) and not (fields[0].startswith("#") and (line < number or fields[0].startswith("# "))))
    return _parse_table(path, header, columns, ((line, fields) for line, fields in records if line > number))


def _is_header(fields: Sequence[str], others: Sequence[str], delimiter: str, paths: ClipPaths) -> bool:
    """Return true if a first line without the needed columns is a header nevertheless: it has the name of a column and
    no number, or it has no path while each of the `others` has one."""
    has_number = any(is_number(field.strip()) for field in fields)
    if len(fields) > 1 and not has_number and find_columns(fields).path is not None:
        return True
    if any(paths.exists(field.strip()) for field in fields if field.strip()):
        return False

    def has_path(line: str) -> bool:
        parts = [strip_quotes(part.strip()) for part in line.split(delimiter)]
        return any(SUFFIX.search(part) or "/" in part or "\\" in part or (part and paths.exists(part))
                   for part in parts)

    return bool(others) and all(map(has_path, others))


def _unknown_columns(header: Sequence[str], columns: Columns, where: str) -> DataError:
    """The error for a header without the columns of clips or classes."""
    lacks = [name for name, place in (("clips' paths", columns.path), ("their labels", columns.label)) if place is None]
    there = ", ".join(repr(name) for name in header[:NAMED]) + (", ..." if len(header) > NAMED else "")
    return DataError(f"no column for {' and '.join(lacks)}; the first line, which names no file, has {there}",
                     where=where,
                     fix=f"a path is looked for in columns such as {', '.join((*PATHS[:NAMED], *IDS[:2]))}; a label in "
                         f"{', '.join(LABELS[:NAMED])}; rename the columns. If the line is a clip, its file is missing")


def _parse_table(path: Path, header: Sequence[str], columns: Columns,
                 records: Iterable[tuple[int, list[str]]]) -> ParsedList:
    if columns.path is None or columns.label is None:
        raise _unknown_columns(header, columns, str(path))
    records = list(records)
    split_column, maybe, flags = columns.split, columns.maybe_split, columns.flags
    if split_column is None and maybe is not None and all(
            len(fields) > maybe and split_of_value(fields[maybe]) for _, fields in records):
        split_column = maybe
    if split_column is not None or not all(
            split_of_flags({split: fields[at] for split, at in flags.items() if len(fields) > at})
            for _, fields in records):
        flags = {}
    parsed = ParsedList(id_column=header[columns.path] if columns.by_id else None)
    for line, fields in records:
        where = f"{path}:{line}"
        if len(fields) > len(header) and not any(field.strip() for field in fields[len(header):]):
            fields = fields[:len(header)]
        if len(fields) != len(header):
            parsed.mistakes.append(f"{where}: expected {len(header)} fields ({', '.join(header)}), got {len(fields)}")
            continue
        values = [trim(field) for field in fields]
        name, label = values[columns.path], values[columns.label]
        split_text = None if split_column is None else values[split_column]
        if flags:
            split_text = split_of_flags({split: fields[at] for split, at in flags.items()})
        split = "" if split_text is None else split_of_value(split_text)
        number_text = "" if columns.number is None else values[columns.number]
        number = label_number(number_text)
        if not name or not label:
            parsed.mistakes.append(f"{where}: {EXPECTED}, got a line without a {'path' if not name else 'label'}")
        elif split is None:
            parsed.mistakes.append(f"{where}: expected train, val or test as the split, got {split_text!r}")
        elif number_text and (number is None or number < 0):
            parsed.mistakes.append(f"{where}: expected a whole number as the class's number, got {number_text[:80]!r}")
        else:
            group = None if columns.group is None else values[columns.group] or None
            parsed.clips.append(SourceClip(strip_quotes(name), strip_quotes(label), split, where, group=group,
                                           number=number))
    return parsed


def _read_whole_json(path: Path, lines: Sequence[tuple[int, str]]) -> Any:
    """The value of a JSON file; None if it has one value on each line."""
    if len(lines) > 1 and lines[0][1].startswith("{") and lines[1][1].startswith("{"):
        return None
    return json.loads(read_text(path))


def _parse_json(path: Path, lines: Sequence[tuple[int, str]]) -> ParsedList:
    """Parse JSON objects, one on each line or all in one value; their keys are named like columns."""
    try:
        whole = _read_whole_json(path, lines)
        values = ([(number, json.loads(line)) for number, line in lines] if whole is None else
                  [(lines[0][0], value) for value in clip_objects(whole) or ()])
    except (ValueError, RecursionError) as error:
        raise DataError(f"is no JSON: {error}", where=str(path), fix=JSON_FIX) from error
    if wrong := [number for number, value in values if not isinstance(value, dict)]:
        raise DataError("is no JSON object", where=f"{path}:{wrong[0]}", fix=JSON_FIX)
    if not values:
        raise DataError("is JSON in which no clips with classes are found", where=str(path), fix=JSON_FIX)
    header = list(dict.fromkeys(str(name) for _, value in values for name in value))
    columns = find_columns(header)
    if columns.path is None or columns.label is None:
        raise _unknown_columns(header, columns, f"{path}:{lines[0][0]}")
    records: list[tuple[int, list[str]]] = []
    mistakes: list[str] = []
    for number, value in values:
        fields = [value.get(name) for name in header]
        if any(isinstance(fields[at], list | dict) for at in (columns.path, columns.label)):
            mistakes.append(f"{path}:{number}: {EXPECTED}, got several values for one of them")
        records.append((number, ["" if field is None else str(field) for field in fields]))
    parsed = _parse_table(path, header, columns, records)
    parsed.mistakes += mistakes
    return parsed


def _parse_lines(path: Path, lines: Iterable[tuple[int, str]], paths: ClipPaths) -> ParsedList:
    # without the delimiters of empty columns, which spreadsheets put at the end of a line
    texts = [(number, re.sub(r"(?<=[^\s,;|])(?:\s*[,;|])+$", "", text) if text.endswith((",", ";", "|")) else text)
             for number, line in lines if (text := trim(line))]
    with_counts: list[list[str]] = []  # `directory total_frames label`, if all lines are of that form
    counted = [match for _, text in texts if (match := WITH_COUNT.fullmatch(text))]
    # several labels after a file are not that form, nor are paths that end in a blank and a number
    if texts and len(counted) == len(texts) and not any(
            match[1].split()[-1].isdecimal() or SUFFIX.search(match[1]) for match in counted) and not os.path.exists(
            os.path.join(path.parent, texts[0][1].rsplit(maxsplit=1)[0])):
        with_counts = [[match[1], match[3]] for match in counted]
    has_semicolons = all(text.count(";") == 1 for _, text in texts)
    split_lines: list[list[str]] = []
    for place, (_, text) in enumerate(texts):
        fields = (text.split(";") if has_semicolons else  # Jester and Something-Something v1: commas in labels
                  with_counts[place] if with_counts else _fields(text, paths))
        split_lines.append([strip_quotes(trim(field)) for field in fields])
    if all(len(fields) == 2 and VIDEO.search(fields[1]) and not VIDEO.search(fields[0]) for fields in split_lines):
        split_lines = [fields[::-1] for fields in split_lines]  # `label path` throughout
    parsed = ParsedList()
    for (number, text), fields in zip(texts, split_lines, strict=True):
        where = f"{path}:{number}"
        if not with_counts and text[-1].isdecimal() and SEVERAL.fullmatch(text):
            parsed.mistakes.append(f"{where}: {EXPECTED}, got {text[:80]!r}: a clip can have only one label")
        elif len(fields) != 2 or not all(fields):
            parsed.mistakes.append(f"{where}: {EXPECTED}, got {text[:80]!r}")
        else:
            parsed.clips.append(SourceClip(fields[0], fields[1], "", where))
    return parsed


def _fields(line: str, paths: ClipPaths) -> list[str]:
    """The fields of a line, split at tabs, else at commas, else at blanks; quotes protect any of them."""
    has_quotes = QUOTED.search(line) is not None
    if "\t" in line and not has_quotes:
        return re.split(r"\s*\t\s*", line)
    if line.startswith("'") and (match := re.fullmatch(r"('[^']+')[\s,;|]+(\S.*)", line)):
        return [*match.group(1, 2)]
    if "," in line or has_quotes:
        for delimiter in "\t,":
            fields = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))
            if not has_quotes and delimiter == "," and REST_OF_NAME.fullmatch(fields[-1]) \
                    and not SUFFIX.search(fields[0].strip()):
                break  # `clips/ready, go.mp4 3`
            if len(fields) > 1:
                return fields
    if "|" in line and line.count("|") == 1:
        return line.split("|")
    if not has_quotes:  # the path and the label may have blanks in them
        if match := VIDEO_FIRST.fullmatch(line):
            return [*match.group(1, 2)]
        words = re.split(r"(\s+)", line)
        for end in range(len(words) - 2, 0, -2) if len(words) > 3 else ():
            if paths.exists(first := "".join(words[:end])):
                return [first, "".join(words[end + 1:])]
        return line.rsplit(maxsplit=1)
    fields = next(csv.reader([line], delimiter=" ", skipinitialspace=True))
    if len(fields) > 2:  # the path or the label has several words
        fields = [fields[0], " ".join(fields[1:])] if line.startswith('"') or SUFFIX.search(fields[0]) else [
            " ".join(fields[:-1]), fields[-1]]
    return fields
