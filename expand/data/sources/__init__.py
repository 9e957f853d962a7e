"""Which clips there are, their classes and their splits: folders, lists, published sets, or the built-in clips.

Nothing here opens a clip, renders one or imports torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from expand.config.schema import DataConfig
from expand.data.sources.checks import checked, refuse_missing
from expand.data.sources.clip import SHOWN, SPLITS, Clip, ClipList, Entry, Found, absolute, counted, is_number, shown
from expand.data.sources.labels import unify_labels
from expand.data.sources.location import cache_dir
from expand.data.sources.qualities import keep_together
from expand.data.sources.quarantine import left_out, quarantine_file, read_quarantine, write_quarantine
from expand.data.sources.recognise import find_clips
from expand.data.sources.run_clip_changes import other_orders, read_begun, refuse_changed, restored, write_kept
from expand.data.sources.run_clips import FIX, read_clips, read_rows, write_clips
from expand.data.sources.split import make_splits
from expand.data.synthetic import clip_files
from expand.data.synthetic.cues import class_names
from expand.errors import DataError

__all__ = ["PUT_BACK", "SHOWN", "SPLITS", "Clip", "ClipList", "cache_dir", "count_classes", "counted", "keep_clips",
           "kept_clips", "list_clips", "other_orders", "quarantine_file", "read_clips", "read_quarantine",
           "refuse_changed", "shown", "write_clips", "write_quarantine"]

PUT_BACK = ("put them back, or mount their disk; or, where they were moved, write their new places into that file: "
            "names and contents must be the same")


def list_clips(config: DataConfig, *, to_train: bool = True, quarantine: bool = True) -> ClipList:
    """The clips that `config` names, in a fixed order: by split, then as their source has them.

    The built-in ones are named whether rendered yet or not. A val split (and with `data.test_share` a test split) is
    made from train where the source gives none. Classes are those of the train clips: numbers by number, a published
    set's in its order, else by name. Clips in the quarantine are left out, unless `quarantine` is false. Without
    `to_train` any split will do, none is made, clips without splits are all test, and the classes are those of the
    clips where there is no train split.

    Raises `DataError` for a source that is missing, not recognised or of several forms, lines that cannot be parsed
    (all of them), an empty split, a single class, a class unknown to train or one that cannot be split.
    """
    if config.is_builtin:
        return _builtin(config, quarantine)
    found = find_clips(config)
    unify_labels(found)
    if to_train:
        refuse_missing(found)
    if config.group:
        _set_groups(found, config)
    keep_together(found)
    checked(found)
    if to_train:
        make_splits(found, val_share=config.val_share, test_share=config.test_share, seed=config.split_seed)
    elif found.splits == ("train",):
        _rename(found, "test")
    if quarantine:  # last, so that a clip that is left out moves no other into another split
        _leave_out(found, config)
    return _numbered(found)


def count_classes(config: DataConfig) -> int:
    """Number of classes, without opening or rendering any clip. Raises as `list_clips`."""
    return len(class_names(config.builtin)) if config.is_builtin else len(list_clips(config).classes)


def keep_clips(path: Path, config: DataConfig, listed: ClipList) -> None:
    """Writes the clips of a run to `path`, so that it goes on with the same ones whatever happens to their source; but
    not the built-in ones, which follow from `config` and may be rendered elsewhere. Raises as `write_clips`."""
    if not config.is_builtin:
        write_kept(path, listed)


def kept_clips(path: Path, config: DataConfig, *, classes: Sequence[str] | None = None,
               to_resume: bool = False) -> ClipList:
    """The clips that `keep_clips` wrote to `path`, else those that `config` names; `classes`: those of the run.

    `to_resume`: in the order that the run began with, and the very same ones; the list is written anew if it was
    deleted. Raises `DataError` for a list that cannot be read, or where none of its clips is in its place any more;
    `RunError` where other clips are to be resumed with.
    """
    path = Path(path)
    begun = read_begun(path)
    if not path.exists():
        if begun is None:
            return list_clips(config)
        if to_resume:
            write_clips(path, begun)
        listed = begun
    else:
        names, rows = read_rows(path, begun.classes if begun else classes, fix=FIX if begun is None else
                                "it was changed by hand or cut: mend it, or delete it: `x3d-expand resume` writes it "
                                "anew as it was")
        listed = (restored(begun, rows, path) if begun and to_resume else
                  ClipList(names, tuple(clip for _, clip in rows)))
    if listed.clips and not any(os.path.exists(clip.path) for clip in listed.clips):
        raise DataError(f"none of the {counted(len(listed.clips), 'clip')} of this run is there any more, the first is "
                        f"{listed.clips[0].path}", where=str(path), fix=PUT_BACK)
    return listed


def _builtin(config: DataConfig, quarantine: bool) -> ClipList:
    files = clip_files(config.builtin, cache_dir(config))
    clips = tuple(Clip(path, label, split) for split in SPLITS for path, label in files[split])
    path, out = left_out(config) if quarantine else (None, set())
    kept = tuple(clip for clip in clips if absolute(clip.path) not in out) if out else clips
    notes = _quarantine_notes(path, out, len(clips) - len(kept))
    return ClipList(class_names(config.builtin), kept, tuple(notes))


def _set_groups(found: Found, config: DataConfig) -> None:
    """Every entry's group by `data.group`. Raises `DataError` where a clip that will be drawn has none."""
    search, without = re.compile(config.group).search, []
    for entry in found.entries:
        match = search(entry.key)
        entry.group = match and match.group(1) or None
        if entry.group is None and entry.split == "train":
            without.append(entry.key)
    is_drawn = "val" not in found.splits or (config.test_share > 0 and "test" not in found.splits)
    if without and is_drawn:
        raise DataError(f"data.group '{config.group}' matches nothing in {counted(len(without), 'clip')}:\n"
                        f"{shown(without)}", where=found.where,
                        fix="every clip needs a group; mend the regular expression, or leave it out")


