"""What a configuration's clips are: folders, lists, or a published set's annotations."""

from __future__ import annotations

import os
import re
from pathlib import Path

from expand.config.schema import DataConfig
from expand.data.file_kinds import suffix_of
from expand.data.sources.class_names import read_names
from expand.data.sources.clip import SPLIT_NAMES, SPLITS, Found, split_named
from expand.data.sources.folders import has_splits, looks_like_classes, read_folders
from expand.data.sources.lists import is_frame_list, lacks_labels, names_clips, read_lists
from expand.data.sources.location import lists_of
from expand.data.sources.published import FORMATS, Annotations, kind_of, survey
from expand.data.sources.text_files import PEEK
from expand.data.sources.walk import files_in, folders_in
from expand.errors import DataError
from expand.home import expand_home

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
LIST_SUFFIXES = (".csv", ".txt", ".tsv", *JSON_SUFFIXES)
LIST_NAMES = ("metadata", "labels", "label", "annotations", "annotation", "list", "index", "clips", "videos", "data",
              "dataset", "info", "meta", "manifest", "classes", *SPLIT_NAMES)
"""What a list is called that lies beside its clips in a split's folder."""
WORDS = {"folders": "folders of classes", "lists": "lists", **FORMATS}


def find_clips(config: DataConfig) -> Found:
    """The clips that `config` names, of whatever form. Raises `DataError` where they are none, or of several."""
    if config.root and not os.path.isdir(expand_home(config.root, "data.root")):
        raise DataError("no such folder", where=config.root, fix="data.root is where the paths of lists start")
    if lists := lists_of(config):
        return _from_files(config, {**lists})
    path = expand_home(config.path, "data.path")
    if path.is_dir():
        return _from_folder(config, path)
    if path.is_file():
        return _from_files(config, {None: path})
    raise DataError("no such folder or file", where=str(path),
                    fix="data.path is a folder with {train,val}/<class>/<clip> or <class>/<clip>, one with train.csv "
                        "and val.csv or a published set's annotations, or a list")


def _from_files(config: DataConfig, lists: dict[str | None, Path]) -> Found:
    for split, path in lists.items():
        if not path.is_file():
            raise DataError("no such file" if not path.exists() else "not a file", where=str(path),
                            fix=f"data.{split or 'path'} is a list with a line `path label` for every clip, or a "
                                "published set's annotations")
    kind = _kind_of_files(config.format, list(lists.values()))
    if kind == "lists":
        return _lists(config, lists)
    root = config.root or str(next(iter(lists.values())).parent)
    return Annotations(kind, tuple(lists.items())).read(str(expand_home(root, "data.root")), config.fold)


def _kind_of_files(wanted: str, paths: list[Path]) -> str:
    """The one kind of all `paths`, or the `wanted` one: "lists" or one of `FORMATS`."""
    if wanted == "folders":
        raise DataError("data.format is folders, and these are files", where=", ".join(map(str, paths)),
                        fix="name the folder with data.path")
    if wanted == "lists":
        return wanted
    kinds = {path: kind_of(path) for path in paths}
    if wanted in FORMATS and (wrong := [path for path, kind in kinds.items() if kind != wanted]):
        raise DataError(f"is no annotation of {FORMATS[wanted]}", where=str(wrong[0]),
                        fix="let it be recognised: --set data.format=auto")
    if len(set(kinds.values())) > 1:
        each = ", ".join(f"{path.name} ({WORDS[kind]})" for path, kind in kinds.items())
        raise DataError(f"annotations of several kinds: {each}", where=str(paths[0].parent),
                        fix="name files of one kind, or say that all are lists: --set data.format=lists")
    return kinds[paths[0]]


def _lists(config: DataConfig, lists: dict[str | None, Path]) -> Found:
    return _named(config, read_lists(lists, config.root))


def _named(config: DataConfig, found: Found) -> Found:
    """`found` with names in place of numbers, where `data.class_names` gives them."""
    if config.class_names:
        names = read_names(expand_home(config.class_names, "data.class_names"))
        found.order = names.rename(found.entries, found.where)
    return found


def _from_folder(config: DataConfig, path: Path) -> Found:
    root = str(path)
    published = {found.kind: found for found in survey(root)} if config.format in ("auto", *FORMATS) else {}
    lists = _listed_in(config, root) if config.format in ("auto", "lists") else {}
    kind = _kind(config.format, root, published, lists)
    if kind == "folders":
        further = _further_lists(root) if config.format == "auto" else {}
        if further and not looks_like_classes(root):
            return _lists(config, further)
        found = _named(config, read_folders(root, surely=config.format == "folders"))
        if None in further:
            found.notes.append(f"not used: {further[None].name}, which lists clips, too; to read it instead: "
                               f"--data {further[None]}")
        return found
    if kind == "lists":
        left = [path for split, path in lists.items() if split == "test" and len(lists) > 1 and lacks_labels(path)]
        found = _lists(config, {split: path for split, path in lists.items() if path not in left})
        found.notes += [f"left out {path.name}, which has no labels" for path in left]
        return found
    return published[kind].read(str(expand_home(config.root or root, "data.root")), config.fold)


