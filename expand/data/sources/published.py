"""Official annotation files of published sets: which set a file belongs to, and the clips that it names."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from expand.data.sources.clip import (
    SPLIT_NAMES,
    Files,
    Source,
    SourceClip,
    clips_of_file,
    is_number,
    order_splits,
    unreadable_lines,
)
from expand.data.sources.paths import best_places
from expand.data.sources.tables import PEEK, csv_rows, read_json, read_lines
from expand.data.sources.walk import clips_below, files_in, folders_in, is_clip_file
from expand.errors import DataError, abbreviate, quantity, suggest

FORMATS = {"kinetics": "Kinetics", "ucf101": "UCF101", "hmdb51": "HMDB51", "ssv2": "Something-Something v2"}
FIX = "these are official files; download them again"
HINTS = ("annot", "label", "list", "split", "meta", "kinetics")
"""Parts of the names of folders that may hold annotations beside the videos."""


def read_annotations(form: str, files: Files, root: str, fold: int) -> Source:
    """Return the clips that annotation files of the set `form` name, looked for below `root`. Raises `DataError` as
    the set's own reader does."""
    if form == "kinetics":
        return read_kinetics(files, root)
    if form == "ssv2":
        return read_ssv2(files, root)
    return (read_ucf101 if form == "ucf101" else read_hmdb51)(files, root, fold)


def format_of(path: Path) -> str:
    """Return the published set that the annotations `path` belong to, one of `FORMATS`, or "lists". Raises `DataError`
    for a file that cannot be read."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            head = file.read(PEEK)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    line = next((line.strip() for line in head.split("\n") if line.strip()), "")
    if path.suffix.lower() == ".json":  # a list of clips with an id and no foreign fields
        match = re.match(r'\s*\[\s*(\{[^}]*"id"\s*:[^{}]*\})', head)
        try:
            return "ssv2" if match is not None and json.loads(match[1]).keys() <= SSV2_FIELDS else "lists"
        except ValueError:
            return "lists"
    if UCF_LIST.fullmatch(path.name) and UCF_LINE.fullmatch(line):
        return "ucf101"
    if HMDB_LIST.fullmatch(path.name) and HMDB_LINE.fullmatch(line):
        return "hmdb51"
    columns = [name.strip().strip('"').lower() for name in head.split("\n", 1)[0].split(",")]
    if all(name in columns for name in KINETICS_COLUMNS):
        return "kinetics"
    is_answers = SSV2_ANSWERS.fullmatch(path.name) and re.match(r"\d+;[^;\n]*[A-Za-z][^;\n]*(\n|$)", head)
    return "ssv2" if is_answers else "lists"


def find_annotations(root: str) -> dict[str, Files]:
    """Return the annotation files of each published set in `root`, in a folder there whose name contains one of
    `HINTS`, or in a folder right below that (an archive may be unpacked into a folder of its own name)."""
    hinted = [os.path.join(root, name) for name in folders_in(root)
              if name.lower() not in SPLIT_NAMES and any(hint in name.lower() for hint in HINTS)]
    found: dict[str, dict[str, list[Path]]] = {}
    for folder in [root, *(inner for outer in hinted
                           for inner in (outer, *(os.path.join(outer, name) for name in folders_in(outer))))]:
        for name in files_in(folder):
            path = Path(folder, name)
            # most of the files beside clips need not be opened
            is_likely = name.lower().endswith(".csv") or any(
                pattern.fullmatch(name) for pattern in (UCF_LIST, HMDB_LIST, SSV2_LIST))
            if is_likely and path.is_file() and (form := format_of(path)) != "lists":
                found.setdefault(form, {}).setdefault(folder, []).append(path)
    # a set's files lie together; a second folder of them would name its clips twice
    return {form: [(None, path) for path in next(iter(folders.values()))] for form, folders in found.items()}


class PublishedPaths:
    """Finds the clips of a published set below `root`: in the usual folders, else anywhere by name without suffix.

    A folder is listed once, and all of `root` only when a clip is not in its usual place.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.missing = 0
        self._files: dict[str, dict[str, str]] = {}
        self._usual: dict[tuple[str, ...], list[tuple[str, dict[str, str]]]] = {}
        self._index: dict[str, list[str]] | None = None

    def find(self, folders: tuple[str, ...], names: Sequence[str], suffix: str = "") -> str:
        """Return the path of the clip that is called one of `names` (with or without suffix).

        It is looked for in `folders` (relative to the root, the likeliest first), then anywhere; there `folders` also
        tell clips of the same name apart. If there is none, the path where it should be is returned, with `suffix`;
        `missing` counts those.
        """
        if folders not in self._usual:
            self._usual[folders] = [(folder, files) for folder in folders if (files := self._files_in(folder))]
        for folder, files in self._usual[folders]:
            for name in names:
                if name in files:
                    return os.path.join(self.root, folder, files[name])
        if self._index is None:
            self._index = {}
            for path in clips_below(self.root) if os.path.isdir(self.root) else ():
                base = os.path.basename(path)
                for key in {base, os.path.splitext(base)[0]}:
                    self._index.setdefault(key, []).append(path)
        for name in names:
            if places := self._index.get(name):
                return os.path.join(self.root, best_places(places, folders)[0])
        self.missing += 1
        fullest = max(self._usual[folders], key=lambda found: len(found[1]), default=(folders[0], {}))[0]
        return os.path.join(self.root, fullest, names[0] + suffix)

    def _files_in(self, folder: str) -> dict[str, str]:
        """{name, with and without suffix: name} of the files and folders in a folder below the root."""
        if folder not in self._files:
            full = os.path.join(self.root, folder)
            found: dict[str, str] = {}
            if os.path.isdir(full):
                files = [name for name in files_in(full) if is_clip_file(name)]
                # a video goes before a folder of its frames
                found = ({name: name for name in folders_in(full)}
                         | {os.path.splitext(name)[0]: name for name in files} | {name: name for name in files})
            self._files[folder] = found
        return self._files[folder]

    def missing_notes(self, total: int) -> list[str]:
        """Return a line with the number of the `total` annotated clips that are not on the disk, if any."""
        if not self.missing:
            return []
        return [f"{self.missing} of {total} annotated clips are not in {self.root}"
                + ("; data.root says where they lie" if self.missing == total else "")]


