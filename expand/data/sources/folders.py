"""Clips in folders: `{train,val[,test]}/<class>/<clip>`, `<class>/{train,val[,test]}/<clip>`, or `<class>/<clip>`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from expand.data.sources.clip import SPLIT_NAMES, Source, SourceClip, order_splits, split_of_folder
from expand.data.sources.walk import (
    ABOUT_FRAMES,
    FRAME_FOLDERS,
    PICTURE_FOLDERS,
    PROXY_FOLDERS,
    PassedOver,
    clips_below,
    count_system_folders,
    files_in,
    folders_in,
    remove_proxies,
)
from expand.errors import SHOWN, DataError, abbreviate

LAYOUT = ("clips are expected as {train,val[,test]}/<class>/<clip>, <class>/{train,val}/<clip> or <class>/<clip>, or "
          "listed in train.csv and val.csv as lines of `path label`; data.path may also be a list itself, of any name")
MOVE = "put all clips as {train,val}/<class>/<clip>, or as <class>/{train,val}/<clip>"
CLASSES = "if they are classes: --set data.format=folders"
PART = re.compile(r"(?:k?[ _-]?folds?|splits?|parts?|shards?|chunks?|batch(?:es)?|cv)[ ._-]*(?:\d{1,3}|[a-e])",
                  re.IGNORECASE)
"""Numbered parts of a set: folds of a cross-validation, pieces of a download."""
FORM = re.compile(r"(?:raw|resized|cropped|original|processed|all)?[ _-]?"
                  r"(?:videos?|clips?|data|datasets?|mp4|avi|media)"
                  r"(?:[ _-](?:raw|resized|cropped|original|processed|rgb|\d+p?))?", re.IGNORECASE)
"""Folders that hold all of a set, in one form."""
Splits = dict[str, str]
"""{split: name of its folder}."""


def split_folders(root: str, *, loosely: bool = False) -> Splits:
    """Return the split folders in `root`; none if no such folder holds class folders.

    `loosely`: if no folder has exactly a split's name, accept names such as `train_videos` and `val_videos`; a train
    and another one are needed then. Raises `DataError` if two folders are the same split.
    """
    names = folders_in(root)
    found = _splits_among(names, root) if _exact_names(names) else {}
    if not found and loosely:
        found = _splits_among(names, root)
        found = found if len(found) > 1 and "train" in found else {}
    if not any(folders_in(os.path.join(root, name)) for name in found.values()):
        return {}  # they hold the clips of lists, or are classes themselves
    return found


def _exact_names(names: Iterable[str]) -> list[str]:
    """Those of `names` that are exactly the name of a split."""
    return [name for name in names if name.lower() in SPLIT_NAMES]


def _splits_among(names: Iterable[str], where: str) -> Splits:
    """The folders that are splits: those with exactly a split's name, else those with it in their name."""
    named: dict[str, list[str]] = {}
    for name in _exact_names(names) or names:
        if split := split_of_folder(name):
            named.setdefault(split, []).append(name)
    for split, own in named.items():
        if len(own) > 1:
            raise DataError(f"both {' and '.join(own)} are {split}", where=where,
                            fix="keep one of them, or name lists with data.train and data.val")
    return {split: named[split][0] for split in order_splits(named)}


def has_splits(root: str) -> bool:
    """Return true if `root` holds class folders for both train and val, so that the layout is clear."""
    folders = split_folders(root)
    return all(split in folders and folders_in(os.path.join(root, folders[split])) for split in ("train", "val"))


def looks_like_classes(root: str) -> bool:
    """Return true if `root` has split folders with classes, or two folders with clips that are no splits, so that a
    list beside them leaves no doubt about the layout."""
    if split_folders(root, loosely=True):
        return True
    holding = [name for name in folders_in(root) if not FORM.fullmatch(name) and clips_below(os.path.join(root, name))]
    return len(holding) > 1 and any(split_of_folder(name) is None for name in holding)


