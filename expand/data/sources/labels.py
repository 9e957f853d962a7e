"""One spelling for each class: labels that look alike, or are one number, are one class."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping

from expand.data.sources.clip import MOST_DIGITS, Found
from expand.data.sources.paths import INVISIBLE
from expand.errors import DataError

NUMBER = re.compile(rf"[+-]?[0-9]{{1,{MOST_DIGITS}}}(?:\.0*)?")
"""A whole number, also as a table with gaps or a spreadsheet writes it: `1`, `01`, `1.0`."""
UNSEEN = str.maketrans("", "", INVISIBLE)


def label_key(label: str) -> str:
    """What is the same for all spellings of a label that cannot be told apart by eye: letters with accents in one or
    two characters, other blanks than the common one, characters that show nothing."""
    return " ".join(unicodedata.normalize("NFC", label).translate(UNSEEN).split())


def label_number(label: str) -> int | None:
    """The whole number that `label` is; None where it is none."""
    text = label_key(label)
    return int(text.split(".")[0]) if NUMBER.fullmatch(text) else None


def one_spelling(labels: Iterable[str]) -> dict[str, str]:
    """A spelling of each class for each of `labels` that is to be written in another way: the first one among them.

    Only labels that have several spellings are changed, so that `01` stays where all are written so; a class whose
    number is written in several ways, or with a point, gets the plain number.
    """
    distinct = list(dict.fromkeys(labels))
    numbers = {label: label_number(label) for label in distinct}
    all_numbers = all(number is not None for number in numbers.values())
    same: dict[object, list[str]] = defaultdict(list)
    for label in distinct:
        same[numbers[label] if numbers[label] is not None else label_key(label) or label].append(label)
    changed = {}
    for key, spelled in same.items():
        name = spelled[0]
        if isinstance(key, int) and (len(spelled) > 1 or all_numbers and not name.lstrip("-").isdecimal()):
            name = str(key)
        changed |= {label: name for label in spelled if label != name}
    return changed


def refuse_negative(places: Mapping[str, str], where: str) -> None:
    """Raises `DataError` where labels that are numbers (with the places that name them) say "none" by a negative one.

    A set of -1 and 1 alone has two classes of these names.
    """
    numbers = {label: label_number(label) for label in places}
    if any(number is None for number in numbers.values()) or set(numbers.values()) == {-1, 1}:
        return
    if wrong := sorted((number, label) for label, number in numbers.items() if number < 0):
        label = wrong[0][1]
        raise DataError(f"{places[label]}: label {label}, and classes are numbered from 0 on", where=where,
                        fix="a negative number usually means that a clip has no label: take these lines away; if it is "
                            "a class, give the classes names in place of numbers")


def unify_labels(found: Found) -> None:
    """Gives the clips of one class one label, in place: labels that cannot be told apart by eye, as in names that
    systems write in different forms; and those of val and test that differ from one in train by capitals alone, or are
    the same number in another way, such as `1` and `01`."""
    order = found.order or ()
    train = [entry.label for entry in found.entries if entry.split == "train"]
    keys: dict[str, str] = {}
    for label in dict.fromkeys([*order, *train, *(entry.label for entry in found.entries)]):
        keys.setdefault(label_key(label) or label, label)
    names = {label: keys[label_key(label) or label] for label in {entry.label for entry in found.entries}}
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
            found.notes.append(f"took class {name!r} for {names[label]!r}, which is the same number")
        elif name not in trained and len(alike) == 1:
            names[label] = next(iter(alike))
            found.notes.append(f"took class {name!r} for {names[label]!r}, from which it differs by capitals only")
    for alike in by_case.values():
        if len(alike) > 1:
            found.notes.append(f"classes {' and '.join(map(repr, sorted(alike)))} differ by capitals only and count as "
                               f"{len(alike)}: if they are one, write them alike")
    found.notes += [f"classes {' and '.join(map(repr, sorted(same)))} are one number and count as {len(same)}: if they "
                    "are one, write them alike" for number, same in by_number.items()
                    if number is not None and len(same) > 1]
    for entry in found.entries:
        entry.label = names[entry.label]
