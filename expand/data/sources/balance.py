"""How evenly clips are spread over classes and splits, and what that does to accuracies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from expand.data.sources.clip import SPLITS, ClipList

UNEVEN = 5.0
"""Times that the largest class may be as large as the smallest before it is said."""
FEW = 5
"""Clips of a class that val should have: of fewer, one more or less right is a fifth or more."""
NAMED = 3
"""Classes that are named; of more, their number is said."""


def balance(listed: ClipList, kept: Iterable[bool] | None = None) -> dict[str, Any]:
    """The largest and the smallest class of the train clips (of the first split where there are none), and what the
    largest would come to if it were always guessed: {"split", "largest", "smallest", "ratio", "constant_accuracy",
    "few_in_val"} (docs/json.md). `kept`: which of the clips count; by default all do."""
    clips = [clip for clip, good in zip(listed.clips, kept if kept is not None else [True] * len(listed.clips)) if good]
    counts = {split: Counter(clip.label for clip in clips if clip.split == split) for split in SPLITS}
    split = next((split for split in SPLITS if counts[split]), None)
    if split is None or not listed.classes:
        return {"split": None, "largest": None, "smallest": None, "ratio": None, "constant_accuracy": None,
                "few_in_val": {}}
    sizes = {label: counts[split][label] for label in range(len(listed.classes))}
    largest, smallest = max(sizes, key=lambda label: sizes[label]), min(sizes, key=lambda label: sizes[label])
    judged = counts["val"] or counts[split]
    few = {listed.classes[label]: counts["val"][label] for label in sizes if counts["val"][label] < FEW}
    return {"split": split, "largest": _shown(listed, sizes, largest), "smallest": _shown(listed, sizes, smallest),
            "ratio": round(sizes[largest] / sizes[smallest], 3) if sizes[smallest] else None,
            "constant_accuracy": round(judged[largest] / judged.total(), 6),
            "few_in_val": few if counts["val"] else {}}


def _shown(listed: ClipList, sizes: dict[int, int], label: int) -> dict[str, Any]:
    return {"class": listed.classes[label], "clips": sizes[label]}


def balance_notes(figures: dict[str, Any]) -> list[str]:
    """What of a set's `balance` should be known before an accuracy is believed: at most two lines."""
    notes, ratio = [], figures["ratio"]
    if figures["largest"] and (ratio is None or ratio >= UNEVEN):
        largest, smallest = figures["largest"], figures["smallest"]
        notes.append(f"classes are uneven in {figures['split']}: {largest['clips']:,} clips of {largest['class']!r}, "
                     f"{smallest['clips']:,} of {smallest['class']!r}"
                     + (f" ({ratio:.3g} to 1)" if ratio else "")
                     + f"; to guess {largest['class']!r} always is right for {figures['constant_accuracy']:.1%} of "
                     f"{'val' if figures['split'] == 'train' else figures['split']}")
    if few := figures["few_in_val"]:
        ranked = sorted(few.items(), key=lambda item: item[1])
        some = ", ".join(f"{name!r} {count}" for name, count in ranked[:NAMED]) + (", ..." if len(few) > NAMED else "")
        these = "1 class has" if len(few) == 1 else f"{len(few):,} classes have"
        notes.append(f"{these} fewer than {FEW} clips in val ({some}): accuracies there are coarse")
    return notes
