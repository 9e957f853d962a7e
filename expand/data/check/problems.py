"""What is wrong with clips, by what was measured of them: pure rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from expand.data.check.measuring import Failure, same_contents
from expand.data.frames.unreadable import KINDS as UNREADABLE
from expand.data.sources import Clip, ClipList, counted
from expand.data.sources.clip import absolute

KINDS = (*UNREADABLE, "truncated", "clock", "too-short", "duplicate")
MUCH_LESS = 0.9
"""A clip that gives less than this share of what its header announces is cut; headers are often off by a little."""
SLACK_S = 0.1
"""And by this much at least, seconds."""
TOO_SHORT = 0.1
"""Share of the median length below which a clip is too short."""


@dataclass(frozen=True)
class Problem:
    """Something wrong with the clip at place `index` of the list."""

    index: int
    kind: str
    reason: str
    quarantined: bool = False


def find_problems(listed: ClipList, table: np.ndarray, failures: Mapping[int, Failure],
                  median_s: float | None) -> list[Problem]:
    """Everything that is wrong, in the order of the list; `table` has a row of `CLIP` for each of its clips.

    Quarantined are clips that cannot be read (unless none can: then it is rather the disk or the paths), those of a
    single frame (unless all have one), and train's copy of a clip that is also in val or test.
    """
    some, moving = bool(table["readable"].any()), bool((table["frames"] > 1).any())
    found = [Problem(index, failure.kind, failure.reason, some) for index, failure in failures.items()]
    for index in np.flatnonzero(table["readable"]).tolist():
        is_folder = table[index]["damaged"] and listed.clips[index].path.is_dir()
        if reason := truncated(table[index], "picture" if is_folder else "packet"):
            found.append(Problem(index, "truncated", reason))
        if reason := clock_jumps(table[index]):
            found.append(Problem(index, "clock", reason))
        if reason := too_short(table[index], median_s):
            found.append(Problem(index, "too-short", reason, moving and int(table[index]["frames"]) == 1))
    for group in same_contents(table):
        found += _copies(listed, group.tolist())
    return sorted(found, key=lambda problem: (problem.index, KINDS.index(problem.kind)))


def truncated(clip: np.void, part: str = "packet") -> str | None:
    """How a clip ends early or is damaged; None where it is whole. `part` is what it is made of."""
    announced, announced_s, fps = int(clip["announced_frames"]), float(clip["announced_s"]), float(clip["fps"])
    announced_s = 0.0 if clip["jumps"] else announced_s  # a length by the same clock
    given_s = float(clip["length_s"]) + (1 / fps if fps else 0.0)  # the last frame is shown for a while too
    if announced and fps:
        announced_s = max(announced_s, announced / fps)
    # with all frames there, the last one is to stand for the time that is missing
    whole = announced > 0 and clip["decoded"] >= MUCH_LESS * announced
    cut = not whole and given_s < min(MUCH_LESS * announced_s, announced_s - SLACK_S)
    parts = [f"gives {given_s:.1f} s of the {announced_s:.1f} s that its header announces"] if cut else []
    if clip["broken_off"]:
        parts.append("the file breaks off")
    if clip["damaged"] > clip["broken_off"]:  # where it breaks off counts as one
        parts.append(f"{counted(int(clip['damaged']), part)} could not be decoded")
    return "; ".join(parts) or None


def clock_jumps(clip: np.void) -> str | None:
    """How a clip's clock jumps; None where it does not."""
    if not clip["jumps"]:
        return None
    jumps = counted(int(clip["jumps"]), "time")
    jumped_s = float(clip["jumped_s"])
    by = f"{jumped_s:,.0f}" if jumped_s >= 10 else f"{jumped_s:.1f}"
    return (f"its time stamps jump {jumps}, by {by} s in all, and are not followed there: "
            f"{int(clip['decoded']):,} frames count as {float(clip['length_s']):.1f} s")


def too_short(clip: np.void, median_s: float | None) -> str | None:
    """Why a clip is too short to show anything; None where it is not."""
    if clip["frames"] == 1:
        return "has one frame only"
    if median_s and clip["length_s"] < TOO_SHORT * median_s:
        return f"lasts {clip['length_s']:.2f} s, less than a tenth of the median, {median_s:.1f} s"
    return None


def _copies(listed: ClipList, group: Sequence[int]) -> Iterator[Problem]:
    """What is wrong with clips of the same content: that they are in two splits, or of two classes."""
    clips = {index: listed.clips[index] for index in group}
    kinds = {(clip.label, clip.split): clip for clip in reversed(clips.values())}  # the first copy of each
    judged = [clip for clip in clips.values() if clip.split != "train"]
    files = {absolute(clip.path) for clip in judged}
    for index, clip in clips.items():
        if judged and clip.split == "train":
            other = _named(listed, judged[0], clip)
            is_file = absolute(clip.path) in files  # the quarantine would take it from both
            yield Problem(index, "duplicate", f"the same file as {other}: take it out of one of the lists" if is_file
                          else f"the same pictures as {other}: trained on, it would make the measurement too good",
                          not is_file)
        elif other := next((other for other in kinds.values() if _contradicts(other, clip)), None):
            yield Problem(index, "duplicate", f"the same pictures as {_named(listed, other, clip)}")


def _contradicts(other: Clip, clip: Clip) -> bool:
    """Whether two copies are of different classes, or one in val and one in test."""
    return other.label != clip.label or (other.split != clip.split and other.split != "train")


def _named(listed: ClipList, clip: Clip, beside: Clip) -> str:
    """A copy, with what differs."""
    if clip.label != beside.label:
        return f"{clip.path} in {clip.split}, which is of class {listed.classes[clip.label]!r}"
    return f"{clip.path} in {clip.split}"


def copies_within(listed: ClipList, table: np.ndarray) -> int:
    """Clips that repeat another one of their own split and class: no mistake, but seen more often."""
    return sum(len(group) - len({(listed.clips[index].split, listed.clips[index].label) for index in group.tolist()})
               for group in same_contents(table))