def _rename(found: Found, split: str) -> None:
    """All clips are of `split`."""
    found.splits = (split,)
    for entry in found.entries:
        entry.split = split


def _leave_out(found: Found, config: DataConfig) -> None:
    """Takes the clips in quarantine away. Raises `DataError` where a split, or a class in train, has none left."""
    path, out = left_out(config)
    if not out:
        return
    whole = found.entries
    found.entries = [entry for entry in whole if absolute(entry.path) not in out]
    found.notes += _quarantine_notes(path, out, len(whole) - len(found.entries))
    gone = _parts(whole) - _parts(found.entries)
    if gone:
        raise DataError(f"all clips of {', '.join(sorted(gone))} are in quarantine", where=str(path),
                        fix="mend the clips, or take them out of that list")


def _parts(entries: list[Entry]) -> set[str]:
    """What must not be empty: splits, and classes in train."""
    return ({entry.split for entry in entries}
            | {f"class {entry.label!r} in train" for entry in entries if entry.split == "train"})


def _quarantine_notes(path: Path | None, out: set[str], count: int) -> list[str]:
    """How many clips were left out; that none was, where somebody may expect otherwise."""
    if count:
        return [f"left out {counted(count, 'clip')} that {path} names"]
    return [f"{path} names {counted(len(out), 'clip')}, none of them among these"] if out else []


def _numbered(found: Found) -> ClipList:
    """The list once all is right: clips by split, labels by the classes' order."""
    names = _class_names(found.entries, found.splits)
    if found.order is not None:
        classes = tuple(name for name in found.order if name in names)
    else:
        by_number = all(map(is_number, names))
        classes = tuple(sorted(names, key=lambda name: (int(name) if by_number else 0, name)))
    labels = {name: label for label, name in enumerate(classes)}
    ranked = sorted(found.entries, key=lambda entry: SPLITS.index(entry.split))  # stable
    clips = tuple(Clip(path, labels[entry.label], entry.split, entry.group)
                  for path, entry in zip(_paths(entry.path for entry in ranked), ranked))
    return ClipList(classes, clips, tuple(found.notes))


def _paths(texts: Iterable[str]) -> Iterator[Path]:
    """Each text as a path; from its folder's path, which takes a third of the time."""
    folders: dict[str, Path] = {}
    for text in texts:
        folder, name = os.path.split(text)
        if folder not in folders:
            folders[folder] = Path(folder)
        yield folders[folder] / name


def _class_names(entries: list[Entry], splits: tuple[str, ...]) -> set[str]:
    return {entry.label for entry in entries if entry.split == "train" or "train" not in splits}
