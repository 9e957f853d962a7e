"""The folders of decoded frames and of runs: whether they can be written, and the free space."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from expand.config.schema import DataConfig, RunConfig
from expand.health.check import NOTE, OK, PROBLEM, Check
from expand.home import cache_place

COUNT_FOR_S = 1.0
"""Seconds for which files are counted; the cache of a large set has hundreds of thousands."""
LITTLE_GB = 2.0
"""Less than the checkpoints of a search, or the frames of a small set, may take."""


def cache() -> Check:
    """Check the folder of decoded frames and rendered clips that is used unless `data.cache_dir` names another."""
    folder, reason = cache_place()
    size, counted_all = size_of(folder)
    facts = {**_examine_folder(folder), "size_gb": size / 1e9, "counted_all": counted_all,
             "limit_gb": DataConfig().cache_gb, "no_home": reason}
    size_text = f"{'' if counted_all else 'more than '}{size / 1e9:.2f} GB in it (decoded frames: at most " \
                f"{DataConfig().cache_gb:g})"
    elsewhere = "name another folder with --set data.cache_dir=DIR, or XDG_CACHE_HOME"
    found = _check_folder("cache", facts, size_text, elsewhere)
    if reason and found.state == OK:
        return Check("cache", NOTE, f"{found.text}; {reason}", f"to keep it for longer, {elsewhere}", facts)
    return found


def runs() -> Check:
    """Check the folder of runs that is used here unless `--run-dir` or `run.runs_dir` names another."""
    return _check_folder("runs", _examine_folder(Path(RunConfig().runs_dir)), "",
                         "keep runs elsewhere with --run-dir DIR")


def _check_folder(name: str, facts: dict[str, Any], more: str, elsewhere: str) -> Check:
    text = f"{facts['folder']}: " + (f"{more}, " if more else "")
    if facts["error"]:
        return Check(name, PROBLEM, f"{text}cannot be written to: {facts['error']}", elsewhere, facts)
    text += f"{facts['free_gb']:.1f} GB free on its disk"
    if facts["free_gb"] < LITTLE_GB:
        return Check(name, NOTE, text, f"make room there, or {elsewhere}", facts)
    return Check(name, OK, text, facts=facts)


def _examine_folder(folder: Path) -> dict[str, Any]:
    """Return the folder, the error of writing there (or in the folder that it will be made in), and its free space."""
    folder = Path(os.path.abspath(folder))
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            error = None
    except OSError as failed:
        error = f"{failed.strerror}" + ("" if there == folder else f" ({there})")
    return {"folder": str(folder), "exists": folder.exists(), "error": error,
            "free_gb": shutil.disk_usage(there).free / 1e9}


def size_of(folder: Path, seconds: float = COUNT_FOR_S) -> tuple[float, bool]:
    """Return the bytes of all files below `folder`, and whether `seconds` were enough to count them."""
    total, end, waiting = 0.0, time.monotonic() + seconds, [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if time.monotonic() > end:
                        return total, False
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:  # not there, another user's, or removed meanwhile
            continue
    return total, True