def read_folders(root: str, *, are_classes: bool = False) -> Source:
    """Return the clips of the class folders in `root`.

    Split folders may lie above or below the class folders; without any, all clips are train. `are_classes`: read the
    folders as classes even if they look like parts of a set. Raises `DataError` for other layouts: no class folders,
    no clips in them, a data set in a folder of its own, or clips both in the split folders of classes and beside them.
    """
    names, passed = folders_in(root), PassedOver()
    count_system_folders(root, passed)
    # splits of classes that are named like splits, such as `{train,val}/{train,test}/<clip>` of vehicles
    outer = {SPLIT_NAMES.get(name.lower()) for name in names}
    are_splits = ("train" in outer and len(outer) == len(names) > 1 and None not in outer
                  and all(len(folders_in(os.path.join(root, name))) > 1 for name in names))
    if not are_splits and (inner := _splits_of_classes(root, names)) is not None:
        clips: list[SourceClip] = []
        for name, folders in inner.items():  # <class>/{train,val[,test]}/<clip>
            count_system_folders(os.path.join(root, name), passed)
            for split, folder in folders.items():
                place = os.path.join(root, name, folder)
                clips += [SourceClip(f"{place}/{clip}", name, split, place, f"{name}/{folder}/{clip}")
                          for clip in clips_below(place, passed)]
        order = order_splits(split for own in inner.values() for split in own)
        source = Source(root, order, clips, notes=[f"read as class folders with {', '.join(order)} in each"],
                        lacks="has no folder {splits} in its class folders")
    elif splits := split_folders(root, loosely=True):  # {train,val[,test]}/<class>/<clip>
        for name in splits.values():
            count_system_folders(os.path.join(root, name), passed)
        clips = [clip for split, name in splits.items()
                 for clip in _read_class_folders(root, name + "/", split, passed)]
        others = [name for name in names if name not in splits.values()]
        unused = f"; not used: {', '.join(others[:SHOWN])}" if others else ""
        is_plain = not others and all(split == name for split, name in splits.items())
        source = Source(root, tuple(splits), clips,
                        notes=[] if is_plain else [f"read as folders {', '.join(splits.values())}{unused}"],
                        lacks=f"has no folder {{splits}}; found {', '.join(names[:SHOWN]) or 'none'}")
    else:
        source = _read_classes(root, names, passed, are_classes)
    _refuse_unread(root, passed)
    source.clips = remove_proxies(source.clips, passed)
    source.notes += passed.notes()
    return source


def _refuse_unread(root: str, passed: PassedOver) -> None:
    if passed.unread:
        lines = [f"{folder}: {suffix}" for folder, suffix in passed.unread.items()]
        raise DataError(f"folders of pictures in a format that is not read:\n{abbreviate(lines)}", where=root,
                        fix="convert them to JPEG or PNG, or remove them")


def _read_classes(root: str, names: list[str], passed: PassedOver, are_classes: bool) -> Source:
    """The clips of `<class>/<clip>`, all of them as train."""
    if all(name.lower() in SPLIT_NAMES for name in names):
        found = (f"only {', '.join(names)}, and no class folders in them" if names else
                 "only files, which may be clips of any class" if files_in(root) else "nothing")
        raise DataError(f"has no class folders; found {found}", where=root, fix=LAYOUT)
    for name in names:
        if split_folders(inner := os.path.join(root, name)):
            raise DataError(f"{name} is no class: it has splits of its own", where=root, fix=f"is data.path={inner} "
                            "meant?")
    if not are_classes:
        _refuse_parts(root, names)
    clips = _read_class_folders(root, "", "train", passed)
    if not clips:
        _refuse_unread(root, passed)
        what = "; ".join([f"has no clips in its folders {', '.join(names[:SHOWN])}", *passed.notes()])
        raise DataError(what, where=root, fix=LAYOUT)
    notes, used = ["read as class folders"], {clip.label for clip in clips}
    if empty := [name for name in names if name not in used and f"in {name}" not in passed.counts]:
        some = ", ".join(empty[:SHOWN]) + (", ..." if len(empty) > SHOWN else "")
        notes.append(f"no clips in {some}: not among the classes")
    return Source(root, ("train",), clips, notes=notes)


def _refuse_parts(root: str, names: list[str]) -> None:
    """Raise `DataError` if the folders are no classes but parts or forms of one set, each with the classes in it:
    `fold1/<class>/<clip>`, or `videos/<class>/<clip>` beside `frames/<class>/<clip>`."""
    inside = {name: set(folders_in(os.path.join(root, name))) for name in names}
    parts = [name for name in names if PART.fullmatch(name) and inside[name]]
    forms = [name for name in names
             if (FORM.fullmatch(name) or name.lower() in FRAME_FOLDERS or ABOUT_FRAMES.fullmatch(name))
             and any(clips_below(os.path.join(root, name, folder)) for folder in inside[name])]
    if not forms and len(parts) < 2:
        return  # no more folders are listed: a set may have many clips
    having = {name for name in names if inside[name] or clips_below(os.path.join(root, name))}
    if len(parts) > 1 and having == set(parts) and _are_alike([inside[name] for name in parts]):
        raise DataError(f"{', '.join(parts[:SHOWN])} hold the same folders ({', '.join(sorted(inside[parts[0]])[:3])}, "
                        "...): they are parts of one set, and no classes", where=root,
                        fix="put all clips as {train,val}/<class>/<clip>, or list them: lines of `path label` in a "
                            f"train.csv and a val.csv, which data.train and data.val may also name; {CLASSES}")
    whole = [name for name in forms if FORM.fullmatch(name)] or [
        name for name in forms if name.lower() in FRAME_FOLDERS]
    if not whole or having - set(forms):
        return
    if len(forms) == 1 and len(inside[forms[0]]) > 1 or len(forms) > 1 and _are_alike(
            [inside[name] for name in forms]):
        what = ("is no class: it holds all of the set" if len(forms) == 1 else
                "hold the same folders each: they are forms of one set, and no classes")
        raise DataError(f"{', '.join(forms[:SHOWN])} {what}", where=root,
                        fix=f"is data.path={os.path.join(root, whole[0])} meant? {CLASSES}")


