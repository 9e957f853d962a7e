"""Detect the form of a configuration's clips and read them: folders, lists, or a published set's annotations."""

from __future__ import annotations

import os
import re
from pathlib import Path

from expand.config.schema import DataConfig
from expand.data.file_kinds import suffix_of
from expand.data.sources.clip import SPLIT_NAMES, SPLITS, Files, Source, split_of_folder
from expand.data.sources.folders import has_splits, looks_like_classes, read_folders
from expand.data.sources.labels import name_classes
from expand.data.sources.lists import is_frame_list, lacks_labels, names_clips, read_lists
from expand.data.sources.paths import lists_of
from expand.data.sources.published import FORMATS, find_annotations, format_of, read_annotations
from expand.data.sources.text_files import PEEK
from expand.data.sources.walk import files_in, folders_in
from expand.errors import DataError
from expand.home import expand_home

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
LIST_SUFFIXES = (".csv", ".txt", ".tsv", *JSON_SUFFIXES)
LIST_NAMES = ("metadata", "labels", "label", "annotations", "annotation", "list", "index", "clips", "videos", "data",
              "dataset", "info", "meta", "manifest", "classes", *SPLIT_NAMES)
"""Usual names of a list beside its clips in a split's folder."""
DESCRIPTIONS = {"folders": "folders of classes", "lists": "lists", **FORMATS}


def read_source(config: DataConfig) -> Source:
    """Return the clips that `config` names, in whatever form. Raises `DataError` for no form or several."""
    if config.root and not os.path.isdir(expand_home(config.root, "data.root")):
        raise DataError("no such folder", where=config.root, fix="data.root is where the paths of lists start")
    path = expand_home(config.path, "data.path") if config.path else None
    if lists := lists_of(config):
        files: Files = [(split, file) for split, file in lists.items()]
    elif path and path.is_dir():
        files = []
    elif path and path.is_file():
        files = [(None, path)]
    else:
        raise DataError("no such folder or file", where=str(path),
                        fix="data.path is a folder with {train,val}/<class>/<clip>, <class>/{train,val}/<clip> or "
                            "<class>/<clip>, one with train.csv and val.csv or a published set's annotations, or a "
                            "list")
    if files:
        form, root = _form_of_files(config.format, files), str(files[0][1].parent)
    else:
        form, files = _form_of_folder(config, root := str(path))
    if form in FORMATS:
        return read_annotations(form, files, str(expand_home(config.root or root, "data.root")), config.fold)
    unused: list[str] = []
    if form == "folders" and config.format == "auto" and (further := _find_further_lists(root)):
        if not looks_like_classes(root):
            form, files = "lists", further
        elif further[0][0] is None:
            unused = [(f"not used: {further[0][1].name}, which lists clips, too; to read it instead: "
                       f"--data {further[0][1]}")]
    elif not lists and len(files) > 1:  # lists that were found, not named
        left_out = [file for split, file in files if split == "test" and lacks_labels(file)]
        files = [(split, file) for split, file in files if file not in left_out]
        unused = [f"left out {file.name}, which has no labels" for file in left_out]
    if form == "folders":
        source = read_folders(root, are_classes=config.format == "folders")
    else:
        source = read_lists(files, config.root)
    source.notes += unused
    if config.class_names:
        name_classes(source, expand_home(config.class_names, "data.class_names"))
    return source


def _form_of_files(wanted: str, files: Files) -> str:
    """The one form of all `files`, or the `wanted` one: "lists" or one of `FORMATS`."""
    paths = [path for _, path in files]
    for split, path in files:
        if not path.is_file():
            raise DataError("no such file" if not path.exists() else "not a file", where=str(path),
                            fix=f"data.{split or 'path'} is a list with a line `path label` for every clip, or a "
                                "published set's annotations")
    if wanted == "folders":
        raise DataError("data.format is folders, but these are files", where=", ".join(map(str, paths)),
                        fix="name the folder with data.path")
    if wanted == "lists":
        return wanted
    forms = {path: format_of(path) for path in paths}
    if wanted in FORMATS and (wrong := [path for path, form in forms.items() if form != wanted]):
        raise DataError(f"is no annotation of {FORMATS[wanted]}", where=str(wrong[0]),
                        fix="let the format be detected: --set data.format=auto")
    if len(set(forms.values())) > 1:
        each = ", ".join(f"{path.name} ({DESCRIPTIONS[form]})" for path, form in forms.items())
        raise DataError(f"annotations of several kinds: {each}", where=str(paths[0].parent),
                        fix="name files of one kind, or read all as lists: --set data.format=lists")
    return forms[paths[0]]


