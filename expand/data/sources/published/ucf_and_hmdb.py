"""UCF101 and HMDB51: three published splits into train and test each, and several clips of one recording."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

from expand.data.sources.clip import Files, Source, SourceClip, is_number, order_splits, unreadable_lines
from expand.data.sources.paths import PublishedPaths
from expand.data.sources.text_files import read_lines
from expand.errors import DataError, did_you_mean

UCF_LIST = re.compile(r"(train|test)list0?([1-3])\.txt", re.IGNORECASE)
UCF_LINE = re.compile(r"([^/]+)/(\S.*?)(?:\s+(\d+))?")
UCF_GROUP = re.compile(r"_g(\d+)_c\d+")
HMDB_LIST = re.compile(r"(.+)_test_split([1-3])\.txt", re.IGNORECASE)
HMDB_LINE = re.compile(r"(\S.*?)\s+([012])")
HMDB_TAIL = re.compile(r"_[a-z]_[a-z]{2}_np\d_[a-z]{2}_[a-z]{3}_\d+$")
HMDB_SPLITS = {"1": "train", "2": "test"}
UCF_ROOTS = ("", "UCF-101", "UCF101", "videos", "rawframes")
HMDB_ROOTS = ("", "hmdb51_org", "hmdb51", "HMDB51", "videos", "rawframes")
FIX = "these are official files; download them again"


def read_ucf101(files: Files, root: str, fold: int) -> Source:
    """Return the clips of `trainlist0N.txt` and `testlist0N.txt`: of the fold `fold`, or of the files named one by one.

    Classes are in the order of `classInd.txt` beside them, if it is there. Raises `DataError` for lines that cannot be
    read, a class that is not in `classInd.txt`, or a missing fold.
    """
    chosen = []
    for split, path in files:
        match = UCF_LIST.fullmatch(path.name)
        if split or match and (len(files) == 1 or int(match[2]) == fold):
            chosen.append((split or (match[1].lower() if match else "train"), path))
    if not chosen:
        raise _missing_fold(files, fold, f"trainlist{fold:02d}.txt")
    order = _read_class_order(chosen[0][1].parent)
    paths, mistakes = PublishedPaths(root), []
    clips: list[SourceClip] = []
    for split, path in chosen:
        for number, line in read_lines(path):
            match, place = UCF_LINE.fullmatch(line), f"{path}:{number}"
            if match is None:
                mistakes.append(f"{place}: expected `class/file [number]`, got {line[:80]!r}")
            elif order and match[1] not in order:
                hint = did_you_mean(match[1], order)
                mistakes.append(f"{place}: {match[1]!r} is not in classInd.txt" + (f"; {hint}" if hint else ""))
            else:
                clips.append(_make_clip(match[1], match[2], split, place, paths, UCF_ROOTS))
    if mistakes:
        raise unreadable_lines(mistakes, FIX)
    return _make_source("UCF101", fold, [path for _, path in chosen], clips, order, paths, files)


def read_hmdb51(files: Files, root: str, fold: int) -> Source:
    """Return the clips of all `<class>_test_split<fold>.txt` that are train (1) or test (2); those of 0 are unused.

    Raises `DataError` for lines that cannot be read, or a missing fold.
    """
    if any(split for split, _ in files):
        raise DataError("HMDB51 has one file for each class, with both train and test", where=str(files[0][1]),
                        fix="name their folder with data.path")
    chosen = [(match[1], path) for _, path in files
              if (match := HMDB_LIST.fullmatch(path.name)) and int(match[2]) == fold]
    if not chosen:
        raise _missing_fold(files, fold, f"<class>_test_split{fold}.txt")
    paths, mistakes = PublishedPaths(root), []
    clips: list[SourceClip] = []
    for label, path in chosen:
        for number, line in read_lines(path):
            match = HMDB_LINE.fullmatch(line)
            if match and match[2] in HMDB_SPLITS:
                clips.append(_make_clip(label, match[1], HMDB_SPLITS[match[2]], f"{path}:{number}", paths, HMDB_ROOTS))
            elif not match:
                mistakes.append(f"{path}:{number}: expected `file 0`, `file 1` or `file 2`, got {line[:80]!r}")
    if mistakes:
        raise unreadable_lines(mistakes, FIX)
    return _make_source("HMDB51", fold, [chosen[0][1].parent], clips, None, paths, files)


def recording_of(name: str, label: str) -> str | None:
    """Return the recording that the file `name` of class `label` is a part of; None if the name does not tell.

    UCF101: `v_<class>_g<recording>_c<clip>`, numbered class by class. HMDB51: the film before `_<class>_`, which may
    have clips of several classes.
    """
    stem = os.path.splitext(name)[0]
    if match := UCF_GROUP.search(stem):
        return f"{label}/g{match[1]}"
    film, separator, _ = stem.rpartition(f"_{label}_")
    if separator and film:
        return film
    return stem[:match.start()] if (match := HMDB_TAIL.search(stem)) else None


def _make_clip(label: str, name: str, split: str, place: str, paths: PublishedPaths,
               roots: tuple[str, ...]) -> SourceClip:
    path = paths.find(_usual_folders(label, roots), (name, os.path.splitext(name)[0]))
    return SourceClip(path, label, split, place, f"{label}/{name}", recording_of(name, label))


@cache
def _usual_folders(label: str, roots: tuple[str, ...]) -> tuple[str, ...]:
    return (*(os.path.join(root, label) for root in roots), *roots)


def _make_source(name: str, fold: int, where: list[Path], clips: list[SourceClip], order: tuple[str, ...] | None,
                 paths: PublishedPaths, files: Files) -> Source:
    which = "" if files[0][0] else f", fold {fold}"
    return Source(", ".join(map(str, where)), order_splits(clip.split for clip in clips), clips, order,
                  [f"read as {name}{which}", *paths.missing_notes(len(clips))], "no list for {splits}")


def _read_class_order(folder: Path) -> tuple[str, ...] | None:
    path = folder / "classInd.txt"
    if not path.is_file():
        return None
    lines = [line.split(maxsplit=1) for _, line in read_lines(path)]
    if not all(len(line) == 2 and is_number(line[0]) for line in lines):
        raise DataError("has a line that is not `number class`", where=str(path), fix=FIX)
    return tuple(name for _, name in sorted(lines, key=lambda line: int(line[0])))


def _missing_fold(files: Files, fold: int, name: str) -> DataError:
    return DataError(f"has no {name}", where=str(files[0][1].parent),
                     fix=f"the folder lacks the published split {fold}; choose another: --set data.fold=1")
