"""UCF101 and HMDB51: three published splits into train and test each, and several clips of one recording."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from expand.data.sources.clip import Entry, Found, in_order, is_number, mistakes_error
from expand.data.sources.finder import Finder
from expand.data.sources.published.kinetics import missing_note
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


def read_ucf101(files: Sequence[tuple[str | None, Path]], root: str, fold: int) -> Found:
    """The clips of `trainlist0N.txt` and `testlist0N.txt`: of the fold `fold`, or as (split, file) says.

    Classes are in the order of `classInd.txt`, where it lies beside. Raises `DataError` for lines that cannot be read,
    a class that is not in it, or a fold that is not there.
    """
    chosen = [(split or UCF_LIST.fullmatch(path.name).group(1).lower(), path) for split, path in files
              if split or len(files) == 1 or int(UCF_LIST.fullmatch(path.name).group(2)) == fold]
    if not chosen:
        raise _no_fold(files, fold, f"trainlist{fold:02d}.txt")
    order = _class_order(chosen[0][1].parent)
    finder, entries, mistakes = Finder(root), [], []
    for split, path in chosen:
        for number, line in read_lines(path):
            match, place = UCF_LINE.fullmatch(line), f"{path}:{number}"
            if match is None:
                mistakes.append(f"{place}: expected `class/file [number]`, got {line[:80]!r}")
            elif order and match.group(1) not in order:
                mistakes.append(f"{place}: {match.group(1)!r} is not in classInd.txt"
                                + _suggested(match.group(1), order))
            else:
                entries.append(_entry(match.group(1), match.group(2), split, place, finder, UCF_ROOTS))
    if mistakes:
        raise mistakes_error(mistakes, "these are the published files; take them anew")
    return _found("UCF101", fold, [path for _, path in chosen], entries, order, finder, files)


def read_hmdb51(files: Sequence[tuple[str | None, Path]], root: str, fold: int) -> Found:
    """The clips of all `<class>_test_split<fold>.txt` that are train (1) or test (2); those of 0 are in neither.

    Raises `DataError` for lines that cannot be read, or a fold that is not there.
    """
    if any(split for split, _ in files):
        raise DataError("HMDB51 has a file a class, each with train and test", where=str(files[0][1]),
                        fix="name their folder with data.path")
    chosen = [path for _, path in files if int(HMDB_LIST.fullmatch(path.name).group(2)) == fold]
    if not chosen:
        raise _no_fold(files, fold, f"<class>_test_split{fold}.txt")
    finder, entries, mistakes = Finder(root), [], []
    for path in chosen:
        label = HMDB_LIST.fullmatch(path.name).group(1)
        for number, line in read_lines(path):
            match = HMDB_LINE.fullmatch(line)
            if match and match.group(2) in HMDB_SPLITS:
                entries.append(_entry(label, match.group(1), HMDB_SPLITS[match.group(2)], f"{path}:{number}", finder,
                                      HMDB_ROOTS))
            elif not match:
                mistakes.append(f"{path}:{number}: expected `file 0`, `file 1` or `file 2`, got {line[:80]!r}")
    if mistakes:
        raise mistakes_error(mistakes, "these are the published files; take them anew")
    return _found("HMDB51", fold, [chosen[0].parent], entries, None, finder, files)


def recording(name: str, label: str) -> str | None:
    """The recording that the file `name` of class `label` is a part of; None where the name does not tell.

    UCF101: `v_<class>_g<recording>_c<clip>`, numbered class by class. HMDB51: the film before `_<class>_`, which may
    give clips to several classes.
    """
    stem = os.path.splitext(name)[0]
    if match := UCF_GROUP.search(stem):
        return f"{label}/g{match.group(1)}"
    film, found, _ = stem.rpartition(f"_{label}_")
    if found and film:
        return film
    return stem[:match.start()] if (match := HMDB_TAIL.search(stem)) else None


def _entry(label: str, name: str, split: str, place: str, finder: Finder, roots: tuple[str, ...]) -> Entry:
    path = finder.find(_folders(label, roots), (name, os.path.splitext(name)[0]))
    return Entry(path, label, split, place, f"{label}/{name}", recording(name, label))


@cache
def _folders(label: str, roots: tuple[str, ...]) -> tuple[str, ...]:
    """Where the clips of a class may lie."""
    return (*(os.path.join(root, label) for root in roots), *roots)


def _found(name: str, fold: int, where: list[Path], entries: list[Entry], order: tuple[str, ...] | None,
           finder: Finder, files: Sequence[tuple[str | None, Path]]) -> Found:
    which = "" if files[0][0] else f", fold {fold}"
    return Found(", ".join(map(str, where)), in_order(entry.split for entry in entries), entries, order,
                 [f"read as {name}{which}", *missing_note(finder, len(entries))], "no list for {splits}")


def _class_order(folder: Path) -> tuple[str, ...] | None:
    path = folder / "classInd.txt"
    if not path.is_file():
        return None
    lines = [line.split(maxsplit=1) for _, line in read_lines(path)]
    if not all(len(line) == 2 and is_number(line[0]) for line in lines):
        raise DataError("has a line that is not `number class`", where=str(path),
                        fix="these are the published files; take them anew")
    return tuple(name for _, name in sorted(lines, key=lambda line: int(line[0])))


def _suggested(name: str, order: Sequence[str]) -> str:
    hint = did_you_mean(name, order)
    return f"; {hint}" if hint else ""


def _no_fold(files: Sequence[tuple[str | None, Path]], fold: int, name: str) -> DataError:
    return DataError(f"has no {name}", where=str(files[0][1].parent),
                     fix=f"the folder lacks the published split {fold}; choose another: --set data.fold=1")
