"""Make the splits that a source lacks from its train clips, and measure how even the classes are.

Groups of clips (a person, a recording), or single clips without a group, are ranked by a hash of the seed and their
name, and taken in that order as long as that brings the classes nearer to the wanted share. So a split depends neither
on the order of the clips nor on those of other classes, and another seed gives another split.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from typing import Any

from expand.data.sources.clip import SPLITS, ClipList, Source, order_splits
from expand.errors import DataError, abbreviate, quantity


def assign(units: Sequence[tuple[str, str]], shares: Mapping[str, float], seed: int) -> list[str]:
    """Return the split of every clip of `units` = (class, group): one of `shares`, or "train".

    A group is never divided. Every class keeps a clip in train. A class of n clips gives a split within half of its
    largest group of share x n clips if no group spans classes, and at least one group if it has enough of them. Groups
    that span classes are taken if that lowers the sum of the classes' distances from the wanted count.
    """
    groups: dict[str, Counter[str]] = {}  # the clips of each class in each group
    for name, group in units:
        groups.setdefault(group, Counter())[name] += 1
    total = Counter(name for name, _ in units)

    def rank(group: str) -> tuple[bytes, str]:
        text = f"{seed}\0{group}".encode("utf-8", "surrogateescape")
        return hashlib.blake2b(text, digest_size=12).digest(), group

    ranked = sorted(groups, key=rank)
    left = Counter(total)
    chosen: dict[str, str] = {}
    for split, share in shares.items():
        if share > 0:
            _choose_groups(split, {name: share * count for name, count in total.items()}, ranked, groups, left, chosen)
    return [chosen.get(group, "train") for _, group in units]


def _choose_groups(split: str, wanted: Mapping[str, float], ranked: Sequence[str],
                   groups: Mapping[str, Counter[str]], left: Counter[str], chosen: dict[str, str]) -> None:
    """Take groups out of train for `split`. `left` counts the clips that stay in train, by class; `chosen` gets the
    split of each group that is taken."""
    taken: Counter[str] = Counter()

    def change(group: str) -> float:
        """The change of the classes' distance from the wanted counts if `group` is taken."""
        return sum(abs(taken[name] + count - wanted[name]) - abs(taken[name] - wanted[name])
                   for name, count in groups[group].items())

    def is_free(group: str) -> bool:
        return group not in chosen and all(left[name] > count for name, count in groups[group].items())

    def take(group: str) -> None:
        chosen[group] = split
        taken.update(groups[group])
        left.subtract(groups[group])

    for group in ranked:
        if is_free(group) and change(group) < 0:
            take(group)
    empty: dict[str, list[str]] = {name: [] for name in sorted(set(wanted) - taken.keys())}
    for group in ranked if empty else ():
        for name in groups[group].keys() & empty.keys():
            empty[name].append(group)
    for name, candidates in empty.items():
        candidates = [group for group in candidates if is_free(group)]
        if candidates and not taken[name]:  # small classes, whose share rounds to nothing, need a clip in it too
            take(min(candidates, key=change))  # the first in rank among the least


