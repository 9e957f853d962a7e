"""Something-Something v2: `train.json`, `validation.json`, `labels.json`, and the test split's answers.

A clip is `<id>.webm` (or any other suffix), or the folder of frames `<id>`; its class is its template without brackets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from expand.data.sources.clip import SPLIT_NAMES, Files, Source, SourceClip, abbreviate, order_splits, quantity
from expand.data.sources.paths import PublishedPaths
from expand.data.sources.text_files import read_json, read_lines
from expand.data.sources.walk import files_in
from expand.errors import DataError, did_you_mean

LIST = re.compile(r"(?:something-something-v2-)?(train|validation|val|test)\.json", re.IGNORECASE)
ANSWERS = re.compile(r"(?:something-something-v2-)?test[-_]answers\.csv", re.IGNORECASE)
LABELS = ("labels.json", "something-something-v2-labels.json")
FIELDS = {"id", "label", "template", "placeholders"}
FOLDERS = ("", "20bn-something-something-v2", "videos", "rawframes", "frames")
FIX = "these are official files; download them again"


def is_ssv2(head: str) -> bool:
    """Return true if a JSON file that begins with `head` is a list of clips with an id and no foreign fields."""
    match = re.match(r'\s*\[\s*(\{[^}]*"id"\s*:[^{}]*\})', head)
    try:
        return match is not None and json.loads(match[1]).keys() <= FIELDS
    except ValueError:
        return False


def is_answers(head: str) -> bool:
    """Return true if a file that begins with `head` has a line `id;template` for each clip."""
    return re.match(r"\d+;[^;\n]*[A-Za-z][^;\n]*(\n|$)", head) is not None


def read_ssv2(files: Files, root: str) -> Source:
    """Return the clips of `files`, whose own names may say the split; test only if its answers are there.

    Raises `DataError` for files that are not of that form, or templates that are no class.
    """
    order = _read_classes([path.parent for _, path in files])
    paths, notes = PublishedPaths(root), ["read as Something-Something v2"]
    clips: list[SourceClip] = []
    unknown: list[str] = []
    for split, path in files:
        pairs = _read_pairs(path, [other for _, other in files])
        if pairs is None:
            notes.append(f"left out {path.name}, which has no labels; its answers are a file of their own")
            continue
        if split is None:
            match = LIST.fullmatch(path.name)
            split = SPLIT_NAMES[match[1].lower()] if match else "test" if ANSWERS.fullmatch(path.name) else "train"
        for name, template in pairs:
            label = (template or "").replace("[", "").replace("]", "")
            if label not in order:
                hint = did_you_mean(label, order)
                unknown.append(f"{path}: clip {name}: {label!r}" + (f"; {hint}" if hint else ""))
            else:
                clips.append(SourceClip(paths.find(FOLDERS, (name,), ".webm"), label, split, str(path), name))
    where = ", ".join(str(path) for _, path in files)
    if unknown:
        raise DataError(f"{quantity(len(unknown), 'template')} not in labels.json:\n{abbreviate(unknown)}", where=where,
                        fix=FIX)
    return Source(where, order_splits(clip.split for clip in clips), clips, tuple(order),
                  notes + paths.missing_notes(len(clips)), "no annotations for {splits}")


def _read_pairs(path: Path, files: Sequence[Path]) -> list[tuple[str, str | None]] | None:
    """(id, template) of a file's clips. A file without templates gets them from the answers beside it: none if these
    are one of `files` themselves, None if there are no answers."""
    if path.suffix.lower() == ".csv":
        return _read_answers(path)
    value = read_json(path, FIX)
    if not isinstance(value, list) or not all(
            isinstance(clip, dict) and "id" in clip and isinstance(clip.get("template", ""), str | None)
            for clip in value):
        raise DataError("is no JSON list of clips with an id", where=str(path), fix=FIX)
    pairs = [(str(clip["id"]), clip.get("template")) for clip in value]
    if any(template for _, template in pairs):
        return pairs
    answers = next((Path(path.parent, name) for name in files_in(str(path.parent)) if ANSWERS.fullmatch(name)), None)
    if answers is None:
        return None
    return [] if answers in files else _read_answers(answers)


def _read_classes(folders: Sequence[Path]) -> dict[str, int]:
    """The classes, in their order, from the `labels.json` in the first of `folders` that has one."""
    path = next((folder / name for folder in folders for name in LABELS if (folder / name).is_file()), None)
    if path is None:
        raise DataError("has no labels.json", where=str(folders[0]), fix="it comes with the annotations, and "
                        "has the classes and their order; put it beside them")
    value = read_json(path, FIX)
    try:
        numbers = {str(name): int(number) for name, number in value.items()}
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise DataError("is no JSON of {template: number}", where=str(path), fix=FIX) from error
    return dict(sorted(numbers.items(), key=lambda item: item[1]))


def _read_answers(path: Path) -> list[tuple[str, str | None]]:
    lines = read_lines(path)
    wrong = [f"{path}:{number}: {line[:80]!r}" for number, line in lines if line.count(";") != 1]
    if wrong:
        raise DataError(f"{quantity(len(wrong), 'line')} not of the form `id;template`:\n{abbreviate(wrong)}",
                        where=str(path), fix=FIX)
    return [(name.strip(), template.strip()) for name, template in (line.split(";") for _, line in lines)]
