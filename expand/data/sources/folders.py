"""Clips in folders: `{train,val[,test]}/<class>/<clip>`, or `<class>/<clip>`."""

from __future__ import annotations

import os

from expand.data.sources.base import SHOWN, SPLIT_NAMES, Entry, Found, in_order
from expand.data.sources.walk import clips_below, files_in, folders_in
from expand.errors import DataError

LAYOUT = ("clips are expected as {train,val[,test]}/<class>/<clip> or <class>/<clip>, or listed in train.csv and "
          "val.csv as lines of `path label`; data.path may also be a list itself, of any name")


def split_folders(root: str) -> dict[str, str]:
    """The names of the folders in `root` that are splits, by split; none where no such folder holds class folders.

    Raises `DataError` where two of them are the same split.
    """
    named: dict[str, list[str]] = {}
    for name in folders_in(root):
        if split := SPLIT_NAMES.get(name.lower()):
            named.setdefault(split, []).append(name)
    if not any(folders_in(os.path.join(root, name)) for names in named.values() for name in names):
        return {}  # they hold the clips of lists, or are classes themselves
    for split, names in named.items():
        if len(names) > 1:
            raise DataError(f"both {' and '.join(names)} are {split}", where=root,
                            fix="keep one of them, or name lists with data.train and data.val")
    return {split: named[split][0] for split in in_order(named)}


def has_splits(root: str) -> bool:
    """Whether `root` holds class folders for both train and val: what leaves no doubt about the layout."""
    folders = split_folders(root)
    return all(split in folders and folders_in(os.path.join(root, folders[split])) for split in ("train", "val"))


def read_folders(root: str) -> Found:
    """The clips of the class folders in `root`, by split where it has split folders, else all as train.

    Raises `DataError` where there are neither, or no clips in class folders, or splits a level down.
    """
    splits, names = split_folders(root), folders_in(root)
    if not splits:
        return _read_classes(root, names)
    entries = [entry for split, name in splits.items() for entry in _entries(root, name + "/", split)]
    others = [name for name in names if name not in splits.values()]
    unused = f"; not used: {', '.join(others[:SHOWN])}" if others else ""
    is_plain = not others and all(split == name for split, name in splits.items())
    notes = [] if is_plain else [f"read as folders {', '.join(splits.values())}{unused}"]
    return Found(root, tuple(splits), entries, notes=notes,
                 lacks=f"has no folder {{splits}}; found {', '.join(names[:SHOWN]) or 'none'}")


def _read_classes(root: str, names: list[str]) -> Found:
    """The clips of `<class>/<clip>`, all of them as train."""
    if all(name.lower() in SPLIT_NAMES for name in names):
        found = (f"only {', '.join(names)}, and no class folders in them" if names else
                 "only files, which may be clips of any class" if files_in(root) else "nothing")
        raise DataError(f"has no class folders; found {found}", where=root, fix=LAYOUT)
    for name in names:
        if split_folders(inner := os.path.join(root, name)):
            raise DataError(f"{name} is no class: it has splits of its own", where=root, fix=f"is data.path={inner} "
                            "meant?")
    entries = _entries(root, "", "train")
    if not entries:
        raise DataError(f"has no clips in its folders {', '.join(names[:SHOWN])}", where=root, fix=LAYOUT)
    return Found(root, ("train",), entries, notes=["read as class folders"])


def _entries(root: str, prefix: str, split: str) -> list[Entry]:
    """The clips of the class folders in `root`/`prefix`, which ends in a slash or is empty."""
    found = []
    for name in folders_in(os.path.join(root, prefix)):
        place = os.path.join(root, prefix + name)
        found += [Entry(f"{place}/{clip}", name, split, place, f"{prefix}{name}/{clip}")
                  for clip in clips_below(place)]
    return found