def make_splits(source: Source, *, val_share: float, test_share: float, seed: int) -> None:
    """Make the splits that `source` lacks from its train clips, in place: val always, test if its share is above 0.

    Raises `DataError` with the classes that cannot be split.
    """
    shares = {split: share for split, share in (("val", val_share), ("test", test_share))
              if split not in source.splits and share > 0}
    if "train" not in source.splits or not shares:
        return
    drawn = [clip for clip in source.clips if clip.split == "train"]
    # no path of a clip can be taken for the name of a group
    units = [(clip.label, f"clip\0{clip.key}" if clip.group is None else f"group\0{clip.group}") for clip in drawn]
    groups: dict[str, set[str]] = {}
    for name, group in units:
        groups.setdefault(name, set()).add(group)
    lines = []
    for name, own in sorted(groups.items()):
        if len(own) == 1:
            kind, _, text = own.pop().partition("\0")
            lines.append(f"{name!r}: " + (f"all clips are of one group, {text!r}" if kind == "group"
                                          else f"a single clip, {text}"))
    if lines:
        few = "this class cannot" if len(lines) == 1 else "these classes cannot"
        raise DataError(f"{' and '.join(shares)} must be made from train, and {few} be split:\n{abbreviate(lines)}",
                        where=source.where, fix="add clips (of another group) to them, give a val split of your own, "
                                                "or remove the class")
    for clip, split in zip(drawn, assign(units, shares, seed), strict=True):
        clip.split = split
    source.splits = order_splits((*source.splits, *shares))
    counts = Counter(clip.split for clip in drawn)
    whole = {clip.group for clip in drawn if clip.group is not None}
    kept = f", {quantity(len(whole), 'group')} kept whole" if whole else ""
    parts = " and ".join(f"{split} ({share:.0%})" for split, share in shares.items())
    sizes = ", ".join(f"{split} {counts[split]}" for split in SPLITS if split == "train" or split in shares)
    source.notes.append(f"{parts} made from the train clips, class by class{kept}, seed {seed}: {sizes} clips")
    for split in shares:
        if without := sorted(groups.keys() - {clip.label for clip in drawn if clip.split == split}):
            some = ", ".join(without[:3]) + (", ..." if len(without) > 3 else "")
            source.notes.append(f"{quantity(len(without), 'class')} without a clip in {split}, too few to divide: "
                                f"{some}")


UNEVEN = 5.0
"""Ratio of the largest class to the smallest from which a note names them."""
FEW = 5
"""Clips of a class that val should have: with fewer, a single clip changes the accuracy by more than a fifth."""
NAMED = 3
"""Classes that a note names; the others are counted."""


def balance(listed: ClipList, kept: Iterable[bool] | None = None) -> dict[str, Any]:
    """Return the largest and the smallest class of the train clips (of the first split if there is no train), and the
    accuracy of always guessing the largest: {"split", "largest", "smallest", "ratio", "constant_accuracy",
    "few_in_val"} (docs/json.md). Only the clips that are true in `kept` count; by default all do."""
    clips = list(listed.clips if kept is None else compress(listed.clips, kept))
    counts = {split: Counter(clip.label for clip in clips if clip.split == split) for split in SPLITS}
    split = next((split for split in SPLITS if counts[split]), None)
    if split is None or not listed.classes:
        return {"split": None, "largest": None, "smallest": None, "ratio": None, "constant_accuracy": None,
                "few_in_val": {}}
    sizes = {label: counts[split][label] for label in range(len(listed.classes))}
    largest, smallest = max(sizes, key=lambda label: sizes[label]), min(sizes, key=lambda label: sizes[label])
    evaluated = counts["val"] or counts[split]
    few = {listed.classes[label]: counts["val"][label] for label in sizes if counts["val"][label] < FEW}
    return {"split": split, "largest": {"class": listed.classes[largest], "clips": sizes[largest]},
            "smallest": {"class": listed.classes[smallest], "clips": sizes[smallest]},
            "ratio": round(sizes[largest] / sizes[smallest], 3) if sizes[smallest] else None,
            "constant_accuracy": round(evaluated[largest] / evaluated.total(), 6),
            "few_in_val": few if counts["val"] else {}}


def balance_notes(figures: dict[str, Any]) -> list[str]:
    """Return at most two lines about a set's `balance` that a reader of its accuracies should know."""
    notes, ratio = [], figures["ratio"]
    if figures["largest"] and (ratio is None or ratio >= UNEVEN):
        largest, smallest = figures["largest"], figures["smallest"]
        notes.append(f"classes are uneven in {figures['split']}: {largest['clips']:,} clips of {largest['class']!r}, "
                     f"{smallest['clips']:,} of {smallest['class']!r}"
                     + (f" ({ratio:.3g} to 1)" if ratio else "")
                     + f"; always guessing {largest['class']!r} is right for {figures['constant_accuracy']:.1%} of "
                     f"{'val' if figures['split'] == 'train' else figures['split']}")
    if few := figures["few_in_val"]:
        ranked = sorted(few.items(), key=lambda item: item[1])
        some = ", ".join(f"{name!r} {count}" for name, count in ranked[:NAMED]) + (", ..." if len(few) > NAMED else "")
        these = "1 class has" if len(few) == 1 else f"{len(few):,} classes have"
        notes.append(f"{these} fewer than {FEW} clips in val ({some}): accuracies there are coarse")
    return notes
