"""The balance of a data set: sizes of the classes, and their effect on accuracies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import compress
from typing import Any

from expand.data.sources.clip import SPLITS, ClipList

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
