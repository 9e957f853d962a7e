"""Clips in lists: lines of `path label` with or without a header, and MMAction2's lists of folders of frames."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from expand.data.sources.base import SPLIT_NAMES, Entry, Found, absolute, in_order, is_number, mistakes_error
from expand.data.sources.reading import csv_rows, read_lines
from expand.errors import DataError

COLUMNS = {"path": ("path", "video_path", "file", "filename", "video", "clip"),
           "label": ("label_name", "class_name", "label", "class"),
           "split": ("split", "subset"), "group": ("group",), "number": ("number",)}
"""What the columns of a list may be called, in any order and case; the first that is there counts. `number` is the
class's place among the classes."""
EXPECTED = "expected `path label`"
FIX = "a line is `path label` or `path,label`; quote a path or label with blanks or commas in it"
FRAME_LIST = ["original_vido_id", "video_id", "frame_id", "path"]
"""How SlowFast's lists of single frames begin (the spelling is theirs)."""
COUNTED = re.compile(r"(\S.*?)\s+(\d+)\s+(\d+)")
"""MMAction2's folder of frames: directory, number of frames, label."""
SUFFIX = re.compile(r"\.[A-Za-z]\w{1,4}$")
"""How a file's name ends."""
REST_OF_NAME = re.compile(r".*\.[A-Za-z]\w{1,4}\s+\S+")
"""What follows a comma in a file's name: its end, and a label."""
SEVERAL = re.compile(r"(?:\S.*\.\w{2,5}(?:\s+\d+)+[\s,]+\d+|\S.*?\s+\d+\s+\d+(?:[\s,]+\d+)+)")
"""A clip with more than one number after it."""


@dataclass(frozen=True)
class Row:
    """A good line: what it names and where it stands."""

    path: str
    label: str
    where: str
    split: str | None = None
    group: str | None = None
    number: int | None = None


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
    for split, path in lists.items():
        rows[split], wrong = parse_list(path)
        mistakes += wrong
    if mistakes:
        raise mistakes_error(mistakes, FIX)
    entries, splits = [], set()
    for split, path in lists.items():
        chosen = _by_split(rows[split], split, alone=len(lists) == 1)
        splits |= chosen.keys()
        start = os.path.expanduser(root) if root else str(path.parent)
        base = absolute(start)
        entries += [_entry(row, own, start, base) for own, some in chosen.items() for row in some]
    kind = "a list" if len(lists) == 1 else "lists"
    return Found(", ".join(map(str, lists.values())), in_order(splits), entries,
                 _number_order([row for some in rows.values() for row in some]), [f"read as {kind}"],
                 "no list for {splits}")


def _by_split(rows: list[Row], split: str | None, alone: bool) -> dict[str, list[Row]]:
    """The lines that count, by their split; `split` is what the list was named for."""
    own = in_order(row.split for row in rows if row.split)
    if own and (split is None or alone and len(own) > 1):
        return {name: [row for row in rows if row.split == name] for name in own}
    if len(own) > 1:
        return {split: [row for row in rows if row.split == split]}
    return {split or "train": rows}


def _entry(row: Row, split: str, start: str, base: str) -> Entry:
    path = os.path.expanduser(row.path) if row.path.startswith("~") else row.path
    full = os.path.normpath(os.path.join(base, path))
    key = full[len(base):].lstrip("/") if full.startswith(base.rstrip("/") + "/") else full
    return Entry(os.path.join(start, path), row.label, split, row.where, key, row.group)


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