KINETICS_COLUMNS = ("youtube_id", "time_start", "time_end")


def read_kinetics(files: Files, root: str) -> Source:
    """Return the clips of `files`, whose own column or name may say the split.

    Clips are named `<youtube_id>_<start>_<end>` with six digits a second, as the usual download tools do, or
    `<youtube_id>`. A file without labels (a test split) is left out with a note. Raises `DataError` for lines that
    cannot be read.
    """
    listed: list[SourceClip] = []
    mistakes: list[str] = []
    notes = ["read as Kinetics"]
    for split, path in files:
        own, wrong, unlabelled = _read_kinetics_file(path, split)
        mistakes += wrong
        listed += clips_of_file(own, split, is_alone=len(files) == 1)
        if unlabelled:
            notes.append(f"left out {quantity(unlabelled, 'clip')} of {path.name} without a label")
    if mistakes:
        raise unreadable_lines(mistakes, FIX)
    where = ", ".join(str(path) for _, path in files)
    if not listed:
        raise DataError("no clip with a label", where=where, fix="Kinetics' test split may lack labels; name train and "
                                                                 "validation too")
    paths = PublishedPaths(root)
    clips = list({(clip.key, clip.split): clip for clip in listed}.values())
    for clip in clips:
        clip.path = paths.find(_kinetics_folders(clip.label, clip.split), (clip.key, clip.path), ".mp4")
    return Source(where, order_splits(clip.split for clip in clips), clips, None,
                  notes + paths.missing_notes(len(clips)), "no annotations for {splits}")


