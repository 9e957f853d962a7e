"""List the clips of a data set with their classes and splits: folders, lists, published sets, or the built-in clips.

`read_source` detects the form and returns the clips as the source names them; `list_clips` unifies labels, makes groups
and missing splits, leaves out the quarantine, and numbers the classes. No clip is opened or rendered here, and torch is
not imported.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import compress
from pathlib import Path

from expand.config.schema import DataConfig
from expand.data.sources.clip import (
    SPLIT_NAMES,
    SPLITS,
    Clip,
    ClipList,
    Files,
    Source,
    SourceClip,
    absolute,
    is_number,
    split_of_folder,
)
from expand.data.sources.folders import has_splits, looks_like_classes, read_folders
from expand.data.sources.labels import name_classes, unify_labels
from expand.data.sources.lists import is_frame_list, names_clips, read_lists
from expand.data.sources.paths import cache_dir, lists_of
from expand.data.sources.published import FORMATS, find_annotations, format_of, read_annotations
from expand.data.sources.run_list import read_run_list
from expand.data.sources.splits import make_splits
from expand.data.sources.tables import PEEK, csv_bytes, csv_rows
from expand.data.sources.walk import files_in, folders_in, group_qualities, suffix_of
from expand.data.synthetic import class_names, clip_files
from expand.errors import DataError, abbreviate, quantity, suggest
from expand.home import expand_home, expand_home_if_any
from expand.rundir.files import write_atomic


def list_clips(config: DataConfig, *, to_train: bool = True, quarantine: bool = True) -> ClipList:
    """Return the clips that `config` names, in a fixed order: by split, then as their source has them.

    The built-in clips are listed even if they are not rendered yet. If the source has no val split, one is made from
    train; with `data.test_share`, a test split likewise. The classes are those of the train clips: numbers by number, a
    published set's in its order, else by name. Clips in the quarantine are left out, unless `quarantine` is false.
    Without `to_train`, any split will do and none is made; clips without splits are all test; if there is no train
    split, the classes are those of all clips.

    Raises `DataError` for a source that is missing, not recognised or of several forms, for lines that cannot be parsed
    (all of them), an empty split, a single class, a class that train lacks or one that cannot be split.
    """
    if config.is_builtin:
        files = clip_files(config.builtin, cache_dir(config))
        clips = [Clip(path, label, split) for split in SPLITS for path, label in files[split]]
        kept, notes = find_kept(config, [clip.path for clip in clips]) if quarantine else ([True] * len(clips), [])
        return ClipList(class_names(config.builtin), tuple(compress(clips, kept)), tuple(notes))
    source = read_source(config)
    unify_labels(source)
    if to_train and "train" not in source.splits:
        raise DataError(source.lacks.format(splits="train"), where=source.where,
                        fix="train is needed; val is made from it if it is missing")
    if config.group:
        search, without = re.compile(config.group).search, []
        for clip in source.clips:
            match = search(clip.key)
            clip.group = match and match.group(1) or None
            if clip.group is None and clip.split == "train":
                without.append(clip.key)
        is_drawn = "val" not in source.splits or (config.test_share > 0 and "test" not in source.splits)
        if without and is_drawn:
            raise DataError(f"data.group '{config.group}' matches nothing in {quantity(len(without), 'clip')}:\n"
                            f"{abbreviate(without)}", where=source.where,
                            fix="every clip needs a group; mend the regular expression, or leave it out")
    group_qualities(source)
    _check_splits_and_classes(source)
    if to_train:
        make_splits(source, val_share=config.val_share, test_share=config.test_share, seed=config.split_seed)
    elif source.splits == ("train",):
        source.splits = ("test",)
        for clip in source.clips:
            clip.split = "test"
    if quarantine:  # last, so that a clip that is left out moves no other into another split
        whole = source.clips
        kept, notes = find_kept(config, [clip.path for clip in whole])
        source.clips = list(compress(whole, kept))
        source.notes += notes
        if gone := _parts(whole) - _parts(source.clips):
            raise DataError(f"all clips of {', '.join(sorted(gone))} are in quarantine",
                            where=str(quarantine_file(config)), fix="mend the clips, or remove them from that list")
    names = _class_names(source)
    if source.class_order is not None:
        classes = tuple(name for name in source.class_order if name in names)
    else:
        by_number = all(map(is_number, names))
        classes = tuple(sorted(names, key=lambda name: (int(name) if by_number else 0, name)))
    labels = {name: label for label, name in enumerate(classes)}
    ranked = sorted(source.clips, key=lambda clip: SPLITS.index(clip.split))  # stable
    folders: dict[str, Path] = {}

    def make_path(text: str) -> Path:  # by way of its folder's path, which takes a third of the time
        folder, name = os.path.split(text)
        if folder not in folders:
            folders[folder] = Path(folder)
        return folders[folder] / name

    return ClipList(classes, tuple(Clip(make_path(clip.path), labels[clip.label], clip.split, clip.group)
                                   for clip in ranked), tuple(source.notes))


def count_classes(config: DataConfig) -> int:
    """Return the number of classes, without opening or rendering any clip. Raises as `list_clips`."""
    return len(class_names(config.builtin)) if config.is_builtin else len(list_clips(config).classes)


def list_run_clips(path: Path, config: DataConfig, *, classes: Sequence[str] | None = None,
                   to_resume: bool = False) -> ClipList:
    """Return the clips of the run list `path`, else, if the run has no such list, those that `config` names.

    `classes`: those of the run. `to_resume`: the very clips that the run began with, in their order. Raises as
    `read_run_list` and `list_clips`.
    """
    return read_run_list(path, classes, to_resume=to_resume) or list_clips(config)


def _check_splits_and_classes(source: Source) -> None:
    """Raise `DataError` for an empty split, classes that train lacks, or a single class."""
    counts = Counter(clip.split for clip in source.clips)
    if empty := [split for split in source.splits if not counts[split]]:
        raise DataError(f"no clips for {' and '.join(empty)}", where=source.where,
                        fix="put clips there" + (", or remove `test`" if empty == ["test"] else ""))
    if not source.splits:
        raise DataError("no clips", where=source.where, fix="see docs/data.md for the accepted forms")
    names = _class_names(source)
    if unknown := {(clip.place, clip.label, clip.split) for clip in source.clips if clip.label not in names}:
        known = tuple(sorted(names))
        lines = [f"{place}: {label!r} in {split}{suggest(label, known)}" for place, label, split in sorted(unknown)]
        raise DataError(f"classes without a clip in train:\n{abbreviate(lines)}", where=source.where,
                        fix="every class needs clips in train")
    if len(names) < 2 and "train" in source.splits:
        raise DataError(f"only one class, {names.pop()!r}: there is nothing to tell apart", where=source.where,
                        fix="name at least two classes")


def _parts(clips: Sequence[SourceClip]) -> set[str]:
    """Return the splits that have clips, and the classes that have some in train."""
    return ({clip.split for clip in clips}
            | {f"class {clip.label!r} in train" for clip in clips if clip.split == "train"})


def _class_names(source: Source) -> set[str]:
    return {clip.label for clip in source.clips if clip.split == "train" or "train" not in source.splits}


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
        left_out = [file for split, file in files if split == "test" and names_clips(file, with_classes=False)]
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
    """`train.csv`, `val.csv` and the like in `root`; else `train/metadata.csv`, `val/metadata.csv` and the like.

    The latter count if every split folder has such a list and no class folders.
    """
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
    if found:
        return [(split, found[split][0]) for split in SPLITS if split in found]
    inner: dict[str, Path] = {}
    for name in folders_in(root):
        split, folder = split_of_folder(name), os.path.join(root, name)
        if split is None:
            continue
        lists = [Path(folder, file) for file in files_in(folder) if suffix_of(file) in LIST_SUFFIXES]
        named = [path for path in lists if path.stem.lower() in LIST_NAMES] or lists
        if len(named) != 1 or split in inner or len(folders_in(folder)) > 1 or not _is_list(named[0]):
            return []
        inner[split] = named[0]
    return list(inner.items()) if "train" in inner else []


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


def _is_list(path: Path) -> bool:
    if format_of(path) != "lists":
        return False
    if suffix_of(path.name) in JSON_SUFFIXES:
        return names_clips(path)
    with open(path, encoding="utf-8", errors="replace") as file:
        return not is_frame_list(file.readline(PEEK))


QUARANTINE = "quarantine.csv"
"""The name of the list of clips to leave out, a CSV `path,kind,reason`, which `x3d-expand data check` writes."""
QUARANTINE_COLUMNS = ("path", "kind", "reason")
QUARANTINE_FIX = ("it is a CSV with the header path,kind,reason; mend it, or write it anew with `x3d-expand data "
                  "check`")


def quarantine_file(config: DataConfig) -> Path:
    """Return the path of the quarantine list: `data.quarantine`, else a file beside the clips."""
    if config.quarantine:
        return expand_home(config.quarantine, "data.quarantine")
    if config.path:
        path = expand_home(config.path, "data.path")
        return (path.parent if path.is_file() else path) / QUARANTINE
    lists = lists_of(config)
    return (next(iter(lists.values())).parent if lists else cache_dir(config)) / QUARANTINE


def read_quarantine(path: Path) -> dict[Path, tuple[str, str]]:
    """Return {absolute path: (kind, reason)} of the quarantine list `path`; relative paths start at its folder.

    Raises `DataError` for a file that cannot be read or is no such list.
    """
    folder = os.path.dirname(absolute(path))
    rows = csv_rows(path)
    header = [name.strip().lower() for name in next(rows, (0, ()))[1]]
    if "path" not in header:
        raise DataError("has no column path", where=str(path), fix=QUARANTINE_FIX)
    column, found = header.index("path"), {}
    for number, row in rows:
        if not any(row):
            continue
        if len(row) <= column or not row[column].strip():
            raise DataError("a line without a path", where=f"{path}:{number}", fix=QUARANTINE_FIX)
        named = dict(zip(header, row, strict=False))
        found[Path(absolute(os.path.join(folder, expand_home_if_any(row[column]))))] = (named.get("kind", ""),
                                                                                        named.get("reason", ""))
    return found


def write_quarantine(path: Path, rows: Iterable[tuple[Path, str, str]]) -> None:
    """Write (clip, kind, reason) as the quarantine list `path`, at once or not at all.

    Clips below its folder are written relative to it, so that both may be moved together. Raises `RunError` if the
    file cannot be written.
    """
    folder = os.path.dirname(absolute(path))
    lines: list[tuple[str, ...]] = [QUARANTINE_COLUMNS]
    for clip, kind, reason in rows:
        full = absolute(clip)
        inside = full.startswith(folder.rstrip("/") + "/")
        lines.append((os.path.relpath(full, folder) if inside else full, kind, " ".join(reason.split())))
    write_atomic(Path(path), csv_bytes(lines))


def find_kept(config: DataConfig, paths: Sequence[str | Path]) -> tuple[list[bool], list[str]]:
    """Return for each of the clips `paths` whether the quarantine list for `config` does not name it, and lines for the
    log. Without a list all are kept. Raises `DataError` if `data.quarantine` names a missing file."""
    path = quarantine_file(config)
    if not path.is_file():
        if config.quarantine:
            raise DataError("no such file", where=str(path), fix="data.quarantine names a list of clips to leave out; "
                            "`x3d-expand data check` writes it")
        return [True] * len(paths), []
    excluded = set(map(str, read_quarantine(path)))
    kept = [absolute(clip) not in excluded for clip in paths] if excluded else [True] * len(paths)
    if count := kept.count(False):
        return kept, [f"left out {quantity(count, 'clip')} that {path} names"]
    return kept, [f"{path} names {quantity(len(excluded), 'clip')}, none of them among these"] if excluded else []
