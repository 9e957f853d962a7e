"""List the clips of a data set with their classes and splits: folders, lists, published sets, or the built-in clips.

The way from a source to a `ClipList`: `read_source` returns the clips as the source names them, then `list_clips`
unifies labels, makes groups and missing splits, leaves out the quarantine, and numbers the classes. No clip is opened
or rendered here, and torch is not imported.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from expand.config.schema import DataConfig
from expand.data.sources.clip import SPLITS, Clip, ClipList, Source, SourceClip, absolute, is_number
from expand.data.sources.labels import unify_labels
from expand.data.sources.paths import cache_dir
from expand.data.sources.quarantine import quarantine_file, read_exclusions, read_quarantine, write_quarantine
from expand.data.sources.read_source import read_source
from expand.data.sources.run_list import (
    PUT_BACK,
    other_orders,
    read_clips,
    read_run_list,
    refuse_changed,
    write_clips,
    write_run_list,
)
from expand.data.sources.splits import make_splits
from expand.data.sources.walk import group_qualities
from expand.data.synthetic import class_names, clip_files
from expand.errors import DataError, abbreviate, did_you_mean, quantity

__all__ = ["PUT_BACK", "SPLITS", "Clip", "ClipList", "cache_dir", "count_classes", "list_clips",
           "list_run_clips", "other_orders", "quarantine_file", "read_clips", "read_quarantine",
           "refuse_changed", "write_clips", "write_quarantine", "write_run_list"]


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
        return _list_builtin(config, quarantine)
    source = read_source(config)
    unify_labels(source)
    if to_train and "train" not in source.splits:
        raise DataError(source.lacks.format(splits="train"), where=source.where,
                        fix="train is needed; val is made from it if it is missing")
    if config.group:
        _set_groups(source, config.group, config.test_share)
    group_qualities(source)
    _check_splits_and_classes(source)
    if to_train:
        make_splits(source, val_share=config.val_share, test_share=config.test_share, seed=config.split_seed)
    elif source.splits == ("train",):
        source.splits = ("test",)
        for clip in source.clips:
            clip.split = "test"
    if quarantine:  # last, so that a clip that is left out moves no other into another split
        _leave_out_quarantine(source, config)
    return _number_classes(source)


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


def _list_builtin(config: DataConfig, quarantine: bool) -> ClipList:
    files = clip_files(config.builtin, cache_dir(config))
    clips = tuple(Clip(path, label, split) for split in SPLITS for path, label in files[split])
    notes: list[str] = []
    if quarantine:
        path, excluded = read_exclusions(config)
        kept = tuple(clip for clip in clips if absolute(clip.path) not in excluded) if excluded else clips
        notes = _quarantine_notes(path, excluded, len(clips) - len(kept))
        clips = kept
    return ClipList(class_names(config.builtin), clips, tuple(notes))


def _set_groups(source: Source, pattern: str, test_share: float) -> None:
    """Set every clip's group by `data.group`. Raises `DataError` if clips have none, but a split is to be made."""
    search, without = re.compile(pattern).search, []
    for clip in source.clips:
        match = search(clip.key)
        clip.group = match and match.group(1) or None
        if clip.group is None and clip.split == "train":
            without.append(clip.key)
    is_drawn = "val" not in source.splits or (test_share > 0 and "test" not in source.splits)
    if without and is_drawn:
        raise DataError(f"data.group '{pattern}' matches nothing in {quantity(len(without), 'clip')}:\n"
                        f"{abbreviate(without)}", where=source.where,
                        fix="every clip needs a group; mend the regular expression, or leave it out")


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
        hints = {label: did_you_mean(label, names) for _, label, _ in unknown}
        lines = [f"{place}: {label!r} in {split}" + (f"; {hints[label]}" if hints[label] else "")
                 for place, label, split in sorted(unknown)]
        raise DataError(f"classes without a clip in train:\n{abbreviate(lines)}", where=source.where,
                        fix="every class needs clips in train")
    if len(names) < 2 and "train" in source.splits:
        raise DataError(f"only one class, {names.pop()!r}: there is nothing to tell apart", where=source.where,
                        fix="name at least two classes")


def _leave_out_quarantine(source: Source, config: DataConfig) -> None:
    """Remove the clips in quarantine. Raises `DataError` if a split, or a class in train, has none left."""
    def parts(clips: list[SourceClip]) -> set[str]:
        return ({clip.split for clip in clips}
                | {f"class {clip.label!r} in train" for clip in clips if clip.split == "train"})

    path, excluded = read_exclusions(config)
    if not excluded:
        return
    whole = source.clips
    source.clips = [clip for clip in whole if absolute(clip.path) not in excluded]
    source.notes += _quarantine_notes(path, excluded, len(whole) - len(source.clips))
    if gone := parts(whole) - parts(source.clips):
        raise DataError(f"all clips of {', '.join(sorted(gone))} are in quarantine", where=str(path),
                        fix="mend the clips, or remove them from that list")


def _quarantine_notes(path: Path, excluded: set[str], count: int) -> list[str]:
    if count:
        return [f"left out {quantity(count, 'clip')} that {path} names"]
    return [f"{path} names {quantity(len(excluded), 'clip')}, none of them among these"] if excluded else []


def _number_classes(source: Source) -> ClipList:
    """The final list: clips by split, labels by the classes' order."""
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

    clips = tuple(Clip(make_path(clip.path), labels[clip.label], clip.split, clip.group) for clip in ranked)
    return ClipList(classes, clips, tuple(source.notes))


def _class_names(source: Source) -> set[str]:
    return {clip.label for clip in source.clips if clip.split == "train" or "train" not in source.splits}
