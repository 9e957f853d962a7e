"""The names of classes that lists know by number (`data.class_names`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from expand.data.sources.clip import Entry, counted, is_number, shown
from expand.data.sources.labels import label_key
from expand.data.sources.text_files import read_json, read_lines
from expand.errors import DataError, did_you_mean

NUMBERED = re.compile(r"(\d{1,18})(?:\s*[,;\t]\s*|\s+)(\S.*)")
FIX = "data.class_names is a name a line, lines of `number name`, or JSON {name: number}"


@dataclass(frozen=True)
class Names:
    """Names by number, as `path` says."""

    path: Path
    by_number: dict[int, str]

    def rename(self, entries: list[Entry], where: str) -> tuple[str, ...]:
        """Gives `entries` names for their numbers, in place; labels that are names stay. Returns the names in order.

        Raises `DataError` with the labels that have no name.
        """
        order = tuple(self.by_number[number] for number in sorted(self.by_number))
        known, strange = {label_key(name): name for name in order}, {}
        for entry in entries:
            if label_key(entry.label) in known:
                entry.label = known[label_key(entry.label)]
                continue
            name = self.by_number.get(int(entry.label)) if is_number(entry.label) else None
            if name is None:
                strange.setdefault(entry.label, entry.place)
            else:
                entry.label = name
        if strange:
            hints = {label: did_you_mean(label, order) for label in strange}
            lines = [f"{place}: {label!r}" + (f"; {hints[label]}" if hints[label] else "")
                     for label, place in strange.items()]
            raise DataError(f"{counted(len(strange), 'label')} without a name in {self.path}:\n{shown(lines)}",
                            where=where, fix="the numbers start at 0 where the file is a name a line")
        return order


def read_names(path: Path) -> Names:
    """The names in `path`. Raises `DataError` where they cannot be read, or a name or number is there twice."""
    if not path.is_file():
        raise DataError("no such file", where=str(path), fix=FIX)
    lines = [line for _, line in read_lines(path)]
    pairs = _from_json(path) if lines and lines[0][0] in "{[" else _from_lines(lines)
    pairs = [(number, name.strip().strip('"').strip()) for number, name in pairs]
    by_number = dict(pairs)
    if not pairs or len(by_number) != len(pairs) or len(set(by_number.values())) != len(pairs):
        raise DataError("names a number or a class twice" if pairs else "is empty", where=str(path), fix=FIX)
    return Names(path, by_number)


def _from_lines(lines: list[str]) -> list[tuple[int, str]]:
    numbered = [NUMBERED.fullmatch(line) for line in lines]
    if len(lines) > 2 and all(numbered[1:]) and not numbered[0]:
        numbered = numbered[1:]  # a header such as `id,name`
    if numbered and all(numbered):
        return [(int(match.group(1)), match.group(2)) for match in numbered]
    return list(enumerate(lines))


def _from_json(path: Path) -> list[tuple[int, str]]:
    value = read_json(path, FIX)
    try:
        if isinstance(value, list):
            return list(enumerate(map(str, value)))
        if all(str(name).isdecimal() for name in value) and not all(str(n).isdecimal() for n in value.values()):
            return [(int(number), str(name)) for number, name in value.items()]
        return [(int(number), str(name)) for name, number in value.items()]
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError("has a number that is none", where=str(path), fix=FIX) from error
