"""Rules that find the problems of clips from their measurements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from expand.data.check.measure import Failure, same_contents
from expand.data.frames.video_file import KINDS as UNREADABLE
from expand.data.sources import Clip, ClipList
from expand.data.sources.clip import absolute
from expand.errors import quantity

KINDS = (*UNREADABLE, "truncated", "clock", "too-short", "duplicate")
MUCH_LESS = 0.9
"""A clip with less than this share of the frames that its header announces is cut; headers are often a little wrong."""
SLACK_S = 0.1
"""Smallest difference from the header that counts, seconds."""
TOO_SHORT = 0.1
"""Share of the median length below which a clip is too short."""


@dataclass(frozen=True)
class ClipProblem:
    """A problem of the clip at place `index` of the list."""

    index: int
    kind: str
    reason: str
    quarantined: bool = False


def find_problems(listed: ClipList, table: np.ndarray, failures: Mapping[int, Failure],
                  median_s: float | None) -> list[ClipProblem]:
    """Return all problems, in the order of the list; `table` has a row of `CLIP` for each of its clips.

    Quarantined are clips that cannot be read (unless none can: then the disk or the paths are at fault), clips of a
    single frame (unless all have one), and train's copy of a clip that is also in val or test.
    """
    any_readable, any_moving = bool(table["readable"].any()), bool((table["frames"] > 1).any())
    found = [ClipProblem(index, failure.kind, failure.reason, any_readable) for index, failure in failures.items()]
    for index in np.flatnonzero(table["readable"]).tolist():
        is_folder = table[index]["damaged"] and listed.clips[index].path.is_dir()
        if reason := truncation_reason(table[index], "picture" if is_folder else "packet"):
            found.append(ClipProblem(index, "truncated", reason))
        if reason := clock_reason(table[index]):
            found.append(ClipProblem(index, "clock", reason))
        if reason := shortness_reason(table[index], median_s):
            found.append(ClipProblem(index, "too-short", reason, any_moving and int(table[index]["frames"]) == 1))
    for group in same_contents(table):
        found += _find_bad_copies(listed, group.tolist())
    return sorted(found, key=lambda problem: (problem.index, KINDS.index(problem.kind)))


def truncation_reason(clip: np.void, part: str = "packet") -> str | None:
    """Return how a clip ends early or is damaged; None if it is whole. `part` is the name of its parts."""
    announced, announced_s, fps = int(clip["announced_frames"]), float(clip["announced_s"]), float(clip["fps"])
    announced_s = 0.0 if clip["jumps"] else announced_s  # its length follows the same clock
    given_s = float(clip["length_s"]) + (1 / fps if fps else 0.0)  # the last frame lasts a while too
    if announced and fps:
        announced_s = max(announced_s, announced / fps)
    # if all frames are there, the last one is meant to be shown for the missing time
    whole = announced > 0 and clip["decoded"] >= MUCH_LESS * announced
    cut = not whole and given_s < min(MUCH_LESS * announced_s, announced_s - SLACK_S)
    parts = [f"gives {given_s:.1f} s of the {announced_s:.1f} s that its header announces"] if cut else []
    if clip["broken_off"]:
        parts.append("the file breaks off")
    if clip["damaged"] > clip["broken_off"]:  # the place where it breaks off counts as one
        parts.append(f"{quantity(int(clip['damaged']), part)} could not be decoded")
    return "; ".join(parts) or None


def clock_reason(clip: np.void) -> str | None:
    """Return how a clip's clock jumps; None if it does not."""
    if not clip["jumps"]:
        return None
    jumps = quantity(int(clip["jumps"]), "time")
    jumped_s = float(clip["jumped_s"])
    by = f"{jumped_s:,.0f}" if jumped_s >= 10 else f"{jumped_s:.1f}"
    return (f"its time stamps jump {jumps}, by {by} s in all, and are not followed there: "
            f"{int(clip['decoded']):,} frames count as {float(clip['length_s']):.1f} s")


def shortness_reason(clip: np.void, median_s: float | None) -> str | None:
    """Return why a clip is too short to be useful; None if it is not."""
    if clip["frames"] == 1:
        return "has one frame only"
    if median_s and clip["length_s"] < TOO_SHORT * median_s:
        return f"lasts {clip['length_s']:.2f} s, less than a tenth of the median, {median_s:.1f} s"
    return None


def _find_bad_copies(listed: ClipList, group: Sequence[int]) -> Iterator[ClipProblem]:
    """The problems of clips with the same content: in two splits, or of two classes."""
    clips = {index: listed.clips[index] for index in group}
    kinds = {(clip.label, clip.split): clip for clip in reversed(clips.values())}  # the first copy of each
    evaluated = [clip for clip in clips.values() if clip.split != "train"]
    files = {absolute(clip.path) for clip in evaluated}

    def name_clip(copy: Clip, clip: Clip) -> str:  # with its class, if that differs
        of_class = f", which is of class {listed.classes[copy.label]!r}" if copy.label != clip.label else ""
        return f"{copy.path} in {copy.split}{of_class}"

    for index, clip in clips.items():
        if evaluated and clip.split == "train":
            first = name_clip(evaluated[0], clip)
            is_file = absolute(clip.path) in files  # the quarantine would take it from both
            reason = (f"the same file as {first}: remove it from one of the lists" if is_file else
                      f"the same pictures as {first}: training on it would make accuracies too good")
            yield ClipProblem(index, "duplicate", reason, not is_file)
        elif other := next((other for other in kinds.values() if other.label != clip.label or (
                other.split != clip.split and other.split != "train")), None):
            yield ClipProblem(index, "duplicate", f"the same pictures as {name_clip(other, clip)}")


def count_copies(listed: ClipList, table: np.ndarray) -> int:
    """Return the number of clips that repeat another one of their own split and class, which is no mistake."""
    return sum(len(group) - len({(listed.clips[index].split, listed.clips[index].label) for index in group.tolist()})
               for group in same_contents(table))
