"""Check a data set before a search: decode every clip once, find its problems, and the limits that it sets."""

from __future__ import annotations

import dataclasses
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import av
import numpy as np

from expand.config.schema import DataConfig
from expand.data.check.measure import Failure, by_class_and_split, measure_all, same_contents, search_limits
from expand.data.frames.clip_files import KINDS as UNREADABLE
from expand.data.loading.sampling import median_length_s
from expand.data.sources import QUARANTINE, list_clips, quarantine_file, read_quarantine, write_quarantine
from expand.data.sources.clip import Clip, ClipList, absolute
from expand.data.sources.paths import cache_dir
from expand.data.sources.splits import balance, balance_notes
from expand.data.synthetic import rendering as synthetic
from expand.errors import DataError, RunError, UsageError, quantity
from expand.rundir.files import make_dir, write_json
from expand.version import __version__

__all__ = ["check_clips", "refuse_problems"]

REPORT = "data-report.json"
KINDS = (*UNREADABLE, "truncated", "clock", "too-short", "duplicate")
MUCH_LESS = 0.9
"""A clip with less than this share of the frames that its header announces is cut; headers are often a little wrong."""
SLACK_S = 0.1
"""Smallest difference from the header that counts, seconds."""
TOO_SHORT = 0.1
"""Share of the median length below which a clip is too short."""