def _read_kinetics_file(path: Path, split: str | None) -> tuple[list[SourceClip], list[str], int]:
    """The clips of a file, its mistakes, and the number of rows without a label.

    A clip's key is its name with its times; its path is only its YouTube id.
    """
    records = csv_rows(path)
    header = [name.strip().lower() for name in next(records)[1]]
    clips: list[SourceClip] = []
    mistakes: list[str] = []
    unlabelled = 0
    words = path.stem.lower().replace("-", "_").split("_")
    split_of_name = next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)
    for number, values in records:
        if not any(values):
            continue
        where, fields = f"{path}:{number}", dict(zip(header, values, strict=False))
        try:
            name, start, end = (fields[column].strip() for column in KINETICS_COLUMNS)
            key = f"{name}_{int(float(start)):06d}_{int(float(end)):06d}" if name else None
        except (KeyError, ValueError, OverflowError):
            key = None
        if key is None:
            mistakes.append(f"{where}: expected a YouTube id and a start and end in seconds, got "
                            f"{','.join(values)[:80]!r}")
            continue
        label = fields.get("label", "").strip().strip('"')
        if said := fields.get("split", "").strip():
            own = SPLIT_NAMES.get(said.lower()) or split
        else:
            own = split_of_name or split
        if not label:
            unlabelled += 1
        elif own is None:
            mistakes.append(f"{where}: expected train, validate or test as the split, got {fields.get('split')!r}")
        else:
            clips.append(SourceClip(name, label, own, where, key))
    return clips, mistakes, unlabelled


@cache
def _kinetics_folders(label: str, split: str) -> tuple[str, ...]:
    """The usual folders of a clip: download tools write the names of splits and classes in different ways."""
    splits = ["", *(name for name, own in SPLIT_NAMES.items() if own == split)]
    labels = dict.fromkeys((label, label.replace(" ", "_"), ""))
    return tuple(os.path.join(part, name) for part in splits for name in labels)


SSV2_LIST = re.compile(r"(?:something-something-v2-)?(train|validation|val|test)\.json", re.IGNORECASE)
SSV2_ANSWERS = re.compile(r"(?:something-something-v2-)?test[-_]answers\.csv", re.IGNORECASE)
SSV2_LABELS = ("labels.json", "something-something-v2-labels.json")
SSV2_FIELDS = {"id", "label", "template", "placeholders"}
SSV2_FOLDERS = ("", "20bn-something-something-v2", "videos", "rawframes", "frames")