def _kind(wanted: str, root: str, published: dict[str, Annotations], lists: dict[str | None, Path]) -> str:
    """The one form that the folder `root` has, or the `wanted` one."""
    if wanted == "lists" and not lists:
        raise DataError("has no train.csv, val.csv or test.csv", where=root,
                        fix="data.format is lists; name them with data.train and data.val")
    if wanted in FORMATS and wanted not in published:
        raise DataError(f"has no annotations of {FORMATS[wanted]}", where=root,
                        fix=f"data.format is {wanted}; the annotations may lie in this folder, or in one below that is "
                            "called annotations, labels, lists or splits")
    if wanted != "auto":
        return wanted
    kinds = [*published, *(["lists"] if lists else [])]
    if kinds and has_splits(root) and not _in_splits(lists, root):
        kinds.append("folders")
    if len(kinds) > 1:
        raise DataError(f"may be read as {' or as '.join(WORDS[kind] for kind in kinds)}", where=root,
                        fix=f"say which is meant: {' or '.join(f'--set data.format={kind}' for kind in kinds)}")
    return kinds[0] if kinds else "folders"


def _in_splits(lists: dict[str | None, Path], root: str) -> bool:
    """Whether `lists` lie in split folders, which then hold no classes."""
    return any(path.parent != Path(root) for path in lists.values())


def _listed_in(config: DataConfig, root: str) -> dict[str | None, Path]:
    """`train.csv`, `val.csv` and the like in `root`, by split."""
    found: dict[str, list[Path]] = {}
    for name in files_in(root):
        stem, suffix = os.path.splitext(name)
        split = SPLIT_NAMES.get(stem.lower())
        path = Path(root, name)
        if split and suffix.lower() in LIST_SUFFIXES and _is_list(path):
            found.setdefault(split, []).append(path)
    if any(suffix_of(path.name) in JSON_SUFFIXES for paths in found.values() for path in paths) and has_splits(root):
        found = {split: kept for split, paths in found.items()  # JSON has many other uses beside folders of clips
                 if (kept := [path for path in paths if suffix_of(path.name) not in JSON_SUFFIXES])}
    for split, paths in found.items():
        if len(paths) > 1:
            raise DataError(f"both {' and '.join(path.name for path in paths)} are lists of {split}", where=root,
                            fix=f"keep one of them, or name it: --set data.{split}=FILE")
    return ({split: found[split][0] for split in ("train", "val", "test") if split in found}
            or _listed_in_splits(root))


def _further_lists(root: str) -> dict[str | None, Path]:
    """Lists in `root` that are less surely meant than `train.csv`, and so only where there are no class folders.

    The one that is called like such (`metadata.csv`, `labels.csv`) and says paths and classes; or lists whose names
    have a split's in them (`kinetics_train_list.txt`, `val_list.txt`).
    """
    found = [Path(root, name) for name in files_in(root)
             if os.path.splitext(name)[0].lower() in LIST_NAMES and suffix_of(name) in LIST_SUFFIXES]
    found = [path for path in found if kind_of(path) == "lists" and names_clips(path)]
    if len(found) == 1:
        return {None: found[0]}
    parts: dict[str | None, list[Path]] = {}
    for name in files_in(root):
        stem, suffix = os.path.splitext(name)
        splits = {SPLIT_NAMES[word] for word in re.split(r"[\W\d_]+|lists?(?=$|[\W_])", stem.lower())
                  if word in SPLIT_NAMES}
        if len(splits) == 1 and suffix.lower() in LIST_SUFFIXES and _is_list(Path(root, name)):
            parts.setdefault(splits.pop(), []).append(Path(root, name))
    if "train" not in parts or any(len(paths) > 1 for paths in parts.values()):
        return {}
    return {split: parts[split][0] for split in SPLITS if split in parts}


def _listed_in_splits(root: str) -> dict[str | None, Path]:
    """`train/metadata.csv`, `val/metadata.csv` and the like, by split, where every split folder has such a list and no
    class folders."""
    found: dict[str | None, Path] = {}
    for name in folders_in(root):
        split, folder = split_named(name), os.path.join(root, name)
        if split is None:
            continue
        lists = [Path(folder, file) for file in files_in(folder) if os.path.splitext(file)[1].lower() in LIST_SUFFIXES]
        named = [path for path in lists if path.stem.lower() in LIST_NAMES] or lists
        if len(named) != 1 or split in found or len(folders_in(folder)) > 1 or not _is_list(named[0]):
            return {}
        found[split] = named[0]
    return found if "train" in found else {}


def _is_list(path: Path) -> bool:
    if kind_of(path) != "lists":
        return False
    if suffix_of(path.name) in JSON_SUFFIXES:
        return names_clips(path)
    with open(path, encoding="utf-8", errors="replace") as file:
        return not is_frame_list(file.readline(PEEK))
