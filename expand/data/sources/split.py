"""Splits made from the train clips: by class, by group, and by a hash, so that a clip elsewhere moves nothing.

A unit of drawing is a group of clips (a person, a recording), else a single clip. Units are ranked by a hash of the
seed and their name, and taken in that order as long as that brings the classes nearer to the wanted share. So a split
depends neither on the order of the clips nor on those of other classes, and another seed gives another split.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from expand.data.sources.clip import SPLITS, Entry, Found, counted, in_order, shown
from expand.errors import DataError

Groups = dict[str, dict[str, int]]
"""Clips by group, then by class."""


def assign(units: Sequence[tuple[str, str]], shares: Mapping[str, float], seed: int) -> list[str]:
    """The split of every clip of `units` = (class, group): one of `shares`, or "train".

    A group is never parted. Every class keeps a clip in train. A class of n clips gives a split within half of its
    largest group of share x n clips where groups stay within classes, and at least one group where it has enough of
    them. Groups that span classes are taken where that lowers the sum of the classes' distances from the wanted count.
    """
    groups: Groups = {}
    for name, group in units:
        counts = groups.setdefault(group, {})
        counts[name] = counts.get(name, 0) + 1
    total = Counter(name for name, _ in units)
    ranked = sorted(groups, key=lambda group: (_rank(seed, group), group))
    left, chosen = Counter(total), {}
    for split, share in shares.items():
        if share > 0:
            _fill(split, {name: share * count for name, count in total.items()}, ranked, groups, left, chosen)
    return [chosen.get(group, "train") for _, group in units]


def _fill(split: str, wanted: Mapping[str, float], ranked: Sequence[str], groups: Groups, left: Counter,
          chosen: dict[str, str]) -> None:
    """Takes groups out of train for `split`; `left` counts what stays in train, `chosen` where groups went."""
    taken: Counter = Counter()

    def change(group: str) -> float:
        """By how much taking `group` would move the classes away from what is wanted."""
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
    for name, candidates in _of_empty(ranked, groups, set(wanted) - taken.keys()).items():
        candidates = [group for group in candidates if is_free(group)]
        if candidates and not taken[name]:  # small classes, whose share rounds to nothing, need a clip to be judged by
            take(min(candidates, key=change))  # the first in rank among the least


def _of_empty(ranked: Sequence[str], groups: Groups, names: set[str]) -> dict[str, list[str]]:
    """The groups of the classes `names`, in rank."""
    found: dict[str, list[str]] = {name: [] for name in sorted(names)}
    for group in ranked if names else ():
        for name in groups[group].keys() & names:
            found[name].append(group)
    return found


def _rank(seed: int, group: str) -> bytes:
    return hashlib.blake2b(f"{seed}\0{group}".encode("utf-8", "surrogateescape"), digest_size=12).digest()


def make_splits(found: Found, *, val_share: float, test_share: float, seed: int) -> None:
    """Makes the splits that `found` lacks from its train clips, in place: val always, test where a share is asked for.

    Raises `DataError` with the classes that cannot be split.
    """
    shares = {split: share for split, share in (("val", val_share), ("test", test_share))
              if split not in found.splits and share > 0}
    if "train" not in found.splits or not shares:
        return
    drawn = [entry for entry in found.entries if entry.split == "train"]
    units = [(entry.label, _unit(entry)) for entry in drawn]
    _check_divisible(units, found.where, tuple(shares))
    for entry, split in zip(drawn, assign(units, shares, seed)):
        entry.split = split
    found.splits = in_order((*found.splits, *shares))
    found.notes += _described(found, drawn, shares, seed)


def _unit(entry: Entry) -> str:
    """What stays together: the group, else the clip itself; no clip's path can be taken for a group."""
    return f"clip\0{entry.key}" if entry.group is None else f"group\0{entry.group}"


def _check_divisible(units: Sequence[tuple[str, str]], where: str, made: tuple[str, ...]) -> None:
    groups: dict[str, set[str]] = {}
    for name, group in units:
        groups.setdefault(name, set()).add(group)
    lines = []
    for name, own in sorted(groups.items()):
        if len(own) == 1:
            kind, _, text = next(iter(own)).partition("\0")
            lines.append(f"{name!r}: " + (f"all clips are of one group, {text!r}" if kind == "group"
                                          else f"a single clip, {text}"))
    if lines:
        few = "this class cannot" if len(lines) == 1 else "these classes cannot"
        raise DataError(f"{' and '.join(made)} must be made from train, and {few} be split:\n{shown(lines)}",
                        where=where, fix="add clips (of another group) to them, give a val split of your own, or take "
                                         "the class away")


def _described(found: Found, drawn: Sequence[Entry], shares: Mapping[str, float], seed: int) -> list[str]:
    """What was made, and which classes go without."""
    counts = Counter(entry.split for entry in drawn)
    groups = {entry.group for entry in drawn if entry.group is not None}
    kept = f", {counted(len(groups), 'group')} kept whole" if groups else ""
    parts = " and ".join(f"{split} ({share:.0%})" for split, share in shares.items())
    sizes = ", ".join(f"{split} {counts[split]}" for split in SPLITS if split == "train" or split in shares)
    notes = [f"{parts} made from the train clips, class by class{kept}, seed {seed}: {sizes} clips"]
    names = {entry.label for entry in drawn}
    for split in shares:
        without = sorted(names - {entry.label for entry in drawn if entry.split == split})
        if without:
            some = ", ".join(without[:3]) + (", ..." if len(without) > 3 else "")
            notes.append(f"{counted(len(without), 'class')} without a clip in {split}, too few to part: {some}")
    return notes
