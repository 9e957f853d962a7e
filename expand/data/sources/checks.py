"""What must hold of any list of clips before it is used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from expand.data.sources.clip import ClipList, Found, shown
from expand.errors import DataError, did_you_mean


def refuse_missing(found: Found) -> None:
    """Raises `DataError` where there is nothing to train on."""
    if "train" not in found.splits:
        raise DataError(found.lacks.format(splits="train"), where=found.where,
                        fix="train is needed; val is made from it where it is not given")


def checked(found: Found) -> None:
    """Raises `DataError` for an empty split, classes that train lacks, or a single class."""
    counts = Counter(entry.split for entry in found.entries)
    if empty := [split for split in found.splits if not counts[split]]:
        raise DataError(f"no clips for {' and '.join(empty)}", where=found.where,
                        fix="put clips there" + (", or take `test` away" if empty == ["test"] else ""))
    if not found.splits:
        raise DataError("no clips", where=found.where, fix="see docs/data.md for what is understood")
    has_train = "train" in found.splits
    names = {entry.label for entry in found.entries if entry.split == "train" or not has_train}
    if strange := {(entry.place, entry.label, entry.split) for entry in found.entries if entry.label not in names}:
        lines = [_stranger(*place, names) for place in sorted(strange)]
        raise DataError(f"classes without a clip in train:\n{shown(lines)}", where=found.where,
                        fix="every class needs clips in train")
    if len(names) < 2 and has_train:
        raise DataError(f"only one class, {names.pop()!r}: there is nothing to tell apart", where=found.where,
                        fix="name at least two classes")


def _stranger(place: str, name: str, split: str, names: set[str]) -> str:
    suggestion = did_you_mean(name, names)
    return f"{place}: {name!r} in {split}" + (f"; {suggestion}" if suggestion else "")


def emptied(listed: ClipList, kept: Iterable[bool]) -> list[str]:
    """The splits of `listed`, and the classes in train, of which no clip is `kept`: without them nothing is trained."""
    left = [clip for clip, good in zip(listed.clips, kept) if good]
    splits, trained = {clip.split for clip in left}, {clip.label for clip in left if clip.split == "train"}
    gone = [split for split in dict.fromkeys(clip.split for clip in listed.clips) if split not in splits]
    if trained:
        gone += [f"class {name!r} in train" for label, name in enumerate(listed.classes) if label not in trained]
    return gone
