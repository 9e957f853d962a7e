"""Clips in lists: lines of `path label` with or without a header, and MMAction2's lists of folders of frames."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from expand.data.sources.clip import Entry, Found, absolute, in_order, is_number, mistakes_error
from expand.data.sources.columns import IDS, LABELS, PATHS, Columns, find_columns, flagged_split, is_known, split_of
from expand.data.sources.json_lists import clip_objects
from expand.data.sources.labels import label_number, one_spelling, refuse_negative
from expand.data.sources.paths import PLAIN, SUFFIX, ClipPaths, foreign, spellings, trim, unquoted
from expand.data.sources.text_files import csv_rows, read_lines, read_text
from expand.errors import DataError
from expand.home import expand_home, expand_home_if_any

EXPECTED = "expected `path label`"
FIX = ("a line is `path label` or `path,label`; quote a path or label with blanks or commas in it; lines of more "
       "columns need a header that names them, such as `path,label,split`")
JSON_FIX = ('a list in JSON has an object a line, as in {"file_name": "a.mp4", "label": "run"}, or an array of them, '
            'or is as {"a.mp4": "run"}, {"run": ["a.mp4"]}')
FRAME_LIST = ["original_vido_id", "video_id", "frame_id", "path"]
"""How SlowFast's lists of single frames begin (the spelling is theirs)."""
COUNTED = re.compile(r"(\S.*?)\s+(\d+)\s+(\d+)")
"""MMAction2's folder of frames: directory, number of frames, label."""
REST_OF_NAME = re.compile(r".*\.[A-Za-z]\w{1,4}\s+\S.*")
"""What follows a comma in a file's name: its end, and a label."""
SEVERAL = re.compile(r"(?:\S.*\.\w{2,5}(?:\s+\d+)+[\s,]+\d+|\S.*?\s+\d+\s+\d+(?:[\s,]+\d+)+)")
"""A clip with more than one number after it."""
VIDEO_FIRST = re.compile(r"(\S.*\.(?:mp4|m4v|avi|mov|mkv|webm|mpe?g|m2ts|mts|ts|wmv|flv|gif|3gp|ogv|vob|y4m))\s+(\S.*)",
                         re.IGNORECASE)
"""A path that ends like a video's, and a label of any number of words."""
VIDEO = re.compile(r"\.(?:mp4|m4v|avi|mov|mkv|webm|mpe?g|m2ts|mts|ts|wmv|flv|gif|3gp|ogv|vob|y4m)$", re.IGNORECASE)
QUOTED = re.compile(r"(?:^|[\s,;])\"")
"""A quote that protects a field, and is no part of a name."""
SEPARATOR_HINT = re.compile(r"sep=.")
"""A first line that tells a spreadsheet how columns are parted."""
LOOKED_AT = 20
"""Lines that are compared with the first one, to tell whether that is a header."""
NAMED = 12
"""Usual names of columns that an error gives."""


@dataclass(frozen=True)
class Row:
    """A good line: what it names and where it stands."""

    path: str
    label: str
    where: str
    split: str | None = None
    group: str | None = None
    number: int | None = None
    column: str | None = None
    """The name of the column that names the clip by something that need not be its path."""


def names_clips(path: Path) -> bool:
    """Whether the first lines of `path` say columns, or names of fields in JSON, for clips and their classes."""
    return _columns_at_first(path)[1:] == (True, True)


def lacks_labels(path: Path) -> bool:
    """Whether `path` has a header, or a first column alone, with clips and no classes, as the test splits of
    competitions have."""
    return _columns_at_first(path)[1:] == (True, False)


def _columns_at_first(path: Path) -> tuple[list[str], bool, bool]:
    """The columns in the header of `path`, and whether there are some for clips and for classes."""
    try:
        lines = [line for _, line in read_lines(path) if not line.startswith("#")]
        if lines and lines[0].startswith(("{", "[")):
            whole = _json_or_none(path, list(enumerate(lines)))
            values = [json.loads(lines[0])] if whole is None else clip_objects(whole) or []
            header = list(values[0]) if values and isinstance(values[0], dict) else []
        else:
            mark = next((mark for mark in "\t,;|" if lines and mark in lines[0]), " ")
            header = next(csv.reader(lines[:1], delimiter=mark, skipinitialspace=True), [])
    except (DataError, ValueError, RecursionError, csv.Error):
        return [], False, False
    found = find_columns(header)
    return header, found.path is not None, found.label is not None