def check_clips(config: DataConfig, *, out: Path | None = None, workers: int = 1,
                progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
    """Decode every clip that `config` names, quarantined or not, and return its problems and the limits for a search.

    Writes `data-report.json` and, where clips are to be left out, the quarantine list: into `out`; by default beside
    the clips, where a search finds the list by itself; in the current folder if that is not writable. The list is
    written anew, but keeps lines of kinds that are not a check's; such clips are left out of the check. `progress` gets
    the number of clips done and of all clips. After an interruption the same call goes on where it stopped.

    Returns {"data", "classes", "splits", "balance", "limits", "problems", "notes", "report", "quarantine", "honoured"}
    (docs/json.md). Raises `DataError` for a set that cannot be listed, `UsageError` if no folder is writable.
    """
    listed, files = list_clips(config, quarantine=False), _choose_files(config, out)
    excluded: dict[Path, tuple[str, str]] = {}
    for path in (quarantine_file(config), files.quarantine):
        excluded |= read_quarantine(path) if path.is_file() else {}
    # lines that no check wrote
    by_hand = [(clip, kind, reason) for clip, (kind, reason) in excluded.items() if kind not in KINDS]
    if config.is_builtin:
        synthetic.ensure_rendered(config.builtin, cache_dir(config), workers)
    named = {str(path) for path, _, _ in by_hand}
    whole = len(listed.clips)
    listed = dataclasses.replace(listed, clips=tuple(clip for clip in listed.clips if absolute(clip.path) not in named))
    # a file that is listed twice is decoded once
    places = {path: place for place, path in enumerate(dict.fromkeys(clip.path for clip in listed.clips))}
    measured, failed = measure_all(list(places), config, workers, files.measurements, progress)
    order = [places[clip.path] for clip in listed.clips]
    table, failures = measured[order], {index: failed[place] for index, place in enumerate(order) if place in failed}

    problems = find_problems(listed, table, failures, _median_s(listed, table, table["readable"]))
    kept = table["readable"].copy()
    kept[[problem.index for problem in problems if problem.quarantined]] = False
    rows = [(listed.clips[problem.index].path, problem.kind, problem.reason)
            for problem in problems if problem.quarantined] + by_hand
    evenness, notes = balance(listed, kept), [*listed.notes]
    if left_out := whole - len(listed.clips):
        notes.append(f"{quantity(left_out, 'clip')} left out by hand, in the quarantine list")
    if copies := count_copies(listed, table):
        notes.append(f"{quantity(copies, 'clip')} with the same content as another of the same split and class")
    if len(listed.clips) and not (table["frames"] > 1).any() and table["readable"].any():
        notes.append("every clip that can be read has a single frame: these are pictures, and a search refuses them")
    if gone := listed.find_emptied(kept):
        notes.append("a search would not start, because no usable clip is left in: " + ", ".join(gone))
    notes += balance_notes(evenness)
    if rows:
        write_quarantine(files.quarantine, rows)
    elif files.quarantine.is_file():
        files.quarantine.unlink()
        notes.append(f"no clip needs to be left out any more: {files.quarantine} was removed")
    classes, splits = by_class_and_split(listed, table)
    found = [{"path": clip.path, "kind": problem.kind, "reason": problem.reason, "split": clip.split,
              "class": listed.classes[clip.label], "quarantined": problem.quarantined}
             for problem in problems for clip in [listed.clips[problem.index]]]
    result = {"data": config.source, "classes": classes, "splits": splits, "balance": evenness,
              "limits": search_limits(table, kept, _median_s(listed, table, kept), config), "problems": found,
              "notes": notes, "report": files.report, "quarantine": files.quarantine if rows else None,
              "honoured": files.honoured}
    versions = {"x3d-expand": __version__, "python": platform.python_version(), "av": av.__version__,
                "ffmpeg": av.ffmpeg_version_info, "numpy": np.__version__}
    write_json(files.report, {**result, "settings": dataclasses.asdict(config),
                              "date": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions})
    return result


def _median_s(listed: ClipList, table: np.ndarray, kept: np.ndarray) -> float | None:
    lengths_s = table["length_s"].tolist()
    return median_length_s((listed.clips[place].split, lengths_s[place]) for place in np.flatnonzero(kept).tolist())


@dataclass(frozen=True)
class CheckFiles:
    """The files that a check writes."""

    report: Path
    quarantine: Path
    honoured: bool
    """True if a search of the same clips finds the quarantine list by itself."""

    @property
    def measurements(self) -> Path:
        """The measurements so far, during a check and after an interruption."""
        return self.report.with_name(f".{self.report.name}.unfinished")


def _choose_files(config: DataConfig, out: Path | None) -> CheckFiles:
    """The files in `out`, else beside the clips, else, if that is not writable, in the current folder.

    Raises `UsageError` if `out` is not writable, or no folder is.
    """
    own = quarantine_file(config)
    if out is not None:
        if not _is_writable(out):
            raise UsageError("cannot be written", where=str(out), fix="name another folder with --out")
        return CheckFiles(out / REPORT, out / QUARANTINE, absolute(out / QUARANTINE) == absolute(own))
    if _is_writable(own.parent):
        return CheckFiles(own.parent / REPORT, own, True)
    if not _is_writable(Path.cwd()):
        raise UsageError("neither this folder nor the current one can be written", where=str(own.parent),
                         fix="name a folder for the report with --out")
    return CheckFiles(Path.cwd() / REPORT, Path.cwd() / QUARANTINE, False)


def _is_writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=make_dir(folder)):
            return True
    except (OSError, RunError):
        return False


def refuse_problems(result: Mapping[str, Any]) -> None:
    """Raise `DataError` if the `result` of a check has problems, with advice about what to do next."""
    problems = result["problems"]
    if not problems:
        return
    clips = sum(of["clips"] for of in result["splits"].values())
    advice = []
    if result["quarantine"]:
        automatic = f"a search leaves out the clips in {result['quarantine']} by itself"
        by_option = f"to leave out the clips that cannot be used: --set data.quarantine={result['quarantine']}"
        advice.append(automatic if result["honoured"] else by_option)
    if not all(problem["quarantined"] for problem in problems):
        advice.append("the others stay in use: mend them, remove them, or add their paths to a quarantine list")
    raise DataError(f"{quantity(len(problems), 'problem')} in {clips} clips", where=str(result["data"]),
                    fix="\n  ".join([*advice, f"all of them, with the figures: {result['report']}"]))


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