def _are_alike(sets: list[set[str]]) -> bool:
    """True if the folders in all `sets` are more or less the same, as classes would be."""
    return all(2 * len(some & sets[0]) > max(len(some), len(sets[0])) and len(some) > 1 for some in sets)


def _splits_of_classes(root: str, names: list[str]) -> dict[str, Splits] | None:
    """The split folders of each class folder of `root`; None if the layout is not `<class>/{train,val[,test]}/<clip>`.

    A folder `train` alone is no sign of that (a class of vehicles may have one), and neither is a data set in a folder
    of its own. Raises `DataError` if the layout has two readings, or if only some of the classes have split folders.
    """
    below = {name: folders_in(os.path.join(root, name)) for name in names}
    splits: dict[str, Splits] = {}
    for name, inner in below.items():
        own = _splits_among(inner, os.path.join(root, name))
        # `train_videos` and the like count only beside another split
        splits[name] = own if _exact_names(inner) or "train" in own and len(own) > 1 else {}
    if not any({"val", "test"} & set(own) for own in splits.values()):
        return None
    outer = _exact_names(names)
    if outer and any(set(below[name]) - set(_exact_names(below[name])) for name in outer):
        return None  # {train,val}/<class>/<clip>, with classes that may have any name
    holding = [name for name in names if {"val", "test"} & set(splits[name])]
    has_clips_directly = any("/" not in clip for name in holding for folder in splits[name].values()
                             for clip in clips_below(os.path.join(root, name, folder)))
    if len(names) == 1:
        raise DataError(f"{names[0]} is no class: it has splits of its own", where=root,
                        fix=f"is data.path={os.path.join(root, names[0])} meant?")
    if not has_clips_directly:
        if len(holding) == 1:
            return None  # a data set within a folder
        inside = {name: [set(folders_in(os.path.join(root, name, folder))) for folder in splits[name].values()]
                  for name in holding}
        if all(len(each) > 1 and all(some and some <= each[0] for some in each[1:]) for each in inside.values()):
            raise DataError(f"{', '.join(holding[:SHOWN])} have {' and '.join(splits[holding[0]].values())} each, with "
                            "the same folders in both: they may be classes or data sets", where=root,
                            fix=f"if they are data sets, name one: --data {os.path.join(root, holding[0])}; if they "
                            "are classes, put all clips as {train,val}/<class>/<clip>")
    whole: dict[str, Splits] = {}
    wrong: list[str] = []
    for name, own in splits.items():
        clips = clips_below(os.path.join(root, name))
        if not clips:
            continue
        whole[name] = own
        prefixes = tuple(f"{folder}/" for folder in own.values())
        beside = [clip for clip in clips if not clip.startswith(prefixes)] if own else clips
        if not own:
            wrong.append(f"{os.path.join(root, name)}: no folder train or val")
        elif beside and beside[0] in own.values():
            wrong.append(f"{os.path.join(root, name, beside[0])}: pictures, and no folder of them a clip")
        elif beside:
            more = f" and {len(beside) - 1} more" if len(beside) > 1 else ""
            wrong.append(f"{os.path.join(root, name)}: {beside[0]}{more} beside {', '.join(own.values())}")
    if wrong:
        having = [name for name, own in splits.items() if own]
        raise DataError(f"{', '.join(having[:SHOWN])} have folders of splits, but not all clips lie in such:\n"
                        f"{abbreviate(wrong)}", where=root, fix=MOVE)
    return whole


def _read_class_folders(root: str, prefix: str, split: str, passed: PassedOver) -> list[SourceClip]:
    """The clips of the class folders in `root`/`prefix`, which ends in a slash or is empty."""
    found: list[SourceClip] = []
    names = folders_in(os.path.join(root, prefix))
    for name in names:
        place = os.path.join(root, prefix + name)
        inside = folders_in(place) if name.lower() in PICTURE_FOLDERS | PROXY_FOLDERS else []
        if inside and set(inside) <= set(names):  # thumbnails or proxies of each class
            passed.counts[f"in {name}"] += len(clips_below(place, passed))
            continue
        found += [SourceClip(f"{place}/{clip}", name, split, place, f"{prefix}{name}/{clip}")
                  for clip in clips_below(place, passed)]
    return found