def is_frame_list(head: str) -> bool:
    """Whether a list that begins with `head` is one of SlowFast's, with a line a frame."""
    return head.replace(",", " ").split()[:4] == FRAME_LIST


def read_lists(lists: Mapping[str | None, Path], root: str | None) -> Found:
    """The clips of `lists` = {split: file}; the split is None where the file itself should say it.

    A single list whose column `split` has several values says the splits; of several lists each gives the lines of its
    own. Where nothing says it, clips are train. Relative paths start at `root`, else at the list's folder. Raises
    `DataError` with every line that cannot be read.
    """
    rows: dict[str | None, list[Row]] = {}
    mistakes: list[str] = []
    places = {split: ClipPaths(str(expand_home(root, "data.root")) if root else str(path.parent))
              for split, path in lists.items()}
    for split, path in lists.items():
        rows[split], wrong = parse_list(path, places[split])
        mistakes += wrong
    if mistakes:
        raise mistakes_error(mistakes, FIX)
    where = ", ".join(map(str, lists.values()))
    rows, notes = _spelled(rows, where)
    entries, splits = [], set()
    for split in lists:
        chosen = _by_split(rows[split], split, alone=len(lists) == 1)
        splits |= chosen.keys()
        entries += _entries(chosen, places[split], mistakes)
    if mistakes:
        raise mistakes_error(mistakes, "a list names files of this machine, relative ones from the list's folder, or "
                                       "from data.root")
    kind = "a list" if len(lists) == 1 else "lists"
    return Found(where, in_order(splits), entries, _number_order([row for some in rows.values() for row in some]),
                 [f"read as {kind}", *notes], "no list for {splits}")


def _spelled(rows: Mapping[str | None, list[Row]], where: str) -> tuple[dict[str | None, list[Row]], list[str]]:
    """`rows` with one spelling for each class, and what there is to say about it."""
    places = {row.label: row.where for some in rows.values() for row in reversed(some)}
    refuse_negative(places, where)
    changed = one_spelling(row.label for some in rows.values() for row in some)
    if not changed:
        return dict(rows), []
    examples = ", ".join(f"{label!r} as {name!r}" for label, name in list(changed.items())[:3])
    respelled = {split: [replace(row, label=changed[row.label]) if row.label in changed else row for row in some]
                 for split, some in rows.items()}
    return respelled, [f"one spelling for each class: {examples}{', ...' if len(changed) > 3 else ''}"]


def _by_split(rows: list[Row], split: str | None, alone: bool) -> dict[str, list[Row]]:
    """The lines that count, by their split; `split` is what the list was named for."""
    own = in_order(row.split for row in rows if row.split)
    if own and (split is None or alone and len(own) > 1):
        return {name: [row for row in rows if row.split == name] for name in own}
    if len(own) > 1:
        return {split: [row for row in rows if row.split == split]}
    return {split or "train": rows}


def _entries(chosen: Mapping[str, list[Row]], places: ClipPaths, mistakes: list[str]) -> Iterator[Entry]:
    """The clips of {split: lines}. Paths that nothing here can be go to `mistakes`; where not one of those is there
    that a column names by something else than a path, it raises `DataError`."""
    base = absolute(places.start)
    tried, found_any = [], False
    for split, rows in chosen.items():
        for row in rows:
            path = expand_home_if_any(row.path)
            found = None
            if row.column or not PLAIN.fullmatch(row.path):
                found = places.find(row.path, _hints(row.label, split))
                if found is None and (wrong := foreign(row.path)):
                    mistakes.append(f"{row.where}: {row.path[:80]!r} {wrong}")
                    continue
                if found is None:
                    path = _likeliest_spelling(path)
                if row.column:
                    tried.append(row)
                    found_any = found_any or found is not None
            full = os.path.normpath(os.path.join(base, path))
            key = full[len(base):].lstrip("/") if full.startswith(base.rstrip("/") + "/") else full
            yield Entry(found or os.path.join(places.start, path), row.label, split, row.where, key, row.group)
    if tried and not found_any:
        raise DataError(f"the column {tried[0].column!r} names no file: {tried[0].path!r} and "
                        f"{len(tried) - 1} others are not in {places.start}, with or without a suffix",
                        where=tried[0].where, fix=f"name the files in a column such as {', '.join(PATHS[:6])}; "
                        "relative paths start at the list's folder, or at data.root")