def parse_list(path: Path) -> tuple[list[Row], list[str]]:
    """A list's good lines, and its mistakes as `file:line: what`. Raises `DataError` where it is no list at all."""
    lines = [(number, line) for number, line in read_lines(path) if not line.startswith("#")]
    if not lines:
        return [], []
    head = lines[0][1]
    if is_frame_list(head):
        raise DataError("is a list of single frames, with no labels in it", where=f"{path}:{lines[0][0]}",
                        fix="name the set's own annotations (for Something-Something v2 train.json and "
                            "validation.json), and its videos or folders of frames with data.root")
    if head.replace(",", " ").split() == ["path", "label"]:
        return _parse_lines(path, lines[1:])  # whose lines may be parted in any way
    delimiter = next((mark for mark in "\t,;" if mark in head), " ")
    columns = _columns(next(csv.reader([head], delimiter=delimiter, skipinitialspace=True)))
    if "path" not in columns or "label" not in columns:
        return _parse_lines(path, lines)
    if delimiter == " ":
        raise DataError("has columns that are parted by blanks", where=f"{path}:{lines[0][0]}",
                        fix="a path may have blanks in it: part columns by commas or tabs")
    return _parse_table(path, delimiter, columns)


def _columns(header: list[str]) -> dict[str, int]:
    """Where the columns of `COLUMNS` are."""
    found = [name.strip().lower() for name in header]
    return {column: found.index(name) for column, names in COLUMNS.items()
            for name in reversed(names) if name in found}


def _parse_table(path: Path, delimiter: str, columns: dict[str, int]) -> tuple[list[Row], list[str]]:
    rows, mistakes, header = [], [], None
    for number, fields in csv_rows(path, delimiter):
        if not any(fields) or fields[0].startswith("# ") or (header is None and fields[0].startswith("#")):
            continue
        if header is None:
            header = fields
            continue
        where = f"{path}:{number}"
        if len(fields) != len(header):
            mistakes.append(f"{where}: expected {len(header)} fields ({', '.join(header)}), got {len(fields)}")
            continue
        row = _table_row({name: fields[column].strip() for name, column in columns.items()}, where)
        (mistakes if isinstance(row, str) else rows).append(row)
    return rows, mistakes


def _table_row(values: dict[str, str], where: str) -> Row | str:
    if not values["path"] or not values["label"]:
        return f"{where}: {EXPECTED}, got a line without a {'path' if not values['path'] else 'label'}"
    split, number = values.get("split"), values.get("number") or None
    if split is not None and split.lower() not in SPLIT_NAMES:
        return f"{where}: expected train, val or test as the split, got {split!r}"
    if number is not None and not is_number(number):
        return f"{where}: expected a whole number as the class's number, got {number!r}"
    return Row(values["path"], values["label"], where, split and SPLIT_NAMES[split.lower()],
               values.get("group") or None, None if number is None else int(number))


def _parse_lines(path: Path, lines: list[tuple[int, str]]) -> tuple[list[Row], list[str]]:
    has_counts = _has_counts(path, lines)
    split = _counted if has_counts else _fields
    if all(line.count(";") == 1 for _, line in lines):  # Jester and Something-Something v1, with commas in their labels
        split = _halves
    rows, mistakes = [], []
    for number, line in lines:
        where, fields = f"{path}:{number}", split(line)
        if not has_counts and line[-1].isdecimal() and SEVERAL.fullmatch(line):
            mistakes.append(f"{where}: {EXPECTED}, got {line[:80]!r}: more than one label a clip cannot be learned")
        elif len(fields) != 2 or not all(fields):
            mistakes.append(f"{where}: {EXPECTED}, got {line[:80]!r}")
        else:
            rows.append(Row(fields[0], fields[1], where))
    return rows, mistakes


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


def _fields(line: str) -> list[str]:
    """The fields of a line: split at tabs, else at commas, else at the last blank; quotes protect any of them."""
    if "\t" not in line and "," not in line and '"' not in line:
        return line.rsplit(maxsplit=1)
    for delimiter in "\t,":
        fields = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))
        if '"' not in line and delimiter == "," and REST_OF_NAME.fullmatch(fields[-1]) and not SUFFIX.search(fields[0]):
            break  # `clips/ready, go.mp4 3`
        if len(fields) > 1:
            return [field.strip() for field in fields]
    if '"' in line:
        return [field.strip() for field in next(csv.reader([line], delimiter=" ", skipinitialspace=True))]
    return line.rsplit(maxsplit=1)
