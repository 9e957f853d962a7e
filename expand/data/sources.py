"""Which clips there are, their classes and their splits: a folder, lists of `path label`, or the built-in set.

Nothing here opens a clip, renders one or imports torch.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from expand.config.schema import DataConfig
from expand.data import synthetic
from expand.errors import DataError, did_you_mean

SPLITS = ("train", "val", "test")
REQUIRED = ("train", "val")
SIDE_FILES = {".txt", ".csv", ".tsv", ".json", ".yaml", ".yml", ".xml", ".md", ".html", ".pdf", ".npy", ".npz", ".pkl",
              ".srt", ".vtt", ".jpg", ".jpeg", ".png", ".webp", ".log", ".ini", ".py", ".sh", ".zip", ".tar", ".gz"}
"""What may lie beside clips; any other file in a class folder is taken for a clip, and named if it is none."""
SHOWN = 10
"""Mistakes named in an error; the rest are counted."""


@dataclass(frozen=True)
class Clip:
    """A file that should be a clip; nobody has opened it yet."""

    path: Path
    label: int
    split: str


@dataclass(frozen=True)
class ClipList:
    """All clips of a data set; a label is an index into `classes`."""

    classes: tuple[str, ...]
    clips: tuple[Clip, ...]


def list_clips(config: DataConfig, *, to_train: bool = True) -> ClipList:
    """The clips that `config` names, in a fixed order. The built-in ones are named whether rendered yet or not.

    Folder: `path/{train,val[,test]}/<class>/<clip>`; classes are the folders' names in order. Lists: `train.csv`,
    `val.csv`[, `test.csv`] in `path`, or `config.train`, `.val`, `.test`: a line is `path label` or `path,label`,
    relative to its list; labels are names, or numbers that keep their order. Without `to_train` any split will do, and
    the classes are those of the clips where there is no train split. Raises `DataError` for a missing folder or
    list, lines that cannot be parsed (all of them), an empty split, a single class, or a class unknown to train.
    """
    if config.train or config.val or config.test:
        return _from_lists({split: _list_path(config, split) for split in SPLITS if getattr(config, split)},
                           to_train)
    if config.path is None:
        files = synthetic.clip_files(config.builtin, cache_dir(config))
        return ClipList(synthetic.CLASSES, tuple(Clip(path, label, split) for split in SPLITS
                                                 for path, label in files[split]))
    root = Path(config.path).expanduser()
    if not root.is_dir():
        raise DataError("no such folder" if not root.exists() else "not a folder", where=str(root),
                        fix="data.path is a folder with {train,val}/<class>/<clip>, or with train.csv and val.csv")
    lists = {split: root / f"{split}.csv" for split in SPLITS if (root / f"{split}.csv").is_file()}
    folders = {split: root / split for split in SPLITS if (root / split).is_dir()}
    if lists and not all(split in folders and any(map(_is_class, folders[split].iterdir())) for split in REQUIRED):
        return _from_lists(lists, to_train)  # folders without class folders in them hold the lists' clips
    return _from_folders(root, folders, to_train)


def count_classes(config: DataConfig) -> int:
    """Number of classes, without opening or rendering any clip. Raises as `list_clips`."""
    uses_builtin = not (config.path or config.train or config.val or config.test)
    return len(synthetic.CLASSES) if uses_builtin else len(list_clips(config).classes)


def cache_dir(config: DataConfig) -> Path:
    """Where rendered clips and decoded frames are kept."""
    if config.cache_dir:
        return Path(config.cache_dir).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "x3d-expand"


def _missing(found: Iterable[str], to_train: bool) -> list[str]:
    """Splits that are needed and not there."""
    found = set(found)
    if not to_train:
        return [] if found else ["test", "val"]
    return [split for split in REQUIRED if split not in found]


def _from_folders(root: Path, folders: dict[str, Path], to_train: bool) -> ClipList:
    if missing := _missing(folders, to_train):
        found = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        raise DataError(f"has no folder {' and no folder '.join(missing)}; found {', '.join(found[:SHOWN]) or 'none'}",
                        where=str(root), fix="clips are expected as {train,val[,test]}/<class>/<clip>, or listed in "
                                             "train.csv and val.csv as lines of `path label`")
    named = []
    for split, folder in folders.items():
        for class_folder in sorted(entry for entry in folder.iterdir() if _is_class(entry)):
            named += [(file, class_folder.name, split, str(class_folder)) for file in _clip_files(class_folder)]
    return _checked(str(root), folders, named)


def _is_class(entry: Path) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def _clip_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if not file.name.startswith(".")
                  and file.suffix.lower() not in SIDE_FILES and file.is_file())


def _list_path(config: DataConfig, split: str) -> Path:
    path = Path(getattr(config, split)).expanduser()
    if not path.is_file():
        raise DataError("no such file" if not path.exists() else "not a file", where=str(path),
                        fix=f"data.{split} is a list with a line `path label` for every clip")
    return path


def _from_lists(lists: dict[str, Path], to_train: bool) -> ClipList:
    if missing := _missing(lists, to_train):
        raise DataError(f"no list for {' and '.join(missing)}", where=", ".join(str(path) for path in lists.values()),
                        fix="both a train and a val list are needed: data.train and data.val, or train.csv and val.csv")
    named, mistakes = [], []
    for split, path in lists.items():
        entries, wrong = _parse_list(path)
        named += [(clip, label, split, where) for clip, label, where in entries]
        mistakes += wrong
    if mistakes:
        raise DataError(f"{counted(len(mistakes), 'line')} cannot be read:\n{shown(mistakes)}",
                        fix="a line is `path label` or `path,label`; quote a path or label with blanks or commas in it")
    return _checked(", ".join(str(path) for path in lists.values()), lists, named)


def _parse_list(path: Path) -> tuple[list[tuple[Path, str, str]], list[str]]:
    """(clip, label, file:line) of a list's good lines, and its mistakes."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read as text: {error}", where=str(path)) from error
    entries, mistakes = [], []
    for number, line in enumerate(text.splitlines(), 1):
        line, where = line.strip(), f"{path}:{number}"
        if not line or line.startswith("#") or (number == 1 and line.replace(",", " ").split() == ["path", "label"]):
            continue
        fields = _fields(line)
        if len(fields) != 2 or not all(fields):
            mistakes.append(f"{where}: expected `path label`, got {line[:80]!r}")
        else:
            entries.append((path.parent / Path(fields[0]).expanduser(), fields[1], where))
    return entries, mistakes