def _hints(label: str, split: str) -> tuple[str, ...]:
    """Folders in which the clip of a bare name may lie."""
    labels = dict.fromkeys((label, label.replace(" ", "_")))
    return (split, *labels, *(f"{split}/{name}" for name in labels))


def _likeliest_spelling(path: str) -> str:
    """What to call a clip that is not there."""
    *_, last = spellings(path) if "\\" in path and "/" not in path else [path]
    return last


def _number_order(rows: list[Row]) -> tuple[str, ...] | None:
    """The classes by the column `number`, where every line has one."""
    numbers: dict[str, int] = {}
    for row in rows:
        if row.number is None:
            return None
        if numbers.setdefault(row.label, row.number) != row.number:
            raise DataError(f"class {row.label!r} has two numbers, {numbers[row.label]} and {row.number}",
                            where=row.where, fix="a class has one number")
    return tuple(sorted(numbers, key=lambda name: (numbers[name], name)))


def parse_list(path: Path, places: ClipPaths) -> tuple[list[Row], list[str]]:
    """A list's good lines, and its mistakes as `file:line: what`. Raises `DataError` where it is no list at all, or
    has columns of unknown names."""
    lines = [(number, line) for number, line in read_lines(path) if not line.startswith("#")]
    if lines and SEPARATOR_HINT.fullmatch(lines[0][1]):
        lines = lines[1:]
    if not lines:
        return [], []
    number, head = lines[0]
    if head.startswith("{") or re.match(r"\[\s*(\{|$)", head):
        return _parse_json(path, lines)
    if is_frame_list(head):
        raise DataError("is a list of single frames, with no labels in it", where=f"{path}:{number}",
                        fix="name the set's own annotations (for Something-Something v2 train.json and "
                            "validation.json), and its videos or folders of frames with data.root")
    if re.fullmatch(r"path[\s,]+label", head):
        return _parse_lines(path, lines[1:], places)  # whose lines may be parted in any way
    delimiter = next((mark for mark in "\t,;|" if mark in head), " ")
    quote = "'" if head.startswith("'") else '"'
    header = next(csv.reader([head], delimiter=delimiter, quotechar=quote, skipinitialspace=True))
    if delimiter == "\t":  # a first column without a name was stripped from the line
        header = next(fields for line, fields in csv_rows(path, delimiter, quote) if line >= number)
    while len(header) > 1 and not header[-1].strip():
        header = header[:-1]
    others = [line for _, line in lines[1:LOOKED_AT + 1]]
    if not _may_be_header(header, places):
        return _parse_lines(path, lines, places)
    columns = find_columns(header)
    if columns.path is None or columns.label is None:
        if _is_header(header, others, delimiter, places):
            raise _unknown_columns(header, columns, f"{path}:{number}")
        return _parse_lines(path, lines, places)
    if delimiter == " ":
        if len(header) == 2 and columns.path == 0:
            return _parse_lines(path, lines[1:], places)
        raise DataError("has columns that are parted by blanks", where=f"{path}:{number}",
                        fix="a path may have blanks in it: part columns by commas or tabs")
    records = ((line, fields) for line, fields in csv_rows(path, delimiter, quote)
               if any(fields) and not (fields[0].startswith("#") and (line < number or fields[0].startswith("# "))))
    return _parse_table(path, header, columns, ((line, fields) for line, fields in records if line > number))


def _may_be_header(fields: Sequence[str], places: ClipPaths) -> bool:
    """Whether the first line may be a header: none of its fields is a path, as far as can be seen, or its columns have
    the names that are looked for, whatever the others are called (`ground_truth.label`, `train/test`)."""
    named = find_columns(fields)
    if None not in (named.path, named.label) and not named.by_id and not any(
            places.exists(field.strip()) or VIDEO.search(field) for field in fields if field.strip()):
        return True
    return not any(SUFFIX.search(field.strip()) or "/" in field or "\\" in field for field in fields) and not (
        is_known(fields[0]) and places.exists(fields[0].strip()) and len(fields) == 2)


