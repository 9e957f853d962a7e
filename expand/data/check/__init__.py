"""A data set looked over before a search: every clip decoded once, what is wrong with it, and what it allows."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import av
import numpy as np

from expand.config.schema import DataConfig
from expand.data.check.figures import by_class_and_split, limits
from expand.data.check.measuring import Failure, measure_all
from expand.data.check.places import Row, find_places, rows_by_hand, write_list
from expand.data.check.problems import Problem, copies_within, find_problems
from expand.data.loading.sampling import median_length_s
from expand.data.sources import ClipList, cache_dir, counted, list_clips, quarantine_file
from expand.data.sources.balance import balance, balance_notes
from expand.data.sources.checks import emptied
from expand.data.sources.clip import absolute
from expand.data.synthetic import rendering as synthetic
from expand.errors import DataError
from expand.rundir.files import write_json
from expand.version import __version__

__all__ = ["check_clips", "next_step"]


def check_clips(config: DataConfig, *, out: Path | None = None, workers: int = 1,
                report: Callable[[str], None] = lambda text: None,
                progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
    """Decode every clip that `config` names, quarantined or not, and say what is wrong and what the clips allow.

    Writes `data-report.json` and, where clips are to be left out, the quarantine list: into `out`; by default beside
    the clips, where a search finds the list by itself; in the current folder where that cannot be written. The list is
    made anew, but for lines of other kinds than a check's: such clips are left out here too. `progress` gets the clips
    done and to do. After an interruption the same call goes on where it stopped.

    Returns {"data", "classes", "splits", "balance", "limits", "problems", "notes", "report", "quarantine", "honoured"}
    (docs/json.md). Raises `DataError` for a set that cannot be listed, `UsageError` where nothing can be written.
    """
    listed, places = list_clips(config, quarantine=False), find_places(config, out)
    by_hand = rows_by_hand(quarantine_file(config), places.quarantine)
    if config.is_builtin:
        synthetic.ensure_rendered(config.builtin, cache_dir(config), workers, report)
    whole, listed = len(listed.clips), _without(listed, by_hand)
    table, failures = _measured(listed, lambda paths: measure_all(paths, config, workers, places.unfinished, report,
                                                                  progress))
    problems = find_problems(listed, table, failures, _median_s(listed, table, table["readable"]))
    kept = table["readable"].copy()
    kept[[problem.index for problem in problems if problem.quarantined]] = False
    rows = [(listed.clips[problem.index].path, problem.kind, problem.reason)
            for problem in problems if problem.quarantined] + by_hand
    evenness = balance(listed, kept)
    notes = [*listed.notes, *_notes(listed, table, kept, whole - len(listed.clips)), *balance_notes(evenness)]
    if said := write_list(places.quarantine, rows):
        notes.append(said)
    classes, splits = by_class_and_split(listed, table)
    checked = {"data": config.source, "classes": classes, "splits": splits, "balance": evenness,
               "limits": limits(table, kept, _median_s(listed, table, kept), config),
               "problems": [_shown(listed, problem) for problem in problems], "notes": notes, "report": places.report,
               "quarantine": places.quarantine if rows else None, "honoured": places.honoured}
    write_json(places.report, {**checked, **_circumstances(config)})
    return checked


def _without(listed: ClipList, by_hand: Sequence[Row]) -> ClipList:
    left_out = {str(path) for path, _, _ in by_hand}
    return dataclasses.replace(listed, clips=tuple(clip for clip in listed.clips
                                                   if absolute(clip.path) not in left_out))


def _measured(listed: ClipList, measure: Callable[[Sequence[Path]], tuple[np.ndarray, dict[int, Failure]]],
              ) -> tuple[np.ndarray, dict[int, Failure]]:
    """A row of `CLIP` for each clip, and the failures; a file that is listed twice is decoded once."""
    places = {path: place for place, path in enumerate(dict.fromkeys(clip.path for clip in listed.clips))}
    table, failures = measure(list(places))
    order = [places[clip.path] for clip in listed.clips]
    return table[order], {index: failures[place] for index, place in enumerate(order) if place in failures}


def _median_s(listed: ClipList, table: np.ndarray, kept: np.ndarray) -> float | None:
    lengths_s = table["length_s"].tolist()
    return median_length_s((listed.clips[place].split, lengths_s[place]) for place in np.flatnonzero(kept).tolist())


def _notes(listed: ClipList, table: np.ndarray, kept: np.ndarray, by_hand: int) -> list[str]:
    """What is no problem, but good to know."""
    notes = []
    if by_hand:
        notes.append(f"{counted(by_hand, 'clip')} left out by hand, in the quarantine list")
    if copies := copies_within(listed, table):
        notes.append(f"{counted(copies, 'clip')} with the same content as another of the same split and class")
    if len(listed.clips) and not (table["frames"] > 1).any() and table["readable"].any():
        notes.append("every clip that can be read has a single frame: these are pictures, and a search refuses them")
    if gone := emptied(listed, kept):
        notes.append("without a clip that can be used, so that a search would not start: " + ", ".join(gone))
    return notes


def _shown(listed: ClipList, problem: Problem) -> dict[str, Any]:
    clip = listed.clips[problem.index]
    return {"path": clip.path, "kind": problem.kind, "reason": problem.reason, "split": clip.split,
            "class": listed.classes[clip.label], "quarantined": problem.quarantined}


def _circumstances(config: DataConfig) -> dict[str, Any]:
    return {"settings": dataclasses.asdict(config), "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {"x3d-expand": __version__, "python": platform.python_version(), "av": av.__version__,
                         "ffmpeg": av.ffmpeg_version_info, "numpy": np.__version__}}


def next_step(checked: Mapping[str, Any]) -> None:
    """Raises `DataError` where something is wrong with the clips, with what to do about it."""
    problems = checked["problems"]
    if not problems:
        return
    clips = sum(of["clips"] for of in checked["splits"].values())
    advice = []
    if checked["quarantine"]:
        by_itself = f"a search leaves out by itself the clips that stand in {checked['quarantine']}"
        told = f"to leave out the clips that cannot be used: --set data.quarantine={checked['quarantine']}"
        advice.append(by_itself if checked["honoured"] else told)
    if not all(problem["quarantined"] for problem in problems):
        advice.append("the others stay in use: mend them, take them away, or put their paths into a quarantine list")
    raise DataError(f"{counted(len(problems), 'problem')} in {clips} clips", where=str(checked["data"]),
                    fix="\n  ".join([*advice, f"all of them, with the figures: {checked['report']}"]))