def _form_of_folder(config: DataConfig, root: str) -> tuple[str, Files]:
    """The one form of the folder `root`, or the one that `data.format` says, and its lists or annotations."""
    wanted = config.format
    published = find_annotations(root) if wanted in ("auto", *FORMATS) else {}
    lists = _find_lists(root) if wanted in ("auto", "lists") else []
    if wanted == "lists" and not lists:
        raise DataError("has no train.csv, val.csv or test.csv", where=root,
                        fix="data.format is lists; name them with data.train and data.val")
    if wanted in FORMATS and wanted not in published:
        raise DataError(f"has no annotations of {FORMATS[wanted]}", where=root,
                        fix=f"data.format is {wanted}; the annotations may lie in this folder, or in one below that is "
                            "called annotations, labels, lists or splits")
    forms: list[str] = [wanted]
    if wanted == "auto":
        forms = [*published, *(["lists"] if lists else [])]
        # split folders that hold lists hold no classes
        if forms and has_splits(root) and not any(path.parent != Path(root) for _, path in lists):
            forms.append("folders")
    if len(forms) > 1:
        raise DataError(f"may be read as {' or as '.join(DESCRIPTIONS[form] for form in forms)}", where=root,
                        fix=f"say which is meant: {' or '.join(f'--set data.format={form}' for form in forms)}")
    form = forms[0] if forms else "folders"
    return form, lists if form == "lists" else published.get(form, [])


def _find_lists(root: str) -> Files:
    """`train.csv`, `val.csv` and the like in `root`, else in its split folders."""
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
    return [(split, found[split][0]) for split in SPLITS if split in found] or _find_lists_of_splits(root)


def _find_further_lists(root: str) -> Files:
    """Lists in `root` that are used only without class folders, since they are less surely meant than `train.csv`.

    These are the one list with a usual name (`metadata.csv`, `labels.csv`) and columns for paths and classes; or lists
    whose names contain a split's (`kinetics_train_list.txt`, `val_list.txt`).
    """
    found = [Path(root, name) for name in files_in(root)
             if os.path.splitext(name)[0].lower() in LIST_NAMES and suffix_of(name) in LIST_SUFFIXES]
    found = [path for path in found if format_of(path) == "lists" and names_clips(path)]
    if len(found) == 1:
        return [(None, found[0])]
    parts: dict[str, list[Path]] = {}
    for name in files_in(root):
        stem, suffix = os.path.splitext(name)
        splits = {SPLIT_NAMES[word] for word in re.split(r"[\W\d_]+|lists?(?=$|[\W_])", stem.lower())
                  if word in SPLIT_NAMES}
        if len(splits) == 1 and suffix.lower() in LIST_SUFFIXES and _is_list(Path(root, name)):
            parts.setdefault(splits.pop(), []).append(Path(root, name))
    if "train" not in parts or any(len(paths) > 1 for paths in parts.values()):
        return []
    return [(split, parts[split][0]) for split in SPLITS if split in parts]


def _find_lists_of_splits(root: str) -> Files:
    """`train/metadata.csv`, `val/metadata.csv` and the like, if every split folder has such a list and no class
    folders."""
    found: dict[str, Path] = {}
    for name in folders_in(root):
        split, folder = split_of_folder(name), os.path.join(root, name)
        if split is None:
            continue
        lists = [Path(folder, file) for file in files_in(folder) if os.path.splitext(file)[1].lower() in LIST_SUFFIXES]
        named = [path for path in lists if path.stem.lower() in LIST_NAMES] or lists
        if len(named) != 1 or split in found or len(folders_in(folder)) > 1 or not _is_list(named[0]):
            return []
        found[split] = named[0]
    return list(found.items()) if "train" in found else []


def _is_list(path: Path) -> bool:
    if format_of(path) != "lists":
        return False
    if suffix_of(path.name) in JSON_SUFFIXES:
        return names_clips(path)
    with open(path, encoding="utf-8", errors="replace") as file:
        return not is_frame_list(file.readline(PEEK))