def _is_header(fields: Sequence[str], others: Sequence[str], delimiter: str, places: ClipPaths) -> bool:
    """Whether a first line without the columns that are needed is a header nevertheless: it has a column's name and
    no number, or nothing that is a path where each of the `others` has one."""
    has_number = any(is_number(field.strip()) for field in fields)
    if len(fields) > 1 and not has_number and find_columns(fields).path is not None:
        return True
    if any(places.exists(field.strip()) for field in fields if field.strip()):
        return False

    def has_path(line: str) -> bool:
        parts = [unquoted(part.strip()) for part in line.split(delimiter)]
        return any(SUFFIX.search(part) or "/" in part or "\\" in part or (part and places.exists(part))
                   for part in parts)

    return bool(others) and all(map(has_path, others))


def _unknown_columns(header: Sequence[str], columns: Columns, where: str) -> DataError:
    """What to say of a header without the columns of clips or classes."""
    lacks = [name for name, place in (("clips' paths", columns.path), ("their labels", columns.label)) if place is None]
    there = ", ".join(repr(name) for name in header[:NAMED]) + (", ..." if len(header) > NAMED else "")
    return DataError(f"no column for {' and '.join(lacks)}; the first line, which names no file, has {there}",
                     where=where,
                     fix=f"a path is looked for in columns such as {', '.join((*PATHS[:NAMED], *IDS[:2]))}; a label in "
                         f"{', '.join(LABELS[:NAMED])}; rename the columns. If the line is a clip, its file is missing")


def _parse_table(path: Path, header: Sequence[str], columns: Columns,
                 records: Iterable[tuple[int, list[str]]]) -> tuple[list[Row], list[str]]:
    rows, mistakes = [], []
    records = list(records)
    maybe = columns.maybe_split
    if maybe is not None and not all(len(fields) > maybe and split_of(fields[maybe]) for _, fields in records):
        maybe = None
    split_column = columns.split if columns.split is not None else maybe
    flags = {} if split_column is not None else columns.flags
    if flags and not all(flagged_split({split: fields[at] for split, at in flags.items() if len(fields) > at})
                         for _, fields in records):
        flags = {}
    for number, fields in records:
        where = f"{path}:{number}"
        if len(fields) > len(header) and not any(field.strip() for field in fields[len(header):]):
            fields = fields[:len(header)]
        if len(fields) != len(header):
            mistakes.append(f"{where}: expected {len(header)} fields ({', '.join(header)}), got {len(fields)}")
            continue
        named = {"path": columns.path, "label": columns.label, "split": split_column, "group": columns.group,
                 "number": columns.number}
        values = {name: trim(fields[column]) for name, column in named.items() if column is not None}
        if flags:
            values["split"] = flagged_split({split: fields[at] for split, at in flags.items()})
        row = _table_row(values, where, header[columns.path] if columns.by_id else None)
        (mistakes if isinstance(row, str) else rows).append(row)
    return rows, mistakes


def _table_row(values: dict[str, str], where: str, column: str | None) -> Row | str:
    if not values["path"] or not values["label"]:
        return f"{where}: {EXPECTED}, got a line without a {'path' if not values['path'] else 'label'}"
    split, number = values.get("split"), values.get("number") or None
    if split is not None and split_of(split) is None:
        return f"{where}: expected train, val or test as the split, got {split!r}"
    place = None if number is None else label_number(number)
    if number is not None and (place is None or place < 0):
        return f"{where}: expected a whole number as the class's number, got {number[:80]!r}"
    return Row(unquoted(values["path"]), unquoted(values["label"]), where, split and split_of(split),
               values.get("group") or None, place, column)


def _parse_json(path: Path, lines: Sequence[tuple[int, str]]) -> tuple[list[Row], list[str]]:
    """The clips of JSON objects, one a line or all in one value, by the same names as columns."""
    first = lines[0][0]
    try:
        whole = _json_or_none(path, lines)
        values = ([(number, json.loads(line)) for number, line in lines] if whole is None else
                  [(first, value) for value in clip_objects(whole) or ()])
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
    records, mistakes = [], []
    for number, value in values:
        fields = [value.get(name) for name in header]
        if any(isinstance(fields[at], list | dict) for at in (columns.path, columns.label)):
            mistakes.append(f"{path}:{number}: {EXPECTED}, got several values for one of them")
        records.append((number, ["" if field is None else str(field) for field in fields]))
    rows, wrong = _parse_table(path, header, columns, records)
    return rows, mistakes + wrong


