"""Something-Something v2: `train.json`, `validation.json`, `labels.json`, and the test split's answers.

A clip is `<id>.webm` (or any other suffix), or the folder of frames `<id>`; its class is its template without brackets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from expand.data.sources.clip import SPLIT_NAMES, Entry, Found, counted, in_order, shown
from expand.data.sources.finder import Finder
from expand.data.sources.published.kinetics import missing_note
from expand.data.sources.text_files import read_json, read_lines
from expand.data.sources.walk import files_in
from expand.errors import DataError, did_you_mean

LIST = re.compile(r"(?:something-something-v2-)?(train|validation|val|test)\.json", re.IGNORECASE)
ANSWERS = re.compile(r"(?:something-something-v2-)?test[-_]answers\.csv", re.IGNORECASE)
LABELS = ("labels.json", "something-something-v2-labels.json")
FIELDS = {"id", "label", "template", "placeholders"}
FOLDERS = ("", "20bn-something-something-v2", "videos", "rawframes", "frames")
FIX = "these are the published files; take them anew"


def is_ssv2(head: str) -> bool:
    """Whether a JSON file that begins with `head` is a list of clips with an id, and nothing that the set has not."""
    match = re.match(r'\s*\[\s*(\{[^}]*"id"\s*:[^{}]*\})', head)
    try:
        return match is not None and json.loads(match.group(1)).keys() <= FIELDS
    except ValueError:
        return False


def is_answers(head: str) -> bool:
    """Whether a file that begins with `head` holds `id;template`, a line a clip."""
    return re.match(r"\d+;[^;\n]*[A-Za-z][^;\n]*(\n|$)", head) is not None


def read_ssv2(files: Sequence[tuple[str | None, Path]], root: str) -> Found:
    """The clips of (split, file), None where the file's name says the split; test only where its answers are there.

    Raises `DataError` for files that are not of that form, or templates that are no class.
    """
    order = _classes([path.parent for _, path in files])
    finder, entries, notes, strange = Finder(root), [], [], []
    for split, path in files:
        split = split or _split(path)
        pairs = _labelled(path, [other for _, other in files])
        if pairs is None:
            notes.append(f"left out {path.name}, which has no labels; its answers are a file of their own")
            continue
        for name, template in pairs:
            label = (template or "").replace("[", "").replace("]", "")
            if label not in order:
                hint = did_you_mean(label, order)
                strange.append(f"{path}: clip {name}: {label!r}" + (f"; {hint}" if hint else ""))
            else:
                entries.append(Entry(finder.find(FOLDERS, (name,), ".webm"), label, split, str(path), name))
    where = ", ".join(str(path) for _, path in files)
    if strange:
        raise DataError(f"{counted(len(strange), 'template')} not in labels.json:\n{shown(strange)}", where=where,
                        fix=FIX)
    notes = ["read as Something-Something v2", *notes, *missing_note(finder, len(entries))]
    return Found(where, in_order(entry.split for entry in entries), entries, tuple(order), notes,
                 "no annotations for {splits}")


def _split(path: Path) -> str:
    match = LIST.fullmatch(path.name)
    return SPLIT_NAMES[match.group(1).lower()] if match else "test" if ANSWERS.fullmatch(path.name) else "train"


def _labelled(path: Path, files: Sequence[Path]) -> list[tuple[str, str | None]] | None:
    """(id, template) of a file's clips, with the answers beside it where it has no templates; none of them where the
    answers are one of `files` themselves; None where there are no answers."""
    if path.suffix.lower() == ".csv":
        return _answers(path)
    pairs = _listed(path)
    if any(template for _, template in pairs):
        return pairs
    answers = next((Path(path.parent, name) for name in files_in(str(path.parent)) if ANSWERS.fullmatch(name)), None)
    if answers is None:
        return None
    return [] if answers in files else _answers(answers)


def _classes(folders: Sequence[Path]) -> dict[str, int]:
    """The classes, in their order, by the `labels.json` in the first of `folders` that has one."""
    path = next((folder / name for folder in folders for name in LABELS if (folder / name).is_file()), None)
    if path is None:
        raise DataError("has no labels.json", where=str(folders[0]), fix="it is published with the annotations, and "
                        "says the classes and their order; put it beside them")
    value = read_json(path, FIX)
    try:
        numbers = {str(name): int(number) for name, number in value.items()}
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise DataError("is no JSON of {template: number}", where=str(path), fix=FIX) from error
    return dict(sorted(numbers.items(), key=lambda item: item[1]))


def _listed(path: Path) -> list[tuple[str, str | None]]:
    """(id, template) of a JSON list; None for a clip without."""
    value = read_json(path, FIX)
    if not isinstance(value, list) or not all(map(_is_clip, value)):
        raise DataError("is no JSON list of clips with an id", where=str(path), fix=FIX)
    return [(str(clip["id"]), clip.get("template")) for clip in value]


def _is_clip(value: object) -> bool:
    return isinstance(value, dict) and "id" in value and isinstance(value.get("template", ""), str | None)


def _answers(path: Path) -> list[tuple[str, str | None]]:
    lines = read_lines(path)
    wrong = [f"{path}:{number}: {line[:80]!r}" for number, line in lines if line.count(";") != 1]
    if wrong:
        raise DataError(f"{counted(len(wrong), 'line')} not of the form `id;template`:\n{shown(wrong)}",
                        where=str(path), fix=FIX)
    return [(name.strip(), template.strip()) for name, template in (line.split(";") for _, line in lines)]
