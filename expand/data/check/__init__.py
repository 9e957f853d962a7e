"""Check a data set before a search: decode every clip once, find its problems, and the limits that it sets."""

from __future__ import annotations

import dataclasses
import platform
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import av
import numpy as np

from expand.config.schema import DataConfig
from expand.data.check.figures import by_class_and_split, search_limits
from expand.data.check.measure import measure_all
from expand.data.check.problems import KINDS, count_copies, find_problems
from expand.data.loading.sampling import median_length_s
from expand.data.sources import ClipList, cache_dir, list_clips, quarantine_file, read_quarantine, write_quarantine
from expand.data.sources.clip import absolute
from expand.data.sources.quarantine import NAME
from expand.data.sources.splits import balance, balance_notes
from expand.data.synthetic import rendering as synthetic
from expand.errors import DataError, RunError, UsageError, quantity
from expand.rundir.files import make_dir, write_json
from expand.version import __version__

__all__ = ["check_clips", "refuse_problems"]

REPORT = "data-report.json"


def check_clips(config: DataConfig, *, out: Path | None = None, workers: int = 1,
                report: Callable[[str], None] = lambda text: None,
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
    by_hand = _read_rows_by_hand(quarantine_file(config), files.quarantine)
    if config.is_builtin:
        synthetic.ensure_rendered(config.builtin, cache_dir(config), workers, report)
    excluded = {str(path) for path, _, _ in by_hand}
    whole = len(listed.clips)
    listed = dataclasses.replace(listed, clips=tuple(clip for clip in listed.clips
                                                     if absolute(clip.path) not in excluded))
    # a file that is listed twice is decoded once
    places = {path: place for place, path in enumerate(dict.fromkeys(clip.path for clip in listed.clips))}
    measured, failed = measure_all(list(places), config, workers, files.measurements, report, progress)
    order = [places[clip.path] for clip in listed.clips]
    table, failures = measured[order], {index: failed[place] for index, place in enumerate(order) if place in failed}

    problems = find_problems(listed, table, failures, _median_s(listed, table, table["readable"]))
    kept = table["readable"].copy()
    kept[[problem.index for problem in problems if problem.quarantined]] = False
    rows = [(listed.clips[problem.index].path, problem.kind, problem.reason)
            for problem in problems if problem.quarantined] + by_hand
    evenness = balance(listed, kept)
    notes = [*listed.notes, *_make_notes(listed, table, kept, whole - len(listed.clips)), *balance_notes(evenness)]
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


def _make_notes(listed: ClipList, table: np.ndarray, kept: np.ndarray, by_hand: int) -> list[str]:
    """Lines about facts that are no problems."""
    notes = []
    if by_hand:
        notes.append(f"{quantity(by_hand, 'clip')} left out by hand, in the quarantine list")
    if copies := count_copies(listed, table):
        notes.append(f"{quantity(copies, 'clip')} with the same content as another of the same split and class")
    if len(listed.clips) and not (table["frames"] > 1).any() and table["readable"].any():
        notes.append("every clip that can be read has a single frame: these are pictures, and a search refuses them")
    if gone := listed.find_emptied(kept):
        notes.append("a search would not start, because no usable clip is left in: " + ", ".join(gone))
    return notes


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
        return CheckFiles(out / REPORT, out / NAME, absolute(out / NAME) == absolute(own))
    if _is_writable(own.parent):
        return CheckFiles(own.parent / REPORT, own, True)
    if not _is_writable(Path.cwd()):
        raise UsageError("neither this folder nor the current one can be written", where=str(own.parent),
                         fix="name a folder for the report with --out")
    return CheckFiles(Path.cwd() / REPORT, Path.cwd() / NAME, False)


def _is_writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=make_dir(folder)):
            return True
    except (OSError, RunError):
        return False


def _read_rows_by_hand(*paths: Path) -> list[tuple[Path, str, str]]:
    """The lines of quarantine lists that no check wrote: their kind is not in `KINDS`. Lists may be missing.

    Raises `DataError` for a list that cannot be read.
    """
    found: dict[Path, tuple[str, str]] = {}
    for path in paths:
        found |= read_quarantine(path) if path.is_file() else {}
    return [(clip, kind, reason) for clip, (kind, reason) in found.items() if kind not in KINDS]


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