def _fields(line: str) -> list[str]:
    """The fields of a line: split at tabs, else at commas, else at the last blank; quotes protect any of them."""
    for delimiter in "\t,":
        fields = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))
        if len(fields) > 1:
            return [field.strip() for field in fields]
    if '"' in line:
        return [field.strip() for field in next(csv.reader([line], delimiter=" ", skipinitialspace=True))]
    return line.rsplit(maxsplit=1)


def _checked(where: str, splits: Iterable[str], named: list[tuple[Path, str, str, str]]) -> ClipList:
    """The list from (path, class name, split, place), once nothing is wrong with it."""
    counts = {split: sum(entry[2] == split for entry in named) for split in splits}
    empty = [split for split, count in counts.items() if count == 0]
    if empty:
        raise DataError(f"no clips for {' and '.join(empty)}", where=where,
                        fix="put clips there" + (", or take `test` away" if empty == ["test"] else ""))
    names = {name for _, name, split, _ in named if split == "train" or "train" not in counts}
    strange = {(name, split, place) for _, name, split, place in named if name not in names}
    if strange:
        lines = [_stranger(*entry, names) for entry in sorted(strange, key=lambda entry: entry[2])]
        raise DataError(f"classes without a clip in train:\n{shown(lines)}", where=where,
                        fix="every class needs clips in train")
    if len(names) < 2 and "train" in counts:
        raise DataError(f"only one class, {names.pop()!r}: there is nothing to tell apart", where=where,
                        fix="name at least two classes")
    classes = tuple(sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names))
    labels = {name: label for label, name in enumerate(classes)}
    return ClipList(classes, tuple(Clip(path, labels[name], split) for path, name, split, _ in named))


def _stranger(name: str, split: str, place: str, names: set[str]) -> str:
    suggestion = did_you_mean(name, names)
    return f"{place}: {name!r} in {split}" + (f"; {suggestion}" if suggestion else "")


def shown(lines: list[str]) -> str:
    """The first of `lines`, indented, and how many more there are."""
    rest = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join(f"  {line}" for line in lines[:SHOWN] + rest)


def counted(number: int, noun: str) -> str:
    """"1 clip", "2 clips"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