def _json_or_none(path: Path, lines: Sequence[tuple[int, str]]) -> Any:
    """The one value that the text is; None where it has a value a line."""
    if len(lines) > 1 and lines[0][1].startswith("{") and lines[1][1].startswith("{"):
        return None
    return json.loads(read_text(path))


def _parse_lines(path: Path, lines: list[tuple[int, str]], places: ClipPaths) -> tuple[list[Row], list[str]]:
    lines = [(number, _without_empty_ends(trim(line))) for number, line in lines]
    lines = [(number, line) for number, line in lines if line]
    has_counts = _has_counts(path, lines)

    def split(line: str) -> list[str]:
        return _counted(line) if has_counts else _fields(line, places)

    if all(line.count(";") == 1 for _, line in lines):  # Jester and Something-Something v1, with commas in their labels
        split = _halves
    parted = [(number, line, [unquoted(trim(field)) for field in split(line)]) for number, line in lines]
    if all(len(fields) == 2 and VIDEO.search(fields[1]) and not VIDEO.search(fields[0]) for _, _, fields in parted):
        parted = [(number, line, fields[::-1]) for number, line, fields in parted]  # `label path` throughout
    rows, mistakes = [], []
    for number, line, fields in parted:
        where = f"{path}:{number}"
        if not has_counts and line[-1].isdecimal() and SEVERAL.fullmatch(line):
            mistakes.append(f"{where}: {EXPECTED}, got {line[:80]!r}: more than one label a clip cannot be learned")
        elif len(fields) != 2 or not all(fields):
            mistakes.append(f"{where}: {EXPECTED}, got {line[:80]!r}")
        else:
            rows.append(Row(fields[0], fields[1], where))
    return rows, mistakes


def _without_empty_ends(line: str) -> str:
    """`line` without the delimiters of empty columns, which spreadsheets put at its end."""
    return re.sub(r"(?<=[^\s,;|])(?:\s*[,;|])+$", "", line) if line.endswith((",", ";", "|")) else line


def _has_counts(path: Path, lines: list[tuple[int, str]]) -> bool:
    """Whether the lines are `directory total_frames label`, and not paths that end in a blank and a number."""
    matches = [COUNTED.fullmatch(line) for _, line in lines]
    if not lines or not all(matches) or any(_labels_follow(match.group(1)) for match in matches):
        return False
    first = lines[0][1].rsplit(maxsplit=1)[0]
    return not os.path.exists(os.path.join(path.parent, first))


def _labels_follow(directory: str) -> bool:
    """Whether what should be a directory ends in a number of its own (several labels) or is a file's name."""
    return directory.split()[-1].isdecimal() or SUFFIX.search(directory) is not None


def _counted(line: str) -> list[str]:
    return [*COUNTED.fullmatch(line).group(1, 3)]


def _halves(line: str) -> list[str]:
    return [field.strip() for field in line.split(";")]


def _fields(line: str, places: ClipPaths) -> list[str]:
    """The fields of a line: split at tabs, else at commas, else at blanks; quotes protect any of them."""
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
    if has_quotes:
        return _at_quotes(line)
    return _at_blank(line, places)


def _at_quotes(line: str) -> list[str]:
    """The two fields of a line of which one or both are quoted, parted by blanks."""
    fields = next(csv.reader([line], delimiter=" ", skipinitialspace=True))
    if len(fields) > 2:  # one of them has words of its own
        fields = [fields[0], " ".join(fields[1:])] if line.startswith('"') or SUFFIX.search(fields[0]) else [
            " ".join(fields[:-1]), fields[-1]]
    return fields


def _at_blank(line: str, places: ClipPaths) -> list[str]:
    """The path and the label of a line with blanks between them, and perhaps in them: after the end of a video's name;
    else after the first words that are the path of something; else at the last blank."""
    if match := VIDEO_FIRST.fullmatch(line):
        return [*match.group(1, 2)]
    words = re.split(r"(\s+)", line)
    if len(words) > 3:
        for end in range(len(words) - 2, 0, -2):
            path = "".join(words[:end])
            if places.exists(path):
                return [path, "".join(words[end + 1:])]
    return line.rsplit(maxsplit=1)