def read_ssv2(files: Files, root: str) -> Source:
    """Return the clips of `files`, whose own names may say the split; test only if its answers are there.

    A clip is `<id>.webm` (or another suffix) or the folder of frames `<id>`; its class is its template without
    brackets. Raises `DataError` for files that are not of that form, or templates that are no class.
    """
    names = next((path.parent / name for _, path in files for name in SSV2_LABELS if (path.parent / name).is_file()),
                 None)
    if names is None:
        raise DataError("has no labels.json", where=str(files[0][1].parent),
                        fix="it comes with the annotations, and has the classes and their order; put it beside them")
    try:
        numbers = {str(name): int(number) for name, number in read_json(names, FIX).items()}
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise DataError("is no JSON of {template: number}", where=str(names), fix=FIX) from error
    order = tuple(sorted(numbers, key=lambda name: numbers[name]))
    paths, notes = PublishedPaths(root), ["read as Something-Something v2"]
    clips: list[SourceClip] = []
    unknown: list[str] = []
    for split, path in files:
        pairs = _read_pairs(path, [other for _, other in files])
        if pairs is None:
            notes.append(f"left out {path.name}, which has no labels; its answers are a file of their own")
            continue
        if split is None:
            match = SSV2_LIST.fullmatch(path.name)
            split = SPLIT_NAMES[match[1].lower()] if match else "test" if SSV2_ANSWERS.fullmatch(path.name) else "train"
        for name, template in pairs:
            label = (template or "").replace("[", "").replace("]", "")
            if label not in numbers:
                unknown.append(f"{path}: clip {name}: {label!r}{suggest(label, order)}")
            else:
                clips.append(SourceClip(paths.find(SSV2_FOLDERS, (name,), ".webm"), label, split, str(path), name))
    where = ", ".join(str(path) for _, path in files)
    if unknown:
        raise DataError(f"{quantity(len(unknown), 'template')} not in labels.json:\n{abbreviate(unknown)}", where=where,
                        fix=FIX)
    return Source(where, order_splits(clip.split for clip in clips), clips, order,
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
    answers = next((path.parent / name for name in files_in(str(path.parent)) if SSV2_ANSWERS.fullmatch(name)), None)
    if answers is None:
        return None
    return [] if answers in files else _read_answers(answers)


def _read_answers(path: Path) -> list[tuple[str, str | None]]:
    lines = read_lines(path)
    wrong = [f"{path}:{number}: {line[:80]!r}" for number, line in lines if line.count(";") != 1]
    if wrong:
        raise DataError(f"{quantity(len(wrong), 'line')} not of the form `id;template`:\n{abbreviate(wrong)}",
                        where=str(path), fix=FIX)
    return [(name.strip(), template.strip()) for name, template in (line.split(";") for _, line in lines)]


UCF_LIST = re.compile(r"(train|test)list0?([1-3])\.txt", re.IGNORECASE)
UCF_LINE = re.compile(r"([^/]+)/(\S.*?)(?:\s+(\d+))?")
UCF_GROUP = re.compile(r"_g(\d+)_c\d+")
HMDB_LIST = re.compile(r"(.+)_test_split([1-3])\.txt", re.IGNORECASE)
HMDB_LINE = re.compile(r"(\S.*?)\s+([012])")
HMDB_TAIL = re.compile(r"_[a-z]_[a-z]{2}_np\d_[a-z]{2}_[a-z]{3}_\d+$")
HMDB_SPLITS = {"1": "train", "2": "test"}
UCF_ROOTS = ("", "UCF-101", "UCF101", "videos", "rawframes")
HMDB_ROOTS = ("", "hmdb51_org", "hmdb51", "HMDB51", "videos", "rawframes")


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
    order, numbers = None, chosen[0][1].parent / "classInd.txt"
    if numbers.is_file():
        lines = [line.split(maxsplit=1) for _, line in read_lines(numbers)]
        if not all(len(line) == 2 and is_number(line[0]) for line in lines):
            raise DataError("has a line that is not `number class`", where=str(numbers), fix=FIX)
        order = tuple(name for _, name in sorted(lines, key=lambda line: int(line[0])))
    paths, mistakes = PublishedPaths(root), []
    clips: list[SourceClip] = []
    for split, path in chosen:
        for number, line in read_lines(path):
            match, place = UCF_LINE.fullmatch(line), f"{path}:{number}"
            if match is None:
                mistakes.append(f"{place}: expected `class/file [number]`, got {line[:80]!r}")
            elif order and match[1] not in order:
                mistakes.append(f"{place}: {match[1]!r} is not in classInd.txt{suggest(match[1], order)}")
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
    folders = (*(os.path.join(root, label) for root in roots), *roots)
    path = paths.find(folders, (name, os.path.splitext(name)[0]))
    return SourceClip(path, label, split, place, f"{label}/{name}", recording_of(name, label))


def _make_source(name: str, fold: int, where: list[Path], clips: list[SourceClip], order: tuple[str, ...] | None,
                 paths: PublishedPaths, files: Files) -> Source:
    which = "" if files[0][0] else f", fold {fold}"
    return Source(", ".join(map(str, where)), order_splits(clip.split for clip in clips), clips, order,
                  [f"read as {name}{which}", *paths.missing_notes(len(clips))], "no list for {splits}")


def _missing_fold(files: Files, fold: int, name: str) -> DataError:
    return DataError(f"has no {name}", where=str(files[0][1].parent),
                     fix=f"the folder lacks the published split {fold}; choose another: --set data.fold=1")
