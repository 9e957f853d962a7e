"""Class labels: one spelling for each class, and names for numbered classes (`data.class_names`)."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from expand.data.sources.clip import MOST_DIGITS, Source, is_number
from expand.data.sources.paths import INVISIBLE
from expand.data.sources.tables import read_json, read_lines
from expand.errors import DataError, abbreviate, quantity, suggest

NUMBER = re.compile(rf"[+-]?[0-9]{{1,{MOST_DIGITS}}}(?:\.0*)?")
"""A whole number, also as a table with gaps or a spreadsheet writes it: `1`, `01`, `1.0`."""
INVISIBLE_TABLE = str.maketrans("", "", INVISIBLE)
NUMBER_AND_NAME = re.compile(r"(\d{1,18})(?:\s*[,;\t]\s*|\s+)(\S.*)")
NAMES_FIX = "data.class_names is a name a line, lines of `number name`, or JSON {name: number}"


def label_key(label: str) -> str:
    """Return the same text for all spellings of a label that look alike: accented letters as one or two characters,
    unusual blanks, invisible characters."""
    return " ".join(unicodedata.normalize("NFC", label).translate(INVISIBLE_TABLE).split())


def label_number(label: str) -> int | None:
    """Return the whole number that `label` is; None if it is no number."""
    text = label_key(label)
    return int(text.split(".")[0]) if NUMBER.fullmatch(text) else None


def unify_spellings(labels: Iterable[str]) -> dict[str, str]:
    """Return {label: new spelling} for those of `labels` that must change so that each class has one spelling.

    The first spelling among `labels` is taken. Only labels with several spellings change, so that `01` stays if all
    numbers are written so; a class whose number is written in several ways, or with a point, gets the plain number.
    """
    distinct = list(dict.fromkeys(labels))
    numbers = {label: label_number(label) for label in distinct}
    all_numbers = all(number is not None for number in numbers.values())
    same: dict[object, list[str]] = defaultdict(list)
    for label in distinct:
        same[numbers[label] if numbers[label] is not None else label_key(label) or label].append(label)
    changes: dict[str, str] = {}
    for key, spellings in same.items():
        name = spellings[0]
        if isinstance(key, int) and (len(spellings) > 1 or all_numbers and not name.lstrip("-").isdecimal()):
            name = str(key)
        changes |= {label: name for label in spellings if label != name}
    return changes


def refuse_negative(places: Mapping[str, str], where: str) -> None:
    """Raise `DataError` if a label is a negative number; `places` = {label: the line that names it}.

    Labels that are not all numbers, or only -1 and 1 (two classes of these names), are accepted.
    """
    numbers = {label: number for label in places if (number := label_number(label)) is not None}
    if len(numbers) < len(places) or set(numbers.values()) == {-1, 1}:
        return
    if wrong := sorted((number, label) for label, number in numbers.items() if number < 0):
        label = wrong[0][1]
        raise DataError(f"{places[label]}: label {label}, but classes are numbered from 0 on", where=where,
                        fix="a negative number usually means that a clip has no label: remove these lines; if it is "
                            "a class, give the classes names in place of numbers")


def unify_labels(source: Source) -> None:
    """Give all clips of a class the same label, in place.

    Labels that look alike are one class. A label of val or test that differs from one in train by capitals only, or is
    the same number (`1` and `01`), becomes that one; two such labels in train stay two classes, with a note.
    """
    train = [clip.label for clip in source.clips if clip.split == "train"]
    first_spelling: dict[str, str] = {}
    for label in dict.fromkeys([*(source.class_order or ()), *train, *(clip.label for clip in source.clips)]):
        first_spelling.setdefault(label_key(label) or label, label)
    names = {label: first_spelling[label_key(label) or label] for label in {clip.label for clip in source.clips}}
    trained = {names[label] for label in train}
    by_case, by_number = defaultdict(set), defaultdict(set)
    for name in trained:
        by_case[name.casefold()].add(name)
        by_number[label_number(name)].add(name)
    for label, name in names.items():
        alike = by_case.get(name.casefold(), set())
        same = by_number[label_number(name)] if label_number(name) is not None else set()
        if name not in trained and len(same) == 1:
            names[label] = next(iter(same))
            source.notes.append(f"took class {name!r} for {names[label]!r}, which is the same number")
        elif name not in trained and len(alike) == 1:
            names[label] = next(iter(alike))
            source.notes.append(f"took class {name!r} for {names[label]!r}, from which it differs by capitals only")
    for alike in by_case.values():
        if len(alike) > 1:
            source.notes.append(f"classes {' and '.join(map(repr, sorted(alike)))} differ by capitals only and count "
                                f"as {len(alike)}: if they are one, write them alike")
    source.notes += [f"classes {' and '.join(map(repr, sorted(same)))} are one number and count as {len(same)}: if "
                     "they are one, write them alike" for number, same in by_number.items()
                     if number is not None and len(same) > 1]
    for clip in source.clips:
        clip.label = names[clip.label]


def name_classes(source: Source, path: Path) -> None:
    """Replace numbers by the names in the file `path` (`data.class_names`), in place; labels that are names stay.

    Raises `DataError` for labels without a name, and as `read_class_names`.
    """
    by_number = read_class_names(path)
    order = tuple(by_number[number] for number in sorted(by_number))
    known = {label_key(name): name for name in order}
    unknown: dict[str, str] = {}
    for clip in source.clips:
        number = int(clip.label) if is_number(clip.label) else None
        name = known.get(label_key(clip.label)) or (by_number.get(number) if number is not None else None)
        if name is None:
            unknown.setdefault(clip.label, clip.place)
        else:
            clip.label = name
    if unknown:
        lines = [f"{place}: {label!r}{suggest(label, order)}" for label, place in unknown.items()]
        raise DataError(f"{quantity(len(unknown), 'label')} without a name in {path}:\n{abbreviate(lines)}",
                        where=source.where, fix="the numbers start at 0 if the file is a name a line")
    source.class_order = order


def read_class_names(path: Path) -> dict[int, str]:
    """Return the class names in `path` by number. Raises `DataError` for a file that cannot be read, or in which a
    name or a number stands twice."""
    if not path.is_file():
        raise DataError("no such file", where=str(path), fix=NAMES_FIX)
    lines = [line for _, line in read_lines(path)]
    if lines and lines[0][0] in "{[":
        value = read_json(path, NAMES_FIX)
        try:
            if isinstance(value, list):
                pairs = list(enumerate(map(str, value)))
            elif all(str(key).isdecimal() for key in value) and not all(str(n).isdecimal() for n in value.values()):
                pairs = [(int(number), str(name)) for number, name in value.items()]
            else:
                pairs = [(int(number), str(name)) for name, number in value.items()]
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError("has a class number that is no whole number", where=str(path), fix=NAMES_FIX) from error
    else:
        matches = [NUMBER_AND_NAME.fullmatch(line) for line in lines]
        if len(lines) > 2 and all(matches[1:]) and not matches[0]:
            matches = matches[1:]  # a header such as `id,name`
        with_numbers = [(int(match[1]), match[2]) for match in matches if match]
        pairs = with_numbers if len(with_numbers) == len(matches) else list(enumerate(lines))
    pairs = [(number, name.strip().strip('"').strip()) for number, name in pairs]
    by_number = dict(pairs)
    if not pairs or len(by_number) != len(pairs) or len(set(by_number.values())) != len(pairs):
        raise DataError("names a number or a class twice" if pairs else "is empty", where=str(path), fix=NAMES_FIX)
    return by_number
